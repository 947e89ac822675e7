"""Measure embedded models: ``python -m erasebench.emoji.quality [FOLDER ...]``.

Prints the figures of the model cards, a line of JSON for each model and prompt set.

Several folders are measured on the same prompts and noise, side by side. Seeds start at 900000 and are used for nothing
else; none of the prompts was used to choose a setting. Accuracy is the independent classifier's, with 95 % Wilson
intervals. The prompt sets:

- ``training``: sentence frames that the first edition was trained on, filled anew, half by name and half by synonym;
- ``held_out``: 36 sentences with wordings that neither edition was trained on;
- ``three``: the three of them that the first edition's card reports;
- ``unread``: frames of training around a word that neither edition has read.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from erasebench import diffusion
from erasebench.emoji.classifier import WEIGHTS, EmojiJudge
from erasebench.emoji.contrastive import load_contrastive
from erasebench.emoji.training import captions, world
from erasebench.emoji.training.second.corpus import UNREAD
from erasebench.emoji.training.second.grammar import HELD_OUT
from erasebench.report.intervals import wilson
from erasebench.store.files import locate
from erasebench.types import Pipeline, Prompt

SECOND = "pkg:erasebench/emoji/weights2"
AROUND = (  # where a word that was never read stands
    "a {u} {t}", "{t} for the {u}", "{t}, {u}", "the {u}: {t}", "{t} and one {u}", "{u} {t}", "{t} near a {u}",
)  # fmt: skip


def _cases(kind: str, n: int) -> list[dict[str, Any]]:
    """Prompts of a set: n per concept by name, and half as many (``training``: as many) by synonym."""
    rng, cases = random.Random(900_000), []
    for thing in world.things().values():
        names, synonyms = (n // 2, n // 2) if kind == "training" else (n, n // 2)
        for i in range(names + synonyms):
            word = thing.name if i < names else rng.choice(thing.synonyms)
            style, place = rng.choice(list(world.STYLES)), rng.choice(list(world.BACKGROUNDS))
            if kind == "held_out":
                text = rng.choice(HELD_OUT)
            elif kind == "three":
                text = HELD_OUT[i % 3]
            else:
                text = rng.choice(captions.BEFORE) + rng.choice(captions.FULL) + rng.choice(captions.AFTER)
            if kind == "unread":
                text = rng.choice(AROUND).format(t=text, u=rng.choice(UNREAD))
            cases.append(
                {"concept": thing.name, "style": style, "background": place, "plain": i < names,
                 "text": text.format(c=word, s=style, b=place)}
            )  # fmt: skip
    return cases


def _share(hits: np.ndarray) -> list[float]:
    """Share, and its interval's bounds."""
    if not len(hits):
        return []
    return [round(float(x), 4) for x in (hits.mean(), *wilson(int(hits.sum()), len(hits)))]


def frechet(a: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """Frechet distance of the normal of features a [n, d] to another's.

    >>> frechet(np.array([[1.0], [-1.0], [1.0], [-1.0]]), np.array([2.0]), np.array([[4 / 3]]))
    4.0
    """
    own = np.cov(a, rowvar=False).reshape(covariance.shape)
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ own @ root).clip(0)).sum()
    return float(((a.mean(0) - mean) ** 2).sum() + np.trace(own) + np.trace(covariance) - 2 * cross)


def generation(
    pipe: Pipeline, cases: Sequence[dict[str, Any]], steps: int, guidance: float, *, batch: int = 32,
    weights: str = WEIGHTS,
) -> tuple[dict[str, Any], list[Image.Image]]:  # fmt: skip
    """Accuracy of concept, style, background and synonyms, FID of the classifier's features, images per second."""
    judge = EmojiJudge(weights=weights)
    prompts = [Prompt(id=str(i), text=c["text"], seed=900_000 + i) for i, c in enumerate(cases)]
    started, images = time.time(), []
    drawn = diffusion.generate(pipe, prompts, steps=steps, guidance_scale=guidance, batch_size=batch)
    for _, image, _status in tqdm(drawn, total=len(prompts), desc="quality", mininterval=10):
        images.append(image or Image.new("RGB", (64, 64)))
    rate = len(images) / (time.time() - started)
    families = ("concept", "style", "background")
    hit = {f: np.array([v.present for v in judge(images, [c[f] for c in cases])]) for f in families}
    plain = np.array([c["plain"] for c in cases])
    names, styles = np.array([c["concept"] for c in cases]), np.array([c["style"] for c in cases])
    per = {name: _share(hit["concept"][(names == name) & plain]) for name in world.things()}
    mean, covariance, _ = judge.reference()
    return {
        "n": len(images), "concept": _share(hit["concept"][plain]), "synonym": _share(hit["concept"][~plain]),
        "worst": dict(sorted((kv for kv in per.items() if kv[1]), key=lambda kv: kv[1][0])[:5]),
        "style": _share(hit["style"]), "each_style": {s: _share(hit["style"][styles == s]) for s in world.STYLES},
        "background": _share(hit["background"]), "fid": round(frechet(judge.features(images), mean, covariance), 2),
        "images_per_second": round(rate, 2),
    }, images  # fmt: skip


