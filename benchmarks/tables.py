"""The tables of README and docs, from the runs in a results folder; nothing is measured here.

    python benchmarks/tables.py results=DIR view=methods|attacks|cost [concept=A,B] [method=...] [attack=...]

``methods``: one row per concept, method and recipe, with the attack's column where the runs have one. ``attacks``: one
row per concept, method and attack, with budget and seconds. ``cost``: seconds, peak memory and model evaluations of the
erase step. Cells are the erased model's value [95 % interval]; the original model has rows of its own.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/methods.py would shadow the package methods

from erasebench.leaderboard import as_markdown
from erasebench.run import has_recipe

RATES = ("target", "paraphrase", "attack", "neighbour", "unrelated")


def runs(root: Path) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """(run.json, summary without relations) of every finished run."""
    out = []
    for path in sorted(root.glob("runs/**/run.json")):
        summary = pd.read_csv(path.parent / "summary.csv", keep_default_na=False, na_values=[""])
        out.append((json.loads(path.read_text()), summary[summary.relation.isna() | (summary.relation == "")]))
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


def name(names: Mapping[str, str]) -> str:
    literal = names["recipe"] == "paper" and has_recipe(names["method"], names["model"])
    return names["method"] + (" (literal)" if literal else "")


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
            lines.append([names["concept"], name(names), n, *own, *quality(summary, "mean")])
    return lines


def attacks(found: list[tuple[dict[str, Any], pd.DataFrame]]) -> list[list[str]]:
    lines = [["concept", "method", "attack", "n", "concept drawn", "of the plain prompts", "queries", "seconds"]]
    for record, summary in found:
        names, spent = record["identity"]["names"], record.get("attack") or {}
        n = str(int(summary[(summary.group.isin(["attack", "target"]))].n.max()))
        queries = spent.get("queries", spent.get("mean_queries", spent.get("evaluations", "-")))
        seconds = record["steps"].get("attack", {}).get("seconds", math.nan)
        attack = rate(summary, "attack") if names["attack"] != "none" else rate(summary, "target")
        lines.append(
            [names["concept"], name(names), names["attack"], n, attack, rate(summary, "target"),
             f"{queries:.1f}" if isinstance(queries, float) else str(queries), f"{seconds:.0f}"]
        )  # fmt: skip
    return lines


def cost(found: list[tuple[dict[str, Any], pd.DataFrame]]) -> list[list[str]]:
    lines = [["method", "concept", "seconds", "peak MB", "UNet evaluations", "of them with gradient", "stored bytes"]]
    for record, _ in found:
        names, erase = record["identity"]["names"], record["steps"]["erase"]
        spent = erase.get("cost", {})
        if names["method"] == "none":
            continue
        keys = ("seconds", "peak_rss_mb", "unet_evaluations", "unet_with_gradient_evaluations")
        lines.append([name(names), names["concept"], *(str(spent.get(k, "-")) for k in keys), str(erase.get("bytes"))])
    return lines


def main() -> None:
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    found = runs(Path(options.get("results", "results")))
    for key in ("concept", "method", "attack"):
        if key in options:
            found = [f for f in found if f[0]["identity"]["names"][key] in options[key].split(",")]
    print(as_markdown({"methods": methods, "attacks": attacks, "cost": cost}[options.get("view", "methods")](found)))


if __name__ == "__main__":
    main()
