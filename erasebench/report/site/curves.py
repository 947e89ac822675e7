"""The report's curves over all cells: thresholds of the judge, and spillover over the distance of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from erasebench.report import figures
from erasebench.report.runs import NOTHING
from erasebench.report.site.gather import Cell

KEPT = ("neighbour", "unrelated")


def needed(group: Mapping[str, Any]) -> dict[str, Any]:
    """What curves need of a group of a page: titles, sides, scores, verdicts, and of each image its text's distance."""
    columns = [{key: one[key] for key in ("title", "side", "score", "seen")} for one in group["columns"]]
    far = [
        values
        for one in group["columns"]
        for name, values in one.get("values", {}).items()
        if group["name"] in KEPT and name.startswith("text_distance.")
    ]
    return {"name": group["name"], "columns": columns, "far": far[0] if far else []}


def thresholds(cells: Sequence[Cell], found: Mapping[Cell, list[dict[str, Any]]], out: Path) -> list[tuple[str, str]]:
    """One figure per model and concept: every method's scores on plain prompts, and under each attack."""
    together: dict[tuple[str, str], dict[str, list[float]]] = {}
    for cell in cells:
        place = together.setdefault((cell.names["model"], cell.names["concept"]), {"original model": []})
        attack = cell.names["attack"]
        name = cell.names["method"] + (f", {attack}" if attack != NOTHING else "")
        for group in found[cell]:
            if group["name"] != ("target" if attack == NOTHING else "attack") or cell.names["method"] == NOTHING:
                continue
            for column in group["columns"]:
                known = [score for score in column["score"] if score is not None]
                if column["side"] == "erased" and "plain" not in column["title"]:
                    place.setdefault(name, []).extend(known)
                elif column["side"] == "original" and attack == NOTHING and not place["original model"]:
                    place["original model"] = known
    drawn = []
    for i, ((model, concept), scores) in enumerate(together.items()):
        title = f"{concept} on {model}: share of images that reach a threshold"
        if (figure := figures.threshold(title, scores)) is not None and any(scores.values()):
            figures.save(figure, out / "figures" / f"threshold-{i}", lasting=False)
            drawn.append((f"threshold-{i}", title))
    return drawn


def spillover(cells: Sequence[Cell], found: Mapping[Cell, list[dict[str, Any]]], out: Path) -> list[tuple[str, str]]:
    """One figure per model and concept: what else is drawn, over its text's distance; none where that is unknown."""
    together: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for cell in cells:
        if cell.names["attack"] != NOTHING or cell.names["method"] == NOTHING:
            continue
        place = together.setdefault((cell.names["model"], cell.names["concept"]), {"original model": []})
        first = not place["original model"]
        for group in found[cell]:
            far = group["far"]
            for column in group["columns"] if far else ():
                line = cell.names["method"] if column["side"] == "erased" else "original model"
                if line != "original model" or first:
                    pairs = zip(far, column["seen"], strict=True)
                    place.setdefault(line, []).extend((d, s) for d, s in pairs if d is not None and s is not None)
    drawn = []
    for i, ((model, concept), kept) in enumerate(together.items()):
        title = f"{concept} on {model}: other concepts still drawn, by the distance of their texts"
        if (figure := figures.spillover(title, kept)) is not None:
            figures.save(figure, out / "figures" / f"spillover-{i}", lasting=False)
            drawn.append((f"spillover-{i}", title))
    return drawn
