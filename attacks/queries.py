"""Asking the erased model and the judge: what every attack shares that looks at images while it searches.

A query is one image of the erased model and the judge's word on it. An attack's ``info`` keeps all of them (``curve``,
``present``), the plain prompt's first, so that its success at any smaller budget is read afterwards. Its UNet passes
count all of them: those of the search, of every query and of the original model's image where one is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from PIL import Image

from erasebench import diffusion
from erasebench.fields import integer, number, pixels
from erasebench.protocols import Judge
from erasebench.types import Concept, Pipeline, Prompt


class Seen(NamedTuple):
    """The judge's word on one image, and the UNet passes it cost; both words are None for one NaN or constant."""

    present: bool | None
    score: float | None
    passes: int


@dataclass(frozen=True, kw_only=True)
class Querying:
    """How an attack draws; the run fills these in from the model's settings, so that a query is what will be scored.

    Args:
        steps: denoising steps of a query's image, >= 1.
        guidance_scale: of prompts that bring none; finite.
        height, width: of the image in pixels; None is the model's own size.
        batch_size: prompts attacked at once, and images drawn at once, >= 1; changes results by float rounding only.
        budget: queries per prompt at most, the plain prompt's included, >= 1; None leaves it to the attack's schedule.

    Raises:
        ValueError: a value out of its range.
    """

    steps: int = 50
    guidance_scale: float = 7.5
    height: int | None = None
    width: int | None = None
    batch_size: int = 8
    budget: int | None = None

    decimals: ClassVar[int | None] = None  # of a score that are kept; None keeps what the judge says

    def __post_init__(self) -> None:
        integer("steps", self.steps, least=1)
        integer("batch_size", self.batch_size, least=1)
        if self.budget is not None:
            integer("budget", self.budget, least=1)
        number("guidance_scale", self.guidance_scale)
        pixels("height", self.height)
        pixels("width", self.width)

    def images(self, pipe: Pipeline, prompts: Sequence[Prompt]) -> list[Image.Image | None]:
        """One image per prompt with its own seed and guidance; None where it is NaN or constant."""
        drawn = diffusion.generate(
            pipe, prompts, steps=self.steps, guidance_scale=self.guidance_scale, height=self.height, width=self.width,
            batch_size=self.batch_size,
        )  # fmt: skip
        return [image for _, image, _ in drawn]

    def ask(self, pipe: Pipeline, prompts: Sequence[Prompt], concept: Concept, judge: Judge) -> list[Seen]:
        """One query per prompt: is ``concept`` in the image that ``pipe`` draws for it?"""
        images = self.images(pipe, prompts)
        real = [image for image in images if image is not None]
        verdicts = iter(judge(real, [concept.name] * len(real)) if real else [])
        seen = []
        for prompt, image in zip(prompts, images, strict=True):
            if image is None:
                seen.append(Seen(None, None, self.passes(prompt)))
            else:
                verdict = next(verdicts)
                score = float(verdict.score) if self.decimals is None else round(float(verdict.score), self.decimals)
                seen.append(Seen(bool(verdict.present), score, self.passes(prompt)))
        return seen

    def passes(self, prompt: Prompt) -> int:
        """UNet forward passes of one image: one a step, two under guidance."""
        scale = self.guidance_scale if prompt.guidance_scale is None else prompt.guidance_scale
        return self.steps * (1 if scale == 1 else 2)


def unasked(**more: Any) -> dict[str, Any]:
    """A prompt's record before its first query, the plain one: what becomes its ``info``.

    ``success`` (some image shows the concept), ``pre`` (the plain one does), ``queries`` (images judged), ``forward``
    and ``backward`` (UNet passes), ``seconds``, and after each query ``curve`` (the judge's score) and ``present``
    (whether the concept was there), both None for an image that could not be made.
    """
    return {
        "success": False, "pre": False, "queries": 0, "forward": 0, "backward": 0, "seconds": 0.0, "curve": [],
        "present": [], **more,
    }  # fmt: skip


def noted(record: dict[str, Any], seen: Seen) -> dict[str, Any]:
    """A record with one more query.

    >>> record = noted(noted(unasked(), Seen(False, 0.25, 40)), Seen(True, 0.75, 40))
    >>> record["curve"], record["success"], record["pre"], record["forward"]
    ([0.25, 0.75], True, False, 80)
    """
    present = seen.present is True
    return record | {
        "success": record["success"] or present,
        "pre": record["pre"] if record["queries"] else present,
        "queries": record["queries"] + 1,
        "forward": record["forward"] + seen.passes,
        "curve": [*record["curve"], seen.score],
        "present": [*record["present"], seen.present],
    }


def better(record: dict[str, Any], seen: Seen, text: str, **facts: bool) -> dict[str, Any]:
    """The record with this text and its ``facts`` if it succeeded, or if it scored more than all before."""
    best, score = record["best"], -1.0 if seen.score is None else seen.score
    if best is not None and not seen.present and score <= best["score"]:
        return record
    return record | {"best": {"text": text, "score": score}, **facts}


def names_concept(text: str, concept: Concept) -> bool:
    """Whether a text says one of the concept's own phrases; a search may find them.

    >>> cat = Concept(name="cat", phrases=("cat",))
    >>> names_concept("a Cat here", cat), names_concept("concat", cat)
    (True, False)
    """
    words = f" {' '.join(text.lower().split())} "
    return any(f" {phrase.lower()} " in words for phrase in concept.phrases)


def attacked(prompt: Prompt, name: str, concept: Concept, **changes: Any) -> Prompt:
    """The adversarial prompt that stands for ``prompt``: its seed and guidance, group ``attack``."""
    fields = {"id": f"{prompt.id}-{name}", "group": "attack", "concept": concept.name, "source_id": prompt.id}
    return prompt.with_(**{**fields, "relation": "", "embeds": None, **changes})
