"""The attack views of benchmarks/tables.py: runs of one cell pooled over seeds, attacks beside their controls.

A cell is one model, concept, method, recipe and attack. Rates are of the images that the runs drew. An adaptive
attack is held against the best control of the same model at the same number of images judged for each prompt: by those
rates if both were allowed equally many, else both are read from their curves (budget.csv) at the smaller number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from erasebench.cell import has_recipe
from erasebench.report import budget
from erasebench.report.checks import CONTROLS, difference, presence
from erasebench.report.tables import read_scores, summarise

EMBEDDING = ("ringabell_soft", "inverse_edit")  # stronger than text
OWN_WORDS = ("inverse_edit",)  # its embeddings mean something to the edited model alone
ACCESS = ("none", "text_encoder", "queries", "model")
ATTACK_HEADS = (
    "concept", "method", "attack", "n", "original model", "plain prompts", "attack prompts", "ASR", "ASR on safe",
    "images judged", "seconds", "best control, as many images", "ahead by",
)  # fmt: skip


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % interval; NaN where nothing was measured."""

    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        """In %, ``64 [50, 76]``, or ``-``."""
        if math.isnan(self.mean):
            return "-"
        return f"{100 * self.mean:.0f} [{100 * self.low:.0f}, {100 * self.high:.0f}]"


@dataclass(frozen=True)
class Cell:
    """All seeds of one cell: their run.json, and the pooled summary of what was seen and of ASR."""

    names: Mapping[str, str]
    records: tuple[Mapping[str, Any], ...]
    folders: tuple[Path, ...]
    summary: pd.DataFrame
    searched: Mapping[str, float]  # folder of an attack step -> seconds of the run that computed it

    @property
    def place(self) -> tuple[str, ...]:
        """What attacks must share to be compared."""
        return tuple(self.names[k] for k in ("model", "concept", "method", "recipe"))

    @property
    def attack(self) -> str:
        return self.names["attack"]

    @property
    def access(self) -> str:
        return str(self.summary.access.iloc[0]) if len(self.summary) else "none"

    @property
    def control(self) -> bool:
        return self.attack in CONTROLS

    @property
    def adaptive(self) -> bool:
        return self.access in ("queries", "model") and not self.control

    @property
    def order(self) -> tuple[Any, ...]:
        """None, static sets, text encoder, controls, adaptive; text before embeddings; by name."""
        group = 2.5 if self.access == "queries" and not self.control else ACCESS.index(self.access)
        return (self.attack != "none", group, self.attack in EMBEDDING, self.attack)

    def rate(self, group: str, side: str = "mean") -> Rate:
        """How often the concept is there, in images of the erased model (``mean``) or the original one (``base``)."""
        return _rate(presence(self.summary[self.summary.group == group]), side)

    def asr(self, name: str) -> Rate:
        """``asr`` or ``asr_on_safe``, where the runs have the evaluator."""
        return _rate(self.summary[self.summary.metric.str.startswith(f"{name}.")])

    @cached_property
    def curve(self) -> pd.DataFrame | None:
        """Success after each image judged, up to as many as were allowed; None for an attack that asks nobody."""
        found = [pd.read_csv(f / "budget.csv") for f in self.folders if (f / "budget.csv").exists()]
        return budget.pooled(found, _allowed(self.records[0]["config"]["attack"])) if found else None

    @property
    def most(self) -> int:
        """Images judged for a prompt at most, the plain one included; 0 for an attack that asks nobody."""
        return 0 if self.curve is None else int(self.curve.queries.max())

    def at(self, queries: int) -> Rate:
        """Success within that many images: the table's rate at the whole budget, else read from the curve."""
        if queries == self.most or self.curve is None:
            return self.rate("attack")
        row = self.curve[self.curve.queries == queries].iloc[0]
        return Rate(row.asr, row.low, row.high)

    @property
    def spent(self) -> str:
        """``9 (6.3)``: images judged for a prompt, at most and on average; for Ring-A-Bell texts encoded in all."""
        found = [r.get("attack") or {} for r in self.records]
        if self.most:
            return f"{self.most} ({_total(found, 'queries') / max(_total(found, 'prompts'), 1):.1f})"
        encoded = _total(found, "evaluations")
        return f"- ({encoded:,.0f} texts encoded)" if encoded else "-"


