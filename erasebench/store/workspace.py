"""Where a long step keeps its progress, so that a killed run goes on where it stopped.

A training method or a long attack asks for ``current()`` and saves into it now and then; the run gives each step its
own folder and removes it once the step's result is there. Outside a run nothing is kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from erasebench.store.files import replacing

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workspace:
    """Named progress: tensors and JSON values together in one safetensors file, replaced in one move.

    Args:
        folder: where the files lie; None keeps nothing.
        root: results folder whose store a step may add images to; None: there is none.

    >>> Workspace(None).load("training") is None
    True
    """

    folder: Path | None
    root: Path | None = None

    def save(self, name: str, tensors: Mapping[str, torch.Tensor], **values: Any) -> None:
        """Keep ``tensors`` and JSON ``values`` under ``name`` in place of what was there.

        Where that cannot be (a full disk) it is said, what was kept before stays, and the work goes on.
        """
        if self.folder is None:
            return
        from safetensors.torch import save_file  # here, so that reading results needs no torch

        kept = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        text = json.dumps(values)
        try:
            with replacing(self._path(name)) as work:
                save_file(kept, work, metadata={"values": text, "checksum": _checksum(kept, text)})
        except (OSError, SafetensorError) as error:
            log.warning("progress is not kept: %s; the work goes on, a stop would lose it since the last save", error)

    def load(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """What was last kept under ``name``, or None; a damaged file counts as none."""
        if self.folder is None or not self._path(name).exists():
            return None
        try:
            with safe_open(self._path(name), framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                kept = file.metadata()
                whole = kept["checksum"] == _checksum(tensors, kept["values"])
                return (tensors, json.loads(kept["values"])) if whole else None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            return None

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"


def _checksum(tensors: Mapping[str, torch.Tensor], values: str) -> str:
    uint8 = import_module("torch").uint8  # whoever has tensors has loaded it; reading results needs none
    digest = hashlib.sha256(values.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(uint8).numpy() if value.numel() else b"")
    return digest.hexdigest()


NOWHERE = Workspace(None)
_current: ContextVar[Workspace] = ContextVar("workspace", default=NOWHERE)


def current() -> Workspace:
    """The workspace of the running step."""
    return _current.get()


@contextmanager
def use(folder: Path, root: Path | None = None) -> Iterator[Workspace]:
    """Make ``folder`` the current workspace; it is removed if the block succeeds and kept if it does not."""
    token = _current.set(Workspace(folder, root))
    try:
        yield _current.get()
    finally:
        _current.reset(token)
    shutil.rmtree(folder, ignore_errors=True)
