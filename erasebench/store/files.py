"""Files that are there completely or not at all, and one-line errors when they cannot be written or read."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError, safe_open

from erasebench.fields import locate as locate
from erasebench.store.claims import beside, place, runs

STALE_SECONDS = 2 * 24 * 3600  # leftovers of other machines' processes older than this are removed
_WORK = re.compile(r"\..+\.(?P<pid>\d+)-(?P<started>\d*)-(?P<machine>[0-9a-f]{6})\.[0-9a-f]{32}\.tmp")
LARGE = 64 * 2**20  # bytes of files whose hash is remembered while a process lives
FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXT = re.compile(r"os error (28|122)\b|code: (28|122)\b|No space left|quota exceeded", re.IGNORECASE)
DENIED = (*FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


class NoRoom(OSError):
    """A full disk: nobody's mistake, and what was stored before stays."""


@contextmanager
def explained(folder: Path, errors: tuple[int, ...] = DENIED) -> Iterator[None]:
    """Turn an error about writing into one line that names the folder and what to do.

    Raises:
        NoRoom: the disk is full, be it said by the system or by a library that has no number for it.
        OSError: it cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        if number is None and not isinstance(error, NoRoom) and _FULL_TEXT.search(str(error)):
            number = errno.ENOSPC
        if number not in errors:
            raise
        full = number in FULL
        remedy = "free some space" if full else "make it writable"
        reason = f"folder {folder} cannot be written ({os.strerror(number)}); {remedy} or choose another results=DIR"
        raise (NoRoom if full else OSError)(reason) from error  # no errno: its "[Errno 28]" would lead the line


def fsync(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def work_path(path: Path) -> Path:
    """A name beside ``path`` that no other process and no reader uses; those of killed processes are removed."""
    for old in path.parent.glob(f".{path.name}.*.tmp"):
        try:
            if abandoned(old):
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        except OSError:  # another process removed it first
            continue
    return beside(path)


def abandoned(work: Path) -> bool:
    """Whether the process that made a :func:`work_path` is gone; of another machine's: untouched for two days."""
    found = _WORK.fullmatch(work.name)
    if found and found["machine"] == place():
        return not runs(int(found["pid"]), found["started"])
    return time.time() - work.stat().st_mtime > STALE_SECONDS


@contextmanager
def replacing(path: str | Path, lasting: bool = True) -> Iterator[Path]:
    """A temporary file to write; on success it takes the place of ``path`` in one move, on failure nothing changes.

    Args:
        path: of the file.
        lasting: wait until it is on disk. What can be made anew, and is found out if a crash left half of it, need not.

    Raises:
        OSError: the folder is not writable or the disk is full.
    """
    path = Path(path)
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        work = work_path(path)
        try:
            yield work
            usual_mode(work)
            if lasting:
                fsync(work)
            work.replace(path)
            if lasting:
                fsync(path.parent)
        finally:
            work.unlink(missing_ok=True)


def file_hash(path: str | Path) -> str:
    """sha256 of a file's bytes, read in a stream; of a large one once per process and state of the file."""
    stat = Path(path).stat()
    read = _hash_once if stat.st_size > LARGE else _hash
    return read(str(path), stat.st_mtime_ns, stat.st_size)


def _hash(path: str, mtime_ns: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_hash_once = lru_cache(maxsize=256)(_hash)


def damaged(folder: Path, files: Mapping[str, str], only: Sequence[str] = ()) -> list[str]:
    """Names of a folder's files that are not as their hashes say; gone ones, and folders in their places, too.

    Args:
        folder: where they lie.
        files: name -> sha256.
        only: look at these alone; at all if empty.
    """
    found = []
    for name, digest in files.items():
        path = folder / Path(name).name
        if (not only or name in only) and not (path.is_file() and file_hash(path) == digest):
            found.append(name)
    return found


def tensor_header(file: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Names and shapes of a safetensors file's tensors, and its metadata; no tensor is read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no safetensors, or cut off.
    """
    if not file.is_file():
        found = "a folder" if file.is_dir() else "none"
        raise FileNotFoundError(f"weights {file} must be a file; found {found}; check the path")
    try:
        with safe_open(file, framework="np") as opened:
            names = list(opened.keys())
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in names}
            return shapes, dict(opened.metadata() or {})
    except SafetensorError as error:
        size = file.stat().st_size
        raise ValueError(
            f"weights {file} must be whole safetensors; got {size} bytes: {error}; download it again or save it anew"
        ) from None


def usual_mode(path: Path) -> None:
    """Give a file or folder the permissions that this process gives new ones: safetensors keeps its files private."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def check_writable(folder: str | Path) -> Path:
    """The folder, created and proven writable before any work is done.

    Raises:
        OSError: it cannot be created or written; one line says why and what to do.
    """
    folder = Path(folder)
    with explained(folder, (*DENIED, errno.ENOENT)):
        folder.mkdir(parents=True, exist_ok=True)
        probe = work_path(folder / "probe")
        probe.write_bytes(b"")
        probe.unlink()
    return folder
