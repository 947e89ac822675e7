"""Which files the path of a checkpoint means, and what they hold under the names of this model.

One file; the shards of one; a peft adapter with its settings; or one of these for each part of the model, in a folder
or in subfolders called after the parts. Anything that could mean two things is refused with what it could mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from erasebench.diffusion.headers import PARTS, Shapes, plain_name
from erasebench.diffusion.lora import is_lora
from erasebench.store.files import tensor_header

PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})")
CONFIG = "adapter_config.json"


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """The weights of one checkpoint or one adapter.

    Args:
        files: one, or the shards of one model.
        part: of the pipeline, if the folder they lie in says so; else "".
        settings: of ``adapter_config.json``; None if there is none.
    """

    files: tuple[Path, ...]
    part: str = ""
    settings: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """The first file's name, with its folder."""
        return f"{self.files[0].parent.name}/{self.files[0].name}"

    def header(self) -> tuple[Shapes, dict[str, str]]:
        """Plain names and shapes of all tensors, and the metadata, without reading a tensor."""
        shapes: Shapes = {}
        metadata: dict[str, str] = {}
        for file in self.files:
            held, said = tensor_header(file)
            metadata |= said
            if self.settings is None and is_lora(held) and any("base_model.model." in name for name in held):
                raise ValueError(
                    f"{CONFIG} must lie beside {file}: the alpha of an adapter that peft saved stands there; got none; "
                    "give the adapter's whole folder"
                )
            for name, shape in held.items():
                plain = plain_name(name, self.part)
                if plain in shapes:
                    raise ValueError(f"{file.name} must hold each tensor once; got {plain} twice; save it again")
                shapes[plain] = shape
        return shapes, metadata

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their plain names."""
        return {plain_name(name, self.part): t for file in self.files for name, t in load_file(file).items()}


def weight_files(path: Path) -> list[WeightFiles]:
    """What a safetensors file or a folder holds; no two of them may be for one part of the model.

    Raises:
        FileNotFoundError: no weights; a shard that is missing.
        ValueError: pickled weights only; a peft adapter's file without the folder that holds its settings.
    """
    if not path.is_dir():
        beside = path.parent / CONFIG
        if beside.is_file() and path.name.startswith("adapter_model"):
            raise ValueError(
                f"path {path} must be the adapter's folder: its alpha stands in {CONFIG} beside it; write "
                f"method.path={path.parent}"
            )
        return [WeightFiles(files=(path,))]
    found = _in_folder(path)
    for folder in sorted(p for p in path.iterdir() if p.is_dir()):
        part = max((p for p in PARTS[:-1] if folder.name == p or folder.name.startswith(f"{p}_")), default="", key=len)
        found += _in_folder(folder, part) if part else []
    if not found:
        raise _nothing(path)
    return found


def _in_folder(folder: Path, part: str = "") -> list[WeightFiles]:
    """The weights lying in one folder itself."""
    files = sorted(folder.glob("*.safetensors"))
    adapted = [f for f in files if f.stem == "adapter_model"] or files[:1] if (folder / CONFIG).is_file() else []
    files = [f for f in files if f not in adapted]
    settings = _settings(folder / CONFIG) if adapted else None
    found = [WeightFiles(files=(file,), part=part, settings=settings) for file in adapted]
    models: dict[str, list[Path]] = {}
    for file in files:
        shard = SHARD.fullmatch(file.stem)
        models.setdefault(f"{shard[1]} of {shard[3]}" if shard else file.stem, []).append(file)
    for shards in models.values():
        shard = SHARD.fullmatch(shards[0].stem)
        if shard and len(shards) != int(shard[3]):
            there = ", ".join(file.name for file in shards)
            raise FileNotFoundError(f"path {folder} must hold all {int(shard[3])} shards; got {there}; copy the others")
    return found + [WeightFiles(files=tuple(shards), part=part) for shards in models.values()]


def _settings(file: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} must be JSON; got {error}; save the adapter again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} must be peft's settings; got {type(found).__name__}; save the adapter again")
    return found


def _nothing(path: Path) -> Exception:
    """Why a folder is no checkpoint, and what to do about it."""
    inside = sorted(path.iterdir())
    nested = [p for folder in inside if folder.is_dir() for p in sorted(folder.iterdir())]
    pickled = [p for p in (*inside, *nested) if p.suffix.lower() in PICKLES and p.is_file()]
    if pickled:
        target = pickled[0].with_suffix(".safetensors")
        return ValueError(
            f"path {path} must hold safetensors; got {pickled[0].relative_to(path)}, which is pickled; convert it: "
            f"python -m erasebench.convert {pickled[0]} {target}"
        )
    deeper = [p.parent for p in nested if p.suffix == ".safetensors" or p.name == "model_index.json"]
    advice = f"choose a folder: method.path={deeper[0]}" if deeper else "check it"
    found = ", ".join(p.name for p in inside[:6]) or "nothing"
    return FileNotFoundError(f"path {path} must hold safetensors or a diffusers pipeline; found {found}; {advice}")


def refuse_rivals(path: Path, parts: Sequence[tuple[WeightFiles, set[str]]]) -> None:
    """Refuse several candidates for one part: they would be added up, or the last of the alphabet would win.

    Args:
        path: of the checkpoint.
        parts: each candidate with the parts of the model it changes.
    """
    for part in dict.fromkeys(part for _, changed in parts for part in sorted(changed)):
        rivals = [files for files, changed in parts if part in changed]
        if len(rivals) > 1:
            names = ", ".join(str(r.files[0].relative_to(path)) for r in rivals[:8])
            first = rivals[0].files[0]
            choice = first if first.parent == path else first.parent
            raise ValueError(
                f"path {path} must hold one checkpoint; got {len(rivals)} for the {part}: {names}; choose one: "
                f"method.path={choice}"
            )
