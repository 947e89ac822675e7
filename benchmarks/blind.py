"""Numbered pictures for somebody who has not seen the prompts, and the key they are scored by.

    python -m benchmarks.blind out=FOLDER [seed=20261127] [n=20]

writes ``first/01.png`` ... and ``second/01.png`` ... (the two editions of the embedded model, other concepts each) and
``key.json``, which whoever names the pictures must not see. A picture is 64 px, drawn in 20 DDIM steps with guidance 3
and enlarged to 320 px. Concepts are drawn at random without replacement, in the styles noto, fluent, twemoji by turns.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from PIL import Image

from erasebench import diffusion
from erasebench.emoji.training import world
from erasebench.types import Prompt

EMOJI = Path(__file__).parents[1] / "erasebench" / "emoji"
EDITIONS = {"first": EMOJI / "weights", "second": EMOJI / "weights2"}
STYLES = ("noto", "fluent", "twemoji")  # ink is black lines: a matter of its own
NOISE = 930_000  # seed of the first picture's noise; used for nothing else


def main(given: list[str]) -> None:
    asked = dict(word.split("=", 1) for word in given)
    out, rng, n = Path(asked["out"]), random.Random(int(asked.get("seed", 20261127))), int(asked.get("n", 20))
    key = {}
    for edition, weights in EDITIONS.items():
        chosen = rng.sample(list(world.things().values()), n)
        key[edition] = [
            {"text": f"a {thing.name} in {STYLES[i % len(STYLES)]} style", "name": thing.name, "words": thing.synonyms}
            for i, thing in enumerate(chosen)
        ]
        prompts = [Prompt(id=str(i), text=row["text"], seed=NOISE + i) for i, row in enumerate(key[edition])]
        folder = out / edition
        folder.mkdir(parents=True, exist_ok=True)
        drawn = diffusion.generate(diffusion.load(weights), prompts, steps=20, guidance_scale=3.0, batch_size=n)
        for i, (_, image, _status) in enumerate(drawn, start=1):
            (image or Image.new("RGB", (64, 64))).resize((320, 320), Image.Resampling.BICUBIC).save(
                folder / f"{i:02d}.png"
            )
    (out / "key.json").write_text(json.dumps(key, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
