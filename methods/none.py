"""No erasure: the base row without which no table can be read."""

from __future__ import annotations

from dataclasses import dataclass

from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline


@dataclass(frozen=True, kw_only=True)
class NoErasure(Method):
    """Returns the pipeline it is given.

    >>> NoErasure().erase("a pipeline", concept=None)
    'a pipeline'
    """

    together = ("joint", "sequence")
    denoisers = ("unet", "transformer")

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        return pipe
