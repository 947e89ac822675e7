"""How long leaderboard, paper, verify and report take, and how much memory, with many cells and prompts.

    python -m benchmarks.tables [--cells 1000] [--prompts 1000] [--images 10000] [--before COMMIT] [--keep FOLDER]

The results are those of ``benchmarks.synthetic``. Every command is a process of its own: wall and CPU seconds of it
and its children, peak memory of its largest process. Before each command finished tables (``cache/tables``) are
deleted, but for those marked ``again``. What runs keep when they end stays; the first line is of making it where an
older program ran. ``--before`` measures a commit on the same tables and compares what both wrote and printed byte by
byte. A folder of ``--keep`` that has runs is measured as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from benchmarks.synthetic import Cell, cells, write, write_images
from erasebench.report import kept

ROOT = Path(__file__).parent.parent
FILES = ("leaderboard.csv", "leaderboard.md", "leaderboard.html", "leaderboard_cells.csv")
TABLES = ("methods", "cost", "attacks", "attack_matrix", "asr", "objects", "coco", "paired")  # and layouts
PAIRED = "paper table=paired"


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
    """What is measured: name -> words; methods are compared for one concept and seed, as a paper prints them."""
    results = f"results={root}"
    found = {f"{name} --help": [f"erasebench.{name}", "--help"] for name in ("leaderboard", "paper", "verify")}
    asked = {"leaderboard": ["erasebench.leaderboard", results]}
    asked |= {f"paper table={name}": ["erasebench.paper", f"table={name}", results] for name in TABLES}
    asked[f"{PAIRED} concept=concept0 seed=0"] = [*asked.pop(PAIRED), "concept=concept0", "seed=0"]
    asked["report"] = ["erasebench.report", results, f"out={entries.parent / 'report'}"]
    for name, words in asked.items():
        found |= {name: words, f"{name}, again": words}
    run = root / Cell("concept0", "none", "none", 0).path
    found["submit run="] = ["erasebench.submit", f"run={run}", f"out={entries}"]
    found["verify ENTRY"] = ["erasebench.verify", str(entries / "m-concept0-none-none.json"), results]
    return found


def outcome(code: Path, words: Sequence[str], root: Path, again: bool) -> tuple[Spent, str]:
    """What a command took, and a digest of what it printed and of the leaderboard's files."""
    if not again:
        for path in (root / "cache" / "tables").glob(f"*{kept.END}"):
            path.unlink()
    spent = measured(code, words)
    wrote = words[0] == "erasebench.leaderboard" and words[1] != "--help"
    written = [(root / name).read_bytes() for name in FILES if wrote]
    said = spent.said if words[-1] != "--help" else ""
    return spent, hashlib.sha256(b"".join([said.encode(), *written])).hexdigest()


def _line(spent: Spent) -> str:
    return f"{spent.wall:7.1f} s {spent.cpu:7.1f} CPU s {spent.memory:7,.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--images", type=int, default=10_000, help="pictures of the first cells")
    parser.add_argument("--before", metavar="COMMIT", help="measure this commit too, and compare the outputs")
    parser.add_argument("--keep", type=Path, help="folder for the tables, kept afterwards")
    parser.add_argument("--only", default="", help="measure the commands whose name begins so")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = (args.keep or Path(temporary) / "results").resolve()
        if not (root / "runs").is_dir():
            write(root, args.cells, args.prompts)
            write_images(root, args.prompts, cells(args.cells), args.images)
        if args.before:
            before = Path(temporary) / "before"
            before.mkdir()
            archive = subprocess.run(["git", "archive", args.before], cwd=ROOT, capture_output=True, check=True).stdout
            subprocess.run(["tar", "x", "-C", before], input=archive, check=True)
        tables = sorted(root.glob("runs/**/scores.parquet"))
        count = sum(pq.read_metadata(path).num_rows for path in tables)
        print(f"{platform.machine()}, {os.cpu_count()} cores, {len(tables):,} cells, {count:,} rows")
        if args.only != "submit":
            words = ["erasebench.leaderboard", f"results={root}"]
            print(f"{'leaderboard, with what runs did not keep':50} {_line(measured(ROOT, words))}", flush=True)
        for name, words in commands(root, Path(temporary) / "entries").items():
            if name.startswith((args.only, "submit")):  # which writes the entry that is verified
                told, same, again = "", "", name.endswith("again")
                if args.before:
                    old, expected = outcome(before, words, root, again)
                    told = f"   before {_line(old)}"
                now, found = outcome(ROOT, words, root, again)
                if args.before:
                    same = "   same" if found == expected else "   NOT THE SAME"
                print(f"{name:50} {_line(now)}{told}{same}", flush=True)


if __name__ == "__main__":
    main()
