"""What an edit does to the text encodings of the embedded model, before any image is drawn.

    python -m benchmarks.recipes [--concept cat]

For the published recipes and the embedded model's own: how far each text's encoding moves, as cross-attention sees it
(relative change of E(text) over all 77 rows), and how close the concept's sentence comes to its anchor's. Evidence for
docs/decisions/0002.
"""

from __future__ import annotations

import argparse
import time

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from erasebench import conf_folder, diffusion
from erasebench.store.files import locate
from erasebench.types import Pipeline

RECIPES = {
    "uce, paper": ["method=uce", "recipe=paper"],
    "uce_v2, paper": ["method=uce_v2", "recipe=paper"],
    "rece, paper": ["method=rece", "recipe=paper"],
    "uce, embedded": ["method=uce"],
    "rece, embedded": ["method=rece"],
}


def seen(original: Pipeline, erased: Pipeline) -> torch.Tensor:
    """The matrix T with W_erased = W T, least squares over all layers, float64 [width, width]."""
    stacks = [
        torch.cat([layer.weight.double() for layer in diffusion.cross_attention_projections(p).values()])
        for p in (original, erased)
    ]
    return torch.linalg.lstsq(stacks[0], stacks[1]).solution


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--concept", default="cat")
    args = parser.parse_args()
    pipe = diffusion.load(locate("pkg:erasebench/emoji/weights"))
    rows = []
    for name, overrides in RECIPES.items():
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            cfg = compose("config", [*overrides, f"concept={args.concept}"])
        method, concept = instantiate(cfg.method, _convert_="all"), instantiate(cfg.concept, _convert_="all")
        started = time.perf_counter()
        matrix = seen(pipe, method.erase(pipe, concept))
        seconds = time.perf_counter() - started
        visual, far = concept.neighbours["visual"][0], concept.neighbours["unrelated"][0]
        sentence = "a noto drawing of a {} on a blue background"
        texts = [sentence.format(concept.name), f"a {concept.phrases[1]}", f"a {visual}", f"a {far}"]
        states = diffusion.encode(pipe, [*texts, sentence.format(concept.anchor)]).double()
        moved = states @ matrix.T
        shift = [float((moved[i] - states[i]).norm() / states[i].norm()) for i in range(4)]
        rows.append([name, *shift, float((moved[0] - states[4]).norm() / states[4].norm()), seconds])
    heads = [f"{texts[0][:24]:>24s}", *(f"{text:>14s}" for text in texts[1:]), f"{'to anchor':>10s}", f"{'s':>6s}"]
    print(f"{'recipe':16s}", *heads)
    for row in rows:
        print(f"{row[0]:16s} {row[1]:24.2f} {row[2]:14.2f} {row[3]:14.2f} {row[4]:14.2f} {row[5]:10.2f} {row[6]:6.1f}")


if __name__ == "__main__":
    main()
