"""Types of every setting, checked in one way: against the annotations of the dataclass a config node names.

It happens before anything is built, so an error names the key as it is typed; ranges are the class's own business.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields as fields_of
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from erasebench import fields


def check(node: Any, key: str) -> None:
    """Refuse a node, or one nested in it, that names no class or holds a value that its class does not annotate.

    Args:
        node: config node with ``_target_``.
        key: where it stands, as typed.

    Raises:
        ValueError: ``method.lamb must be a finite number; got 'abc'``.

    >>> check({"_target_": "erasebench.types.Concept", "name": "cat", "phrases": "cat"}, "concept")
    Traceback (most recent call last):
    ValueError: concept.phrases must be a list of texts; got 'cat'; write concept.phrases=[cat]
    """
    from hydra.utils import get_object

    known = hints(get_object(fields.node(key, node)["_target_"]))
    for name, value in node.items():
        for place, inner in _nodes(value, f"{key}.{name}"):
            check(inner, place)
        if name in known and not any(True for _ in _nodes(value, "")):
            check_value(f"{key}.{name}", value, known[name])


def hints(made: Any) -> dict[str, Any]:
    """Field -> its annotation, of a dataclass; none for another object, or what only type checkers can resolve."""
    found: dict[str, Any] = {}
    if not (isinstance(made, type) and is_dataclass(made)):
        return found
    settable = {field.name for field in fields_of(made) if field.init}
    for part in reversed(made.__mro__):
        for name, hint in vars(part).get("__annotations__", {}).items():
            if name in settable:
                try:
                    there = vars(sys.modules[part.__module__])
                    found[name] = eval(hint, there) if isinstance(hint, str) else hint  # our own source's words
                except (NameError, TypeError, AttributeError):
                    found.pop(name, None)
    return found


def check_value(name: str, value: Any, hint: Any) -> None:
    """Refuse a plain value that is not of an annotation's type; annotations it does not know are taken.

    Raises:
        ValueError: it is not.
    """
    plain: dict[Any, Callable[[str, Any], Any]] = {
        int: fields.integer,
        float: fields.number,
        bool: fields.flag,
        str: fields.text,
        Path: fields.path,
    }
    origin, args = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, UnionType):
        _check_union(name, value, args)
    elif origin is Literal:
        fields.choice(name, value, args)
    elif origin in plain:
        plain[origin](name, value)
    elif origin in (tuple, list, Sequence):
        _check_list(name, value, args)
    elif origin is Mapping or origin is dict:
        fields.mapping(name, value)
        for key, inner in value.items() if len(args) == 2 else ():
            if not _is_node(inner):  # one is checked by its own class's annotations
                check_value(f"{name}.{key}", inner, args[1])
    elif isinstance(origin, type) and origin.__module__.partition(".")[0] not in ("builtins", "typing"):
        got = "null" if value is None else repr(value)
        raise ValueError(
            f"{name} must be settings of a {origin.__name__}; got {got}; leave it to its yaml, or name one"
        )


def _check_union(name: str, value: Any, args: Sequence[Any]) -> None:
    """Any of several types; the error is that of the first."""
    if value is None and NoneType in args:
        return
    failed: ValueError | None = None
    for one in args:
        if one is not NoneType:
            try:
                return check_value(name, value, one)
            except ValueError as error:
                failed = failed or error
    assert failed is not None
    raise failed


def _check_list(name: str, value: Any, args: Sequence[Any]) -> None:
    inner = args[0] if args else Any
    if not isinstance(value, list | tuple):
        (fields.numbers if inner in (int, float) else fields.texts)(name, value)
    several = len(args) < 2 or args[1] is Ellipsis
    if not several and len(value) != len(args):
        raise ValueError(f"{name} must hold {len(args)} values; got {len(value)}; write {name}=[A,B]")
    if inner is str:
        fields.texts(name, value, empty=True)
        return
    for i, one in enumerate(value):
        check_value(f"{name}[{i}]", one, inner if several else args[i])


def _is_node(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def _nodes(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The nodes with a target directly in a value, in a list, or in a mapping."""
    if _is_node(value):
        yield key, value
    elif isinstance(value, Mapping):
        yield from ((f"{key}.{name}", one) for name, one in value.items() if _is_node(one))
    elif isinstance(value, list | tuple):
        for i, one in enumerate(value):
            if _is_node(one):
                yield f"{key}[{i}]", one
