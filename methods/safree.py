"""SAFREE: no training; a prompt's suspicious words are turned out of a concept's subspace while the model draws.

Yoon, Yu, Patil, Yao and Bansal, ICLR 2025, arXiv:2410.12761. Program: github.com/jaehong31/SAFREE at b8b2c3f.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from erasebench import fields
from erasebench.diffusion import check_length, encode, encode_embeddings, fork, last_token, token_table, tokenise
from erasebench.protocols import Guide, Method
from erasebench.types import Concept, Pipeline, Prompt

MASK = 0  # the token that stands in for a masked one; CLIP's "!"
RANK = 1e-6  # singular values below this share of the largest are no direction


@dataclass(frozen=True, kw_only=True)
class ProjectionGuide(Guide):
    """What :class:`SAFREE` sets on the pipeline it returns; see there for the equations and the fields."""

    words: tuple[str, ...]
    alpha: float
    upper: int
    steepness: float
    midpoint: float
    validate: bool
    re_attention: tuple[float, ...]
    end: bool = False
    empty: str = ""
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("words", "re_attention", "extra"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def needed(self, scales: Sequence[float], step: int) -> bool:
        """Where features may be weakened, the prompt as it was is asked, too, to compare with."""
        return bool(self.extra) and (step <= self.upper or not self.validate)

    def combine(
        self, empty: Tensor, text: Tensor, extra: Sequence[Tensor], scale: Tensor, step: int, state: dict[str, Tensor]
    ) -> Tensor:
        """``e_empty + g (e_text - e_empty)``: the guard is in what was asked."""
        return empty + scale * (text - empty)

    @contextmanager
    def drawing(self, pipe: Pipeline, prompts: Sequence[Prompt], states: Tensor) -> Iterator[Callable[[int], Tensor]]:
        """Text states of each step, the guarded prompts' in place of the prompts'; weakens features meanwhile."""
        n = len(prompts)
        first = len(states) - n * (1 + len(self.extra))
        own, plain = slice(first, first + n), states.clone()
        outside = torch.eye(states.shape[-1], dtype=torch.float64) - projector(pooled(pipe, self.words))
        guarded = [self.guarded(pipe, prompt, row, outside) for prompt, row in zip(prompts, states[own], strict=True)]
        last = [step for _, step in guarded]
        safe = torch.stack([row for row, _ in guarded])
        if self.extra:
            plain[-n:] = states[own]
        made: dict[tuple[bool, ...], Tensor] = {}
        active: list[int] = []

        def at(step: int) -> Tensor:
            which = tuple(step <= until for until in last)
            active[:] = [row for row, on in enumerate(which) if on]
            if which not in made:
                made[which] = plain.clone()
                made[which][own][active] = safe[active]
            return made[which]

        with ExitStack() as stack:
            for block, share in zip(pipe.unet.up_blocks, self.re_attention, strict=False):

                def weaken(module: Any, args: Any, kwargs: dict[str, Any], share: float = share) -> Any:
                    skips = kwargs["res_hidden_states_tuple"]
                    if active and len(skips[0]) == len(states):
                        skips = tuple(_weakened(skip, own.start, n, active, share) for skip in skips)
                    return args, kwargs | {"res_hidden_states_tuple": skips}

                handle = block.register_forward_pre_hook(weaken, with_kwargs=True)
                stack.callback(handle.remove)
            yield at

    def guarded(self, pipe: Pipeline, prompt: Prompt, row: Tensor, outside: Tensor) -> tuple[Tensor, int]:
        """A prompt's guarded text states [tokens, width], and the last step that they are used at (-1: none)."""
        tokens = 0 if prompt.embeds is not None else int(last_token(pipe, [prompt.text])[0])
        if not tokens:
            return row, -1
        masked = without_each(pipe, prompt.text, tokens)
        projected = row.double().cpu() @ projector(masked) @ outside
        trigger = triggers(masked, outside, self.alpha)
        safe = row.clone()
        safe[1 : tokens + 1][trigger] = projected[1 : tokens + 1][trigger].to(row)
        if self.end and trigger.any():
            safe[tokens + 1 :] = projected[tokens + 1 :].to(row)
        if not self.validate:
            return safe, 10**9
        alike = F.cosine_similarity(projected[: tokens + 2], row[: tokens + 2].double().cpu(), dim=-1).mean()
        return safe, self.until(1 - float(alike))

    def until(self, beta: float) -> int:
        """t': the last step at which the guarded states are used, from how much of them was taken."""
        return round(self.upper / (1 + math.exp(-2 * self.steepness * (10 * beta - self.midpoint))))


