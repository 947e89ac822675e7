"""Everything a run will read, looked for before anything is loaded: files, packages, devices, space on the disk.

Nothing is known by name: what a config says is enough. A text under a key such as ``path`` is a file or, where a
``revision`` stands beside it, perhaps an id of the model hub; a node with a ``source`` says where its file comes from;
a class says by ``needs`` which packages it needs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from erasebench.building import EXTRAS, declared, missing_packages
from erasebench.cell import drawing
from erasebench.limits import read_json
from erasebench.progress import duration
from erasebench.prompts.files import read_rows
from erasebench.store.files import locate
from erasebench.types import KEPT_GROUPS

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
FILES = ("path", "run", "weights", "folder", "reference_file", "pool", "labels")  # keys whose texts may name a file
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
    """

    key: str
    what: str
    kind: Literal["file", "download", "package", "device"]
    there: bool
    get: str = ""

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
            yield Need(where, what, "download", there, "open_clip fetches it on first use")
        if name == "weights" and value is None:
            target = str(node.get("_target_", key))
            there = _torch_cached(declared(target, "fetched"))
            yield Need(where, f"weights of {target}", "download", there, f"fetched on first use; or {where}=FILE")
        if name not in FILES or not isinstance(value, str) or value.startswith("http"):
            continue
        if not _looks_like_file(value) and name not in ("path", "run"):
            continue
        path = locate(value)
        if path.exists() or name == "run":  # the attack that reads a run knows more ways to name it
            yield Need(where, value, "file", True, _origin(node))
        elif "revision" in node and "source" not in node and HUB.fullmatch(value) and path.suffix not in SUFFIXES:
            get = f"huggingface.co/{value}" + (f" at {node['revision'][:12]}" if node["revision"] else "")
            yield Need(where, value, "download", _cached(value, node["revision"]), f"fetched from {get} on first use")
        else:
            yield Need(where, value, "file", False, _origin(node))


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
    return Need(group, f"package {package}", "package", False, f"pip install '{wheel}'")


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


# --- what it will cost ---


def expected(configs: Sequence[Mapping[str, Any]], root: Path) -> str:
    """How many images the cells draw at most, and how long that takes if earlier runs in this folder tell.

    Args:
        configs: resolved configs of the cells; what they share is counted once.
        root: results folder.
    """
    images: dict[str, tuple[int, str]] = {}
    beside = cache(lambda target: declared(target, "beside"))  # the field that makes the model it compares with
    for config in configs:
        sampled = _sampled(config["model"])
        world = _text(config, "concept", "also", "prompts", "kept", "seed") + sampled
        for kind, number in _counts(config).items():
            attack = _text(config, "attack") if kind == "attack" else ""
            images[f"original {world} {attack}"] = (number, sampled)
            others = [node[field] for node in config["evaluator"].values() if (field := beside(node["_target_"]))]
            erased = [config["method"], *others]
            for method in erased:
                images[f"erased {world} {attack} {_text({'method': method}, 'method')}"] = (number, sampled)
    total = sum(number for number, _ in images.values())
    rates = _rates(root)
    known = [number * rates["draw", how] for number, how in images.values() if ("draw", how) in rates]
    if not known or len(known) < len(images):
        return f"at most {total} images; no earlier run here tells how long that takes"
    seconds = sum(known)
    for step, group in (("erase", "method"), ("attack", "attack")):
        wanted = {_text(config, "model", "concept", group) for config in configs}
        seconds += sum(rates.get((step, _text(config, group)), 0.0) for config in configs) * len(wanted) / len(configs)
    seconds += len(configs) * rates.get(("score", ""), 0.0)
    return f"at most {total} images, about {duration(seconds)} by what earlier runs here took"


def _counts(config: Mapping[str, Any]) -> dict[str, int]:
    """Images of one model: plain prompts, and those of the attack, at most."""
    prompts, attack = config["prompts"], config["attack"]
    n = prompts.get("n")
    groups = n if isinstance(n, Mapping) else {"target": n or _limit(prompts)}
    plain = sum(v for v in groups.values() if isinstance(v, int))
    if kept := config.get("kept"):
        own = [v for k, v in (kept.get("n") or {}).items() if k in KEPT_GROUPS]
        plain += sum(own) or _limit(kept)
    searched = len([k for k in attack if k != "_target_"]) > 0  # the null attack has no settings
    attacked = (groups.get("target") or 0) if searched else 0
    if "path" in attack:  # a set of prompts; elsewhere rows and limit are settings of a search
        known = [v for k in ("limit", "rows") if isinstance(v := attack.get(k), int)]
        attacked = min(known) if known else _limit(attack)
    return {"plain": plain, "attack": attacked}


def _limit(source: Mapping[str, Any]) -> int:
    """Prompts of a set, at most: its limit, the rows it is known to have, or those of its file."""
    if known := source.get("limit") or source.get("rows"):
        return int(known)
    try:
        return len(read_rows(locate(str(source["path"])), {}))
    except (OSError, ValueError, KeyError):  # whoever reads it says what is wrong
        return 0


def _text(config: Mapping[str, Any], *keys: str) -> str:
    return json.dumps([config.get(key) for key in keys], sort_keys=True, default=str)


def _sampled(model: Mapping[str, Any]) -> str:
    """What the time of an image depends on."""
    return json.dumps([drawing(model), model.get("path")], sort_keys=True, default=str)


def _rates(root: Path) -> dict[tuple[str, str], float]:
    """Seconds of a step, per image for drawing, by what it depends on: the largest of those recorded."""
    found: dict[tuple[str, str], float] = {}

    def add(step: str, what: str, seconds: float) -> None:
        found[step, what] = max(seconds, found.get((step, what), 0.0))

    for path in root.glob("runs/*/*/*/*/*/run.json"):
        try:
            record = read_json(path)
            config, steps = record["config"], record["steps"]
            if steps["draw"]["images"]:
                add("draw", _sampled(config["model"]), steps["draw"]["seconds"] / steps["draw"]["images"])
            for step, group in (("erase", "method"), ("attack", "attack"), ("score", "")):
                if not steps[step]["cached"]:
                    add(step, _text(config, group) if group else "", steps[step]["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found
