"""Erased Stable Diffusion for flow matching: FLUX and Stable Diffusion 3, whose transformers predict velocities.

Gandikota, Materzynska, Fiotto-Kaufman and Bau, ICCV 2023, arXiv:2303.07345, is about UNets that predict noise. The
authors' repository announces FLUX; the program, esd_flux.py, stands in copies of it (github.com/milosz7/erasing at
016374b and github.com/stanulet27/erasing at 43760e3). For Stable Diffusion 3 none of the authors' is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erasebench import fields
from erasebench.diffusion import apply_tensors, fork, latent_shape, partway, velocity
from erasebench.diffusion.encoding import Texts
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline
from methods.fine_tuning import FineTuning, at, uniform


class Draw(NamedTuple):
    """What is random in one latent of a training step."""

    word: str
    stage: int  # steps it has taken
    generator: torch.Generator


@dataclass(frozen=True, kw_only=True)
class ESDFlow(FineTuning, Method):
    r"""Trains the attention of a transformer, theta, to minimise

    .. math:: |v_\theta(x_\sigma, c) - [v_c - \eta (v_c - v_0)]|^2

    with v_c and v_0 what the original says of the concept and of the empty text, and x_sigma drawn with the concept by
    the first i of ``steps`` steps of the pipeline's own sampler, i uniform over 0, ..., steps - 1.

    **Why the velocity is guided as the noise is.** With x_sigma = (1 - sigma) x_0 + sigma e and v = e - x_0, the noise
    that a velocity stands for is e = x_sigma + (1 - sigma) v. The weights of a target such as e_c - eta (e_c - e_0)
    add up to 1, so x_sigma drops out of it and the same weights stand before the velocities; the loss in the noise is
    (1 - sigma)^2 times this one.

    The program (FLUX.1-dev): 28 steps with guidance 3.5, drawn by the model that is being trained, at 512 pixels, in
    bfloat16; all transformers are told ``asked_guidance`` 1; Adam at 1e-4, one latent, 1400 updates, eta 1 (the
    README's example has 2). Deviations: random numbers come from CPU generators of (seed, step); trained weights and
    Adam's moments are float32, and a model in half precision computes in it; with several phrases one is chosen for
    every latent. On Stable Diffusion 3 all of this is ours, with classifier-free guidance for drawing.

    Cost of an update, in evaluations of the transformer on one latent: on average 13.5 for drawing it (twice that on
    Stable Diffusion 3), 2 for the targets, and one forward and backward pass.

    Args:
        layers: ``attn``: linear layers inside every attention (esd-x); ``attn_strict``: their ``to_k`` and ``to_v``
            (esd-x-strict), which are those of the image's tokens where texts have layers of their own.
        eta: strength.
        push_from: ``concept``: as above; ``empty``: v_0 - eta (v_c - v_0), the paper's.
        drawn_by: the model that draws the latents: ``trained`` or ``original``.
        guidance_scale: of the drawing.
        asked_guidance: the guidance a FLUX transformer is told while it learns; others are told none.
        pixels: height and width of what is drawn; None: the model's own.
        autocast: not asked; see above.

    The remaining fields are those of :class:`methods.fine_tuning.FineTuning`.

    Raises:
        ValueError: a value out of its range; a model without attention.
        FloatingPointError: a loss that is NaN or infinite.

    >>> ESDFlow(layers="xattn")
    Traceback (most recent call last):
    ValueError: layers must be one of attn, attn_strict; got 'xattn'; did you mean attn?
    """

    layers: Literal["attn", "attn_strict"] = "attn"  # type: ignore[assignment]
    iterations: int = 1400
    lr: float = 1e-4
    guidance_scale: float = 3.5
    steps: int = 28
    eta: float = 1.0
    push_from: Literal["empty", "concept"] = "concept"
    drawn_by: Literal["trained", "original"] = "trained"
    asked_guidance: float = 1.0
    pixels: int | None = 512

    layer_sets: ClassVar[tuple[str, ...]] = ("attn", "attn_strict")
    denoisers = ("transformer",)

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.number("eta", self.eta)
        fields.number("asked_guidance", self.asked_guidance)
        fields.choice("push_from", self.push_from, ("empty", "concept"))
        fields.choice("drawn_by", self.drawn_by, ("trained", "original"))
        fields.pixels("pixels", self.pixels)

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline without the concept that shares all but its trained layers with ``pipe``."""
        if getattr(pipe, "offload", None):
            raise ValueError("model.offload must be null for a training; got one; use model.offload=null")
        taught, weights, texts = *pupil(pipe, self.layers), Texts(pipe)

        def loss(step: int, places: range) -> Tensor:
            return self.loss(pipe, taught, texts, at(places, self.draws(concept, step)))

        self.training(concept, weights).run(loss, rows=self.batch_size)
        return apply_tensors(pipe, {f"transformer.{name}": weight for name, weight in weights.items()})

    def draws(self, concept: Concept, step: int) -> list[Draw]:
        """The random numbers of a step, one entry for each latent."""
        words = self.words(concept)
        return [Draw(words[uniform(0, len(words), g)], uniform(0, self.steps, g), g) for g in self.generators(step)]

    def loss(self, pipe: Pipeline, taught: Pipeline, texts: Texts, draws: Sequence[Draw]) -> Tensor:
        """Mean square over the latents of a step; only ``taught`` gets gradients."""
        x, times = self.latents(taught if self.drawn_by == "trained" else pipe, texts, draws)
        words = [draw.word for draw in draws]
        with torch.no_grad():
            given = self.said(pipe, texts, x, times, words)
            empty = self.said(pipe, texts, x, times, [""] * len(draws))
        base = empty if self.push_from == "empty" else given
        return F.mse_loss(self.said(taught, texts, x, times, words), base - self.eta * (given - empty))

    @torch.no_grad()
    def latents(self, pipe: Pipeline, texts: Texts, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
        """Latents [b, channels, h, w], each drawn as far as it should be, and the timesteps [b] they are at."""
        shape = latent_shape(pipe, self.pixels, self.pixels)
        found = []
        for draw in draws:
            start = torch.randn(shape, generator=draw.generator, dtype=torch.float32)[None]
            with _precision(pipe):
                found.append(partway(pipe, texts, draw.word, start, self.steps, self.guidance_scale, draw.stage))
        return torch.cat([x for x, _ in found]).float(), torch.stack([t for _, t in found])

    def said(self, pipe: Pipeline, texts: Texts, x: Tensor, times: Tensor, words: Sequence[str]) -> Tensor:
        """Velocities [b, channels, h, w] in float32."""
        with _precision(pipe):
            return velocity(pipe, texts, x, times, words, self.asked_guidance).float()


def pupil(pipe: Pipeline, layers: str) -> tuple[Pipeline, dict[str, nn.Parameter]]:
    """A pipeline whose transformer shares all but the trained parameters with ``pipe``'s, and these: float32 copies.

    Raises:
        ValueError: there is no such layer.
    """
    taught, ends = fork(pipe), ("to_k", "to_v")
    net: Any = taught.transformer.requires_grad_(False)
    if net.device.type == "cuda":
        net.enable_gradient_checkpointing()
    weights: dict[str, nn.Parameter] = {}
    for path, layer in net.named_modules():
        if not isinstance(layer, nn.Linear) or "attn" not in path:
            continue
        if layers == "attn_strict" and not any(end in path for end in ends):
            continue
        for leaf, old in list(layer.named_parameters(recurse=False)):
            dtype = torch.promote_types(old.dtype, torch.float32)
            weights[f"{path}.{leaf}"] = nn.Parameter(old.detach().to(dtype, copy=True))
            setattr(layer, leaf, weights[f"{path}.{leaf}"])
    if not weights:
        raise ValueError(f"layers {layers} must be in the transformer; found none there; choose another model")
    return taught, weights


def _precision(pipe: Pipeline) -> torch.autocast:
    dtype = pipe.vae.dtype  # the transformer's own is mixed while it is trained
    half = dtype in (torch.float16, torch.bfloat16)
    return torch.autocast(pipe.transformer.device.type, dtype if half else torch.bfloat16, enabled=half)
