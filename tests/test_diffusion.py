"""Pipelines: parity with diffusers, forks that share storage, noise that depends on the seed alone, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, PNDMScheduler
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from erasebench import devices, diffusion
from erasebench.diffusion import sampling
from erasebench.types import Prompt

TEXTS = ["a cat", "", "two dogs, é", "x " * 100]
PROMPTS = [Prompt(id=str(i), text=text, seed=40 + i) for i, text in enumerate(["a cat", "a dog", "a cat", "sun", ""])]


def pixels(drawn):
    return {p.id: np.asarray(image).astype(int) for p, image, _ in drawn}


def generators(prompts):
    return [torch.Generator("cpu").manual_seed(p.seed) for p in prompts]


def theirs(pipe, prompts, **options):
    """diffusers' own call, from the same generators."""
    images = pipe([p.text for p in prompts], generator=generators(prompts), height=64, width=64, **options).images
    return {p.id: np.asarray(image).astype(int) for p, image in zip(prompts, images, strict=True)}


def largest_difference(a, b):
    assert a.keys() == b.keys()
    return max(np.abs(a[k] - b[k]).max() for k in a)


# --- text


@pytest.mark.parametrize("name", ["tiny_pipe", "tiny_xl_pipe"])
def test_encode_equals_the_pipelines_own_encoding(name, request):
    pipe = request.getfixturevalue(name)
    ours = diffusion.encode(pipe, TEXTS, batch_size=3)
    own = pipe.encode_prompt(TEXTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)[0]
    assert ours.shape == (4, 77, 32 if name == "tiny_pipe" else 64)
    assert not ours.requires_grad
    torch.testing.assert_close(ours, own, atol=1e-6, rtol=0)


def test_encode_refuses_nothing(tiny_pipe):
    with pytest.raises(ValueError, match="texts must not be empty"):
        diffusion.encode(tiny_pipe, [])


def test_texts_that_lose_their_end_are_found(tiny_pipe, tiny_xl_pipe):
    room = tiny_pipe.tokenizer.model_max_length - 2
    texts = ["x" * room, "x" * (room + 1), "", "x" * (room + 9)]  # a letter is a token here
    for pipe in (tiny_pipe, tiny_xl_pipe):
        assert diffusion.cut_texts(pipe, [*texts, texts[1]]) == {texts[1]: 1, texts[3]: 9}
    assert diffusion.cut_texts(tiny_pipe, []) == {}


def test_prompts_that_lose_their_end_are_counted_by_group_and_said(tiny_pipe, caplog):
    from erasebench import steps

    long = "x" * tiny_pipe.tokenizer.model_max_length
    prompts = [Prompt(id=str(i), text=text, group=g) for i, (text, g) in enumerate(
        [(long, "coco"), (long, "coco"), ("a", "coco"), (long, "attack"), ("a", "target")])]  # fmt: skip
    prompts.append(Prompt(id="e", text=long, group="target", embeds=np.zeros((2, 2), np.float32)))
    assert steps._truncated(tiny_pipe, prompts) == {"coco": 2, "attack": 1}
    assert "coco: 2 prompts of more than 75 tokens lose their end" in caplog.text


def test_tokens_are_padded_truncated_and_their_last_is_found(tiny_pipe):
    ids = diffusion.tokenise(tiny_pipe, TEXTS)
    assert ids.shape == (4, 77) and ids.dtype == torch.int64
    # one token per byte: "acat" is 4 tokens after SOS; empty texts have only SOS; the longest is cut before EOS
    assert diffusion.last_token(tiny_pipe, ["a cat", "", " ", "x " * 100]).tolist() == [4, 0, 0, 75]
    assert tiny_pipe.tokenizer.convert_ids_to_tokens(ids[0, 4].item()) == "t</w>"


# --- noise


@given(seed=st.integers(0, 2**40), text=st.text(max_size=5), scale=st.none() | st.floats(0, 10))
@settings(max_examples=20, deadline=None)
def test_noise_depends_on_the_seed_alone(seed, text, scale):
    expected = torch.randn((4, 2, 2), generator=torch.Generator("cpu").manual_seed(seed))
    assert torch.equal(diffusion.noise(Prompt(id="i", text=text, seed=seed, guidance_scale=scale), (4, 2, 2)), expected)


# --- generate


