"""Erased Stable Diffusion: train the model to be guided away from a concept without being asked to.

Gandikota, Materzynska, Fiotto-Kaufman and Bau, ICCV 2023, arXiv:2303.07345. Two programs carry the name: the paper's
(``esd_x``, ``esd_u``, ...) and the authors' rewrite of 2025 (``esd_v2``), which draws its training latents from the
original model and trains a fifth as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from erasebench import fields
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline
from methods.fine_tuning import at, student, with_weights
from methods.on_policy import Denoiser, joined
from methods.partway import Draw, Partway


@dataclass(frozen=True, kw_only=True)
class ESD(Partway, Method):
    r"""Trains some layers of the UNet, theta, to minimise


    .. math:: |\epsilon_\theta(z_t, c, t) - [\epsilon_{\theta*}(z_t, t)
              - \eta (\epsilon_{\theta*}(z_t, c, t) - \epsilon_{\theta*}(z_t, t))]|^2

    with theta* the original weights, c the concept, and z_t drawn part of the way from noise with guidance towards c.

    The paper's program (github.com/rohitgandikota/erasing at a2189e9): i is uniform over 0..49; latents take DDIM steps
    48, ..., max(i - 1, 0) of 50 (the noisiest is left out) with guidance 3, drawn by the model that is being trained; t
    is uniform over 20 i <= t < 20 (i + 1), which is 39 to 58 timesteps noisier than the latents are, and is kept.

    Deviations: random numbers come from CPU generators of (seed, step); the networks stay in eval mode, which is the
    same without dropout; with several phrases one is chosen for every latent; both halves of the guidance, and the two
    texts of the original model, share one pass; for velocity models the velocity is turned into noise first (sampler
    ``ddim``). ``esd_v2`` in the official program is bfloat16 throughout, with Adam's state, and 1024 x 1024 on a model
    of 512 x 512; here it has float32 weights and the model's own size.

    Cost of an update, in evaluations of the UNet on one latent: on average 2 x 25.5 for drawing it, 2 for the targets,
    and one forward and backward pass.

    Args:
        eta: strength; see ``push_from``.
        push_from: ``empty``: the target above; ``concept``: :math:`e_c - \eta (e_c - e)`, the rewrite's, whose eta of 2
            is the paper's of 1.
        sampler: ``ddim`` as above, or ``pipeline``: the first i steps of the pipeline's own scheduler, and t exactly
            where they end.
        drawn_by: the model that draws the latents: ``trained`` or ``original``.
        precision: of the trained weights and Adam's moments: ``float32``, or ``bfloat16`` (the rewritten program), to
            which they are rounded after every update. Most updates of 5e-5 are then lost: less than half of the weights
            ever move, and those move about half as far. (Inside an update and the networks it is float32, or what
            ``autocast`` says; the program has bfloat16 there too.)

    The remaining fields are those of :class:`methods.fine_tuning.FineTuning`.

    Raises:
        ValueError: a value out of its range; a model without the chosen layers or that cannot be trained so.
        FloatingPointError: a loss that is NaN or infinite.

    >>> ESD(iterations=0)
    Traceback (most recent call last):
    ValueError: iterations must be an integer >= 1; got 0
    """

    eta: float = 1.0
    push_from: Literal["empty", "concept"] = "empty"
    sampler: Literal["ddim", "pipeline"] = "ddim"
    drawn_by: Literal["trained", "original"] = "trained"
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.number("eta", self.eta)
        fields.choice("push_from", self.push_from, ("empty", "concept"))
        fields.choice("sampler", self.sampler, ("ddim", "pipeline"))
        fields.choice("drawn_by", self.drawn_by, ("trained", "original"))
        fields.choice("precision", self.precision, ("float32", "bfloat16"))

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline without the concept that shares all but its trained layers with ``pipe``."""
        model = self.denoiser(pipe)
        unet, weights = student(pipe, self.layers, model.half)
        adam = torch.optim.Adam(weights.values(), lr=self.lr)

        def rounded() -> None:
            if self.precision == "bfloat16":
                round_to_bfloat16(adam)

        rounded()
        training = self.training(concept, weights, weights=adam)

        def loss(step: int, places: range) -> Tensor:
            return self.loss(model, unet, at(places, self.draws(model, concept, step)))

        training.run(loss, rows=self.batch_size, after=rounded)
        return with_weights(pipe, weights)

    def draws(self, model: Denoiser, concept: Concept, step: int) -> list[Draw]:
        """The random numbers of a step, one entry for each latent."""
        return self.stages(model, self.words(concept), step)

    def loss(self, model: Denoiser, unet: Any, draws: Sequence[Draw]) -> Tensor:
        """Mean square over the latents of a step; only ``unet`` gets gradients."""
        text = model.encode([draw.word for draw in draws])
        z, times = self._latents(model, unet, draws)
        predict = model.epsilon if self.sampler == "ddim" else model.output
        with torch.no_grad():
            both = joined(model.encode([""] * len(draws)), text)
            e_empty, e_concept = predict(model.pipe.unet, torch.cat([z, z]), _twice(times), both).chunk(2)
        base = e_empty if self.push_from == "empty" else e_concept
        return F.mse_loss(predict(unet, z, times, text), base - self.eta * (e_concept - e_empty))

    def _latents(self, model: Denoiser, unet: Any, draws: Sequence[Draw]) -> tuple[Tensor, Any]:
        drawing = unet if self.drawn_by == "trained" else model.pipe.unet
        if self.sampler == "pipeline":
            text, generators = model.encode([draw.word for draw in draws]), [draw.generator for draw in draws]
            return model.pipeline_latents(drawing, generators, text, [draw.stage for draw in draws])
        return self.drawn(model, drawing, draws)[:2]


@torch.no_grad()
def round_to_bfloat16(optimiser: torch.optim.Optimizer) -> None:
    """Round an optimiser's parameters and what it keeps of their gradients to numbers that bfloat16 has."""
    for group in optimiser.param_groups:
        for weight in group["params"]:
            kept = (value for name, value in optimiser.state[weight].items() if name != "step")
            for tensor in (weight, *kept):
                tensor.copy_(tensor.bfloat16())


def _twice(times: Any) -> Any:
    return torch.cat([times, times]) if isinstance(times, Tensor) else times + times
