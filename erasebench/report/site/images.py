"""Every image of a cell with what was said of it, as columns that a page's script lays out, and as files.

Rows of the tables decide what is shown; prompts and pictures are joined to them as far as they are still there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from erasebench.limits import open_parquet
from erasebench.report.drawn import Run
from erasebench.store.images import ImageSet
from erasebench.types import GROUPS, Prompt

COLUMNS = ("side", "group", "relation", "prompt_id", "evaluator", "metric", "judge", "value", "status", "role", "place")
HEADS = {
    "target": "The erased concept", "paraphrase": "Its synonyms", "attack": "Adversarial prompts",
    "neighbour": "Related concepts", "unrelated": "Other concepts", "coco": "General prompts",
}  # fmt: skip
ORDER = sorted(GROUPS, key=list(HEADS).index)


@dataclass
class Wanted:
    """Pictures that pages refer to: (folder of the store, digest) -> the file's name in the report."""

    files: dict[tuple[Path, str], str] = field(default_factory=dict)
    veiled: set[tuple[Path, str]] = field(default_factory=set)

    def name(self, images: ImageSet, prompt: Prompt, unsafe: bool) -> str:
        """What the page calls it, without its ending."""
        place = (images.folder, prompt.digest())
        self.files[place] = f"{images.key}/{place[1]}"
        if unsafe:
            self.veiled.add(place)
        return self.files[place]


def groups(run: Run, wanted: Wanted, *, unsafe: bool, withheld: bool) -> list[dict[str, Any]]:
    """The groups of a run: for each its prompts, and a column of images for each side.

    Args:
        run: whose tables are read.
        wanted: is told which pictures are needed.
        unsafe: they are shown blurred.
        withheld: texts are left out.
    """
    table = _per_image(run.folder / "scores.parquet")
    prompts = {(p.group, p.id): p for p in [*_safely(run.prompts), *_safely(run.attacked)]}
    sides = {side: run.images(side, list(prompts.values())) for side in ("original", "erased")}
    found: list[dict[str, Any]] = []
    for group in ORDER:
        part = table.filter(pa.compute.equal(table["group"], group))
        if not part.num_rows or group == "coco":
            continue
        judged = part.filter(pa.compute.is_in(part["role"], value_set=pa.array(["present", "kept"])))
        ids = sorted(set((judged if judged.num_rows else part)["prompt_id"].to_pylist()), key=lambda n: (len(n), n))
        part = part.filter(pa.compute.is_in(part["prompt_id"], value_set=pa.array(ids)))  # an attack's source has none
        own = [prompts.get((group, name)) for name in ids]
        columns = [
            {
                "title": f"{side} model" if group != "attack" else f"{side} model, attacked",
                "side": side,
                "src": [p and wanted.name(sides[side], p, unsafe) for p in own],
                **_said(part.filter(pa.compute.equal(part["side"], side)), ids),
            }
            for side in (("original", "erased") if group != "attack" else ("erased", "original"))
        ]
        if group == "attack":
            columns = [*_plain(own, found), *columns]
        found.append({
            "name": group, "title": HEADS[group], "ids": ids, "columns": columns, "seed": run.names["seed"],
            "texts": [None if withheld else p and p.text for p in own],
            "relations": [(p and p.relation) or "" for p in own],
            "asks": [(p and p.concept) or "" for p in own],
        })  # fmt: skip
    return found


def _plain(attacked: Sequence[Prompt | None], found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The columns of the plain prompts that attacks started from, on the same noise."""
    target = next((one for one in found if one["name"] == "target"), None)
    if target is None:
        return []
    place = {name: i for i, name in enumerate(target["ids"])}
    rows = [place.get(p.source_id or p.id) if p else None for p in attacked]

    def at(values: Sequence[Any]) -> list[Any]:
        return [None if i is None else values[i] for i in rows]

    return [
        {
            **{key: at(column[key]) for key in ("src", "seen", "score", "status")},
            "values": {name: at(values) for name, values in column["values"].items()},
            "title": f"{column['side']} model, plain prompt",
            "side": column["side"],
        }
        for column in target["columns"]
    ]


def _safely(read: Any) -> list[Prompt]:
    """Prompts, or none where their source is no longer there: the tables stand without them."""
    try:
        found: list[Prompt] = read()
    except (OSError, ValueError):
        return []
    return found


def _per_image(path: Path) -> pa.Table:
    """The rows of single images."""
    with open_parquet(path) as file:
        table = file.read(columns=list(COLUMNS))
    keep = pa.compute.and_(table["prompt_id"].is_valid(), pa.compute.not_equal(table["role"], "influence"))
    return table.filter(keep)


def _said(part: pa.Table, ids: Sequence[str]) -> dict[str, Any]:
    """What was said of one side's images: is it there, the judge's score, its status, and every value by metric."""
    index = pa.compute.index_in(part["prompt_id"], value_set=pa.array(ids)).to_numpy(zero_copy_only=False)
    value = part["value"].to_numpy(zero_copy_only=False)
    bad = np.flatnonzero(pa.compute.not_equal(part["status"], "ok").to_numpy(zero_copy_only=False))
    words = part["status"].to_pylist()
    status: list[str | None] = [None] * len(ids)  # without a row nothing is known
    for i in np.unique(index):
        status[i] = "ok"
    for i in bad:
        status[index[i]] = words[i]
    kinds = part.select(["evaluator", "metric", "judge", "role", "place"])
    codes, first = _codes(kinds)
    facts = kinds.take(pa.array(first)).to_pylist()
    values = np.full((len(first), len(ids)), np.nan)
    values[codes, index] = value
    seen = [i for i, fact in enumerate(facts) if fact["role"] in ("present", "kept")]
    said: np.ndarray = np.full(len(ids), np.nan)
    score = said
    if seen:
        best = min(seen, key=lambda i: (facts[i]["place"] is None, facts[i]["place"]))
        said, judge = values[best], (facts[best]["evaluator"], facts[best]["judge"])
        others = [
            i
            for i, f in enumerate(facts)
            if (f["evaluator"], f["judge"], f["role"]) == (*judge, "") and np.nanmax(values[i], initial=0) <= 1
        ]
        score = values[others[0]] if len(others) == 1 else score
    named = {f"{facts[i]['metric']}": _numbers(values[i]) for i in range(len(first))}
    return {"seen": _numbers(said), "score": _numbers(score), "status": status, "values": dict(sorted(named.items()))}


def _codes(kinds: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """A number for each row's kind, and the first row of each."""
    whole = np.zeros(kinds.num_rows, dtype=np.int64)
    for column in kinds.columns:
        one = column.combine_chunks().dictionary_encode(null_encoding="encode")
        own = one.indices.to_numpy(zero_copy_only=False)
        whole = whole * (len(one.dictionary) + 1) + own
    first, codes = np.unique(whole, return_index=True, return_inverse=True)[1:]
    return codes, first


def _numbers(values: np.ndarray) -> list[float | int | None]:
    """Four digits are more than anybody reads; the tables have the rest."""
    return [None if v != v else int(v) if v in (0.0, 1.0) else float(f"{v:.4g}") for v in values.tolist()]
