"""The cells of a command given to an executor that spreads them over workers, planned as Hydra would have run them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from erasebench.building import build
from erasebench.cell import Cell, plan
from erasebench.command.composing import as_job, session
from erasebench.command.typed import Typed
from erasebench.executors.cluster import Ended

__all__ = ["Ended", "chosen", "outcomes"]


def chosen(planned: Sequence[DictConfig], typed: Typed) -> Any:
    """The executor that spreads these cells over workers; None: this process runs them.

    Raises:
        ValueError: an impossible setting; cells with different ones; Hydra's own launcher or sweeper beside it.
    """
    nodes = [OmegaConf.to_container(cfg.executor, resolve=True) for cfg in planned if cfg.get("executor")]
    if not nodes:
        return None
    if any(node != nodes[0] for node in nodes):
        raise ValueError("executor - must be the same for all cells of a sweep; got several; give one command for each")
    executor = build(nodes[0], "executor")
    if not executor.spreads:
        return None
    for group, what in (
        ("hydra/launcher", "must launch the cells"),
        ("hydra/sweeper", "must know the cells beforehand"),
    ):
        if given := [o.input_line for o in typed.parsed if o.key_or_group == group]:
            raise ValueError(f"executor - {what}; got {given[0]} too; leave one of them out")
    return executor


def outcomes(executor: Any, planned: Sequence[DictConfig], labels: Sequence[str], typed: Typed) -> Iterator[Ended]:
    """What became of each cell, as soon as it is known; a cell that grows another's folder is begun after it."""
    pending = dict(enumerate(planned))
    while pending:
        cells, failed = dict[int, Cell](), list[Ended]()
        with session(typed.places):
            for number, cfg in [*pending.items()]:
                with as_job(cfg) as part:
                    try:
                        cell = plan(part)
                    except Exception as error:
                        failed.append(Ended(number, error, 0.0))
                        del pending[number]
                        continue
                if cell.folder not in {one.folder for one in cells.values()}:
                    cells[number] = cell
                    del pending[number]
        yield from failed
        yield from executor.run(cells, dict(enumerate(labels)))