@pytest.mark.parametrize("scale", [7.5, 1.0])
def test_images_equal_those_of_diffusers(tiny_pipe, scale):
    ours = pixels(diffusion.generate(tiny_pipe, PROMPTS, steps=4, guidance_scale=scale))
    assert largest_difference(ours, theirs(tiny_pipe, PROMPTS, num_inference_steps=4, guidance_scale=scale)) <= 1
    assert min(image.std() for image in ours.values()) > 5  # there is something to compare


@pytest.mark.parametrize(
    "scheduler", [PNDMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, DDPMScheduler]
)
def test_every_kind_of_scheduler(tiny_pipe, scheduler):
    pipe = diffusion.fork(tiny_pipe)
    pipe.scheduler = scheduler.from_config(tiny_pipe.scheduler.config)
    ours = pixels(diffusion.generate(pipe, PROMPTS, steps=4))
    assert largest_difference(ours, theirs(pipe, PROMPTS, num_inference_steps=4, guidance_scale=7.5)) <= 1
    backwards = pixels(diffusion.generate(pipe, PROMPTS[::-1], steps=4, batch_size=2))
    assert largest_difference(ours, backwards) <= 1


def test_sdxl_equals_diffusers(tiny_xl_pipe):
    ours = pixels(diffusion.generate(tiny_xl_pipe, PROMPTS[:3], steps=3))
    assert largest_difference(ours, theirs(tiny_xl_pipe, PROMPTS[:3], num_inference_steps=3, guidance_scale=7.5)) <= 1


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batch_and_order_change_nothing(tiny_pipe, batch_size):
    whole = pixels(diffusion.generate(tiny_pipe, PROMPTS, steps=3, batch_size=16))
    other = pixels(diffusion.generate(tiny_pipe, PROMPTS[::-1], steps=3, batch_size=batch_size))
    assert largest_difference(whole, other) <= 1
    assert largest_difference({"0": whole["0"]}, {"0": whole["2"]}) > 1  # same text, other seed: another image


def test_without_memory_the_batch_is_halved_and_said_and_every_image_is_there(tiny_pipe, monkeypatch, caplog):
    prompts = [Prompt(id=str(i), text="a cat", seed=i) for i in range(7)]
    monkeypatch.setattr(devices, "_room", {})
    want = [np.asarray(image) for _, image, _ in diffusion.generate(tiny_pipe, prompts, steps=2, batch_size=2)]
    whole, asked = sampling._sample, []

    def little(pipe, batch, *rest):
        asked.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return whole(pipe, batch, *rest)

    monkeypatch.setattr(sampling, "_sample", little)
    drawn = list(diffusion.generate(tiny_pipe, prompts, steps=2, batch_size=6))
    assert asked == [6, 3, 1, 1, 1, 1, 1, 1, 1] and [p.id for p, _, _ in drawn] == [str(i) for i in range(7)]
    apart = [np.abs(np.asarray(image).astype(int) - w).max() for (_, image, _), w in zip(drawn, want, strict=True)]
    assert max(apart) <= 1
    assert "out of memory with 6 images at once; going on with 3" in caplog.text
    asked.clear()
    list(diffusion.generate(tiny_pipe, prompts[:2], steps=2, batch_size=6))
    assert asked == [1, 1]  # it is remembered

    def none(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(sampling, "_sample", none)
    with pytest.raises(torch.OutOfMemoryError):
        list(diffusion.generate(tiny_pipe, prompts, steps=2, batch_size=6))


def test_guidance_of_a_prompt_overrides_the_default_within_a_batch(tiny_pipe):
    mixed = [p.with_(guidance_scale=g) for p, g in zip(PROMPTS, [1.0, 3.0, None, 1.0, 9.0], strict=True)]
    together = pixels(diffusion.generate(tiny_pipe, mixed, steps=3, guidance_scale=5.0))
    alone = {}
    for p in PROMPTS:
        scale = mixed[int(p.id)].guidance_scale or 5.0
        alone |= pixels(diffusion.generate(tiny_pipe, [p], steps=3, guidance_scale=scale))
    assert largest_difference(together, alone) <= 1


def test_embeddings_stand_in_for_text(tiny_pipe, tiny_xl_pipe):
    for pipe in (tiny_pipe, tiny_xl_pipe):
        dog = diffusion.encode(pipe, ["a dog"])[0].numpy()
        prompts = [Prompt(id="0", text="a dog"), Prompt(id="1", text="a dog", embeds=dog)]
        drawn = pixels(diffusion.generate(pipe, prompts, steps=3))
        assert np.abs(drawn["0"] - drawn["1"]).max() <= 1
    cat = pixels(diffusion.generate(tiny_pipe, [Prompt(id="1", text="a cat")], steps=3))
    assert np.abs(drawn["1"] - cat["1"]).max() > 1


def test_height_and_width(tiny_pipe):
    ((_, image, status),) = diffusion.generate(tiny_pipe, PROMPTS[:1], steps=2, height=32, width=48)
    assert (image.size, image.mode, status) == ((48, 32), "RGB", "ok")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 30}, "multiples of 8 pixels; got 30x64"),
        ({"steps": 0}, "steps and batch_size must be at least 1"),
        ({"batch_size": 0}, "steps and batch_size must be at least 1"),
    ],
)
def test_bad_options_are_refused_at_once(tiny_pipe, options, message):
    with pytest.raises(ValueError, match=message):
        diffusion.generate(tiny_pipe, PROMPTS, **options)  # not even iterated


