"""The loop behind every fine-tuning erasure, its layer sets, and the latents it trains on."""

from __future__ import annotations

import runpy
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from erasebench import cell as cell  # registers ${labels:}
from erasebench import conf_folder
from erasebench.store import workspace
from methods import fine_tuning
from methods.fine_tuning import FineTuning, Training, layer_names, student, with_weights
from methods.on_policy import Denoiser

slow = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_training.py"))))
RECIPES = sorted(
    path.stem for name in ("esd_[!f]*", "esd_full", "sdd", "eap_*")
    for path in (conf_folder() / "method").glob(f"{name}.yaml")
)  # fmt: skip


def recipe(name, *overrides):
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", ["model=emoji", f"method={name}", *overrides])


def problem():
    """Five steps of two alternating optimisers on a quadratic, and the tensors they train."""
    a, b = (torch.nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64) + i) for i in range(2))
    training = Training(
        name="toy",
        identity="toy",
        iterations=9,
        optimisers={"weights": torch.optim.Adam([a], lr=0.1), "concepts": torch.optim.AdamW([b], lr=0.2)},
        state={"a": a, "b": b},
    )

    def loss(step):
        draw = fine_tuning.generator(0, step)
        return ((a * b - torch.rand(5, generator=draw, dtype=torch.float64)) ** 2).sum()

    return training, loss, (a, b)


def turn(step):
    return "concepts" if step % 3 == 2 else "weights"


def test_the_loop_is_the_plain_one():
    training, loss, (a, b) = problem()
    training.run(loss, turn=turn)
    x, y = (torch.nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64) + i) for i in range(2))
    first, second = torch.optim.Adam([x], lr=0.1), torch.optim.AdamW([y], lr=0.2)
    for step in range(9):
        noise = torch.rand(5, generator=fine_tuning.generator(0, step), dtype=torch.float64)
        first.zero_grad()
        second.zero_grad()
        ((x * y - noise) ** 2).sum().backward()
        (second if step % 3 == 2 else first).step()
    assert torch.equal(a, x) and torch.equal(b, y)


