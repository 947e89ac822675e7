"""Synthetic results of many runs: tables, records and pictures as runs write them, drawn at random.

A cell is a run: a concept, a method, an attack and a seed, with the tables of six evaluators for both sides of so many
prompts in five groups.
"""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from erasebench.report import units
from erasebench.report.runs import sealed
from erasebench.report.tables import read_scores, scores_frame, summarise, write_csv, write_scores
from erasebench.store.files import file_hash
from erasebench.store.images import SHARD_SIZE, image_folder, write_shard
from erasebench.types import Headline, Prompt, Score
from evaluators.asr import ASR
from evaluators.classifier import Classifier
from evaluators.clip_score import ClipScore
from evaluators.fid import FID
from evaluators.spillover import Spillover

HEADLINES: dict[str, Sequence[Headline]] = {
    "classifier": Classifier.headlines,
    "asr": ASR.headlines,
    "clip_score": ClipScore.headlines,
    "spillover": Spillover.headlines,
    "fid": FID(features=SimpleNamespace(name="net")).headlines,  # type: ignore[arg-type]
    "nudenet": (),
}
RELATIONS = ("visual", "binomial", "subset_superset")
GROUPS = ("target", "paraphrase", "attack", "neighbour", "unrelated")
DOUBT = {"flag": "few_prompts", "message": "few", "what_to_do": "more"}
COST = {"seconds": 3.5, "peak_rss_mb": 1200.0, "unet_evaluations": 0}
ATTACKS = {  # name -> access, strength, control
    "none": ("none", "text", False),
    "ringabell": ("text_encoder", "text", False),
    "unlearndiffatk": ("model", "text", False),
    "p4d": ("model", "text", False),
    "reseed": ("queries", "text", True),
}


class Cell(NamedTuple):
    """What a run is of."""

    concept: str
    method: str
    attack: str
    seed: int

    @property
    def path(self) -> Path:
        return Path("runs", "m", self.concept, self.method, self.attack, f"seed{self.seed}")

    @property
    def key(self) -> str:
        return _hash(str(self.path))

    @property
    def original(self) -> str:
        """Key of the original model's images."""
        return _hash(f"{self.concept}-{self.seed}-original")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def cells(n: int) -> list[Cell]:
    """Ten methods, five attacks, two seeds, and as many concepts as it takes."""
    methods = ["none", *(f"method{i}" for i in range(1, 10))]
    found = (
        Cell(f"concept{c}", *rest) for c in itertools.count() for rest in itertools.product(methods, ATTACKS, (0, 1))
    )
    return list(itertools.islice(found, n))


def prompts(n: int, attacked: bool) -> list[Prompt]:
    """So many prompts in all groups; targets and searches share eight texts, others their words."""
    groups = [group for group in GROUPS if attacked or group != "attack"]
    return [
        Prompt(
            id=f"{group}-{i:04d}", text=f"{group} {i % 8}", group=group, seed=i, info={"word": f"word {i % 12}"},
            relation=RELATIONS[i % 3] if group == "neighbour" else "",
        )
        for group in groups for i in range(n // len(GROUPS))
    ]  # fmt: skip


def rows(found: Sequence[Prompt]) -> Iterator[Score]:
    """Scores of one side of a run; a value of 0.5 stands for one that is drawn later."""
    for prompt in found:
        erased = prompt.group in ("target", "paraphrase", "attack")
        place: dict[str, Any] = {
            "group": prompt.group,
            "prompt_id": prompt.id,
            "relation": prompt.relation,
            "value": 0.5,
        }
        name = "concept_present" if erased else "accuracy"
        judged = place | {"judge": "judge", "higher_is_better": not erased}
        yield Score(evaluator="classifier", metric=f"{name}.judge.top1", **judged)
        yield Score(evaluator="classifier", metric="probability.judge", **judged)
        if prompt.group == "attack":
            for metric in ("pre_asr", "asr", "asr_on_safe"):
                yield Score(evaluator="asr", metric=f"{metric}.judge", **judged)
        else:
            yield Score(evaluator="clip_score", metric="clip_score.net", higher_is_better=True, **place)
        if prompt.group in ("target", "attack"):
            for view in ("count@0.6", "any@0.6"):
                yield Score(evaluator="nudenet", metric=f"nudenet.net.{view}", rate=view.startswith("any"), **judged)
        if prompt.group in ("neighbour", "unrelated"):
            yield Score(evaluator="fid", metric="influence.fid.net.vs_original", rate=False, **place)
    whole: dict[str, Any] = {"value": 0.5, "low": 10.0, "high": 20.0}
    for versus in ("vs_real", "vs_original"):
        yield Score(evaluator="fid", metric=f"fid.net.{versus}", group="kept", higher_is_better=False, **whole)
    yield Score(evaluator="spillover", metric="hm.judge", group="all", judge="judge", terms=(20.0, 30.0), **whole)


@cache
def template(n: int, attacked: bool) -> pa.Table:
    """The table of a run, all but its names, seeds and values; rows are in their order whatever these are."""
    names = dict.fromkeys(("model", "concept", "method", "recipe", "attack", "budget", "settings"), "")
    found = prompts(n, attacked)
    facts = {
        "run": "", "cell": {**names, "access": "", "strength": "", "control": False}, "headlines": HEADLINES,
        "versions": dict.fromkeys(HEADLINES, 1), "prompts": found,
    }  # fmt: skip
    sides = [scores_frame(rows(found), side=side, **facts) for side in ("erased", "original")]
    with tempfile.TemporaryDirectory() as folder:
        return pq.read_table(write_scores(Path(folder) / "scores.parquet", pd.concat(sides)))


def write_run(root: Path, n: int, cell: Cell, kept: bool = False) -> None:
    """One run's folder: its tables, then its record, and, as a run does it, what boards need of it."""
    access, strength, control = ATTACKS[cell.attack]
    attacked, erases = cell.attack != "none", cell.method != "none"
    table = template(n, attacked)
    frame = table.select(["metric", "group", "side", "prompt_id"]).to_pandas()
    erased = frame.side.eq("erased").to_numpy() & erases
    names = {
        "model": "m", "concept": cell.concept, "method": cell.method, "recipe": "paper" if erases else "",
        "attack": cell.attack, "budget": "paper" if attacked else "", "settings": "",
    }  # fmt: skip
    weights = np.where(erased, f"{cell.concept}-{cell.method}-{cell.seed}", "original")
    own = {"run": cell.key, **names, "access": access, "strength": strength, "control": control}
    columns: dict[str, pa.Array] = {name: pa.repeat(value, len(table)) for name, value in own.items()}
    columns["weights"] = pa.array(weights, pa.string())
    columns["seed"] = pc.add(table["seed"], 100_000 * cell.seed)
    columns["value"] = pa.array(values(cell, frame, erased))
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, column)
    folder = root / cell.path
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "scores.parquet", compression="zstd")
    write_csv(folder / "summary.csv", summarise(read_scores(folder / "scores.parquet")))
    words = [f"word {i}" for i in range(300)]  # a config names what it preserves: some 20 kB
    config = {
        "seed": cell.seed, "concept": {"_target_": "erasebench.types.Concept", "kind": "object", "name": cell.concept,
        "phrases": [cell.concept]}, "also": [], "method": words, "attack": {"queries": 9}, "more": words,
        "prompts": {
            "_target_": "erasebench.prompts.files.CsvPrompts", "path": str(root / f"prompts{cell.seed}.csv"),
            "text": "text", "seed": "seed", "guidance": None, "id": "id",
        },
    }  # fmt: skip
    record = {
        "key": cell.key, "identity": {"names": names, "config": config}, "model_hash": "m", "config": config,
        "attack": {"seconds": 10.0}, "flags": [DOUBT] if cell.seed else [],
        "files": {name: file_hash(folder / name) for name in ("scores.parquet", "summary.csv")},
        "steps": {
            "erase": {"key": f"{cell.key}-erased", "bytes": 10**6, "cost": COST},
            "draw": {"keys": {"erased": cell.key if erases else cell.original, "original": cell.original}},
        },
        "packages": {"erasebench": "0"}, "judge": {"name": "judge"},
    }  # fmt: skip
    (folder / "run.json").write_text(sealed(record), encoding="utf-8")
    if kept:
        units.keep(folder)  # a run's last step


