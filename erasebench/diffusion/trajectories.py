"""What two models predict along one and the same way from noise to image: their difference before anything is drawn."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from erasebench.diffusion.sampling import generate
from erasebench.diffusion.weights import fork
from erasebench.types import Pipeline, Prompt


class _Recording:
    """A scheduler that keeps every prediction it is given, and may be led along a way that is not its own.

    The sampler starts anew, with fewer prompts, where memory did not suffice; what it had not finished is not counted.

    Args:
        scheduler: does the work.
        way: latents [steps, n, c, h, w], handed back after each step in place of its own; None: it goes its own way.
    """

    def __init__(self, scheduler: Any, way: torch.Tensor | None = None) -> None:
        self._scheduler, self._way = scheduler, way
        self._starts: list[list[tuple[torch.Tensor, torch.Tensor]]] = []  # each: prediction and latents of every step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Recording:
        return self  # the sampler works on a copy: this one, which is thrown away, is the copy

    def set_timesteps(self, *args: Any, **options: Any) -> None:
        self._scheduler.set_timesteps(*args, **options)
        self._starts = [*self._finished(), []]

    def step(self, e: torch.Tensor, t: Any, x: torch.Tensor, return_dict: bool = True) -> tuple[torch.Tensor]:
        *before, now = self._starts
        first = sum(len(start[0][0]) for start in before)
        made = self._scheduler.step(e, t, x, return_dict=False)[0]
        made = made if self._way is None else self._way[len(now), first : first + len(e)]
        now.append((e, made))
        return (made,)

    def _finished(self) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
        return [start for start in self._starts if len(start) == len(self._scheduler.timesteps)]

    def recorded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions and latents, [steps, n, c, h, w] each."""
        e, x = (
            torch.cat([torch.stack(one) for one in side], dim=1)
            for side in zip(*(tuple(zip(*start, strict=True)) for start in self._finished()), strict=True)
        )
        return e, x


def noise_distances(
    ours: Pipeline,
    theirs: Pipeline,
    prompts: Sequence[Prompt],
    *,
    steps: int,
    guidance_scale: float,
    height: int | None = None,
    width: int | None = None,
    batch_size: int = 16,
) -> torch.Tensor:
    """How far our predictions are from theirs along their own way from a prompt's noise to its image.

    ``theirs`` draws; at each of its latents both models predict, with the guidance that they draw with (and a
    ``guide``, where they have one). The distance is ``sum_t |e_ours - e_theirs|^2 / sum_t |e_theirs|^2``: 0 for the
    same model, 1 for one that predicts nothing.

    Args:
        ours, theirs: one architecture and one scheduler, deterministic (DDIM and the like: what noise a step adds is
            not compared); neither is changed.
        prompts: their noise is the one they are drawn from.
        steps, guidance_scale, height, width, batch_size: as in :func:`erasebench.diffusion.generate`.

    Returns:
        float64 [len(prompts)] in 0.., NaN where a prediction is not finite. Two drawings' worth of evaluations.
    """
    found = []
    how: dict[str, Any] = {"steps": steps, "guidance_scale": guidance_scale, "height": height, "width": width}
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        known, way = _predictions(theirs, batch, None, how)
        seen, _ = _predictions(ours, batch, way, how)
        dims = (0, *range(2, known.ndim))
        distance = (seen - known).square().sum(dims) / known.square().sum(dims)
        found.append(torch.where(distance.isfinite(), distance, torch.nan).cpu())
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)


def _predictions(
    pipe: Pipeline, prompts: Sequence[Prompt], way: torch.Tensor | None, how: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions float64 and latents, [steps, b, c, h, w] each, along the way given or the model's own."""
    led = fork(pipe)
    led.scheduler = recording = _Recording(copy.deepcopy(pipe.scheduler), way)
    for _ in generate(led, prompts, batch_size=len(prompts), **how):
        pass
    e, x = recording.recorded()
    return e.double(), x
