"""How long leaderboard, paper and verify take, and how much memory: synthetic results of many cells and prompts.

    python -m benchmarks.tables [--cells 1000] [--prompts 1000] [--before COMMIT] [--keep FOLDER]

A cell is a run: a concept, a method, an attack and a seed, with the tables of six evaluators, drawn at random, for both
sides of so many prompts in five groups; run.json and summary.csv as a run writes them. Every command is a process of
its own: wall and CPU seconds, peak memory of its largest process. ``--before`` measures a commit on the same tables and
compares what both wrote and printed byte by byte. A folder of ``--keep`` that has runs is measured as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import multiprocessing
import os
import platform
import subprocess
import sys
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

from erasebench.report.runs import sealed
from erasebench.report.tables import read_scores, scores_frame, summarise, write_csv, write_scores
from erasebench.store.files import file_hash
from erasebench.types import Headline, Prompt, Score
from evaluators.asr import ASR
from evaluators.classifier import Classifier
from evaluators.clip_score import ClipScore
from evaluators.fid import FID
from evaluators.spillover import Spillover

ROOT = Path(__file__).parent.parent
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
ATTACKS = {  # name -> access, strength, control
    "none": ("none", "text", False),
    "ringabell": ("text_encoder", "text", False),
    "unlearndiffatk": ("model", "text", False),
    "p4d": ("model", "text", False),
    "reseed": ("queries", "text", True),
}
FILES = ("leaderboard.csv", "leaderboard.md", "leaderboard.html", "leaderboard_cells.csv")
TABLES = ("methods", "paired", "attacks", "cost")


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
        return hashlib.sha256(str(self.path).encode()).hexdigest()[:20]


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


def write_run(root: Path, n: int, cell: Cell) -> None:
    """One run's folder: its tables, then its record."""
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
        "seed": cell.seed,
        "concept": {"kind": "object"},
        "method": words,
        "attack": {"queries": 9},
        "more": words,
    }
    record = {
        "key": cell.key, "identity": {"names": names, "config": config}, "model_hash": "m", "config": config,
        "attack": {"seconds": 10.0}, "flags": [{"flag": "few_prompts", "message": "few"}] if cell.seed else [],
        "files": {name: file_hash(folder / name) for name in ("scores.parquet", "summary.csv")},
        "steps": {"erase": {"bytes": 10**6, "cost": {"seconds": 3.5, "peak_rss_mb": 1200.0, "unet_evaluations": 0}}},
    }  # fmt: skip
    (folder / "run.json").write_text(sealed(record), encoding="utf-8")


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


def write(root: Path, n_cells: int, n_prompts: int) -> None:
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        pool.map(partial(write_run, root, n_prompts), cells(n_cells), chunksize=10)


class Spent(NamedTuple):
    """Of a process: seconds, peak memory of its largest process in MB, and its output."""

    wall: float
    cpu: float
    memory: float
    said: str


MEASURE = """
import resource, subprocess, sys, time
started = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=sys.stdout)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss, done.returncode, file=sys.stderr)
"""


def measured(code: Path, words: Sequence[str]) -> Spent:
    """``python -m WORDS`` of a checkout, in a child of a fresh process, so that peaks of others do not count.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-c", MEASURE, sys.executable, "-m", *words]
    env = {**os.environ, "PYTHONPATH": str(code)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=code, env=env, check=True)
    wall, cpu, memory, status = done.stderr.splitlines()[-1].split()
    if status != "0":
        raise RuntimeError(f"{' '.join(words)} failed: {done.stderr}")
    return Spent(float(wall), float(cpu), float(memory) / 1024, done.stdout)


def commands(root: Path, entries: Path) -> dict[str, list[str]]:
    """What is measured: name -> words; a table of one concept and seed is what a paper prints."""
    results, few = f"results={root}", ["concept=concept0", "seed=0"]
    found = {f"{name} --help": [f"erasebench.{name}", "--help"] for name in ("leaderboard", "paper", "verify")}
    found["leaderboard"] = ["erasebench.leaderboard", results]
    for name in TABLES:
        found[f"paper table={name}"] = ["erasebench.paper", f"table={name}", results]
        found[f"paper table={name} {' '.join(few)}"] = [*found[f"paper table={name}"], *few]
    del found["paper table=paired"]  # of all seeds it is refused
    found["submit run="] = [
        "erasebench.submit",
        f"run={root / Cell('concept0', 'none', 'none', 0).path}",
        f"out={entries}",
    ]
    found["verify ENTRY"] = ["erasebench.verify", str(entries / "m-concept0-none-none.json"), results]
    return found


def outcome(code: Path, words: Sequence[str], root: Path) -> tuple[Spent, str]:
    """What a command took, and a digest of what it printed and of the leaderboard's files."""
    spent = measured(code, words)
    wrote = words[0] == "erasebench.leaderboard" and words[1] != "--help"
    written = [(root / name).read_bytes() for name in FILES if wrote]
    said = spent.said if words[-1] != "--help" else ""
    return spent, hashlib.sha256(b"".join([said.encode(), *written])).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--before", metavar="COMMIT", help="measure this commit too, and compare the outputs")
    parser.add_argument("--keep", type=Path, help="folder for the tables, kept afterwards")
    parser.add_argument("--only", default="", help="measure the commands whose name begins so")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = (args.keep or Path(temporary) / "results").resolve()
        if not (root / "runs").is_dir():
            write(root, args.cells, args.prompts)
        if args.before:
            before = Path(temporary) / "before"
            before.mkdir()
            archive = subprocess.run(["git", "archive", args.before], cwd=ROOT, capture_output=True, check=True).stdout
            subprocess.run(["tar", "x", "-C", before], input=archive, check=True)
        tables = sorted(root.glob("runs/**/scores.parquet"))
        count = sum(pq.read_metadata(path).num_rows for path in tables)
        print(f"{platform.machine()}, {os.cpu_count()} cores, {len(tables):,} cells, {count:,} rows")
        for name, words in commands(root, Path(temporary) / "entries").items():
            if name.startswith((args.only, "submit")):  # which writes the entry that is verified
                told, same = "", ""
                if args.before:
                    old, expected = outcome(before, words, root)
                    told = f"   before {old.wall:7.1f} s {old.cpu:7.1f} CPU s {old.memory:7,.0f} MB"
                now, found = outcome(ROOT, words, root)
                if args.before:
                    same = "   same" if found == expected else "   NOT THE SAME"
                print(f"{name:50} {now.wall:7.1f} s {now.cpu:7.1f} CPU s {now.memory:7,.0f} MB{told}{same}", flush=True)


if __name__ == "__main__":
    main()
