"""Receler: erasers after every cross-attention, trained against prompts that bring the concept back.

Huang, Chang, Tsai, Lai and Wang, "Receler: Reliable Concept Erasing of Text-to-Image Diffusion Models via Lightweight
Erasers", ECCV 2024, arXiv:2311.17717. Program: github.com/jasper0314-huang/Receler, read at 00ba63e.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erasebench import fields
from erasebench.devices import halving
from erasebench.diffusion import last_token
from erasebench.diffusion.adapters import attach
from erasebench.diffusion.encoding import Encoding
from erasebench.protocols import Adapter, Method
from erasebench.types import Concept, Pipeline
from methods.adapters import bare, planted
from methods.attention_maps import attention
from methods.fine_tuning import FineTuning, Gradients, Training, at, generator, slopes, uniform
from methods.on_policy import Denoiser


class Erasing(nn.Module):
    """``h + up(GELU(down(h)))`` after an attention with output h; while it trains, it keeps what it added."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, rank), nn.Linear(rank, width)
        self.said: Tensor | None = None
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        said = self.up(F.gelu(self.down(output.to(self.up.weight.dtype))))
        if self.training:
            self.said = said
        return output + said.to(output.dtype)


@dataclass(frozen=True, kw_only=True)
class Eraser(Adapter):
    """What stands after every cross-attention."""

    rank: int

    def beside(self, layer: nn.Module) -> nn.Module:
        return Erasing(layer.to_out[0].out_features, self.rank)


class Draw(NamedTuple):
    """What is random in one latent of a training step."""

    which: int  # of the words
    stage: int
    timestep: int
    generator: torch.Generator


@dataclass
class Attacked:
    """What a step learns from: its draws, latents [b, ...], the original's answers to "" and the concept, masks."""

    draws: list[Draw]
    z: Tensor
    empty: Tensor
    given: Tensor
    mask: Tensor  # [b, 1, h, w]
    used: list[nn.Parameter]  # the learnt rows of its words
    last: Gradients = field(default_factory=list)  # of the rows' last update, which is taken after the erasers'


def _step(optimiser: torch.optim.Optimizer, parameters: Sequence[Tensor], gradients: Gradients) -> None:
    """One update, or none without gradients."""
    for parameter, gradient in zip(parameters, gradients, strict=bool(gradients)):
        parameter.grad = gradient
    if gradients:
        optimiser.step()
        optimiser.zero_grad()


