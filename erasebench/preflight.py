"""Everything a run will read, looked for before anything is loaded: files, packages, devices, space on the disk.

Nothing is known by name: what a config says is enough. A text under a key such as ``path`` is a file or, where a
``revision`` stands beside it, perhaps an id of the model hub; a node with a ``source`` says where its file comes from;
a class says by ``needs`` which packages it needs.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from erasebench import fetching
from erasebench.building import EXTRAS, declared, missing_packages
from erasebench.store.files import locate

READ = (
    "model",
    "concept",
    "method",
    "attack",
    "judge",
    "prompts",
    "kept",
    "evaluator",
)  # the rest is read through these
SHARED = ("judge", "clip", "features")  # nodes that others take over whole
FILES = (
    "path",
    "real",
    "run",
    "weights",
    "folder",
    "reference_file",
    "pool",
    "labels",
)  # keys whose texts may name a file
SUFFIXES = (".csv", ".parquet", ".json", ".npy", ".safetensors", ".onnx", ".txt", ".bin", ".pt", ".pth", ".ckpt")
HUB = re.compile(r"[\w.-]+/[\w.-]+")  # an id of the model hub
LEAST = 50 * 2**20  # bytes on the disk below which nothing is begun


class Missing(FileNotFoundError):
    """What a run would read and is not there; ``lines`` has one line for each thing."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("; also: ".join(lines))
        self.lines = tuple(lines)


@dataclass(frozen=True)
class Need:
    """One thing a run reads.

    Args:
        key: of the config, ``attack.path``.
        what: the file, hub id, package or device.
        kind: of thing.
        there: whether it is on this machine.
        get: where it comes from and how to have it.
        fetch: the command that does, if there is one.
    """

    key: str
    what: str
    kind: Literal["file", "download", "package", "device"]
    there: bool
    get: str = ""
    fetch: str = ""

    @property
    def line(self) -> str:
        return f"{self.key} - {self.what} must be there; it is not; {self.get or 'check the path'}"


def needs(config: Mapping[str, Any]) -> list[Need]:
    """What a resolved config reads, each thing once, in the config's order."""
    found: dict[tuple[str, str], Need] = {}
    for key, node in _nodes(config):
        for need in _files(key, node):
            found.setdefault((need.kind, need.what), need)
        if "device" in node and node["device"] not in ("cpu", "auto"):
            found.setdefault(("device", str(node["device"])), _device(f"{key}.device", node["device"]))
    for group in READ:
        for package in missing_packages(config.get(group)):
            found.setdefault(("package", package), _package(group, package))
    return list(found.values())


def missing(config: Mapping[str, Any]) -> list[str]:
    """A line for everything that is not there and will not come by itself; no room on the disk is one, too."""
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    lacking = [n for n in needs(config) if not n.there and (n.kind != "download" or offline)]
    lines = [n.line for n in lacking if (n.key, n.kind) != ("evaluator", "package")]  # such an evaluator is left out
    free = _free(locate(str(config["results"])))
    if free < LEAST:
        lines.append(f"results - disk must have room; {free / 2**20:.0f} MB are left; free some or change results=")
    return lines


def check(config: Mapping[str, Any]) -> None:
    """Refuse a run that lacks something.

    Raises:
        Missing: with a line for each thing.
    """
    if lines := missing(config):
        raise Missing(lines)