def _rate(rows: pd.DataFrame, side: str = "mean") -> Rate:
    if not len(rows) or not rows.iloc[0].n:
        return Rate()
    names = ("mean", "low", "high") if side == "mean" else (side, f"{side}_low", f"{side}_high")
    return Rate(*(float(rows.iloc[0][k]) for k in names))


def _total(found: Iterable[Mapping[str, Any]], name: str) -> float:
    return sum(float(f.get(name) or 0) for f in found)


def _allowed(attack: Mapping[str, Any]) -> int:
    """Images judged for a prompt at most, by the attack's settings; 0 if they do not say."""
    rounds = len(attack.get("timesteps") or ()) or attack.get("iterations", 0) // attack.get("query_every", math.inf)
    limits = (attack.get("queries"), attack.get("budget"), 1 + rounds if rounds else None)
    return int(min((limit for limit in limits if limit), default=0))


def run_files(root: Path, wanted: Mapping[str, Sequence[str]]) -> list[Path]:
    """run.json of every finished run with the wanted names.

    Args:
        root: the results folder.
        wanted: "model", "concept", "method", "attack" or "seed" -> values to keep.
    """
    return [path for path in sorted(root.glob("runs/**/run.json")) if _wanted(json.loads(path.read_text()), wanted)]


def _wanted(record: Mapping[str, Any], wanted: Mapping[str, Sequence[str]]) -> bool:
    names = record["identity"]["names"] | {"seed": str(record["config"]["seed"])}
    return all(names[k] in values for k, values in wanted.items())


def cells(root: Path, wanted: Mapping[str, Sequence[str]]) -> list[Cell]:
    """The cells of a folder in reading order: concept, method (``none`` first), attack; see :func:`run_files`."""
    grouped: dict[tuple[str, ...], list[tuple[dict[str, Any], Path]]] = {}
    steps = [json.loads(path.read_text(encoding="utf-8"))["steps"].get("attack", {}) for path in run_files(root, {})]
    searched = {step["folder"]: step["seconds"] for step in steps if "folder" in step and not step["cached"]}
    for path in run_files(root, wanted):
        record = json.loads(path.read_text(encoding="utf-8"))
        key = tuple(record["identity"]["names"][k] for k in ("model", "concept", "method", "recipe", "attack"))
        grouped.setdefault(key, []).append((record, path.parent))
    found = []
    for runs in grouped.values():
        scores = pd.concat([read_scores(folder / "scores.parquet") for _, folder in runs])
        scores = scores[
            scores.group.isin(["target", "attack"]) & scores.evaluator.isin(["classifier", "asr", "nudenet"])
        ]
        summary = summarise(scores)
        records, folders = zip(*runs, strict=True)
        found.append(Cell(runs[0][0]["identity"]["names"], records, folders, summary[summary.relation == ""], searched))
    return sorted(found, key=lambda c: (c.place[:2], c.names["method"] != "none", c.place[2:], c.order))


def method_name(names: Mapping[str, str]) -> str:
    literal = names["recipe"] == "paper" and has_recipe(names["method"], names["model"])
    return names["method"] + (" (literal)" if literal else "")


def best_control(cell: Cell, found: Sequence[Cell]) -> tuple[Cell, int] | None:
    """The control of the same model with the highest rate, and at how many images it and the attack are read."""
    beside = [(c, min(c.most, cell.most) or c.most) for c in found if c.control and c.place == cell.place]
    beside = [(c, b) for c, b in beside if not math.isnan(c.at(b).mean)]
    return max(beside, key=lambda pair: pair[0].at(pair[1]).mean, default=None)


def ahead(cell: Cell, control: Cell, queries: int) -> tuple[bool, str]:
    """Whether an attack is shown to be better than a control (as the flag ``no_better_than_control`` has it)."""
    own, luck = cell.at(queries), control.at(queries)
    low, high = difference(own, luck)
    return low > 0, f"{100 * (own.mean - luck.mean):.0f} [{100 * low:.0f}, {100 * high:.0f}]"


def seconds(cell: Cell) -> str:
    """Of the attack step, mean of the seeds; of the run that searched, where others took its prompts from the store."""
    took = []
    for record in cell.records:
        own = (record.get("attack") or {}).get("seconds")  # of the whole search, should it have been killed in between
        took.append(own if own is not None else cell.searched.get(record["steps"].get("attack", {}).get("folder", "")))
    known = [float(t) for t in took if t is not None]
    return f"{sum(known) / len(known):.0f}" if known and cell.attack != "none" else "-"


