"""Objects that a results folder describes: results are data, and whoever shares them names no code to run.

A node of ``run.json`` or ``erasure.json`` is built only if every class it names is a dataclass of a module that the
config folders in use name themselves (ours, and what ``--config-dir`` adds, whose author is trusted), and if it holds
plain values only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from erasebench.building import build
from erasebench.several import config_folders

NAMED = re.compile(r"^\s*(?:-\s+)?_target_:\s*[\"']?([\w.]+)", re.MULTILINE)
T = TypeVar("T")


def rebuild(node: Mapping[str, Any], kind: type[T], where: str) -> T:
    """The object of a node that was read from a results folder.

    Args:
        node: with ``_target_``; nested nodes as well.
        kind: what it must be.
        where: the file, for the error.

    Raises:
        ValueError: a class that no config in use names, a value that is none of JSON's plain ones, or another kind.

    >>> from erasebench.types import Concept
    >>> rebuild({"_target_": "erasebench.types.Concept", "name": "cat", "phrases": ["cat"]}, Concept, "run.json").name
    'cat'
    >>> rebuild({"_target_": "os.system", "command": "true"}, Concept, "run.json")
    Traceback (most recent call last):
    ValueError: run.json names os.system, which must be a class that a config in use names; a results folder is data ...
    """
    check(node, where)
    made = build(dict(node))
    if kind not in type(made).__mro__:
        raise ValueError(f"{where} must describe a {kind.__name__} here; got {type(made).__name__}; run the cell again")
    return made


def check(node: Any, where: str) -> None:
    """Refuse a node that names other classes, or holds other values, than :func:`rebuild` takes.

    Raises:
        ValueError: as there.
    """
    for target in _targets(node, where):
        if not _is_known(target):
            raise ValueError(
                f"{where} names {target}, which must be a class that a config in use names; a results folder is data "
                "and runs no code of its own; if it is yours, give its configs with --config-dir"
            )


def _targets(node: Any, where: str) -> Iterator[str]:
    """Every class that a node names; what would make Hydra do more than build classes is refused."""
    if isinstance(node, Mapping):
        if special := [key for key in node if str(key).startswith("_") and key != "_target_"]:
            raise ValueError(f"{where} must hold plain values; got the key {special[0]!r}; run the cell again")
        if "_target_" in node:
            yield str(node["_target_"])
        node = [value for key, value in node.items() if key != "_target_"]
    if isinstance(node, Sequence) and not isinstance(node, str):
        for value in node:
            yield from _targets(value, where)
    elif isinstance(node, str) and "${" in node:
        raise ValueError(f"{where} must hold plain values; got the interpolation {node!r}; run the cell again")


def _is_known(target: str) -> bool:
    """Whether a name is a dataclass of a module that some config in use names. Only such a module is imported."""
    module, _, name = target.rpartition(".")
    if module not in _modules(tuple(config_folders())):
        return False
    found = getattr(import_module(module), name, None)
    return isinstance(found, type) and is_dataclass(found) and found.__module__ == module


@lru_cache(maxsize=8)
def _modules(folders: tuple[Path, ...]) -> frozenset[str]:
    texts = (path.read_text(encoding="utf-8") for folder in folders for path in folder.rglob("*.yaml"))
    return frozenset(target.rpartition(".")[0] for text in texts for target in NAMED.findall(text))
