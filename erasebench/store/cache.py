"""The store: every step's result lies under ``cache/<step>/<key>/``, its name is the hash of all it was made from.

A result is written beside its place and renamed into it; ``manifest.json`` is written last and lists every file, so
a folder without a matching manifest is not there. Image folders grow instead: they hold Parquet files named after
the prompts inside, so another run adds files and two writers at once write the same thing under the same name.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from erasebench.limits import read_json
from erasebench.store.claims import claimed
from erasebench.store.files import FULL, explained, file_hash, fsync, usual_mode, work_path
from erasebench.store.files import check_writable as check_writable  # part of the store for its callers

MANIFEST = "manifest.json"
_KEY = re.compile(r"[\w-]{1,64}", re.ASCII)


def key(*parts: Any) -> str:
    """Content hash of JSON values: the first 20 hex digits of sha256 of their canonical JSON.

    Args:
        parts: what the result depends on; dicts (any key order), sequences, str, int, float, bool, None.

    Raises:
        TypeError: a part JSON cannot express.
        ValueError: NaN or infinity, which JSON cannot express either.

    >>> key({"a": 1, "b": (2, 3)}) == key({"b": [2, 3], "a": 1}) != key({"a": 1, "b": [3, 2]})
    True
    """
    try:
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except TypeError as error:
        raise TypeError(f"key parts must be JSON values; {error}; convert it to text or numbers first") from error
    except ValueError as error:
        raise ValueError(f"key parts must be finite JSON values; {error}; use None for a missing number") from error
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def plain_key(text: object) -> str:
    """A key as :func:`key` makes them; what a shared record names is no path.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(text, str) or not _KEY.fullmatch(text):
        shown = repr(text)[:60]
        raise ValueError(f"a key of the store must be letters and digits; got {shown}; the record was changed")
    return text


# --- one step, one folder ---


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_hash(path)}


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    return {p.relative_to(folder).as_posix(): _describe(p) for p in paths}


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """The manifest of a finished step, or None if the folder is absent, half-written or damaged."""
    folder = Path(folder)
    try:
        manifest = read_json(folder / MANIFEST)
        return manifest if manifest["files"] == _files(folder) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _publish(work: Path, folder: Path) -> None:
    """Rename ``work`` into place; a complete folder already there wins, a damaged one is replaced."""
    for _ in range(10):
        try:
            work.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        if read_manifest(folder) is not None:
            return
        aside = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.tmp"
        try:
            folder.rename(aside)
        except FileNotFoundError:  # another process replaced it at this moment
            continue
        shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
    raise OSError(f"{folder} keeps changing; stop the other processes that write it and run again")


def has(root: str | Path, name: str, key: str) -> bool:
    """Whether a step's result is in the store."""
    return read_manifest(Path(root) / "cache" / name / key) is not None


def step(
    root: str | Path, name: str, key: str, make: Callable[[Path], None], meta: Mapping[str, Any] | None = None
) -> Path:
    """The folder ``root/cache/name/key`` of a step's result, computed only if it is not there.

    A second process waits for the one that computes it (:mod:`erasebench.store.claims`); if both should compute, the
    first to finish wins and the other discards its copy.

    Args:
        root: results folder.
        name: step name, e.g. ``erase``.
        key: content hash of everything the result depends on, see :func:`key`.
        make: writes the result's files into the empty folder it is given.
        meta: JSON values stored in the manifest.

    Raises:
        OSError: the folder is not writable or the disk is full.
    """
    root, folder = Path(root), Path(root) / "cache" / name / key
    if read_manifest(folder) is not None:
        return folder
    work = work_path(folder)
    claim = claimed(folder.parent / f".{key}.claim", name, done=lambda: read_manifest(folder) is not None, also=(work,))
    with ExitStack() as stack:
        with explained(root):
            mine = stack.enter_context(claim)
            if not mine:
                return folder
            work.mkdir(parents=True)
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        with explained(root, FULL):
            make(work)
            for path in work.rglob("*"):
                usual_mode(path)
                fsync(path)
            manifest = {"step": name, "key": key, "meta": dict(meta or {}), "files": _files(work)}
            (work / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
            fsync(work / MANIFEST)
            _publish(work, folder)
    return folder
