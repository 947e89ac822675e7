"""One process: the one that was started, or those of Hydra's launcher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Local:
    """The process that was started does all steps of a cell, one after another."""

    spreads: ClassVar[bool] = False
