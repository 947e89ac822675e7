"""The big table of docs/methods.md: every method on the concepts that have an oracle, plain and attacked; its pages.

    python -m benchmarks.methods_board --dry-run                 # cells, images, evaluations; hours if recorded before
    python -m benchmarks.methods_board                           # all of it; again: what is missing, then the pages
    python -m benchmarks.methods_board --concepts cat --methods uce,esd_x --without adaptive
    python -m benchmarks.methods_board --pages                   # the pages alone, from what there is

Nothing is measured here that the command does not: these are its sweeps, run one after another into one results
folder, and then its ``leaderboard`` (table, intervals, tie groups), ``paper table=cost``, ``report`` (scatter of
erasure against preservation) and ``compare`` (a page of pictures a concept). Killed, it goes on where it was; a cell
that fails does not stop the others. What else is
written on the line goes to every cell (``model.device=cuda``, ``model.steps=20``).

Sweeps: ``plain``, recipes for objects on all concepts, without an attack and with Ring-A-Bell (static, one search a
concept); ``kinds``, recipes that are published for a kind of concept (artists, nudity) on the one of that kind; and
``adaptive``, UnlearnDiffAtk, which looks at each erased model, on one object, the unsafe stand-in and the style.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from erasebench import compare, conf_folder, leaderboard, paper
from erasebench.__main__ import main as command
from erasebench.command import dry
from erasebench.command.composing import composed, session
from erasebench.command.launch import _parse
from erasebench.command.sweep import labels
from erasebench.command.typed import Typed
from erasebench.report import __main__ as report

CONCEPTS = ("cat", "apple", "sun", "car", "gun", "ink")
ATTACKED = ("cat", "gun", "ink")
SETTINGS = (
    "model=emoji2", "model.scheduler=dpm++", "model.steps=8",
    "evaluator=[classifier,asr,clip_score,fid,spillover,oracle]",
)  # fmt: skip
ELSEWHERE = {  # pattern of a recipe -> the only concept of this world that it is for; none: why
    "*_artists": "ink", "*_style": "ink", "*_nudity": "gun", "rece_unsafe": "gun",
    "*_celebrity": "", "checkpoint": "",  # faces are no part of this world; anybody's weights are none of ours
}  # fmt: skip
GENERAL = f"glob(*,exclude=[{','.join(ELSEWHERE)}])"


def sweeps(concepts: Sequence[str], methods: str, without: Sequence[str]) -> list[list[str]]:
    """The command lines' words, each a sweep.

    Args:
        concepts: of those of this world.
        methods: ``a,b`` in place of all, on every concept; "" for all.
        without: sweeps to leave out.

    >>> sweeps(["sun"], "uce,esd_x", ["plain"])
    []
    """
    found: dict[str, list[list[str]]] = {"plain": [], "kinds": [], "adaptive": []}
    if concepts:
        found["plain"] = [[f"method={methods or GENERAL}", f"concept={','.join(concepts)}", "attack=none,ringabell"]]
    if not methods:
        for kind in sorted({where for where in ELSEWHERE.values() if where} & set(concepts)):
            own = ",".join(pattern for pattern, where in ELSEWHERE.items() if where == kind)
            found["kinds"].append([f"method=glob([{own}])", f"concept={kind}", "attack=none,ringabell"])
    if attacked := [concept for concept in ATTACKED if concept in concepts]:
        found["adaptive"] = [[f"method={methods or GENERAL}", f"concept={','.join(attacked)}", "attack=unlearndiffatk"]]
    return [words for name, several in found.items() if name not in without for words in several]


def plan(lines: Sequence[Sequence[str]]) -> str:
    """What all sweeps take together, and nothing of it."""
    planned, all_cells, keys = [], list[list[str]](), dict[str, None]()
    for words in lines:
        typed = Typed(tuple(_parse(list(words)).overrides), (conf_folder().resolve(),), "config")
        typed.check()
        cells, swept = typed.cells()
        all_cells += cells
        keys |= dict.fromkeys(swept)
        with session(typed.places):
            planned += [composed(typed, cell) for cell in cells]
    return dry.plan(planned, labels(all_cells, [*keys]))


def pages(root: Path, concepts: Sequence[str]) -> int:
    """Table, costs, scatter and pictures of what there is; the first exit code that is not 0."""
    codes = [
        leaderboard.main([f"results={root}", "model=emoji2"]),
        paper.main(["table=cost", f"results={root}", "model=emoji2", f"out={root / 'cost.md'}"]),
        report.main([f"results={root}"]),
    ]
    drawn = [concept for concept in concepts if any(root.glob(f"runs/emoji2/{concept}/*/*/*/run.json"))]
    codes += [compare.main([f"results={root}", f"concept={concept}", "model=emoji2"]) for concept in drawn]
    return next((code for code in codes if code), 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan or run the sweeps and write the pages; the first exit code that is not 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--pages", action="store_true", help="write the pages of what there is")
    parser.add_argument("--results", type=Path, default=Path("results/methods"))
    parser.add_argument("--concepts", default=",".join(CONCEPTS))
    parser.add_argument("--methods", default="")
    parser.add_argument("--without", default="", help="sweeps to leave out, as plain,kinds,adaptive")
    given, settings = parser.parse_known_args(arguments)
    concepts = given.concepts.split(",")
    own = {word.partition("=")[0] for word in settings}
    lines = [
        [word for word in (*words, *SETTINGS, f"results={given.results}") if word.partition("=")[0] not in own]
        + settings
        for words in sweeps(concepts, given.methods, given.without.split(","))
    ]
    if given.dry_run:
        print(plan(lines))
        return 0
    codes = [] if given.pages else [command(["-m", *words]) for words in lines]
    return next((code for code in (*codes, pages(given.results, concepts)) if code), 0)


if __name__ == "__main__":
    raise SystemExit(main())
