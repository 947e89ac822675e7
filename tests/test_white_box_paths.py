"""Every white-box path by finite differences, against a forward pass that shares no code with the attacks."""

from __future__ import annotations

import pytest
import torch

from attacks import denoising, free_tokens
from attacks.inverse_edit import InverseEdit
from attacks.p4d import P4D, P4DOriginal
from attacks.side_by_side import Batch, Slot
from attacks.unlearndiffatk import UnlearnDiffAtk
from erasebench import diffusion
from erasebench.report.checks import search_flags
from tests.white_box import CAT, PROMPTS, SAMPLER, Brightness, blinded

ATTACKS = {
    "unlearndiffatk": UnlearnDiffAtk(**SAMPLER, timesteps=(500,), iterations=1),
    "p4d": P4D(**SAMPLER, timesteps=(500,), iterations=1),
    "p4d_n": P4DOriginal(**SAMPLER, tokens=4, iterations=1, query_every=1),
    "p4d_k": P4DOriginal(**SAMPLER, variant="k", iterations=1, query_every=1),
}


def predicting(pipe, kind):
    fork = diffusion.fork(pipe)
    fork.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type=kind)
    return fork


@pytest.fixture(scope="module")
def pipe(make_pipe):
    return make_pipe(dtype=torch.float64)


def states_by_hook(pipe, ids, rows, embeddings):
    """transformers' own text encoder on token ids, with some of its token embeddings replaced while it runs."""

    def replace(_module, _inputs, output):
        output = output.clone()
        output[0, rows] = embeddings
        return output

    handle = pipe.text_encoder.get_input_embeddings().register_forward_hook(replace)
    try:
        return pipe.text_encoder(ids[None])[0]
    finally:
        handle.remove()


def goal_by_hand(attack, original, text, x0, noise, x_t, t):
    """What the model under attack should predict: the original's word (P4D), or what training asked for."""
    if attack.name.startswith("p4d"):
        tokens = original.tokenizer(text, padding="max_length", return_tensors="pt").input_ids
        return original.unet(x_t, t, encoder_hidden_states=original.text_encoder(tokens)[0]).sample
    if original.scheduler.config.prediction_type == "v_prediction":
        return original.scheduler.get_velocity(x0, noise, t)
    return noise


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ATTACKS)
@torch.no_grad()
def test_the_gradient_of_every_attack_by_finite_differences(pipe, name, kind):
    attack, text = ATTACKS[name], PROMPTS[2].text
    original = predicting(pipe, kind)
    erased = blinded(original)
    g = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(1, 4, 8, 8, generator=g, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([400])

    vocabulary = free_tokens.Vocabulary.of(erased)
    ids = free_tokens.prompt_tokens(erased.tokenizer, text) if attack.keeps_prompt() else []
    layout = free_tokens.lay_out(erased.tokenizer, ids, attack.places(len(ids), CAT))
    x = attack.start(vocabulary, len(layout.free), g)
    record = {"forward": 0, "backward": 0, "gradient": "none"}
    slot = Slot(0, PROMPTS[2], layout, x0[0], x, record)
    batch = Batch(erased, original, vocabulary, [slot], seed=0)
    given = {}  # what the attack's own loop draws, and the gradient that it steps with

    def draw(step, timestep):
        return noise, torch.rand(len(x), generator=g, dtype=torch.float64), t

    def predict(x_t, t, tokens):
        given["embeddings"] = tokens.detach().clone()
        return Batch.predict(batch, x_t, t, tokens)

    def backward(losses, leaf, **options):
        given["loss"] = losses.detach()
        Batch.backward(batch, losses, leaf)  # not clipped
        given["pulled"] = slot.x.grad.clone()

    batch.draw, batch.predict, batch.backward = draw, predict, backward
    attack.descend(batch)
    embeddings, (loss,), pulled = given["embeddings"], given["loss"], given["pulled"]
    chosen = [int((vocabulary.table - e).square().sum(1).argmin()) for e in embeddings]
    assert torch.equal(vocabulary.table[chosen], embeddings)
    x_t, _ = denoising.noised(erased.scheduler, x0, noise, t)

    by_hand = goal_by_hand(attack, original, text, x0, noise, x_t, t)

    def measured(e):
        states = states_by_hook(erased, layout.ids, layout.free, e)
        return (erased.unet(x_t, t, encoder_hidden_states=states).sample - by_hand).square().mean().item()

    def change(direction, step=2e-6):
        return (measured(embeddings + step * direction) - measured(embeddings - step * direction)) / (2 * step)

    assert loss.item() == pytest.approx(measured(embeddings), rel=1e-9)
    assert (pulled != 0).any(1).all()
    for _ in range(
        4
    ):  # rows of UnlearnDiffAtk are probabilities of words, so that a step of theirs is one of embeddings
        step = torch.randn(pulled.shape, generator=g, dtype=torch.float64)
        moved = step @ vocabulary.table if name == "unlearndiffatk" else step
        assert (pulled * step).sum().item() == pytest.approx(change(moved), rel=1e-4, abs=1e-9)
    for row, column in ((0, 3), (len(chosen) - 1, 11)):  # what the rows that are optimised are pulled by
        direction = torch.zeros_like(embeddings)
        if name == "unlearndiffatk":  # a little more of one word's probability is a little more of its embedding
            direction[row] = vocabulary.table[column]
        else:  # straight through the projection
            direction[row, column] = 1
        assert pulled[row, column].item() == pytest.approx(change(direction), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("name", [*ATTACKS, "inverse_edit"])
def test_what_sound_searches_report_raises_no_flag(pipe, name):
    attack = ATTACKS.get(name) or InverseEdit(**SAMPLER)
    found = attack.attack(blinded(pipe), pipe, PROMPTS[:2], CAT, Brightness())
    assert {p.info["gradient"] for p in found} == {"none" if name == "inverse_edit" else "ok"}
    assert search_flags([p.info for p in found]) == []
    deaf = diffusion.fork(pipe)
    for key, layer in diffusion.cross_attention_projections(deaf).items():
        if key.endswith("to_v"):
            layer.weight = torch.nn.Parameter(torch.zeros_like(layer.weight), requires_grad=False)
    found = attack.attack(deaf, pipe, PROMPTS[:1], CAT, Brightness())
    flags = [flag["flag"] for flag in search_flags([p.info for p in found])]
    assert flags == ([] if name == "inverse_edit" else ["bad_gradient"])
