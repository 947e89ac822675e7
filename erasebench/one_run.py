"""One run in six steps, each a function a notebook could call: load, erase, attack, draw, score, record.

Every step's result is content-addressed (``erasebench.store``), so a grid shares what it can, a killed run goes on
where it stopped, and a finished one only reads its tables.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from omegaconf import DictConfig

from erasebench import costs, preflight, progress, several
from erasebench.building import build
from erasebench.cell import Cell, Result, plan
from erasebench.limits import read_text
from erasebench.protocols import Attack, Evaluator, Judge, Method
from erasebench.recording import record
from erasebench.report import tables
from erasebench.report.runs import opened
from erasebench.store.files import check_writable, damaged, locate
from erasebench.types import KEPT_GROUPS, Concept, Pipeline, Prompt, joint

log = logging.getLogger(__name__)

LOOKS = ("queries", "model")  # access of attacks that look at the erased model


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
        record = opened(read_text(cell.folder / "run.json"))
        if record["key"] != cell.key:
            return None
        if lost := damaged(cell.folder, record["files"]):
            log.warning("%s: %s damaged or gone; made anew from what is stored", cell.folder, ", ".join(lost))
            return None
        scores = tables.read_scores(cell.folder / "scores.parquet")
        summary = tables.read_summary(cell.folder / "summary.csv")
        return Result(cell.folder, scores, summary, record, True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@dataclass(frozen=True)
class Parts:
    """What a cell's config describes, built; nothing of it has loaded a weight yet."""

    concept: Concept
    method: Method
    attack: Attack
    judge: Judge
    evaluators: dict[str, Evaluator]
    prompts: list[Prompt]


def run(cfg: DictConfig) -> Result:
    """Run one cell, or read it if it was run before.

    Raises:
        ValueError, OSError: bad input, one line, before any weight is loaded where that is possible.
    """
    cell = plan(cfg)
    if result := finished(cell):
        return result
    check_writable(cell.root)
    preflight.check(cell.config)
    progress.say_alone(costs.expected([cell.config], cell.root))
    parts = build_parts(cell)
    check_parts(cell, parts)
    return complete(Work(cell, parts))


@dataclass
class Work:
    """A cell whose models and prompts are made, or found in the store, once somebody asks for them."""

    cell: Cell
    parts: Parts

    @cached_property
    def original(self) -> tuple[Pipeline, str]:
        """The original model, and the hash of its weights."""
        from erasebench import steps

        pipe = steps.load(self.cell)
        steps.check_family(pipe, self.parts.method, self.parts.attack, self.cell.names)
        return pipe, self.cell.model_hash

    @cached_property
    def erased(self) -> tuple[Pipeline, str]:
        """The erased model and its key."""
        from erasebench import steps

        return steps.erase(self.cell, self.parts.method, self.original[0], self.parts.concept)

    @cached_property
    def found(self) -> list[Prompt]:
        """The prompts that the attack found."""
        from erasebench import steps

        p, original = self.parts, self.original[0]
        looks = p.attack.access in LOOKS  # else the erased model is nothing to it
        erased, key = self.erased if looks else self.__dict__.get("erased", self.original)
        return steps.attack(self.cell, p.attack, erased, key, original, p.prompts, p.concept, p.judge)

    @cached_property
    def others(self) -> dict[str, tuple[Pipeline, str]]:
        """Side -> a model that an evaluator compares with, and its key."""
        from erasebench import steps

        return steps.beside(self.cell, self.parts.evaluators, self.original[0], self.parts.concept)

    @property
    def models(self) -> dict[str, tuple[Pipeline, str]]:
        """Side -> model and key, of all that are drawn with."""
        return {"original": self.original, "erased": self.erased} | self.others


def complete(work: Work) -> Result:
    """All steps in order, each looked for in the store first, and the tables."""
    from erasebench import steps

    cell, parts = work.cell, work.parts
    work.erased, work.found  # noqa: B018  the order in which run.json tells of the steps
    images = steps.draw(cell, work.models, parts.prompts + work.found)
    scores = steps.score(cell, parts.evaluators, images)
    images = {side: images[side] for side in ("original", "erased")}
    return record(cell, scores, images, parts.attack, parts.judge, parts.evaluators)


def build_parts(cell: Cell) -> Parts:
    """Everything the config describes; prompts of the groups that an evaluator asks for, and the targets.

    Raises:
        ValueError, OSError: a setting that a part refuses; no prompt.
    """
    config = cell.config
    concepts: list[Concept] = [build(node, "concept") for node in cell.concepts]
    concept = joint(concepts) if len(concepts) > 1 else concepts[0]
    method, attack, judge = (build(config[group], group) for group in ("method", "attack", "judge"))
    several.check_method(cell.names["method"], method, config)
    evaluators = {name: build(node, f"evaluator.{name}") for name, node in config["evaluator"].items()}
    prompts: list[Prompt] = build(config["prompts"], "prompts").prompts(concept)
    if config["kept"]:
        prompts += kept_prompts(build(config["kept"], "kept").prompts(concept), {p.id for p in prompts})
    if not prompts:
        raise ValueError(
            f"prompts: at least one is needed for concept {concept.name!r}; got none; check the prompts config"
        )
    wanted = {g for e in evaluators.values() for g in e.groups} | {"target"}
    return Parts(concept, method, attack, judge, evaluators, [p for p in prompts if p.group in wanted])


def kept_prompts(prompts: Sequence[Prompt], taken: Collection[str]) -> list[Prompt]:
    """The prompts of a second source that should survive, under ids that the first has not taken.

    Raises:
        ValueError: there are none.

    >>> found = [Prompt(id="1", text="a street", group="coco"), Prompt(id="2", text="a cat")]
    >>> [p.id for p in kept_prompts(found, {"1"})]
    ['kept-1']
    """
    chosen = [p for p in prompts if p.group in KEPT_GROUPS]
    if not chosen:
        found = ", ".join(sorted({p.group for p in prompts})) or "no prompt"
        raise ValueError(
            f"kept - must be a source of prompts of group {', '.join(KEPT_GROUPS)}; got {found}; write kept.group=coco "
            "or choose another with prompts@kept="
        )
    return [p.with_(id=f"kept-{p.id}") if p.id in taken else p for p in chosen]


def check_parts(cell: Cell, parts: Parts) -> None:
    """What can be known to fail before any weight is loaded.

    Raises:
        ValueError, OSError: as the parts' own ``check`` says.
    """
    singles = parts.concept.singles
    for named in ({c.name for c in singles}, {p.concept for p in parts.prompts if p.concept}):  # the erased first
        parts.judge.check(named)
    for single in singles:
        parts.attack.check(single)
    for evaluator in parts.evaluators.values():
        evaluator.check()
    shapes = model_shapes(cell.config["model"])
    for concept in singles if cell.config["together"] == "sequence" else [parts.concept]:
        parts.method.check(concept, shapes)
    for evaluator in parts.evaluators.values():
        if evaluator.beside:
            getattr(evaluator, evaluator.beside).check(parts.concept, shapes)