@dataclass(frozen=True, kw_only=True)
class SAFREE(Method):
    r"""Returns the pipeline with a guide under which a prompt with token states e_i is drawn with

    .. math:: \tilde e_i = (I - P_C) P_I e_i \text{ where } |(I - P_C) p_i| > (1 + \alpha) \, \mathrm{mean}_{j \ne i}
              |(I - P_C) p_j|, \qquad e_i \text{ elsewhere},

    during the steps 0 to t'. p_i is the prompt's end state with token i masked, P_I the projector on the span of all
    p_i, P_C that on the span of the end states of the concept's words: a token whose loss takes the prompt away from
    the concept is one that carried it. Self-validation: :math:`t' = round(T_u \, \sigma(2 k (10 \beta - t_0)))` with
    :math:`\beta = 1 - mean \cos((I - P_C) P_I e_i, e_i)` over the prompt's tokens, start and end of text included.

    Latent re-attention: during these steps the skip features of the first two up blocks are weakened in the Fourier
    domain: a coefficient of low frequency is multiplied by s where it is larger in magnitude than that of the same
    features under the prompt as it was, which a third branch computes.

    Deviations. From the program: of the re-attention it is known that it is FreeU's filter (up blocks, b = 1, s = 0.9
    and 0.2) with a third branch, which is the prompt as it was; that coefficients are compared by magnitude, within
    FreeU's window of 1, and that it stops with t', is our reading of the paper. The projectors are float64, and
    directions below 1e-6 of the largest count as none. The words are the concept's phrases where none are given; the
    program has 17 for nudity, and passes them as the negative prompt always, of the model it compares with too:
    ``negative_prompt``, off by default. A prompt of one token has no others to compare with: its token is taken, as in
    the program. Prompts given as embeddings (an attack's) have no tokens to mask and are drawn unguarded.

    Cost: the text encoder once per token of a prompt; with re-attention a third UNet evaluation a step up to
    ``upper``.

    Args:
        words: span C; null: the concept's phrases.
        alpha: how much farther a token's loss must take the prompt, >= 0.
        upper: T_u, steps >= 0.
        steepness, midpoint: k and t_0.
        validate: self-validation; without it every step is guarded.
        re_attention: s of the first and the second up block, each in [0, 1]; [] for none.
        end: where a token is taken, the rows of the end of text and the padding, which say what the words said, are
            projected, too. Ours, off by default.
        negative_prompt: guidance leads away from the words, too.

    Raises:
        ValueError: a value out of its range; SDXL; words that the tokenizer would cut; a pipeline that has a guide.

    Several concepts are guarded jointly, by the words of all of them.

    >>> SAFREE(re_attention=[2.0])
    Traceback (most recent call last):
    ValueError: re_attention.0 must be a finite number >= 0 and <= 1; got 2.0
    """

    words: Sequence[str] | None = None
    alpha: float = 0.01
    upper: int = 10
    steepness: float = 2.5
    midpoint: float = 5.333
    validate: bool = True
    re_attention: Sequence[float] = (0.9, 0.2)
    end: bool = False
    negative_prompt: bool = False

    together = ("joint",)
    guard = True

    def __post_init__(self) -> None:
        if self.words is not None:
            object.__setattr__(self, "words", fields.texts("words", self.words, least=1))
        fields.number("alpha", self.alpha, least=0)
        fields.integer("upper", self.upper, least=0)
        fields.number("steepness", self.steepness, above=0)
        fields.number("midpoint", self.midpoint)
        fields.flag("validate", self.validate)
        fields.flag("end", self.end)
        fields.flag("negative_prompt", self.negative_prompt)
        if not isinstance(self.re_attention, list | tuple) or len(self.re_attention) > 2:
            raise ValueError(f"re_attention must be a list of at most 2 numbers; got {self.re_attention!r}")
        for i, share in enumerate(self.re_attention):
            fields.number(f"re_attention.{i}", share, least=0, most=1)
        object.__setattr__(self, "re_attention", tuple(self.re_attention))

    def check(self, concept: Concept, shapes: Mapping[str, tuple[int, ...]]) -> None:
        if any(name.startswith("text_encoder_2.") for name in shapes):
            raise ValueError("model must have one text encoder (Stable Diffusion 1.x or 2.x); got SDXL's two")

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """The same weights with a guide; ``pipe`` itself gets none."""
        if getattr(pipe, "guide", None) is not None:
            raise ValueError("safree needs a pipeline without a guide; got one erased by a guide; use together=joint")
        token_table(pipe)  # refuses two text encoders
        words = self.words or [phrase for part in concept.singles for phrase in part.phrases]
        negative = ", ".join(words) if self.negative_prompt else ""
        for word in (*words, negative):
            check_length(pipe, "words", word)
        erased = fork(pipe)
        erased.guide = ProjectionGuide(
            words=tuple(words),
            alpha=self.alpha,
            upper=self.upper,
            steepness=self.steepness,
            midpoint=self.midpoint,
            validate=self.validate,
            re_attention=tuple(self.re_attention),
            end=self.end,
            empty=negative,
            extra=("",) if self.re_attention else (),
        )
        return erased


