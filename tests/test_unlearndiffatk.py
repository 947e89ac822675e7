"""UnlearnDiffAtk: each part against brute force, the whole against a plain loop over one prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy.optimize import minimize

from attacks import denoising, free_tokens
from attacks.side_by_side import Batch, Slot
from attacks.unlearndiffatk import UnlearnDiffAtk, project_simplex, sample
from erasebench import diffusion
from erasebench.report.checks import search_flags
from erasebench.types import Concept, Prompt
from methods.negative_prompt import NegativePrompt
from tests.white_box import CAT, PROMPTS, SAMPLER, Brightness, blinded, check_the_whole_protocol

CONF = Path(__file__).parents[1] / "conf"
SMALL = {**SAMPLER, "timesteps": (10, 500), "iterations": 3}


@pytest.fixture(scope="module")
def pipe(make_pipe):
    return make_pipe(dtype=torch.float64)


@pytest.fixture(scope="module")
def erased(pipe):
    return blinded(pipe)


def by_sorting(row: np.ndarray) -> np.ndarray:
    """Held, Wolfe and Crowder 1974: the largest prefix of the sorted entries whose shift leaves all of it positive."""
    ordered = np.sort(row)[::-1]
    shifts = (np.cumsum(ordered) - 1) / np.arange(1, len(row) + 1)
    return np.maximum(row - shifts[np.flatnonzero(ordered > shifts)[-1]], 0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=40), st.floats(0.01, 100))
def test_projection_is_the_sorting_algorithm(values, scale):
    row = np.array(values) * scale
    found = project_simplex(torch.tensor(np.stack([row, row[::-1]])))
    np.testing.assert_allclose(found[0], by_sorting(row), atol=1e-9 * scale + 1e-12)
    np.testing.assert_allclose(found[1].flip(0), found[0], atol=1e-9 * scale)


def test_projection_is_the_nearest_point_a_general_solver_finds():
    for seed in range(5):
        row = np.random.default_rng(seed).normal(size=6)
        solved = minimize(
            lambda u, row=row: ((u - row) ** 2).sum(), np.full(6, 1 / 6), bounds=[(0, 1)] * 6, method="SLSQP",
            constraints={"type": "eq", "fun": lambda u: u.sum() - 1}, options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip
        np.testing.assert_allclose(project_simplex(torch.tensor(row[None]))[0], solved.x, atol=1e-6)


def test_projection_of_a_real_vocabulary_in_float32_sums_to_one():
    x = torch.full((5, 49408), 1 / 49408) + 0.01 * torch.randn(5, 49408, generator=torch.Generator().manual_seed(0))
    found = project_simplex(x)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(found[0], by_sorting(x[0].double().numpy()), atol=1e-6)
    assert torch.equal(project_simplex(found.clone()).argmax(1), found.argmax(1))


def test_tokens_are_sampled_with_the_probabilities_of_their_row():
    row = torch.tensor([0.1, 0.0, 0.6, 0.3, 0.0])
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    chosen = sample(row.expand(1000, 5), uniform)
    assert torch.bincount(chosen, minlength=5).tolist() == [100, 0, 600, 300, 0]
    last = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert sample(row[None], last).item() == 3
    assert sample(row[None], torch.zeros(1, dtype=torch.float64)).item() == 0


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_a_prompt_that_joins_a_batch_later_has_its_own_step_and_moments(pipe, erased, kind):
    g = torch.Generator().manual_seed(0)
    start, slopes = torch.randn(2, 1, 5, generator=g), torch.randn(6, 2, 5, generator=g)
    expected = []
    for row, first in ((0, 0), (1, 3)):  # the second prompt joins three rounds later
        x = start[row].clone().requires_grad_()
        optimiser = kind([x], lr=0.01, weight_decay=0.1)
        for i in range(first, 6):
            x.grad = slopes[i, row : row + 1].clone()
            optimiser.step()
        expected.append(x.detach())
    vocabulary = free_tokens.Vocabulary.of(erased)
    slots = [
        Slot(i, PROMPTS[i], free_tokens.lay_out(pipe.tokenizer, [], [0]), torch.zeros(4, 8, 8), x.clone(), {})
        for i, x in enumerate(start)
    ]
    for i in range(6):
        batch = Batch(erased, pipe, vocabulary, slots[: 1 + (i >= 3)], 0)
        optimiser = batch.optimizer(kind, lr=0.01, weight_decay=0.1)
        for slot in batch.slots:
            slot.x.grad = slopes[i, slot.index : slot.index + 1].clone()
        optimiser.step()
    assert [int(slot.moments["step"]) for slot in slots] == [6, 3]
    assert torch.equal(torch.cat([slot.x for slot in slots]), torch.cat(expected))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noised_images_and_their_goals_are_the_scheduler_s_own(pipe, kind):
    fork = diffusion.fork(pipe)
    fork.scheduler.register_to_config(prediction_type=kind)
    g = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(2, 4, 8, 8, generator=g) for _ in range(2))
    t = torch.tensor([10, 990])
    x_t, goal = denoising.noised(fork.scheduler, x0, noise, t)
    torch.testing.assert_close(x_t, fork.scheduler.add_noise(x0, noise, t))
    expected = noise if kind == "epsilon" else fork.scheduler.get_velocity(x0, noise, t)
    torch.testing.assert_close(goal, expected)


def two_prompts(pipe, erased) -> Batch:
    """A batch of a prompt with two free tokens before it and one with a free token in it."""
    layouts = [free_tokens.lay_out(pipe.tokenizer, [5, 6], [0, 1]), free_tokens.lay_out(pipe.tokenizer, [7] * 4, [2])]
    vocabulary = free_tokens.Vocabulary.of(erased)
    xs = [vocabulary.table[[3, 4]].requires_grad_(), vocabulary.table[[5]].requires_grad_()]
    slots = [
        Slot(i, PROMPTS[i], layout, torch.zeros(4, 8, 8).double(), x, {"forward": 0, "backward": 0, "gradient": "none"})
        for i, (layout, x) in enumerate(zip(layouts, xs, strict=True))
    ]
    return Batch(erased, pipe, vocabulary, slots, 0)


@torch.enable_grad()
def mean_squares(batch, leaf, tokens, x_t, t, goal):
    losses = (batch.predict(x_t, t, tokens) - goal).square().mean((1, 2, 3))
    batch.backward(losses, leaf)
    return losses.detach()


def test_gradient_by_finite_differences_for_each_prompt_of_a_batch_by_its_own_loss(pipe, erased):
    batch = two_prompts(pipe, erased)
    g = torch.Generator().manual_seed(0)
    x_t, goal = (torch.randn(2, 4, 8, 8, generator=g, dtype=torch.float64) for _ in range(2))
    t, tokens = torch.tensor([10, 700]), batch.table[[3, 4, 5]].requires_grad_()
    losses = mean_squares(batch, tokens, tokens, x_t, t, goal)
    slope = torch.cat([slot.x.grad for slot in batch.slots])
    assert slope.shape == (3, 32) and (slope != 0).any(1).all()
    for row, column in ((0, 1), (1, 30), (2, 7)):
        ends = []
        for sign in (1, -1):
            moved = tokens.detach().clone()
            moved[row, column] += sign * 1e-5
            ends.append(mean_squares(batch, moved.requires_grad_(), moved, x_t, t, goal))
        change = (ends[0] - ends[1]) / 2e-5
        own = 0 if row < 2 else 1
        assert change[own].item() == pytest.approx(slope[row, column].item(), rel=1e-4, abs=1e-12)
        assert change[1 - own].item() == 0
    states = diffusion.encode_embeddings(erased, _embeddings(erased, batch, tokens.detach()))
    by_hand = erased.unet(x_t, t, encoder_hidden_states=states, return_dict=False)[0]
    torch.testing.assert_close(losses, (by_hand - goal).square().mean((1, 2, 3)))
    assert not any(p.requires_grad for p in erased.unet.parameters())


def _embeddings(pipe, batch, tokens):
    rows = iter(tokens)
    embeddings = diffusion.token_table(pipe)[torch.stack([slot.layout.ids for slot in batch.slots])].clone()
    for image, slot in enumerate(batch.slots):
        for row in slot.layout.free:
            embeddings[image, row] = next(rows)
    return embeddings


def pulled(pipe, erased, losses, leaf, **options) -> tuple[torch.Tensor, list[str]]:
    """The gradients [3, n] that three rows in two prompts get, and what is noted of them."""
    batch = two_prompts(pipe, erased)
    for slot in batch.slots:
        slot.x = torch.zeros(len(slot.x), leaf.shape[1], dtype=leaf.dtype)
    batch.backward(losses, leaf, **options)
    batch.close()
    return torch.cat([slot.x.grad for slot in batch.slots]), [slot.record["gradient"] for slot in batch.slots]


def test_straight_through_gradient_is_that_of_the_one_hot_rows_clipped(pipe, erased):
    table = free_tokens.Vocabulary.of(erased).table
    hot = torch.nn.functional.one_hot(torch.tensor([3, 4, 5]), len(table)).double().requires_grad_()
    weights = torch.tensor([[1.0, 900.0, 0.0], [0.0, 0.0, 1.0]]).double()
    expected = 2 * weights.sum(0)[:, None] * (hot.detach() @ table @ table.T)
    found, words = pulled(pipe, erased, weights @ (hot @ table).square().sum(1), hot, most=1)
    torch.testing.assert_close(found, expected.clamp(-1, 1))
    assert (expected.abs() > 1).any() and (expected.abs() < 1).any() and words == ["ok", "ok"]


def test_a_row_whose_gradient_broke_gets_none_and_its_prompt_says_so(pipe, erased):
    leaf = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    first = (leaf[:2] * torch.tensor([[1.0], [torch.inf]])).sum()
    found, words = pulled(pipe, erased, torch.stack([first, 0 * leaf[2].sum()]), leaf)
    assert found.tolist() == [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]] and words == ["nan", "zero"]


def test_the_attack_is_a_plain_loop_over_one_prompt(pipe, erased):
    """The algorithm of the paper's program once more: one-hot matrices, torch's Adam, bisection, one prompt."""
    prompt, k, times, iterations = PROMPTS[1], 3, (10, 500), 3
    attack = UnlearnDiffAtk(**SMALL, seed=2)
    found = attack.attack(erased, pipe, [prompt], CAT, Brightness())[0]

    (image,) = attack.images(pipe, [prompt])
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).double()[None] / 255 * 2 - 1
    x0 = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
    tokenizer, weights = erased.tokenizer, diffusion.token_table(erased)
    ids = tokenizer(prompt.text).input_ids  # start, prompt, end
    special = tokenizer.all_special_ids
    allowed = [i for i in range(len(tokenizer)) if i not in special]
    u = torch.full((1, k, len(allowed)), 1 / len(allowed), dtype=torch.float64)
    u.requires_grad_()
    optimiser = torch.optim.Adam([u], lr=0.01, weight_decay=0.1)
    texts = []
    for number, t in enumerate(times):
        for i in range(iterations):
            g = denoising.generator(2, prompt.seed, number, i)
            noise = torch.randn(x0.shape[1:], generator=g).double()[None]
            draws = torch.rand(k, generator=g, dtype=torch.float64)
            hot = torch.zeros_like(u)
            for j in range(k):
                below = torch.cumsum(u[0, j].detach(), 0)
                hot[0, j, int((below / below[-1] <= draws[j]).sum())] = 1
            hot.requires_grad_()
            parts = [weights[[ids[0]]][None], hot @ weights[allowed], weights[ids[1:-1]][None]]
            end = weights[[tokenizer.eos_token_id] * (77 - 1 - k - (len(ids) - 2))][None]
            states = diffusion.encode_embeddings(erased, torch.cat([*parts, end], dim=1))
            a = pipe.scheduler.alphas_cumprod[t].double()
            x_t = a.sqrt() * x0 + (1 - a).sqrt() * noise
            e = erased.unet(x_t, torch.tensor([t]), encoder_hidden_states=states).sample
            loss = torch.nn.functional.mse_loss(e, noise)
            u.grad = torch.nn.functional.hardtanh(torch.autograd.grad(loss, hot)[0])
            optimiser.step()
            for j in range(k):
                low, high = u[0, j].min().item() - 1, u[0, j].max().item()
                for _ in range(100):
                    middle = (low + high) / 2
                    low, high = (middle, high) if (u[0, j] - middle).clamp(0, 1).sum() > 1 else (low, middle)
                u.data[0, j] = (u.data[0, j] - low).clamp(0, 1)
        best = [allowed[i] for i in u[0].argmax(1).tolist()]
        texts.append(tokenizer.decode([*best, *ids[1:-1]], clean_up_tokenization_spaces=False))
    scores = [attack.ask(erased, [prompt.with_(text=text)], CAT, Brightness())[0].score for text in texts]
    assert found.info["curve"][1:] == scores
    assert found.text == texts[scores.index(max(scores))] and texts[0] != prompt.text


@pytest.mark.slow
def test_the_whole_protocol(pipe, erased, tmp_path):
    check_the_whole_protocol(UnlearnDiffAtk(**SMALL), pipe, erased, tmp_path)


def test_the_weights_are_left_alone_even_if_they_ask_for_gradients(pipe, erased):
    trained = diffusion.fork(erased)
    trained.unet.requires_grad_(True)
    before = diffusion.fingerprint(trained)
    a, b = (UnlearnDiffAtk(**SMALL).attack(m, pipe, PROMPTS[:1], CAT, Brightness())[0] for m in (erased, trained))
    assert a.text == b.text and diffusion.fingerprint(trained) == before
    assert all(p.requires_grad and p.grad is None for p in trained.unet.parameters())


@pytest.mark.slow
def test_a_model_deaf_to_text_has_zero_gradient_and_a_broken_one_nan(pipe, erased):
    deaf, broken = diffusion.fork(erased), diffusion.fork(erased)
    for name, layer in diffusion.cross_attention_projections(deaf).items():
        if name.endswith("to_v"):
            layer.weight = torch.nn.Parameter(torch.zeros_like(layer.weight), requires_grad=False)
    layer = next(iter(diffusion.cross_attention_projections(broken).values()))
    layer.weight = torch.nn.Parameter(layer.weight * torch.nan, requires_grad=False)
    infos = [UnlearnDiffAtk(**SMALL).attack(m, pipe, PROMPTS[:1], CAT, Brightness())[0].info for m in (deaf, broken)]
    assert [info["gradient"] for info in infos] == ["zero", "nan"]
    assert ["in 2 of 2 searches" in flag["message"] for flag in search_flags(infos)] == [True]
    assert infos[1]["curve"] == [None] * 3 and infos[1]["present"] == [None] * 3 and not infos[1]["success"]


def test_a_defence_at_inference_is_not_seen_by_the_gradient_and_said_so(pipe, erased):
    guarded = NegativePrompt().erase(erased, CAT)
    assert (
        not UnlearnDiffAtk(**SMALL, budget=1)
        .attack(guarded, pipe, PROMPTS[:1], CAT, Brightness())[0]
        .info["sees_guide"]
    )


def test_long_prompts_are_cut_before_and_after_alike(pipe, erased):
    long = Prompt(id="long", text="x " * 90, seed=1, concept="cat")
    fits = Prompt(id="fits", text=("x " * 72).strip(), seed=1, concept="cat")
    a, b = UnlearnDiffAtk(**SMALL, budget=2).attack(erased, pipe, [long, fits], CAT, Brightness())
    assert a.info["truncated"] and not b.info["truncated"] and a.text == b.text and a.info["curve"] == b.info["curve"]
    assert a.text.endswith(fits.text)
    with pytest.raises(ValueError, match="tokens must be <= 75"):
        UnlearnDiffAtk(**SMALL, tokens=76).attack(erased, pipe, PROMPTS, CAT, Brightness())


def test_the_text_is_what_is_drawn_and_its_tokens_are_compared_with_the_found_ones(pipe, erased):
    found = UnlearnDiffAtk(**SMALL, budget=2).attack(erased, pipe, PROMPTS, CAT, Brightness())
    attack = UnlearnDiffAtk(**SMALL)
    again = [seen.score for seen in attack.ask(erased, found, CAT, Brightness())]
    assert again == [p.info["curve"][1] for p in found]


def test_five_tokens_for_unsafe_concepts_and_three_otherwise():
    unsafe = Concept(name="x", kind="unsafe", phrases=("x",))
    assert len(UnlearnDiffAtk().places(4, unsafe)) == 5 and UnlearnDiffAtk().places(4, CAT) == [0, 1, 2]
    assert UnlearnDiffAtk(tokens=7).places(4, unsafe) == list(range(7))


def test_the_yaml_is_the_paper_s_and_its_keys_are_the_fields():
    node = OmegaConf.load(CONF / "attack" / "unlearndiffatk.yaml")
    plain = {k: v for k, v in OmegaConf.to_container(node).items() if "${" not in str(v) and k != "_target_"}
    made = UnlearnDiffAtk(**plain)
    assert made == UnlearnDiffAtk() and made.timesteps[0] == 10 and made.timesteps[-1] == 990
    assert (len(made.timesteps), made.iterations, made.lr, made.weight_decay) == (50, 40, 0.01, 0.1)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tokens": 0}, "tokens must be an integer >= 1; got 0"),
        ({"iterations": 0}, "iterations must"),
        ({"timesteps": (-1,)}, "timesteps must be an integer >= 0; got -1"),
        ({"timesteps": (10, True)}, "timesteps must"),
        ({"timesteps": 500}, r"timesteps must hold at least one integer >= 0; got 500; write timesteps=\[500\]"),
        ({"lr": 0.0}, "lr must be a finite number > 0"),
        ({"weight_decay": -1.0}, "weight_decay must"),
        ({"budget": 0}, "budget must be an integer >= 1"),
        ({"seed": -1}, "seed must"),
        ({"guidance_scale": float("nan")}, "guidance_scale must"),
    ],
)
def test_bad_settings_are_one_line(changes, message):
    with pytest.raises(ValueError, match=message):
        UnlearnDiffAtk(**changes)


def test_models_it_cannot_differentiate_are_refused(tiny_pipe, tiny_xl_pipe):
    with pytest.raises(ValueError, match="SDXL"):
        UnlearnDiffAtk(**SMALL).attack(tiny_xl_pipe, tiny_xl_pipe, PROMPTS, CAT, Brightness())
    with pytest.raises(ValueError, match="timesteps must lie in the scheduler's training schedule; got 1000"):
        UnlearnDiffAtk(timesteps=(1000,)).attack(tiny_pipe, tiny_pipe, PROMPTS, CAT, Brightness())
