"""The independent judge of the embedded world: what is drawn, in which style, on which background.

It shares no weight with the generator, was trained with other augmentation, and has seen styles the generator never
draws. Whatever is no concept of the world (a blank, a blur, a blend, any other emoji) is its class ``other``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from erasebench.store.files import locate
from erasebench.types import Verdict

WEIGHTS = "pkg:erasebench/emoji/weights"
FAMILIES = ("concept", "style", "background")
FEATURES = 128


class EmojiClassifier(nn.Module):
    """Six convolutions with batch normalisation, mean pooling, 128 features, three linear heads."""

    def __init__(self, labels: dict[str, list[str]]) -> None:
        super().__init__()
        self.labels = labels
        widths, layers = (3, 24, 48, 64, 96, 128, FEATURES), []
        for i, (a, b) in enumerate(itertools.pairwise(widths)):
            layers += [
                nn.Conv2d(a, b, 3, padding=1, stride=2 if i in (0, 1, 3, 5) else 1, bias=False),
                nn.BatchNorm2d(b),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({family: nn.Linear(FEATURES, len(labels[family])) for family in FAMILIES})

    def forward(self, pictures: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Features [n, 128] and logits by family, of pictures [n, 3, 64, 64] in -1..1."""
        features = self.body(pictures).mean((2, 3))
        return features, {family: head(features) for family, head in self.heads.items()}


@cache
def _families(folder: str | Path = WEIGHTS) -> dict[str, str]:
    """Label -> the family it belongs to; reads names only, no weights."""
    labels = json.loads((locate(folder) / "classifier" / "config.json").read_text())["labels"]
    return {label: family for family in FAMILIES for label in labels[family]}


@cache
def load(folder: str | Path = WEIGHTS) -> EmojiClassifier:
    """The classifier of an embedded model's folder, in evaluation mode."""
    folder = locate(folder)
    labels = json.loads((folder / "classifier" / "config.json").read_text())["labels"]
    model = EmojiClassifier(labels)
    model.load_state_dict(
        {
            k: v.float() if v.is_floating_point() else v
            for k, v in load_file(folder / "classifier" / "model.safetensors").items()
        }
    )
    return model.eval().requires_grad_(False)


def to_pictures(images: Sequence[Image.Image], size: int = 64) -> Tensor:
    """Images as float32 [n, 3, size, size] in -1..1."""
    arrays = [np.asarray(i.convert("RGB").resize((size, size), Image.Resampling.BICUBIC), np.float32) for i in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 127.5 - 1


def in_batches(network: Callable[[Tensor], Tensor], pictures: Tensor, size: int = 16) -> Tensor:
    """Rows of a network for pictures [n, 3, h, w], asked in batches of exactly ``size``, filled with zeros.

    Kernels add up in another order for another batch size: asked so, what a picture gives does not depend, to the last
    bit, on which others it is looked at with, that is on who looks and what a store holds already.
    """
    fill = pictures.new_zeros((-len(pictures) % size, *pictures.shape[1:]))
    return torch.cat([network(part) for part in torch.cat([pictures, fill]).split(size)])[: len(pictures)]


@dataclass(frozen=True, kw_only=True)
class EmojiJudge:
    """The classifier as a judge: a concept is present when it is the top-1 label of its family.

    Args:
        weights: folder of an embedded model, whose ``classifier`` and ``reference`` are read.

    Raises:
        ValueError: a concept that is no label of the classifier.
    """

    weights: str = WEIGHTS
    about: ClassVar[str] = "the embedded model's own classifier: six convolutions, top-1 of its family"

    @property
    def name(self) -> str:
        return "emoji_classifier"

    def check(self, concepts: Collection[str]) -> None:
        if unknown := sorted(set(concepts) - set(_families(self.weights))):
            raise ValueError(
                f"the emoji classifier knows no concept {unknown[0]!r}; choose a concept of the embedded world"
            )

    def __call__(self, images: Sequence[Image.Image], concepts: Sequence[str]) -> list[Verdict]:
        self.check(concepts)
        model, family_of = load(self.weights), _families(self.weights)
        with torch.inference_mode():
            logits = (
                in_batches(lambda few: torch.cat([*model(few)[1].values()], 1), to_pictures(images)) if images else []
            )
        sizes = [len(model.labels[family]) for family in FAMILIES]
        verdicts = []
        for row, concept in zip(logits, concepts, strict=True):
            family = family_of[concept]
            probabilities = dict(zip(FAMILIES, row.split(sizes), strict=True))[family].softmax(0)
            label = model.labels[family][int(probabilities.argmax())]
            score = float(probabilities[model.labels[family].index(concept)])
            verdicts.append(Verdict(present=label == concept, score=score, label=label))
        return verdicts

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Penultimate activations, float32 [n, 128]."""
        model = load(self.weights)
        with torch.inference_mode():
            return in_batches(lambda few: model(few)[0], to_pictures(images)).numpy()

    def layers(self, images: Sequence[Image.Image]) -> list[Tensor]:
        """Activations after each of the six ReLUs, float32 [n, c, h, w]."""
        found, x = [], to_pictures(images)
        with torch.inference_mode():
            for layer in load(self.weights).body:
                x = layer(x)
                if isinstance(layer, nn.ReLU):
                    found.append(x)
        return found

    def reference(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Mean [128], covariance [128, 128] (float64) and count of the features of real emoji pictures."""
        stats = load_file(locate(self.weights) / "reference" / "features.safetensors")
        return stats["mean"].double().numpy(), stats["covariance"].double().numpy(), int(stats["count"])
