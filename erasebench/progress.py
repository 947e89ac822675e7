"""What a long computation says while it works: a tqdm bar on a terminal, plain lines anywhere else.

Off a terminal (a log, a pipe, a batch job) every step has a line at its end, and whatever runs for long has a line
every 30 seconds, also where nothing counts: ``attack: ringabell 3 of 8 searches, 1 min 30 s, 2 min 30 s left``.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

EVERY = 30.0  # seconds between two lines
_lock = threading.Lock()
_names: list[str] = []  # of the steps that run, the outermost first
_bars: list[Bar] = []  # that are open
_label = ""  # of the cell, in a sweep


def terminal() -> bool:
    """Whether progress is shown by bars: stderr is a terminal."""
    return bool(getattr(sys.stderr, "isatty", lambda: False)())


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(0.42), duration(75), duration(3 * 3600 + 125)
    ('0.4 s', '1 min 15 s', '3 h 2 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def plural(unit: str) -> str:
    """Several of a unit.

    >>> [plural(unit) for unit in ("image", "search", "query", "it")]
    ['images', 'searches', 'queries', '']
    """
    if unit == "it":
        return ""
    return unit[:-1] + "ies" if unit.endswith("y") else unit + ("es" if unit.endswith("ch") else "s")


def say(text: str) -> None:
    """One plain line on stderr, above the bars on a terminal."""
    if terminal():
        tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr, flush=True)


def say_alone(text: str) -> None:
    """The same, but not for the cells of a sweep: there it is said once for all of them."""
    if not _label:
        say(text)


class Bar:
    """A counter that is a tqdm bar on a terminal and is told of in lines elsewhere; open it by :func:`bar`."""

    def __init__(self, total: int | None, desc: str, unit: str, initial: int) -> None:
        self.total, self.desc, self.unit, self.initial, self.n = total, desc, unit, initial, initial
        self.note, self.started = "", time.monotonic()
        self._bar: Any = None
        if terminal() and total != 0:
            self._bar = tqdm(total=total, desc=desc, unit=unit, initial=initial, smoothing=0.1)

    def __enter__(self) -> Bar:
        with _lock:
            _bars.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        """Count ``n`` more."""
        self.n += n
        if self._bar is not None:
            self._bar.update(n)

    def set_postfix_str(self, text: str) -> None:
        """What is being worked on or how it stands, behind the count."""
        self.note = text
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def set_postfix(self, **values: Any) -> None:
        """The same from named values."""
        self.set_postfix_str(", ".join(f"{k}={f'{v:.3g}' if isinstance(v, float) else v}" for k, v in values.items()))

    def refresh(self) -> None:
        """Draw a terminal's bar anew."""
        if self._bar is not None:
            self._bar.n = self.n
            self._bar.refresh()

    def close(self) -> None:
        with _lock:
            if self in _bars:
                _bars.remove(self)
        if self._bar is not None:
            self._bar.close()

    def __str__(self) -> str:
        """``ringabell 3 of 8 searches, 1 min left``."""
        of = f" of {self.total}" if self.total is not None else ""
        desc = "" if self.desc in _names else f"{self.desc} "  # said already
        text = f"{desc}{self.n}{of} {plural(self.unit)}".strip()
        done, passed = self.n - self.initial, time.monotonic() - self.started
        if self.total and done > 0 and self.n < self.total:
            text += f", {duration(passed / done * (self.total - self.n))} left"
        return f"{text}, {self.note}" if self.note else text


def bar(total: int | None = None, desc: str = "", unit: str = "it", initial: int = 0) -> Bar:
    """A counter for a ``with`` block: ``with progress.bar(total=8, desc="search", unit="prompt") as bar``."""
    return Bar(total, desc, unit, initial)


@contextmanager
def step(name: str, record: dict[str, Any] | None = None) -> Iterator[None]:
    """A step of a run, with a line at its end and every 30 seconds where there is no terminal.

    Args:
        name: one word, as in run.json.
        record: what the step says of itself; its key ``cached`` shows as "stored".
    """
    started, done = time.monotonic(), threading.Event()
    _names.append(name)
    if not terminal() and len(_names) == 1:
        threading.Thread(target=_tell, args=(started, done), daemon=True).start()
    try:
        yield
        if not terminal():
            stored = " (stored)" if (record or {}).get("cached") else ""
            say(f"{_label}{': '.join(_names)}: {duration(time.monotonic() - started)}{stored}")
    finally:
        done.set()
        _names.remove(name)


def _tell(started: float, done: threading.Event) -> None:
    """Say every 30 seconds what is going on."""
    while not done.wait(EVERY):
        with _lock:
            inner = str(_bars[-1]) if _bars else ""
        passed = f"{duration(time.monotonic() - started)} so far"
        say(f"{_label}{': '.join(_names)}: {', '.join(part for part in (inner, passed) if part)}")


@contextmanager
def labelled(text: str) -> Iterator[None]:
    """Lead every line by the cell of a sweep."""
    global _label
    before, _label = _label, text
    try:
        yield
    finally:
        _label = before
