"""An erasure as files: what differs from the original model, and nothing else.

``changed.safetensors`` holds the changed tensors by name (``unet.<...>``), ``erasure.json`` how they were made and, for
a method that works while drawing, its guide. Adapters are named there, too; their tensors are in
``adapters.safetensors``, each with its adapter's number before its name. Where the edit is W -> W T in every
cross-attention key and value, with one T, ``matrix.safetensors`` holds T in their place if it is smaller: 5 MB instead
of 77 MB for Stable Diffusion 1.4. That T gives back the very same weights is checked when it is stored; another
machine's matrix product may round their last digit differently, as erasing there anew would.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from erasebench import diffusion, store
from erasebench.diffusion.adapters import attach, attached
from erasebench.limits import read_json
from erasebench.protocols import Adapter, Guide
from erasebench.rebuilding import rebuild
from erasebench.types import Pipeline

TENSORS, MATRIX, RECORD = "changed.safetensors", "matrix.safetensors", "erasure.json"
ADAPTERS = "adapters.safetensors"


def save(folder: Path, erased: Pipeline, original: Pipeline, **record: Any) -> None:
    """Write what ``erased`` has and ``original`` has not, with a ``record`` of JSON values, into an empty folder.

    ``erased.edit_matrix``, T [d, d] float64 of an edit W T, is believed only if it gives ``erased``.

    Raises:
        ValueError: another architecture, or a changed tensor with NaN or infinity, which is named.
    """
    changed, matrix = diffusion.changed_tensors(erased, original), getattr(erased, "edit_matrix", None)
    added = [one for one in attached(erased) if all(one is not old for old in attached(original))]
    beside = {f"{i}.{name}": tensor for i, one in enumerate(added) for name, tensor in one.tensors.items()}
    for name, tensor in (*changed.items(), *beside.items()):
        if not torch.isfinite(tensor).all():
            raise ValueError(f"erased model must be finite; {name} is NaN or infinite; use a gentler setting")
    if matrix is not None and _is_product(matrix, changed, erased, original):
        save_file({"matrix": matrix.contiguous().cpu()}, folder / MATRIX)
    else:
        save_file({k: v.detach().contiguous().cpu() for k, v in changed.items()}, folder / TENSORS)
    guide = getattr(erased, "guide", None)
    if guide is not None and guide is not getattr(original, "guide", None):
        record = record | {"guide": as_config(guide)}
    if added:
        save_file({name: tensor.contiguous().cpu() for name, tensor in beside.items()}, folder / ADAPTERS)
        record = record | {"adapters": [as_config(one.adapter) for one in added]}
    (folder / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")


def load(folder: Path, original: Pipeline) -> Pipeline:
    """The erased model; ``original`` itself where nothing differs.

    Raises:
        ValueError: an erasure of another model; a guide or an adapter of a class that no config in use names.
    """
    record = read(folder)
    guide, adapters = record.get("guide"), record.get("adapters", [])
    if (folder / MATRIX).exists():
        erased = diffusion.apply_matrix(original, load_file(folder / MATRIX)["matrix"].clone())
    else:
        tensors = load_file(folder / TENSORS)
        if not tensors and guide is None and not adapters:
            return original
        erased = diffusion.apply_tensors(original, tensors)
    beside = load_file(folder / ADAPTERS) if adapters else {}
    for i, node in enumerate(adapters):
        adapter = rebuild(node, Adapter, str(folder / RECORD))  # type: ignore[type-abstract]
        own = {name.removeprefix(f"{i}."): tensor for name, tensor in beside.items() if name.startswith(f"{i}.")}
        erased = attach(erased, adapter, own)
    if guide is not None:
        erased.guide = rebuild(guide, Guide, str(folder / RECORD))  # type: ignore[type-abstract]
    return erased


def restore(root: Path, key: str, original: Pipeline, above: tuple[str, ...] = ()) -> Pipeline:
    """The erased model of a key in a results folder, from its ``original`` through every erasure it builds on.

    Raises:
        FileNotFoundError: an erasure that is not there, or is damaged.
        ValueError: one that builds on itself, or on what is no key.
    """
    if key in above:
        raise ValueError(f"erasure {key} must not build on itself; its record was changed; run its cell again")
    folder = root / "cache" / "erase" / store.plain_key(key)
    if store.read_manifest(folder) is None:
        raise FileNotFoundError(f"erasure {folder} must be there and whole; it is not; run the same command again")
    base = read(folder).get("base")
    return load(folder, restore(root, base, original, (*above, key)) if base else original)


def read(folder: Path) -> dict[str, Any]:
    """How an erasure was made."""
    record: dict[str, Any] = read_json(folder / RECORD)
    return record


def as_config(one: Guide | Adapter) -> Mapping[str, Any]:
    """A guide or an adapter as a config node: its class as ``_target_``, and its fields.

    Raises:
        TypeError: it is no dataclass.
    """
    kind = type(one)
    return {"_target_": f"{kind.__module__}.{kind.__qualname__}", **asdict(one)}  # type: ignore[call-overload]


def _is_product(
    matrix: torch.Tensor, changed: Mapping[str, torch.Tensor], erased: Pipeline, original: Pipeline
) -> bool:
    """Whether T is smaller than the changed tensors and gives every one of them to the last bit."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in changed.values())
    if matrix.numel() * matrix.element_size() >= size:
        return False
    return not diffusion.changed_tensors(diffusion.apply_matrix(original, matrix.cpu()), erased)
