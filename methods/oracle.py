"""The oracle: the embedded model as it would be had it never met the concept, the ground truth of erasing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from erasebench import diffusion, fields
from erasebench.diffusion import differences
from erasebench.protocols import Method
from erasebench.store.files import locate, tensor_header
from erasebench.types import Concept, Pipeline


@dataclass(frozen=True, kw_only=True)
class Oracle(Method):
    """Returns the pipeline with a UNet that was trained without any picture or caption of the concept.

    It costs nothing to make and shows what perfect erasure is: what becomes of paraphrases, neighbours and unrelated
    concepts when a concept is truly absent, how often a judge sees what was never learned, and how much of what a
    strong attack "recovers" it taught. The oracles come with the embedded model's second edition (``model=emoji2``)
    and share its text encoder, its autoencoder and its training up to the point where the model first meets any
    concept that has an oracle; from there they go on with the same seed and schedule, without the concept.

    A file holds the UNet's difference to the model's, see :mod:`erasebench.diffusion.differences`.

    Args:
        folder: with a safetensors file per concept, named after it; ``pkg:PACKAGE/REST`` lies in a package.

    Raises:
        ValueError: a concept without an oracle, with the names of those that have one; a model of other shapes.

    >>> Oracle(folder="oracles").folder
    'oracles'
    """

    folder: str

    together = ("joint",)

    def __post_init__(self) -> None:
        fields.text("folder", self.folder, empty=False)

    def check(self, concept: Concept, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """A ValueError, before any weight is loaded, if the concept has no oracle, or only one of another model."""
        stored = differences.sizes(tensor_header(self._file(concept))[0])
        here = {name: math.prod(shape) for name, shape in shapes.items()}
        other = [name for name, size in stored.items() if here.get(f"unet.{name}") != size]
        if shapes and other:
            raise ValueError(
                f"model must be the one whose oracles lie in {self.folder}; got one whose UNet has another tensor "
                f"{other[0]}; choose that model (model=emoji2), or give oracles of this one as the method's folder"
            )

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline with the oracle's UNet; the rest is shared with ``pipe``."""
        new = differences.unpack(load_file(self._file(concept)), pipe.unet.state_dict())
        return diffusion.apply_tensors(pipe, {f"unet.{key}": value for key, value in new.items()})

    def _file(self, concept: Concept) -> Path:
        folder = locate(self.folder)
        known = sorted(path.stem for path in folder.glob("*.safetensors"))
        if concept.name not in known:
            has = ", ".join(known) or "no concept has"
            raise ValueError(f"concept must have an oracle; got {concept.name!r}; these have one: {has}")
        return folder / f"{concept.name}.safetensors"
