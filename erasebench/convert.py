"""Turn pickled weights into safetensors, once: ``python -m erasebench.convert in.pt out.safetensors``.

Only tensors are read: torch's own reader with ``weights_only=True`` runs no code of the file and refuses what is more
than tensors, dictionaries and numbers. It is the one place in this repository that opens a pickle.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from erasebench.store.files import replacing

WRAPPERS = ("state_dict", "model_state_dict", "unet", "params")  # keys under which some programs put the tensors


def convert(source: Path, target: Path) -> int:
    """Write the tensors of ``source`` to ``target`` and return their number.

    Args:
        source: a ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` file of tensors by name.
        target: a ``.safetensors`` file; replaced if it is there.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds more than tensors, holds none, or ``target`` is no safetensors name.
    """
    if target.suffix != ".safetensors":
        raise ValueError(f"out must end with .safetensors; got {target}; rename it")
    if not source.is_file():
        raise FileNotFoundError(f"in must be a file; found no {source}; check the path")
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{source} must hold tensors alone; {reason}; it stays unread: ask its author for safetensors"
        ) from None
    tensors = _tensors(content, source)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as work:
        save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, work)
    return len(tensors)


def _tensors(content: Any, source: Path) -> dict[str, torch.Tensor]:
    """Tensors by name, out of at most one wrapping dictionary; anything else beside them is refused."""
    if isinstance(content, Mapping):
        inner = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if len(inner) == 1 and not any(isinstance(value, torch.Tensor) for value in content.values()):
            content = inner[0]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{source} must hold tensors by name; got {type(content).__name__}; export a state_dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{source} must hold tensors by name; {name!r} is a {type(value).__name__}; export a state_dict"
            )
    return dict(content)


def main(arguments: list[str]) -> int:
    """The command; 0 if it worked, 2 with one line of explanation if not."""
    if len(arguments) != 2:
        print("usage: python -m erasebench.convert in.pt out.safetensors", file=sys.stderr)
        return 2
    source, target = map(Path, arguments)
    try:
        print(f"{convert(source, target)} tensors written to {target}")
    except (OSError, ValueError) as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
