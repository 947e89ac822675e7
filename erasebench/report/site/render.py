"""The pages, from what was gathered: one index, one page per erased model, one per cell."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from erasebench import progress
from erasebench.report import board_text, figures, units
from erasebench.report.card import public
from erasebench.report.runs import NOTHING
from erasebench.report.site import curves, decision, images, pictures
from erasebench.report.site.gather import Cell, Checkpoint, Report
from erasebench.store.files import replacing

STATIC = ("style.css", "site.js", "sortable.min.js", "sortable.LICENSE.txt")
Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # libyaml's, where yaml was built with it: ten times faster
_LEADING = re.compile(r"[-+]?\d+(\.\d+)?")


def write(report: Report, out: Path, *, skipped: Sequence[str] = (), unsafe: bool = True) -> list[Path]:
    """Write the site into a folder; returns its index and the pages of the erased models.

    Args:
        report: what is shown.
        out: the folder; files of an earlier report are replaced.
        skipped: lines about runs that were left out.
        unsafe: whether images of unsafe concepts are copied, blurred until they are pressed, or left out.

    Raises:
        OSError: the folder is not writable or the disk is full.
    """
    env = environment()
    if out.is_dir() and any(out.iterdir()) and not (out / "static" / "site.js").is_file():
        raise ValueError(f"out must be a new folder or that of an earlier report; got {out}, which holds other files")
    for name in STATIC:
        with replacing(out / "static" / name, lasting=False) as work:
            work.write_bytes((files("erasebench.report.site") / "static" / name).read_bytes())
    of_cell = {cell.number: model.page for model in report.checkpoints for cell in model.cells}
    jobs = [
        (part, {cell.number: of_cell.get(cell.number, "") for cell in part}, out, unsafe)
        for part in _parts(report.cells)
    ]
    shown, veils, lost = set[str](), set[str](), set[tuple[Path, str]]()
    found: dict[Cell, list[dict[str, Any]]] = {}
    with progress.bar(len(report.cells), "report", "cell") as bar:
        for (part, *_), made in zip(jobs, units.together(_pages, jobs), strict=True):
            shown, veils, lost = shown | made.shown, veils | made.veils, lost | made.lost
            found |= dict(zip(part, made.scores, strict=True))
            bar.update(len(part))
    for model in report.checkpoints:
        _save(out / "models" / model.page, _model(env, model))
    drawn = {
        "thresholds": curves.thresholds(report.cells, found, out),
        "spillover": curves.spillover(report.cells, found, out),
    }
    _save(out / "index.html", _index(env, report, drawn, len(shown), len(lost), skipped, out))
    _clear(report, shown | veils, out)
    return [out / "index.html", *(out / "models" / model.page for model in report.checkpoints)]


MANY = 40  # cells of a part


def _parts(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells of each model and concept, whose original images are the same, at most so many together."""
    places: dict[tuple[Any, Any], list[Cell]] = {}
    for cell in cells:
        places.setdefault((cell.names["model"], cell.names["concept"]), []).append(cell)
    return [own[i : i + MANY] for own in places.values() for i in range(0, len(own), MANY)]


class Made(NamedTuple):
    """Of some cells: the pictures shown, the veils, the pictures that are lost, and what curves need of each cell."""

    shown: set[str]
    veils: set[str]
    lost: set[tuple[Path, str]]
    scores: list[list[dict[str, Any]]]


def _pages(cells: Sequence[Cell], models: Mapping[int, str], out: Path, unsafe: bool) -> Made:
    """Write the pages and pictures of some cells, one after the other."""
    env, made = environment(), Made(set(), set(), set(), [])
    for cell in cells:
        wanted = images.Wanted()
        found = [one for run in cell.runs for one in _groups(run, wanted, cell)]
        shown, lost = pictures.write(wanted, out, unsafe=unsafe)
        _save(out / "cells" / cell.page, _cell(env, cell, models[cell.number], found, shown, out))
        made.shown.update(shown.values())
        made.veils.update(f"{wanted.files[place]}.veil.png" for place in wanted.veiled)
        made.lost.update(lost)
        made.scores.append([curves.needed(one) for one in found])
    return made


