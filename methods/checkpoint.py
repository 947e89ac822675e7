"""A checkpoint of one's own: weights that somebody erased elsewhere, measured like every method here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from erasebench import diffusion, fields
from erasebench.diffusion import lora
from erasebench.diffusion.headers import Shapes, folder_shapes, match, pipe_shapes
from erasebench.diffusion.weight_files import PICKLES, WeightFiles, refuse_rivals, weight_files
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Method):
    """Returns the pipeline with the weights of a checkpoint, whatever concept it was made to erase.

    ``path`` is one of

    - a diffusers folder, or a hub id with a pinned ``revision``: a whole pipeline of the same architecture;
    - a safetensors file with all or only the changed tensors of the UNet and text encoders, under the names of
      diffusers (``down_blocks...to_k.weight``), of UCE (the same) or ours (``unet.down_blocks...``);
    - a safetensors file with a LoRA under the names of peft and diffusers or of kohya: merged into the weights as
      ``W + scale * alpha / rank * B A`` (arXiv:2106.09685), rank-stabilised where its settings say so;
    - a folder with one of these for a part of the model: a file, its shards, or a peft adapter with its
      ``adapter_config.json`` (alpha, patterns and use_rslora as peft merges them); also in subfolders ``unet/``,
      ``text_encoder/``. Two candidates for one part are refused, and so is a LoRA that no such sum describes.

    Prefixes ``module.`` (DDP), ``_orig_mod.`` (torch.compile) and ``base_model.model.`` (peft) are understood.
    ``.pt``, ``.ckpt`` and ``.bin`` can run code when they are read and are refused; ``python -m erasebench.convert``
    turns those that hold nothing but tensors into safetensors. Nothing here costs a model evaluation.

    A checkpoint is applied as it is, so several concepts are ``together=joint``: those it was made to erase.

    Args:
        path: see above; ``~`` is the home folder.
        revision: commit of 40 hex digits; for a hub id only.
        scale: of a LoRA; 1 is the LoRA as trained.
        name: of the run's folder and of the rows in every table.

    Raises:
        FileNotFoundError: nothing at ``path``.
        ValueError: pickled or broken weights; several candidates; a hub id without a pinned revision; a tensor that
            does not fit, named with both shapes; a LoRA for another base, or no plain one. Where model and checkpoint
            are local, before weights are loaded.

    >>> Checkpoint(path="erased.pt")
    Traceback (most recent call last):
    ValueError: path must not be pickled weights; got erased.pt; convert them: python -m erasebench.convert erased.pt
    erased.safetensors
    """

    path: str | None = None
    revision: str | None = None
    scale: float = 1.0
    name: str = "checkpoint"

    together = ("joint",)
    denoisers = ("unet", "transformer")

    def __post_init__(self) -> None:
        fields.number("scale", self.scale, hint="1 is the LoRA as trained")
        fields.text("name", self.name, empty=False)
        if self.path is None:
            return
        path = fields.path("path", self.path)
        if path.suffix.lower() in PICKLES and not path.is_dir():
            raise ValueError(
                f"path must not be pickled weights; got {self.path}; convert them: python -m erasebench.convert "
                f"{self.path} {path.with_suffix('.safetensors')}"
            )
        if path.exists() or path.suffix == ".safetensors":
            return
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", self.path):
            raise FileNotFoundError(f"path must be a folder, a safetensors file or a hub id; got {self.path}; check it")
        if self.revision is None or not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            raise ValueError(
                f"path {self.path} is no folder here, and a hub id needs a pinned revision (a commit of 40 hex "
                f"digits); got {self.revision!r}; set method.revision"
            )

    def check(self, concept: Concept, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Compare headers with the model's ``shapes`` (none if it is not local), before any weight is loaded."""
        path = self._path()
        if (path / "model_index.json").is_file():
            if shapes:
                _check_shapes({k: (k, v) for k, v in folder_shapes(path).items()}, dict(shapes))
        elif path.exists() or path.suffix == ".safetensors":
            _all_places(path, dict(shapes))

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline with the checkpoint's weights where they differ; the rest is shared with ``pipe``."""
        path = self._path()
        if (path / "model_index.json").is_file() or not (path.exists() or path.suffix == ".safetensors"):
            return self._whole(pipe)
        shapes, own = pipe_shapes(pipe)
        erased = pipe
        for files, places in _all_places(path, shapes):
            tensors = files.tensors()
            if isinstance(places, Merge):
                old = {name: _tensor(erased, own[name]) for name in places.adapters}
                new = {n: lora.merged(old[n], a, tensors, self.scale) for n, a in places.adapters.items()}
            else:
                new = {place: tensors[name] for name, place in places.items()}
            erased = diffusion.apply_tensors(erased, {own[name]: tensor for name, tensor in new.items()})
        return erased

    def _whole(self, pipe: Pipeline) -> Pipeline:
        """A whole pipeline, as diffusers loads it."""
        dtype = str(pipe.unet.dtype).removeprefix("torch.")
        loaded = diffusion.load(str(self.path), revision=self.revision, dtype=dtype)
        shapes, _ = pipe_shapes(loaded)
        _check_shapes({name: (name, shape) for name, shape in shapes.items()}, pipe_shapes(pipe)[0])
        kinds = [p.scheduler.config.get("prediction_type", "epsilon") for p in (loaded, pipe)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"checkpoint must predict {kinds[1]} as the model does; got {kinds[0]}; use its own base")
        return diffusion.apply_tensors(pipe, diffusion.changed_tensors(loaded, pipe))

    def _path(self) -> Path:
        if self.path is None:
            raise ValueError("path must name the checkpoint; got none; set method.path=FILE, FOLDER or a hub id")
        return Path(self.path).expanduser()


