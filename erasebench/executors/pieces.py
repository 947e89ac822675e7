"""A run as pieces that any worker may do: what there is to do, what depends on what, what several cells share.

A piece is a step of a run, or a part of one, whose result lies in the store when it is done; nothing else is handed on
but hashes. Images are cut by the digests of their prompts alone, so that neither pieces nor images depend on how many
workers there are.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from erasebench import store
from erasebench.cell import Cell, drawing, image_set, without_devices
from erasebench.one_run import LOOKS, Parts
from erasebench.protocols import other_side

KINDS = ("erase", "attack", "draw", "score", "record")
BATCHES = 2  # of images in a piece: what a lost worker loses at most


@dataclass(frozen=True)
class Piece:
    """A part of a cell's work.

    Args:
        id: equal for pieces of several cells that make the same; they are done once.
        kind: one of :data:`KINDS`.
        cell: number of a cell that needs it.
        side: whose images are drawn or scored.
        digests: of the prompts to draw.
        name: of the evaluator.
        warm: names the model that it needs loaded.
        after: cells that must have ended before.
    """

    id: str
    kind: str
    cell: int
    side: str = ""
    digests: tuple[str, ...] = ()
    name: str = ""
    warm: str = ""
    after: frozenset[int] = frozenset()


Plan = Generator[list[Piece], dict[str, Any], None]


def stages(number: int, cell: Cell, parts: Parts, after: Collection[int] = ()) -> Plan:
    """The pieces of a cell, stage by stage: those of one need nothing of each other.

    Args:
        number: of the cell.
        after: cells whose tables must be written before this one's, which compares itself with them.

    Yields:
        a stage's pieces; sent in is kind -> what the pieces returned: of ``erase`` side -> key of the weights, of
        ``attack`` the digests of the prompts it found.
    """
    config = cell.config
    world = [cell.model_hash, drawing(config["model"]), cell.concepts, config["together"]]
    plain = [p.digest() for p in parts.prompts]
    beside = {n: config["evaluator"][n] for n, e in parts.evaluators.items() if e.beside}
    erase = Piece(store.key("erase", world, config["method"], beside), "erase", number, warm=cell.model_hash)
    looks = parts.attack.access in LOOKS
    seen = [config["method"], without_devices(config["judge"])] if looks else []
    search = Piece(
        store.key("attack", world, cell.identity["attack"], sorted(plain), seen),
        "attack", number, warm=cell.model_hash,
    )  # fmt: skip
    weights = {"original": cell.model_hash}
    told = yield [erase, *([] if looks else [search]), *draws(number, cell, weights, plain)]
    made: dict[str, str] = told["erase"]
    found = yield [*([search] if looks else []), *draws(number, cell, made, plain)]
    weights |= made
    searched: list[str] = (found if looks else told)["attack"]
    yield draws(number, cell, weights, searched)
    images = {side: image_set(cell.root, w, config["model"], ()).key for side, w in weights.items()}
    what = store.key(plain, searched)
    yield [
        Piece(
            store.key("score", name, config["evaluator"][name], images[side], images[other_side(name, e)], what),
            "score", number, side=side, name=name, warm=weights[side],
        )
        for side in ("original", "erased") for name, e in parts.evaluators.items()
    ]  # fmt: skip
    yield [Piece(f"record {number}", "record", number, warm=weights["erased"], after=frozenset(after))]


def draws(number: int, cell: Cell, weights: Mapping[str, str], digests: Sequence[str]) -> list[Piece]:
    """Pieces of the images that are missing, cut where they would be cut if all were.

    Args:
        weights: side -> hash of the model's weights.
        digests: of the prompts.
    """
    model, found = cell.config["model"], []
    ordered, size = sorted(set(digests)), BATCHES * cell.config["model"]["batch_size"]
    for side, key in weights.items():
        images = image_set(cell.root, key, model, ())
        left = set(store.missing(images.folder, ordered))
        for start in range(0, len(ordered), size):
            part = tuple(d for d in ordered[start : start + size] if d in left)
            if part:
                name = store.key("draw", images.key, part)
                found.append(Piece(name, "draw", number, side=side, digests=part, warm=key))
    return found


@dataclass
class Ledger:
    """What is waiting, at work and done, of all cells; knows nothing of who works.

    Args:
        ended: cells that are complete or failed, and why.
        done, seen: kind -> images (of other kinds: pieces) done, and known of so far, by cell.
        images: done, and known of so far, each once.
    """

    ended: dict[int, Exception | None] = field(default_factory=dict)
    done: dict[int, dict[str, int]] = field(default_factory=dict)
    seen: dict[int, dict[str, int]] = field(default_factory=dict)
    images: list[int] = field(default_factory=lambda: [0, 0])
    _plans: dict[int, Plan] = field(default_factory=dict)
    _answers: dict[int, dict[str, Any]] = field(default_factory=dict)
    _left: dict[int, set[str]] = field(default_factory=dict)  # cell -> pieces of its stage that are not done
    _known: dict[str, Any] = field(default_factory=dict)  # done piece -> what it returned
    _asked: dict[str, set[int]] = field(default_factory=dict)  # piece that is not done -> cells that need it
    _waiting: dict[str, Piece] = field(default_factory=dict)  # in the order they are handed out

    def open(self, number: int, plan: Plan) -> None:
        """A further cell."""
        self._plans[number] = plan
        self.done[number], self.seen[number] = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
        self._advance(number, None)

    @property
    def waiting(self) -> int:
        """How many pieces could be handed out."""
        return sum(self._may(piece) for piece in self._waiting.values())

    @property
    def busy(self) -> bool:
        """Whether a cell has not ended."""
        return len(self.ended) < len(self._plans)

    def next(self, warm: str = "") -> Piece | None:
        """A piece to do now, one that needs the ``warm`` model if there is one; it waits no longer."""
        ready = [piece for piece in self._waiting.values() if self._may(piece)]
        piece = next((p for p in ready if p.warm == warm), ready[0] if ready else None)
        return self._waiting.pop(piece.id) if piece else None

    def finish(self, piece: Piece, value: Any) -> None:
        """A piece is done."""
        self._known[piece.id] = value
        self.images[0] += len(piece.digests)
        for number in self._asked.pop(piece.id, ()):
            self._count(self.done, number, piece)
            self._answers[number][piece.kind] = value
            self._left[number].discard(piece.id)
            if not self._left[number]:
                self._advance(number, self._answers[number])

    def lose(self, piece: Piece) -> None:
        """Its worker was lost: it is the next to be handed out, if a cell needs it still."""
        if piece.id in self._asked:
            self._waiting = {piece.id: piece, **self._waiting}

    def fail(self, piece: Piece, error: Exception) -> None:
        """A piece cannot be done: the cells that need it end."""
        for number in self._asked.pop(piece.id, ()):
            self.ended[number] = error
            for name in self._left[number] - {piece.id}:
                self._asked.get(name, set()).discard(number)
        for name in [name for name, cells in self._asked.items() if not cells]:
            del self._asked[name]
            self._waiting.pop(name, None)

    def _may(self, piece: Piece) -> bool:
        return all(number in self.ended for number in piece.after)

    def _advance(self, number: int, answers: dict[str, Any] | None) -> None:
        """Ask a cell for its next stage that has something to do."""
        while True:
            try:
                pieces = self._plans[number].send(answers)  # type: ignore[arg-type]
            except StopIteration:
                self.ended[number] = None
                return
            except Exception as error:  # a store that cannot be read, say: the cell's affair, not the others'
                self.ended[number] = error
                return
            self._answers[number] = answers = {}
            left = self._left[number] = set()
            for piece in {piece.id: piece for piece in pieces}.values():
                self._count(self.seen, number, piece)
                if piece.id in self._known:
                    answers[piece.kind] = self._known[piece.id]
                    self._count(self.done, number, piece)
                    continue
                left.add(piece.id)
                if piece.id not in self._asked:
                    self._waiting[piece.id] = piece
                    self.images[1] += len(piece.digests)
                self._asked.setdefault(piece.id, set()).add(number)
            if left:
                return

    @staticmethod
    def _count(where: dict[int, dict[str, int]], number: int, piece: Piece) -> None:
        where[number][piece.kind] += len(piece.digests) or 1