def projector(rows: Tensor) -> Tensor:
    """The orthogonal projector [width, width] on the span of some rows [n, width], float64.

    >>> projector(torch.tensor([[3.0, 4.0]])).mul(25).round().tolist()
    [[9.0, 12.0], [12.0, 16.0]]
    """
    rows = rows.double()
    return torch.linalg.pinv(rows, rtol=RANK) @ rows


def pooled(pipe: Pipeline, texts: Sequence[str]) -> Tensor:
    """States of the end of each text [n, width], float64 on the CPU."""
    ends = last_token(pipe, texts) + 1
    return encode(pipe, texts).double().cpu()[torch.arange(len(texts)), ends]


@torch.no_grad()
def without_each(pipe: Pipeline, text: str, tokens: int) -> Tensor:
    """States of the end of a text with each of its tokens masked in turn [tokens, width], float64 on the CPU."""
    ids = tokenise(pipe, [text])[:, : tokens + 2].repeat(tokens, 1)
    ids[torch.arange(tokens), torch.arange(tokens) + 1] = MASK
    table = token_table(pipe)
    return encode_embeddings(pipe, table[ids.to(table.device)])[:, -1].double().cpu()


def triggers(masked: Tensor, outside: Tensor, alpha: float) -> Tensor:
    """Which tokens carry the concept: bool [tokens]."""
    far = (masked @ outside).norm(dim=-1)
    if len(far) == 1:
        return torch.ones(1, dtype=torch.bool)
    others = (far.sum() - far) / (len(far) - 1)
    return far >= (1 + alpha) * others


def _weakened(skip: Tensor, start: int, n: int, active: Sequence[int], share: float) -> Tensor:
    """Features of a batch, the guarded rows' weakened beside the last n, which are of the prompts as they were."""
    rows = [start + row for row in active]
    plain = skip[[len(skip) - n + row for row in active]]
    out = skip.clone()
    out[rows] = weakened(skip[rows], plain, share)
    return out


def weakened(safe: Tensor, plain: Tensor, share: float) -> Tensor:
    """Features [b, c, h, w], their low frequencies times ``share`` where they are larger than those of ``plain``."""
    wide = torch.promote_types(safe.dtype, torch.float32)
    a, b = (torch.fft.fftshift(torch.fft.fft2(x.to(wide)), dim=(-2, -1)) for x in (safe, plain))
    h, w = (size // 2 for size in safe.shape[-2:])
    low = torch.zeros(safe.shape[-2:], dtype=torch.bool, device=safe.device)
    low[max(h - 1, 0) : h + 1, max(w - 1, 0) : w + 1] = True
    a = torch.where(low & (a.abs() > b.abs()), share * a, a)
    return torch.fft.ifft2(torch.fft.ifftshift(a, dim=(-2, -1))).real.to(safe.dtype)
