"""Erasing with adversarial preservation: ESD that also keeps the concept which the erasure hurts most.

Bui, Vuong, Doan, Le, Montague, Abraham and Phung, "Erasing Undesirable Concepts in Diffusion Models with Adversarial
Preservation", NeurIPS 2024, arXiv:2410.15618.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from erasebench import fields
from erasebench.diffusion import encode
from erasebench.diffusion.encoding import Encoding
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline
from methods.fine_tuning import at, student, with_weights
from methods.on_policy import Denoiser, joined
from methods.partway import Partway
from methods.word_pools import gumbel_softmax, pool_words, spread, tokenizer_words

LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")


class Pool(NamedTuple):
    """What may be preserved while one text is erased: n words, their encodings, and the logits of choosing each."""

    words: list[str]
    text: Encoding
    logits: Tensor  # [n], trained


class Draw(NamedTuple):
    """What is random in one latent of a training step."""

    word: str
    stage: int  # i: where on its way the latent is
    timestep: int
    uniform: Tensor  # [n], what the Gumbel noise is made of
    generator: torch.Generator


@dataclass(frozen=True, kw_only=True)
class EAP(Partway, Method):
    r"""Alternates between layers theta, which minimise, and a choice pi among words, which maximises the second term of

    .. math:: d(\theta(z, c), \theta^*(z) - \eta (\theta^*(z, c) - \theta^*(z)))
              + \lambda\, d(\theta(z', r), \theta^*(z', r)), \qquad r = G(\pi)\, E

    with theta* the original model, c the concept, E [n, tokens, width] the encodings of n words near the concept, G a
    straight-through Gumbel-softmax, and z, z' drawn part of the way by theta from the same noise with c and r, as ESD
    draws them. Under ``loss_space: x0`` (the program) models are compared by the clean latents they predict, which is
    the square of the noise's difference times (1 - a) / a, a = alpha_bar at DDIM step i: 0.002 to 172 in Stable
    Diffusion; under ``epsilon`` (the paper's equation) by the noise itself.

    Official program: github.com/tuananhbui89/Erasing-Adversarial-Preservation at 7222925, train_adversarial_gumbel.py.
    Words are ranked by the distance of their whole encoding to the concept's; those with other characters than letters
    are dropped; of the ``closest``, k-means on the distances leaves the word nearest to each of ``centres`` centres.

    Deviations: the half of every second step that only concerns the concept is not computed, since pi gets nothing from
    it. Words that name the concept are dropped from the pool (the program would preserve what it erases). k-means is
    exact, where scikit-learn's (k-means++) ends near the optimum. Random numbers come from CPU generators of (seed,
    step). The rest as in :class:`methods.esd.ESD`.

    Cost of an update of theta with the update of pi that follows, in evaluations of the UNet on one latent: on average
    6 x 25.5 for drawing, 4 for the targets, two forward and backward passes, and one to the text alone.

    Args:
        eta: strength of the erasure.
        preserve_scale: lambda >= 0.
        loss_space: ``x0`` or ``epsilon``.
        pool: words to choose from: a list, or a CSV file with a column ``word`` (the program's data/english_3000.csv),
            or None for the whole words of the model's own tokenizer (the program's ``--vocab CLIP``, near enough).
        closest: how many words near the concept are considered, >= 1.
        centres: how many of these may be chosen, >= 1.
        concept_lr: learning rate of pi, > 0.
        temperature: of the Gumbel-softmax, > 0.
        hard: choose one word (True) or a mixture.

    The remaining fields are those of :class:`methods.fine_tuning.FineTuning`; one of ``iterations`` is an update of
    theta and one of pi.

    Raises:
        ValueError: a value out of its range, a pool that is empty or cannot be read.
        FloatingPointError: a loss that is NaN or infinite.

    >>> EAP(pool=())
    Traceback (most recent call last):
    ValueError: pool must hold at least one word; got none; list words to preserve
    """

    eta: float = 1.0
    preserve_scale: float = 1.0
    loss_space: Literal["x0", "epsilon"] = "x0"
    pool: Sequence[str] | str | None = None
    closest: int = 1000
    centres: int = 100
    concept_lr: float = 1e-2
    temperature: float = 2.0
    hard: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.number("eta", self.eta)
        fields.number("preserve_scale", self.preserve_scale, least=0)
        fields.choice("loss_space", self.loss_space, ("x0", "epsilon"))
        fields.integer("closest", self.closest, least=1)
        fields.integer("centres", self.centres, least=1)
        fields.number("concept_lr", self.concept_lr, above=0)
        fields.number("temperature", self.temperature, above=0)
        fields.flag("hard", self.hard)
        if self.pool is not None:
            if not isinstance(self.pool, str):
                object.__setattr__(self, "pool", fields.texts("pool", self.pool, empty=True))
            pool_words(self.pool)

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline without the concept that shares all but its trained layers with ``pipe``."""
        model = self.denoiser(pipe)
        unet, weights = student(pipe, self.layers, model.half)
        pools = {word: self.candidates(model, word, concept) for word in self.words(concept)}
        logits = [pool.logits for pool in pools.values()]
        training = self.training(
            concept,
            {**weights, **{f"logits.{i}": tensor for i, tensor in enumerate(logits)}},
            iterations=2 * self.iterations,
            weights=torch.optim.Adam(weights.values(), lr=self.lr),
            concepts=torch.optim.Adam(logits, lr=self.concept_lr),
        )

        def loss(step: int, places: range) -> Tensor:
            draws = at(places, self.draws(model, pools, step))
            return (self.concept_loss if step % 2 else self.weights_loss)(model, unet, pools, draws)

        training.run(loss, rows=self.batch_size, turn=lambda step: "concepts" if step % 2 else "weights")
        return with_weights(pipe, weights)

    def candidates(self, model: Denoiser, word: str, concept: Concept) -> Pool:
        """The pool of one text to erase: words near it, spread over their distances, all equally likely."""
        pipe = model.pipe
        words = tokenizer_words(pipe) if self.pool is None else pool_words(self.pool)
        named = {phrase.lower() for part in concept.singles for phrase in part.phrases}
        words = [w for w in dict.fromkeys(words) if LETTERS.issuperset(w.lower()) and w.lower() not in named]
        if not words:
            raise ValueError(f"pool must hold a word that is not {concept.name!r}; got none; list words to preserve")
        goal = encode(pipe, [word])[0]
        chunks = [words[i : i + 64] for i in range(0, len(words), 64)]
        distance = torch.cat([(encode(pipe, c) - goal).flatten(1).norm(dim=1) for c in chunks]).double().cpu().numpy()
        near = np.argsort(distance, kind="stable")[: self.closest]
        kept = [words[near[i]] for i in spread(distance[near], self.centres)]
        text = model.encode(kept)
        logits = torch.full((len(kept),), 1 / len(kept), dtype=model.dtype, device=model.device, requires_grad=True)
        return Pool(kept, Encoding(text.states.to(model.dtype), text.pooled.to(model.dtype)), logits)

    def draws(self, model: Denoiser, pools: dict[str, Pool], step: int) -> list[Draw]:
        """The random numbers of a step, one entry for each latent."""
        found = []
        for word, stage, timestep, draw in self.stages(model, list(pools), step):
            chances = torch.rand(len(pools[word].words), generator=draw, dtype=torch.float32)
            found.append(Draw(word, stage, timestep, chances, draw))
        return found

    def chosen(self, pools: dict[str, Pool], draws: Sequence[Draw]) -> Encoding:
        """The adversarial texts r, one for each latent: [b, tokens, width], with gradients to the logits."""
        states, pooled = [], []
        for draw in draws:
            pool = pools[draw.word]
            y = gumbel_softmax(pool.logits, draw.uniform.to(pool.logits), self.temperature, self.hard)
            states.append(torch.tensordot(y, pool.text.states, 1))
            pooled.append(y @ pool.text.pooled)
        return Encoding(torch.stack(states), torch.stack(pooled))

    @torch.no_grad()
    def targets(
        self, model: Denoiser, unet: Any, text: Encoding, adversarial: Encoding, draws: Sequence[Draw]
    ) -> tuple[Tensor, Tensor]:
        """Latents [2b, ...] drawn with the concept and then the adversarial text, and what theta should predict."""
        texts, times = joined(text, adversarial), [draw.timestep for draw in draws]
        z = self.both(model, unet, texts, draws)
        asked = joined(model.encode([""] * len(draws)), texts)
        e = model.epsilon(model.pipe.unet, torch.cat([z[: len(draws)], z]), times * 3, asked)
        e_empty, e_concept, e_kept = e.chunk(3)
        return z, torch.cat([e_empty - self.eta * (e_concept - e_empty), e_kept])

    def both(self, model: Denoiser, unet: Any, texts: Encoding, draws: Sequence[Draw]) -> Tensor:
        """Latents [2b, ...] that theta draws with both texts from the same noise."""
        noise, last = model.noise([draw.generator for draw in draws]), [max(draw.stage - 1, 0) for draw in draws]
        return model.descend(unet, torch.cat([noise, noise]), texts, self.steps - 2, last + last)

    def weights_loss(self, model: Denoiser, unet: Any, pools: dict[str, Pool], draws: Sequence[Draw]) -> Tensor:
        """What theta minimises: to erase the concept and to keep the adversarial one."""
        text = model.encode([draw.word for draw in draws])
        with torch.no_grad():
            adversarial = self.chosen(pools, draws)
        z, target = self.targets(model, unet, text, adversarial, draws)
        e = model.epsilon(unet, z, [draw.timestep for draw in draws] * 2, joined(text, adversarial))
        erase, keep = self._distances(model, e - target, [*draws, *draws]).chunk(2)
        return erase.mean() + self.preserve_scale * keep.mean()

    def concept_loss(self, model: Denoiser, unet: Any, pools: dict[str, Pool], draws: Sequence[Draw]) -> Tensor:
        """What pi minimises: minus the distance of the two models' answers to the adversarial concept."""
        adversarial = self.chosen(pools, draws)
        fixed = Encoding(adversarial.states.detach(), adversarial.pooled.detach())
        z, times, _ = self.drawn(model, unet, draws, fixed)
        with torch.no_grad():
            target = model.epsilon(model.pipe.unet, z, times, fixed)
        return -self._distances(model, model.epsilon(unet, z, times, adversarial) - target, draws).mean()

    def _distances(self, model: Denoiser, difference: Tensor, draws: Sequence[Draw]) -> Tensor:
        """Mean squares [b] of differences of predicted noise, or of the clean latents that follow from it."""
        squares = difference.square().mean(dim=(1, 2, 3))
        if self.loss_space == "epsilon":
            return squares
        alpha = model.level([model.timesteps[draw.stage] for draw in draws]).flatten()
        return squares * (1 - alpha) / alpha