def _nodes(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping that a run reads with its dotted key, a shared node with the key it is set by."""

    def below(node: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        if isinstance(node, Mapping):
            key = next((group for group in SHARED if node and node == config.get(group)), key)
            yield key, node
            for name, value in node.items():
                yield from below(value, f"{key}.{name}")
        elif isinstance(node, list | tuple):
            for i, value in enumerate(node):
                yield from below(value, f"{key}.{i}")

    for group in READ:
        yield from below(config.get(group), group)


def _files(key: str, node: Mapping[str, Any]) -> Iterator[Need]:
    for name, value in node.items():
        where = f"{key}.{name}" if key else str(name)
        if name == "pretrained" and isinstance(value, str) and not _looks_like_file(value):
            what, there = f"{node.get('model', '')} {value}".strip(), _clip_cached(str(node.get("model")), value)
            yield Need(
                where,
                what,
                "download",
                there,
                "open_clip fetches it on first use",
                fetching.open_clip(str(node.get("model")), value),
            )
        if name == "weights" and value is None:
            target = str(node.get("_target_", key))
            fetched, command = declared(target, "fetched"), fetching.declared_by(target)
            if fetched is None and command:  # nothing fetches it by itself
                yield Need(
                    where, f"weights of {target}", "file", False, f"{where}=FILE; to make it: {command}", command
                )
                continue
            there = _torch_cached(fetched)
            yield Need(
                where,
                f"weights of {target}",
                "download",
                there,
                f"fetched on first use; or {where}=FILE",
                command,
            )
        if name not in FILES or not isinstance(value, str) or value.startswith("http"):
            continue
        if not _looks_like_file(value) and name not in ("path", "run"):
            continue
        path = locate(value)
        if path.exists() or name == "run":  # the attack that reads a run knows more ways to name it
            yield Need(where, value, "file", True, _origin(node))
        elif "revision" in node and "source" not in node and HUB.fullmatch(value) and path.suffix not in SUFFIXES:
            get = f"huggingface.co/{value}" + (f" at {node['revision'][:12]}" if node["revision"] else "")
            yield Need(
                where,
                value,
                "download",
                _cached(value, node["revision"]),
                f"fetched from {get} on first use",
                fetching.hub(value, node["revision"]),
            )
        else:
            yield Need(where, value, "file", False, _origin(node), fetching.from_github(node, value))


def _looks_like_file(text: str) -> bool:
    return "/" in text or text.startswith(("~", "pkg:")) or Path(text).suffix.lower() in SUFFIXES


def _origin(node: Mapping[str, Any]) -> str:
    """Where the file of a node comes from, as its yaml says."""
    if not node.get("source"):
        return ""
    parts = [f"fetch {node['file']} of {node['source']}" if node.get("file") else f"it comes from {node['source']}"]
    parts += [f"at {node['revision']}"] if node.get("revision") else []
    parts += [f"sha256 {node['sha256']}..."] if node.get("sha256") else []
    parts += [f"licence {node['licence']}"] if node.get("licence") else []
    parts += [f"ask for it at {node['page']}"] if node.get("page") else []
    return ", ".join(parts)


def _cached(name: str, revision: str | None) -> bool:
    """Whether the model hub's cache on this machine holds a model."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    return (cache / f"models--{name.replace('/', '--')}" / "snapshots" / (revision or "")).is_dir()


def _clip_cached(model: str, tag: str) -> bool:
    """Whether the model hub's cache on this machine holds weights of open_clip."""
    try:
        from open_clip import get_pretrained_cfg
    except ImportError:  # building the model says so
        return False
    return _cached(get_pretrained_cfg(model, tag).get("hf_hub", "").rstrip("/"), None)


def _torch_cached(file: str | None) -> bool:
    """Whether torch's own cache of downloads holds a file."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"
    return bool(file) and (Path(home).expanduser() / "hub" / "checkpoints" / str(file)).is_file()


def _package(group: str, package: str) -> Need:
    wheel = f"erasebench[{EXTRAS[package]}]" if package in EXTRAS else package
    return Need(group, f"package {package}", "package", False, f"pip install '{wheel}'", f"pip install '{wheel}'")


def _device(key: str, value: Any) -> Need:
    from erasebench.devices import check_device

    try:
        check_device(key, value)
    except ValueError as error:
        return Need(key, f"device {value}", "device", False, str(error).partition("here, ")[2])  # which there are
    return Need(key, f"device {value}", "device", True)


def _free(folder: Path) -> int:
    """Free bytes where a folder is or will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
