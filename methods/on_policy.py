"""Latents drawn part of the way by a model that is itself being trained, and the noise that models predict there.

The sampler is the papers': deterministic DDIM (Song, Meng and Ermon, arXiv:2010.02502, eta = 0) on n of T timesteps,
``tau_k = k T / n + 1`` for k = n - 1, ..., 0 (1, 21, ..., 981 for 50 of 1000), with classifier-free guidance. Step k
takes latents from the noise level of tau_k to that of tau_(k-1), and step 0 to that of timestep 0.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from erasebench.diffusion import latent_shape, projected_once
from erasebench.diffusion.encoding import Encoding, Texts
from erasebench.types import Pipeline
from methods.precision import Autocast, half_of


class Denoiser:
    """A pipeline's text encoder, noise schedule and guidance for any UNet of its architecture.

    SDXL gets its pooled texts and the size of the image; its empty text is zeros where the pipeline says so, which is
    what it is guided away from when it draws.

    Args:
        pipe: read, never changed.
        steps: n, DDIM steps of a whole drawing.
        guidance_scale: g in ``e_empty + g (e_text - e_empty)``; 1 draws without guidance at half the cost.
        autocast: bfloat16 inside the UNet, on a GPU that has it (True) or on a CPU too (``cpu``). ``pipe`` is then a
            copy with bfloat16 weights (:func:`methods.precision.halved`), kept as long as this object.

    Raises:
        ValueError: more steps than half the model's timesteps; a model that predicts neither noise nor velocity, has
            further inputs, or a scheduler without ``alphas_cumprod``.
    """

    def __init__(self, pipe: Pipeline, *, steps: int, guidance_scale: float, autocast: Autocast = False) -> None:
        if getattr(pipe, "offload", None):
            raise ValueError(
                "model.offload must be null for a method that asks the UNet itself; use model.offload=null"
            )
        config = pipe.scheduler.config
        if (kind := config.get("prediction_type", type(pipe.scheduler).__name__)) not in ("epsilon", "v_prediction"):
            raise ValueError(f"model must predict epsilon or v_prediction; got {kind}")
        if getattr(pipe.scheduler, "alphas_cumprod", None) is None:
            raise ValueError(f"scheduler must have alphas_cumprod; got {type(pipe.scheduler).__name__}; choose DDIM")
        unet = pipe.unet.config
        if unet.in_channels != pipe.vae.config.latent_channels or unet.time_cond_proj_dim is not None:
            raise ValueError("model must draw from text alone, without guidance distillation; use the model it is from")
        self.half = half_of(pipe, autocast)
        self.pipe, self.steps, self.guidance_scale = self.half or pipe, steps, guidance_scale
        self.device, self.shape, self.texts = pipe.unet.device, latent_shape(pipe), Texts(pipe)
        self.dtype = torch.promote_types(pipe.unet.dtype, torch.float32)  # of latents and losses
        self.alphas = pipe.scheduler.alphas_cumprod.to(self.device, torch.float64)
        self.total = len(self.alphas)
        if steps > self.total // 2:
            raise ValueError(f"steps must be <= {self.total // 2}, half the timesteps; got {steps}; the papers use 50")
        self.timesteps = [k * (self.total // steps) + 1 for k in range(steps)]  # ascending

    def encode(self, texts: Sequence[str]) -> Encoding:
        """Texts as the UNet gets them, states [n, tokens, width]."""
        return joined(*(self._empty() if text == "" else self.texts[text] for text in texts))

    def _empty(self) -> Encoding:
        empty = self.texts[""]
        if empty.pooled.numel() and self.pipe.config.force_zeros_for_empty_prompt:
            return Encoding(torch.zeros_like(empty.states), torch.zeros_like(empty.pooled))
        return empty

    def noise(self, draws: Sequence[torch.Generator]) -> Tensor:
        """N(0, 1) [len(draws), channels, height, width], one generator for each latent."""
        noise = [torch.randn(self.shape, generator=draw, dtype=torch.float32) for draw in draws]
        return torch.stack(noise).to(self.device, self.dtype)

    def level(self, timesteps: Sequence[int]) -> Tensor:
        """alpha_bar at some timesteps, [b, 1, 1, 1]."""
        return self.alphas[list(timesteps)].view(-1, 1, 1, 1).to(self.dtype)

    def output(self, unet: Any, z: Tensor, timesteps: Sequence[int] | Tensor, text: Encoding) -> Tensor:
        """What the UNet says of latents [b, ...] at timesteps [b] with texts [b, ...], in the latents' dtype."""
        times = torch.as_tensor(timesteps, device=self.device)
        added, dtype = None, self.dtype if self.half else unet.dtype
        if text.pooled.numel():
            height, width = (float(n * self.pipe.vae_scale_factor) for n in self.shape[1:])
            sizes = torch.tensor([[height, width, 0.0, 0.0, height, width]], device=self.device, dtype=dtype)
            added = {"text_embeds": text.pooled.to(dtype), "time_ids": sizes.expand(len(z), -1)}
        states = text.states.to(dtype)
        with self._autocast():
            out = unet(z.to(dtype), times, encoder_hidden_states=states, added_cond_kwargs=added, return_dict=False)[0]
        return out.to(z.dtype)

    def _autocast(self) -> torch.autocast:
        """Around several calls without gradients, trained weights are cast once for all of them."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half is not None)

    def epsilon(self, unet: Any, z: Tensor, timesteps: Sequence[int], text: Encoding) -> Tensor:
        """The noise a UNet predicts; a velocity v is turned into it: sqrt(alpha_bar) v + sqrt(1 - alpha_bar) z."""
        out = self.output(unet, z, timesteps, text)
        if self.pipe.scheduler.config.prediction_type == "epsilon":
            return out
        alpha = self.level(timesteps)
        return alpha.sqrt() * out + (1 - alpha).sqrt() * z

    @torch.no_grad()
    def descend(self, unet: Any, z: Tensor, text: Encoding, first: int, last: Sequence[int]) -> Tensor:
        """Latents after DDIM steps first, first - 1, ..., last[i] (none where last[i] > first).

        Every latent stops where it should and costs nothing from there on; both halves of the guidance are one batch,
        and keys and values of the texts are projected once for as long as the batch stays together.
        """
        z = z.clone()
        for high, low in pairwise(sorted({first + 1, *(k for k in last if k <= first)}, reverse=True)):
            active = [row for row, stop in enumerate(last) if stop <= low]
            z[active] = self._descend(unet, z[active], _take(text, active), range(high - 1, low - 1, -1))
        return z

    def _descend(self, unet: Any, z: Tensor, text: Encoding, steps: range) -> Tensor:
        doubled = self._guided(text)
        with projected_once(unet), self._autocast():
            for k in steps:
                tau = self.timesteps[k]
                e = self._guide(self.epsilon(unet, self._repeat(z), [tau] * len(doubled.states), doubled))
                now, then = self.alphas[tau], self.alphas[self.timesteps[k - 1] if k else 0]
                clean = (z - (1 - now).sqrt().to(z.dtype) * e) / now.sqrt().to(z.dtype)
                z = then.sqrt().to(z.dtype) * clean + (1 - then).sqrt().to(z.dtype) * e
        return z

    @torch.no_grad()
    def pipeline_latents(
        self, unet: Any, draws: Sequence[torch.Generator], text: Encoding, taken: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Latents after the first taken[i] steps of the pipeline's own scheduler, scaled as the UNet wants them.

        A scheduler has one state for its whole batch, so that a batch costs as much as its longest way.

        Returns:
            latents [b, channels, height, width] and the timesteps [b] they are at.
        """
        scheduler = copy.deepcopy(self.pipe.scheduler)
        scheduler.set_timesteps(self.steps, device=self.device)
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        options = {"generator": list(draws)} if takes_generator else {}
        x, doubled = self.noise(draws) * scheduler.init_noise_sigma, self._guided(text)
        found: dict[int, Tensor] = {}
        with projected_once(unet):
            for i, t in enumerate(scheduler.timesteps[: max(taken) + 1]):
                scaled = scheduler.scale_model_input(x, t)
                found |= {row: scaled[row] for row, steps in enumerate(taken) if steps == i}
                if i < max(taken):
                    e = self._guide(self.output(unet, self._repeat(scaled), t.expand(len(doubled.states)), doubled))
                    x = scheduler.step(e, t, x, **options, return_dict=False)[0].to(self.dtype)
        return torch.stack([found[row] for row in range(len(taken))]), scheduler.timesteps[list(taken)]

    def _guided(self, text: Encoding) -> Encoding:
        if self.guidance_scale == 1:
            return text
        return joined(self.encode([""] * len(text.states)), text)

    def _repeat(self, z: Tensor) -> Tensor:
        return z if self.guidance_scale == 1 else torch.cat([z, z])

    def _guide(self, e: Tensor) -> Tensor:
        if self.guidance_scale == 1:
            return e
        empty, given = e.chunk(2)
        return empty + self.guidance_scale * (given - empty)


def joined(*texts: Encoding) -> Encoding:
    """Texts one after another."""
    return Encoding(torch.cat([text.states for text in texts]), torch.cat([text.pooled for text in texts]))


def _take(text: Encoding, chosen: list[int]) -> Encoding:
    return Encoding(text.states[chosen], text.pooled[chosen])
