"""The original model that is loaded, kept for the next cell of a grid, and watched: no step may change it in place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from erasebench import diffusion
from erasebench.types import Pipeline

pipes: dict[str, Pipeline] = {}  # the last model, so that the cells of a grid load it once
prints: dict[int, str] = {}  # its fingerprint by its id, which the last step found as it was


def forget() -> None:
    """The loaded model, so that the next cell loads it anew."""
    pipes.clear()
    prints.clear()


@contextmanager
def unharmed(who: str, pipe: Pipeline, beside: Pipeline | None = None) -> Iterator[None]:
    """Refuse what the block returns if it changed ``pipe`` itself: every later cell would draw the damaged model.

    Args:
        who: named in the error.
        pipe: what is watched.
        beside: the model it is a fork of, which is watched too: tensors that they share are looked at once.

    Raises:
        ValueError: weights, configs, the scheduler or hooks of ``pipe`` are not as they were; the model is forgotten.
    """
    known = any(pipe is kept for kept in pipes.values())  # what the last step left as it was is not hashed again
    before = prints.get(id(pipe)) if known else None
    before = before or diffusion.fingerprint(pipe, None if pipe is beside else beside)
    try:
        yield
    finally:
        harmed = diffusion.fingerprint(pipe, None if pipe is beside else beside) != before
        if harmed:
            forget()
        elif known and (beside is None or pipe is beside):
            prints[id(pipe)] = before
    if harmed:
        raise ValueError(
            f"{who} must leave the pipeline it is given as it was; it changed it in place (weights, scheduler, or a "
            "forgotten hook); work on erasebench.diffusion.fork(pipe) and replace parameters instead of writing to them"
        )
