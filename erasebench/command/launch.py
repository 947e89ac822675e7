"""Run what was typed: one cell or a sweep, through Hydra, with errors in one line and exit codes that are right."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from erasebench import composed_configs as composed_configs  # registers what method=a+b chooses
from erasebench import conf_folder, costs, preflight, progress
from erasebench.command import dry, errors, spread
from erasebench.command import sweep as sweeps
from erasebench.command.choices import hint
from erasebench.command.composing import as_job, composed, session
from erasebench.command.sweep import Outcome, Sweep
from erasebench.command.typed import Typed
from erasebench.composition import joined
from erasebench.one_run import Result, run
from erasebench.report import display

CODES = {"ok": 0, "error": 2, "lost": 2, "fault": 1, "full": 1}  # of a cell's outcome; of several 1 before 2 before 0
_single: list[Outcome] = []


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a batch system sends it."""


def launch(arguments: Sequence[str]) -> int:
    """Run the command line (without the program's name) and return the exit code.

    0: all cells ran. 1: a fault of this program. 2: an error in what was given. 130, 143: stopped by Ctrl-C, SIGTERM.
    """
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        os.environ["ERASEBENCH_TRACEBACK"] = "1"
    alone = threading.current_thread() is threading.main_thread()
    before, interrupt = (signal.signal(signal.SIGTERM, _terminate) if alone else None), signal.getsignal(signal.SIGINT)
    try:
        given = _parse(arguments)
        typed = Typed(tuple(given.overrides), folders(given), given.config_name or "config")
        if given.shell_completion or given.info is not None or given.hydra_help:
            return _hydra(arguments_of(given), "0")
        typed.check()
        if given.dry_run:
            return _dry(given, typed)
        if given.multirun:
            return _sweep(given, typed)
        with session(typed.places):
            planned = [composed(typed, given.overrides)]
        if given.cfg is None and (executor := spread.chosen(planned, typed)):
            return _spread_one(executor, planned, typed)
        _single.clear()
        return _hydra(arguments_of(given)) or max((CODES[o.status] for o in _single), default=0)
    except KeyboardInterrupt as stopped:
        if before is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # pressed twice: once is enough
        print(f"\n{errors.STOPPED}", file=sys.stderr)
        return 143 if isinstance(stopped, Terminated) else 130
    except Exception as error:
        errors.report(error)
        return errors.code(error)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
            signal.signal(signal.SIGINT, interrupt)


def _terminate(*_: Any) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # batch systems send it to a process and to its group
    raise Terminated


class _Parser(argparse.ArgumentParser):
    """Hydra's options; an unknown one is a ValueError with the nearest."""

    def error(self, message: str) -> NoReturn:
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        word = next((w for w in message.split() if w.startswith("-")), "")
        raise ValueError(
            f"{word or 'options'} - must be an option ({', '.join(known)}); {message}; {hint(word, known)}"
        )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options and overrides in any order.

    Raises:
        ValueError: an option there is not.
    """
    parser = get_args_parser()
    parser.__class__ = _Parser
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_intermixed_args([*arguments])
    given.overrides = [joined(override) for override in given.overrides]
    return given


def arguments_of(given: argparse.Namespace, *more: str) -> list[str]:
    """The command line in the order Hydra's own parser wants: options first."""
    out: list[str] = []
    for name in ("multirun", "run", "shell_completion", "hydra_help", "resolve"):
        out += [f"--{name.replace('_', '-') if name != 'shell_completion' else name}"] if getattr(given, name) else []
    for name in ("config_dir", "config_path", "config_name", "cfg", "package", "info", "experimental_rerun"):
        if (value := getattr(given, name)) is not None:
            option = name if name == "experimental_rerun" else name.replace("_", "-")
            out += [f"--{option}", str(value)]
    return [*out, *given.overrides, *more]


def folders(given: argparse.Namespace) -> tuple[Path, ...]:
    """Config folders: those of ``--config-dir`` and ``hydra.searchpath``, and our own or that of ``--config-path``.

    Raises:
        ValueError: one that is not there.
    """
    own = Path(given.config_path) if given.config_path else conf_folder()
    named = [given.config_dir] if given.config_dir else []
    for text in given.overrides:
        if text.startswith("hydra.searchpath="):
            paths = text.partition("=")[2].strip("[]").split(",")
            named += [p.strip("'\" ").removeprefix("file://") for p in paths if "pkg://" not in p]
    for path in (Path(p).expanduser() for p in named):
        if not path.is_dir():
            raise ValueError(f"--config-dir - must be a folder; found no {path}; check the path")
    return (*(Path(p).expanduser().resolve() for p in named), own.resolve())


def _dry(given: argparse.Namespace, typed: Typed) -> int:
    """Print what the command line would take."""
    cells, labels = [given.overrides], [""]
    if given.multirun:
        cells, swept = typed.cells()
        labels = sweeps.labels(cells, swept)
    with session(typed.places):
        planned = [composed(typed, cell) for cell in cells]
    print(dry.plan(planned, labels))
    return 0


