"""SAeUron: features of a sparse autoencoder that fire for a concept are turned against it while the model draws.

Cywinski and Deja, "SAeUron: Interpretable Concept Unlearning in Diffusion Models with Sparse Autoencoders", ICML 2025,
arXiv:2501.18052. Program: github.com/cywinski/SAeUron, read at dbc35b6.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from erasebench import fields, progress
from erasebench.diffusion.adapters import attach
from erasebench.protocols import Adapter, Method
from erasebench.store import workspace
from erasebench.types import Concept, Pipeline
from methods.activations import moments, watched
from methods.adapters import bare, planted
from methods.fine_tuning import Training, generator
from methods.on_policy import Denoiser
from methods.sparse_autoencoder import TRAINED, Steered, across, geometric_median
from methods.sparse_autoencoder import loss as loss_of

DRAWN = 8  # pictures at once


@dataclass(frozen=True, kw_only=True)
class Steering(Adapter):
    """The size of what stands beside one block."""

    expansion: int
    k: int
    moments: int

    def beside(self, layer: Any) -> nn.Module:
        width = layer.in_channels
        return Steered(width, self.expansion * width, self.k, self.moments)


@dataclass(frozen=True, kw_only=True)
class SAeUron(Method):
    r"""Trains a sparse autoencoder on what a block of attention says at every denoising step of many pictures, finds
    the features of the concept c, and multiplies them by a negative number wherever they fire.

    The autoencoder (:mod:`methods.sparse_autoencoder`), f = TopK(ReLU(W (x - b) + w)), x ~ f D + b, minimises the share
    of the variance that it leaves,

    .. math:: \frac{|x - \hat x|^2 + \alpha\, s\, |(x - \hat x) - \hat e|^2}{|x - \bar x|^2}

    with TopK the ``k`` times batch strongest of a whole batch, and e what the features that have not fired for
    ``dead_after`` vectors make of the error (the strongest width / 2 of them; s is the share of these there are, at
    most 1). Rows of D have length 1, and gradients along them are removed.

    Features of c at step t are those above the ``percentile`` of the scores (mu: mean over pictures and pixels)

    .. math:: \frac{\mu(i,t,c)}{\sum_j \mu(j,t,c)} - \frac{\mu(i,t,\bar c)}{\sum_j \mu(j,t,\bar c)}

    with c-bar all other subjects. While drawing, x becomes x + (f' - f) D with f' = ``multiplier`` mu(i,t,c) f for such
    a feature where f exceeds its mean over all subjects, for both halves of the guidance; TopK is of each pixel.

    The weights of the model stay. The steering hangs beside the block and goes by the timestep (the nearest of those it
    was made at), so that whoever asks the UNet, an attack that takes gradients included, meets it.

    Deviations from the program: pictures are of ``templates`` and ``others`` (there 80 prompts a class and all styles
    of UnlearnCanvas, on a model fine-tuned for it), drawn with the pipeline's own scheduler; batches are random maps
    of one step of one picture, with replacement, ``held`` of them being kept (there all, on a disk); the autoencoder is
    trained for each concept anew, there once for all; the error's term is Gao et al.'s (residual x - x^, without a
    gradient to x^ and without b: the program has the other sign and adds b); what the autoencoder misses is added as
    the paper says (the program adds it with the other sign); a feature counts as fired where it is above 0. Which half
    of the guidance the program learns from was not at hand: here the half with the text.

    Cost, in evaluations of the UNet: 2 x ``steps`` for every picture; none in training. Memory: 0.7 MB for every map
    of Stable Diffusion 1.x in half precision.

    Args:
        block: of the UNet, a transformer.
        expansion: features for each channel of the block.
        k: features that fire for a pixel.
        epochs: passes over as many vectors as there are.
        lr: Adam's, falling to 0 in a line.
        rows: vectors in a batch; whole maps, at least one.
        aux_scale: alpha >= 0.
        dead_after: vectors.
        percentile: of the scores, between 0 and 100.
        multiplier: of the features' mean; the paper's are negative.
        others: subjects beside the concept; null: the concept's anchor and neighbours.
        templates: sentences with ``{}`` where a subject stands; pictures take turns among them.
        images: pictures of each subject to learn from.
        scored: others of each, for the means of the features.
        held: maps kept to learn from, at most.
        steps, guidance_scale: of drawing them.
        phrases: the concept's pictures are of its ``name`` or of ``all`` its phrases in turn.
        seed: of noises, batches and the autoencoder, >= 0.

    Raises:
        ValueError: a value out of its range; no other subject; a model without the block.
        FloatingPointError: a loss that is NaN or infinite.

    Several concepts have one autoencoder; of a feature of two of them the later's factor counts.

    >>> SAeUron(percentile=100)
    Traceback (most recent call last):
    ValueError: percentile must be a finite number > 0 and < 100; got 100
    """

    block: str = "up_blocks.1.attentions.1"
    expansion: int = 16
    k: int = 32
    epochs: int = 5
    lr: float = 4e-4
    rows: int = 4096
    aux_scale: float = 0.03125
    dead_after: int = 10_000_000
    percentile: float = 99.995
    multiplier: float = -15.0
    others: Sequence[str] | None = None
    templates: Sequence[str] = ("A {} image.",)
    images: int = 80
    scored: int = 20
    held: int = 20_000
    steps: int = 100
    guidance_scale: float = 9.0
    phrases: Literal["name", "all"] = "name"
    seed: int = 0

    together = ("joint",)

    def __post_init__(self) -> None:
        fields.text("block", self.block, empty=False)
        for name in ("expansion", "k", "epochs", "rows", "images", "scored", "held"):
            fields.integer(name, getattr(self, name), least=1)
        for name, least in (("dead_after", 0), ("steps", 2), ("seed", 0)):
            fields.integer(name, getattr(self, name), least=least)
        fields.number("lr", self.lr, above=0)
        fields.number("aux_scale", self.aux_scale, least=0)
        fields.number("percentile", self.percentile, above=0, below=100)
        for name in ("multiplier", "guidance_scale"):
            fields.number(name, getattr(self, name))
        fields.choice("phrases", self.phrases, ("name", "all"))
        object.__setattr__(self, "templates", fields.texts("templates", self.templates, least=1))
        for template in self.templates:
            if template.count("{}") != 1 or template.count("{") != 1:
                raise ValueError(f"templates must each hold {{}} once, where the subject stands; got {template!r}")
        if self.others is not None:
            object.__setattr__(self, "others", fields.texts("others", self.others, least=1))

    def check(self, concept: Concept, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.subjects(concept)
        if shapes and not any(name.startswith(f"unet.{self.block}.") for name in shapes):
            raise ValueError(f"model must have the block {self.block}; found none; write method.block=")

    def subjects(self, concept: Concept) -> list[tuple[str, ...]]:
        """The words of each subject: first those of the concepts to erase, then those of the others.

        Raises:
            ValueError: there is no other.
        """
        many = None if self.phrases == "all" else 1
        erased = {phrase.casefold() for part in concept.singles for phrase in part.phrases}
        known = [
            w for part in concept.singles for w in (part.anchor, *(n for ns in part.neighbours.values() for n in ns))
        ]
        others = [w for w in dict.fromkeys(known if self.others is None else self.others)
                  if w.strip() and w.casefold() not in erased]  # fmt: skip
        if not others:
            raise ValueError(f"others must name a subject that is not {concept.name!r}; got none; write method.others=")
        return [*(part.phrases[:many] for part in concept.singles), *((word,) for word in others)]

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """The same weights with an autoencoder beside a block that turns the concept's features against it."""
        subjects, unet = self.subjects(concept), bare(pipe)
        layer = dict(unet.named_modules()).get(self.block)
        if layer is None or not hasattr(layer, "transformer_blocks"):
            raise ValueError(f"model must have a transformer {self.block}; found none; write method.block=")
        if self.k > (features := self.expansion * layer.in_channels):
            raise ValueError(f"k must be <= {features} features; got {self.k}; raise expansion")
        model = Denoiser(pipe, steps=self.steps, guidance_scale=self.guidance_scale)
        maps = self.maps(model, subjects, f"{self!r} {concept!r}")
        steering = Steering(expansion=self.expansion, k=self.k, moments=moments(model))
        modules, weights = planted(unet, steering, [self.block], self.seed)
        module: Steered = modules[self.block]
        self.train(module, maps, f"{self!r} {concept!r}")
        with torch.no_grad():
            means, times = self.means(model, module, subjects)
            for number in range(len(concept.singles)):
                chosen, factor = self.steered(means, number)
                module.factor.copy_(torch.where(chosen, factor, module.factor))
            module.floor.copy_(means.mean(0))
            module.times.copy_(times)
        return attach(pipe, steering, weights)

    def maps(self, model: Denoiser, subjects: Sequence[Sequence[str]], identity: str) -> Tensor:
        """Vectors to learn from [maps, pixels, width]: of every picture as many moments, at random, as are held."""
        tensors, values = workspace.current().load("maps") or ({}, {})
        if values.get("identity") == identity:
            return tensors["maps"]
        each = min(moments(model), max(1, self.held // (len(subjects) * self.images)))
        found = []
        for number, first, said, _ in self.drawn(model, subjects, self.images, "learn"):
            for i, one in enumerate(said, start=first):
                chosen = torch.randperm(len(one), generator=generator(self.seed, number, i, "moments"))[:each]
                found.append(one[chosen.sort().values])
        maps = torch.cat(found)
        workspace.current().save("maps", {"maps": maps}, identity=identity)
        return maps

    def drawn(
        self, model: Denoiser, subjects: Sequence[Sequence[str]], images: int, what: str
    ) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """Pictures, a few of one subject at a time: the subject's number, that of the first picture, what the block
        says of the text's half at every step [pictures, moments, pixels, width], and the timesteps [moments].
        """
        with progress.bar(total=len(subjects) * images, desc=f"saeuron: pictures to {what}", unit="image") as bar:
            for number, words in enumerate(subjects):
                for first in range(0, images, DRAWN):
                    few = range(first, min(first + DRAWN, images))
                    texts = [self.templates[i % len(self.templates)].format(words[i % len(words)]) for i in few]
                    draws = [generator(self.seed, number, i, what) for i in few]
                    yield number, first, *watched(model, self.block, draws, texts)
                    bar.update(len(few))

    def train(self, module: Steered, maps: Tensor, identity: str) -> None:
        """Train the autoencoder on vectors [maps, pixels, width]."""
        each = max(1, self.rows // maps.shape[1])
        iterations = max(1, self.epochs * len(maps) // each)
        weights = {name: module.get_parameter(name) for name in TRAINED}
        where, dtype = module.centre.device, module.centre.dtype
        unseen = torch.zeros(module.encoder.out_features, dtype=torch.int64, device=where)
        adam, fired = torch.optim.Adam(weights.values(), lr=self.lr, eps=6.25e-10), unseen > 0

        def batch(step: int) -> Tensor:
            chosen = torch.randint(len(maps), (each,), generator=generator(self.seed, step, "maps"))
            return maps[chosen].flatten(0, 1).to(where, dtype)

        def loss(step: int, _: range) -> Tensor:
            nonlocal fired
            adam.param_groups[0]["lr"] = self.lr * (1 - step / iterations)
            with torch.no_grad():
                module.decoder.copy_(nn.functional.normalize(module.decoder, dim=1))
            value, fired = loss_of(module, batch(step), unseen > self.dead_after, self.aux_scale)
            return value

        def after() -> None:
            unseen.add_(each * maps.shape[1]).masked_fill_(fired, 0)

        with torch.no_grad():
            module.centre.copy_(geometric_median(batch(0)))
        adam.register_step_pre_hook(lambda *_: across(module.decoder))
        training = Training(
            name="saeuron", identity=identity, iterations=iterations, optimisers={"weights": adam},
            state={**weights, "unseen": unseen}, clip=1.0,
        )  # fmt: skip
        training.run(loss, rows=1, after=after)  # one batch: its strongest features are those of all its rows

    @torch.no_grad()
    def means(self, model: Denoiser, module: Steered, subjects: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """How strongly each feature fires for each subject at each moment, mean over pictures and pixels.

        Returns:
            means [subjects, moments, features] and the timesteps [moments].
        """
        means, times = module.factor.new_zeros(len(subjects), *module.factor.shape), module.times.clone()
        for number, _, said, at in self.drawn(model, subjects, self.scored, "score"):
            times.copy_(at)
            for one in said:
                means[number] += module.code(one.to(module.centre)).mean(1) / self.scored
        return means, times

    def steered(self, means: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Which features of subject ``number`` are steered and by what factor, both [moments, features].

        Args:
            means: [subjects, moments, features]; of the others the mean of their means, for all have equally many.

        >>> means = torch.tensor([[[6.0, 2.0, 2.0]], [[2.0, 6.0, 2.0]]])
        >>> SAeUron(percentile=60, multiplier=-1).steered(means, 0)
        (tensor([[ True, False, False]]), tensor([[-6., -2., -2.]]))
        """
        own, others = means[number], means[[i for i in range(len(means)) if i != number]].mean(0)
        scores = own / (own.sum(1, keepdim=True) + 1e-10) - others / (others.sum(1, keepdim=True) + 1e-10)
        return scores > scores.quantile(self.percentile / 100, dim=1, keepdim=True), self.multiplier * own
