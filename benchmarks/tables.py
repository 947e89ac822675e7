"""The tables of README and docs, from the runs in a results folder; nothing is measured here.

    python benchmarks/tables.py view=VIEW [results=DIR] [model=A,B] [concept=...] [method=...] [attack=...] [seed=...]
    python benchmarks/tables.py view=budget concept=cat method=uce out=FILE.png [results=DIR] [attack=...]

``methods``: one row per concept, method and recipe, with the attack's column where the runs have one. ``cost``:
seconds, peak memory and model evaluations of the erase step. ``attacks``: one row per concept, method and attack, with
what it spent and its best control; bold: shown to be better than that (95 %). ``attack_matrix``: the same as concepts
and attacks by methods. ``transfer``: prompts found on one model, tried on others; bold: where they were found.
``budget``: a picture of the success of all attacks on one model after each image judged, controls dashed. Cells are the
erased model's value [95 % interval] in %; the original model has rows or columns of its own.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/methods.py would shadow the package methods

from benchmarks.attack_tables import attack_matrix, attacks, cells, draw_budget, method_name, run_files, transfer
from erasebench.report.leaderboard import as_markdown

FILTERS = ("model", "concept", "method", "attack", "seed")
RATES = ("target", "paraphrase", "attack", "neighbour", "unrelated")


def runs(root: Path, wanted: Mapping[str, Sequence[str]]) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """(run.json, summary without relations) of every finished run with the wanted names."""
    out = []
    for path in run_files(root, wanted):
        summary = pd.read_csv(path.parent / "summary.csv", keep_default_na=False, na_values=[""])
        out.append(
            (json.loads(path.read_text(encoding="utf-8")), summary[summary.relation.isna() | (summary.relation == "")])
        )
    return out


def rate(summary: pd.DataFrame, group: str, side: str = "mean") -> str:
    """Share of images with what is asked for, in %, with its interval."""
    prefix = "concept_present." if group in ("target", "paraphrase", "attack") else "accuracy."
    return value(summary[(summary.group == group) & summary.metric.str.startswith(prefix)], side, 100, 0)


def value(rows: pd.DataFrame, side: str, scale: float = 1, digits: int = 1) -> str:
    if not len(rows):
        return "-"
    low, high = ("low", "high") if side == "mean" else ("base_low", "base_high")
    v, a, b = (float(rows.iloc[0][k]) * scale for k in (side, low, high))
    if math.isnan(v):
        return "-"
    return f"{v:.{digits}f}" + ("" if math.isnan(a) else f" [{a:.{digits}f}, {b:.{digits}f}]")


def quality(summary: pd.DataFrame, side: str) -> list[str]:
    """CLIP score on unrelated prompts; Frechet distance to real pictures on all that should be left alone."""
    clip = summary[(summary.group == "unrelated") & summary.metric.str.startswith("clip_score.")]
    return [value(clip, side), value(summary[summary.metric.str.contains(r"^fid\..*vs_real")], side)]


def methods(found: list[tuple[dict[str, Any], pd.DataFrame]]) -> list[list[str]]:
    lines = [["concept", "method", "n", *RATES, "CLIP", "FID"]]
    seen = set()
    for record, summary in found:
        names = record["identity"]["names"]
        n = str(int(summary[(summary.group == "target")].n.max()))
        if names["concept"] not in seen:
            seen.add(names["concept"])
            base = [rate(summary, group, "base") for group in RATES]
            lines.append([names["concept"], "*original model*", n, *base, *quality(summary, "base")])
        if names["method"] != "none":
            own = [rate(summary, group) for group in RATES]
            lines.append([names["concept"], method_name(names), n, *own, *quality(summary, "mean")])
    return lines


def cost(found: list[tuple[dict[str, Any], pd.DataFrame]]) -> list[list[str]]:
    lines = [["method", "concept", "seconds", "peak MB", "UNet evaluations", "of them with gradient", "stored bytes"]]
    for record, _ in found:
        names, erase = record["identity"]["names"], record["steps"]["erase"]
        spent = erase.get("cost", {})
        if names["method"] == "none":
            continue
        keys = ("seconds", "peak_rss_mb", "unet_evaluations", "unet_with_gradient_evaluations")
        lines.append(
            [method_name(names), names["concept"], *(str(spent.get(k, "-")) for k in keys), str(erase.get("bytes"))]
        )
    return lines


RUN_VIEWS = {"methods": methods, "cost": cost}
CELL_VIEWS = {"attacks": attacks, "attack_matrix": attack_matrix, "transfer": transfer}


def main() -> None:
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    view, root = options.pop("view", "methods"), Path(options.pop("results", "results"))
    out = Path(options.pop("out", "budget.png"))
    wanted = {key: value.split(",") for key, value in options.items()}
    if (unknown := set(wanted) - set(FILTERS)) or view not in {*RUN_VIEWS, *CELL_VIEWS, "budget"}:
        raise SystemExit(f"error: unknown {', '.join(sorted(unknown)) or view}\n\n{__doc__}")
    if view in RUN_VIEWS:
        print(as_markdown(RUN_VIEWS[view](runs(root, wanted))))
    elif view in CELL_VIEWS:
        print(as_markdown(CELL_VIEWS[view](cells(root, wanted))))
    else:
        draw_budget(cells(root, wanted), out)
        print(out)


if __name__ == "__main__":
    main()
