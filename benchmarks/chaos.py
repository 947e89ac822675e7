"""What is left of runs that are killed, starved of disk, crowded or damaged: the same tables, or a line that says so.

    python -m benchmarks.chaos [kills=100 crashes=200 disks=30 crowds=4 flips=5000 reruns=80 memory=2 seed=0]

A small cell of the embedded model: a training that keeps its progress at every step, a genetic search, images, scores.
A parent has loaded the model; what is disturbed is a child of it, and the same command is then given again. It ends the
"same" if tables and picture are those of an undisturbed run; else changed, stuck, with a traceback, or with exit 2, and
so does this.
"""

import builtins
import contextlib
import ctypes
import io
import logging
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from erasebench import conf_folder, preflight
from erasebench.command import launch
from erasebench.command.composing import as_job, composed, session
from erasebench.command.typed import Typed
from erasebench.report import printing, runs
from erasebench.store import cache, claims, images, sources, workspace
from evaluators import nudenet
from methods import fine_tuning

SMALL = (
    "attack=ringabell", "attack.generations=3", "attack.population=8", "attack.sources=2", "evaluator=[classifier,asr]",
    "prompts.n={target:4,paraphrase:0,neighbour:0,unrelated:2,coco:0}", "model.steps=2", "model.batch_size=4",
)  # fmt: skip
CELL = ("method=esd_x", "method.iterations=4", "method.batch_size=2", *SMALL)
OTHER = ("method=uce", *SMALL)  # with the same search and the same images of the original model
FORK = multiprocessing.get_context("fork")
LIMIT = 100  # seconds after which a child is stuck; a claim that nobody touches counts for longer
DIED, NO_MOUNT, CLONE_NEWNS, CLONE_NEWUSER = 9, 77, 0x20000, 0x10000000
WITHIN = (60, 105, 150, 285)  # operations on files, one within each of erase, attack, draw and score
reference: dict[str, Any] = {}  # run -> content, undisturbed
configs: dict[tuple[str, ...], Any] = {}  # composed, by cell


def run_cell(root: Path, cell: tuple[str, ...] = CELL) -> int:
    """A cell as the command runs it once it is composed; the command's exit code."""
    typed = Typed(cell, (conf_folder(),))
    launch._single.clear()
    with session(typed.places):
        cfg = configs.setdefault(cell, configs.get(cell) or composed(typed, typed.overrides)).copy()
        cfg.results = str(root)
        with as_job(cfg) as part:
            launch.cell(part)
    return launch.CODES[launch._single[0].status]


