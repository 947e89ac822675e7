"""A zero-shot judge made of a CLIP-like model and a list of labels."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from erasebench import fields
from erasebench.judges.clip import ImageText
from erasebench.judges.judging import check_files
from erasebench.prompts.grammar import fill
from erasebench.types import Verdict

if TYPE_CHECKING:
    from PIL import Image


@lru_cache(maxsize=8)
def _said(model: ImageText, texts: tuple[str, ...]) -> np.ndarray:
    return model.text_features(texts)


@dataclass(frozen=True, kw_only=True)
class ZeroShotJudge:
    """Zero-shot classification over a declared label set (Radford et al., arXiv 2103.00020), as a judge.

    ``p_k = softmax_k(scale * cos(image, text_k))``; a concept is present if its label has the largest p. The number of
    labels and their wording decide the accuracy, so the name carries their count and a hash of them.

    Args:
        model: a CLIP-like model.
        labels: every concept the judge can name, at least two.
        template: text of a label, with one ``{}``; its article agrees with the label or gives way to the label's own.
            None is "a photo of a {}".
        wording: the text of every label, in their order; None: made by the template.
        scale: CLIP's logit scale.

    Raises:
        ValueError: fewer than two labels, a repeated one, or a template without ``{}``; when judging, a concept that is
            not among the labels.
    """

    model: ImageText
    labels: tuple[str, ...]
    template: str | None = None
    wording: tuple[str, ...] | None = None
    scale: float = 100.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", fields.texts("judge.labels", self.labels))
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            raise ValueError(
                f"judge.labels must be at least two, each once; got {list(self.labels)}; add what else may be seen"
            )
        if self.template is not None and fields.text("judge.template", self.template).count("{}") != 1:
            raise ValueError(f"judge.template must contain {{}} once, where the label goes; got {self.template!r}")
        if self.wording is not None:
            object.__setattr__(self, "wording", fields.texts("judge.wording", self.wording))
            if len(self.wording) != len(self.labels) or len(set(self.wording)) < len(self.labels):
                raise ValueError(
                    f"judge.wording must be one text for each of {len(self.labels)} labels, all different; got "
                    f"{list(self.wording)}; give the labels' texts, or null"
                )
        fields.number("judge.scale", self.scale, above=0)

    def check_files(self) -> None:
        """As the model's."""
        check_files(self.model)

    @property
    def name(self) -> str:
        wording = hashlib.sha256("\n".join(self.texts).encode()).hexdigest()[:6]
        return f"zero_shot.{self.model.name}.{len(self.labels)}labels-{wording}"

    @property
    def about(self) -> str:
        """What it is, in a sentence."""
        return (
            f"Zero-shot classification by {self.model.name} among {len(self.labels)} texts such as {self.texts[0]!r}."
        )

    @property
    def texts(self) -> tuple[str, ...]:
        """The text of every label: a photo of an apple, a painting by Van Gogh, a photo of a person in a coat."""
        if self.wording is not None:
            return self.wording
        template = (self.template or "a photo of a {}").replace("{}", "{label}")
        return tuple(fill(template, {"label": label.replace("_", " ")}) for label in self.labels)

    def check(self, concepts: Collection[str]) -> None:
        unknown = sorted(set(concepts) - set(self.labels))
        if unknown:
            raise ValueError(f"concept {unknown[0]!r} must be among the judge's labels; add it to judge.labels")
        if hasattr(self.model, "check"):  # a model that was trained on few words only
            self.model.check(self.labels)

    def __call__(self, images: Sequence[Image.Image], concepts: Sequence[str]) -> list[Verdict]:
        """One verdict per image: top-1 over the labels, the concept's probability, the label seen."""
        self.check(concepts)
        if not images:
            return []
        logits = self.scale * self.model.image_features(images).astype(np.float64) @ _said(self.model, self.texts).T
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = odds / odds.sum(axis=1, keepdims=True)  # [n, labels]
        best = probabilities.argmax(axis=1)
        return [
            Verdict(present=self.labels[k] == c, score=float(p[self.labels.index(c)]), label=self.labels[k])
            for k, c, p in zip(best, concepts, probabilities, strict=True)
        ]