def environment() -> Environment:
    """The pages' templates, which escape whatever is put into them."""
    env = Environment(
        loader=PackageLoader("erasebench.report.site"), autoescape=select_autoescape(default=True),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    env.filters["sorting"] = sorting
    return env


def _clear(report: Report, pictures: set[str], out: Path) -> None:
    """Remove pages and pictures of an earlier report that are no part of this one: a folder may be passed on."""
    kept = {"cells": {cell.page for cell in report.cells}, "models": {model.page for model in report.checkpoints}}
    kept["images"] = pictures
    for folder, names in kept.items():
        for path in (out / folder).rglob("*"):
            if path.is_file() and path.relative_to(out / folder).as_posix() not in names:
                path.unlink()


def _groups(run: Any, wanted: images.Wanted, cell: Cell) -> list[dict[str, Any]]:
    return images.groups(run, wanted, unsafe=cell.unsafe, withheld=cell.withheld)


def _save(path: Path, text: str) -> None:
    with replacing(path, lasting=False) as work:
        work.write_text(text, encoding="utf-8")


def sorting(text: str) -> str:
    """What a cell is sorted by: the number it begins with, else its text.

    >>> sorting("2.5 [0, 7] (1)"), sorting("uce")
    ('2.5', 'uce')
    """
    found = _LEADING.match(text)
    return found.group() if found else text


def data(values: Any) -> Markup:
    """JSON inside a script element that nothing in it can close."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def command_of(names: Mapping[str, Any], seed: str) -> str:
    """The command line that a cell's names stand for.

    >>> command_of({"model": "emoji", "concept": "cat", "method": "uce[lamb=1]", "attack": "none"}, "0")
    'python -m erasebench model=emoji concept=cat method=uce method.lamb=1 attack=none seed=0'
    """
    words = []
    for key in ("model", "concept", "method", "attack"):
        base, _, inner = str(names[key]).partition("[")
        words.append(f"{key}={base}")
        words += [f"{key}.{part.strip()}" for part in inner.rstrip("]").split(",") if part.strip()]
    return " ".join(["python -m erasebench", *words, f"seed={seed}"])


SHOWN = ("label", "metric", "judge", "group", "unit", "n", "clusters", "trainings", "mean",
         "low", "high", "base", "base_low", "base_high")  # fmt: skip


def _lines(cell: Cell) -> list[list[str]]:
    """The cell's headlines: what, of how many, original and erased model."""
    rows = cell.summary[(cell.summary.relation == "") & (cell.summary.label != "")]
    lines = [["measured", "judge", "prompts", "n", "clusters", "original model", "erased model"]]
    for row in rows[list(SHOWN)].to_dict("records"):
        label = str(row["label"]).replace("{metric}", str(row["metric"]))
        counts = [str(row["group"]), str(row["n"]), str(row["clusters"])]
        lines.append([label, str(row["judge"] or "-"), *counts, decision.value(row, "base"), decision.value(row)])
    return lines


def _cell(
    env: Environment,
    cell: Cell,
    model_page: str,
    groups: list[dict[str, Any]],
    shown: Mapping[str, str],
    out: Path,
) -> str:
    record = cell.runs[0].record
    used = {name for one in groups for column in one["columns"] for name in column["src"] if name}
    budgets = []
    for run in cell.runs:
        if (run.folder / "budget.png").is_file():
            budgets.append(f"budget-{cell.number:04d}-{run.names['seed']}.png")
            (out / "figures").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run.folder / "budget.png", out / "figures" / budgets[-1])
    return env.get_template("cell.html").render(
        up="../", cell=cell, model_page=model_page, lines=_lines(cell), budgets=budgets,
        seeds=[run.names["seed"] for run in cell.runs],
        groups=list(dict.fromkeys((one["name"], one["title"]) for one in groups)),
        data=data({
            "groups": groups, "files": {name: shown[name] for name in sorted(used) if name in shown},
            "unsafe": cell.unsafe, "seeds": len(cell.runs), "judge": record.get("judge", {}).get("name", "-"),
        }),
        commands=[command_of(cell.names, run.names["seed"]) for run in cell.runs],
        packages=record["packages"], git=record.get("git") or {"commit": None}, base=record["model_hash"],
        runs=cell.runs,
        versions=", ".join(f"{name} {version}" for name, version in record["packages"].items()),
        config=yaml.dump(public(record["config"]), Dumper=Dumper, sort_keys=False, width=110),
    )  # fmt: skip


