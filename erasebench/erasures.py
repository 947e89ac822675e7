"""An erasure as files: what differs from the original model, and nothing else.

``changed.safetensors`` holds the changed tensors by name (``unet.<...>``), ``erasure.json`` how they were made and, for
a method that works while drawing, its guide.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from erasebench import diffusion
from erasebench.run import build
from erasebench.types import Guide, Pipeline

TENSORS, RECORD = "changed.safetensors", "erasure.json"


def save(folder: Path, erased: Pipeline, original: Pipeline, **record: Any) -> None:
    """Write what ``erased`` has and ``original`` has not, with a ``record`` of JSON values, into an empty folder.

    Raises:
        ValueError: another architecture, or a changed tensor with NaN or infinity, which is named.
    """
    changed = diffusion.changed_tensors(erased, original)
    for name, tensor in changed.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"erased model must be finite; {name} is NaN or infinite; use a gentler setting")
    save_file({k: v.detach().contiguous().cpu() for k, v in changed.items()}, folder / TENSORS)
    guide = getattr(erased, "guide", None)
    if guide is not None and guide is not getattr(original, "guide", None):
        record = record | {"guide": as_config(guide)}
    (folder / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")


def load(folder: Path, original: Pipeline) -> Pipeline:
    """The erased model; ``original`` itself where nothing differs.

    Raises:
        ValueError: an erasure of another model.
    """
    tensors, guide = load_file(folder / TENSORS), read(folder).get("guide")
    if not tensors and guide is None:
        return original
    erased = diffusion.apply_tensors(original, tensors)
    if guide is not None:
        erased.guide = build(guide)
    return erased


def read(folder: Path) -> dict[str, Any]:
    """How an erasure was made."""
    record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return record


def as_config(guide: Guide) -> Mapping[str, Any]:
    """A guide as a config node: its class as ``_target_``, and its fields.

    Raises:
        TypeError: the guide is no dataclass.
    """
    kind = type(guide)
    return {"_target_": f"{kind.__module__}.{kind.__qualname__}", **asdict(guide)}  # type: ignore[call-overload]
