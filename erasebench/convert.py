"""Turn pickled weights into safetensors, once: ``python -m erasebench.convert in.pt out.safetensors [key=NAME]``.

Only tensors are read: torch's own reader with ``weights_only=True`` runs no code of the file and refuses what is more
than tensors, dictionaries and numbers. A file of one NumPy array (Q16's ``prompts.p``) is read as that, by a reader
that knows no other class. It is the one place in this repository that opens a pickle.

A file may hold tensors by name; the dictionaries of several parts (``unet``, ``text_encoder``), which are all kept,
under their part's name; or a dictionary of tensors among other things (``state_dict`` beside ``state_dict_ema`` or an
optimiser's state), of which one is kept, ``key=`` says which. Whatever is left out is said.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from erasebench.command.arguments import command, parse
from erasebench.store.files import replacing

PARTS = ("unet", "text_encoder", "text_encoder_2", "vae")  # of a pipeline, as some programs save several at once
WRAPPERS = ("state_dict", "model_state_dict", "params", "model", "module")  # where programs put tensors, the first wins


def convert(source: Path, target: Path, key: str | None = None) -> tuple[int, list[str]]:
    """Write the tensors of ``source`` to ``target``; returns their number, and what of the file was left out.

    Args:
        source: a ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` file of tensors by name.
        target: a ``.safetensors`` file; replaced if it is there.
        key: of the dictionary of tensors in the file; None finds it, see the module.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds more than tensors, holds none, or none under ``key``; ``target`` is no safetensors
            name.
    """
    if target.suffix != ".safetensors":
        raise ValueError(f"out must end with .safetensors; got {target}; rename it")
    if not source.is_file():
        raise FileNotFoundError(f"in must be a file; found no {source}; check the path")
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError) as error:
        if (array := _array(source)) is not None:
            save_file({"array": array}, target)
            return 1, []
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{source} must hold tensors alone; {reason}; it stays unread: ask its author for safetensors"
        ) from None
    tensors, left_out = _tensors(content, source, key)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as work:
        save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, work)
    return len(tensors), left_out


class _ArraysAlone(pickle.Unpickler):
    """A reader of NumPy arrays of numbers: of everything else a pickle may name it knows nothing."""

    def find_class(self, module: str, name: str) -> Any:
        arrays = ("multiarray._reconstruct", "numeric._frombuffer", "multiarray.scalar")
        known = {("_codecs", "encode"), ("numpy", "ndarray"), ("numpy", "dtype")}
        known |= {
            (f"numpy.{core}.{place}", word)
            for core in ("core", "_core")
            for place, word in (a.split(".") for a in arrays)
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is no array")
        return super().find_class(module, name)


def _array(source: Path) -> torch.Tensor | None:
    """The one array of numbers a file holds, or None for anything else."""
    try:
        with source.open("rb") as file:
            found = np.asarray(_ArraysAlone(file).load())
    except Exception:  # whatever a broken or hostile file makes the reader raise
        return None
    return torch.from_numpy(found.copy()) if found.dtype.kind in "fiu" and found.size else None


def _tensors(content: Any, source: Path, key: str | None) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Tensors by name, and what else the file holds; anything beside the tensors of a dictionary is refused."""
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{source} must hold tensors by name; got {type(content).__name__}; export a state_dict")
    nested = [name for name, value in content.items() if isinstance(value, Mapping) and value]
    if key is not None:
        if key not in nested:
            raise ValueError(f"key must be one of {', '.join(map(str, nested)) or 'none'}; got {key!r}; leave it out")
        return _named(content[key], source), _others(content, (key,))
    if any(isinstance(value, torch.Tensor) for value in content.values()):
        return _named(content, source), []
    if parts := [part for part in PARTS if part in nested]:
        found: dict[str, torch.Tensor] = {}
        for part in parts:
            inner = _named(content[part], source)
            found |= {n if n.startswith(f"{part}.") else f"{part}.{n}": tensor for n, tensor in inner.items()}
        return found, _others(content, parts)
    wrapper = next((name for name in WRAPPERS if name in nested), None)
    if wrapper is None:
        return _named(content, source, nested), []
    return _named(content[wrapper], source), _others(content, (wrapper,))


def _named(content: Mapping[Any, Any], source: Path, keys: Sequence[Any] = ()) -> dict[str, torch.Tensor]:
    """A dictionary that must hold tensors by name; ``keys``: what could be chosen instead."""
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            advice = f"choose one of {', '.join(map(str, keys))}: key={keys[0]}" if keys else "export a state_dict"
            raise ValueError(f"{source} must hold tensors by name; {name!r} is a {type(value).__name__}; {advice}")
    return dict(content)


def _others(content: Mapping[Any, Any], kept: Sequence[str]) -> list[str]:
    """What a file holds beside the dictionaries kept, each with its number of tensors if it is one."""
    found = []
    for name, value in content.items():
        if name not in kept:
            count = len(value) if isinstance(value, Mapping) else 0
            found.append(f"{name} ({count} entries)" if count else str(name))
    return found


USAGE = "usage: python -m erasebench.convert in.pt out.safetensors [key=NAME]"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 if it worked, 2 with one line of explanation if not."""

    def work(words: list[str]) -> str:
        given = parse(words, {"in": "", "out": "", "key": ""}, needed=("in", "out"), plain=("in", "out"))
        count, left_out = convert(Path(given["in"]), Path(given["out"]), given["key"] or None)
        said = f"{count} tensors written to {given['out']}"
        if left_out:
            said += f"\nleft out: {', '.join(left_out)}; a dictionary among them is written with key=NAME"
        return said

    return command(USAGE, __doc__, arguments, work)


if __name__ == "__main__":
    sys.exit(main())
