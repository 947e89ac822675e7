"""Make the objects that config nodes describe, and say which packages they need."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from erasebench import settings

# package -> the extra of this project that installs it
EXTRAS = {"nudenet": "nudenet", "torchmetrics": "fid", "torch_fidelity": "fid", "onnxruntime": "nudenet", "ray": "ray"}


def build(config: Any, key: str = "") -> Any:
    """Instantiate a config node; the error of the object itself is raised, not Hydra's wrapping of it.

    Args:
        config: node with ``_target_``.
        key: where it stands in the config. With one, types are checked against the class's annotations first
            (:mod:`erasebench.settings`), and errors about a setting name it as it is typed.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    if key:
        settings.check(config, key)
    try:
        return instantiate(config, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        raise (_named(cause, error, config, key) if key and type(cause) is ValueError else cause) from None


def _named(cause: ValueError, error: Exception, config: Mapping[str, Any], key: str) -> ValueError:
    """An error that begins with a setting's name, with the whole key in its place."""
    inner = re.search(r"^full_key: (\S+)$", str(error), re.MULTILINE)
    node: Any = config
    for part in inner[1].split(".") if inner else ():
        node = node.get(part, {}) if isinstance(node, Mapping) else {}
        key += f".{part}"
    first = re.match(r"[A-Za-z_]\w*", str(cause))
    return ValueError(f"{key}.{cause}") if first and first[0] in node and first[0] != key.split(".")[0] else cause


def without_extras(nodes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The nodes that can be built with what is installed, and for each of the others the packages it lacks.

    >>> without_extras({"a": {"_target_": "erasebench.types.Concept", "name": "cat"}})
    ({'a': {'_target_': 'erasebench.types.Concept', 'name': 'cat'}}, {})
    """
    lacking = {name: missing_packages(node) for name, node in nodes.items()}
    return {name: node for name, node in nodes.items() if not lacking[name]}, {k: v for k, v in lacking.items() if v}


def missing_packages(config: Any) -> list[str]:
    """What the classes behind a node's ``_target_`` values declare as ``needs`` and is not installed.

    Read off their source, so that nothing is imported for it and a finished run is still found in a second.
    """
    wanted = dict.fromkeys(package for target in _targets(config) for package in declared(target, "needs") or ())
    return [package for package in wanted if importlib.util.find_spec(package) is None]


def _targets(config: Any) -> Iterator[str]:
    if isinstance(config, Mapping):
        if "_target_" in config:
            yield str(config["_target_"])
        config = list(config.values())
    if isinstance(config, list | tuple):
        for value in config:
            yield from _targets(value)


def declared(target: str, fact: str) -> Any:
    """A literal that the class of a ``_target_`` assigns to a name in its body, None where it does not; not imported.

    >>> declared("erasebench.judges.inception.Inception", "needs")
    ('torch_fidelity',)
    """
    module, _, name = target.rpartition(".")
    try:
        spec = importlib.util.find_spec(module)
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8")) if spec and spec.origin else ast.Module([], [])
    except (ImportError, ValueError, OSError, SyntaxError):
        return None  # building it will say what is wrong
    body = [line for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name for line in node.body]
    for line in body:
        named = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        if getattr(named, "id", "") == fact and (value := getattr(line, "value", None)) is not None:
            return ast.literal_eval(value)
    return None
