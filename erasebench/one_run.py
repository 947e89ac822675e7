"""One run in six steps, each a function a notebook could call: load, erase, attack, draw, score, record.

Every step's result is content-addressed (``erasebench.store``), so a grid shares what it can, a killed run goes on
where it stopped, and a finished one only reads its tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from erasebench import preflight, progress, several
from erasebench.building import build
from erasebench.cell import Cell, Result, plan
from erasebench.report import tables
from erasebench.store.files import locate
from erasebench.types import Concept, Prompt, joint


def model_shapes(model: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
    """Shapes of the model's tensors from its files' headers; none for a hub id or a model that will not load."""
    from erasebench.diffusion.headers import folder_shapes

    try:
        return folder_shapes(locate(model["path"]))
    except ValueError:
        return {}


def finished(cell: Cell) -> Result | None:
    """The stored result if this very run is complete."""
    try:
        record = json.loads((cell.folder / "run.json").read_text(encoding="utf-8"))
        if record["key"] != cell.key:
            return None
        scores = tables.read_scores(cell.folder / "scores.parquet")
        summary = tables.read_summary(cell.folder / "summary.csv")
        return Result(cell.folder, scores, summary, record, True) if (cell.folder / "grid.png").exists() else None
    except (OSError, ValueError, KeyError):
        return None


def run(cfg: DictConfig) -> Result:
    """Run one cell, or read it if it was run before.

    Raises:
        ValueError, OSError: bad input, one line, before any weight is loaded where that is possible.
    """
    cell = plan(cfg)
    if result := finished(cell):
        return result
    preflight.check(cell.config)
    progress.say_alone(preflight.expected([cell.config], cell.root))
    from erasebench import steps

    config = cell.config
    concepts: list[Concept] = [build(node) for node in cell.concepts]
    concept = joint(concepts) if len(concepts) > 1 else concepts[0]
    method, attack, judge = build(config["method"]), build(config["attack"]), build(config["judge"])
    several.check_method(cell.names["method"], method, config)
    evaluators = {name: build(node) for name, node in config["evaluator"].items()}
    prompts: list[Prompt] = build(config["prompts"]).prompts(concept)
    if not prompts:
        raise ValueError(
            f"prompts: at least one is needed for concept {concept.name!r}; got none; check the prompts config"
        )
    for named in ({c.name for c in concept.singles}, {p.concept for p in prompts if p.concept}):  # the erased first
        judge.check(named)
    for part in concept.singles:
        attack.check(part)
    for evaluator in evaluators.values():
        getattr(evaluator, "check", lambda: None)()
    if hasattr(method, "check"):
        for part in concept.singles if config["together"] == "sequence" else [concept]:
            method.check(part, model_shapes(config["model"]))
    wanted = {g for e in evaluators.values() for g in e.groups}
    prompts = [p for p in prompts if p.group in wanted or p.group == "target"]

    original = steps.load(cell)
    erased, erased_key = steps.erase(cell, method, original, concept)
    prompts = prompts + steps.attack(cell, attack, erased, erased_key, original, prompts, concept, judge)
    images = steps.draw(cell, {"original": (original, cell.model_hash), "erased": (erased, erased_key)}, prompts)
    scores = steps.score(cell, evaluators, images)
    return steps.record(cell, scores, images, attack, evaluators)