def test_embeddings_of_another_shape_are_refused(tiny_pipe):
    wrong = Prompt(id="p7", text="a", embeds=np.zeros((77, 31), np.float32))
    with pytest.raises(ValueError, match=r"prompt p7: embeds must have shape \(77, 32\); got \(77, 31\)"):
        diffusion.generate(tiny_pipe, [wrong])


def test_broken_images_are_statuses(tiny_pipe):
    conv = tiny_pipe.vae.decoder.conv_out
    for fill, status in ((float("nan"), "nan"), (float("inf"), "nan"), (0.0, "constant")):
        name = "vae.decoder.conv_out.weight"
        broken = diffusion.apply_tensors(tiny_pipe, {name: torch.full_like(conv.weight, fill)})
        assert [d[1:] for d in diffusion.generate(broken, PROMPTS[:2], steps=1)] == [(None, status)] * 2


def test_one_nan_prompt_does_not_spoil_its_batch(tiny_pipe):
    bad = Prompt(id="bad", text="a", embeds=np.full((77, 32), np.nan, np.float32))
    drawn = list(diffusion.generate(tiny_pipe, [PROMPTS[0], bad, PROMPTS[1]], steps=2))
    assert [status for *_, status in drawn] == ["ok", "nan", "ok"]


def test_images_come_as_they_are_made_and_models_may_take_turns(tiny_pipe):
    alone = pixels(diffusion.generate(tiny_pipe, PROMPTS, steps=2, batch_size=2))
    first = diffusion.generate(tiny_pipe, PROMPTS, steps=2, batch_size=2)
    second = diffusion.generate(tiny_pipe, PROMPTS[::-1], steps=2, batch_size=2)
    turns = list(zip(first, second, strict=True))
    assert largest_difference(alone, pixels(a for a, _ in turns)) == 0
    assert largest_difference(alone, pixels(b for _, b in turns)) <= 1
    half = diffusion.generate(tiny_pipe, PROMPTS, steps=2, batch_size=2)
    next(half)
    assert {type(p) for p in tiny_pipe.unet.attn_processors.values()} == {AttnProcessor2_0}
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def count_key_projections(pipe):
    module = next(iter(diffusion.cross_attention_projections(pipe).values()))
    calls, forward = [], module.forward
    module.forward = lambda x: calls.append(1) or forward(x)
    images = pixels(diffusion.generate(pipe, PROMPTS, steps=5))
    return len(calls), images


def test_keys_are_projected_once_a_batch_unless_the_processors_are_special(tiny_pipe):
    calls, cached = count_key_projections(diffusion.fork(tiny_pipe))
    assert calls == 1
    plain = diffusion.fork(tiny_pipe)
    plain.unet.set_attn_processor(AttnProcessor())
    calls, images = count_key_projections(plain)
    assert calls == 5
    assert largest_difference(cached, images) <= 1
    assert {type(p) for p in plain.unet.attn_processors.values()} == {AttnProcessor}


def test_hooks_see_every_step(tiny_pipe):
    pipe, seen = diffusion.fork(tiny_pipe), []
    for module in diffusion.cross_attention_projections(pipe).values():
        module.register_forward_hook(lambda *_: seen.append(1))
    list(diffusion.generate(pipe, PROMPTS[:1], steps=3))
    assert len(seen) == 3 * 14


# --- forks and their weights


def tensors(pipe):
    parts = {n: m for n, m in pipe.components.items() if isinstance(m, nn.Module)}
    return {f"{n}.{k}": t for n, m in parts.items() for k, t in [*m.named_parameters(), *m.named_buffers()]}


