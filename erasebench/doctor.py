"""What this machine has, what a run or a published protocol lacks and how to fetch it, and what it will take.

    python -m erasebench.doctor
    python -m erasebench.doctor experiment=rece_nudity model.path=FOLDER
    python -m erasebench.doctor model=sdxl method=esd_x concept=church

Takes everything that a run takes; draws one small image of the embedded model to see whether stored values are
reproduced here, and nothing else: no weight is downloaded. Exit code 0 if the run can start, 1 if something lacks or
differs, 2 for a mistake in what was given.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from erasebench.command.arguments import Incomplete, command

USAGE = "usage: python -m erasebench.doctor [experiment=NAME] [model=NAME] [method=NAME] ..."
GIGABYTE = 1e9
LEVELS = 2.0  # of 255; how far a mean of the golden image may be from the stored one


def examine(arguments: Sequence[str]) -> str:
    """The whole report as text.

    Raises:
        Incomplete: with the report, something lacks or differs.
        ValueError: a mistake in what was given.
    """
    from erasebench.cell import check_numbers
    from erasebench.command.needs import resolved

    config, absent = resolved(arguments)
    if not absent:
        check_numbers(config)
    root = Path(config["results"]).expanduser()
    troubles: list[str] = []
    parts = {
        "machine": machine(root),
        "reads": reads(config, absent, troubles),
        "stored values": golden(troubles),
        "plan": plan(config, root),
    }
    text = "\n".join(f"{name}\n" + "\n".join(f"  {line}" for line in lines) for name, lines in parts.items())
    if troubles:
        raise Incomplete(text, troubles)
    return f"{text}\nready"


def machine(root: Path) -> list[str]:
    """Python, torch, cores, memory, accelerators with what they compute in, room on the disk."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIGABYTE if hasattr(os, "sysconf") else 0.0
    lines = [
        f"python {platform.python_version()}, torch {torch.__version__}, {platform.system()} {platform.machine()}",
        f"{os.cpu_count()} cores, {memory:.1f} GB of memory" if memory else f"{os.cpu_count()} cores",
    ]
    for i in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(i)
        dtypes = "float32, float16" + (", bfloat16" if torch.cuda.is_bf16_supported() else "; no bfloat16")
        lines.append(f"cuda:{i} {found.name}, {found.total_memory / GIGABYTE:.1f} GB, {dtypes}")
    if not torch.cuda.is_available():
        lines.append("no GPU that torch finds: Stable Diffusion takes minutes an image; write model.dtype=float32")
    folder = root.absolute()
    while not folder.exists():
        folder = folder.parent
    lines.append(f"{shutil.disk_usage(folder).free / GIGABYTE:.1f} GB free where {root} is or will be")
    return lines


def reads(config: Mapping[str, Any], absent: Sequence[str], troubles: list[str]) -> list[str]:
    """What the run reads, whether it is there, and the command that fetches what is not."""
    from erasebench import preflight

    lines = [f"to be given: {key}=" for key in absent]
    troubles += [f"{key} - must be given; got nothing; add {key}=VALUE" for key in absent]
    for need in preflight.needs(config):
        state = "there" if need.there else "not yet here" if need.kind == "download" else "missing"
        lines.append(f"{state}: {need.key} {need.what}")
        if not need.there:
            unpinned = need.kind == "download" and need.key == "model.path" and not config["model"]["revision"]
            lines.append(
                f"  {'name a commit, model.revision=COMMIT, or a folder' if unpinned else need.fetch or need.get}"
            )
            if unpinned:
                troubles.append(
                    f"model.revision - a hub id must be pinned; {need.what} is not; give model.revision=COMMIT"
                )
    troubles += preflight.missing(config)
    return lines or ["nothing but what is installed"]


def golden(troubles: list[str]) -> list[str]:
    """Whether stored images come out here as they did: means of an image's quarters, per colour."""
    from erasebench import conf_folder

    lines = []
    for entry in json.loads((conf_folder() / "golden.json").read_text(encoding="utf-8")):
        far = distance(entry)
        same = far <= LEVELS
        lines.append(f"{entry['name']}: {'as stored' if same else 'NOT as stored'}, at most {far:.2f} of 255 apart")
        if not same:
            troubles.append(
                f"{entry['name']} - must come out as stored, within {LEVELS}; got {far:.2f} of 255 apart; "
                "numbers of this machine will not compare: reinstall with requirements.lock"
            )
    return lines


def distance(entry: Mapping[str, Any]) -> float:
    """The largest difference between stored and drawn means, of 255."""
    import numpy as np

    return float(np.abs(np.array(quarters(entry)) - np.array(entry["means"])).max())


def quarters(entry: Mapping[str, Any]) -> list[list[float]]:
    """Means [4, 3] of the quarters of an entry's image, red, green and blue, 0 to 255; 255 where there is none."""
    import numpy as np

    from erasebench import diffusion
    from erasebench.store.files import locate
    from erasebench.types import Prompt

    pipe = diffusion.load(locate(entry["path"]))
    prompt = Prompt(id="golden", text=entry["text"], seed=entry["seed"])
    drawn = diffusion.generate(pipe, [prompt], steps=entry["steps"], guidance_scale=entry["guidance_scale"])
    image = next(image for _, image, _ in drawn)
    if image is None:
        return [[255.0] * 3] * 4
    pixels = np.asarray(image, dtype=np.float64)
    half = pixels.shape[0] // 2
    parts = (pixels[:half, :half], pixels[:half, half:], pixels[half:, :half], pixels[half:, half:])
    return [[round(float(value), 2) for value in part.mean((0, 1))] for part in parts]


def plan(config: Mapping[str, Any], root: Path) -> list[str]:
    """Images, evaluations, hours and disk."""
    from erasebench.costs import lines

    return lines([config], root)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; returns the exit code."""
    return command(USAGE, __doc__, arguments, lambda words: examine(words))


if __name__ == "__main__":
    sys.exit(main())
