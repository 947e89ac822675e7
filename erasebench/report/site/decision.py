"""The decision summary of one erased model: what was tried, what came back, what it cost, what was not tried."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, get_args

from erasebench.report.printing import number, too_few
from erasebench.report.runs import NOTHING
from erasebench.report.site.gather import Cell, Checkpoint
from erasebench.several import config_folders
from erasebench.types import Access, Strength

GROUPS = {"target": "its name", "paraphrase": "its synonyms"}


def value(row: Mapping[str, Any] | None, side: str = "mean") -> str:
    """A headline of one side with its interval, ``-`` if it was not measured."""
    if row is None:
        return "-"
    low, high = ("low", "high") if side == "mean" else (f"{side}_low", f"{side}_high")
    return number(
        row[side], row[low], row[high], row["unit"], digits=1 if row["unit"] == "%" else None, few=too_few(row)
    )


def tried(model: Checkpoint) -> tuple[list[list[str]], list[Cell]]:
    """A line for each kind of prompt and attack, worst first among attacks, and the cell that each is from."""
    lines = [["prompts", "access", "strength", "budget", "n", "clusters", "original model", "erased model"]]
    cells = []
    for group, name in GROUPS.items():
        if (row := model.plain.of(group)) is not None:
            lines.append([f"plain: {name}", "none", "text", "-", *_counts(row), value(row, "base"), value(row)])
            cells.append(model.plain)
    attacks = [(cell, row) for cell in model.attacked if (row := cell.of("attack")) is not None]
    for cell, row in sorted(attacks, key=lambda pair: (bool(pair[0].names["control"]), -pair[1]["mean"])):
        told = f"{cell.names['attack']}{' (control)' if cell.names['control'] else ''}"
        names = [str(cell.names[k]) for k in ("access", "strength", "budget")]
        lines.append([told, *names, *_counts(row), value(row, "base"), value(row)])
        cells.append(cell)
    return lines, cells


def _counts(row: Mapping[str, Any]) -> list[str]:
    return [str(row["n"]), str(row["clusters"])]


def headline(model: Checkpoint) -> str:
    """The one sentence that most readers stop after."""
    rows = [(GROUPS[g], row) for g in GROUPS if (row := model.plain.of(g)) is not None]
    rows += [(f"attack {c.names['attack']}", r) for c in model.attacked if (r := c.of("attack")) is not None]
    if not rows:
        return "How often the concept comes back was not measured."
    name, row = max(rows, key=lambda pair: (pair[1]["mean"], pair[1].get("high", 0)))
    high = "" if row["high"] != row["high"] else f"; up to {100 * row['high']:.1f} % within its 95 % interval"
    return f"The concept came back most often by {name}: in {100 * row['mean']:.1f} % of {row['n']} images{high}."


def cost(model: Checkpoint) -> list[list[str]]:
    """A line for each headline of what should survive."""
    rows = model.plain.summary
    rows = rows[(rows.relation == "") & rows.role.isin(["kept", "similarity", "distance", "mean", "likeness"])]
    rows = rows[rows.label != ""]
    lines = [["measured", "n", "original model", "erased model"]]
    for row in rows.to_dict("records"):
        lines.append([str(row["label"]), str(row["n"]), value(row, "base"), value(row)])
    return lines


def spent(model: Checkpoint) -> str:
    """What the erasure took."""
    erase = model.plain.runs[0].record["steps"].get("erase", {})
    known = erase.get("cost", {})
    parts = [f"{known['seconds']:.1f} s"] if "seconds" in known else []
    parts += [f"{known['peak_rss_mb']:.0f} MB of memory at most"] if "peak_rss_mb" in known else []
    parts += [f"{erase['bytes'] / 1e6:.1f} MB stored"] if "bytes" in erase else []
    return f"The erasure took {', '.join(parts)}." if parts else ""


def untried(model: Checkpoint) -> list[str]:
    """What nobody looked at: attacks that come with the harness, kinds of access, groups, seeds, other judges."""
    run = {_module(str(cell.config["attack"].get("_target_", ""))) for cell in model.attacked}
    lines = []
    if missing := [name for name in _known_attacks() if name not in run]:
        lines.append(f"Attacks that come with erasebench: {', '.join(missing)}.")
    real = [cell for cell in model.attacked if not cell.names["control"]]
    for key, kinds in (("access", get_args(Access)), ("strength", get_args(Strength))):
        used = {str(cell.names[key]) for cell in real}
        if absent := [kind for kind in kinds if kind not in used]:
            lines.append(f"Any attack whose {key} is {' or '.join(absent)}.")
    absent = [name for group, name in {**GROUPS, "neighbour": "related concepts", "unrelated": "other concepts"}.items()
              if not (model.plain.summary.group == group).any()]  # fmt: skip
    if absent:
        lines.append(f"Prompts about {', '.join(absent)}.")
    if len(model.plain.runs) < 2:
        lines.append("A second seed: one training, one set of noises.")
    judges = sorted(set(model.plain.summary.judge) - {""})
    if len(judges) < 2:
        lines.append(f"A second judge: every verdict is {judges[0] if judges else 'missing'}'s.")
    lines.append("Fine-tuning on new images, other samplers, other languages, and whatever is not named on this page.")
    return lines


@cache
def _known_attacks() -> list[str]:
    """The modules of the attacks that configs name; a set of prompts has many configs and one module."""
    texts = [p.read_text(encoding="utf-8") for folder in config_folders() for p in (folder / "attack").glob("*.yaml")]
    found = {_module(target) for text in texts for target in re.findall(r"^_target_: *([\w.]+)", text, re.MULTILINE)}
    return sorted(found - {NOTHING})


def _module(target: str) -> str:
    return target.rpartition(".")[0].rpartition(".")[2]


def flags(model: Checkpoint) -> Sequence[Mapping[str, Any]]:
    """What the model's runs doubt, each once."""
    return list({(f["flag"], f["message"]): f for cell in model.cells for f in cell.flags}.values())
