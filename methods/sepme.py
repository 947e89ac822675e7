"""SepME: erase each concept by a change of the weights that no other concept's text can notice.

Zhao, Zhang, Zheng, Kong and Yin, "Separable Multi-Concept Erasure from Diffusion Models", 2024, arXiv:2402.05947.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from erasebench import fields
from erasebench.diffusion import cross_attention_projections, last_token
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline
from methods.fine_tuning import Gradients, Layers, Training, total
from methods.low_rank import Shift, shifted, with_changes, zero_ups
from methods.on_policy import Denoiser, joined
from methods.text_rows import encoded
from methods.training_images import FromImages, Picture


@dataclass(frozen=True, kw_only=True)
class SepME(FromImages, Method):
    r"""Adds to every ``attn2.to_k`` and ``to_v`` weight, for each concept i, Delta_i = s B_i N_i, where the rows of N_i
    are an orthonormal basis of what is orthogonal to every text row of the other concepts and of ``""``: these read the
    same keys and values as before, whatever B_i, so edits of several concepts do not touch one another and each can be
    taken back by dropping its own. B_i is trained on noised pictures z_t of the concept, the other B being 0, to
    minimise

    .. math:: \mathrm{mean}\big[(\epsilon_\theta(z_t, c) - \epsilon_\theta(z_t, \emptyset)) \cdot
              (\epsilon_0(z_t, c) - \epsilon_0(z_t, \emptyset))\big] + \beta \|\Delta\|_1 ,

    until the moving average of the first term falls below ``threshold``: the direction in which the concept's text
    leads is then no longer the original's.

    Facts about the program are from github.com/Dlut-lab-zmn/SRS-ME at 8596d7d and SepCE4MU at 960385a.

    Deviations: the null space by a singular value decomposition in float64 (the program: symbolically); all of it is
    used (the program takes 691 directions in its example); which texts count as other concepts (``others``, anchor,
    neighbours and preserved texts), ``pads``, timesteps, the order of pictures and the number of updates after which it
    gives up are ours; B starts at 0. A text of t tokens takes up to t + 2 + ``pads`` of the d directions: with all 77
    rows about nine fit into Stable Diffusion 1.x's 768, which is the method's own limit.

    Cost: ``images`` pictures a concept; an update is two evaluations with gradient, of the concept and the empty text,
    and two without.

    Args:
        others: texts of other concepts; concept_others: the concept's anchor, neighbours and preserved texts too.
        pads: rows of padding of these texts that are held, >= 0.
        basis_scale: s > 0.
        beta: of the absolute values of the change, >= 0.
        threshold: of the moving average.
        momentum: of the moving average, in [0, 1).

    The remaining fields are those of :class:`methods.training_images.FromImages`; ``layers`` is ``xattn_strict``.

    Raises:
        ValueError: a value out of its range; other texts that leave no direction.
        FloatingPointError: a loss that is NaN or infinite.

    >>> SepME(basis_scale=0)
    Traceback (most recent call last):
    ValueError: basis_scale must be a finite number > 0; got 0
    """

    layers: Layers = "xattn_strict"
    iterations: int = 1000
    lr: float = 0.1
    images: int = 10
    guidance_scale: float = 7.5
    others: Sequence[str] = ()
    concept_others: bool = True
    pads: int = 75
    basis_scale: float = 1e-4
    beta: float = 1e-6
    threshold: float = 1e-4
    momentum: float = 0.9

    layer_sets = ("xattn_strict",)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "others", fields.texts("others", self.others))
        fields.flag("concept_others", self.concept_others)
        fields.integer("pads", self.pads, least=0, hint="0 stops at the end of text")
        fields.number("basis_scale", self.basis_scale, above=0)
        fields.number("beta", self.beta, least=0)
        fields.number("threshold", self.threshold)
        fields.number("momentum", self.momentum, least=0, below=1)

    def held(self, concept: Concept, part: Concept) -> list[str]:
        """``""`` and the texts of every other concept, also of those that are erased together with ``part``."""
        own = {phrase.lower() for phrase in part.phrases}
        texts = list(self.others)
        if self.concept_others:
            texts += [*part.preserve, part.anchor, *(n for names in part.neighbours.values() for n in names)]
        texts += [phrase for other in concept.singles if other is not part for phrase in other.phrases[:1]]
        return ["", *(t for t in dict.fromkeys(texts) if t.strip() and t.lower() not in own)]

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline without the concept that shares all but its edited weights with ``pipe``."""
        model = self.denoiser(pipe)
        bases = [self.basis(pipe, self.held(concept, part), part.phrases) for part in concept.singles]
        total: dict[str, Tensor] = {}
        for part, basis in zip(concept.singles, bases, strict=True):
            for name, change in self.change(pipe, model, part, basis, concept).items():
                total[name] = total.get(name, 0) + change
        return with_changes(pipe, total)

    @torch.no_grad()
    def basis(self, pipe: Pipeline, texts: Sequence[str], own: Sequence[str]) -> Tensor:
        """N [r, d] float64, orthonormal rows that no row of ``texts`` has a part in, but some row of ``own`` has."""
        states, ends = encoded(pipe, texts), (last_token(pipe, texts) + 1).tolist()
        rows = torch.cat([text[: end + self.pads + 1] for text, end in zip(states, ends, strict=True)])
        sizes, vectors = torch.linalg.svd(rows.T, full_matrices=True)[1::-1]
        rank = int((sizes > 1e-9 * sizes[0]).sum())
        found = vectors[:, rank:].T.contiguous()
        if not len(found) or (encoded(pipe, own) @ found.T).abs().max() < 1e-9 * sizes[0]:
            raise ValueError(
                f"others must leave {own[0]!r} a direction of the text rows' {rows.shape[1]}; {len(texts)} texts with "
                f"{len(rows)} rows take all; give fewer, or lower method.pads"
            )
        return found

    def change(
        self, pipe: Pipeline, model: Denoiser, part: Concept, basis: Tensor, concept: Concept
    ) -> dict[str, Tensor]:
        """Delta [o, d] float64 of every layer, trained for one concept."""
        many = None if self.phrases == "all" else 1
        pictures = self.pictures(pipe, [(word, word) for word in part.phrases[:many]])
        ups, layers = zero_ups(pipe, len(basis)), cross_attention_projections(pipe)
        downs = {name: (self.basis_scale * basis).to(up.device, up.dtype) for name, up in ups.items()}
        unet = shifted(pipe, model.half, {name: (up, downs[name]) for name, up in ups.items()})
        mean = torch.full((2,), 0.0, dtype=torch.float64)  # the moving average and how many terms it has
        optimiser = torch.optim.Adam(ups.values(), lr=self.lr)
        training = Training(
            name=f"sepme, {part.name}",
            identity=f"{self!r} {concept!r} {part.name}",
            iterations=self.iterations,
            optimisers={"shift": optimiser},
            state={**ups, "mean": mean},
        )

        def step_loss(step: int, places: range) -> tuple[Tensor, Tensor]:
            if self.reached(mean):  # nothing is asked and nothing moves any more
                optimiser.param_groups[0]["lr"] = 0.0
                none = torch.stack([up.sum() for up in ups.values()]).sum() * 0
                return none, none
            first, second = self.loss(model, unet, pictures, step, places)
            return first, self.beta * second

        def averaged(values: Tensor, gradients: list[Gradients]) -> tuple[Tensor, Gradients]:
            if not self.reached(mean):
                value, (before, terms) = float(values[0]), mean.tolist()
                after = self.momentum * before + (1 - self.momentum) * value if terms else value
                mean.copy_(torch.tensor([after, terms + 1]))
            return total(values, gradients)

        training.run(step_loss, rows=self.batch_size, mix=averaged)
        return {n: (up.detach().double() @ downs[n].double()).cpu() for n, up in ups.items() if n in layers}

    def reached(self, mean: Tensor) -> bool:
        """Whether the moving average, ``[value, terms]``, is below the threshold."""
        return bool(mean[1] > 0 and mean[0] < self.threshold)

    def loss(
        self, model: Denoiser, unet: Any, pictures: Sequence[Picture], step: int, places: range | None = None
    ) -> tuple[Tensor, Tensor]:
        """The two terms of a step, or of some places in it, without beta."""
        few = self.noised(model, pictures, step, places=places)
        texts = joined(model.encode([p.text for p in few.pictures]), model.encode([""] * len(few.pictures)))
        z, times = torch.cat([few.z, few.z]), few.timesteps * 2
        given, empty = model.epsilon(unet, z, times, texts).chunk(2)
        with torch.no_grad():
            was, nothing = model.epsilon(model.pipe.unet, z, times, texts).chunk(2)
        shifts = [module for module in unet.modules() if isinstance(module, Shift)]
        size = torch.stack([shift.change.abs().sum() for shift in shifts]).sum()
        return ((given - empty) * (was - nothing)).mean(), size.to(given.dtype)
