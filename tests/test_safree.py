"""SAFREE against its equations, one token and one image at a time."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from erasebench import diffusion
from erasebench.types import Concept, Prompt
from methods.safree import SAFREE, ProjectionGuide, pooled, projector, weakened, without_each

CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
PROMPTS = [
    Prompt(id="0", text="a cat", seed=3),
    Prompt(id="1", text="kitty on mat", seed=4, guidance_scale=2.0),
    Prompt(id="2", text="", seed=5),
]
SETTINGS = {"upper": 3, "steepness": 1.0, "midpoint": 2.0}  # the tiny model's texts are less alike than CLIP's


def latents(pipe, prompts, steps=6):
    texts = diffusion.encoding.Texts(pipe)
    return diffusion.sampling._sample(pipe, prompts, texts, (4, 8, 8), steps, 7.5)


def end_state(pipe, ids):
    """The pooled output of the text encoder for one list of token ids, start and end included."""
    return pipe.text_encoder(torch.tensor([ids])).last_hidden_state[0, len(ids) - 1].numpy().astype(float)


def onto(rows):
    q, _ = np.linalg.qr(np.array(rows).T)
    return q @ q.T


@torch.no_grad()
def by_hand(pipe, text, words, s):
    """Guarded states, and the last guarded step: the equations written out."""
    row = pipe.encode_prompt(text, "cpu", 1, False)[0][0]
    ids = pipe.tokenizer(text).input_ids
    n = len(ids) - 2
    outside = np.eye(row.shape[1]) - onto([end_state(pipe, pipe.tokenizer(w).input_ids) for w in words])
    masked = [end_state(pipe, [0 if k == i + 1 else t for k, t in enumerate(ids)]) for i in range(n)]
    inside, e = onto(masked), row.double().numpy()
    far = [np.linalg.norm(outside @ p) for p in masked]
    safe, taken = e.copy(), 0
    for i in range(n):
        if far[i] > (1 + s["alpha"]) * np.mean([f for k, f in enumerate(far) if k != i]):
            safe[i + 1], taken = outside @ inside @ e[i + 1], taken + 1
    cosines = []
    for i in range(n + 2):
        p = outside @ inside @ e[i]
        cosines.append(p @ e[i] / np.linalg.norm(p) / np.linalg.norm(e[i]))
    beta = 1 - np.mean(cosines)
    last = round(s["upper"] / (1 + math.exp(-2 * s["steepness"] * (10 * beta - s["midpoint"]))))
    return torch.from_numpy(safe), last, taken, beta


@torch.no_grad()
def drawn_by_hand(pipe, prompt, safe, last, steps=6):
    g = 7.5 if prompt.guidance_scale is None else prompt.guidance_scale
    empty, text = (pipe.encode_prompt(t, "cpu", 1, False)[0] for t in ("", prompt.text))
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    x = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(prompt.seed)).double()
    for i, t in enumerate(scheduler.timesteps):
        asked = safe[None].to(text) if i <= last else text
        e0, e1 = (pipe.unet(x, t, encoder_hidden_states=c).sample for c in (empty, asked))
        x = scheduler.step(e0 + g * (e1 - e0), t, x).prev_sample
    return x


def test_every_image_equals_the_equations_and_only_guarded_steps_are(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    hand = [by_hand(pipe, p.text, CAT.phrases, SETTINGS | {"alpha": 0.01}) for p in PROMPTS[:2]]
    assert all(0 < taken < 10 for _, _, taken, _ in hand)
    beta = np.mean([h[3] for h in hand])
    settings = SETTINGS | {"midpoint": 10 * float(beta)}  # so that the steps are neither none nor all
    guard = SAFREE(**settings, re_attention=[]).erase(pipe, CAT)
    together, plain = latents(guard, PROMPTS), latents(pipe, PROMPTS)
    torch.testing.assert_close(together[2], plain[2], rtol=1e-9, atol=1e-9)  # nothing to guard in an empty prompt
    for i, prompt in enumerate(PROMPTS[:2]):
        safe, last, _, _ = by_hand(pipe, prompt.text, CAT.phrases, settings | {"alpha": 0.01})
        assert 0 < last < 5
        torch.testing.assert_close(together[i : i + 1], drawn_by_hand(pipe, prompt, safe, last), rtol=1e-8, atol=1e-8)
        assert (together[i] - plain[i]).abs().max() > 1e-4
        torch.testing.assert_close(together[i : i + 1], latents(guard, [prompt]), rtol=1e-8, atol=1e-8)


def test_low_frequencies_are_weakened_where_they_are_larger_and_nothing_else():
    a, b = torch.randn(2, 1, 2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    spectrum, other = np.fft.fft2(a.numpy()), np.fft.fft2(b.numpy())
    changed = 0
    for c in range(2):
        for y in (-1, 0):
            for x in (-1, 0):
                if abs(spectrum[0, c, y, x]) > abs(other[0, c, y, x]):
                    spectrum[0, c, y, x] *= 0.2
                    changed += 1
    assert 0 < changed < 8
    torch.testing.assert_close(weakened(a, b, 0.2), torch.from_numpy(np.fft.ifft2(spectrum).real))
    torch.testing.assert_close(weakened(a, a, 0.2), a)


def test_re_attention_changes_guarded_prompts_only_and_is_off_at_one(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    off, one, on = (
        latents(SAFREE(**SETTINGS, re_attention=s).erase(pipe, CAT), PROMPTS) for s in ([], [1.0, 1.0], [0.9, 0.2])
    )
    torch.testing.assert_close(one, off, rtol=1e-9, atol=1e-9)
    assert (on[0] - off[0]).abs().max() > 1e-4
    torch.testing.assert_close(on[2], off[2], rtol=1e-9, atol=1e-9)


def test_the_original_and_its_unet_are_left_without_guide_or_hook(tiny_pipe):
    before, weights = latents(tiny_pipe, PROMPTS), diffusion.fingerprint(tiny_pipe)
    guard = SAFREE(**SETTINGS).erase(tiny_pipe, CAT)
    kept = diffusion.fingerprint(guard)
    assert not torch.equal(latents(guard, PROMPTS), before)
    assert torch.equal(latents(tiny_pipe, PROMPTS), before) and not hasattr(tiny_pipe, "guide")
    assert diffusion.fingerprint(tiny_pipe) == weights == kept == diffusion.fingerprint(guard)


def test_it_guards_an_edited_pipeline_and_comes_back_from_json(tiny_pipe):
    weight = "unet.conv_in.weight"
    edited = diffusion.apply_tensors(tiny_pipe, {weight: tiny_pipe.unet.conv_in.weight * 1.5})
    guard = SAFREE(**SETTINGS).erase(edited, CAT)
    assert set(diffusion.changed_tensors(guard, tiny_pipe)) == {weight}
    assert not torch.equal(latents(guard, PROMPTS), latents(edited, PROMPTS))
    assert ProjectionGuide(**json.loads(json.dumps(asdict(guard.guide)))) == guard.guide


def test_embeddings_have_no_tokens_and_are_drawn_unguarded(tiny_pipe):
    embeds = diffusion.encode(tiny_pipe, ["a cat"])[0].numpy()
    prompt = [Prompt(id="e", text="a cat", seed=3, embeds=embeds)]
    assert torch.equal(latents(SAFREE(**SETTINGS, re_attention=[]).erase(tiny_pipe, CAT), prompt),
                       latents(tiny_pipe, prompt))  # fmt: skip


def test_the_end_of_text_is_turned_only_if_asked_for(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    row = diffusion.encode(pipe, ["a cat"])[0]
    words, whole = (SAFREE(end=end).erase(pipe, CAT).guide for end in (False, True))
    outside = torch.eye(32, dtype=torch.float64) - projector(pooled(pipe, CAT.phrases))
    (a, _), (b, _) = (guide.guarded(pipe, PROMPTS[0], row, outside) for guide in (words, whole))
    assert torch.equal(a[5:], row[5:]) and torch.equal(a[:5], b[:5])  # start, four tokens
    inside = projector(without_each(pipe, "a cat", 4))
    torch.testing.assert_close(b[5:], row[5:] @ inside @ outside)


def test_the_words_are_a_negative_prompt_only_if_asked_for(tiny_pipe):
    assert SAFREE().erase(tiny_pipe, CAT).guide.empty == ""
    assert SAFREE(words=["a", "b"], negative_prompt=True).erase(tiny_pipe, CAT).guide.empty == "a, b"


def test_what_cannot_be_guarded_is_refused(tiny_pipe, tiny_xl_pipe):
    with pytest.raises(ValueError, match="one text encoder"):
        SAFREE().check(CAT, {"text_encoder_2.x": (1,)})
    with pytest.raises(ValueError, match="one text encoder"):
        SAFREE().erase(tiny_xl_pipe, CAT)
    with pytest.raises(ValueError, match="pipeline without a guide"):
        SAFREE().erase(SAFREE().erase(tiny_pipe, CAT), CAT)
    with pytest.raises(ValueError, match="words must fit into 77 tokens"):
        SAFREE().erase(tiny_pipe, Concept(name="x", phrases=("x" * 100,)))
    for bad, message in (
        ({"alpha": -1}, "alpha"), ({"upper": -1}, "upper"), ({"steepness": 0}, "steepness"), ({"words": []}, "words"),
        ({"re_attention": [0.1, 0.1, 0.1]}, "at most 2"), ({"validate": "maybe"}, "validate"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            SAFREE(**bad)
