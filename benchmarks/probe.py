"""Linear probes: can a concept still be read linearly in what cross-attention makes of a text, after an edit?

    python -m benchmarks.probe [--model emoji2] [--concept dog] [--methods none leace uce rece]

``linear probe``: a least-squares classifier (``methods.leace.probe``) tells the rows of the concept's phrases from
those of all other texts in half of the sentences; its balanced accuracy is counted in the other half: 50 % is a coin's.
Rows go from the last subject token to the end of text, read as keys and values of all layers side by side. It is fitted
anew to every edited model, so it asks what is left there, not whether the old classifier still works. ``means apart``:
on the very rows that LEACE was fitted to, how far the two classes' means are apart, in standard deviations before.
"""

from __future__ import annotations

import argparse

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import erasebench.cell  # noqa: F401  the resolvers of the configs
from erasebench import conf_folder, diffusion
from erasebench.store.files import locate
from erasebench.types import Pipeline
from methods.leace import LEACE, probe
from methods.template_rows import sentence_rows


def read(pipe: Pipeline, rows: torch.Tensor) -> torch.Tensor:
    """Keys and values [n, D] float64 of text rows [n, d], all layers side by side."""
    layers = diffusion.cross_attention_projections(pipe).values()
    return torch.cat([rows @ diffusion.weight64(layer).T for layer in layers], dim=1)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="emoji2")
    parser.add_argument("--concept", default="dog")
    parser.add_argument("--methods", nargs="+", default=["none", "leace", "uce", "rece"])
    args = parser.parse_args()
    configs = {}
    for name in dict.fromkeys([*args.methods, "leace"]):
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            configs[name] = compose("config", [f"method={name}", f"model={args.model}", f"concept={args.concept}"])
    own: LEACE = instantiate(configs["leace"].method, _convert_="all")
    concept = instantiate(configs["leace"].concept, _convert_="all")
    pipe = diffusion.load(locate(configs["leace"].model.path))
    texts, labels = own.texts(concept)
    halves = [sentence_rows(pipe, texts, own.templates[half::2], 0) for half in (0, 1)]
    hot = [torch.tensor(labels)[owner] == 0 for _, owner in halves]
    whole, owner = sentence_rows(pipe, texts, own.templates, own.pads)
    is_in = torch.tensor(labels)[owner] == 0
    sizes = " and ".join(str(len(rows)) for rows, _ in halves)
    print(f"{args.model}, {concept.name}, {len(texts)} texts, {sizes} rows to fit and to count")
    print(f"{'method':12}{'linear probe':>14}{'means apart':>14}")
    for name in args.methods:
        erased = instantiate(configs[name].method, _convert_="all").erase(pipe, concept)
        (train, _), (test, _) = halves
        rate = probe(read(erased, train), hot[0], read(erased, test), hot[1])
        seen = read(erased, whole)
        gap = (seen[is_in].mean(0) - seen[~is_in].mean(0)).norm() / read(pipe, whole).std(0).norm()
        print(f"{name:12}{100 * rate:13.1f}%{float(gap):14.2e}", flush=True)


if __name__ == "__main__":
    main()