def _sweep(given: argparse.Namespace, typed: Typed) -> int:
    """All cells, their closing table and what failed."""
    labels: list[str] = []
    if not any(o.key_or_group == "hydra/sweeper" for o in typed.parsed):
        cells, swept = typed.cells()
        labels = sweeps.labels(cells, swept)
    else:  # a sweeper that decides on the way
        cells = [[o.input_line for o in typed.parsed if not o.is_sweep_override()]]
    with session(typed.places):
        planned = [composed(typed, cell) for cell in cells]
    root = Path(planned[0].results).expanduser()
    known = _look(planned, labels)
    executor = None if given.cfg else spread.chosen(planned, typed)
    sweep = Sweep.begin(root, labels)
    for launcher in ("hydra", "hydra_plugins"):
        logging.getLogger(launcher).setLevel(logging.WARNING)  # their list of cells would stand between ours
    started, stopped = time.time(), True
    cost = costs.expected(known, root) if labels else "as many as the sweeper asks for"
    print(f"{len(labels) or 'cells:'} {'cells: ' if labels else ''}{cost}", file=sys.stderr)
    try:
        if executor:
            code = 0
            for ended in spread.outcomes(executor, planned, labels, typed):
                name, label = sweep.name(ended.number), sweep.label(ended.number)
                _tell(_outcome_of(ended, label, f"{name} ({label})"), name, sweep)
        else:
            code = _hydra(arguments_of(given, f"+hydra.job.env_set.{sweeps.VARIABLE}='{sweep.folder}'"))
        stopped = False
    finally:
        outcomes = sweep.outcomes()
        if stopped:
            outcomes = [o for o in outcomes if o.status != "lost"]
        print(errors.printable(sweeps.closing(outcomes, started)), flush=True)
        sweep.end()
    return code or max((CODES[o.status] for o in outcomes), key=lambda c: (c > 0, -c), default=0)


def _look(planned: Sequence[DictConfig], labels: Sequence[str]) -> list[dict[str, Any]]:
    """The resolved configs of the cells, once everything that they read was found.

    Raises:
        preflight.Missing: with a line for each thing, and the cells that lack it.
    """
    lacking: dict[str, list[str]] = {}
    known = []
    for i, cfg in enumerate(planned):
        with as_job(cfg) as part:
            if OmegaConf.missing_keys(part):
                continue  # the cell itself says so
            config: Any = OmegaConf.to_container(part, resolve=True)
        known.append(config)
        for line in preflight.missing(config):
            lacking.setdefault(line, []).append(labels[i] if i < len(labels) else "")
    if lacking:
        raise preflight.Missing(
            [f"{len(cells)} of {len(planned)} cells ({cells[0]}): {line}" for line, cells in lacking.items()]
        )
    return known


def _hydra(arguments: Sequence[str], full: str = "1") -> int:
    """Hydra's own main with these arguments; its errors are raised as they are."""
    main = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(cell)
    with _environment(["erasebench", *arguments], HYDRA_FULL_ERROR=full):
        try:
            main()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 0 if end.code is None else 2
    return 0


@contextmanager
def _environment(argv: list[str], **variables: str) -> Iterator[None]:
    before, old = sys.argv, {name: os.environ.get(name) for name in variables}
    sys.argv = argv
    os.environ.update(variables)
    try:
        yield
    finally:
        sys.argv = before
        for name, value in old.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def cell(cfg: DictConfig) -> None:
    """One cell, as Hydra calls it in whichever process: a bad one is one line, and does not stop the others."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    sweep = Sweep.current()
    if sweep is None:
        _single.append(_attempt(cfg, 0, "", ""))
        return
    number = int(HydraConfig.get().job.num)
    name, label = sweep.name(number), sweep.label(number)
    with progress.labelled(f"{name}: "):
        outcome = _attempt(cfg, number, label, f"{name} ({label})")
    _tell(outcome, name, sweep)


def _tell(outcome: Outcome, name: str, sweep: Sweep) -> None:
    """Keep what became of a cell, and say it if it is good news; the bad was said."""
    sweep.add(outcome)
    if outcome.status == "ok":
        took = "stored" if outcome.cached else progress.duration(outcome.seconds)
        said = (f"{name} ({outcome.label}): {outcome.text}", took, sweep.left())
        print("; ".join(part for part in said if part), flush=True)


def _spread_one(executor: Any, planned: Sequence[DictConfig], typed: Typed) -> int:
    """One cell by an executor's workers; its exit code."""
    known = _look(planned, [""])
    progress.say(costs.expected(known, Path(planned[0].results).expanduser()))
    (ended,) = spread.outcomes(executor, planned, [""], typed)
    return CODES[_outcome_of(ended, "", "").status]


def _outcome_of(ended: spread.Ended, label: str, where: str) -> Outcome:
    """What became of a cell that others worked for, said as if it had run here."""
    if isinstance(ended.made, Exception):
        return _failure(ended.made, ended.number, label, where, ended.seconds)
    if not where:
        print(errors.printable(display.closing(ended.made)), flush=True)
    return _outcome(ended.number, label, ended.made, ended.seconds)


def _attempt(cfg: DictConfig, number: int, label: str, where: str) -> Outcome:
    started = time.monotonic()
    try:
        result = run(cfg)
    except Exception as error:
        return _failure(error, number, label, where, time.monotonic() - started)
    if not where:
        print(errors.printable(display.closing(result)), flush=True)
    return _outcome(number, label, result, time.monotonic() - started)


def _failure(error: Exception, number: int, label: str, where: str, seconds: float) -> Outcome:
    text = errors.report(error, where)
    status: Literal["error", "fault", "full"]
    status = "fault" if errors.explain(error) is None else "error" if errors.code(error) == 2 else "full"
    return Outcome(number, label, status, text, seconds)


def _outcome(number: int, label: str, result: Result, seconds: float) -> Outcome:
    text = sweeps.headline(result.summary)
    return Outcome(number, label, "ok", text, seconds, result.cached, str(result.folder.resolve()))
