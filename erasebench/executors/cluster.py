"""Work spread over processes and machines by Ray, which places, starts, watches and ends them (docs/clusters.md).

A worker is an actor that keeps the models of its last cells loaded; it is given one piece at a time, of a model that it
has loaded if there is one. What it makes lies in the store. Ray says when a worker is gone; its piece is then given to
another one, and Ray is asked for a new worker.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from erasebench import fields, preflight
from erasebench.cell import Cell, Result
from erasebench.executors.board import Board, State
from erasebench.executors.pieces import Ledger, Piece, stages
from erasebench.executors.warm import Worker
from erasebench.one_run import build_parts, check_parts, finished
from erasebench.store.files import check_writable

STORE = 100 * 2**20  # bytes of Ray's own object store on this machine: only hashes travel
LOOK = 10.0  # seconds between two looks at how many workers fit: a cluster may grow
PASSED_ON = ("ERASEBENCH_", "HF_", "TORCH_", "OMP_", "PYTORCH_")  # variables that workers elsewhere are given
SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")  # and never these


class Ended(NamedTuple):
    """What became of a cell, and the seconds since its work began."""

    number: int
    made: Result | Exception
    seconds: float


@dataclass
class _Member:
    """A worker: its handle, where it is, the model it has loaded, and what it does."""

    actor: Any
    about: dict[str, Any] = field(default_factory=dict)
    warm: str = ""
    piece: Piece | None = None
    since: float = field(default_factory=time.time)
    pieces: int = 0


@dataclass(frozen=True, kw_only=True)
class Ray:
    """Workers of a Ray cluster.

    Args:
        address: None: Ray is started on this machine for this command; ``auto``: the cluster of this machine;
            ``host:port``: that cluster.
        workers: None: as many as fit.
        cpus: cores of a worker, and threads of torch in it: last digits on a CPU depend on their number.
        gpus: GPUs of a worker, a fraction shares one; None: 1 where the cluster has any, else 0.
        retries: how often a piece is begun again after its worker was lost.
    """

    address: str | None = None
    workers: int | None = None
    cpus: int = 1
    gpus: float | None = None
    retries: int = 3

    spreads: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.address is not None:
            fields.text("executor.address", self.address, empty=False)
        if self.workers is not None:
            fields.integer("executor.workers", self.workers, least=1, most=10_000)
        fields.integer("executor.cpus", self.cpus, least=1, most=1024)
        if self.gpus is not None:
            fields.number("executor.gpus", self.gpus, least=0, most=64)
        fields.integer("executor.retries", self.retries, least=0, most=100)

    def run(self, cells: Mapping[int, Cell], labels: Mapping[int, str]) -> Iterator[Ended]:
        """Do the work of cells, each with a folder of its own; what became of each, as soon as it is known.

        Raises:
            ValueError, OSError: no such cluster, or none of its machines has room for a worker.
        """
        started, ledger, todo = time.monotonic(), Ledger(), dict[int, Cell]()
        for number, cell in cells.items():
            made = self._open(number, cell, todo, ledger)
            if made is None:
                todo[number] = cell
            else:
                yield Ended(number, made, 0.0)
        if not todo:
            return
        with self._connected() as ray, Board(next(iter(todo.values())).root) as board:
            for number in _Crew(self, ray, ledger, todo, labels, board).work():
                board.apart()
                made = ledger.ended[number] or finished(todo[number])
                if made is None:
                    made = OSError(f"{todo[number].folder} must hold the tables that a worker wrote; it does not")
                made = replace(made, cached=False) if isinstance(made, Result) else made
                yield Ended(number, made, time.monotonic() - started)

    @staticmethod
    def _open(number: int, cell: Cell, others: Mapping[int, Cell], ledger: Ledger) -> Result | Exception | None:
        """What was stored of a cell before, why it cannot run, or None: it is in the ledger."""
        try:
            if result := finished(cell):
                return result
            check_writable(cell.root)
            preflight.check(cell.config)
            parts = build_parts(cell)
            check_parts(cell, parts)
            siblings = [n for n, one in others.items() if one.folder.parent.parent == cell.folder.parent.parent]
            ledger.open(number, stages(number, cell, parts, siblings))
        except Exception as error:
            return error
        return None

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        """Ray, connected; what was connected before stays so."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        if ray.is_initialized():
            yield ray
            return
        handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
        quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
        try:
            if self.address is None:
                cores = max(os.cpu_count() or 1, (self.workers or 1) * self.cpus)
                local = {"num_cpus": cores, "include_dashboard": False, "object_store_memory": STORE}
                ray.init(address="local", **local, **quiet)
            else:
                ray.init(address=self.address, runtime_env={"env_vars": variables()}, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = "this machine" if self.address is None else self.address
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(
                f"executor.address - must be a Ray cluster that answers, with these versions of Ray and Python; "
                f"{where} does not ({reason}); see docs/clusters.md"
            ) from error
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():  # Ray's own would end this process with another exit code
                signal.signal(number, handler)
        try:
            yield ray
        finally:
            ray.shutdown()


def variables() -> dict[str, str]:
    """The environment that workers on other machines are given; no secrets, they stand in Ray's records."""
    passed = {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON) and not any(s in k for s in SECRET)}
    return passed | {"PYTHONPATH": os.pathsep.join(paths())}


