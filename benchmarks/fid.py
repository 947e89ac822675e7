"""Memory and time of FID's statistics at Inception's width: in blocks from disk, beside arrays in memory.

    python -m benchmarks.fid [--images 1000 10000 30000] [--width 2048]

Features are random numbers; what is measured is the distance, and in our way every image's influence on it, each in a
process of its own. Memory is what the process holds itself (RssAnon, sampled), over what it held before.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from erasebench.report.printing import as_markdown
from evaluators.fid import BLOCK, frechet_distance, influence, moments

SEED = 0


def held() -> float:
    """MB of memory that no file stands behind."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return float(status.split("RssAnon:")[1].split()[0]) / 1024


def rows(n: int, width: int) -> np.ndarray:
    """Features of n images, some thousand at a time, on disk."""
    draw = np.random.default_rng(SEED)
    scale = np.arange(1, width + 1) ** -0.5
    with tempfile.TemporaryFile() as file:
        for start in range(0, n, BLOCK):
            block = draw.standard_normal((min(BLOCK, n - start), width), dtype=np.float32)
            file.write((block * scale).astype(np.float32).tobytes())
        file.flush()
        return np.memmap(file, np.float32, "r", shape=(n, width))


def ours(features: np.ndarray, other: tuple[np.ndarray, np.ndarray]) -> float:
    """The distance; its error needs the influences, so they are made too."""
    influence(features, *other)
    return frechet_distance(*moments(features), *other)


def naive(features: np.ndarray, other: tuple[np.ndarray, np.ndarray]) -> float:
    """As packages do it: everything in float64 at once; no error."""
    whole = np.array(features, dtype=np.float64)
    return frechet_distance(whole.mean(axis=0), np.cov(whole, rowvar=False), *other)


def measure(way: str, n: int, width: int) -> None:
    features = rows(n, width)
    other = np.zeros(width), np.diag(1.0 / np.arange(1, width + 1))
    before, most, done = held(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            most[0] = max(most[0], held())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    value = {"ours": ours, "naive": naive}[way](features, other)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    print(value, seconds, most[0] - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10000, 30000])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--way", choices=("ours", "naive"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        measure(given.way, given.images[0], given.width)
        return
    lines = [["images", "way", "distance", "seconds", "MB"]]
    for n in given.images:
        for way in ("ours", "naive"):
            command = [
                sys.executable,
                "-m",
                "benchmarks.fid",
                "--way",
                way,
                "--images",
                str(n),
                "--width",
                str(given.width),
            ]
            value, seconds, memory = map(float, subprocess.check_output(command, text=True).split())
            what = "blocks, with influences" if way == "ours" else "all in float64, no error"
            lines.append([str(n), what, f"{value:.6f}", f"{seconds:.1f}", f"{memory:.0f}"])
    print(as_markdown(lines))


if __name__ == "__main__":
    main()