def _model(env: Environment, model: Checkpoint) -> str:
    record = model.plain.runs[0].record
    lines, cells = decision.tried(model)
    runs = {run.erased: run for cell in model.cells for run in cell.runs}
    return env.get_template("model.html").render(
        up="../", names=model.names, seeds=sorted({run.names["seed"] for run in runs.values()}),
        headline=decision.headline(model), tried=lines, tried_links=[f"../cells/{cell.page}" for cell in cells],
        judge=record.get("judge", {}).get("name", "the judge"), cost=decision.cost(model), spent=decision.spent(model),
        untried=decision.untried(model), found_flags=decision.flags(model), runs=list(runs.values()),
        packages=record["packages"], git=record.get("git") or {"commit": None},
        commands=[command_of(cell.names, cell.runs[0].names["seed"]) for cell in model.cells],
    )  # fmt: skip


def _index(
    env: Environment,
    report: Report,
    drawn: Mapping[str, list[tuple[str, str]]],
    shown: int,
    lost: int,
    skipped: Sequence[str],
    out: Path,
) -> str:
    heads = ["model", "concept", "method", "recipe", "settings"]
    models = [["erased model", *heads, "name", "synonyms", "worst attack", "under it", "flags"]]
    cells = [["cell", *heads, "attack", "access", "seeds", "seen", "flags"]]
    for model in report.checkpoints:
        worst = model.worst
        seen = [decision.value(model.plain.of(group)) for group in ("target", "paraphrase")]
        attack = [worst.names["attack"], decision.value(worst.of("attack"))] if worst else ["-", "-"]
        flags = ", ".join(sorted({f["flag"] for f in decision.flags(model)}))
        models.append([f"{model.number}", *(model.names[k] for k in heads), *seen, *attack, flags])
    for cell in report.cells:
        attacked = cell.names["attack"] != NOTHING
        told = [cell.names["attack"], cell.names["access"], ", ".join(run.names["seed"] for run in cell.runs)]
        seen = [decision.value(cell.of("attack" if attacked else "target"))]
        flags = ", ".join(sorted({f["flag"] for f in cell.flags}))
        cells.append([f"{cell.number}", *(cell.names[k] for k in heads), *told, *seen, flags])
    return env.get_template("index.html").render(
        up="", root=report.root.name, images=shown, lost=lost, skipped=skipped,
        boards=[_board(board, i, out) for i, board in enumerate(report.boards)], legend=board_text.LEGEND,
        checkpoints=models, checkpoint_links=[f"models/{model.page}" for model in report.checkpoints],
        cells=cells, cell_links=[f"cells/{cell.page}" for cell in report.cells], **drawn,
        doubts=report.doubts,
    )  # fmt: skip


def _board(board: Any, number: int, out: Path) -> dict[str, Any]:
    """A board's lines, legend and figure."""
    drawn = []
    if (figure := figures.tradeoff(board)) is not None:
        figures.save(figure, out / "figures" / f"tradeoff-{number}", lasting=False)
        drawn = [(f"tradeoff-{number}", f"{board.name}: erasure against preservation")]
    return {"name": board.name, "lines": board_text.grid(board), "legend": board_text.legend(board), "figures": drawn}