@pytest.mark.parametrize("at", [1, 4, 8])
def test_killed_and_resumed_ends_in_the_same_bits(tmp_path, monkeypatch, at):
    monkeypatch.setattr(fine_tuning, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(fine_tuning, "SAVE_SHARE", float("inf"))
    training, loss, whole = problem()
    training.run(loss, turn=turn)

    def killed(step):
        if step == at:
            raise KeyboardInterrupt
        return loss(step)

    training, loss, _ = problem()
    with pytest.raises(KeyboardInterrupt), workspace.use(tmp_path / "work"):
        training.run(killed, turn=turn)
    training, loss, parts = problem()
    taken = []
    with workspace.use(tmp_path / "work"):
        training.run(lambda step: taken.append(step) or loss(step), turn=turn)
    assert taken == list(range(at, 9))
    assert all(torch.equal(x, y) for x, y in zip(whole, parts, strict=True))


def test_progress_of_another_request_is_not_resumed(tmp_path):
    workspace.Workspace(tmp_path).save("training", {"state.a": torch.ones(5)}, step=8, identity="another")
    training, loss, _ = problem()
    taken = []
    with workspace.use(tmp_path):
        training.run(lambda step: taken.append(step) or loss(step), turn=turn)
    assert taken == list(range(9))


@pytest.mark.parametrize("broken", ["loss", "gradient's norm"])
def test_nan_stops_with_the_step_named_and_the_state_before_it_kept(tmp_path, broken):
    training, loss, (a, b) = problem()

    def spoilt(step):
        good.append((a.detach().clone(), b.detach().clone()))
        value = loss(step)
        if step != 5:
            return value
        return value * float("nan") if broken == "loss" else value + (b.sum() * 0).sqrt()

    good: list[tuple[torch.Tensor, torch.Tensor]] = []
    message = rf"toy: {broken} must be finite; got \S+ at step 5 of 9; the state before it is kept in .*; use a smaller"
    with pytest.raises(FloatingPointError, match=message), workspace.use(tmp_path):
        training.run(spoilt, turn=turn)
    tensors, values = workspace.Workspace(tmp_path).load("training")
    assert values["step"] == 5 and torch.equal(tensors["state.a"], good[5][0])
    assert torch.equal(tensors["state.b"], good[5][1]) and torch.isfinite(a).all()


def test_gradients_are_clipped_to_a_norm():
    x = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimiser = torch.optim.SGD([x], lr=1.0)
    Training(name="", identity="", iterations=1, optimisers={"weights": optimiser}, state={"x": x}, clip=1.0).run(
        lambda step: 10 * x.square().sum() / 2
    )
    torch.testing.assert_close(x.detach(), torch.tensor([2.4, 3.2]))


def expected(unet, layers):
    """The layer sets once more, from the names alone; normalisation layers are those with a norm in their name."""
    names = [name for name, _ in unet.named_parameters()]
    outer = [n for n in names if n.split(".")[0] in ("conv_norm_out", "conv_out", "time_embedding")]
    cross = [n for n in names if "attn2" in n]
    return {
        "xattn": cross,
        "xattn_strict": [n for n in cross if n.endswith(("to_k.weight", "to_v.weight"))],
        "noxattn": [n for n in names if n not in cross and n not in outer],
        "noxattn_v2": [n for n in names if n not in cross and "norm" not in n],
        "selfattn": [n for n in names if "attn1" in n],
        "notime": [n for n in names if n not in outer],
        "full": names,
    }[layers]


@pytest.mark.parametrize("layers", ["xattn", "xattn_strict", "noxattn", "noxattn_v2", "selfattn", "notime", "full"])
def test_layer_sets_are_what_their_docstring_says(tiny_pipe, layers):
    unet, trained = student(tiny_pipe, layers)
    assert sorted(trained) == sorted(expected(tiny_pipe.unet, layers)) == sorted(layer_names(tiny_pipe.unet, layers))
    assert {name for name, p in unet.named_parameters() if p.requires_grad} == set(trained)
    original = dict(tiny_pipe.unet.named_parameters())
    for name, p in unet.named_parameters():
        assert torch.equal(p, original[name])
        assert (p.data_ptr() == original[name].data_ptr()) == (name not in trained)


def test_inner_time_projections_are_trained_by_noxattn_and_the_time_embedding_is_not(tiny_pipe):
    names = layer_names(tiny_pipe.unet, "noxattn")
    assert any("time_emb_proj" in name for name in names) and not any("time_embedding" in name for name in names)
    cross = layer_names(tiny_pipe.unet, "xattn")
    assert {n.split("attn2.")[1] for n in cross} == {
        "to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias"
    }  # fmt: skip


def test_a_unet_without_the_layers_is_refused():
    with pytest.raises(ValueError, match="layers xattn must be in the UNet; found none there"):
        layer_names(torch.nn.Sequential(torch.nn.Linear(2, 2)), "xattn")


def test_half_precision_is_trained_in_float32_and_put_back(make_pipe):
    pipe = make_pipe(dtype=torch.bfloat16)
    unet, trained = student(pipe, "xattn")
    assert {p.dtype for p in unet.parameters()} == {torch.float32}
    assert {p.dtype for p in pipe.unet.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in with_weights(pipe, trained).unet.parameters()} == {torch.bfloat16}


def test_checkpointed_activations_change_no_gradient(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    model, gradients = Denoiser(pipe, steps=5, guidance_scale=3.0), []
    for checkpointed in (False, True):
        unet, trained = student(pipe, "selfattn")
        if checkpointed:
            unet.enable_gradient_checkpointing()
        z = model.noise([torch.Generator().manual_seed(0)])
        value = model.epsilon(unet, z, [301], model.encode(["cat"])).square().mean()
        gradients.append(torch.autograd.grad(value, list(trained.values())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scale", [1, 3.0])
def test_descending_is_ddim_step_by_step(make_pipe, prediction, scale):
    pipe = make_pipe(dtype=torch.float64)
    pipe.scheduler.register_to_config(prediction_type=prediction)
    model = Denoiser(pipe, steps=6, guidance_scale=scale)
    noise = model.noise([torch.Generator().manual_seed(i) for i in range(4)])
    last, words = [2, 0, 6, 4], ["cat", "dog", "sun", "cat"]
    found = model.descend(pipe.unet, noise, model.encode(words), 5, last)
    timesteps = slow.ddim(pipe, 6).timesteps.tolist()
    for z, start, stop, word in zip(found, noise, last, words, strict=True):
        by_hand = slow.drawn(pipe, pipe.unet, start[None], slow.states(pipe, word), timesteps[: 6 - stop], 6, scale)
        torch.testing.assert_close(z[None], by_hand, rtol=1e-9, atol=1e-9)
    assert torch.equal(found[2], noise[2])


def test_the_pipelines_own_scheduler_is_followed(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    model = Denoiser(pipe, steps=6, guidance_scale=3.0)
    draws = [torch.Generator().manual_seed(i) for i in range(3)]
    z, times = model.pipeline_latents(pipe.unet, draws, model.encode(["cat", "dog", "cat"]), [0, 2, 4])
    for row, (taken, word) in enumerate(zip([0, 2, 4], ["cat", "dog", "cat"], strict=True)):
        scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        scheduler.set_timesteps(6)
        draw = torch.Generator().manual_seed(row)
        x = torch.randn(1, 4, 8, 8, generator=draw, dtype=torch.float32).double() * scheduler.init_noise_sigma
        for t in scheduler.timesteps[:taken]:
            scaled = scheduler.scale_model_input(x, t)
            with torch.no_grad():
                e, given = (pipe.unet(scaled, t, encoder_hidden_states=slow.states(pipe, w)).sample for w in ("", word))
            x = scheduler.step(e + 3.0 * (given - e), t, x).prev_sample
        assert times[row] == scheduler.timesteps[taken]
        expected = scheduler.scale_model_input(x, scheduler.timesteps[taken])
        torch.testing.assert_close(z[row][None], expected, rtol=1e-5, atol=1e-5)  # its sigmas are float32


def test_sdxl_is_asked_as_its_pipeline_asks(make_xl_pipe):
    pipe = make_xl_pipe(dtype=torch.float64)
    model = Denoiser(pipe, steps=5, guidance_scale=3.0)
    z = model.noise([torch.Generator().manual_seed(i) for i in range(2)])
    given, empty, pooled, empty_pooled = pipe.encode_prompt("a cat", do_classifier_free_guidance=True, device="cpu")
    times = pipe._get_add_time_ids((64, 64), (0, 0), (64, 64), torch.float64, pipe.text_encoder_2.config.projection_dim)
    with torch.no_grad():
        found = model.output(pipe.unet, z, [501, 501], model.encode(["", "a cat"]))
        for row, (text, pool) in enumerate([(empty, empty_pooled), (given, pooled)]):
            added = {"text_embeds": pool, "time_ids": times}
            expected = pipe.unet(z[row][None], 501, encoder_hidden_states=text, added_cond_kwargs=added).sample
            torch.testing.assert_close(found[row][None], expected, rtol=1e-8, atol=1e-8)


def test_models_that_cannot_be_trained_so_are_refused(make_pipe):
    pipe = make_pipe()
    with pytest.raises(ValueError, match="steps must be <= 500"):
        Denoiser(pipe, steps=501, guidance_scale=3.0)
    flow = make_pipe()
    flow.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="must predict epsilon or v_prediction; got FlowMatchEulerDiscreteScheduler"):
        Denoiser(flow, steps=50, guidance_scale=3.0)
    pipe.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(ValueError, match="must predict epsilon or v_prediction; got sample"):
        Denoiser(pipe, steps=50, guidance_scale=3.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": "everything"}, "layers must be one of xattn, .*; got 'everything'"),
        ({"iterations": 0}, "iterations must be an integer >= 1; got 0"),
        ({"iterations": 1.5}, "iterations must be an integer >= 1; got 1.5"),
        ({"lr": 0.0}, "lr must be a finite number > 0; got 0.0"),
        ({"lr": float("nan")}, "lr must be a finite number > 0; got nan"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1"),
        ({"steps": 1}, "steps must be an integer >= 2"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"guidance_scale": "3"}, "guidance_scale must be a finite number; got '3'"),
        ({"phrases": "some"}, "phrases must be one of name, all"),
    ],
)
def test_bad_settings_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        FineTuning(**changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_every_field_and_the_embedded_models_is_another(name):
    paper = recipe(name, "recipe=paper", "seed=3")
    method = instantiate(paper.method, _convert_="all")
    assert set(paper.method) - {"_target_"} == {field.name for field in fields(method)} and method.seed == 3
    small = recipe(name)
    assert small.recipe == f"{name}_emoji" and small.method.layers == paper.method.layers
    assert small.method.batch_size > paper.method.batch_size == 1 and small.method.lr > paper.method.lr
