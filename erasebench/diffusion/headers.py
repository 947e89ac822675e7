"""What safetensors files hold, read from their headers alone: names and shapes of tensors, before any weight is loaded.

Names are canonical: the pipeline's part, then the tensor's own name, without the ``text_model.`` that versions of
transformers put before or leave out of a text encoder's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from erasebench.types import Pipeline

Shapes = dict[str, tuple[int, ...]]
PARTS = ("unet", "text_encoder", "text_encoder_2", "vae")


def header(file: Path) -> tuple[Shapes, dict[str, str]]:
    """Names and shapes of a file's tensors, and its metadata.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no safetensors, or cut off.
    """
    if not file.is_file():
        raise FileNotFoundError(f"weights {file} must be a file; found none; check the path")
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in names}
            return shapes, dict(opened.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"weights {file} must be safetensors; {error}; download or save them again") from None


def canonical(name: str) -> str:
    """A tensor's name without the optional ``text_model.``.

    >>> canonical("text_encoder.text_model.encoder.layers.0.mlp.fc1.weight")
    'text_encoder.encoder.layers.0.mlp.fc1.weight'
    """
    part, _, key = name.partition(".")
    return f"{part}.{key.removeprefix('text_model.')}" if part.startswith("text_encoder") else name


def folder_shapes(folder: Path) -> Shapes:
    """Canonical names and shapes of the UNet and text encoders of a diffusers folder.

    The VAE is left out: diffusers renames its older attention layers while loading.
    """
    shapes: Shapes = {}
    for part in PARTS[:3]:
        for file in sorted((folder / part).glob("*.safetensors")):
            shapes |= {canonical(f"{part}.{name}"): shape for name, shape in header(file)[0].items()}
    return shapes


def pipe_shapes(pipe: Pipeline) -> tuple[Shapes, dict[str, str]]:
    """Canonical names and shapes of a loaded pipeline's tensors, and canonical name -> its own name."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    own = {f"{part}.{key}": tuple(t.shape) for part, module in parts.items() for key, t in module.state_dict().items()}
    return {canonical(name): shape for name, shape in own.items()}, {canonical(name): name for name in own}


def match(names: Iterable[str], model: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Where the tensors of a weights file belong: their name in the file -> canonical name in the model.

    Understood are this benchmark's names (``unet.<...>``), those of a diffusers UNet or of a text encoder alone, and
    UCE's ``<module>.weight``, which are the UNet's.

    Raises:
        ValueError: a tensor that no part of the model has.
    """
    found = {}
    for name in names:
        if name.endswith("position_ids"):  # a buffer of older text encoders, not a weight
            continue
        bare = name.removeprefix("text_model.")
        places = [canonical(name), *(f"{part}.{key}" for part in PARTS for key in (name, bare))]
        place = next((place for place in places if place in model), None)
        if place is None:
            layout = "the layout of CompVis" if name.startswith(("model.", "cond_stage_model.", "first_stage")) else ""
            advice = "convert it with StableDiffusionPipeline.from_single_file" if layout else "is it for another base?"
            raise ValueError(
                f"tensor {name} must belong to this model; no part has it{layout and ', ' + layout}; {advice}"
            )
        found[name] = place
    return found
