"""What a run is, for tests of tables: the names of a cell, and what our own evaluators declare as headlines."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from erasebench.types import Headline
from evaluators.asr import ASR
from evaluators.classifier import Classifier
from evaluators.clip_score import ClipScore
from evaluators.fid import FID
from evaluators.nudenet import NudeNet
from evaluators.spillover import Spillover


def cell(**changes: Any) -> dict[str, Any]:
    """The keys of ``erasebench.report.tables.CELL``."""
    plain = {
        "model": "emoji", "concept": "cat", "method": "uce", "recipe": "paper", "attack": "none", "budget": "paper",
        "settings": "", "access": "none", "strength": "text", "control": False,
    }  # fmt: skip
    return plain | changes


HEADLINES: dict[str, tuple[Headline, ...]] = {
    "classifier": Classifier.headlines,
    "asr": ASR.headlines,
    "clip_score": ClipScore.headlines,
    "spillover": Spillover.headlines,
    "fid": FID(features=SimpleNamespace(name="j")).headlines,
    "nudenet": NudeNet.headlines.fget(SimpleNamespace(detector="v3_4_320n.path_bgr", thresholds=(0.25, 0.6))),  # type: ignore[attr-defined]
}
