"""What safetensors files hold, read from their headers alone: names and shapes of tensors, before any weight is loaded.

Names are canonical: the pipeline's part, then the tensor's own name, without the ``text_model.`` that versions of
transformers put before or leave out of a text encoder's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import nn

from erasebench.store.files import tensor_header
from erasebench.types import Pipeline

Shapes = dict[str, tuple[int, ...]]
PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae")


def plain_name(name: str, part: str = "") -> str:
    """A tensor's name without what wraps a module: DDP's ``module.``, torch.compile's ``_orig_mod.``, peft's prefix.

    Args:
        name: in the file.
        part: of the pipeline the file belongs to, put before a name that has none; "" if the file does not say.

    >>> plain_name("module._orig_mod.mid_block.x.weight"), plain_name("mid_block.x.weight", "unet")
    ('mid_block.x.weight', 'unet.mid_block.x.weight')
    """
    bare = ".".join(step for step in name.split(".") if step != "_orig_mod").removeprefix("module.")
    first, _, rest = bare.removeprefix("base_model.model.").partition(".")
    if first in PARTS:
        return f"{first}.{rest.removeprefix('module.').removeprefix('base_model.model.')}"
    whole = f"{first}.{rest}" if rest else first
    return f"{part}.{whole}" if part and not whole.startswith("lora_") else whole


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
    for part in PARTS[:-1]:
        for file in sorted((folder / part).glob("*.safetensors")):
            shapes |= {canonical(f"{part}.{name}"): shape for name, shape in tensor_header(file)[0].items()}
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
            raise _stranger(name, model)
        found[name] = place
    return found


def _stranger(name: str, model: Mapping[str, tuple[int, ...]]) -> ValueError:
    """Why a tensor belongs nowhere: another layout, a prefix of somebody's trainer, or another model."""
    line = f"tensor {name} must belong to this model; no part has it"
    if name.startswith(("model.diffusion_model.", "cond_stage_model.", "first_stage_model.")):
        return ValueError(f"{line}, the layout of CompVis; convert it with StableDiffusionPipeline.from_single_file")
    steps = name.split(".")
    for cut in range(1, len(steps) - 1):
        tail = ".".join(steps[cut:])
        if any(place in model for place in (canonical(tail), *(f"{part}.{tail}" for part in PARTS))):
            prefix = ".".join(steps[:cut]) + "."
            return ValueError(f"{line}; without the prefix {prefix!r} it would; save it without that prefix")
    return ValueError(f"{line}; is it for another base?")
