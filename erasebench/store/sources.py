"""Hashes of what decides a result: source files, and every file or folder a config names. Nothing is imported."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from erasebench.limits import read_json
from erasebench.store.files import locate, replacing

PLAIN = (
    "path",
    "real",
    "run",
    "weights",
    "file",
    "folder",
    "pretrained",
    "reference_file",
)  # keys whose plain word may be a file


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


# --- source files ---


def source_hash(target_names: Iterable[str]) -> str:
    """Hash of the code behind some ``_target_`` names: their files and all files these import, and so on.

    A changed implementation so gets new results instead of the cached ones of the old. Files of installed packages are
    left out (their versions stand in ``run.json``); a loose helper beside a user's own file counts. Comments,
    docstrings and layout do not.

    Raises:
        ValueError: a target whose module cannot be found.
    """
    todo, files = sorted({t.rpartition(".")[0] for t in target_names}), {}
    for module in todo:
        if _find(module) is None:
            raise ValueError(
                f"target module {module!r} cannot be found; check _target_ or put its folder on PYTHONPATH"
            )
    while todo:
        module = todo.pop()
        path = _find(module)
        if module in files or path is None or _installed(path):
            continue
        stat = path.stat()
        files[module], imported = _code(path, stat.st_mtime_ns, stat.st_size, module)
        todo += imported
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]


def _find(module: str) -> Path | None:
    """The file of a module, found without importing its parents; None if it is no Python file."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or not (spec.origin or spec.submodule_search_locations):
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        place = Path(folder).joinpath(*rest)
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                return path
    return None


@lru_cache(maxsize=1)
def _outside() -> tuple[Path, ...]:
    """Folders of the standard library and of installed packages."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    found = [sysconfig.get_paths()[n] for n in names] + site.getsitepackages() + [site.getusersitepackages()]
    return tuple(Path(p).resolve() for p in found)


def _installed(path: Path) -> bool:
    return "site-packages" in path.parts or any(path.resolve().is_relative_to(p) for p in _outside())


@lru_cache(maxsize=4096)
def _code(path: Path, mtime_ns: int, size: int, module: str) -> tuple[str, tuple[str, ...]]:
    """Hash of a file's code without comments and docstrings, and the modules it imports at run time."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    imported = dict.fromkeys(name for node in _at_run_time(tree) for name in _imports(node, package))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = [*node.body[1:], ast.Pass()]
    digest = hashlib.sha256(ast.unparse(tree).encode()).hexdigest()
    return digest, tuple(name for name in imported if name.split(".")[0] not in sys.stdlib_module_names)


def _at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING:``."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from _at_run_time(child)


def _imports(node: ast.AST, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        parents = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*parents, *([base] if base else [])])
    return [base, *(f"{base}.{alias.name}" for alias in node.names)]


# --- files and folders that a config names ---


def input_hashes(config: Any, memory: Path | None = None) -> list[str]:
    """Content hashes of everything on this disk that a config names, in order, so that new contents give new results.

    A text counts if it looks like a path (a separator, a suffix, ``~`` or ``pkg:``) and is one; a plain word counts
    only under the keys :data:`PLAIN`. A folder counts by all its files, the folder of a run by the key of the run;
    what is not there by nothing: reading it will say so.

    Args:
        config: nested mappings, lists and values.
        memory: JSON file where hashes of unchanged files are remembered, see :func:`folder_hash`.
    """
    return [digest for key, text in _texts(config) if (digest := _input_hash(key, text, memory))]


def _texts(config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield from _texts(value, str(name))
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _texts(value, key)
    elif isinstance(config, str) and key != "_target_":
        yield key, config


def _input_hash(key: str, text: str, memory: Path | None) -> str:
    if not text or len(text) > 1024 or "\n" in text:
        return ""
    if key not in PLAIN and not ("/" in text or text.startswith(("~", "pkg:")) or Path(text).suffix):
        return ""
    try:
        path = locate(text)
        if (path / "run.json").is_file():
            return str(read_json(path / "run.json")["key"])
        return folder_hash(path, memory) if path.exists() else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def folder_hash(folder: Path, memory: Path | None = None) -> str:
    """Hash of a file, or of all files of a folder by relative name; of a model folder only what loading may read.

    Args:
        folder: a diffusers folder, another folder, or one file.
        memory: JSON file where digests are kept, by path, size and modification time; None: all is read.
    """
    known = remembered(memory) if memory else {}
    fresh, lines = dict(known), []
    inside = [p for p in folder.rglob("*") if p.is_file()]
    if (folder / "model_index.json").is_file():
        inside = [p for p in inside if p.suffix in (".json", ".txt", ".safetensors")]
    for path in [folder] if folder.is_file() else sorted(inside):
        stat = path.stat()
        name = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        if name not in fresh:
            with path.open("rb") as file:
                fresh[name] = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{path.relative_to(folder).as_posix()} {fresh[name]}")
    if memory and fresh != known:
        with suppress(OSError), replacing(memory) as work:  # a disk that is read-only or full: they are made again
            work.write_text(json.dumps({"checksum": _checksum(fresh), "files": fresh}, indent=0), encoding="utf-8")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def remembered(memory: Path) -> dict[str, str]:
    """What :func:`folder_hash` remembers of files, by path, size and modification time; nothing if it was damaged."""
    try:
        found = read_json(memory)
        return dict(found["files"]) if found["checksum"] == _checksum(found["files"]) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _checksum(digests: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