def child(log: Path, work: Callable[..., int], *arguments: Any) -> Any:
    """A started child, which ends with what ``work`` returns; what it says goes into a file."""

    def quiet() -> None:
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(target, 1), os.dup2(target, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        os._exit(work(*arguments))

    job = FORK.Process(target=quiet)
    job.start()
    return job


def ended(job: Any, limit: float = LIMIT) -> int | None:
    """Exit code of a child; None if it had to be killed."""
    job.join(limit)
    job.kill()
    job.join()
    return int(job.exitcode) if job.exitcode >= 0 else None


@contextlib.contextmanager
def scratch() -> Iterator[tuple[Path, Path]]:
    """A results folder that is not there yet, and a log."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        (Path(folder) / "log").touch()
        yield Path(folder) / "results", Path(folder) / "log"


def content(root: Path) -> dict[str, Any]:
    """Run -> the bytes of its tables, which hold the run's key, of its picture, and of what else it says it has."""
    found = {}
    for run in [runs.recorded(path) for path in root.glob("runs/**/run.json")]:
        paths = [run.folder / name for name in sorted(run.record["files"])]
        found[str(run.folder.relative_to(root))] = tuple((p.name, p.exists() and p.read_bytes()) for p in paths)
    return found


def verdict(root: Path, log: Path, job: Any = None) -> str:
    """How a child ended, without one the cell given again: ``same``, or what is wrong."""
    code = ended(job or child(log, run_cell, root))
    if code is None or "Traceback" in log.read_text(errors="replace"):
        return "stuck" if code is None else "traceback"
    found = content(root) if code == 0 else {}
    return f"exit {code}" if code else "same" if found and found.items() <= reference.items() else "changed"


def disturbed(n: int, most: int, disturb: Callable[[Path, Path], str]) -> Counter[str]:
    """Runs that are disturbed so many times, or until one ends before it, then once not; n disturbances in all."""
    found = Counter(disturbed=0)
    while found["disturbed"] < n:
        with scratch() as (root, log):
            for _ in range(most):
                if not (where := disturb(root, log)):
                    break
                found.update(["disturbed", where])
            found[verdict(root, log)] += 1
    return found


def kills(n: int, rng: random.Random) -> Counter[str]:
    """SIGKILL at random moments."""

    def kill(root: Path, log: Path) -> str:
        start = log.stat().st_size
        if ended(child(log, run_cell, root), rng.uniform(0, 0.7 * reference["seconds"])) is not None:
            return ""
        done = re.findall(r"^(load|erase|attack|draw|score): [0-9]", log.read_text()[start:], re.M)
        return "in " + ("load", "erase", "attack", "draw", "score", "record")[len(done)]

    return disturbed(n, 6, kill)


def dying(root: Path, at: int = 0) -> int:
    """The cell in a process that ends just before (odd) or just after (even) an operation on files of its results.

    If it ends before an fsync, the file loses its second half, as by a power cut.
    """
    count = 0

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal count
            mode = (*given[1:], named.get("mode", "r"))[0] if name == "open" else "w"
            inside = name == "fsync" or "dir_fd" in named or str(root) in str(given[0])
            if not inside or not set(str(mode)) & set("wxa+"):
                return real(*given, **named)
            count += 2
            if count - 1 == at and name == "fsync" and os.path.isfile(file := f"/proc/self/fd/{given[0]}"):
                os.truncate(file, os.path.getsize(file) // 2)
            result = real(*given, **named) if count - 1 != at else None
            if at in (count - 1, count):
                os.write(2, f"died at {name}\n".encode())
                os._exit(DIED)
            return result

        return call

    for name in ("rename", "replace", "link", "unlink", "mkdir", "rmdir", "fsync"):
        setattr(os, name, watched(name, getattr(os, name)))
    io.open = builtins.open = watched("open", open)
    code = run_cell(root)
    print(f"{count} points")
    return code


def crashes(n: int, rng: random.Random) -> Counter[str]:
    """The process ends at a file operation."""
    with scratch() as (root, log):
        ended(child(log, dying, root))
        points = int(re.findall(r"(\d+) points", log.read_text())[0])

    def crash(root: Path, log: Path) -> str:
        died = ended(child(log, dying, root, rng.randint(1, points // 3))) == DIED
        return re.findall("died (at .*)", log.read_text())[-1] if died else ""

    return disturbed(n, 8, crash) + Counter({"points of a run": points})


def on_disk(folder: Path, kilobytes: int, log: Path) -> int:
    """The command on a disk of so many kB, then with room; tables and how the first ended go into ``folder``."""
    libc, user, group, disk = ctypes.CDLL(None), os.getuid(), os.getgid(), folder / "disk"
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        return NO_MOUNT
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path(f"/proc/self/{name}").write_text(text)
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(disk)]).returncode:
        return NO_MOUNT
    preflight.LEAST = 0  # it would not even begin
    first = launch.launch([*CELL, f"results={disk / 'results'}"])
    lines = log.read_text(errors="replace").count("error: ")
    subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
    second = launch.launch([*CELL, f"results={disk / 'results'}"])
    shutil.copytree(disk / "results" / "runs", folder / "results" / "runs")
    print("first:", {(0, 0): "had room", (1, 1): "one line"}.get((first, lines), f"exit {first} and {lines} lines"))
    return second


def disks(n: int, rng: random.Random) -> Counter[str]:
    """Disks from 8 kB to 16 MB: the run ends, or says in one line what it lacks; then there is room."""
    found: Counter[str] = Counter()
    for i in range(n):
        with scratch() as (root, log):
            job = child(log, on_disk, root.parent, round(8 * 2 ** (11 * (i + rng.random()) / n)), log)
            job.join(LIMIT)
            if job.exitcode == NO_MOUNT:
                return Counter({"left out: no tmpfs can be mounted here": 1})
            found.update([verdict(root, log, job), *re.findall("^first: (.*)$", log.read_text(), re.M)])
    return found


def crowds(n: int, rng: random.Random) -> Counter[str]:
    """Four, eight, four ... processes at once on two cells, which have their search in common."""
    found: Counter[str] = Counter()
    for several in [4, 8] * (n // 2) + [4] * (n % 2):
        with scratch() as (root, log):
            jobs = [child(log, run_cell, root, cell) for cell in (CELL, OTHER) * (several // 2)]
            [job.join(LIMIT) for job in jobs]
            found.update([f"{several} at once", *(verdict(root, log, job) for job in jobs)])
            found["made twice"] += len(re.findall(r"^(?:erase|attack): [0-9. mins]+$", log.read_text(), re.M)) - 3
            found["left over"] += len(list((root / "cache").rglob(".*")))
    return found


def chosen(n: int, rng: random.Random) -> Iterator[tuple[str, Path, Path]]:
    """Kind, root and file below it: n stored files, of each kind in turn, of a finished run and of crashed ones."""
    with scratch() as (base, log):
        ended(child(log, run_cell, base / "done"))
        boxes = {f"{i}": [{"class": "A", "score": 0.61, "box": [1, 2, 3, 4]}] * (i % 3) for i in range(30)}
        nudenet.write_detections(base / "done/cache/images/some/detections", "d", boxes)
        for at in WITHIN:
            ended(child(log, dying, base / f"{at}", at))
        kinds: dict[str, list[tuple[Path, Path]]] = {}
        for path in sorted(p for p in base.rglob("*") if p.is_file() and p.stat().st_size):
            part = path.relative_to(root := base / path.relative_to(base).parts[0])
            where = part.parts[1].partition("-")[0] if part.parts[0] == "cache" else "runs"
            what = f"{where} {re.sub('-.*', '', part.stem)}{part.suffix}"
            hidden = next((f"{word} file" for word in ("claim", "tmp") if f".{word}" in str(part)), what)
            kinds.setdefault(hidden, []).append((root, part))
        for kind in ([*kinds] * n)[:n]:
            yield kind, *rng.choice(kinds[kind])


def told(root: Path, part: Path, digests: tuple[str, ...]) -> Any:
    """What the reader of a file takes from it and those beside it; None or an error where damage is noticed."""
    path, folder = root / part, (root / part).parent
    if "/." in str(part):  # claims and half-written files decide nothing, but looking at them must not fail
        return claims.Watch().held(path) in (True, False) and isinstance(claims.holder_of(path), dict)
    if part.parts[0] == "runs":
        record = runs.recorded(folder / "run.json").record
        read = {k: record[k] for k in ("key", "identity", "config", "flags", "files", "steps", "stored")}
        return None if runs.damaged(folder, record["files"]) else read
    if folder.name == "detections":
        return nudenet.read_detections(folder, "d") or None
    if part.parts[1] == "images":
        images._digests.cache_clear()
        found = images.read_images(folder, digests)
        return {d: (image and image.tobytes(), status) for d, (image, status) in found.items()}
    if part.parts[1] == "work":
        tensors, values = workspace.Workspace(folder).load(path.stem) or ({}, None)
        return values and (values, {k: v.numpy().tobytes() for k, v in tensors.items()})
    if path.name == "fingerprints.json":
        return sources.remembered(path) or None
    return (cache.read_manifest(root.joinpath(*part.parts[:3])) or {}).get("files")


def flipped(data: bytes, rng: random.Random) -> bytes:
    at, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
    return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]


def flips(n: int, rng: random.Random) -> Counter[str]:
    """One bit of a file, read by what reads it; then the file is as it was."""
    found, known, kinds = Counter[str](), {}, set()
    for kind, root, part in chosen(n, rng):
        path, now = root / part, None
        if path not in known:
            digests = tuple(images._index(path.parent))
            known[path] = path.read_bytes(), digests, told(root, part, digests)
        whole, digests, before = known[path]
        path.write_bytes(flipped(whole, rng))
        with contextlib.suppress(OSError, ValueError, KeyError):
            now = told(root, part, digests)
        path.write_bytes(whole)
        found["noticed" if now is None else "same" if now == before else f"changed: {kind}"] += 1
        kinds.add(kind)
    return found + Counter({"kinds of files": len(kinds)})


def reruns(n: int, rng: random.Random) -> Counter[str]:
    """One bit of a file in a copy; then the same command, twice if it asks for that."""
    found, before, claims.PATIENCE = Counter[str](), claims.PATIENCE, 2.0  # for a claim that cannot be read
    for kind, origin, part in chosen(n, rng):
        with scratch() as (root, log):
            shutil.copytree(origin, root)
            (root / part).write_bytes(flipped((root / part).read_bytes(), rng))
            if part.parts[0] != "runs":
                shutil.rmtree(root / "runs", ignore_errors=True)  # else the store would not be looked at
            end = verdict(root, log)
            if end == "exit 2" and "run the same command again" in log.read_text():
                found["asked for it"] += 1
                end = verdict(root, log)
            found[end if end == "same" else f"{end}: {kind}"] += 1
    claims.PATIENCE = before
    return found


def memory(n: int, rng: random.Random) -> Counter[str]:
    """MB that a process holds after each of n rounds of four cells."""

    def sweep(root: Path) -> int:
        for i in range(4 * n):
            run_cell(root, (f"method={('none', 'uce', 'rece', 'esd_x')[i % 4]}", f"seed={i // 4}", *SMALL))
            print(re.findall("VmRSS:.*", Path("/proc/self/status").read_text())[0])
        return 0

    with scratch() as (root, log):
        ended(child(log, sweep, root), 4 * LIMIT)
        held = re.findall(r"VmRSS:\s*(\d+)", log.read_text())
    return Counter({f"MB after cell {i}": int(kb) // 1024 for i, kb in enumerate(held, 1)})


WORK = {kills: 100, crashes: 200, disks: 30, crowds: 4, flips: 5000, reruns: 80, memory: 2}  # trials of each


def experiments(seed: int, numbers: dict[str, int]) -> Iterator[tuple[str, Counter[str], float]]:
    """Name, counts and seconds of each experiment that has a number of trials; each has random numbers of its own."""
    torch.set_num_threads(1)
    fine_tuning.SAVE_SECONDS, fine_tuning.SAVE_SHARE = 0.0, 1e9  # progress is kept at every step
    with scratch() as (root, log):
        for cell in (CELL, OTHER):  # the model and the judges are in the parent from here on
            with contextlib.redirect_stdout(sys.stderr):
                run_cell(root / "first", cell)
        for cell in (OTHER, CELL):
            started = time.monotonic()
            assert ended(child(log, run_cell, root / cell[0], cell)) == 0, log.read_text()
            reference.update(content(root / cell[0]), seconds=time.monotonic() - started)
    for work in WORK:
        if n := numbers.get(work.__name__):
            began = time.monotonic()
            found = work(n, random.Random(f"{seed} {work.__name__}"))
            yield work.__name__, +found, time.monotonic() - began


def main() -> int:
    given = {work.__name__: n for work, n in WORK.items()}
    given |= {name: int(n) for name, n in (argument.split("=") for argument in sys.argv[1:])}
    logging.disable(logging.WARNING)
    lines, wrong = [["what", "counts", "seconds"]], ("changed", "stuck", "traceback", "exit", "made twice", "left over")
    for name, found, seconds in experiments(given.pop("seed", 0), given):
        lines.append([name, ", ".join(f"{k} {v}" for k, v in sorted(found.items())), f"{seconds:.0f}"])
        print(*lines[-1], sep=" | ", file=sys.stderr)
    print(printing.as_markdown(lines))
    return max(any(found.startswith(wrong) for found in line[1].split(", ")) for line in lines)


if __name__ == "__main__":
    sys.exit(main())
