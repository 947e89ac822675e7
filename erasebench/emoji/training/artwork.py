"""Pictures of the embedded world: fetch the artwork (training only), rasterise it, compose jittered pictures.

Icon sets come as npm packages at pinned versions and are rasterised once with resvg. Nothing here runs when the
embedded model is used.
"""

from __future__ import annotations

import json
import logging
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from torch import Tensor

from erasebench.emoji.training import world

PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "fluent-emoji": "@iconify-json/fluent-emoji@1.2.7",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "fluent-emoji-high-contrast": "@iconify-json/fluent-emoji-high-contrast@1.2.6",
    "noto-v1": "@iconify-json/noto-v1@1.2.5",
    "emojione": "@iconify-json/emojione@1.2.3",
    "emojibase": "emojibase-data@17.0.0",
}
SPRITE = 72  # px of a stored sprite
ALL_STYLES = {**world.STYLES, **world.HELD_OUT_STYLES}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artwork:
    """Premultiplied RGBA sprites, uint8.

    Args:
        world: [concepts, styles + held-out styles, 4, 72, 72]; absent drawings are all zero.
        other: [others, styles, 4, 72, 72], emoji from outside the world.
        labels, tags: names of the others.
    """

    world: Tensor
    other: Tensor
    labels: list[str]
    tags: list[tuple[str, ...]]


def fetch(folder: Path) -> None:
    """Download and unpack the pinned packages into ``folder`` (needs npm); done once."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, package in PACKAGES.items():
        target = folder / name
        if target.exists():
            continue
        log.info("fetching %s", package)
        run = subprocess.run(["npm", "pack", package, "--silent"], cwd=folder, capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"npm pack {package} failed; got {run.stderr.strip()[-200:]!r}; is npm installed?")
        archive = folder / run.stdout.strip().splitlines()[-1]
        with tarfile.open(archive) as tar:
            tar.extractall(folder / f"{name}.part", filter="data")
        (folder / f"{name}.part" / "package").rename(target)


def _icons(folder: Path, set_name: str) -> tuple[dict, int]:
    data = json.loads((folder / set_name / "icons.json").read_text())
    icons = dict(data["icons"])
    for alias, spec in data.get("aliases", {}).items():
        if not set(spec) - {"parent"} and spec["parent"] in icons:
            icons[alias] = icons[spec["parent"]]
    return icons, data.get("width", 16)


def _rasterise(body: str, box: int) -> np.ndarray:
    import resvg_py

    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {box} {box}">'
    )
    svg += body.replace("currentColor", "#1a1a1a") + "</svg>"
    png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * SPRITE, height=2 * SPRITE)
    import io

    rgba = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"), np.float32)
    rgba[..., :3] *= rgba[..., 3:] / 255.0
    small = rgba.reshape(SPRITE, 2, SPRITE, 2, 4).mean((1, 3))
    return small.round().astype(np.uint8).transpose(2, 0, 1)


def _others(folder: Path, sets: list[dict]) -> list[tuple[str, str, tuple[str, ...]]]:
    """(icon, label, tags) of emoji that every style has and that are not of the world; no people."""
    taken = {word for t in world.things().values() for phrase in t.phrases for word in (phrase, *phrase.split())}
    taken |= {icon for t in world.things().values() for icon in t.icons}
    out = []
    for entry in json.loads((folder / "emojibase" / "en" / "data.json").read_text()):
        label, tags = entry["label"].lower(), tuple(t.lower() for t in entry.get("tags", ()))
        icon = label.replace(": ", "-").replace(" ", "-")
        if entry.get("group") in (None, 1, 2, 9) or not all(icon in s for s in sets):  # 1: people, 2: parts, 9: flags
            continue
        if icon in taken or taken & {label, *label.split(), *label.split("-"), *tags}:
            continue
        out.append((icon, label, tags))
    return out


def load(folder: Path) -> Artwork:
    """Sprites of the world and of the others, rasterised on first use (about a minute), then read from a cache."""
    cache, names = folder / "sprites.safetensors", folder / "others.json"
    if not (cache.exists() and names.exists()):
        fetch(folder)
        icons = {s: _icons(folder, s) for s in ALL_STYLES.values()}
        things = list(world.things().values())
        sprites = np.zeros((len(things), len(ALL_STYLES), 4, SPRITE, SPRITE), np.uint8)
        for i, thing in enumerate(things):
            for j, set_name in enumerate(ALL_STYLES.values()):
                table, box = icons[set_name]
                found = [table[icon] for icon in thing.icons if icon in table]
                if found:
                    sprites[i, j] = _rasterise(found[0]["body"], found[0].get("width", box))
        others = _others(folder, [icons[s][0] for s in world.STYLES.values()])
        outside = np.zeros((len(others), len(world.STYLES), 4, SPRITE, SPRITE), np.uint8)
        for i, (icon, _, _) in enumerate(others):
            for j, set_name in enumerate(world.STYLES.values()):
                table, box = icons[set_name]
                outside[i, j] = _rasterise(table[icon]["body"], table[icon].get("width", box))
        names.write_text(json.dumps([[label, tags] for _, label, tags in others]))
        save_file({"world": sprites, "other": outside}, cache)
    arrays, listed = load_file(cache), json.loads(names.read_text())
    return Artwork(
        torch.from_numpy(arrays["world"]), torch.from_numpy(arrays["other"]),
        [label for label, _ in listed], [tuple(tags) for _, tags in listed],
    )  # fmt: skip


def compose(
    sprites: Tensor, backgrounds: Tensor, generator: torch.Generator, *, size: int = 64, jitter: float = 1.0
) -> Tensor:
    """Jittered pictures: scale .8-.98 of the frame, rotation +-8 degrees, shift +-5 %.

    Args:
        sprites: premultiplied RGBA uint8 [n, 4, 72, 72].
        backgrounds: RGB in 0..255, [n, 3].
        generator: on the device of the sprites.
        jitter: factor on the ranges; 0 draws every sprite centred.

    Returns:
        Pictures float32 [n, 3, size, size] in -1..1.
    """
    n = len(sprites)
    u = torch.rand(4, n, generator=generator, device=sprites.device) * 2 - 1
    scale, angle = 0.89 + 0.09 * jitter * u[0], 0.14 * jitter * u[1]
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    theta = torch.stack([cos, -sin, 0.1 * jitter * u[2], sin, cos, 0.1 * jitter * u[3]], 1).view(n, 2, 3)
    grid = torch.nn.functional.affine_grid(theta, (n, 4, size, size), align_corners=False)
    rgba = torch.nn.functional.grid_sample(sprites.float() / 255, grid, align_corners=False)
    picture = rgba[:, :3] + (1 - rgba[:, 3:]) * (backgrounds.view(n, 3, 1, 1) / 255)
    return picture * 2 - 1


def colours() -> Tensor:
    """Background colours [backgrounds, 3] in 0..255."""
    return torch.tensor(list(world.BACKGROUNDS.values()), dtype=torch.float32)
