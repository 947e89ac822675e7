"""The attack tables of the docs: runs of one cell pooled over seeds, attacks beside their controls.

A cell is what the tables say it is (``erasebench.report.tables.CELL``). Rates are of the images that the runs drew. An
adaptive attack is held against the best control of the same model at the same number of images judged for each prompt:
by those rates if both were allowed equally many, else both are read from their curves (budget.csv) at the smaller one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from erasebench.report import budget
from erasebench.report.attack_cells import Rows, summaries
from erasebench.report.checks import ADAPTIVE, difference
from erasebench.report.evidence import first_judge
from erasebench.report.printing import number, too_few
from erasebench.report.runs import NOTHING, Run, find_run, method_names
from erasebench.types import Access, Strength

PLACE = ("model", "concept", "method", "recipe", "settings")  # what attacks must share to be compared


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % interval; NaN where nothing was measured."""

    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    few: bool = False  # too few clusters for an interval

    def __str__(self) -> str:
        """In %, ``64 [50, 76]``, ``64 [too few]`` or ``-``."""
        return number(self.mean, self.low, self.high, "%", few=self.few)


@dataclass(frozen=True)
class Cell:
    """All seeds of one cell: their runs, and the pooled summary of the headlines of target and attack prompts."""

    names: Mapping[str, Any]  # the keys of CELL
    method: str  # as tables call it
    attack: str  # the same
    runs: tuple[Run, ...]
    summary: Rows
    searched: Mapping[str, float]  # folder of an attack step -> seconds of the run that computed it

    @property
    def place(self) -> tuple[str, ...]:
        return tuple(self.names[k] for k in PLACE)

    @property
    def plain(self) -> bool:
        """Nothing attacks: only the plain prompts were drawn."""
        return all(row["group"] != "attack" for row in self.summary)

    @property
    def control(self) -> bool:
        return bool(self.names["control"])

    @property
    def adaptive(self) -> bool:
        return self.names["access"] in ADAPTIVE and not self.control

    @property
    def order(self) -> tuple[Any, ...]:
        """None, static sets, text encoder, controls, adaptive; text before embeddings; by name."""
        access = self.names["access"]
        group = get_args(Access).index(access) + (0.5 if access == "queries" and not self.control else 0)
        return (
            not self.plain,
            group,
            get_args(Strength).index(self.names["strength"]),
            self.attack,
            self.names["budget"],
        )

    @property
    def own_words(self) -> bool:
        """What was searched on the erased model and is no text means something to that model alone."""
        return self.names["access"] == "model" and self.names["strength"] != "text"

    def rate(self, group: str, side: str = "mean") -> Rate:
        """How often the concept is there, in images of the erased model (``mean``) or the original one (``base``)."""
        return _rate(self.seen(group)[:1], side)

    def seen(self, group: str) -> Rows:
        """The rows of a group that say how often the concept is there."""
        return first_judge([row for row in self.summary if row["group"] == group], "present")

    def most_of(self, group: str, name: str) -> int:
        """The largest of a count in these rows."""
        return max((int(row[name]) for row in self.seen(group)), default=0)

    def success(self) -> dict[str, Rate]:
        """The rates of success that the runs' evaluators declare, in their order: column -> rate."""
        rows = sorted(first_judge(self.summary, "success"), key=lambda row: row["place"])
        return {row["head"] or row["label"]: _rate([row]) for row in rows}

    @cached_property
    def curve(self) -> pd.DataFrame | None:
        """Success after each image judged, up to as many as were allowed; None for an attack that asks nobody."""
        paths = [run.folder / "budget.csv" for run in self.runs]
        found = [budget.read(path) for path in paths if path.exists()]
        return budget.pooled(found, _allowed(self.runs[0].record["config"]["attack"])) if found else None

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
        found = [run.record.get("attack") or {} for run in self.runs]
        if self.most:
            return f"{self.most} ({_total(found, 'queries') / max(_total(found, 'prompts'), 1):.1f})"
        encoded = _total(found, "evaluations")
        return f"- ({encoded:,.0f} texts encoded)" if encoded else "-"


