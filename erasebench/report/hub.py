"""A results folder as a dataset that a hub shows and ``datasets`` loads: Parquet and a card, no image and no prompt."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml

from erasebench.report.printing import as_markdown, plain
from erasebench.report.runs import Run, read_runs
from erasebench.report.tables import read_results, summarise, write_scores
from erasebench.store.files import replacing, work_path

TAG = "erasebench-results"  # in the card's front matter: a folder that was written here
COLUMNS = {
    "run": "key of the run", "model": "", "concept": "what was erased", "method": "none: nothing was erased",
    "recipe": "paper: the published one, literally", "attack": "", "budget": "", "settings": "what is not as usual",
    "access": "what the attack sees", "strength": "what it may change", "control": "a control, no attack",
    "group": "which prompts", "relation": "of a neighbour to the concept", "evaluator": "",
    "evaluator_version": "of its definition; versions are not to be pooled", "metric": "", "judge": "",
    "prompt_id": "missing for a number of a whole group", "seed": "of the noise", "value": "",
    "status": "ok, or why there is no value",
    "side": "erased or original, on the same prompts and noise", "cluster": "images of one are no independent draws",
}  # fmt: skip


def write_dataset(root: Path, folder: Path) -> tuple[list[Path], list[str]]:
    """Write all runs of a results folder as a dataset; returns its files, and a line for each damaged run left out.

    Raises:
        FileNotFoundError: there are no results.
        ValueError: the folder holds something else than an earlier export.
    """
    if folder.exists() and any(folder.iterdir()) and TAG not in _text(folder / "README.md"):
        raise ValueError(f"hub must be a new folder, an empty one or an earlier export; {folder} holds something else")
    skipped: list[str] = []
    scores = read_results(root, skipped=skipped)
    summary = summarise(scores)
    runs = read_runs(root, []) if any(root.glob("runs/**/run.json")) else []
    work = work_path(folder)
    try:
        (work / "data").mkdir(parents=True)
        write_scores(work / "data" / "scores.parquet", scores)
        with replacing(work / "data" / "summary.parquet") as file:
            summary.to_parquet(file, index=False)
        (work / "README.md").write_text(card(scores, summary, runs), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        work.replace(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return sorted(path for path in folder.rglob("*") if path.is_file()), skipped


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")[:2000] if path.is_file() else ""


def card(scores: pd.DataFrame, summary: pd.DataFrame, runs: Sequence[Run]) -> str:
    """The README.md of the dataset, with the front matter that hubs read."""
    configs = [
        {"config_name": name, "data_files": f"data/{name}.parquet", **({"default": True} if name == "scores" else {})}
        for name in ("scores", "summary")
    ]
    front = {"pretty_name": "erasebench results", "tags": [TAG, "concept-erasure"], "configs": configs}
    names = [
        [name, str(scores[name].nunique()), _some(scores[name])] for name in ("model", "concept", "method", "attack")
    ]
    packages = sorted({f"{k} {v}" for run in runs for k, v in dict(run.record.get("packages", {})).items()})
    columns = [["column", "what"], *([name, told] for name, told in COLUMNS.items())]
    return "\n".join([
        "---", yaml.safe_dump(front, sort_keys=False).strip(), "---",
        "",
        "# erasebench results",
        "",
        f"{len(scores):,} scores and {len(summary):,} summarised numbers of {scores.run.nunique()} runs. No image and "
        "no prompt is in it: prompts are ids, whatever set they come from.",
        "",
        as_markdown([["", "different", "such as"], *names]),
        "",
        '`load_dataset(FOLDER, "scores")` is one row per image and metric, `"summary"` one per cell, group and metric, '
        "with intervals. A run with another version of an evaluator is another measurement.",
        "",
        as_markdown(columns),
        "",
        f"Made with: {plain(', '.join(packages)) or 'not recorded'}.",
        "",
    ])  # fmt: skip


def _some(column: pd.Series[str]) -> str:
    known = sorted(set(column))
    return ", ".join(known[:6]) + (", ..." if len(known) > 6 else "")
