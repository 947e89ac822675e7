"""Pictures that fine-tuning erasures learn from: drawn by the original model, kept in the store, shared by all of them.

A picture depends on the model, its text, its number among the pictures of that text and how it is drawn, never on the
method, so that every method that wants the same ones finds them there (``cache/images`` of the results folder).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from erasebench import fields, progress, store
from erasebench.diffusion import fingerprint, generate, picture_latents, tokenise
from erasebench.store import workspace
from erasebench.store.sources import source_hash
from erasebench.types import Concept, Pipeline, Prompt, Status, seed_of
from methods.fine_tuning import FineTuning, generator, uniform
from methods.on_policy import Denoiser

log = logging.getLogger(__name__)
SAMPLER = "erasebench.diffusion.sampling.generate"  # whose code decides every picture
BATCH = 16  # pictures drawn at once and committed together


class Picture(NamedTuple):
    """A picture to learn from."""

    text: str  # it was drawn with
    asked: str  # a second text, that the method has for it
    latent: Tensor  # [channels, h, w], float32 on the CPU


class Noised(NamedTuple):
    """Pictures at random noise levels: what one training step is about."""

    pictures: list[Picture]
    z: Tensor  # [b, channels, h, w]
    noise: Tensor  # that is in them
    timesteps: list[int]


@dataclass(frozen=True, kw_only=True)
class FromImages(FineTuning):
    """Fields of every erasure that learns from pictures of the original model.

    ``steps`` and ``guidance_scale`` are those the pictures are drawn with, by the pipeline's own scheduler.

    Args:
        images: pictures of each subject, >= 1.
        templates: texts with ``{}`` where the subject stands; pictures take turns among them.

    Raises:
        ValueError: a value out of its range, before any weight is loaded.

    >>> FromImages(templates=["a cat"])
    Traceback (most recent call last):
    ValueError: templates must each hold {} once, where the subject stands; got 'a cat'
    """

    images: int = 200
    templates: Sequence[str] = ("a photo of a {}",)

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.integer("images", self.images, least=1)
        object.__setattr__(self, "templates", fields.texts("templates", self.templates, least=1))
        for template in self.templates:
            if template.count("{}") != 1 or template.count("{") != 1:
                raise ValueError(f"templates must each hold {{}} once, where the subject stands; got {template!r}")

    def anchored(self, concept: Concept) -> list[tuple[str, str]]:
        """(word to erase, what takes its place) of every concept.

        Raises:
            ValueError: a concept without an anchor.
        """
        many = None if self.phrases == "all" else 1
        for part in concept.singles:
            if not part.anchor.strip():
                raise ValueError(
                    f"concept {part.name!r} must have an anchor, which takes its place; got none; write concept.anchor="
                )
        return [(word, part.anchor) for part in concept.singles for word in part.phrases[:many]]

    def pictures(
        self,
        pipe: Pipeline,
        subjects: Sequence[tuple[str, str]],
        *,
        each: int | None = None,
        altered: Callable[[Image.Image, int], Image.Image] | None = None,
    ) -> list[Picture]:
        """``images`` pictures of the first of each pair, each with the second in the same sentence for ``asked``.

        Args:
            pipe: draws them.
            subjects: pairs of what is drawn and what is asked.
            each: another number of pictures than ``images``.
            altered: a picture and its number -> what is learnt in its place.
        """
        texts: list[tuple[Prompt, str]] = []
        for subject, other in subjects:
            for i in range(each or self.images):
                template, copy = self.templates[i % len(self.templates)], i // len(self.templates)
                text = template.format(subject)
                seed = seed_of("training image", text, copy) >> 8
                prompt = Prompt(id=f"{text} {copy}", text=text, seed=seed)
                texts.append((prompt, template.format(other)))
        drawn = drawn_once(pipe, [prompt for prompt, _ in texts], steps=self.steps, guidance_scale=self.guidance_scale)
        whole = [i for i, image in enumerate(drawn) if image is not None]
        if len(whole) < len(drawn):
            log.warning(
                "%d of %d training images are NaN or one colour and left out", len(drawn) - len(whole), len(drawn)
            )
        if not whole:
            raise ValueError(f"the model must draw {texts[0][0].text!r}; got no usable image; check model.dtype")
        kept = [(i, image) for i, image in enumerate(drawn) if image is not None]
        latents = picture_latents(pipe, [altered(image, i) if altered else image for i, image in kept])
        return [Picture(texts[i][0].text, texts[i][1], z) for i, z in zip(whole, latents, strict=True)]

    def noised(
        self, model: Denoiser, pictures: Sequence[Picture], step: int, what: str = "", places: range | None = None
    ) -> Noised:
        """Pictures at uniform timesteps, z = sqrt(a) x + sqrt(1 - a) e; random by (seed, step, place).

        ``batch_size`` of them, or those at some places of such a batch.
        """
        rows = range(self.batch_size) if places is None else places
        draws = [generator(self.seed, step, row, what) for row in rows]
        chosen = [pictures[uniform(0, len(pictures), draw)] for draw in draws]
        return noised(model, chosen, draws)


@dataclass(frozen=True, kw_only=True)
class Remembering(FromImages):
    """Fields of those that learn from pictures of what should stay, too.

    Args:
        remain: subjects of the pictures to keep; None: the anchors.

    Raises:
        ValueError: nothing that is no text, before any weight is loaded.
    """

    remain: Sequence[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.remain is not None:
            object.__setattr__(self, "remain", fields.texts("remain", self.remain, least=1))

    def others(self, concept: Concept) -> list[str]:
        """The subjects to keep, without those that are erased.

        Raises:
            ValueError: there is none.
        """
        if self.remain is None:
            return list(dict.fromkeys(anchor for _, anchor in self.anchored(concept)))
        erased = {text.casefold() for part in concept.singles for text in part.phrases}
        found = [text for text in self.remain if text.casefold() not in erased]
        if not found:
            raise ValueError(f"remain must name a subject that is not {concept.name!r}; got none; add others to it")
        return found

    def remaining(self, pipe: Pipeline, concept: Concept) -> list[Picture]:
        """As many pictures to keep as there are to forget, spread over the subjects; of few, ``images`` of each."""
        others, erased = self.others(concept), len(self.words(concept))
        each = self.images if len(others) <= erased else -(-self.images * erased // len(others))
        return self.pictures(pipe, [(text, text) for text in others], each=each)


def denoising(model: Denoiser, unet: Any, few: Noised) -> Tensor:
    """The usual training loss of noised pictures with their own texts."""
    text = model.encode([picture.text for picture in few.pictures])
    return F.mse_loss(model.epsilon(unet, few.z, few.timesteps, text), few.noise)


def noised(model: Denoiser, pictures: list[Picture], draws: Sequence[torch.Generator]) -> Noised:
    """These pictures with random timesteps and noise."""
    timesteps = [uniform(0, model.total, draw) for draw in draws]
    noise, level = model.noise(draws), model.level(timesteps)
    clean = torch.stack([picture.latent for picture in pictures]).to(noise)
    return Noised(pictures, level.sqrt() * clean + (1 - level).sqrt() * noise, noise, timesteps)


def drawn_once(
    pipe: Pipeline, prompts: Sequence[Prompt], *, steps: int, guidance_scale: float
) -> list[Image.Image | None]:
    """Pictures of the prompts in order (None: NaN or one colour), from the store or into it; outside a run drawn anew.

    Batches are filled up, so that no picture depends on how many others are wanted. Two runs that want the same at once
    both draw and write the same.
    """
    root = workspace.current().root
    key = store.key("training images", fingerprint(pipe), steps, guidance_scale, source_hash([SAMPLER]))
    found: dict[str, Image.Image | None] = {}
    by_digest = {prompt.digest(): prompt for prompt in prompts}
    left = list(by_digest) if root is None else store.missing(store.image_folder(root, key), by_digest)
    with progress.bar(desc="training images", total=len(left), unit="image") as bar:
        for start in range(0, len(left), BATCH):
            part = [by_digest[digest] for digest in left[start : start + BATCH]]
            full = part + [part[0]] * (BATCH - len(part))
            drawn = generate(pipe, full, steps=steps, guidance_scale=guidance_scale, batch_size=BATCH)
            rows: list[tuple[str, Image.Image | None, Status]] = [
                (prompt.digest(), image, status) for prompt, image, status in drawn
            ][: len(part)]
            found |= {digest: image for digest, image, _ in rows}
            if root is not None:
                store.write_shard(store.image_folder(root, key), start // BATCH, rows)
            bar.update(len(part))
    if root is not None:
        kept = store.read_images(store.image_folder(root, key), [d for d in by_digest if d not in found])
        found |= {digest: image for digest, (image, _) in kept.items()}
    return [found[prompt.digest()] for prompt in prompts]


def token_columns(pipe: Any, text: str, word: str) -> list[int]:
    """Where the tokens of a word stand in a text: indices into its token ids, the start token being 0.

    Raises:
        ValueError: the text does not hold the word's tokens in a row.
    """
    ids = tokenise(pipe, [text])[0].tolist()
    own = pipe.tokenizer(word, add_special_tokens=False).input_ids
    for start in range(1, len(ids) - len(own) + 1):
        if ids[start : start + len(own)] == own:
            return list(range(start, start + len(own)))
    raise ValueError(
        f"text {text!r} must hold {word!r} as a word of its own; its tokens are not there; change templates"
    )
