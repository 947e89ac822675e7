"""Several erased models in one picture: the same prompts and noise, a column for each method, rates under its name.

    python -m erasebench.compare                     what the newest run's model and concept have, all methods
    python -m erasebench.compare concept=cat method=uce,rece [results=DIR] [model=NAME] [seed=0] [per_group=2] [tile=72]

Shows what runs have drawn, whatever they were attacked with; nothing is drawn here. Written to
``results/compare_<concept>.png`` and ``.pdf``, or to ``out=FILE.png`` or ``out=FILE.pdf`` alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from PIL import Image

from erasebench import fields
from erasebench.command.arguments import command, parse
from erasebench.limits import read_json
from erasebench.report.contact_sheet import contact_sheet
from erasebench.report.drawn import Run
from erasebench.report.pictures import save
from erasebench.types import Prompt

USAGE = (
    "usage: python -m erasebench.compare [concept=NAME] [results=DIR] [model=NAME] [method=A,B] [seed=0] [per_group=2] "
    "[tile=72] [out=FILE]"
)
DEFAULTS: dict[str, Any] = {
    "concept": "", "results": "results", "model": "", "method": [], "seed": "", "per_group": 2, "tile": 72, "out": "",
}  # fmt: skip


def find(root: Path, **wanted: str) -> list[Run]:
    """Finished runs under a results folder, the newest first; ``wanted``: model, concept, seed, "" for any."""
    runs = []
    for path in sorted(root.glob("runs/**/run.json"), key=lambda p: (-p.stat().st_mtime, str(p))):
        try:
            run = Run(path.parent, read_json(path))
            _ = run.names["method"], run.erased, run.record["model_hash"], run.record["steps"]["draw"]["keys"]
        except (OSError, ValueError, KeyError, TypeError):  # unfinished, or of an older version
            continue
        if all(not value or run.names.get(key) == value for key, value in wanted.items()):
            runs.append(run)
    return runs


def choose(runs: Sequence[Run], methods: Sequence[str] = ()) -> tuple[dict[str, Run], list[str]]:
    """A run for each column, by the method's name as it is typed, and the names of methods that do not fit beside.

    Args:
        runs: of one model, concept and seed, the newest first.
        methods: labels or folder names in the order of the columns; none: all, alphabetically.

    Raises:
        FileNotFoundError: a method without a run.
        ValueError: a method that was asked for was run on another model, concept or drawing setting.
    """
    columns: dict[str, Run] = {}
    for name in methods:
        found = [run for run in runs if name in (run.names["method"], *run.folder.parts[-3:-2])]
        if not found:
            have = ", ".join(sorted({run.names["method"] for run in runs})) or "none"
            raise FileNotFoundError(f"method {name!r} must have been run; found {have}; run it first")
        columns[name] = found[0]
    if not methods:
        newest = {
            (run.names["method"], run.names["recipe"]): run
            for run in reversed(runs)
            if run.erased != run.record["model_hash"]
        }
        labels = [label for label, _ in newest]
        columns = {
            label if labels.count(label) == 1 else f"{label} ({recipe})": run
            for (label, recipe), run in sorted(newest.items(), key=lambda pair: pair[0])
        }
    if not columns:
        return {}, []
    reference = next(iter(columns.values())) if methods else next(run for run in runs if run in columns.values())
    unfit = [name for name, run in columns.items() if _ground(run) != _ground(reference)]
    if not methods:
        shown = reference.drawn()
        unfit += [n for n, run in columns.items() if n not in unfit and not shown.keys() & run.drawn().keys()]
    if unfit and methods:
        raise ValueError(
            f"{unfit[0]} must have been run on the model, drawing settings and concept of {methods[0]}; leave one out"
        )
    return {name: run for name, run in columns.items() if name not in unfit}, unfit


def _ground(run: Run) -> Any:
    """What two runs must share to stand side by side, besides prompts."""
    return run.record["model_hash"], run.record["identity"]["model"], run.record["identity"]["concept"]


def shared_prompts(columns: dict[str, Run]) -> list[Prompt]:
    """The prompts that every run has drawn, on both sides.

    Raises:
        ValueError: there are none.
    """
    drawn = [run.drawn() for run in columns.values()]
    common = reduce(lambda a, b: {key: p for key, p in a.items() if key in b}, drawn)
    if not common:
        raise ValueError(
            f"{', '.join(columns)} must have drawn the same prompts; they share none; run them again with one "
            "results=DIR, seed= and prompts="
        )
    return list(common.values())


def compare(columns: dict[str, Run], *, per_group: int = 2, tile: int = 72) -> Image.Image:
    """One page: rows are prompts, columns the original model and every method's.

    Args:
        columns: head -> run, see :func:`choose`.
        per_group: prompts of each group.
        tile: side of an image in pixels.

    Raises:
        ValueError: the runs share no prompt.
        OSError: images that were removed or damaged since; the same run draws them again.
    """
    first = next(iter(columns.values()))
    prompts = shared_prompts(columns)
    images = {"original": first.images("original", prompts)}
    images |= {name: run.images("erased", prompts) for name, run in columns.items()}
    said = {"original": first.verdicts("original")}
    said |= {name: run.verdicts("erased") for name, run in columns.items()}
    config = first.record["config"]
    blur = config["model"]["blur_unsafe"] and any(
        node.get("kind") == "unsafe" for node in (config["concept"], *config["also"])
    )
    title = f"{first.names['concept']}: original and erased models, same prompts and noise"
    return contact_sheet(images, title=title, verdicts=said, per_group=per_group, blur=blur, tile=tile)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 if it worked, 2 with one line of explanation if not."""

    def work(words: list[str]) -> str:
        given = parse(words, DEFAULTS)
        root = Path(given["results"])
        numbers = {name: fields.integer(name, given[name], least=1) for name in ("per_group", "tile")}
        columns = _columns(root, given)
        page = compare(columns, **numbers)
        concept = next(iter(columns.values())).names["concept"]
        files = [Path(given["out"])] if given["out"] else [root / f"compare_{concept}.{end}" for end in ("png", "pdf")]
        for file in files:
            save(page, file)
        return f"written: {' '.join(map(str, files))} (original, {', '.join(columns)})"

    return command(USAGE, __doc__, arguments, work)


def _columns(root: Path, given: Mapping[str, Any]) -> dict[str, Run]:
    """The runs to show: of the newest run's model, concept and seed where none is given."""
    wanted = {key: given[key] for key in ("model", "concept", "seed")}
    methods = given["method"]
    runs = find(root, **wanted)
    if methods:
        wanted_first = [run for run in runs if run.names["method"] in methods] or runs
    else:
        wanted_first = [run for run in runs if run.erased != run.record["model_hash"]] or runs
    if not wanted_first:
        told = " ".join(f"{key}={value}" for key, value in wanted.items() if value)
        raise FileNotFoundError(f"{root} must hold finished runs{told and f' of {told}'}; found none; run some first")
    newest = wanted_first[0].names
    runs = [run for run in runs if all(run.names[key] == newest[key] for key in wanted)]
    columns, unfit = choose(runs, methods)
    if not columns:
        raise FileNotFoundError(
            f"{root} must hold a run that erases {newest['concept']}; found method=none; run one first"
        )
    for name in unfit:
        print(f"left out: {name} (no image of the newest run's model, drawing settings, concept and prompts)")
    return columns


if __name__ == "__main__":
    sys.exit(main())
