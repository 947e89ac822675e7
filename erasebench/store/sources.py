"""Hashes of what a result was made with: source files, model folders. Nothing is imported or loaded to make them."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from erasebench.store.files import replacing


def targets(config: Any) -> list[str]:
    """Every ``_target_`` in a config, in order.

    >>> targets({"a": {"_target_": "x.Y", "b": [{"_target_": "x.Z"}]}})
    ['x.Y', 'x.Z']
    """
    if isinstance(config, Mapping):
        own = [str(config["_target_"])] if "_target_" in config else []
        return own + [t for value in config.values() for t in targets(value)]
    if isinstance(config, list | tuple):
        return [t for value in config for t in targets(value)]
    return []


def _file(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _siblings(path: Path, family: str) -> set[str]:
    """Modules of the same package that a source file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        found |= {n for n in names if n.split(".")[0] == family and _file(n)}
    return found


def source_hash(target_names: Iterable[str]) -> str:
    """Hash of the modules behind some ``_target_`` names and of the modules of their own package they import.

    A changed implementation so gets new results instead of the cached ones of the old. Modules of ``erasebench``
    itself count only where they are a target; its own steps carry version numbers.

    Raises:
        ValueError: a target whose module cannot be found.
    """
    todo, files = sorted({t.rpartition(".")[0] for t in target_names}), {}
    while todo:
        module = todo.pop()
        if module in files:
            continue
        path = _file(module)
        if path is None:
            raise ValueError(
                f"target module {module!r} cannot be found; check _target_ or put its folder on PYTHONPATH"
            )
        files[module] = hashlib.sha256(path.read_bytes()).hexdigest()
        family = module.split(".")[0]
        if family != "erasebench":
            todo += sorted(_siblings(path, family))
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]


def input_hashes(config: Any) -> list[str]:
    """Content hashes of the files a config reads, in order: values of its keys ``path``, and runs under ``run``.

    So a prompt set, pair file or vector that was changed under its name gives new results. A run's folder counts by
    the key of the run; a file or folder that is not there, or a model's folder, by nothing (models are hashed apart).
    """
    if isinstance(config, Mapping):
        own = [_input_hash(Path(config[k])) for k in ("path", "run") if isinstance(config.get(k), str)]
        return own + [h for value in config.values() for h in input_hashes(value)]
    if isinstance(config, list | tuple):
        return [h for value in config for h in input_hashes(value)]
    return []


def _input_hash(path: Path) -> str:
    try:
        if (path / "run.json").is_file():
            return str(json.loads((path / "run.json").read_text(encoding="utf-8"))["key"])
        if path.is_file():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError, KeyError):
        pass  # reading it will say what is wrong
    return ""


def path_hash(config: Mapping[str, Any], memory: Path) -> str:
    """Hash of the file or folder that a config's ``path`` names, so that new contents give new results; "" if none."""
    value = config.get("path")
    path = Path(value).expanduser() if isinstance(value, str) else None
    return folder_hash(path, memory) if path is not None and path.exists() else ""


def folder_hash(folder: Path, memory: Path) -> str:
    """Hash of all files of a model folder; contents of unchanged files are remembered in the JSON file ``memory``.

    Args:
        folder: a diffusers folder, or one file.
        memory: where digests of large files are kept, by path, size and modification time.
    """
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    fresh, lines = dict(known), []
    inside = [p for p in folder.rglob("*") if p.is_file() and p.suffix in (".json", ".txt", ".safetensors")]
    for path in [folder] if folder.is_file() else sorted(inside):
        stat = path.stat()
        name = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        if name not in fresh:
            with path.open("rb") as file:
                fresh[name] = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{path.relative_to(folder).as_posix()} {fresh[name]}")
    if fresh != known:
        with replacing(memory) as work:
            work.write_text(json.dumps(fresh, indent=0), encoding="utf-8")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
