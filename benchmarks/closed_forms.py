"""Seconds of the closed forms of LEACE, TRCE and MACE at Stable Diffusion 1.4's shape, beside the straightforward way.

    python -m benchmarks.closed_forms [--threads 2] [--repeats 2] [--naive-layers 2]

The pipeline is that of ``benchmarks.erase``: random weights, on which the cost of a dense edit does not depend. The
straightforward way encodes one sentence at a time and whole, and solves or inverts for every layer anew; it is measured
on ``--naive-layers`` of the 32 layers, what it does once apart, and told for all 32. Both give the same weights: the
largest relative difference in these layers is printed.

leace        fit to 8 sentences of 12 texts, then fold
trce_stage1  end rows of one concept in 15 sentences, 10 preserved texts
mace fusion  10 concepts' adapters of rank 1 into one change of the weights, their rows given
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping

import torch
from concept_erasure import LeaceFitter
from torch import Tensor

from benchmarks.erase import sd14_shape
from erasebench.diffusion import cross_attention_projections, encode, last_token, weight64
from erasebench.types import Concept, Pipeline
from methods.closed_form import fused
from methods.leace import LEACE
from methods.low_rank import with_changes
from methods.trce import FirstEnd
from methods.uce import UCE

OTHERS = tuple(f"{kind} {what}" for kind in ("old", "new") for what in ("tower", "house", "tree", "dog", "car"))
CHURCH = Concept(name="church", phrases=("church", "chapel"), anchor="field", preserve=OTHERS)
ENDS = ("", " here", " there", " now", " too")
SENTENCES = tuple(f"{a} of {{}}{b}" for a in ("a photo", "a picture", "an image") for b in ENDS)
Naive = tuple[Callable[[], object], Callable[[object, Tensor], Tensor]]  # once, then for each layer


def one(pipe: Pipeline, text: str, word: str = "", template: str = "") -> tuple[Tensor, int, int]:
    """All rows of a text, where its subject ends and where it ends."""
    (states,) = encode(pipe, [text]).double()
    last = int(last_token(pipe, [template.split("{}")[0] + word])) if template else 0
    return states, last, int(last_token(pipe, [text])) + 1


def leace(pipe: Pipeline) -> tuple[Callable[[], Pipeline], Naive]:
    method = LEACE(templates=SENTENCES[:8], pads=75)

    def rows() -> object:
        texts, labels = method.texts(CHURCH)
        found, z = [], []
        for text, label in zip(texts, labels, strict=True):
            for template in method.templates:
                states, first, _ = one(pipe, template.replace("{}", text), text, template)
                found.append(states[first:])
                z += [float(label == 0)] * len(found[-1])
        return torch.cat(found), torch.tensor(z).double()

    def layer(given: object, weight: Tensor) -> Tensor:
        x, z = given  # type: ignore[misc]
        return weight @ LeaceFitter(x.shape[1], 1, dtype=torch.float64).update(x, z).eraser.P

    return lambda: method.erase(pipe, CHURCH), (rows, layer)


def trce(pipe: Pipeline) -> tuple[Callable[[], Pipeline], Naive]:
    method = UCE(pooling=FirstEnd(templates=SENTENCES), anchor=None, lamb=0.1, preserve_scale=0.01)

    def rows() -> object:
        ends = [[one(pipe, t.replace("{}", text)) for t in SENTENCES] for text in ("church", "field")]
        kept = [one(pipe, text)[0] for text in method.kept(CHURCH)]
        return [[states[end] for states, _, end in some] for some in ends], kept

    def layer(given: object, weight: Tensor) -> Tensor:
        (concepts, anchors), kept = given  # type: ignore[misc]
        left, right = 0.1 * weight, 0.1 * torch.eye(768, dtype=torch.float64)
        for c, a in zip(concepts, anchors, strict=True):
            left, right = left + torch.outer(weight @ a, c), right + torch.outer(c, c)
        for text in kept:
            for p in text:
                left, right = left + 0.01 * torch.outer(weight @ p, p), right + 0.01 * torch.outer(p, p)
        return left @ torch.inverse(right)

    return lambda: method.erase(pipe, CHURCH), (rows, layer)


def mace(pipe: Pipeline) -> tuple[Callable[[], Pipeline], Naive]:
    draw, layers = torch.Generator().manual_seed(0), cross_attention_projections(pipe)
    rows = [torch.randn(300, 768, generator=draw, dtype=torch.float64) for _ in range(10)]
    kept = torch.randn(770, 768, generator=draw, dtype=torch.float64)
    ups = [{n: torch.randn(m.out_features, 1, generator=draw).double() for n, m in layers.items()} for _ in rows]
    downs = [torch.randn(1, 768, generator=draw).double() for _ in rows]

    def ours() -> Pipeline:
        changes: list[Mapping[str, Tensor]] = []
        for up, down in zip(ups, downs, strict=True):
            changes.append({n: u @ down for n, u in up.items()})
        squares = [r.T @ r for r in rows]
        return with_changes(pipe, fused(changes, squares, kept.T @ kept, lamb=0.1, preserve_scale=0.01))

    def layer(name: object, weight: Tensor) -> Tensor:
        left = torch.zeros_like(weight)
        right = 0.1 * torch.eye(768, dtype=torch.float64) + 0.01 * kept.T @ kept
        for up, down, r in zip(ups, downs, rows, strict=True):
            left, right = left + (up[str(name)] @ down) @ (r.T @ r), right + r.T @ r
        return weight + left @ torch.inverse(right)

    return ours, (lambda: None, layer)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--naive-layers", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipe = sd14_shape()
    layers = cross_attention_projections(pipe)
    some = list(layers)[: options.naive_layers]
    print(f"{options.threads} threads, torch {torch.__version__}, best of {options.repeats}, CPU seconds")
    for name, make in (("leace", leace), ("trce_stage1", trce), ("mace fusion", mace)):
        ours, (once, layer) = make(pipe)
        here = []
        for _ in range(options.repeats):
            started = time.process_time()
            erased = ours()
            here.append(time.process_time() - started)
        started = time.process_time()
        given = once()
        first, started = time.process_time() - started, time.process_time()
        found = {n: layer(n if given is None else given, weight64(layers[n])) for n in some}
        each = (time.process_time() - started) / len(some)
        edited = cross_attention_projections(erased)
        gap = max(float((weight64(edited[n]) - w).norm() / w.norm()) for n, w in found.items())
        other = first + each * len(layers)
        ratio = other / min(here)
        print(
            f"{name:12}{min(here):8.2f} here{other:10.2f} one by one{ratio:8.1f}x  difference {gap:.0e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
