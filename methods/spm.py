"""SPM: a one-dimensional adapter beside every layer, as permeable as the prompt is near to the concept.

Lyu, Yang, Hong, Chen, Jin, He, Jin, Han and Ding, "One-dimensional Adapter to Rule Them All: Concepts, Diffusion Models
and Erasing Applications", CVPR 2024, arXiv:2312.16145. Program: github.com/Con6924/SPM, read at 7dcfd21.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erasebench import fields
from erasebench.diffusion import encode
from erasebench.diffusion.adapters import attach
from erasebench.diffusion.encoding import Encoding
from erasebench.protocols import Adapter, Guide, Method
from erasebench.types import Concept, Pipeline, Prompt
from methods.adapters import bare, planted
from methods.fine_tuning import FineTuning, Training, at, generator, uniform
from methods.on_policy import Denoiser, joined

Matching = Literal["clipcos_tokenuni", "clipcos", "tokenuni", "none"]


class RankOne(nn.Module):
    """``y + strength * alpha / rank * up(down(x))`` beside a linear or convolution layer x -> y."""

    def __init__(self, layer: Any, words: tuple[str, ...], rank: int, alpha: float) -> None:
        super().__init__()
        self.words, self.scale = words, alpha / rank
        self.strength: Tensor | None = None  # of each row of the batch, while a guide draws; None: 1
        if isinstance(layer, nn.Conv2d):
            shape = {"kernel_size": layer.kernel_size, "stride": layer.stride, "padding": layer.padding}
            self.down: nn.Module = nn.Conv2d(layer.in_channels, rank, bias=False, **shape)
            self.up: nn.Module = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        more = self.scale * self.up(self.down(x.to(self.up.weight.dtype)))
        if self.strength is not None:
            more = more * self.strength[: len(x)].to(more).view(-1, *[1] * (more.dim() - 1))
        return output + more.to(output.dtype)


@dataclass(frozen=True, kw_only=True)
class Membrane(Adapter):
    """One concept's adapter: the words it is permeable for, and its size."""

    words: tuple[str, ...]
    rank: int
    alpha: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.words))

    def beside(self, layer: nn.Module) -> nn.Module:
        return RankOne(layer, self.words, self.rank, self.alpha)


@dataclass(frozen=True, kw_only=True)
class Transport(Guide):
    """Facilitated transport: how strong each concept's adapter is for each prompt; see :class:`SPM`."""

    matching: Matching
    empty: str = ""
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "extra", tuple(self.extra))

    def needed(self, scales: Sequence[float], step: int) -> bool:
        """Never: there is no further branch."""
        return False

    def combine(
        self, empty: Tensor, text: Tensor, extra: Sequence[Tensor], scale: Tensor, step: int, state: dict[str, Tensor]
    ) -> Tensor:
        return empty + scale * (text - empty)

    @contextmanager
    def drawing(self, pipe: Pipeline, prompts: Sequence[Prompt], states: Tensor) -> Iterator[Callable[[int], Tensor]]:
        """Sets the batch's strengths on the adapters of ``pipe``; both halves of the guidance have the prompt's."""
        n, known = len(prompts), dict[tuple[str, ...], Tensor]()
        hooks = [h for m in pipe.unet.modules() for h in m._forward_hooks.values() if isinstance(h, RankOne)]
        for hook in hooks:
            if hook.words not in known:
                found = [self.strength(pipe, p, row, hook.words) for p, row in zip(prompts, states[-n:], strict=True)]
                known[hook.words] = torch.tensor(found, dtype=torch.float64, device=states.device).repeat(
                    len(states) // n
                )
            hook.strength = known[hook.words]
        try:
            yield lambda step: states
        finally:
            for hook in hooks:
                hook.strength = None

    def strength(self, pipe: Pipeline, prompt: Prompt, row: Tensor, words: Sequence[str]) -> float:
        """The largest of the likenesses of a prompt, with states ``row`` [tokens, width], to a concept's words."""
        found: list[float] = []
        if "clipcos" in self.matching:
            one = row.double().cpu().flatten()
            found += [float(F.cosine_similarity(one, w.double().cpu().flatten(), dim=0)) for w in encode(pipe, words)]
        if "tokenuni" in self.matching and prompt.embeds is None:
            own = _tokens(pipe, prompt.text)
            found += [len(own & _tokens(pipe, word)) / len(_tokens(pipe, word)) for word in words]
        return max(found, default=1.0)


class Draw(NamedTuple):
    """What is random in one latent of a training step."""

    word: str
    taken: int  # DDIM steps it is drawn
    generator: torch.Generator


