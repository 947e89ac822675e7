"""What lies in the store of a results folder: how much, of which step, whole or damaged, needed by a run or by none."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from erasebench.limits import read_parquet
from erasebench.store.cache import read_manifest
from erasebench.store.claims import Watch
from erasebench.store.files import abandoned

STEPS = ("erase", "attack", "score")  # folders with a manifest
IMAGES = "images"  # folders that grow
TABLES = "tables"  # files of what was derived for boards and tables, which any call derives again
YOUNG = 24 * 3600  # seconds within which what no run refers to may be of a run that is still at work


@dataclass(frozen=True)
class Entry:
    """One folder of the store.

    Args:
        step: erase, attack, score, images, tables; "leftover" for what a killed process left behind.
        path: of the folder or file.
        bytes: of all its files.
        age: seconds since the newest of them was written.
    """

    step: str
    path: Path
    bytes: int
    age: float

    @property
    def key(self) -> str:
        return self.path.name


def entries(root: Path) -> list[Entry]:
    """Everything in the store, by step and key; nothing is read but sizes and times."""
    cache = root / "cache"
    found = []
    for step in (*STEPS, IMAGES, TABLES):
        for path in sorted((cache / step).glob("*")):
            if not path.name.startswith("."):
                found.append(_entry(step, path))
    return [*found, *(_entry("leftover", path) for path in leftovers(cache))]


def leftovers(cache: Path) -> Iterator[Path]:
    """What killed processes left: half-written files and folders, claims, and progress of steps that are done."""
    watch = Watch()
    for path in sorted(cache.rglob(".*")) if cache.is_dir() else []:
        if (path.name.endswith(".tmp") and abandoned(path)) or (path.name.endswith(".claim") and not watch.held(path)):
            yield path
    for path in sorted((cache / "work").glob("*-*")):
        step, _, key = path.name.partition("-")
        if read_manifest(cache / step / key) is not None:
            yield path


def unused(found: Collection[Entry], used: Mapping[str, Collection[str]], partly: bool = False) -> list[Entry]:
    """The entries that no run refers to, and leftovers; young ones may be of a run at work and are kept.

    Of tables runs refer to what was kept of them alone: the others are unused if nobody asked for them in a day.

    Args:
        found: see :func:`entries`.
        used: step -> keys that runs refer to.
        partly: whether some run does not say which steps it refers to; then only leftovers are nobody's.
    """
    return [
        entry
        for entry in found
        if entry.step == "leftover"
        or (not (partly and entry.step != TABLES) and entry.key not in used.get(entry.step, ()) and entry.age > YOUNG)
    ]


def remove(entry: Entry) -> None:
    """Delete an entry; a reader sees it whole or not at all."""
    if not entry.path.is_dir():
        entry.path.unlink(missing_ok=True)
        return
    aside = entry.path.with_name(f".{entry.key.lstrip('.')}.removed.tmp")
    with suppress(OSError):
        shutil.rmtree(aside)
    entry.path.rename(aside)
    shutil.rmtree(aside)


def damages(found: Collection[Entry]) -> Iterator[tuple[Entry, str]]:
    """Every entry whose bytes are not as they were written, and which file; all bytes are read."""
    for entry in found:
        if entry.step in STEPS and read_manifest(entry.path) is None:
            yield entry, "does not match its manifest"
        elif entry.step == IMAGES:
            for file in sorted(entry.path.rglob("*.parquet")):
                try:
                    read_parquet(file)
                except (OSError, ValueError, pa.ArrowException):
                    yield entry, f"{file.relative_to(entry.path)} is damaged"


def _entry(step: str, path: Path) -> Entry:
    size, newest = 0, 0.0
    for file in [path, *(path.rglob("*") if path.is_dir() else ())]:
        try:
            stat = file.stat()
        except OSError:
            continue
        size += stat.st_size if file.is_file() else 0
        newest = max(newest, stat.st_mtime)
    return Entry(step, path, size, max(0.0, time.time() - newest))
