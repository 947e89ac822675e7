"""Spillover by dimension as a table, and over the distance of texts as a picture, from runs that are finished.

    python -m benchmarks.spillover results=DIR [out=docs/images/spillover.png]

Reads what ``evaluator=[spillover]`` stored; draws nothing anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from erasebench.command.arguments import command, parse
from erasebench.report import figures
from erasebench.report.dimensions import dimensions, markdown
from erasebench.report.tables import read_results

USAGE = "usage: python -m benchmarks.spillover results=DIR [out=FILE.png]"
JUDGED = "accuracy"  # of the evaluator classifier: whether what should survive is seen


def curve(scores: pd.DataFrame) -> dict[str, list[tuple[float, float]]]:
    """Method -> of each image that should survive its text's distance and whether it is seen; the original first."""
    rows = scores[(scores.attack == "none") & scores.prompt_id.notna() & (scores.status == "ok")]
    place = ["concept", "seed", "prompt_id"]
    far = rows[rows.metric.str.startswith("text_distance.")].drop_duplicates(place).set_index(place).value
    seen = rows[rows.metric.str.startswith(JUDGED) & rows.group.isin(["neighbour", "unrelated"])]
    base = seen[seen.side == "original"].drop_duplicates(place).assign(method="original model")
    seen = pd.concat([base, seen[seen.side == "erased"]]).join(far.rename("far"), on=place)
    seen = seen[seen.far.notna()]
    return {
        str(name): list(zip(part.far, part.value, strict=True)) for name, part in seen.groupby("method", sort=False)
    }


def main(arguments: list[str] | None = None) -> int:
    """The command."""

    def work(words: list[str]) -> str:
        given = parse(words, {"results": "results", "out": ""})
        scores = read_results(given["results"])
        if given["out"]:
            title = "other concepts still drawn, by the distance of their texts"
            figure = figures.spillover(title, curve(scores))
            if figure is None:
                raise ValueError("results must hold text distances and verdicts; run evaluator=[classifier,spillover]")
            figures.save(figure, Path(given["out"]).with_suffix(""))
        return markdown(dimensions(scores))

    return command(USAGE, __doc__, arguments, work)


if __name__ == "__main__":
    sys.exit(main())
