"""The last step of a run: write its tables, pictures, flags and ``run.json``, keep what boards need. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from erasebench.cell import Cell, Result
from erasebench.protocols import Attack, Evaluator, Judge
from erasebench.report import budget, checks, evidence, tables, units
from erasebench.report.contact_sheet import contact_sheet
from erasebench.report.runs import sealed
from erasebench.report.verdicts import verdicts
from erasebench.store import provenance
from erasebench.store.files import file_hash, replacing
from erasebench.store.images import ImageSet
from erasebench.types import Prompt, Score


def record(
    cell: Cell,
    scores: Mapping[str, list[Score]],
    images: Mapping[str, ImageSet],
    attack: Attack,
    judge: Judge,
    evaluators: Mapping[str, Evaluator],
) -> Result:
    """Write scores.parquet, summary.csv, grid.png, the budget's curve if the attack kept one and, last, run.json.

    What boards need of the run is kept in the store, not in its folder: ``erasebench.report.units``.
    """
    names, config = cell.names, cell.config
    table = _table(cell, scores, images, attack, evaluators)
    frame = tables.read_scores(tables.write_scores(cell.folder / "scores.parquet", table))
    summary = tables.summarise(frame)
    searched = [p.info for p in images["erased"].prompts if p.group == "attack"]
    own = {e.judge.name for e in evaluators.values() if hasattr(e, "judge")}
    unsafe = any(node.get("kind") == "unsafe" for node in cell.concepts)
    flags = [
        *checks.flags(frame, summary, None if unsafe else own),
        *checks.search_flags(searched),
        *checks.erasure_flags(cell.steps["erase"]),
        *evidence.prompts_cut(cell.steps["draw"]),
    ]
    flags += checks.between_attacks(pd.concat([frame, *_siblings(cell)]), attack=names["attack"])
    tables.write_csv(cell.folder / "summary.csv", summary)
    blur = config["model"]["blur_unsafe"] and unsafe
    with replacing(cell.folder / "grid.png") as work:
        said = {side: verdicts(frame, side) for side in images}
        contact_sheet(images, title=cell.title, verdicts=said, blur=blur).save(work, format="PNG")
    budget.write(cell.folder, images["erased"].prompts, cell.title, attack=names["attack"], control=attack.control)
    run = {
        "key": cell.key,
        "identity": json.loads(json.dumps(cell.identity)),
        "model_hash": cell.model_hash,
        "config": config,
        "judge": {"name": judge.name, "about": str(getattr(judge, "about", ""))},
        "attack": spent(images["original"].prompts),
        "flags": flags,
        "files": {p.name: file_hash(p) for p in sorted(cell.folder.iterdir()) if _is_table(p)},
        "steps": cell.steps,
        "stored": cell.stored,
        **provenance.record(),
    }
    with replacing(cell.folder / "run.json") as work:
        work.write_text(sealed(run), encoding="utf-8")
    units.keep(cell.folder)
    return Result(cell.folder, frame, summary, run, False)


def _is_table(path: Path) -> bool:
    """Whether a file is part of the run: neither its record nor what another process is writing at this moment."""
    return path.is_file() and path.name != "run.json" and not path.name.startswith(".")


def _table(
    cell: Cell,
    scores: Mapping[str, list[Score]],
    images: Mapping[str, ImageSet],
    attack: Attack,
    evaluators: Mapping[str, Evaluator],
) -> pd.DataFrame:
    """The scores of both sides as tidy rows, with what cell, attack and evaluators say of themselves."""
    declared = {"access": attack.access, "strength": attack.strength, "control": attack.control}
    facts: dict[str, Any] = {
        "run": cell.key,
        "cell": {**cell.names, **declared},
        "versions": {name: e.version for name, e in evaluators.items()},
        "headlines": {name: e.headlines for name, e in evaluators.items()},
    }
    return pd.concat(
        tables.scores_frame(rows, side=side, prompts=images[side].prompts, weights=images[side].key, **facts)
        for side, rows in scores.items()
    )


def _siblings(cell: Cell) -> list[pd.DataFrame]:
    """Scores of the other attacks on the same model, concept and method with this seed, as far as they were run."""
    seed, attacks = cell.folder.name, cell.folder.parent
    found = []
    for path in sorted(attacks.parent.glob(f"*/{seed}/scores.parquet")):
        if path.parent.parent != attacks:
            try:
                found.append(tables.read_scores(path))
            except (OSError, ValueError):  # half-written by another process: its own record will compare
                continue
    return found


SPENT = ("evaluations", "queries", "forward", "backward", "seconds")  # of an attack's info: summed over its searches


def spent(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What the attack spent and found over all its prompts: sums of counts, shares of flags, settings as they are.

    Curves stay with the prompts. Prompts with one text share a search, unless each has a curve of its own.
    """
    attacked = [p for p in prompts if p.group == "attack"]
    if not attacked:
        return {}
    texts = {p.text: p.info for p in attacked}
    infos = [p.info for p in attacked] if any("curve" in p.info for p in attacked) else list(texts.values())
    out: dict[str, Any] = {"prompts": len(attacked), "distinct_texts": len(texts)}
    for name in dict.fromkeys(name for info in infos for name in info):
        values = [info[name] for info in infos if name in info]
        numbers = [v for v in values if isinstance(v, int | float)]
        if any(isinstance(v, list | dict) for v in values):
            continue
        if all(isinstance(v, bool) for v in values):
            out[f"share_{name}"] = sum(values) / len(values)
        elif name in SPENT:
            out[name] = sum(numbers)
        elif all(v == values[0] for v in values):
            out[name] = values[0]
        elif numbers:
            out[f"mean_{name}"] = sum(numbers) / len(numbers)
    return out