def zero_shot(data: Path, weights: str | Path = WEIGHTS, n: int = 4) -> dict[str, list[float]]:
    """Zero-shot concept accuracy of the contrastive model on fresh real pictures (artwork in ``data``).

    With "a picture of a {}", and with a held-out sentence that names the picture's style and background too.
    """
    from erasebench.emoji.training import artwork

    art, g, rng = artwork.load(data), torch.Generator().manual_seed(900_000), random.Random(900_000)
    names, styles, places = list(world.things()), list(world.STYLES), list(world.BACKGROUNDS)
    clip, out = load_contrastive(weights), dict[str, list[float]]()
    truth = np.arange(len(names)).repeat(n)
    for kind, frames in (("simple", ("a picture of a {c}",) * 8), ("held_out", HELD_OUT)):
        hits = []
        for frame in frames:
            s, b = rng.randrange(len(styles)), rng.randrange(len(places))
            sprites = art.world[:, s].repeat_interleave(n, 0)
            x = artwork.compose(sprites, artwork.colours()[b].expand(len(sprites), 3), g)
            images = [Image.fromarray(p) for p in ((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()]
            texts = clip.text_features([frame.format(c=c, s=styles[s], b=places[b]) for c in names])
            hits.append((clip.image_features(images) @ texts.T).argmax(1) == truth)
        out[kind] = _share(np.concatenate(hits))
    return out


def sheet(images: list[Image.Image], columns: int) -> Image.Image:
    """Images in rows of ``columns``."""
    w, h = images[0].size
    page = Image.new("RGB", (columns * (w + 2), -(-len(images) // columns) * (h + 2)), "white")
    for i, image in enumerate(images):
        page.paste(image, (i % columns * (w + 2), i // columns * (h + 2)))
    return page


def main() -> None:
    sets = {"training": 20, "held_out": 20, "three": 4, "unread": 6}
    parser = argparse.ArgumentParser(prog="python -m erasebench.emoji.quality", description=__doc__.split("\n")[0])
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[locate(SECOND)], help="models (default: the second edition)"
    )
    parser.add_argument("--sets", nargs="+", choices=list(sets), default=list(sets))
    parser.add_argument("--n", type=float, default=1.0, help="factor on the number of pictures per concept")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--artwork", type=Path, help="artwork folder of training, for zero-shot accuracy on real pictures"
    )
    parser.add_argument("--grid", type=Path, help="write a grid of each model's held-out pictures into this folder")
    args = parser.parse_args()
    pipes = {folder: diffusion.load(folder, device=args.device) for folder in args.folders}
    for kind in args.sets:
        for folder, pipe in pipes.items():
            cases = _cases(kind, max(2, round(sets[kind] * args.n)))
            figures, images = generation(
                pipe, cases, args.steps, args.guidance, batch=args.batch, weights=str(args.folders[0])
            )
            print(json.dumps({"model": folder.name, "set": kind, **figures}), flush=True)
            if args.grid and kind == "held_out":
                args.grid.mkdir(parents=True, exist_ok=True)
                sheet(images[:: max(1, len(images) // 240)], 24).save(args.grid / f"{folder.name}.png")
    if args.artwork:
        for folder in args.folders:
            print(json.dumps({"model": folder.name, "zero_shot": zero_shot(args.artwork, folder)}), flush=True)


if __name__ == "__main__":
    main()
