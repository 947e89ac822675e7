"""How long the leaderboard takes: synthetic tables of many cells, ours beside a group for each row as pandas makes it.

    python -m benchmarks.tables [--cells 200] [--prompts 50] [--naive-cells 20] [--keep FOLDER]

Every cell has the rows of the six evaluators of a run: two sides, five prompt groups of so many prompts, NudeNet's
counts, whole-group metrics. Ours is the command, as a process of its own: CPU and wall seconds, peak memory. The naive
way groups the rows by all keys, a pandas frame for each, on fewer cells; its seconds grow with their number. Both must
give the same numbers.
"""

from __future__ import annotations

import argparse
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from erasebench.report import clusters
from erasebench.report.intervals import exact_paired, mcnemar, wilson
from erasebench.report.tables import KEYS, read_results, scores_frame, summarise, write_scores
from erasebench.types import Headline, Score
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


def rows(prompts: int, rng: np.random.Generator) -> Iterator[Score]:
    """Scores of one side of a run."""
    for group in ("target", "paraphrase", "attack", "neighbour", "unrelated"):
        erased = group in ("target", "paraphrase", "attack")
        for i in range(prompts):
            place = {"group": group, "prompt_id": f"{group}-{i:04d}", "higher_is_better": not erased}
            place["relation"] = RELATIONS[i % 3] if group == "neighbour" else ""
            rate, score = float(rng.random() < 0.3), float(rng.random())
            name = "concept_present" if erased else "accuracy"
            yield Score(evaluator="classifier", metric=f"{name}.judge.top1", value=rate, judge="judge", **place)
            yield Score(evaluator="classifier", metric="probability.judge", value=score, judge="judge", **place)
            if group != "attack":
                yield Score(evaluator="clip_score", metric="clip_score.net", value=30 * score, **place)
            if group in ("target", "attack"):
                for t in ("count@0.25", "count@0.6", "any@0.25", "any@0.6", "FEET_EXPOSED@0.25"):
                    yield Score(evaluator="nudenet", metric=f"nudenet.net.{t}", value=rate, judge="nudenet", **place)
            if group == "attack":
                for metric in ("pre_asr", "asr", "asr_on_safe"):
                    yield Score(evaluator="asr", metric=f"{metric}.judge", value=rate, judge="judge", **place)
    for evaluator, metric, group in (("fid", "fid.net.vs_real", "kept"), ("spillover", "hm.judge", "all")):
        value = 100 * float(rng.random())
        yield Score(evaluator=evaluator, metric=metric, group=group, value=value, low=value - 1, high=value + 1)


def write(root: Path, cells: int, prompts: int) -> None:
    versions = dict.fromkeys(HEADLINES, 1)
    for i in range(cells):
        rng = np.random.default_rng(i)
        names = {"model": "m", "concept": f"c{i // 20}", "method": f"method{i % 20 // 4}", "recipe": "paper"}
        names |= {"attack": f"attack{i % 4}", "budget": "paper", "settings": "", "access": "model", "strength": "text"}
        facts = {"run": f"{i:064d}", "cell": {**names, "control": False}, "versions": versions, "headlines": HEADLINES}
        sides = [scores_frame(rows(prompts, rng), side=side, **facts) for side in ("erased", "original")]
        write_scores(root / "runs" / f"{i:04d}" / "scores.parquet", pd.concat(sides))


def naive(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean, interval, difference of every group of rows, as one would write it down."""
    related = scores[(scores.relation != "") & scores.prompt_id.notna()]
    scores = pd.concat([scores, related.assign(relation="")])
    rates = scores.groupby(["evaluator", "metric"]).value.agg(lambda v: v.isin((0.0, 1.0)).all())
    out = []
    for keys, part in scores.groupby(list(KEYS), sort=True):
        erased, original = part[part.side == "erased"], part[part.side == "original"]
        row = {**dict(zip(KEYS, keys, strict=True)), "mean": erased.value.mean(), "base": original.value.mean()}
        if part.prompt_id.notna().all():
            pairs = erased.merge(original, on=["run", "prompt_id"], suffixes=("", "_original"))
            a, b = pairs.value.to_numpy(), pairs.value_original.to_numpy()
            if rates[row["evaluator"], row["metric"]]:
                row["low"], row["high"] = wilson(int(erased.value.sum()), len(erased))
                wilson(int(original.value.sum()), len(original))
                gained, lost = int((a * (1 - b)).sum()), int(((1 - a) * b).sum())
                both = int((a * b).sum())
                exact_paired(both, gained, lost, len(a) - both - gained - lost)
                mcnemar(gained, lost)
            else:
                row["low"], row["high"] = clusters.mean(erased.value.to_numpy(), range(len(erased)))
                clusters.mean(original.value.to_numpy(), range(len(original)))
                clusters.mean(a - b, range(len(a)))
        out.append(row)
    return pd.DataFrame(out)


def child_seconds(command: Sequence[str]) -> tuple[float, float, float]:
    """CPU seconds, wall seconds and peak memory in MB of a process."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, wall, after.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--naive-cells", type=int, default=20)
    parser.add_argument("--keep", type=Path, help="folder for the tables, kept afterwards")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = args.keep or Path(temporary)
        write(root, args.cells, args.prompts)
        cpu, wall, memory = child_seconds([sys.executable, "-m", "erasebench.leaderboard", f"results={root}"])
        helped = child_seconds([sys.executable, "-m", "erasebench.leaderboard", "--help"])
        scores = read_results(root)
    few = scores[scores.run.isin(sorted(set(scores.run))[: args.naive_cells])]
    started = time.process_time()
    summary = summarise(few)
    ours = time.process_time() - started
    started = time.process_time()
    expected = naive(few)
    theirs = time.process_time() - started
    for name in ("mean", "low", "base"):
        known = expected[name].notna().to_numpy()
        assert np.allclose(summary[name].to_numpy()[known], expected[name].to_numpy()[known]), name
    print(f"{platform.machine()}, {args.cells} cells, {len(scores):,} rows of {args.prompts} prompts")
    print(f"leaderboard, the command      {cpu:7.1f} CPU s {wall:7.1f} s   peak {memory:,.0f} MB")
    print(f"leaderboard --help            {helped[0]:7.1f} CPU s {helped[1]:7.1f} s")
    print(
        f"every summary of {args.naive_cells} cells      {ours:7.1f} CPU s, a frame for each group {theirs:.1f} CPU s"
    )


if __name__ == "__main__":
    main()
