"""MACE: refine the words around a concept in closed form, train a small adapter a concept, fuse all in closed form.

Lu, Wang, Li, Liu and Kong, "MACE: Mass Concept Erasure in Diffusion Models", CVPR 2024, arXiv:2403.06135. Written from
the paper's equations: the official program's licence is non-commercial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erasebench import fields
from erasebench.diffusion import apply_matrix, cross_attention_projections, fork
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline
from methods.attention_maps import attention
from methods.closed_form import WEIGHT, Pair, fused, shared_matrix
from methods.fine_tuning import Layers, Training, generator
from methods.low_rank import shifted, trained_dtype, with_changes, zero_ups
from methods.on_policy import Denoiser
from methods.template_rows import sentence_rows
from methods.training_images import FromImages, Picture, noised, token_columns


@dataclass(frozen=True, kw_only=True)
class MACE(FromImages, Method):
    r"""Edits every ``attn2.to_k`` and ``to_v`` weight W in three steps.

    1. **Refinement.** W' = W T, with the one T of :func:`methods.closed_form.shared_matrix` that maps the rows of the
       words that stand after the concept in a sentence, the end of text and padding to those in the sentence with the
       anchor in its place: what the text encoder has told them of the concept goes.
    2. **Adapters.** For each concept i a change Delta_i = U_i D_i of rank ``rank``, trained on noised pictures z_t of
       it to minimise, over layers l, heads h and the concept's own tokens j,

       .. math:: \sum_{l, h, j} \| A_l^h(z_t)_{:, j} \odot M_l \|_F^2 ,

       the attention to these tokens where the concept is to be seen, M = 1.
    3. **Fusion.** W* = W' + X with the X of :func:`methods.closed_form.fused`: on every concept's own rows what its
       adapter does, on preserved rows nothing.

    Masks. The paper's come from Grounded-SAM, two further networks. Here (``mask: attention``) M is where the
    original's own cross-attention to the concept's tokens, averaged over layers and heads at one noise level, is above
    ``threshold`` between its least and greatest value; ``whole`` is 1 everywhere.

    Deviations: the mask; no cache of COCO's texts (preserved texts are ``preserve`` and the concept's, in every
    template); float64; ``lamb`` > 0 in place of the program's 0, which its cache makes solvable; no importance sampling
    of timesteps; AdamW, the initial D ~ N(0, 1/r) and the words after the concept alone (those before it cannot know of
    it in a causal text encoder) are ours. Concepts need an anchor, the paper's super-category.

    Cost: ``images`` pictures of each concept and one evaluation of each for its mask; an update is one forward and
    backward pass. Adapters are trained apart, so time grows with the number of concepts.

    Args:
        rank: of an adapter, >= 1.
        mask: ``attention`` or ``whole``.
        threshold: of the mask, in [0, 1).
        pads: rows of padding after the end of text that count, >= 0.
        preserve: texts to keep; concept_preserve: the concept's too.
        lamb: ridge of both closed forms, > 0.
        preserve_scale, fuse_preserve_scale: of preserved rows in the refinement and in the fusion, >= 0.

    The remaining fields are those of :class:`methods.training_images.FromImages`; ``layers`` is ``xattn_strict``.

    Raises:
        ValueError: a value out of its range, other layers, a concept without an anchor, a template without its word.
        ArithmeticError: a closed form that has no finite solution.
        FloatingPointError: a loss that is NaN or infinite.

    >>> MACE(rank=0)
    Traceback (most recent call last):
    ValueError: rank must be an integer >= 1; got 0
    """

    layers: Layers = "xattn_strict"
    iterations: int = 50
    images: int = 8
    guidance_scale: float = 7.5
    rank: int = 1
    mask: Literal["attention", "whole"] = "attention"
    threshold: float = 0.5
    pads: int = 75
    preserve: Sequence[str] = ()
    concept_preserve: bool = True
    lamb: float = 0.1
    preserve_scale: float = 7e-7
    fuse_preserve_scale: float = 7e-7

    layer_sets = ("xattn_strict",)

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.integer("rank", self.rank, least=1)
        fields.choice("mask", self.mask, ("attention", "whole"))
        fields.number("threshold", self.threshold, least=0, below=1)
        fields.integer("pads", self.pads, least=0, hint="0 stops at the end of text")
        object.__setattr__(self, "preserve", fields.texts("preserve", self.preserve))
        fields.flag("concept_preserve", self.concept_preserve)
        fields.number("lamb", self.lamb, above=0, hint=WEIGHT)
        for name in ("preserve_scale", "fuse_preserve_scale"):
            fields.number(name, getattr(self, name), least=0, hint=WEIGHT)

    def check(self, concept: Concept, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.anchored(concept)

    def kept(self, concept: Concept) -> list[str]:
        """Preserved texts, without any that names the concept."""
        erased = {phrase.lower() for part in concept.singles for phrase in part.phrases}
        texts = (*self.preserve, *concept.preserve) if self.concept_preserve else self.preserve
        return [text for text in dict.fromkeys(texts) if text.lower() not in erased]

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline without the concept that shares all but its edited weights with ``pipe``."""
        pairs, kept = self.anchored(concept), self.kept(concept)
        rows = sentence_rows(pipe, kept, self.templates, self.pads)[0] if kept else None
        gram = self._zero(pipe) if rows is None else rows.T @ rows
        refined = apply_matrix(pipe, self.refinement(pipe, pairs, gram))
        watched, model = self.denoiser(pipe), self.denoiser(refined)
        changes, squares = [], []
        for word, _ in pairs:
            pictures = self.pictures(pipe, [(word, word)])
            masks = [self.seen(watched, picture, word) for picture in pictures]
            changes.append(self.adapter(refined, model, list(zip(pictures, masks, strict=True)), word, concept))
            own = sentence_rows(pipe, [word], self.templates, self.pads)[0]
            squares.append(own.T @ own)
        found = fused(changes, squares, gram, lamb=self.lamb, preserve_scale=self.fuse_preserve_scale)
        return with_changes(refined, found)

    @torch.no_grad()
    def refinement(self, pipe: Pipeline, pairs: Sequence[tuple[str, str]], gram: Tensor) -> Tensor:
        """T [d, d] float64 of the first step."""
        around: list[Pair] = []
        for word, anchor in pairs:
            for template in self.templates:
                own, other = (sentence_rows(pipe, [text], [template], self.pads)[0][1:] for text in (word, anchor))
                length = min(len(own), len(other))
                around.append((own[:length], other[:length]))
        return shared_matrix(around, gram, lamb=self.lamb, erase_scale=1.0, preserve_scale=self.preserve_scale)

    def seen(self, model: Denoiser, picture: Picture, word: str) -> Tensor:
        """M [h, w] of a picture in the latents' size, 0 or 1, in the model's dtype."""
        size = model.shape[1:]
        if self.mask == "whole":
            return torch.ones(size, device=model.device, dtype=model.dtype)
        few = noised(model, [picture], [generator(self.seed, "mask", picture.text)])._replace(
            timesteps=[model.total // 5]
        )
        level = model.level(few.timesteps)
        z = level.sqrt() * picture.latent.to(few.noise)[None] + (1 - level).sqrt() * few.noise
        unet, columns = fork(model.pipe).unet, token_columns(model.pipe, picture.text, word)
        with torch.no_grad(), attention(unet) as found:
            model.epsilon(unet, z, few.timesteps, model.encode([picture.text]))
        maps = [_map(probabilities[0, :, :, columns].float().mean(dim=(0, 2)), size) for probabilities in found]
        mean = torch.stack(maps).mean(dim=0)
        return (mean - mean.min() > self.threshold * (mean.max() - mean.min())).to(model.dtype)

    def adapter(
        self,
        refined: Pipeline,
        model: Denoiser,
        pictures: Sequence[tuple[Picture, Tensor]],
        word: str,
        concept: Concept,
    ) -> dict[str, Tensor]:
        """Delta [o, d] float64 of every layer, trained for one concept."""
        ups, downs = zero_ups(refined, self.rank), {}
        for name, layer in cross_attention_projections(refined).items():
            draw = generator(self.seed, "adapter", word, name)
            down = torch.randn(self.rank, layer.in_features, generator=draw) / self.rank
            downs[name] = nn.Parameter(down.to(layer.weight.device, trained_dtype(layer)))
        unet = shifted(refined, model.half, {name: (up, downs[name]) for name, up in ups.items()})
        state = {f"{name}.{end}": part[name] for name in ups for end, part in (("up", ups), ("down", downs))}
        training = Training(
            name=f"mace, {word}",
            identity=f"{self!r} {concept!r} {word}",
            iterations=self.iterations,
            optimisers={"adapter": torch.optim.AdamW(state.values(), lr=self.lr)},
            state=state,
        )
        training.run(partial(self.loss, model, unet, pictures, word), rows=self.batch_size)
        return {name: (up @ downs[name]).detach().to("cpu", torch.float64) for name, up in ups.items()}

    def loss(
        self, model: Denoiser, unet: Any, pictures: Sequence[tuple[Picture, Tensor]], word: str, step: int,
        places: range | None = None,
    ) -> Tensor:  # fmt: skip
        """The masked attention to the word, squared and summed, mean over the latents of a step or some places."""
        number = {id(picture): i for i, (picture, _) in enumerate(pictures)}
        few = self.noised(model, [picture for picture, _ in pictures], step, word, places)
        with attention(unet) as found:
            model.epsilon(unet, few.z, few.timesteps, model.encode([picture.text for picture in few.pictures]))
        total = torch.zeros((), device=model.device, dtype=model.dtype)
        for row, picture in enumerate(few.pictures):
            columns, mask = token_columns(model.pipe, picture.text, word), pictures[number[id(picture)]][1]
            for probabilities in found:
                part = probabilities[row, :, :, columns] * _shrunk(mask, probabilities.shape[2])[None, :, None]
                total = total + part.to(model.dtype).square().sum()
        return total / len(few.pictures)

    def _zero(self, pipe: Pipeline) -> Tensor:
        width = next(iter(cross_attention_projections(pipe).values())).in_features
        return torch.zeros(width, width, dtype=torch.float64)


def _side(size: Sequence[int], pixels: int) -> tuple[int, int]:
    """Height and width of a layer with so many pixels, of a model with latents of this size."""
    height = round((pixels * size[0] / size[1]) ** 0.5)
    return height, pixels // height


def _map(values: Tensor, size: Sequence[int]) -> Tensor:
    """One number a pixel [pixels], as a picture [h, w] of the latents' size."""
    return F.interpolate(values.view(1, 1, *_side(size, len(values))), size=tuple(size), mode="bilinear")[0, 0]


def _shrunk(mask: Tensor, pixels: int) -> Tensor:
    """The mask for a layer, [pixels]: 1 where half of what it stands for is."""
    return (F.adaptive_avg_pool2d(mask[None, None], _side(mask.shape, pixels)).flatten() >= 0.5).to(mask.dtype)
