"""The negative prompt against diffusers' own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from erasebench import diffusion
from erasebench.types import Concept, Prompt
from methods.negative_prompt import NegativePrompt

CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
PROMPTS = [Prompt(id=str(i), text=text, seed=9 + i) for i, text in enumerate(["a cat", "a dog", ""])]


def latents(pipe, prompts, **options):
    return diffusion.sampling._sample(
        pipe, prompts, diffusion.encoding.Texts(pipe), (4, 8, 8), 5, options.get("scale", 7.5)
    )


def generators():
    return [torch.Generator().manual_seed(p.seed) for p in PROMPTS]


def test_latents_equal_those_of_diffusers(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    start = torch.stack([diffusion.noise(p, (4, 8, 8)) for p in PROMPTS]).double()
    theirs = pipe(
        [p.text for p in PROMPTS], negative_prompt=["cat, kitty"] * 3, latents=start, num_inference_steps=5,
        output_type="latent", height=64, width=64,
    ).images  # fmt: skip
    ours = latents(NegativePrompt().erase(pipe, CAT), PROMPTS)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert (ours - latents(pipe, PROMPTS)).abs().max() > 1e-3


def test_sdxl_equals_diffusers(tiny_xl_pipe):
    images = tiny_xl_pipe(
        [p.text for p in PROMPTS], negative_prompt=["cat, kitty"] * 3, generator=generators(),
        num_inference_steps=3, guidance_scale=7.5, height=64, width=64,
    ).images  # fmt: skip
    erased = NegativePrompt().erase(tiny_xl_pipe, CAT)
    for (_, image, _), theirs in zip(diffusion.generate(erased, PROMPTS, steps=3), images, strict=True):
        assert np.abs(np.asarray(image).astype(int) - np.asarray(theirs).astype(int)).max() <= 1


def test_a_batch_equals_its_images_one_by_one(make_pipe):
    erased = NegativePrompt().erase(make_pipe(dtype=torch.float64), CAT)
    together = latents(erased, PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(together[i : i + 1], latents(erased, [prompt]), rtol=1e-9, atol=1e-9)


def test_without_guidance_there_is_no_negative_prompt(tiny_pipe):
    erased = NegativePrompt().erase(tiny_pipe, CAT)
    assert torch.equal(latents(erased, PROMPTS, scale=1), latents(tiny_pipe, PROMPTS, scale=1))


def test_the_original_pipeline_is_untouched(tiny_pipe):
    before = latents(tiny_pipe, PROMPTS)
    erased = NegativePrompt().erase(tiny_pipe, CAT)
    assert not torch.equal(latents(erased, PROMPTS), before)
    assert torch.equal(latents(tiny_pipe, PROMPTS), before) and not hasattr(tiny_pipe, "guide")


def test_words_that_would_be_cut_and_a_second_guide_are_refused(tiny_pipe):
    with pytest.raises(ValueError, match="negative prompt must fit into 77 tokens"):
        NegativePrompt().erase(tiny_pipe, Concept(name="x", phrases=("x" * 100,)))
    with pytest.raises(ValueError, match="pipeline without a guide"):
        NegativePrompt().erase(NegativePrompt().erase(tiny_pipe, CAT), CAT)
