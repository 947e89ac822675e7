"""A process that does pieces of runs: models stay loaded from one piece to the next."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from erasebench import store
from erasebench.cell import Cell, image_set
from erasebench.executors.pieces import Piece
from erasebench.one_run import Work, build_parts, complete

KEPT = 2  # cells whose models stay loaded; those of one base share all that their methods left as it was
PATIENCE = 60.0  # seconds until a file that another machine wrote must be seen here


class Warm:
    """Does pieces of cells, and keeps the models of the last few cells for the next piece."""

    def __init__(self) -> None:
        self._works: OrderedDict[str, Work] = OrderedDict()

    def do(self, key: str, cell: Cell, piece: Piece) -> Any:
        """Do a piece; its result lies in the store afterwards.

        Args:
            key: of the cell where it was planned; code or files that differ here would make something else.
            cell: planned.
            piece: of it.

        Returns:
            of ``erase`` side -> key of the weights, of ``attack`` the digests of the prompts it found, else None.

        Raises:
            ValueError: this machine has another version of the code or of a file; whatever the step raises.
        """
        try:
            return getattr(self, f"_{piece.kind}")(self._opened(key, cell), piece)
        except BaseException:
            self._works.clear()  # what failed may have left a model half changed
            raise

    def _opened(self, key: str, cell: Cell) -> Work:
        if key not in self._works:
            if (here := cell.key) != key:
                raise ValueError(
                    f"executor - workers must have the code and files of the process that gives them work; "
                    f"{socket.gethostname()} has others (run {here}, not {key}); use one shared folder and environment"
                )
            self._works[key] = Work(cell, build_parts(cell))
        self._works.move_to_end(key)
        while len(self._works) > KEPT:
            self._works.popitem(last=False)
        return self._works[key]

    def _erase(self, work: Work, piece: Piece) -> dict[str, str]:
        return {side: key for side, (_, key) in ({"erased": work.erased} | work.others).items()}

    def _attack(self, work: Work, piece: Piece) -> list[str]:
        return [p.digest() for p in work.found]

    def _draw(self, work: Work, piece: Piece) -> None:
        from erasebench import steps

        model = work.original if piece.side == "original" else work.erased if piece.side == "erased" else None
        wanted = set(piece.digests)
        prompts = [p for p in work.parts.prompts if p.digest() in wanted]
        if len({p.digest() for p in prompts}) < len(wanted):
            prompts += [p for p in work.found if p.digest() in wanted]
        by_digest = {p.digest(): p for p in prompts}
        steps.draw_part(work.cell, model or work.others[piece.side], [by_digest[d] for d in piece.digests])

    def _score(self, work: Work, piece: Piece) -> None:
        from erasebench import steps

        cell, prompts = work.cell, work.parts.prompts + work.found
        sides = {
            side: image_set(cell.root, key, cell.config["model"], prompts, pipe)
            for side, (pipe, key) in work.models.items()
        }
        for images in sides.values():
            seen(images.folder, [p.digest() for p in prompts])
        steps.scores_of(cell, piece.name, work.parts.evaluators[piece.name], sides, piece.side, {})

    def _record(self, work: Work, piece: Piece) -> None:
        complete(work)


def seen(folder: Path, digests: list[str], patience: float = PATIENCE) -> None:
    """Wait until images that are drawn are seen here: a network disk may show another machine's files late.

    Raises:
        OSError: they are not after so many seconds.
    """
    until = time.monotonic() + patience
    while left := store.missing(folder, digests):
        if time.monotonic() > until:
            raise OSError(
                f"{folder} must show the images that all workers drew; {len(left)} are not seen on "
                f"{socket.gethostname()} after {patience:.0f} s; results= must be one folder for all machines"
            )
        time.sleep(0.5)


class Worker:
    """The same in a process of its own, as an actor."""

    def __init__(self, folder: str, paths: list[str], threads: int) -> None:
        import torch

        os.chdir(folder)  # relative paths mean what they mean to whoever gave the command
        sys.path += [path for path in paths if path not in sys.path]  # and so do a user's own modules
        torch.set_num_threads(threads)
        logging.getLogger("diffusers").setLevel(logging.ERROR)
        self._warm = Warm()

    def about(self) -> dict[str, Any]:
        """Where this process is and what it computes on."""
        import torch

        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "") if torch.cuda.is_available() else ""
        device = f"gpu {gpus}" if gpus else f"{torch.get_num_threads()} cores"
        return {"node": socket.gethostname(), "pid": os.getpid(), "device": device}

    def do(self, key: str, cell: Cell, piece: Piece) -> Any:
        """See :meth:`Warm.do`."""
        return self._warm.do(key, cell, piece)
