"""Measure the embedded model: ``python -m erasebench.emoji.training.quality`` prints the figures of the model card.

Seeds start at 900000 and are used for nothing else. The first set fills the sentence frames of training anew, so some
of its texts may have been trained on; the second uses frames that do not occur in training, and is much harder. Neither
was used to choose a setting. Accuracy is the independent classifier's.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from erasebench import diffusion
from erasebench.emoji.classifier import WEIGHTS, EmojiJudge
from erasebench.emoji.contrastive import load_contrastive
from erasebench.emoji.training import captions, world
from erasebench.store.files import locate
from erasebench.types import Pipeline, Prompt

UNSEEN = (  # sentence frames that do not occur in training
    "my new {s} drawing of a {c}, {b} background",
    "{s} style picture of the {c} with a {b} background",
    "the {c} we drew by {s} on {b}",
)


def _cases(n: int, frames: Sequence[str] | None = None) -> list[dict]:
    """n prompts per concept, half by name, half by synonym; without frames, sentences of the world with free text."""
    rng, cases = random.Random(900_000), []
    for thing in world.things().values():
        for i in range(n):
            word = thing.name if i < n // 2 else rng.choice(thing.synonyms)
            style, place = rng.choice(list(world.STYLES)), rng.choice(list(world.BACKGROUNDS))
            if frames:
                text = frames[i % len(frames)]
            else:
                text = rng.choice(captions.BEFORE) + rng.choice(captions.FULL) + rng.choice(captions.AFTER)
            cases.append(
                {"concept": thing.name, "style": style, "background": place, "plain": i < n // 2,
                 "text": text.format(c=word, s=style, b=place)}
            )  # fmt: skip
    return cases


def generation(pipe: Pipeline, cases: list[dict], steps: int, guidance: float) -> tuple[dict, list[Image.Image]]:
    """Accuracy of concept, style, background and synonyms, and images per second."""
    judge = EmojiJudge()
    prompts = [Prompt(id=str(i), text=c["text"], seed=900_000 + i) for i, c in enumerate(cases)]
    started, images = time.time(), []
    for _, image, _status in tqdm(
        diffusion.generate(pipe, prompts, steps=steps, guidance_scale=guidance, batch_size=32),
        total=len(prompts),
        desc="quality",
    ):
        images.append(image or Image.new("RGB", (64, 64)))
    rate = len(images) / (time.time() - started)
    hit = {
        f: np.array([v.present for v in judge(images, [c[f] for c in cases])])
        for f in ("concept", "style", "background")
    }
    plain = np.array([c["plain"] for c in cases])
    names = np.array([c["concept"] for c in cases])
    per = {name: float(hit["concept"][(names == name) & plain].mean()) for name in world.things()}
    return {
        "n": len(images), "concept": float(hit["concept"][plain].mean()),
        "synonym": float(hit["concept"][~plain].mean()),
        "style": float(hit["style"].mean()), "background": float(hit["background"].mean()),
        "worst": dict(sorted(per.items(), key=lambda kv: kv[1])[:5]), "images_per_second": rate,
    }, images  # fmt: skip


def zero_shot(folder: Path, n: int = 4) -> float:
    """Zero-shot concept accuracy of the contrastive model on fresh real pictures (needs the artwork in ``folder``)."""
    from erasebench.emoji.training import artwork

    art, g = artwork.load(folder), torch.Generator().manual_seed(900_000)
    names = list(world.things())
    pick = torch.arange(len(names)).repeat_interleave(n * len(world.STYLES))
    style = torch.arange(len(world.STYLES)).repeat(len(names) * n)
    places = artwork.colours()[torch.randint(len(world.BACKGROUNDS), (len(pick),), generator=g)]
    x = artwork.compose(art.world[pick, style], places, g)
    images = [Image.fromarray(p) for p in ((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()]
    clip = load_contrastive()
    texts = clip.text_features([f"a picture of a {n}" for n in names])
    guess = (clip.image_features(images) @ texts.T).argmax(1)
    return float((guess == pick.numpy()).mean())


def sheet(images: list[Image.Image], columns: int) -> Image.Image:
    """Images in rows of ``columns``."""
    w, h = images[0].size
    page = Image.new("RGB", (columns * (w + 2), -(-len(images) // columns) * (h + 2)), "white")
    for i, image in enumerate(images):
        page.paste(image, (i % columns * (w + 2), i // columns * (h + 2)))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m erasebench.emoji.training.quality", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--model", type=Path, default=locate(WEIGHTS))
    parser.add_argument("--n", type=int, default=20, help="pictures per concept, half by name, half by synonym")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument(
        "--artwork", type=Path, help="artwork folder of training, for zero-shot accuracy on real pictures"
    )
    parser.add_argument("--grid", type=Path, help="write a picture grid here")
    args = parser.parse_args()
    pipe = diffusion.load(args.model)
    figures, images = generation(pipe, _cases(args.n), args.steps, args.guidance)
    unseen, _ = generation(pipe, _cases(6, UNSEEN), args.steps, args.guidance)
    figures["unseen_frames"] = {k: unseen[k] for k in ("n", "concept", "synonym", "style", "background")}
    if args.artwork:
        figures["contrastive_zero_shot"] = zero_shot(args.artwork)
    if args.grid:
        sheet(images[:: max(1, args.n // 6)], 24).save(args.grid)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
