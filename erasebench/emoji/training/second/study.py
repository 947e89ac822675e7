"""What makes a text encoder's states: ``python -m erasebench.emoji.training.second.study --out FOLDER [--train]``.

Trains every variant of ``reading.VARIANTS`` side by side and prints, for each, figures that cost no UNet (decision
0005 has the table):

- ``synonym``: cosine of a name's row and a synonym's in "a noto drawing of a {}", centred on the mean of all names;
- ``names``: effective dimensions of the 83 names' rows, the participation ratio of the squared singular values;
- ``pads``, ``pad synonym``: both for padding row 40;
- ``uce far``, ``uce near``: relative change of the states of unrelated sentences, and of a neighbour's, under the
  literal UCE edit of cat (last token and paddings onto those of the empty text, ridge 0.5); ``uce self``: of the
  concept's own; mean over concepts;
- ``held-out``: accuracy of naming real pictures by the 36 held-out sentences; ``+synonym``: with a synonym in them.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from erasebench.emoji import networks
from erasebench.emoji.training import artwork, world
from erasebench.emoji.training.second import grammar, reading, stock, texts
from erasebench.emoji.training.second.loop import together

CONCEPTS = ("cat", "apple", "sun", "car", "gun", "violin")


def _states(model: networks.Contrastive, tok: CLIPTokenizer, lines: list[str]) -> tuple[Tensor, Tensor]:
    """All rows [n, 77, width] float64 and the row of each text's last token."""
    ids = tok(lines, padding="max_length", truncation=True, max_length=networks.TOKENS, return_tensors="pt").input_ids
    end = (ids == tok.eos_token_id).int().argmax(1)
    return reading.rows(model.text, ids).double(), end - 1


def _dimensions(rows: Tensor) -> float:
    energy = torch.linalg.svdvals(rows - rows.mean(0)).square()
    return float(energy.sum() ** 2 / energy.square().sum())


def _alike(a: Tensor, b: Tensor, mean: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a - mean, b - mean).mean())


def _edit(model: networks.Contrastive, tok: CLIPTokenizer, name: str) -> Tensor:
    """T [width, width] of literal UCE: from the last token on, onto the empty text; the empty text kept at 1."""
    (c, n), last = _states(model, tok, [name, ""])
    c, n = c[int(last[0]) :], n[: len(c) - int(last[0])]
    kept = _states(model, tok, [""])[0][0]
    ridge = 0.5 * torch.eye(c.shape[1], dtype=torch.float64)
    return torch.linalg.solve(ridge + c.T @ c + kept.T @ kept, ridge + c.T @ n + kept.T @ kept).T


@torch.inference_mode()
def geometry(model: networks.Contrastive, tok: CLIPTokenizer) -> dict[str, float]:
    """The figures of the module's description that need no picture."""
    frame, things = "a noto drawing of a {}", world.things()
    rows, last = _states(model, tok, [frame.format(n) for n in things])
    at = torch.arange(len(rows))
    names, pads = rows[at, last], rows[:, 40]
    pairs = [(i, s) for i, t in enumerate(things.values()) for s in t.synonyms[:2]]
    own = [i for i, _ in pairs]
    rows2, last2 = _states(model, tok, [frame.format(s) for _, s in pairs])
    out = {
        "synonym": _alike(names[own], rows2[torch.arange(len(pairs)), last2], names.mean(0)),
        "names": _dimensions(names), "pads": _dimensions(pads),
        "pad synonym": _alike(pads[own], rows2[:, 40], pads.mean(0)),
    }  # fmt: skip
    moved: dict[str, list[float]] = {"far": [], "near": [], "self": []}
    for name in CONCEPTS:
        edit, thing = _edit(model, tok, name), things[name]
        lines = {
            "far": [f"a fluent drawing of a {n} on a blue background" for n in world.neighbours(name)["unrelated"]],
            "near": [f"a {n} drawn by twemoji" for n in thing.visual],
            "self": [f"a noto drawing of a {name} on a pink background"],
        }
        for kind, some in lines.items():
            x = _states(model, tok, some)[0]
            moved[kind].append(float(((x @ edit.T - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)).mean()))
    return out | {f"uce {k}": sum(v) / len(v) for k, v in moved.items()}


@torch.inference_mode()
def zero_shot(model: networks.Contrastive, tok: CLIPTokenizer, data: Path, each: int = 1) -> dict[str, float]:
    """Accuracy over concepts x held-out sentences x ``each`` fresh real pictures, by name and by synonym."""
    art, g, rng = artwork.load(data), torch.Generator().manual_seed(910_000), random.Random(910_000)
    names, styles, places = list(world.things()), list(world.STYLES), list(world.BACKGROUNDS)
    hits: dict[str, list[float]] = {"held-out": [], "+synonym": []}
    for frame in grammar.HELD_OUT:
        s, b = rng.randrange(len(styles)), rng.randrange(len(places))
        x = art.world[:, s].repeat_interleave(each, 0)
        pictures = artwork.compose(x, artwork.colours()[b].expand(len(x), 3), g)
        seen = reading.seen(model, pictures)
        for kind in hits:
            said = [n if kind == "held-out" else rng.choice(world.things()[n].synonyms) for n in names]
            ids = tok(
                [frame.format(c=n, s=styles[s], b=places[b]) for n in said], padding=True, return_tensors="pt"
            ).input_ids
            guess = (seen @ model.words(ids).T).argmax(1)
            hits[kind].append(float((guess == torch.arange(len(names)).repeat_interleave(each)).float().mean()))
    return {kind: sum(v) / len(v) for kind, v in hits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="a training folder with the stage texts done")
    parser.add_argument("--data", type=Path, help="folder of the artwork (default: OUT/data)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--train", action="store_true", help="train the variants first, in OUT/study")
    parser.add_argument("--steps", type=int, default=1298)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    data = args.data or args.out / "data"
    if args.train:
        held = stock.load(args.out, data, torch.device(args.device))
        together([reading.trainer(args.out, held, n, args.steps, f"study/{n}") for n in reading.VARIANTS])
    tok = texts.tokenizer(args.out)
    for name in reading.VARIANTS:
        path = args.out / "study" / name / "final.safetensors"
        if path.exists():
            model = reading.load(path, tok, name)
            print(json.dumps({"variant": name, **geometry(model, tok), **zero_shot(model, tok, data)}))


if __name__ == "__main__":
    main()