def _rate(rows: Rows, side: str = "mean") -> Rate:
    if not rows or not rows[0]["n"]:
        return Rate()
    names = ("mean", "low", "high") if side == "mean" else (side, f"{side}_low", f"{side}_high")
    mean, low, high = (float(rows[0][k]) for k in names)
    return Rate(mean, low, high, few=too_few(rows[0]))


def _total(found: Iterable[Mapping[str, Any]], name: str) -> float:
    return sum(float(f.get(name) or 0) for f in found)


def _allowed(attack: Mapping[str, Any]) -> int:
    """Images judged for a prompt at most, by the attack's settings; 0 if they do not say."""
    rounds = len(attack.get("timesteps") or ()) or attack.get("iterations", 0) // attack.get("query_every", math.inf)
    limits = (attack.get("queries"), attack.get("budget"), 1 + rounds if rounds else None)
    return int(min((limit for limit in limits if limit), default=0))


def cells(found: Sequence[Run], wanted: Mapping[str, Sequence[str]]) -> list[Cell]:
    """The wanted cells of a folder's runs in reading order: concept, method (``none`` first), attack.

    Args:
        found: all runs of the folder: another run may have searched for what a wanted one took from the store.
        wanted: see :meth:`erasebench.report.runs.Run.is_`.
    """
    steps = [run.record["steps"].get("attack", {}) for run in found]
    searched = {step["folder"]: step["seconds"] for step in steps if "folder" in step and not step["cached"]}
    grouped = summaries([run for run in found if run.is_(wanted)])
    same: dict[tuple[Any, ...], int] = {}
    for names, *_ in grouped:
        same[_attacked(names)] = same.get(_attacked(names), 0) + 1
    named, out = method_names(found), []
    for names, runs, summary in grouped:
        method = named[runs[0].key] + (f" ({names['settings']})" if names["settings"] else "")
        attack = names["attack"] + (f" ({names['budget']})" if same[_attacked(names)] > 1 else "")
        out.append(Cell(names, method, attack, runs, summary, searched))
    return sorted(out, key=lambda c: (c.place[:2], c.names["method"] != NOTHING, c.place[2:], c.order))


def _attacked(names: Mapping[str, Any]) -> tuple[Any, ...]:
    """What cells share that differ in the attack's budget alone: then its name has that too."""
    return tuple(names[k] for k in (*PLACE, "attack"))


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
    for record in (run.record for run in cell.runs):
        own = (record.get("attack") or {}).get("seconds")  # of the whole search, should it have been killed in between
        took.append(own if own is not None else cell.searched.get(record["steps"].get("attack", {}).get("folder", "")))
    known = [float(t) for t in took if t is not None]
    return f"{sum(known) / len(known):.0f}" if known and not cell.plain else "-"


def attacks(found: Sequence[Cell]) -> list[list[str]]:
    """One row per concept, method and attack; see the module for what a control's column says."""
    rates = list(dict.fromkeys(name for cell in found for name in cell.success()))
    names = ["concept", "method", "attack"] + (["strength"] if len({c.names["strength"] for c in found}) > 1 else [])
    control = "best control, as many images"
    heads = [
        *names,
        "n",
        "clusters",
        "original model",
        "plain prompts",
        "attack prompts",
        *rates,
        "images judged",
        "seconds",
        control,
    ]
    lines = [[*heads, "ahead by"]]
    for cell in found:
        group = "target" if cell.plain else "attack"
        same = cell.names["method"] == NOTHING or cell.own_words
        success = cell.success()
        row = {
            "concept": cell.names["concept"], "method": cell.method, "attack": cell.attack,
            "strength": "-" if cell.plain else cell.names["strength"],
            "n": str(cell.most_of(group, "n")), "clusters": str(cell.most_of(group, "clusters")),
            "original model": "-" if same else str(cell.rate(group, "base")), "plain prompts": str(cell.rate("target")),
            "attack prompts": "-" if cell.plain else str(cell.rate("attack")),
            **{name: str(success.get(name, Rate())) for name in rates},
            "images judged": "-" if cell.plain else cell.spent, "seconds": seconds(cell),
        }  # fmt: skip
        row[control], row["ahead by"] = _beside(cell, found)
        lines.append([row[head] for head in lines[0]])
    return lines


