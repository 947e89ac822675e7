"""What was derived of results, kept under ``cache/tables`` for as long as what it was derived from is the same.

An entry is named after a digest of the bytes of the tables and records, of the code and of the arguments, so what is
stale is never found. It is signed with a key of this account, which lies beside no results (``~/.cache/erasebench``):
what is damaged, or came with somebody else's results, is derived again. Any of it may be deleted at any time, and
nothing changes but the time.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from erasebench.limits import MOST_TEXT, check_size
from erasebench.store.files import replacing

FOLDER = ("cache", "tables")
END, RUN, CELL = ".kept", ".run", ".cell"  # of what is made of all runs, of a run, of a cell
MOST = 400  # entries of all runs
LEAST = 2**20  # bytes of tables below which nothing is kept as a whole
READ = ("run.json", "scores.parquet", "summary.csv", "budget.csv")  # of each run
LIBRARIES = ("numpy", "pandas", "pyarrow", "scipy")


def once(root: Path, kind: str, arguments: Sequence[Any], work: Callable[[], Any]) -> Any:
    """What a function makes of the runs of a results folder: kept, or anew.

    Args:
        root: the results folder.
        kind: a name for what is made.
        arguments: plain values, all else that it depends on.
        work: takes nothing, returns what JSON can hold; reads no file of the runs but :data:`READ`.
    """
    name, size = _of_runs(root, kind, arguments)
    if (found := load(root, name)) is not None:
        return json.loads(found["value"])
    value = work()
    if size >= LEAST and _of_runs(root, kind, arguments)[0] == name:  # no run ended in between
        save(root, name, {"value": json.dumps(value).encode()})
    return value


def _of_runs(root: Path, kind: str, arguments: Sequence[Any]) -> tuple[str, int]:
    """The name of what is made of all runs, and how large their tables are."""
    folders = {path.parent for name in READ[:2] for path in root.glob(f"runs/**/{name}")}
    read, size = [], 0
    for folder in sorted(folders):
        own: list[str] = [folder.relative_to(root).as_posix()]
        for name in READ:
            try:
                data = (folder / name).read_bytes()
                own.append(hashlib.sha256(data).hexdigest())
                size += len(data) if name.endswith(".parquet") else 0
            except OSError as error:
                own.append(type(error).__name__)
        read.append(own)
    return named(kind, read, arguments), size


def named(kind: str, read: Sequence[Any], arguments: Sequence[Any]) -> str:
    """The name of an entry: a digest of all that it is a function of."""
    text = json.dumps([kind, _code(), read, arguments], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


@cache
def _code() -> str:
    """A digest of the code that derives, and of the libraries' versions."""
    digest = hashlib.sha256(" ".join([sys.version, *map(version, LIBRARIES)]).encode())
    for path in sorted(Path(__file__).parent.parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def load(root: Path, name: str, end: str = END, asked: bool = True) -> dict[str, bytes] | None:
    """The parts of an entry; None if it is not there, damaged, or signed by another. ``asked``: somebody needs it."""
    path = root.joinpath(*FOLDER, name + end)
    try:
        signature, head, rest = check_size(path, MOST_TEXT).read_bytes().split(b"\n", 2)
        if not hmac.compare_digest(signature, _signature(name, head, rest)):
            return None
        if asked:
            os.utime(path)
    except (OSError, ValueError):
        return None
    out, start = {}, 0
    for part, size in json.loads(head):
        out[part] = rest[start : start + size]
        start += size
    return out


def save(root: Path, name: str, parts: Mapping[str, bytes], end: str = END) -> None:
    """Keep an entry, if this account can sign and the folder can be written."""
    head = json.dumps([[part, len(data)] for part, data in parts.items()]).encode()
    rest = b"".join(parts.values())
    folder = root.joinpath(*FOLDER)
    with suppress(OSError):
        signature = _signature(name, head, rest)
        with replacing(folder / (name + end), lasting=False) as work:
            work.write_bytes(b"\n".join((signature, head, rest)))
        for old in (
            []
            if end != END
            else sorted(folder.glob(f"*{END}"), key=lambda path: path.stat().st_mtime, reverse=True)[MOST:]
        ):
            old.unlink(missing_ok=True)


def _signature(name: str, head: bytes, rest: bytes) -> bytes:
    signed = hmac.new(_secret(), name.encode(), "sha256")
    for part in (head, rest):
        signed.update(b"\n" + part)
    return signed.hexdigest().encode()


@cache
def _secret() -> bytes:
    """This account's key, made when it is first asked for.

    Raises:
        OSError: it cannot be made or read.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(home) / "erasebench" / "tables.key"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_name(f".{secrets.token_hex(16)}")
        with open(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
        with suppress(FileExistsError):  # another process was first
            os.link(own, path)
        own.unlink()
    found = path.read_bytes()
    if len(found) != 32:
        raise OSError(f"{path} must hold 32 bytes; got {len(found)}; delete it")
    return found
