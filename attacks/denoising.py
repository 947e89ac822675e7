"""A denoiser as a white-box attack sees it: tokens in places of a prompt, noised images, and one gradient.

Tokens between start and end of text are words; some of them are free, the attack's to choose. The gradient of the
denoising loss with respect to the embeddings of the free tokens goes through the UNet and the text encoder; no weight
gets a gradient.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from erasebench import diffusion
from erasebench.types import Pipeline

HALF_SCALE = 1024.0  # a float16 loss is multiplied by this, so that small gradients do not underflow


@dataclass(frozen=True)
class Layout:
    """A prompt with free tokens in it.

    Args:
        ids: all token ids as the pipeline lays them out, start, words, end, padding; int64 [tokens].
        free: rows of the free tokens, ascending; int64 [m].
        words: how many tokens stand between start and end.
    """

    ids: Tensor
    free: Tensor
    words: int

    def filled(self, chosen: Tensor) -> list[int]:
        """The words' ids with some ids [m] in the free places."""
        ids = self.ids.clone()
        ids[self.free] = chosen
        return ids[1 : self.words + 1].tolist()


def lay_out(tokenizer: Any, prompt: Sequence[int], places: Sequence[int]) -> Layout:
    """A prompt's tokens with free tokens at some ``places``, counted among the words from 0.

    Raises:
        ValueError: more words than fit between start and end of text.
    """
    length, free = tokenizer.model_max_length, set(places)
    words = len(prompt) + len(free)
    if words > length - 2:
        raise ValueError(f"words must number <= {length - 2}, what fits a prompt; got {words}; use fewer free tokens")
    rest = iter(prompt)
    middle = [tokenizer.eos_token_id if i in free else next(rest) for i in range(words)]
    ids = [tokenizer.bos_token_id, *middle, tokenizer.eos_token_id]
    ids += [tokenizer.pad_token_id] * (length - len(ids))
    return Layout(torch.tensor(ids), torch.tensor(sorted(free)) + 1, words)