def _beside(cell: Cell, found: Sequence[Cell]) -> tuple[str, str]:
    """The best control's rate, and by how much an adaptive attack is ahead of it; bold if that is shown."""
    beside = best_control(cell, found) if cell.adaptive else None
    if beside is None:
        return "-", "-"
    luck, queries = beside
    better, by = ahead(cell, luck, queries)
    read = "" if luck.most == cell.most == queries else f" at {queries}"
    return f"{luck.attack}{read}: {luck.at(queries)}", f"**{by}**" if better else by


def attack_matrix(found: Sequence[Cell]) -> list[list[str]]:
    """Concepts x attacks as rows, methods as columns; bold: shown to be better than the best control."""
    columns = sorted(dict.fromkeys(c.method for c in found), key=lambda name: name != NOTHING)
    lines = [["concept", "attack", *columns]]
    at: dict[tuple[str, str], dict[str, str]] = {}
    for cell in sorted(found, key=lambda c: (c.place[:2], c.order)):
        text = str(cell.rate("target" if cell.plain else "attack"))
        beside = best_control(cell, found) if cell.adaptive else None
        if beside is not None and ahead(cell, *beside)[0]:
            text = f"**{text}**"
        at.setdefault((cell.names["concept"], cell.attack), {})[cell.method] = text
    return lines + [[*place, *(row.get(m, "-") for m in columns)] for place, row in at.items()]


def transfer(found: Sequence[Cell]) -> list[list[str]]:
    """Replayed prompts: where they were found as rows, where they were tried as columns; bold: found right there."""
    columns = list(dict.fromkeys(c.method for c in found if c.names["method"] != NOTHING))
    lines = [["concept", "found by", "on", "n", "original model", *columns]]
    rows: dict[str, list[Cell]] = {}
    for cell in found:
        if origin := cell.runs[0].record["config"]["attack"].get("run"):
            rows.setdefault(str(origin), []).append(cell)
    for origin, tried in rows.items():
        parts = find_run(origin).parts
        method, attack = ("-", Path(origin).stem) if origin.endswith(".csv") or len(parts) < 5 else parts[-3:-1]
        concept = tried[0].names["concept"]
        at = {c.method: str(c.rate("attack")) for c in tried}
        for c in found:  # its own run says how the prompts did where they were found
            if c.runs[0].folder.parts[-4:-1] == (concept, method, attack):
                at[c.method] = f"**{c.rate('attack')}**"
        n = tried[0].most_of("attack", "n")
        line = [concept, attack, method, str(n), str(tried[0].rate("attack", "base"))]
        lines.append(line + [at.get(m, "-") for m in columns])
    return lines


def draw_budget(found: Sequence[Cell], path: Path) -> None:
    """One picture of the curves of all attacks on one concept and method that asked a judge.

    Raises:
        ValueError: several concepts or methods, or no curve.
    """
    asked = [c for c in found if c.curve is not None]
    curves = {c.attack: c.curve for c in asked}
    if len({c.place for c in found}) != 1 or not curves:
        named = ", ".join(sorted({"/".join(filter(None, c.place)) for c in asked})) or "none"
        raise ValueError(f"concept= and method= must name one model that attacks asked images of; got {named}")
    cell, n = found[0], max(int(t.n.max()) for t in curves.values() if t is not None)
    erasure = "nothing erased" if cell.names["method"] == NOTHING else f"erased by {cell.method}"
    comma = "," if cell.names["method"] == NOTHING else ""
    title = f"{cell.names['concept']}{comma} {erasure}, {n} prompts"
    budget.draw(path, curves, title, controls=[c.attack for c in asked if c.control])
