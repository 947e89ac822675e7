"""AdvUnlearn: train the text encoder to erase a concept from prompts that an attack has just changed.

Zhang, Chen, Jia, Zhang, Fan, Liu, Hong, Ding and Liu, "Defensive Unlearning with Adversarial Training for Robust
Concept Erasure in Diffusion Models", NeurIPS 2024, arXiv:2405.15234.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erasebench import fields
from erasebench.diffusion import apply_tensors, encode_embeddings, fork, token_table, tokenise
from erasebench.diffusion.encoding import Encoding
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline
from methods.fine_tuning import uniform
from methods.on_policy import Denoiser, joined
from methods.partway import Draw, Partway


@dataclass(frozen=True, kw_only=True)
class AdvUnlearn(Partway, Method):
    r"""Trains the text encoder E, the UNet eps staying as it is, to minimise

    .. math:: |\epsilon(z_t, E(p \oplus c)) - [\epsilon(z_t, \varnothing)
              - \eta(\epsilon(z_t, c) - \epsilon(z_t, \varnothing))]|^2
              + \gamma\,\overline{|\epsilon(x_t, E(r)) - \epsilon(x_t, r)|^2}

    where texts without E around them are encoded by the original, z_t and x_t are drawn part of the way with the
    original and c or r, r are a few texts to keep, and p is an adversarial prefix of token embeddings between the start
    token and the concept, found anew for every update by ``attack_steps`` steps of signed gradient descent on

    .. math:: |\epsilon(z_t, E(p \oplus c)) - \epsilon(z_t, c)|^2

    from a random token. The first ``warm_up`` updates have no prefix. The result is an ordinary text encoder.

    Official program: github.com/OPTML-Group/AdvUnlearn at 9d23124, with the settings of its README's published command
    (attack_init random, retain_train reg, 0.3), not those of its argument parser.

    Deviations: latents of both kinds are drawn by the original model with the original texts, as ESD draws them (an
    own reading, as is what a random start is: the embeddings of tokens drawn uniformly); the prefix makes the end of a
    text of 77 tokens fall off. Random numbers come from CPU generators of (seed, step).

    Cost of an update, in evaluations of the UNet on one latent: 2 x 25.5 for drawing it, 2 for the targets, 30 forward
    and backward passes for the prefix, one for the update, and for each text to keep 2 x 25.5, 1 and one again.

    Args:
        layers: ``text_encoder``: all of it.
        eta: strength of the erasure.
        retain_scale: gamma >= 0.
        retain: texts to keep, at least 1.
        retain_batch: how many of them in an update, >= 1.
        prefix: length of p in tokens, >= 1.
        attack_steps: >= 0.
        attack_lr: step of each coordinate of p, > 0.
        warm_up: updates without an attack, >= 0.

    The remaining fields are those of :class:`methods.fine_tuning.FineTuning`.

    Raises:
        ValueError: a value out of its range; nothing left to keep; SDXL, which has two text encoders.
        FloatingPointError: a loss that is NaN or infinite.

    >>> AdvUnlearn(retain=())
    Traceback (most recent call last):
    ValueError: retain must hold at least 1 text; got []; ...
    """

    layers: Literal["text_encoder"] = "text_encoder"  # type: ignore[assignment]
    eta: float = 1.0
    retain_scale: float = 0.3
    retain: Sequence[str] = ("a photo of a person", "a photo of a car", "a photo of a tree", "a photo of a house")
    retain_batch: int = 5
    prefix: int = 1
    attack_steps: int = 30
    attack_lr: float = 1e-3
    warm_up: int = 200

    layer_sets: ClassVar[tuple[str, ...]] = ("text_encoder",)

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.number("eta", self.eta)
        fields.number("retain_scale", self.retain_scale, least=0)
        object.__setattr__(self, "retain", fields.texts("retain", self.retain, least=1))
        for name, least in (("retain_batch", 1), ("prefix", 1), ("attack_steps", 0), ("warm_up", 0)):
            fields.integer(name, getattr(self, name), least=least)
        fields.number("attack_lr", self.attack_lr, above=0)

    def check(self, concept: Concept, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.kept(concept)
        if any(name.startswith("text_encoder_2.") for name in shapes):
            raise ValueError("model must have one text encoder (Stable Diffusion 1.x or 2.x); got SDXL's two")

    def kept(self, concept: Concept) -> list[str]:
        """The texts to keep, without those that name what is erased."""
        erased = [phrase.casefold() for part in concept.singles for phrase in part.phrases]
        found = [text for text in self.retain if not any(f" {word} " in f" {text.casefold()} " for word in erased)]
        if not found:
            raise ValueError(f"retain must hold a text without {concept.name!r}; got none; add others to it")
        return found

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline with another text encoder that shares everything else with ``pipe``."""
        kept, model = self.kept(concept), self.denoiser(pipe)
        taught, weights = pupil(pipe)
        loss = partial(self.loss, model, taught, concept, kept)
        self.training(concept, weights).run(loss, rows=max(self.batch_size, self.retain_batch))
        return apply_tensors(pipe, {f"text_encoder.{name}": weight for name, weight in weights.items()})

    def loss(
        self, model: Denoiser, taught: Pipeline, concept: Concept, kept: Sequence[str], step: int,
        places: range | None = None,
    ) -> Tensor:  # fmt: skip
        """Mean squares over the latents of a step; only ``taught`` gets gradients.

        Of some places of the larger of its two batches, those and the share of the other batch that goes with them,
        weighed so that the mean of parts is the loss.
        """
        rows = max(self.batch_size, self.retain_batch)
        places = range(rows) if places is None else places
        found, share = torch.zeros((), device=model.device, dtype=model.dtype), len(places) / rows
        for part, count, scale in (
            (self.erasing, self.batch_size, 1.0), (self.keeping, self.retain_batch, self.retain_scale)
        ):  # fmt: skip
            few = range(places.start * count // rows, places.stop * count // rows)
            if few:
                words = self.words(concept) if part == self.erasing else kept
                found = found + scale * len(few) / (count * share) * part(model, taught, words, step, few)
        return found

    def erasing(self, model: Denoiser, taught: Pipeline, words: Sequence[str], step: int, places: range) -> Tensor:
        """The first term, mean over some places."""
        draws, unet = self.stages(model, words, step, "erase", places=places), model.pipe.unet
        z, times, text = self.drawn(model, unet, draws)
        with torch.no_grad():
            both = joined(model.encode([""] * len(draws)), text)
            empty, given = model.epsilon(unet, torch.cat([z, z]), times + times, both).chunk(2)
        prefix = self.attack(model, taught, draws, z, given) if step >= self.warm_up else None
        found = model.epsilon(unet, z, times, encoded(taught, [draw.word for draw in draws], prefix))
        return F.mse_loss(found, empty - self.eta * (given - empty))

    def keeping(self, model: Denoiser, taught: Pipeline, words: Sequence[str], step: int, places: range) -> Tensor:
        """The second term, mean over some places."""
        draws, unet = self.stages(model, words, step, "retain", places=places), model.pipe.unet
        x, times, text = self.drawn(model, unet, draws)
        with torch.no_grad():
            same = model.epsilon(unet, x, times, text)
        return F.mse_loss(model.epsilon(unet, x, times, encoded(taught, [draw.word for draw in draws])), same)

    def attack(self, model: Denoiser, taught: Pipeline, draws: Sequence[Draw], z: Tensor, goal: Tensor) -> Tensor:
        """p: token embeddings [b, prefix, width] with which the encoder being trained says what the original said."""
        table, words = token_table(taught).detach(), [draw.word for draw in draws]
        ids = [[uniform(0, len(table), draw.generator) for _ in range(self.prefix)] for draw in draws]
        prefix, times = table[torch.tensor(ids, device=table.device)], [draw.timestep for draw in draws]
        for _ in range(self.attack_steps):
            prefix = prefix.detach().requires_grad_()
            found = model.epsilon(model.pipe.unet, z, times, encoded(taught, words, prefix))
            (gradient,) = torch.autograd.grad((found - goal).square().mean(dim=(1, 2, 3)).sum(), [prefix])
            prefix = prefix - self.attack_lr * gradient.sign()
        return prefix.detach()


def pupil(pipe: Pipeline) -> tuple[Pipeline, dict[str, nn.Parameter]]:
    """A pipeline that shares all but its text encoder with ``pipe``, and the parameters of that: float32 copies."""
    taught = fork(pipe)
    encoder = taught.text_encoder
    if encoder.dtype in (torch.float16, torch.bfloat16):
        encoder.float()
    weights = {}
    for name, old in list(encoder.named_parameters()):
        path, _, leaf = name.rpartition(".")
        weights[name] = nn.Parameter(old.detach().clone())
        setattr(encoder.get_submodule(path), leaf, weights[name])
    return taught, weights


def encoded(taught: Pipeline, texts: Sequence[str], prefix: Tensor | None = None) -> Encoding:
    """Texts as the encoder being trained has them, with gradients; a prefix stands behind the start token."""
    ids = tokenise(taught, texts).to(taught.text_encoder.device)
    rows = F.embedding(ids, token_table(taught))
    if prefix is not None:
        rows = torch.cat([rows[:, :1], prefix.to(rows), rows[:, 1:]], dim=1)[:, : ids.shape[1]]
    states = encode_embeddings(taught, rows)
    return Encoding(states, states.new_zeros(len(states), 0))
