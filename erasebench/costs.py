"""What a plan will take: images, model evaluations, hours and disk, as far as earlier runs in the same folder tell."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from erasebench.building import declared
from erasebench.cell import drawing
from erasebench.limits import read_json
from erasebench.progress import duration
from erasebench.prompts.files import read_rows
from erasebench.store import image_folder
from erasebench.store.files import locate
from erasebench.types import KEPT_GROUPS

Rates = dict[tuple[str, str], float]
EVALUATION = (
    803_273_441_280  # operations of Stable Diffusion 1.x's UNet on 64 x 64 latents, as torch's counter has them
)
A100 = 312e12  # operations a second that NVIDIA gives for dense half precision
SHARE = 0.25  # of them that drawing is taken to reach; ours, not measured
COUNTED = ("sd14", "sd15")  # models of that UNet


@dataclass(frozen=True)
class Cost:
    """Of a plan, at most; None is what no earlier run in the folder tells.

    Args:
        images: of all models, what cells share counted once.
        evaluations: samples through the denoiser to draw them, both halves of guidance; an attack's search apart.
        seconds: drawing, and erasing, searching and scoring as far as they were recorded.
        bytes: of the stored images.
    """

    images: int
    evaluations: int
    seconds: float | None
    bytes: float | None


def a100_hours(evaluations: int) -> float:
    """Hours on one A100 in half precision to draw with Stable Diffusion 1.x at 512 pixels; computed, never measured.

    ``evaluations * EVALUATION / (SHARE * A100)``: text encoder, VAE, judges, erasing and searching come on top.

    >>> round(a100_hours(10_000_000), 1)
    28.6
    """
    return evaluations * EVALUATION / (SHARE * A100) / 3600


def lines(configs: Sequence[Mapping[str, Any]], root: Path) -> list[str]:
    """Images, evaluations, hours and disk of a plan, a line each."""
    found = cost(configs, root)
    unknown = "unknown: no earlier run here with this model and sampler tells"
    said = [
        f"at most {found.images} images, {found.evaluations} model evaluations to draw them (an attack's search apart)",
        f"time: {unknown if found.seconds is None else 'about ' + duration(found.seconds)}",
        f"disk: {unknown if found.bytes is None else f'about {found.bytes / 1e9:.2f} GB of images'}",
    ]
    if all(config["model"]["name"] in COUNTED for config in configs):
        hours = a100_hours(found.evaluations)
        said.insert(2, f"time on one A100: about {hours:.1f} hours of drawing, computed from operations, not measured")
    return said


def expected(configs: Sequence[Mapping[str, Any]], root: Path) -> str:
    """How many images the cells draw at most, and how long that takes if earlier runs in this folder tell.

    Args:
        configs: resolved configs of the cells; what they share is counted once.
        root: results folder.
    """
    found = cost(configs, root)
    if found.seconds is None:
        return f"at most {found.images} images; no earlier run here tells how long that takes"
    return f"at most {found.images} images, about {duration(found.seconds)} by what earlier runs here took"


def cost(configs: Sequence[Mapping[str, Any]], root: Path) -> Cost:
    """What the cells take, from their resolved configs and the records in the results folder."""
    images = _images(configs)
    total = sum(number for number, _, _ in images.values())
    evaluations = sum(number * passes for number, _, passes in images.values())
    rates = _rates(root)
    known = [number * rates["draw", how] for number, how, _ in images.values() if ("draw", how) in rates]
    sizes = [number * rates["bytes", how] for number, how, _ in images.values() if ("bytes", how) in rates]
    stored = sum(sizes) if sizes and len(sizes) == len(images) else None
    if not known or len(known) < len(images):
        return Cost(total, evaluations, None, stored)
    seconds = sum(known)
    for step, group in (("erase", "method"), ("attack", "attack")):
        wanted = {_text(config, "model", "concept", group) for config in configs}
        seconds += sum(rates.get((step, _text(config, group)), 0.0) for config in configs) * len(wanted) / len(configs)
    seconds += len(configs) * rates.get(("score", ""), 0.0)
    return Cost(total, evaluations, seconds, stored)


def _images(configs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, str, int]]:
    """What is drawn -> number of images, what their time depends on, evaluations for each."""
    images: dict[str, tuple[int, str, int]] = {}
    beside = cache(lambda target: declared(target, "beside"))  # the field that makes the model it compares with
    for config in configs:
        model, sampled = config["model"], _sampled(config["model"])
        passes = model["steps"] * (1 if model["guidance_scale"] == 1 else 2)
        world = _text(config, "concept", "also", "prompts", "kept", "seed") + sampled
        for kind, number in _counts(config).items():
            attack = _text(config, "attack") if kind == "attack" else ""
            images[f"original {world} {attack}"] = (number, sampled, passes)
            others = [node[field] for node in config["evaluator"].values() if (field := beside(node["_target_"]))]
            for method in [config["method"], *others]:
                how = _text({"method": method}, "method")
                images[f"erased {world} {attack} {how}"] = (number, sampled, passes)
    return images


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


def _rates(root: Path) -> Rates:
    """Seconds of a step, per image for drawing, by what it depends on: the largest of those recorded."""
    found: Rates = {}

    def add(step: str, what: str, seconds: float) -> None:
        found[step, what] = max(seconds, found.get((step, what), 0.0))

    for path in root.glob("runs/*/*/*/*/*/run.json"):
        try:
            record = read_json(path)
            config, steps = record["config"], record["steps"]
            if steps["draw"]["images"]:
                add("draw", _sampled(config["model"]), steps["draw"]["seconds"] / steps["draw"]["images"])
            for size in _image_bytes(root, steps["draw"].get("keys", {})):
                add("bytes", _sampled(config["model"]), size)
            for step, group in (("erase", "method"), ("attack", "attack"), ("score", "")):
                if not steps[step]["cached"]:
                    add(step, _text(config, group) if group else "", steps[step]["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _image_bytes(root: Path, keys: Mapping[str, str]) -> Iterator[float]:
    """Mean bytes of an image in each of some stored sets."""
    import pyarrow.parquet as pq

    for key in set(keys.values()):
        files = list(image_folder(root, key).rglob("*.parquet"))
        if rows := sum(pq.ParquetFile(file).metadata.num_rows for file in files):
            yield sum(file.stat().st_size for file in files) / rows