@pytest.mark.parametrize("name", ["tiny_pipe", "tiny_xl_pipe"])
def test_fork_shares_every_tensor_and_no_module(name, request):
    pipe = request.getfixturevalue(name)
    new = diffusion.fork(pipe)
    ours, original = tensors(new), tensors(pipe)
    assert ours.keys() == original.keys()
    assert all(ours[k].data_ptr() == original[k].data_ptr() for k in original)
    assert type(new) is type(pipe)
    assert not set(map(id, new.unet.modules())) & set(map(id, pipe.unet.modules()))
    assert diffusion.fingerprint(new) == diffusion.fingerprint(pipe)


def test_editing_a_fork_leaves_the_original(tiny_pipe):
    before = diffusion.fingerprint(tiny_pipe)
    new = diffusion.fork(tiny_pipe)
    name, module = next(iter(diffusion.cross_attention_projections(new).items()))
    module.weight = nn.Parameter(module.weight * 2, requires_grad=False)
    new.unet.requires_grad_(True)
    assert diffusion.fingerprint(tiny_pipe) == before != diffusion.fingerprint(new)
    assert not any(p.requires_grad for p in tiny_pipe.unet.parameters())
    assert list(diffusion.changed_tensors(new, tiny_pipe)) == [f"unet.{name}.weight"]


def test_changed_tensors_rebuild_the_model(tiny_pipe, make_pipe):
    other = make_pipe(seed=1)
    changed = diffusion.changed_tensors(other, tiny_pipe)
    assert {name.split(".")[0] for name in changed} == {"unet", "vae", "text_encoder"}
    rebuilt = diffusion.apply_tensors(tiny_pipe, changed)
    assert diffusion.fingerprint(rebuilt) == diffusion.fingerprint(other) != diffusion.fingerprint(tiny_pipe)
    assert diffusion.changed_tensors(rebuilt, other) == {}


def test_unfitting_tensors_are_refused(tiny_pipe, make_pipe):
    with pytest.raises(ValueError, match=r"tensor unet\.nothing\.weight does not exist"):
        diffusion.apply_tensors(tiny_pipe, {"unet.nothing.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"unet\.conv_in\.bias must have shape \[16\]; got \[3\]"):
        diffusion.apply_tensors(tiny_pipe, {"unet.conv_in.bias": torch.zeros(3)})
    with pytest.raises(ValueError, match="must have the architecture of the original model"):
        diffusion.changed_tensors(make_pipe(width=64), tiny_pipe)


def test_cross_attention_projections_are_all_of_them_in_order(tiny_pipe, make_pipe):
    found = diffusion.cross_attention_projections(tiny_pipe)
    names = [n for n, _ in tiny_pipe.unet.named_modules()]
    assert len(found) == 14 and sorted(found, key=names.index) == list(found)
    assert all(m.in_features == 32 and m.bias is None for m in found.values())
    bare = make_pipe()
    bare.unet = nn.Sequential()
    with pytest.raises(ValueError, match="found none"):
        diffusion.cross_attention_projections(bare)


def test_fingerprint_sees_scheduler_vocabulary_and_dtype(tiny_pipe, make_pipe):
    seen = {diffusion.fingerprint(tiny_pipe), diffusion.fingerprint(make_pipe(dtype=torch.float64))}
    other = diffusion.fork(tiny_pipe)
    other.scheduler = DDPMScheduler.from_config(tiny_pipe.scheduler.config)
    seen.add(diffusion.fingerprint(other))
    words = make_pipe()
    words.tokenizer.add_tokens(["<cat>"])
    seen.add(diffusion.fingerprint(words))
    assert len(seen) == 4
    assert diffusion.fingerprint(make_pipe()) == diffusion.fingerprint(tiny_pipe)


@pytest.mark.parametrize("kind", ["make_pipe", "make_xl_pipe"])
def test_leading_rows_do_not_depend_on_the_rows_that_follow(kind, request):
    pipe = request.getfixturevalue(kind)(dtype=torch.float64)
    texts = ["a cat", "a dog on a sofa", ""]
    short, whole = diffusion.encode(pipe, texts, rows=9), diffusion.encode(pipe, texts)
    assert short.shape == (3, 9, whole.shape[2])
    torch.testing.assert_close(short, whole[:, :9], rtol=0, atol=1e-12)
