"""Modular LoRA: erase by a low-rank adapter that later fine-tuning never touches; and the fine-tuning as a stress test.

Kim, Choi, Shin and Lee, "Safety Alignment Backfires: Preventing the Re-emergence of Suppressed Concepts in Fine-tuned
Text-to-Image Diffusion Models", arXiv:2412.00357.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from erasebench import fields
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline
from methods.fine_tuning import frozen
from methods.low_rank import adapter, attach, changes, parameters, with_changes
from methods.on_policy import Denoiser, joined
from methods.partway import Draw, Partway
from methods.training_images import Picture, Remembering, denoising


@dataclass(frozen=True, kw_only=True)
class ModularLora(Partway, Remembering, Method):
    r"""Returns W0 + dW_safe (+ dW_tuned), each change B A of low rank, in the linear layers of a set. dW_safe minimises
    ESD's loss at latents z drawn with the concept c,

    .. math:: |\epsilon_\theta(z, c) - [\epsilon_{\theta*}(z, \varnothing)
              - \eta(\epsilon_{\theta*}(z, c) - \epsilon_{\theta*}(z, \varnothing))]|^2

    and dW_tuned the usual loss on pictures of other subjects, which stands for what users do to a model they got:

    - ``tuned: never``: the safety adapter alone;
    - ``tuned: apart``: dW_tuned is trained on W0 without the safety adapter, and both are added (the paper's method);
    - ``tuned: after``: dW_tuned is trained on W0 + dW_safe (what the paper warns of: the concept may come back).

    The last two beside the first are the stress test: what harmless fine-tuning undoes.

    No program is public. The sum and the comparison are the paper's; rank 4 and 1500 and 5000 updates are known at
    second hand; **ours** are ESD's loss for safety, the layers, the rates, and the pictures: the model's own of
    ``remain``, where the paper has collections of drawings. The start of an adapter is diffusers'
    (:mod:`methods.low_rank`). ``steps`` and ``guidance_scale`` are those of latents and pictures alike.

    Cost, in evaluations of the UNet on one latent: ESD's for an update of the safety adapter (2 x 25.5 for drawing, 2
    for the targets, one forward and backward pass), one forward and backward pass for one of the other, and its
    pictures.

    Args:
        rank: of either change, >= 1.
        eta: strength of the erasure.
        tuned: see above.
        tuning_iterations: updates of dW_tuned, >= 1.

    The remaining fields are those of :class:`methods.training_images.Remembering`; ``iterations`` are dW_safe's.

    Raises:
        ValueError: a value out of its range; a layer set without linear layers; nothing to tune with.
        FloatingPointError: a loss that is NaN or infinite.

    >>> ModularLora(rank=0)
    Traceback (most recent call last):
    ValueError: rank must be an integer >= 1; got 0
    """

    iterations: int = 1500
    lr: float = 1e-4
    rank: int = 4
    eta: float = 1.0
    tuned: Literal["never", "apart", "after"] = "never"
    tuning_iterations: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.integer("rank", self.rank, least=1)
        fields.number("eta", self.eta)
        fields.choice("tuned", self.tuned, ("never", "apart", "after"))
        fields.integer("tuning_iterations", self.tuning_iterations, least=1)

    def check(self, concept: Concept, shapes: Mapping[str, tuple[int, ...]]) -> None:
        if self.tuned != "never":
            self.others(concept)

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline without the concept that shares all but its trained layers with ``pipe``."""
        model, words = self.denoiser(pipe), self.words(concept)
        unet, now = frozen(pipe, model.half), 0
        safe, tuned = (adapter(pipe, self.layers, self.rank, self.seed, name) for name in ("safe", "tuned"))
        attach(unet, safe, lambda: self.turn(now) == "safe" or self.tuned == "after")
        attach(unet, tuned)  # without effect until it is trained
        state, others = {name: parameters(found, name) for name, found in (("safe", safe), ("tuned", tuned))}, []
        if self.tuned != "never":
            others = self.remaining(pipe, concept)

        def loss(step: int, places: range) -> Tensor:
            nonlocal now
            now = step
            if self.turn(step) == "safe":
                return self.safety(model, unet, self.stages(model, words, step, places=places))
            return self.tuning(model, unet, others, step, places)

        training = self.training(
            concept,
            {**state["safe"], **state["tuned"]},
            iterations=self.iterations + (self.tuning_iterations if self.tuned != "never" else 0),
            **{name: torch.optim.Adam(found.values(), lr=self.lr) for name, found in state.items()},
        )
        training.run(loss, rows=self.batch_size, turn=self.turn)
        return with_changes(pipe, changes(safe, tuned))

    def turn(self, step: int) -> str:
        """Whose update a step is: first all of the safety adapter's."""
        return "safe" if step < self.iterations else "tuned"

    def safety(self, model: Denoiser, unet: Any, draws: Sequence[Draw]) -> Tensor:
        """ESD's loss over the latents of a step."""
        z, times, text = self.drawn(model, unet, draws)
        with torch.no_grad():
            both = joined(model.encode([""] * len(draws)), text)
            empty, given = model.epsilon(model.pipe.unet, torch.cat([z, z]), times + times, both).chunk(2)
        return F.mse_loss(model.epsilon(unet, z, times, text), empty - self.eta * (given - empty))

    def tuning(
        self, model: Denoiser, unet: Any, others: Sequence[Picture], step: int, places: range | None = None
    ) -> Tensor:
        """The usual training loss over the pictures of a step, or those at some places."""
        return denoising(model, unet, self.noised(model, others, step, "tuned", places))
