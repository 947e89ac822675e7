"""Checks of hyper-parameters, written once: each returns the value or raises one line that says what to write.

A line is ``name - what must hold; what was got; what to do``. A bool is no number, a number in a text is none either
(the line says how to write it), and a single word is no list. Nothing here knows what the names mean.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

_PLAIN = re.compile(r"\w[\w.+@-]*")


def number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    hint: str = "",
) -> Any:
    """The value, a finite int or float with ``least <= value <= most`` and ``above < value < below``, as it stands.

    Raises:
        ValueError: it is something else; ``hint`` ends the line.

    >>> number("lr", 1e-5, above=0)
    1e-05
    >>> number("decay", 1.0, least=0, below=1)
    Traceback (most recent call last):
    ValueError: decay must be a finite number >= 0 and < 1; got 1.0
    >>> number("lamb", "0.5", least=0)
    Traceback (most recent call last):
    ValueError: lamb must be a finite number >= 0; got '0.5', which is a text; write lamb=0.5
    """
    signs = {">=": least, ">": above, "<=": most, "<": below}
    limits = " and ".join(f"{sign} {limit:g}" for sign, limit in signs.items() if limit is not None)
    right = isinstance(value, int | float) and not isinstance(value, bool) and _finite(value)
    right = right and (least is None or value >= least) and (above is None or value > above)
    if not right or (most is not None and value > most) or (below is not None and value >= below):
        _refuse(name, " ".join(filter(None, ("must be a finite number", limits))), value, _numeric(name, value) or hint)
    return value


def integer(name: str, value: Any, *, least: int | None = None, most: int | None = None, hint: str = "") -> int:
    """The value, an integer with ``least <= value <= most``.

    Raises:
        ValueError: it is something else; ``hint`` ends the line.

    >>> integer("epochs", 0, least=1, hint="the paper uses 3")
    Traceback (most recent call last):
    ValueError: epochs must be an integer >= 1; got 0; the paper uses 3
    >>> integer("iterations", 1e3, least=1)
    Traceback (most recent call last):
    ValueError: iterations must be an integer >= 1; got 1000.0; write iterations=1000
    """
    limits = " and ".join(f"{sign} {limit}" for sign, limit in ((">=", least), ("<=", most)) if limit is not None)
    right = isinstance(value, int) and not isinstance(value, bool)
    if not right or (least is not None and value < least) or (most is not None and value > most):
        whole = _numeric(name, value, whole=True)
        _refuse(name, " ".join(filter(None, ("must be an integer", limits))), value, whole or hint)
    return int(value)


def flag(name: str, value: Any) -> bool:
    """The value, true or false; 0, 1 and texts are neither.

    >>> flag("tied", "no")
    Traceback (most recent call last):
    ValueError: tied must be true or false; got 'no'; write tied=true or tied=false
    """
    if not isinstance(value, bool):
        _refuse(name, "must be true or false", value, f"write {name}=true or {name}=false")
    return bool(value)


def choice(name: str, value: Any, choices: Iterable[Any], *, hint: str = "") -> Any:
    """The value, one of ``choices``.

    >>> choice("layers", "xatn", ["xattn", "full"])
    Traceback (most recent call last):
    ValueError: layers must be one of xattn, full; got 'xatn'; did you mean xattn?
    """
    choices = list(choices)
    if not any(value == known and type(value) is type(known) for known in choices):
        advice = hint or meant(value, choices) or "correct its spelling"
        _refuse(name, f"must be one of {', '.join(map(str, choices))}", value, advice)
    return value


def text(name: str, value: Any, *, empty: bool = True, hint: str = "") -> str:
    """The value, a text; an integer is taken as its digits. With ``empty=False`` it must hold more than spaces.

    >>> text("anchor", None, hint='write anchor="" for the empty text')
    Traceback (most recent call last):
    ValueError: anchor must be a text; got null; write anchor="" for the empty text
    """
    found = _word(value)
    if found is None or not (empty or found.strip()):
        _refuse(name, f"must be a {'' if empty else 'non-empty '}text", value, hint or _quoted(name, value))
    return str(found)


def word(name: str, value: Any, *, most: int = 120, hint: str = "rename it") -> str:
    """The value, a plain word that may name a folder anywhere and is no formula, option or hidden file.

    Letters (of any script), digits, ``_ . + @ -``, at most ``most`` bytes, the first a letter, digit or underscore.

    >>> word("model.name", "sd14-v1.4")
    'sd14-v1.4'
    >>> word("model.name", "../../x")
    Traceback (most recent call last):
    ValueError: model.name must be a plain word (letters, digits, _ . + @ -; at most 120); got '../../x'; rename it
    """
    found = _word(value)
    if found is None or not _PLAIN.fullmatch(found) or len(found.encode()) > most:
        _refuse(name, f"must be a plain word (letters, digits, _ . + @ -; at most {most})", value, hint)
    return str(found)


def texts(name: str, value: Any, *, least: int = 0, empty: bool = False, hint: str = "") -> tuple[str, ...]:
    """The value, a list of texts, as a tuple; integers among them are taken as their digits.

    Args:
        name: of the field.
        value: list or tuple; a single word is refused, for it would be read letter by letter.
        least: fewest texts allowed.
        empty: whether a text may be empty or blank.
        hint: ends the line for too few texts.

    Raises:
        ValueError: no list, or something in it that is no text.

    >>> texts("concept.phrases", ["1984", 1984])
    ('1984', '1984')
    >>> texts("concept.phrases", "kitty")
    Traceback (most recent call last):
    ValueError: concept.phrases must be a list of texts; got 'kitty'; write concept.phrases=[kitty]
    """
    rule = "must be a list of texts"
    if not isinstance(value, list | tuple):
        _refuse(name, rule, value, _bracketed(name, value))
    if len(value) < least:
        _refuse(name, f"must hold at least {least} text{'s' * (least > 1)}", list(value), hint or f"add to {name}")
    found = []
    for entry in value:
        word = _word(entry)
        if word is None or not (empty or word.strip()):
            advice = f'write it in quotes: "{_shown(entry)}"' if isinstance(entry, bool | float) else "mend that entry"
            _refuse(name, "must be a list of non-empty texts" if not empty else rule, list(value), advice)
        found.append(str(word))
    return tuple(found)


def chosen(name: str, value: Any, choices: Iterable[str], *, least: int = 0) -> tuple[str, ...]:
    """The value, a list of ``choices``, as a tuple.

    >>> chosen("groups", ["target", "neighbor"], ["target", "neighbour"])
    Traceback (most recent call last):
    ValueError: groups must hold only target, neighbour; got 'neighbor'; did you mean neighbour?
    """
    choices = list(choices)
    found = texts(name, value, least=least, hint=f"choose among {', '.join(choices)}")
    for entry in found:
        if entry not in choices:
            advice = meant(entry, choices) or "correct its spelling"
            _refuse(name, f"must hold only {', '.join(choices)}", entry, advice)
    return found


def numbers(
    name: str, value: Any, *, least: Any = None, above: float | None = None, most: Any = None, whole: bool = False
) -> tuple[Any, ...]:
    """The value, a list of at least one number in a range, as a tuple; integers alone where they must be ``whole``.

    >>> numbers("thresholds", 0.5)
    Traceback (most recent call last):
    ValueError: thresholds must be a list of numbers; got 0.5; write thresholds=[0.5]
    """
    if not isinstance(value, list | tuple):
        _refuse(name, "must be a list of numbers", value, _bracketed(name, value))
    if not value:
        _refuse(name, "must hold at least one number", [], f"add to {name}")
    if whole:
        return tuple(integer(name, entry, least=least, most=most) for entry in value)
    return tuple(number(name, entry, least=least, above=above, most=most) for entry in value)


def pixels(name: str, value: Any) -> int | None:
    """The value, a side of an image in pixels, or None for the model's own.

    >>> pixels("model.height", 100)
    Traceback (most recent call last):
    ValueError: model.height must be null or a multiple of 8 from 8 to 8192; got 100; write model.height=96
    """
    right = value is None or (type(value) is int and value % 8 == 0 and 8 <= value <= 8192)
    if not right:
        near = 8 * max(1, min(1024, value // 8)) if type(value) is int else None
        _refuse(name, "must be null or a multiple of 8 from 8 to 8192", value, f"write {name}={_shown(near)}")
    return value if value is None else int(value)


def mapping(name: str, value: Any, keys: Iterable[str] = (), *, least: int = 0) -> Mapping[str, Any]:
    """The value, a mapping that has all of ``keys`` and at least ``least`` entries.

    >>> mapping("evaluator", {}, least=1)
    Traceback (most recent call last):
    ValueError: evaluator must hold at least one setting; got nothing; name one, evaluator=[...]
    """
    if not isinstance(value, Mapping):
        _refuse(name, "must be a mapping of settings", value, f"choose one of its yamls with {name}=...")
    if len(value) < least:
        raise ValueError(f"{name} must hold at least one setting; got nothing; name one, {name}=[...]")
    for key in keys:
        if key not in value:
            raise ValueError(f"{name}.{key} must be given; got nothing; write +{name}.{key}=...")
    return value


def node(name: str, value: Any) -> Mapping[str, Any]:
    """The value, settings that say with ``_target_`` what they are of.

    >>> node("method", None)
    Traceback (most recent call last):
    ValueError: method must be settings with a _target_; got null; choose one of its yamls by name
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("_target_"), str):
        _refuse(name, "must be settings with a _target_", value, "choose one of its yamls by name")
    return value


