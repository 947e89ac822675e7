"""Work is claimed: a job that needs what another one is making waits for it, or takes other work.

A claim is a small file that its holder puts there whole if there is none (by a hard link: atomic on local disks and on
NFS, no lock is needed) and touches while it works. A claim whose process is gone, or that nobody has touched for two
minutes, is taken over. Claims save work and decide nothing: steps and images stay right if two jobs do the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from erasebench import progress

BEAT = 15.0  # seconds between two touches
PATIENCE = 120.0  # seconds without one after which a claim is nobody's
POLL = 0.5  # seconds between two looks at a claim
_held: dict[Path, int] = {}  # claims of this process -> the thread that works


@lru_cache(maxsize=1)
def machine() -> str:
    """Where process numbers mean the same: host, boot, and the container's own numbering."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()[:8])
        parts.append(os.readlink("/proc/self/ns/pid").strip("pid:[]"))
    return " ".join(parts)


def place() -> str:
    """The same in six letters."""
    return hashlib.sha256(machine().encode()).hexdigest()[:6]


def born(pid: int) -> str:
    """When a process started, in the kernel's ticks, which tells it from a later one of its number; "" if unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def runs(pid: int, started: str = "") -> bool:
    """Whether a process of this machine is alive, and the one that started then."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return not started or born(pid) in ("", started)


def beside(path: Path) -> Path:
    """A name beside ``path`` that no other process and no reader uses, and that says whose it is."""
    me = f"{os.getpid()}-{born(os.getpid())}-{place()}"
    return path.with_name(f".{path.name.lstrip('.')}.{me}.{uuid.uuid4().hex}.tmp")


def holder_of(claim: Path) -> dict[str, object] | None:
    """What a claim says of its holder; {} while it is being written, None if there is no claim."""
    try:
        found = json.loads(claim.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        return {}


class Watch:
    """Tells abandoned claims from held ones, by this process's own clock."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[int, float]] = {}

    def held(self, claim: Path) -> bool:
        """Whether there is a claim and somebody at work behind it."""
        found = holder_of(claim)
        try:
            beat = claim.stat().st_mtime_ns
        except OSError:
            return False
        if found is None:
            return False
        pid = found.get("pid")
        if found.get("machine") == machine() and isinstance(pid, int) and not runs(pid, str(found.get("started", ""))):
            return False
        now = time.monotonic()
        last, since = self._seen.get(claim, (None, now))
        if last != beat:
            self._seen[claim] = (beat, now)
            return True
        return now - since < PATIENCE

    def take(self, claim: Path, also: Sequence[Path] = (), **values: object) -> Claim | None:
        """The claim, if nobody holds it."""
        claim.parent.mkdir(parents=True, exist_ok=True)
        if made := Claim.make(claim, also, values):
            return made
        known = holder_of(claim)
        if known is None or self.held(claim):
            return None
        aside = beside(claim)
        try:
            claim.rename(aside)  # one of several who see it abandoned has it
        except OSError:
            return None
        if holder_of(aside) != known:  # meanwhile somebody else took it over and holds it: give it back
            with suppress(OSError):
                os.link(aside, claim)
        aside.unlink(missing_ok=True)
        return Claim.make(claim, also, values)


class Claim:
    """A claim this process holds, kept fresh by a thread until it is released."""

    def __init__(self, path: Path, token: str, also: Sequence[Path]) -> None:
        self.path, self._token, self._also = path, token, also
        self._done = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    @classmethod
    def make(cls, path: Path, also: Sequence[Path], values: dict[str, object]) -> Claim | None:
        """A new claim, None if there is one."""
        if os.path.lexists(path):
            return None
        token = uuid.uuid4().hex
        me = {"machine": machine(), "pid": os.getpid(), "started": born(os.getpid()), "token": token}
        work = beside(path)
        try:
            work.write_text(json.dumps({**me, **values}), encoding="utf-8")
            _link(work, path)
        except FileExistsError:
            return None
        finally:
            work.unlink(missing_ok=True)
        return cls(path, token, also)

    def _beat(self) -> None:
        while not self._done.wait(BEAT):
            for path in (self.path, *self._also):
                with suppress(OSError):
                    os.utime(path)

    def release(self) -> None:
        """Let others have it."""
        self._done.set()
        if (holder_of(self.path) or {}).get("token") == self._token:
            self.path.unlink(missing_ok=True)


def _link(work: Path, path: Path) -> None:
    """Put a whole file in a place where there is none.

    Raises:
        FileExistsError: there is one.
        OSError: the disk is full.
    """
    try:
        os.link(work, path)
    except FileExistsError:
        raise
    except OSError:  # a disk that knows no hard links: a process killed within these lines leaves an empty claim
        with open(path, "x", encoding="utf-8") as file:
            try:
                file.write(work.read_text(encoding="utf-8"))
                file.flush()
            except OSError:
                path.unlink(missing_ok=True)
                raise


@contextmanager
def claimed(
    path: Path, what: str, done: Callable[[], bool] = lambda: False, also: Sequence[Path] = ()
) -> Iterator[bool]:
    """Hold a claim while the block runs, after waiting for whoever holds it.

    Args:
        path: of the claim.
        what: is being made, for the line that says who is waited for.
        done: whether there is nothing left to do; looked at while waiting.
        also: folders to touch with the claim.

    Yields:
        Whether the claim is held; False if it was done meanwhile.
    """
    if _held.get(path) == threading.get_ident():  # work within this very work: waiting for oneself would never end
        yield True
        return
    watch, waited, claim = Watch(), 0.0, None
    while not done():
        if claim := watch.take(path, also):
            break
        if waited == 0:
            found = holder_of(path) or {}
            where = f"process {found.get('pid', '?')} on {str(found.get('machine', '?')).split()[0]}"
            progress.say(f"{what}: waiting for {where}, which makes the same")
        time.sleep(POLL)
        waited += POLL
    if claim is not None:
        _held[path] = threading.get_ident()
    try:
        yield claim is not None and not done()
    finally:
        if claim is not None:
            del _held[path]
            claim.release()


@contextmanager
def share(folder: Path, wanted: Callable[[], Sequence[str]], most: int, watch: Watch) -> Iterator[list[str]]:
    """Some of the pieces of work in a folder that grows, those that nobody else is at, held while the block runs.

    Args:
        folder: where claims lie, beside what is made.
        wanted: what is still missing, asked again whenever others have worked.
        most: pieces at once.
        watch: one for all calls, so that it learns whose claims are abandoned.

    Yields:
        At most ``most`` of them; none if nothing is missing, or another process is at all that is: wait and ask again.
    """
    with claimed(folder / ".choosing.claim", "images"):
        taken: set[object] = set()
        for path in folder.glob(".share-*.claim"):
            if watch.held(path):
                pieces = (holder_of(path) or {}).get("pieces", [])
                taken.update(pieces if isinstance(pieces, list) else [])
            else:
                path.unlink(missing_ok=True)
        mine = [piece for piece in wanted() if piece not in taken][:most]
        claim = None
        if mine:
            claim = Claim.make(folder / f".share-{uuid.uuid4().hex[:12]}.claim", (), {"pieces": mine})
    try:
        yield mine
    finally:
        if claim is not None:
            claim.release()