def values(cell: Cell, frame: pd.DataFrame, erased: np.ndarray) -> np.ndarray:
    """Rates that method and group decide; the original's are the same in all runs that drew the same images."""
    drawn = []
    for name, side in ((f"{cell.concept}-{cell.seed}-original", ~erased), (str(cell), erased)):
        seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
        drawn.append(np.where(side, np.random.default_rng(seed).random(len(frame)), 0.0))
    uniform = drawn[0] + drawn[1]
    strength = (int(cell.method.removeprefix("method")) if cell.method != "none" else 0) / 10
    gone = frame.group.map({"target": 1.0, "paraphrase": 0.8, "attack": 0.6, "neighbour": 0.3, "unrelated": 0.1})
    rate = 1 - np.where(erased, gone.fillna(0) * strength, 0.05)
    real = frame.metric.str.contains("probability|clip|fid|hm").to_numpy()
    scale = np.where(frame.metric.str.startswith("influence"), 1.0, np.where(frame.prompt_id.isna(), 30.0, 1.0))
    return np.where(real, uniform * scale, (uniform < rate).astype(float))


def target_prompts(n: int, seed: int) -> list[Prompt]:
    """The prompts that a run of the report rebuilds, all of group target."""
    own = (prompt for prompt in prompts(n, False) if prompt.group == "target")
    return [Prompt(id=prompt.id, text=prompt.text, seed=prompt.seed + 100_000 * seed) for prompt in own]


def write_prompts(root: Path, n: int) -> None:
    """Where the runs' configs say that their prompts come from."""
    root.mkdir(parents=True, exist_ok=True)
    for seed in (0, 1):
        rows = [f"{p.id.removeprefix('target-')},{p.text},{p.seed}\n" for p in target_prompts(n, seed)]  # it adds that
        (root / f"prompts{seed}.csv").write_text("id,text,seed\n" + "".join(rows), encoding="utf-8")


def write_images(root: Path, n_prompts: int, found: Sequence[Cell], n: int) -> None:
    """So many pictures of 16 x 16 pixels in the store: the originals of a cell, then its erased ones, cell by cell."""
    keys = dict.fromkeys(pair for cell in found for pair in ((cell.original, cell.seed), (cell.key, cell.seed)))
    for key, seed in keys:
        digests = [prompt.digest() for prompt in target_prompts(n_prompts, seed)][:n]
        n -= len(digests)
        for start in range(0, len(digests), SHARD_SIZE):
            rows = [(d, picture(f"{key}{d}"), "ok") for d in digests[start : start + SHARD_SIZE]]
            write_shard(image_folder(root, key), start // SHARD_SIZE, rows)


def picture(name: str) -> Image.Image:
    seed = int(_hash(name)[:8], 16)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8))


def write(root: Path, n_cells: int, n_prompts: int) -> None:
    write_prompts(root, n_prompts)
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        pool.map(partial(write_run, root, n_prompts, kept=True), cells(n_cells), chunksize=10)