def path(name: str, value: Any) -> Path:
    """The value as a path, see :func:`locate`.

    >>> path("weights", 3)
    Traceback (most recent call last):
    ValueError: weights must be a path; got 3; write weights=FILE
    """
    if not isinstance(value, str | Path) or not str(value).strip():
        _refuse(name, "must be a path", value, f"write {name}=FILE")
    return locate(value)


def locate(text: str | Path) -> Path:
    """The path a config means: ``~`` is the home folder, ``pkg:PACKAGE/REST`` lies inside an importable package.

    Raises:
        FileNotFoundError: a package that cannot be found.

    >>> locate("pkg:erasebench/emoji").name, locate("~").is_absolute()
    ('emoji', True)
    """
    name = str(text)
    if not name.startswith("pkg:"):
        return Path(name).expanduser()
    package, _, rest = name.removeprefix("pkg:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None  # a.b would import a
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"{name} must lie in an importable package; {package!r} is none; install it")
    return Path(next(iter(spec.submodule_search_locations))) / rest


def meant(word: Any, choices: Iterable[Any]) -> str:
    """``did you mean ...?`` for the closest of the choices; "" if none is close.

    >>> meant("ringbell", ["ringabell", "p4d"]), meant("x", ["ringabell"])
    ('did you mean ringabell?', '')
    """
    close = get_close_matches(str(word).lower(), [str(c) for c in choices], n=1)
    return f"did you mean {close[0]}?" if close else ""