@dataclass(frozen=True, kw_only=True)
class Receler(FineTuning, Method):
    r"""Puts h + up(GELU(down(h))) after every cross-attention and trains these erasers, theta, to minimise

    .. math:: |\epsilon_\theta(z_t, c') - [\epsilon_{\theta*}(z_t) - \eta (\epsilon_{\theta*}(z_t, c) -
              \epsilon_{\theta*}(z_t))]|^2 + \lambda \, mean_l \frac{\sum_{i \notin M} mean(o_{l,i}^2)}{|\bar M|}

    with theta* the model without erasers and z_t drawn as for ESD by the model with them. c' is the concept's text with
    ``prompt_tokens`` learnt rows after its words: in every update they take ``attack_steps`` steps of Adam to bring
    back what the original predicts for c, and the erasers learn from the last of these. o_l,i is what the eraser of
    layer l adds at pixel i, and M where the concept is: the original's attention to the concept's tokens on the maps of
    a quarter of the latent's side, mean over heads and layers, scaled to 0..1, at ``mask_threshold`` at least.

    arXiv:2311.17717. The erasers are part of what is asked, so that attacks with gradients see them. Deviations: random
    numbers come from CPU generators of (seed, step); where the UNet has no maps of a quarter of the latent's side (16
    of 64) the nearest size is taken; several latents in an update mean their losses. The program's function has 1000
    iterations by default, its command 500, which is what is run.

    Cost of an update, in evaluations of the UNet on one latent: on average 2 x 25.5 for drawing it, 2 for the targets,
    and ``attack_steps`` forward and backward.

    Args:
        layers: ``erasers``.
        rank: width of an eraser, >= 1.
        eta: strength of the erasure.
        localisation: lambda >= 0.
        mask_threshold: in [0, 1].
        attack_steps: >= 0; 0 trains on the concept's text alone.
        prompt_tokens: learnt rows, >= 1; one set for each word, kept through the whole training.
        attack_lr, attack_decay: of the rows' Adam.

    The remaining fields are those of :class:`methods.fine_tuning.FineTuning`.

    Raises:
        ValueError: a value out of its range; words so long that the learnt rows do not fit behind them.
        FloatingPointError: a loss that is NaN or infinite.

    >>> Receler(mask_threshold=2)
    Traceback (most recent call last):
    ValueError: mask_threshold must be a finite number >= 0 and <= 1; got 2
    """

    layers: Literal["erasers"] = "erasers"  # type: ignore[assignment]
    iterations: int = 500
    lr: float = 3e-4
    rank: int = 128
    eta: float = 1.0
    localisation: float = 0.1
    mask_threshold: float = 0.1
    attack_steps: int = 50
    prompt_tokens: int = 16
    attack_lr: float = 0.1
    attack_decay: float = 0.1

    layer_sets: ClassVar[tuple[str, ...]] = ("erasers",)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("rank", 1), ("attack_steps", 0), ("prompt_tokens", 1)):
            fields.integer(name, getattr(self, name), least=least)
        fields.number("eta", self.eta)
        for name in ("localisation", "attack_decay"):
            fields.number(name, getattr(self, name), least=0)
        fields.number("attack_lr", self.attack_lr, above=0)
        fields.number("mask_threshold", self.mask_threshold, least=0, most=1)

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """The same weights with erasers after every cross-attention."""
        model, words = self.denoiser(pipe), self.words(concept)
        ends = self.ends(pipe, words)
        eraser, unet = Eraser(rank=self.rank), bare(pipe, model.half)
        erasers, weights = planted(unet, eraser, [n for n, _ in unet.named_modules() if n.endswith("attn2")], self.seed)
        rows = self.rows(model, words)
        adversary = torch.optim.Adam(rows.values(), lr=self.attack_lr, weight_decay=self.attack_decay)
        training = Training(
            name="receler",
            identity=f"{self!r} {concept!r}",
            iterations=self.iterations,
            optimisers={"erasers": torch.optim.Adam(weights.values(), lr=self.lr), "adversary": adversary},
            state={**weights, **{f"rows.{word}": row for word, row in rows.items()}},
        )
        now: Attacked | None = None

        def before(step: int) -> None:
            nonlocal now
            now = self.attacked(model, unet, rows, adversary, ends, step)

        def loss(step: int, places: range) -> Tensor:
            assert now is not None
            return self.loss(model, unet, erasers, rows, ends, now, places)

        def after() -> None:
            assert now is not None
            _step(adversary, now.used, now.last)

        training.run(loss, rows=self.batch_size, turn=lambda step: "erasers", before=before, after=after)
        return attach(pipe, eraser, weights)

    def ends(self, pipe: Pipeline, words: Sequence[str]) -> list[int]:
        """How many tokens each word has."""
        ends: list[int] = last_token(pipe, words).tolist()
        room = pipe.tokenizer.model_max_length - 1 - self.prompt_tokens
        for word, end in zip(words, ends, strict=True):
            if end > room:
                raise ValueError(f"{word!r} must have at most {room} tokens; got {end}; use fewer prompt_tokens")
        return ends

    def rows(self, model: Denoiser, words: Sequence[str]) -> dict[str, nn.Parameter]:
        """Learnt rows of every word [prompt_tokens, width], uniform over 0..1 at first."""
        width = model.encode([""]).states.shape[-1]
        made = (torch.rand(self.prompt_tokens, width, generator=generator(self.seed, word, "rows")) for word in words)
        return {word: nn.Parameter(row.to(model.device, model.dtype)) for word, row in zip(words, made, strict=True)}

    def draws(self, model: Denoiser, words: int, step: int) -> list[Draw]:
        """The random numbers of a step, one entry for each latent, as ESD's."""
        found = []
        for draw in self.generators(step):
            which, stage = uniform(0, words, draw), uniform(0, self.steps, draw)
            low, high = (round(i / self.steps * model.total) for i in (stage, stage + 1))
            found.append(Draw(which, stage, uniform(low, high, draw), draw))
        return found

    def attacked(
        self, model: Denoiser, unet: Any, rows: Mapping[str, nn.Parameter], adversary: torch.optim.Optimizer,
        ends: Sequence[int], step: int,
    ) -> Attacked:  # fmt: skip
        """What a step learns from, once the rows have taken all but the last of their updates for it."""
        words, draws = list(rows), self.draws(model, len(rows), step)
        what = "latents of receler's steps"
        parts = list(halving(partial(self._asked, model, unet, words, ends), draws, len(draws), what, model.device))
        z, empty, given, mask = (torch.cat(column) for column in zip(*parts, strict=True))
        now = Attacked(draws, z, empty, given, mask, [rows[words[i]] for i in sorted({draw.which for draw in draws})])

        def found(places: range) -> Tensor:
            return F.mse_loss(self._found(model, unet, rows, ends, now, places), at(places, given))

        for left in range(self.attack_steps - 1, -1, -1):
            now.last = slopes(found, now.used, len(draws), what)[1][0]
            if left:
                _step(adversary, now.used, now.last)
        return now

    @torch.no_grad()
    def _asked(
        self, model: Denoiser, unet: Any, words: Sequence[str], ends: Sequence[int], draws: Sequence[Draw]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents that the model with erasers draws, the original's two answers there, and where the concept is."""
        text, times = model.encode([words[draw.which] for draw in draws]), [draw.timestep for draw in draws]
        noise, last = model.noise([draw.generator for draw in draws]), [max(draw.stage - 1, 0) for draw in draws]
        z = model.descend(unet, noise, text, self.steps - 2, last)
        empty = model.epsilon(model.pipe.unet, z, times, model.encode([""] * len(draws)))
        with attention(model.pipe.unet) as maps:
            given = model.epsilon(model.pipe.unet, z, times, text)
        return z, empty, given, self.mask(maps, [ends[draw.which] for draw in draws], z.shape[-2:])

    def _found(
        self, model: Denoiser, unet: Any, rows: Mapping[str, nn.Parameter], ends: Sequence[int], now: Attacked,
        places: range,
    ) -> Tensor:  # fmt: skip
        """What the model with erasers predicts at some places with the learnt rows."""
        draws, words = at(places, now.draws), list(rows)
        text = model.encode([words[draw.which] for draw in draws])
        if self.attack_steps:
            text = written(text, draws, list(rows.values()), ends)
        return model.epsilon(unet, at(places, now.z), [draw.timestep for draw in draws], text)

    def loss(
        self, model: Denoiser, unet: Any, erasers: Mapping[str, Erasing], rows: Mapping[str, nn.Parameter],
        ends: Sequence[int], now: Attacked, places: range,
    ) -> Tensor:  # fmt: skip
        """What the erasers minimise in a step, mean over some places."""
        found = self._found(model, unet, rows, ends, now, places)
        outside = torch.stack([_outside(eraser, at(places, now.mask)) for eraser in erasers.values()]).mean()
        empty, given = at(places, now.empty), at(places, now.given)
        return F.mse_loss(found, empty - self.eta * (given - empty)) + self.localisation * outside

    def mask(self, maps: Sequence[Tensor], ends: Sequence[int], size: Sequence[int]) -> Tensor:
        """Where the concept is, 0 or 1 [b, 1, h, w], from attention probabilities [b, heads, pixels, tokens]."""
        wanted = size[0] * size[1] / 16
        pixels = min({m.shape[2] for m in maps}, key=lambda n: abs(math.log(n / wanted)))
        own = [
            torch.stack([m[row, :, :, 1 : end + 1].mean(dim=(0, 2)) for row, end in enumerate(ends)])
            for m in maps
            if m.shape[2] == pixels
        ]
        mean = torch.stack(own).mean(0)  # [b, pixels]
        low, high = mean.amin(1, keepdim=True), mean.amax(1, keepdim=True)
        scaled = (mean - low) / (high - low).clamp_min(1e-12)
        side = round(math.sqrt(size[0] * size[1] / pixels))
        return (scaled >= self.mask_threshold).to(mean.dtype).view(len(ends), 1, size[0] // side, size[1] // side)


def written(text: Encoding, draws: Sequence[Draw], rows: Sequence[Tensor], ends: Sequence[int]) -> Encoding:
    """Texts with their words' learnt rows right behind the words."""
    states = text.states.to(rows[0].dtype).clone()
    for i, draw in enumerate(draws):
        first = 1 + ends[draw.which]
        states[i, first : first + len(rows[draw.which])] = rows[draw.which]
    return Encoding(states, text.pooled)


def _outside(eraser: Erasing, mask: Tensor) -> Tensor:
    """What an eraser added where the concept is not: mean square by channel, per pixel there, mean over latents."""
    assert eraser.said is not None
    ratio = math.sqrt(eraser.said.shape[1] / mask[0].numel())
    size = [round(n * ratio) for n in mask.shape[-2:]]
    out = 1 - F.interpolate(mask, size).flatten(1)  # [b, pixels]
    squares = (eraser.said * out[..., None].to(eraser.said)).square().mean(-1).sum(1)
    return (squares / (out.sum(1) + 1e-9)).mean()
