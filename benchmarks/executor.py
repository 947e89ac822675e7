"""What it costs to spread a run over workers: one process, one worker, two workers, two of which one is killed.

    python -m benchmarks.executor [images=128 steps=10 rounds=2]

One cell of the embedded model, drawn by both models and judged; every process has one thread of torch. "whole" is the
command from its start; "work" begins when a process has loaded torch and is given its first piece (of one process: when
torch is loaded), so it leaves out what Ray and processes take to start, once a command. "CPU" is what the command's
process and its workers compute for within that time (Linux), without a killed one; on a machine that others use it is
the number to read. "load" is what the machine was doing before each command: the mean number of processes that would
run. The least of so many rounds, and the largest load.
Every table must be that of one process, to the byte; else this ends with 1.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from erasebench.executors import board
from erasebench.report.printing import as_markdown

WAYS = {"one process": "", "1 worker": "1", "2 workers": "2", "2 workers, one killed": "2"}
ONE = """
import os, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import erasebench
begun, mine = time.monotonic(), time.process_time()
before, after = {}, {}

def cpu(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

if sys.argv[1]:
    from erasebench.executors import board, cluster
    board.EVERY = 0.05
    give, tell = cluster._Crew._give, board.Board.tell
    def begin(self):
        global begun, mine
        if not before and self.idle:
            begun, mine = time.monotonic(), time.process_time()
        for member in self.idle:
            before.setdefault(member.about["pid"], cpu(member.about["pid"]))
        give(self)
    def end(self, state, now=False):
        if now:
            after.update({w["pid"]: cpu(w["pid"]) for w in state["workers"]})
        tell(self, state, now)
    cluster._Crew._give, board.Board.tell = begin, end
erasebench.run(*sys.argv[2:])
print(time.monotonic() - begun, time.process_time() - mine + sum(after[pid] - before[pid] for pid in after))
"""


def cell(images: int, steps: int) -> list[str]:
    n = f"{{target:{images // 4},paraphrase:0,neighbour:{images // 4},unrelated:{images // 2},coco:0}}"
    return ["model=emoji", "method=uce", "evaluator=[classifier,asr]", f"prompts.n={n}", f"model.steps={steps}"]


def kill(root: Path, killed: list[int]) -> None:
    """SIGKILL for a worker that draws, once a quarter of the images is there."""
    until = time.monotonic() + 600
    while time.monotonic() < until:
        for _, state in board.read(root):
            busy = [w["pid"] for w in state["workers"] if w["doing"].startswith("draw")]
            if busy and state["images"][0] > state["images"][1] / 4 > 0:
                os.kill(busy[0], signal.SIGKILL)
                killed.append(busy[0])
                return
        time.sleep(0.05)


def timed(way: str, root: Path, given: list[str]) -> tuple[float, float, float, dict[str, bytes]]:
    """Seconds of the whole command, of its work and of its work's CPU, and the tables it wrote."""
    workers, killed = WAYS[way], list[int]()
    more = ["executor=ray", f"executor.workers={workers}"] if workers else []
    thread = threading.Thread(target=kill, args=(root, killed))
    if "killed" in way:
        thread.start()
    started = time.monotonic()
    command = [sys.executable, "-c", ONE, workers, *given, *more, f"results={root}"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    whole = time.monotonic() - started
    if "killed" in way:
        thread.join()
    if done.returncode or ("killed" in way) != bool(killed):
        raise RuntimeError(f"{way}: {done.stderr[-2000:]}")
    tables = {p.name: p.read_bytes() for p in sorted((root / "runs").rglob("*")) if p.suffix in (".parquet", ".csv")}
    work, cpu = map(float, done.stdout.split()[-2:])
    return whole, work, cpu, tables


def main() -> int:
    given = {"images": 128, "steps": 10, "rounds": 2}
    given |= {name: int(n) for name, n in (argument.split("=") for argument in sys.argv[1:])}
    overrides = cell(given["images"], given["steps"])
    found: dict[str, list[tuple[float, ...]]] = {way: [] for way in WAYS}
    loads = dict.fromkeys(WAYS, 0.0)
    tables: list[dict[str, bytes]] = []
    for _ in range(given["rounds"]):
        for way in WAYS:
            loads[way] = max(loads[way], os.getloadavg()[0])
            with tempfile.TemporaryDirectory(prefix="executor-") as folder:
                *seconds, written = timed(way, Path(folder), overrides)
            found[way].append(tuple(seconds))
            tables.append(written)
            print(way, *(f"{n:.1f} s" for n in seconds), file=sys.stderr)
    same = all(written and written == tables[0] for written in tables)
    lines = [["way", "whole, s", "work, s", "of one process's", "CPU, s", "of one process's", "load"]]
    least = {way: [min(column) for column in zip(*times, strict=True)] for way, times in found.items()}
    for way, (whole, work, cpu) in least.items():
        shares = [f"{100 * n / one:.0f} %" for n, one in zip((work, cpu), least["one process"][1:], strict=True)]
        lines.append([way, f"{whole:.1f}", f"{work:.1f}", shares[0], f"{cpu:.1f}", shares[1], f"{loads[way]:.0f}"])
    print(as_markdown(lines))
    print(f"tables {'the same' if same else 'DIFFER'} in {len(tables)} runs")
    return not same


if __name__ == "__main__":
    sys.exit(main())
