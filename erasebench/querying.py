"""Black-box search: draw candidates with the model under attack, ask the judge, stop at the first success.

What the controls share, and what any attack may use that only needs images. Each prompt's search is independent of the
others; they run side by side so that images are drawn in full batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from erasebench import diffusion, workspace
from erasebench.types import Attack, Concept, Judge, Pipeline, Prompt

Candidate = Callable[[Prompt, int], Prompt]  # (plain prompt, which query: 1, 2, ...) -> what to draw


@dataclass(frozen=True, kw_only=True)
class QueryAttack(Attack):
    """The fields of an attack that only asks for images, which it draws as the run does (``steps: ${model.steps}``).

    Args:
        queries: images judged for each prompt at most, the plain one included; those of the attack it stands beside.
        seed: what a query draws depends on this, the prompt and the query's number only; >= 0.
        steps, guidance_scale, height, width: of the images, see :func:`erasebench.diffusion.generate`.
        batch_size: images drawn at once; changes no result beyond float rounding.

    Raises:
        ValueError: queries, steps or batch_size below 1, seed below 0.
    """

    queries: int = 51
    seed: int = 0
    steps: int = 50
    guidance_scale: float = 7.5
    height: int | None = None
    width: int | None = None
    batch_size: int = 16

    access = "queries"
    strength = "text"

    def __post_init__(self) -> None:
        for name, least in (("queries", 1), ("seed", 0), ("steps", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be an integer >= {least}; got {value!r}")

    def forwards(self, prompt: Prompt) -> int:
        """UNet evaluations of one image: one per step, two under guidance."""
        scale = self.guidance_scale if prompt.guidance_scale is None else prompt.guidance_scale
        return self.steps * (1 if scale == 1 else 2)


@dataclass
class Seen:
    """What the judge said of one prompt's images so far, in the order of the queries; None for a failed image."""

    curve: list[float | None] = field(default_factory=list)
    present: list[bool | None] = field(default_factory=list)
    seconds: float = 0.0

    def best(self) -> int:
        """The first query whose image has the concept, else the one with the highest score, the first of equals.

        >>> Seen([0.1, 0.4, None], [False, False, None]).best(), Seen([0.6, 0.5], [False, True]).best()
        (1, 1)
        """
        if True in self.present:
            return self.present.index(True)
        scores = [-math.inf if s is None else s for s in self.curve]
        return scores.index(max(scores))


def search(
    pipe: Pipeline,
    judge: Judge,
    prompts: Sequence[Prompt],
    concept: Concept,
    candidate: Candidate,
    *,
    settings: QueryAttack,
    name: str,
) -> list[Prompt]:
    """For each prompt the first candidate whose image shows the concept, else the one the judge scores highest.

    Query 0 is the plain prompt: if its image shows the concept it is passed through, as adaptive attacks do. Progress
    is kept after every batch in ``workspace.current()``; a search that was killed goes on with the same batches.

    Args:
        pipe: the model under attack; asked for images only.
        judge: says whether ``concept`` is in an image, with a score.
        prompts: plain prompts.
        concept: what is looked for.
        candidate: makes the prompt of query 1, 2, ... from its arguments only; what it puts into ``info`` is kept.
        settings: how many queries, and how images are drawn.
        name: of the attack, for ids and the progress bar.

    Returns:
        One prompt each, in order, group ``attack``, with ``info``: ``success``, ``pre`` (the plain image shows the
        concept), ``queries`` (images judged), ``forward`` and ``backward`` (UNet evaluations), ``seconds``, ``curve``
        (judge's score after each query, the plain prompt's first) and ``present`` (whether the concept was there;
        None in both for an image that could not be made).

    Cost: up to ``settings.queries`` images per prompt.
    """
    queries = settings.queries
    seen = _resume(prompts, name)
    total = len(prompts) * queries
    with tqdm(total=total, desc=name, unit="query", disable=None, smoothing=0.1) as bar:
        while todo := [i for i, s in enumerate(seen) if True not in s.present and len(s.present) < queries]:
            turn = min(len(seen[i].present) for i in todo)
            batch = [i for i in todo if len(seen[i].present) == turn][: settings.batch_size]
            started = time.perf_counter()
            drawn = [prompts[i] if turn == 0 else candidate(prompts[i], turn) for i in batch]
            scores = _ask(pipe, judge, drawn, concept, settings)
            took = (time.perf_counter() - started) / len(batch)
            for i, (score, present) in zip(batch, scores, strict=True):
                seen[i].curve.append(score)
                seen[i].present.append(present)
                seen[i].seconds += took
            workspace.current().save(name, {}, seen=[vars(s) for s in seen])
            bar.n = total - sum(queries - len(s.present) for s in seen if True not in s.present)
            bar.set_postfix_str(f"{sum(True in s.present for s in seen)} of {len(seen)} found")
            bar.refresh()
    return [_handed_in(prompt, s, candidate, concept, settings, name) for prompt, s in zip(prompts, seen, strict=True)]


def _resume(prompts: Sequence[Prompt], name: str) -> list[Seen]:
    kept = workspace.current().load(name)
    if kept is None or len(kept[1]["seen"]) != len(prompts):
        return [Seen() for _ in prompts]
    return [Seen(**s) for s in kept[1]["seen"]]


def _ask(
    pipe: Pipeline, judge: Judge, prompts: Sequence[Prompt], concept: Concept, settings: QueryAttack
) -> list[tuple[float | None, bool | None]]:
    """The judge's score and word on each prompt's image, (None, None) for an image that could not be made."""
    drawn = list(
        diffusion.generate(
            pipe, prompts, steps=settings.steps, guidance_scale=settings.guidance_scale, height=settings.height,
            width=settings.width, batch_size=settings.batch_size,
        )
    )  # fmt: skip
    images = [image for _, image, _ in drawn if image is not None]
    verdicts = iter(judge(images, [concept.name] * len(images)) if images else ())
    answers: list[tuple[float | None, bool | None]] = []
    for _, image, _ in drawn:
        verdict = None if image is None else next(verdicts)
        answers.append((None, None) if verdict is None else (float(verdict.score), bool(verdict.present)))
    return answers


def _handed_in(
    prompt: Prompt, seen: Seen, candidate: Candidate, concept: Concept, settings: QueryAttack, name: str
) -> Prompt:
    best = seen.best()
    found = prompt if best == 0 else candidate(prompt, best)
    info: dict[str, Any] = {
        "success": True in seen.present,
        "pre": seen.present[0] is True,
        "queries": len(seen.present),
        "forward": len(seen.present) * settings.forwards(prompt),
        "backward": 0,
        "seconds": seen.seconds,
        "curve": seen.curve,
        "present": seen.present,
    }
    return found.with_(
        id=f"{prompt.id}-{name}",
        group="attack",
        concept=concept.name,
        relation="",
        source_id=prompt.id,
        info=info | dict(found.info),
    )