def attacks(found: Sequence[Cell]) -> list[list[str]]:
    """One row per concept, method and attack; see the module for what a control's column says."""
    lines = [list(ATTACK_HEADS)]
    for cell in found:
        plain, none = cell.rate("target"), cell.attack == "none"
        group = "target" if none else "attack"
        shown = presence(cell.summary[cell.summary.group == group])
        same = cell.names["method"] == "none" or cell.attack in OWN_WORDS
        beside = best_control(cell, found) if cell.adaptive else None
        control = gain = "-"
        if beside is not None:
            luck, queries = beside
            better, by = ahead(cell, luck, queries)
            read = "" if luck.most == cell.most == queries else f" at {queries}"
            control = f"{luck.attack}{read}: {luck.at(queries)}"
            gain = f"**{by}**" if better else by
        lines.append(
            [cell.names["concept"], method_name(cell.names), cell.attack, str(int(shown.n.max()) if len(shown) else 0),
             "-" if same else str(cell.rate(group, "base")), str(plain), "-" if none else str(cell.rate("attack")),
             str(cell.asr("asr")), str(cell.asr("asr_on_safe")), "-" if none else cell.spent, seconds(cell),
             control, gain]
        )  # fmt: skip
    return lines


def attack_matrix(found: Sequence[Cell]) -> list[list[str]]:
    """Concepts x attacks as rows, methods as columns; bold: shown to be better than the best control."""
    columns = sorted(dict.fromkeys(method_name(c.names) for c in found), key=lambda name: name != "none")
    lines = [["concept", "attack", *columns]]
    at: dict[tuple[str, str], dict[str, str]] = {}
    for cell in sorted(found, key=lambda c: (c.place[:2], c.order)):
        text = str(cell.rate("target" if cell.attack == "none" else "attack"))
        beside = best_control(cell, found) if cell.adaptive else None
        if beside is not None and ahead(cell, *beside)[0]:
            text = f"**{text}**"
        at.setdefault((cell.names["concept"], cell.attack), {})[method_name(cell.names)] = text
    return lines + [[*place, *(row.get(m, "-") for m in columns)] for place, row in at.items()]


def transfer(found: Sequence[Cell]) -> list[list[str]]:
    """Replayed prompts: where they were found as rows, where they were tried as columns; bold: found right there."""
    replays = [c for c in found if c.records[0]["config"]["attack"].get("run")]
    columns = list(dict.fromkeys(method_name(c.names) for c in found if c.names["method"] != "none"))
    lines = [["concept", "found by", "on", "n", "original model", *columns]]
    rows: dict[str, list[Cell]] = {}
    for cell in replays:
        rows.setdefault(str(cell.records[0]["config"]["attack"]["run"]), []).append(cell)
    for run, tried in rows.items():
        parts = Path(run).parts
        method, attack = ("-", Path(run).stem) if run.endswith(".csv") or len(parts) < 5 else parts[-3:-1]
        concept = tried[0].names["concept"]
        at = {method_name(c.names): str(c.rate("attack")) for c in tried}
        for c in found:  # its own run says how the prompts did where they were found
            if c.folders[0].parts[-4:-1] == (concept, method, attack):
                at[method_name(c.names)] = f"**{c.rate('attack')}**"
        n = int(presence(tried[0].summary[tried[0].summary.group == "attack"]).n.max())
        line = [concept, attack, method, str(n), str(tried[0].rate("attack", "base"))]
        lines.append(line + [at.get(m, "-") for m in columns])
    return lines


def draw_budget(found: Sequence[Cell], path: Path) -> None:
    """One picture of the curves of all attacks on one concept and method that asked a judge.

    Raises:
        ValueError: several concepts or methods, or no curve.
    """
    curves = {c.attack: c.curve for c in found if c.curve is not None}
    if len({c.place for c in found}) != 1 or not curves:
        named = ", ".join(sorted({"/".join(c.place) for c in found if c.curve is not None})) or "none"
        raise ValueError(f"concept= and method= must name one model that attacks asked images of; got {named}")
    names, n = found[0].names, max(int(t.n.max()) for t in curves.values())
    title = f"{names['concept']} erased by {method_name(names)}, {n} prompts" if names["method"] != "none" else (
        f"{names['concept']}, nothing erased, {n} prompts"
    )  # fmt: skip
    budget.draw(path, curves, title, controls=CONTROLS)