def _refuse(name: str, rule: str, value: Any, advice: str) -> NoReturn:
    kind = ", which is a text" if isinstance(value, str) and _as_number(value) is not None else ""
    raise ValueError("; ".join(filter(None, (f"{name} {rule}", f"got {_shown(value, repr)}{kind}", advice))))


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the floats
        return False


def _as_number(value: str) -> float | None:
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _numeric(name: str, value: Any, whole: bool = False) -> str:
    """How to write a number that came as a text, or an integer that came as a float; "" for anything else."""
    if not isinstance(value, str) and not (whole and isinstance(value, float)):
        return ""
    found = _as_number(str(value))
    if found is None or (whole and found != int(found)):
        return ""
    digits = str(value).strip()
    return f"write {name}={int(found) if whole and not digits.isdigit() else digits}"


def _word(value: Any) -> str | None:
    """A text, or an integer's digits; None for what is neither."""
    return value if isinstance(value, str) else str(value) if type(value) is int else None


def _shown(value: Any, show: Any = str) -> str:
    """A value as a yaml writes it."""
    constants = {"None": "null", "True": "true", "False": "false"}
    return constants[str(value)] if value is None or isinstance(value, bool) else str(show(value))


def _quoted(name: str, value: Any) -> str:
    return f'write {name}="{_shown(value)}"' if isinstance(value, bool | float) else f"write {name}=TEXT"


def _bracketed(name: str, value: Any) -> str:
    return f"write {name}=[{_shown(value)}]" if value is not None and value != "" else f"write {name}=[]"