@dataclass(frozen=True, kw_only=True)
class SPM(FineTuning, Method):
    r"""Trains, for each concept, a matrix of rank one beside every linear and convolution layer of the transformers,
    y + (alpha / rank) up(down(x)), to minimise

    .. math:: |\epsilon_\theta(z_t, c) - [\epsilon_{\theta*}(z_t) - \eta (\epsilon_{\theta*}(z_t, c) -
              \epsilon_{\theta*}(z_t))]|^2
              + \lambda |\epsilon_\theta(z_t, \tilde c) - \epsilon_{\theta*}(z_t, \tilde c)|^2

    with theta the model with the adapter, theta* without; z_t takes 1 to n - 1 of n DDIM steps with the adapter and
    guidance 3. Latent anchoring: the texts c~ are ``anchors`` Gaussian states for each latent, 0.8 to 1.2 times as long
    as those of c, each accepted with probability 1 - cos(c~, c).

    Facilitated transport, while drawing: an adapter counts as much as the prompt is like its concept, the larger of the
    cosine of their text states, all tokens in a row, and the share of the concept's tokens that are in the prompt
    (``clipcos_tokenuni``). That is a guide, since it depends on the text: attacks that take gradients meet the adapter
    at full strength and are flagged.

    arXiv:2312.16145. Deviations: AdamW has 32 bits (the program 8); random numbers come from CPU generators of
    (seed, step); DDIM's timesteps are those of the other trainings here (the program's lie up to 33 below its own t);
    SDXL's pooled text is the concept's own in anchors; an attack's embedding has no tokens, and is compared by its
    states alone. The paper writes a product of both likenesses in places; this is the program's maximum.

    Cost of an update, in evaluations of the UNet on one latent: on average n for drawing it, 2 + ``anchors`` for the
    targets, and 1 + ``anchors`` forward and backward.

    Args:
        layers: ``transformers``: linear and convolution layers of every Transformer2DModel, as in the program.
        rank, alpha: of an adapter.
        eta: strength of the erasure.
        anchor_scale: lambda >= 0.
        anchors: texts c~ for each latent, >= 1.
        warm_up: updates, < iterations, over which the learning rate rises from 0.
        cycles: of the cosine that it falls by afterwards, >= 1.
        weight_decay: AdamW's, >= 0.
        matching: likeness of prompt and concept; ``none``: adapters always count fully, and there is no guide.

    The remaining fields are those of :class:`methods.fine_tuning.FineTuning`.

    Raises:
        ValueError: a value out of its range; a pipeline that has a guide.
        FloatingPointError: a loss that is NaN or infinite.

    Several concepts have an adapter each, trained apart; one after another they are not.

    >>> SPM(warm_up=3000)
    Traceback (most recent call last):
    ValueError: warm_up must be less than iterations, 3000; got 3000
    """

    layers: Literal["transformers"] = "transformers"  # type: ignore[assignment]
    iterations: int = 3000
    lr: float = 1e-4
    steps: int = 30
    rank: int = 1
    alpha: float = 1.0
    eta: float = 1.0
    anchor_scale: float = 1000.0
    anchors: int = 4
    warm_up: int = 500
    cycles: int = 3
    weight_decay: float = 0.01
    matching: Matching = "clipcos_tokenuni"

    together: ClassVar[tuple[str, ...]] = ("joint",)
    layer_sets: ClassVar[tuple[str, ...]] = ("transformers",)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "guard", self.matching != "none")  # its transport is a guide
        for name, least in (("rank", 1), ("anchors", 1), ("warm_up", 0), ("cycles", 1)):
            fields.integer(name, getattr(self, name), least=least)
        if self.warm_up >= self.iterations:
            raise ValueError(f"warm_up must be less than iterations, {self.iterations}; got {self.warm_up}")
        fields.number("alpha", self.alpha, above=0)
        fields.number("eta", self.eta)
        for name in ("anchor_scale", "weight_decay"):
            fields.number(name, getattr(self, name), least=0)
        fields.choice("matching", self.matching, get_args(Matching))

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """The same weights with an adapter for each concept, and a guide that says how much each counts."""
        if self.matching != "none" and getattr(pipe, "guide", None) is not None:
            raise ValueError("spm needs a pipeline without a guide; got one erased by a guide; use together=joint")
        model = self.denoiser(pipe)
        membranes = [Membrane(words=self.words(part), rank=self.rank, alpha=self.alpha) for part in concept.singles]
        unets = [bare(pipe, model.half) for _ in membranes]
        found = [
            planted(unet, membrane, adapted(unet), self.seed)[1]
            for unet, membrane in zip(unets, membranes, strict=True)
        ]
        optimisers = {
            f"concept{i}": torch.optim.AdamW(parameters.values(), lr=self.lr, weight_decay=self.weight_decay)
            for i, parameters in enumerate(found)
        }
        training = Training(
            name="spm",
            identity=f"{self!r} {concept!r}",
            iterations=self.iterations * len(membranes),
            optimisers=optimisers,
            state={f"{i}.{name}": p for i, parameters in enumerate(found) for name, p in parameters.items()},
        )

        def loss(step: int, places: range) -> Tensor:
            part = step // self.iterations
            for group in optimisers[f"concept{part}"].param_groups:
                group["lr"] = self.lr * self.rate(step % self.iterations)
            draws = at(places, self.draws(membranes[part].words, step))
            return self.loss(model, unets[part], draws, step, places.start)

        training.run(loss, rows=self.batch_size, turn=lambda step: f"concept{step // self.iterations}")
        erased = pipe
        for membrane, parameters in zip(membranes, found, strict=True):
            erased = attach(erased, membrane, parameters)
        if self.matching != "none":
            erased.guide = Transport(matching=self.matching)
        return erased

    def rate(self, step: int) -> float:
        """Share of the learning rate: linear warm-up, then a cosine with restarts.

        >>> [round(SPM(iterations=8, warm_up=2, cycles=2).rate(i), 2) for i in range(8)]
        [0.0, 0.5, 1.0, 0.75, 0.25, 1.0, 0.75, 0.25]
        """
        if step < self.warm_up:
            return step / self.warm_up
        done = (step - self.warm_up) / (self.iterations - self.warm_up)
        return 0.5 * (1 + math.cos(math.pi * ((self.cycles * done) % 1.0)))

    def draws(self, words: Sequence[str], step: int) -> list[Draw]:
        """The random numbers of a step, one entry for each latent."""
        return [Draw(words[uniform(0, len(words), g)], uniform(1, self.steps, g), g) for g in self.generators(step)]

    def loss(self, model: Denoiser, unet: Any, draws: Sequence[Draw], step: int, first: int = 0) -> Tensor:
        """Both terms, means over latents of a step from the first on; only the adapters on ``unet`` get gradients."""
        text, original = model.encode([draw.word for draw in draws]), model.pipe.unet
        noise = model.noise([draw.generator for draw in draws])
        z = model.descend(unet, noise, text, self.steps - 1, [self.steps - draw.taken for draw in draws])
        times = [model.total - 1 - draw.taken * model.total // self.steps for draw in draws]
        with torch.no_grad():
            both = joined(model.encode([""] * len(draws)), text)
            empty, given = model.epsilon(original, torch.cat([z, z]), times + times, both).chunk(2)
        erase = F.mse_loss(model.epsilon(unet, z, times, text), empty - self.eta * (given - empty))
        others = self.surrogates(text, step, first)
        several, often = z.repeat_interleave(self.anchors, 0), [t for t in times for _ in range(self.anchors)]
        with torch.no_grad():
            same = model.epsilon(original, several, often, others)
        return erase + self.anchor_scale * F.mse_loss(model.epsilon(unet, several, often, others), same)

    def surrogates(self, text: Encoding, step: int, first: int = 0) -> Encoding:
        """``anchors`` Gaussian texts for each of some texts, one after another, the first of which is of that place."""
        found: list[Tensor] = []
        for row, states in enumerate(text.states):
            draw, flat = generator(self.seed, step, first + row, "anchors"), states.double().cpu().flatten()
            while len(found) < (row + 1) * self.anchors:
                noise = torch.randn(flat.shape, generator=draw, dtype=torch.float64)
                accept, length = torch.rand(2, generator=draw, dtype=torch.float64)
                if accept < 1 - F.cosine_similarity(noise, flat, dim=0):
                    noise = noise / noise.norm() * flat.norm() * (0.8 + 0.4 * length)
                    found.append(noise.view(states.shape).to(states))
        return Encoding(torch.stack(found), text.pooled.repeat_interleave(self.anchors, 0))


def adapted(unet: nn.Module) -> list[str]:
    """Names of the linear and convolution layers inside the transformers of a UNet.

    Raises:
        ValueError: there are none.
    """
    names = [
        f"{path}.{name}"
        for path, block in unet.named_modules()
        if type(block).__name__ == "Transformer2DModel"
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    if not names:
        raise ValueError("model must have transformers in its UNet; found none; choose a UNet with attention")
    return names


def _tokens(pipe: Pipeline, text: str) -> set[int]:
    return set(pipe.tokenizer(text, add_special_tokens=False).input_ids)
