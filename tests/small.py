"""One small cell of the embedded model's first edition, the lighter one, run as Python users do; seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import erasebench

SMALL = (
    "model=emoji", "evaluator=[classifier,asr]", "prompts.n={target:4,paraphrase:0,neighbour:0,unrelated:3,coco:0}",
    "model.steps=2", "model.batch_size=4",
)  # fmt: skip


def report_runs(root: Path) -> Path:
    """What a report has to show: two methods, an attack, an unsafe concept."""
    small_run(root, "method=none")
    small_run(root, "method=uce")
    small_run(root, "method=uce", "attack=reseed", "attack.queries=2")
    small_run(root, "method=uce", "concept=gun")
    return root


def small_run(results: Path, *overrides: str) -> Any:
    given = {override.split("=")[0] for override in overrides}  # what a test chooses itself is given once
    return erasebench.run(*(o for o in SMALL if o.split("=")[0] not in given), f"results={results}", *overrides)
