"""Where torch can compute on this machine, asked before anything is loaded."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

log = logging.getLogger(__name__)
Made = TypeVar("Made")
_room: dict[str, int] = {}  # what, and where -> how many at once there was memory for, after there once was not


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or this machine had no memory left.

    >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("CUDA out of memory.")), out_of_memory(ValueError())
    (True, True, False)
    """
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


def free_memory() -> None:
    """Give back what torch keeps of an accelerator's memory for later."""
    gc.collect()
    if torch.accelerator.is_available() and torch.accelerator.current_accelerator().type == "cuda":
        torch.cuda.empty_cache()


def halving(work: Callable[[Any], Made], items: Any, size: int, what: str, device: Any = "") -> Iterator[Made]:
    """The results of ``work`` on slices of ``items`` (a sequence or array), at most ``size`` at once, in order.

    Without memory for a batch it is done again in halves, which is said, and so is the rest; what has failed with many
    of ``what`` on ``device`` is not tried again in this process. ``work`` must leave things as they were when it fails.

    Raises:
        RuntimeError, MemoryError: no memory even for one; any other error of ``work``.

    >>> list(halving(sum, [1, 2, 3, 4, 5], 2, "numbers"))
    [3, 7, 5]
    """
    start, place = 0, f"{what} {device}"
    size = min(size, _room.get(place, size))
    while start < len(items):
        batch = items[start : start + size]
        try:
            made = work(batch)
        except (RuntimeError, MemoryError) as error:
            if len(batch) < 2 or not out_of_memory(error):
                raise
            size = _room[place] = len(batch) // 2
            log.warning("out of memory with %d %s at once; going on with %d", len(batch), what, size)
        else:
            start += len(batch)
            yield made
            continue
        free_memory()  # once the error, which holds what the failed batch took, is gone


def offered() -> list[str]:
    """Devices torch offers here: ``cpu``, then each accelerator by number.

    >>> offered()[0]
    'cpu'
    """
    if not torch.accelerator.is_available():
        return ["cpu"]
    kind, count = torch.accelerator.current_accelerator().type, torch.accelerator.device_count()
    return ["cpu", *([kind] if count == 1 else [f"{kind}:{i}" for i in range(count)])]


def check_device(name: str, value: object) -> str:
    """The device that a setting means: ``auto`` is a GPU if torch finds one, else the CPU.

    Raises:
        ValueError: no device, or one this machine does not have; the line names those it has.

    >>> check_device("model.device", "gpu:9")
    Traceback (most recent call last):
    ValueError: model.device must be a device torch has here, one of auto, cpu...; got 'gpu:9'; write model.device=auto
    """
    here = offered()
    if value == "auto":
        return "cuda" if here[-1].startswith("cuda") else "cpu"
    kind, colon, number = str(value).partition(":")
    counted = sum(one.partition(":")[0] == kind for one in here)
    if not counted or (colon and not (number.isdigit() and int(number) < counted)):
        missing = f" ({kind}: torch finds none)" if kind in ("cuda", "mps", "xpu") and not counted else ""
        raise ValueError(
            f"{name} must be a device torch has here, one of {', '.join(['auto', *here])}; got {value!r}{missing}; "
            f"write {name}=auto"
        )
    return str(value)