def paths() -> list[str]:
    """Where this process finds modules, in full."""
    return [str(Path(p).resolve()) for p in sys.path if Path(p).is_dir()]


class _Crew:
    """The workers of one command, and the loop that gives them pieces."""

    def __init__(
        self, how: Ray, ray: Any, ledger: Ledger, cells: Mapping[int, Cell], labels: Mapping[int, str], board: Board
    ) -> None:
        self.how, self.ray, self.ledger, self.cells, self.labels, self.board = how, ray, ledger, cells, labels, board
        self.keys = {number: cell.key for number, cell in cells.items()}
        self.starting: dict[Any, _Member] = {}  # what tells that one has started -> worker
        self.working: dict[Any, _Member] = {}  # the result of its piece -> worker
        self.idle: list[_Member] = []
        self.losses: Counter[str] = Counter()  # by piece
        self.failed_starts = self.lost = 0
        self._room, self._looked = 0, -LOOK
        have = ray.cluster_resources()
        self.gpus = how.gpus if how.gpus is not None else float(have.get("GPU", 0) >= 1)
        if not self.room():
            raise ValueError(
                f"executor - a worker of {how.cpus} cores and {self.gpus:g} GPUs must fit into the cluster; it has "
                f"{have.get('CPU', 0):g} cores and {have.get('GPU', 0):g} GPUs; lower executor.cpus or executor.gpus"
            )
        self.actor = ray.remote(num_cpus=how.cpus, num_gpus=self.gpus, max_restarts=0)(Worker)

    def room(self) -> int:
        """How many workers fit into the cluster as it is, at most as many as asked for."""
        if time.monotonic() - self._looked >= LOOK:
            self._looked, have = time.monotonic(), self.ray.cluster_resources()
            fit = [have.get("CPU", 0) // self.how.cpus]
            fit += [have.get("GPU", 0) // self.gpus] if self.gpus else []
            self._room = int(min(fit))
        return min(self._room, self.how.workers or self._room)

    def work(self) -> Iterator[int]:
        """Until all cells have ended; yields each that has."""
        told: set[int] = set()
        try:
            while self.ledger.busy:
                self._start()
                self._give()
                self.board.tell(self.state())
                refs = [*self.working, *self.starting]
                if not refs:
                    time.sleep(LOOK / 10)  # until there is room again
                    continue
                for ref in self.ray.wait(refs, num_returns=1, timeout=1.0)[0]:
                    self._take(ref)
                yield from (number for number in [*self.ledger.ended] if number not in told)
                told |= set(self.ledger.ended)
            yield from (number for number in [*self.ledger.ended] if number not in told)
            self.board.tell(self.state(), now=True)
        finally:
            for member in [*self.starting.values(), *self.working.values(), *self.idle]:
                self.ray.kill(member.actor)

    def _start(self) -> None:
        """Ask for workers, no more than there are pieces for."""
        have = len(self.starting) + len(self.working) + len(self.idle)
        spare = len(self.starting) + len(self.idle)
        while have < self.room() and spare < self.ledger.waiting:
            actor = self.actor.remote(os.getcwd(), paths(), self.how.cpus)
            self.starting[actor.about.remote()] = _Member(actor)
            have, spare = have + 1, spare + 1

    def _give(self) -> None:
        """A piece to everybody who has none."""
        idle, self.idle = self.idle, []
        for member in idle:
            piece = self.ledger.next(member.warm)
            if piece is None:
                self.idle.append(member)
                continue
            member.piece, member.since, member.warm = piece, time.time(), piece.warm
            ref = member.actor.do.remote(self.keys[piece.cell], self.cells[piece.cell], piece)
            self.working[ref] = member

    def _take(self, ref: Any) -> None:
        """A worker has started, has done its piece, or is gone."""
        errors = self.ray.exceptions
        member = self.starting.pop(ref, None) or self.working.pop(ref)
        piece, member.piece, member.since = member.piece, None, time.time()
        try:
            value = self.ray.get(ref)
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else RuntimeError(str(error))
            if piece is None:
                raise cause from None
            self.ledger.fail(piece, cause)
        except errors.RayError as error:  # the process, its machine or the way to it is gone
            self._lose(piece, error)
            return
        else:
            self.failed_starts = 0
            if piece is None:
                member.about = value
            else:
                member.pieces += 1
                self.ledger.finish(piece, value)
        self.idle.append(member)

    def _lose(self, piece: Piece | None, error: Exception) -> None:
        """A worker is gone: its piece waits for another one, as often as ``retries`` says.

        Raises:
            ChildProcessError: one after another goes before it has begun.
        """
        self.lost += 1
        if piece is None:
            self.failed_starts += 1
            if self.failed_starts > self.how.retries:
                reason = next((t for t in reversed(str(error).splitlines()) if t.strip()), type(error).__name__)
                raise ChildProcessError(
                    f"executor - workers must start; {self.failed_starts} did not ({reason.strip()})"
                )
            return
        self.losses[piece.id] += 1
        if self.losses[piece.id] <= self.how.retries:
            self.ledger.lose(piece)
            return
        what = " ".join(w for w in (piece.kind, piece.side, piece.name) if w)
        self.ledger.fail(
            piece,
            ChildProcessError(
                f"executor - a piece of work ({what}) must leave its worker alive; {self.losses[piece.id]} were lost "
                "at it (out of memory, killed, or their machine is gone); Ray's logs say more; the same command goes on"
            ),
        )

    def state(self) -> State:
        """What the board shows."""
        ledger, cells = self.ledger, []
        for number in self.cells:
            word = "at work"
            if number in ledger.ended:
                word = "failed" if ledger.ended[number] else "done"
            counts = {k: [ledger.done[number][k], ledger.seen[number][k]] for k in ledger.done[number]}
            cells.append({"label": self.labels.get(number, ""), "state": word, **counts})
        members = [*self.working.values(), *self.idle]
        workers = [
            {
                **m.about,
                "doing": f"{m.piece.kind} {m.piece.side or m.piece.name}".strip() if m.piece else "",
                "since": m.since,
                "pieces": m.pieces,
            }
            for m in members
        ]
        return {
            "cells": cells,
            "workers": workers,
            "images": ledger.images,
            "lost": self.lost,
            "starting": len(self.starting),
        }