@dataclass(frozen=True)
class Merge:
    """A file that changes weights by adapters instead of holding them."""

    adapters: dict[str, lora.Adapter]


def _all_places(path: Path, model: Shapes) -> list[tuple[WeightFiles, dict[str, str] | Merge]]:
    """Everything a path means, each with where its tensors belong; headers alone if ``model`` is not known."""
    found = []
    for files in weight_files(path):
        held, metadata = files.header()
        if not held:
            raise ValueError(f"checkpoint {path} must hold tensors; it holds none; save the erased weights into it")
        if model:
            found.append((files, _places(held, lora.part_settings(metadata, files.settings), model)))
    refuse_rivals(path, [(files, _parts(places)) for files, places in found])
    return found


def _parts(places: dict[str, str] | Merge) -> set[str]:
    """Parts of the pipeline that are changed."""
    names = places.adapters if isinstance(places, Merge) else places.values()
    return {name.partition(".")[0] for name in names}


def _places(held: Shapes, settings: Mapping[str, lora.Settings], model: Shapes) -> dict[str, str] | Merge:
    """Where a file's tensors belong, once all fit the model."""
    if lora.is_lora(held):
        return Merge(lora.adapters(held, settings, model))
    places = match(held, model)
    _check_shapes({place: (name, held[name]) for name, place in places.items()}, model)
    return places


def _check_shapes(held: Mapping[str, tuple[str, tuple[int, ...]]], model: Shapes) -> None:
    """Every shape by canonical name is the model's; the first that is not is named with both."""
    for place, (name, shape) in held.items():
        if place.endswith("position_ids"):
            continue
        if place not in model:
            raise ValueError(f"tensor {name} must belong to this model; no part has it; is it for another base?")
        if shape != model[place]:
            raise ValueError(
                f"tensor {name} must have shape {list(model[place])} as in this model; got {list(shape)}; "
                "is it for another base?"
            )


def _tensor(pipe: Pipeline, name: str) -> Tensor:
    part, _, key = name.partition(".")
    tensor: Tensor = getattr(pipe, part).state_dict()[key]
    return tensor