def prompt_tokens(tokenizer: Any, text: str) -> list[int]:
    """A text's own token ids, without start, end, padding or truncation."""
    return tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Token ids as the string that a user would type."""
    return tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def shortened(tokenizer: Any, text: str, fits: Callable[[int], bool]) -> str:
    """The text itself if ``fits(number of its own tokens)``, else what is left when enough of its last are taken."""
    ids = prompt_tokens(tokenizer, text)
    count = len(ids)
    while not fits(count):
        ids = ids[:-1]
        text = decode(tokenizer, ids)
        count = len(prompt_tokens(tokenizer, text))
    return text


def check_pipeline(pipe: Pipeline, latest: int) -> None:
    """Refuse, in one line, a model these attacks cannot differentiate.

    Raises:
        ValueError: SDXL; a scheduler without a training schedule, shorter than ``latest``, or with an unusual target.
    """
    diffusion.token_table(pipe)  # refuses SDXL
    alphas, kind = getattr(pipe.scheduler, "alphas_cumprod", None), pipe.scheduler.config.get("prediction_type")
    if alphas is None or latest >= len(alphas):
        known = "none" if alphas is None else len(alphas)
        raise ValueError(f"timesteps must lie in the scheduler's training schedule; got {latest}, it has {known} steps")
    if kind not in (None, "epsilon", "v_prediction"):
        raise ValueError(f"model must predict epsilon or v_prediction; got {kind!r}")


def without_weight_gradients(pipe: Pipeline) -> Pipeline:
    """The pipeline itself, or a fork of it, in which no weight asks for a gradient."""
    parts = (pipe.unet, pipe.text_encoder)
    if not any(p.requires_grad for part in parts for p in part.parameters()):
        return pipe
    fork = diffusion.fork(pipe)
    fork.unet.requires_grad_(False)
    fork.text_encoder.requires_grad_(False)
    return fork


def precise(pipe: Pipeline) -> torch.dtype:
    """What an attack calculates in: float32, or float64 for a model in float64."""
    return torch.promote_types(pipe.unet.dtype, torch.float32)


@dataclass(frozen=True)
class Vocabulary:
    """The tokens an attack may use: all but the special ones, which nobody can type.

    Args:
        ids: int64 [v], ascending.
        table: their embeddings [v, width], float32 (or float64).
    """

    ids: Tensor
    table: Tensor

    @classmethod
    def of(cls, pipe: Pipeline) -> Vocabulary:
        table = diffusion.token_table(pipe).detach()
        size = min(len(pipe.tokenizer), len(table))
        ids = torch.from_numpy(np.setdiff1d(np.arange(size), pipe.tokenizer.all_special_ids)).to(table.device)
        return cls(ids, table[ids].to(precise(pipe)))


@torch.no_grad()
def to_latents(pipe: Pipeline, image: Image.Image) -> Tensor:
    """Latents [channels, h, w] of an image: the mean of the VAE's posterior times its scaling factor, on the CPU."""
    vae = pipe.vae
    if vae.dtype == torch.float16 and vae.config.force_upcast:
        vae = copy.deepcopy(vae).float()
    pixels = torch.from_numpy(np.asarray(image.convert("RGB"), np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    mean = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mean[0]
    return (mean * vae.config.scaling_factor).to("cpu", precise(pipe))


def generator(*names: Any) -> torch.Generator:
    """A CPU generator that depends on ``names`` alone: a seed, a prompt's seed, a round, an iteration."""
    digest = hashlib.sha256(" ".join(map(str, names)).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "big"))


def noised(scheduler: Any, x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e, and what the model should predict for it: e, or v = sqrt(a_t) e - sqrt(1 - a_t) x_0.

    Args:
        x0, noise: [n, channels, h, w].
        t: timesteps, int64 [n].
    """  # noqa: E501
    a = scheduler.alphas_cumprod.to(x0.device, torch.float64)[t].to(x0.dtype).view(-1, 1, 1, 1)
    x_t = a.sqrt() * x0 + (1 - a).sqrt() * noise
    if scheduler.config.get("prediction_type") == "v_prediction":
        return x_t, a.sqrt() * noise - (1 - a).sqrt() * x0
    return x_t, noise


def predict(pipe: Pipeline, x_t: Tensor, t: Tensor, states: Tensor) -> Tensor:
    """The UNet's conditional prediction, without guidance, [n, channels, h, w] float32 (or float64)."""
    dtype = pipe.unet.dtype
    out = pipe.unet(x_t.to(dtype), t, encoder_hidden_states=states.to(dtype), return_dict=False)[0]
    return out.to(precise(pipe))


class Stack(NamedTuple):
    """Layouts of one batch: all ids [n, tokens], and the image and the row of every free token [sum of m]."""

    ids: Tensor
    images: Tensor
    rows: Tensor

    @classmethod
    def of(cls, layouts: Sequence[Layout], device: torch.device) -> Stack:
        images = torch.cat([torch.full((len(layout.free),), i) for i, layout in enumerate(layouts)])
        rows = torch.cat([layout.free for layout in layouts])
        return cls(torch.stack([layout.ids for layout in layouts]).to(device), images.to(device), rows.to(device))


def gradient(
    pipe: Pipeline, stack: Stack, tokens: Tensor, x_t: Tensor, t: Tensor, goal: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean squared error of the prediction to a goal, and its gradient with respect to the free tokens' embeddings.

    Args:
        stack: the n prompts.
        tokens: embeddings of all free tokens, those of the first prompt first, [sum of m, width].
        x_t, goal: [n, channels, h, w].
        t: int64 [n].

    Returns:
        losses [n] and gradients [sum of m, width] of each image's own loss. One forward and one backward pass.
    """
    fixed = diffusion.token_table(pipe).detach()[stack.ids]
    scale = HALF_SCALE if pipe.unet.dtype == torch.float16 else 1.0
    with torch.enable_grad():
        leaf = tokens.detach().requires_grad_()
        embeddings = fixed.index_put((stack.images, stack.rows), leaf.to(fixed.dtype))
        states = diffusion.encode_embeddings(pipe, embeddings)
        losses = (predict(pipe, x_t, t, states) - goal).square().mean((1, 2, 3))
        (found,) = torch.autograd.grad(scale * losses.sum(), leaf)
    return losses.detach(), found / scale
