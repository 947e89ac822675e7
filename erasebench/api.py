"""Python's way to what the command does: ``erasebench.run(method="uce", concept="cat")`` and ``erasebench.results()``.

Runs are composed, checked, named and stored exactly as on the command line; nothing of Hydra is left behind, so both
work in notebooks and within other Hydra programs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from erasebench.command.composing import as_job, composed, session
from erasebench.command.typed import Typed

if TYPE_CHECKING:
    import pandas as pd

    from erasebench.one_run import Result


class Tables(NamedTuple):
    """The tables of a results folder: every score, and every metric summarised with its interval."""

    scores: pd.DataFrame
    summary: pd.DataFrame


def run(*overrides: str, config_dir: str | Path | None = None, **settings: Any) -> Result:
    """Run one cell, or read it if it was run before.

    Args:
        overrides: as on the command line, ``"method.lamb=5"``.
        config_dir: folder of your own configs, as ``--config-dir``.
        settings: the same as keywords: groups and settings by name, ``method="uce"``, ``seed=1``; dotted ones as
            ``**{"method.lamb": 5}``; Python lists and dicts where a list or a mapping belongs.

    Returns:
        The run's folder, scores, summary and record, and whether all of it was there (``cached``).

    Raises:
        ValueError, OSError: bad input, one line, before any weight is loaded where that is possible.
    """
    typed = Typed((*overrides, *(f"{key}={text(value)}" for key, value in settings.items())), _folders(config_dir))
    typed.check()
    from erasebench.command import spread
    from erasebench.one_run import run as run_cell

    with session(typed.places):
        whole = composed(typed, typed.overrides)
        if executor := spread.chosen([whole], typed):
            (ended,) = spread.outcomes(executor, [whole], [""], typed)
            if isinstance(ended.made, Exception):
                raise ended.made
            return ended.made
        with as_job(whole) as cfg:
            return run_cell(cfg)


def load(folder: str | Path = "results") -> pd.DataFrame:
    """Every score in a results folder, one row per image and metric, tidy: columns in docs/metrics.md.

    Raises:
        OSError, ValueError: no such folder, no finished run in it, or a damaged table.
    """
    from erasebench.report.tables import read_results

    return read_results(Path(folder).expanduser())


def results(folder: str | Path = "results") -> Tables:
    """Everything measured in a results folder, as tidy data frames.

    Raises:
        OSError, ValueError: no such folder, no finished run in it, or a damaged table.
    """
    from erasebench.report.tables import summarise

    scores = load(folder)
    return Tables(scores, summarise(scores))


def text(value: Any) -> str:
    """A Python value as the text that means it on the command line.

    >>> text("uce"), text([1, "a b"]), text({"target": 5}), text(None), text("it's")
    ('uce', "[1,'a b']", '{target:5}', 'null', "'it\\\\'s'")
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{text(one)}" for key, one in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(text(one) for one in value) + "]"
    if isinstance(value, int | float):
        return repr(value)
    word = str(value)
    plain = re.fullmatch(r"[A-Za-z_][\w./+-]*", word) and word.lower() not in ("null", "true", "false", "nan", "inf")
    return word if plain else "'" + word.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _folders(config_dir: str | Path | None) -> tuple[Path, ...]:
    from erasebench import conf_folder

    if config_dir is None:
        return (conf_folder(),)
    folder = Path(config_dir).expanduser()
    if not folder.is_dir():
        raise ValueError(f"config_dir must be a folder; found no {folder}; check the path")
    return (folder.resolve(), conf_folder())
