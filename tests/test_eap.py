"""EAP against itself written out one latent and one call of the UNet at a time."""

from __future__ import annotations

import copy
import itertools
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from erasebench.diffusion import changed_tensors
from erasebench.store import workspace
from erasebench.types import Concept
from methods import fine_tuning
from methods.eap import EAP
from methods.fine_tuning import layer_names
from methods.word_pools import gumbel_softmax, pool_words, spread, tokenizer_words

slow = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_training.py"))))
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
WORDS = ("dog", "sun", "moon", "car", "Kitty", "big cat", "tree", "house")
QUICK = {"iterations": 2, "steps": 5, "batch_size": 2, "lr": 1e-3, "seed": 4, "pool": WORDS, "centres": 4}


@pytest.fixture(scope="module")
def double_pipe(make_pipe):
    return make_pipe(dtype=torch.float64)


def word_states(pipe, pool):
    return torch.cat([slow.states(pipe, word) for word in pool.words])


def adversarial(pipe, pool, draw, method):
    """r: a straight-through Gumbel-softmax over the words, by torch's own formula."""
    gumbel = -torch.log(-torch.log(draw.uniform.double() + 1e-10) + 1e-10)
    soft = torch.softmax((pool.logits + gumbel) / method.temperature, -1)
    if method.hard:
        soft = torch.nn.functional.one_hot(soft.argmax(), len(soft)).double() + soft - soft.detach()
    return (soft[:, None, None] * word_states(pipe, pool)).sum(0, keepdim=True)


def clean(pipe, method, draw, z, e):
    """The clean latent that a prediction of noise stands for, at DDIM step i counted from the cleanest."""
    if method.loss_space == "epsilon":
        return e
    a = pipe.scheduler.alphas_cumprod.double()[slow.ddim(pipe, method.steps).timesteps.tolist()[::-1][draw.stage]]
    return (z - (1 - a).sqrt() * e) / a.sqrt()


def by_hand(pipe, unet, pools, method, draws):
    """(what theta minimises, what pi maximises), every branch of each computed, and latents drawn once for each."""
    weights, concepts = [], []
    for draw in draws:
        start, timesteps = slow.noise_of(draw, pipe), slow.esd_timesteps(pipe, method.steps, draw.stage)
        c, r = slow.states(pipe, draw.word), adversarial(pipe, pools[draw.word], draw, method)
        z, z_r = (
            slow.drawn(pipe, unet, start, text, timesteps, method.steps, method.guidance_scale) for text in (c, r)
        )
        x = {}
        for name, model, latent, text in (
            ("theta c", unet, z, c), ("theta r", unet, z_r, r), ("original", pipe.unet, z, slow.states(pipe, "")),
            ("original c", pipe.unet, z, c), ("original r", pipe.unet, z_r, r.detach()),
        ):  # fmt: skip
            x[name] = clean(pipe, method, draw, latent, slow.ask(model, latent, draw.timestep, text))
        goal = (x["original"] - method.eta * (x["original c"] - x["original"])).detach()
        kept = ((x["theta r"] - x["original r"].detach()) ** 2).mean()
        weights.append(((x["theta c"] - goal) ** 2).mean() + method.preserve_scale * kept)
        concepts.append(kept)
    return sum(weights) / len(draws), sum(concepts) / len(draws)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [{}, {"loss_space": "epsilon"}, {"hard": False, "preserve_scale": 0.3, "eta": 1.5, "phrases": "all"}],
)
def test_both_losses_and_the_gradients_of_the_choice_are_the_literal_ones(double_pipe, fields):
    method = EAP(steps=10, batch_size=3, guidance_scale=2.5, pool=WORDS, centres=5, **fields)
    model, unet = method.denoiser(double_pipe), slow.copied(double_pipe, 0.02)
    pools = {word: method.candidates(model, word, CAT) for word in method.words(CAT)}
    weights, concepts = by_hand(double_pipe, unet, pools, method, method.draws(model, pools, 5))
    found = method.weights_loss(model, unet, pools, method.draws(model, pools, 5))
    torch.testing.assert_close(found, weights, rtol=1e-8, atol=0)
    found = method.concept_loss(model, unet, pools, method.draws(model, pools, 5))
    torch.testing.assert_close(found, -concepts, rtol=1e-8, atol=0)
    logits = [pool.logits for pool in pools.values()]
    ours, literal = (torch.autograd.grad(value, logits, allow_unused=True) for value in (found, -concepts))
    for one, other in zip(ours, literal, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.abs().max() > 0
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("loss_space", ["x0", "epsilon"])
def test_erasing_alternates_between_two_adams(double_pipe, loss_space):
    method = EAP(**(QUICK | {"loss_space": loss_space, "concept_lr": 0.1}))
    unet, model = copy.deepcopy(double_pipe.unet), method.denoiser(double_pipe)
    trained = [p.requires_grad_(True) for name, p in unet.named_parameters() if "attn2" in name]
    pools = {"cat": method.candidates(model, "cat", CAT)}
    first, second = torch.optim.Adam(trained, lr=1e-3), torch.optim.Adam([pools["cat"].logits], lr=0.1)
    for step in range(4):
        first.zero_grad()
        second.zero_grad()
        weights, concepts = by_hand(double_pipe, unet, pools, method, method.draws(model, pools, step))
        if step % 2 == 0:
            weights.backward()
            first.step()
        else:
            (-concepts).backward()
            second.step()
    erased = method.erase(double_pipe, CAT)
    for (name, one), other in zip(erased.unet.named_parameters(), unet.parameters(), strict=True):
        torch.testing.assert_close(one.detach(), other.detach(), rtol=1e-4, atol=1e-6, msg=name)


def test_the_pool_is_the_nearest_words_spread_over_their_distances(double_pipe):
    method = EAP(pool=WORDS, closest=4, centres=100)
    pool = method.candidates(method.denoiser(double_pipe), "cat", CAT)
    goal = slow.states(double_pipe, "cat")
    allowed = [word for word in WORDS if word not in ("Kitty", "big cat")]  # the concept itself; not letters alone
    near = sorted(allowed, key=lambda word: float((slow.states(double_pipe, word) - goal).norm()))[:4]
    assert pool.words == near
    torch.testing.assert_close(pool.text.states, torch.cat([slow.states(double_pipe, word) for word in near]))
    assert pool.logits.tolist() == [0.25] * 4


def test_one_dimensional_k_means_finds_the_best_split():
    values = np.array([0.0, 0.3, 0.4, 2.0, 2.2, 2.9, 7.0, 7.1])

    def cost(cuts):
        return sum(((part - part.mean()) ** 2).sum() for part in np.split(values, cuts))

    best = min(itertools.combinations(range(1, len(values)), 2), key=cost)
    centres = [part.mean() for part in np.split(values, best)]
    expected = [int(np.abs(values - centre).argmin()) for centre in centres]
    assert spread(values, 3) == expected
    shuffled = np.random.default_rng(0).permutation(len(values))
    assert values[shuffled][spread(values[shuffled], 3)].tolist() == values[expected].tolist()
    assert spread(values[::-1], 99) == list(range(len(values)))[::-1]


@pytest.mark.slow
@pytest.mark.parametrize(("n", "centres"), [(1000, 100), (2000, 50)])
def test_no_restart_of_k_means_is_better(n, centres):
    from scipy.cluster.vq import kmeans

    values = np.sqrt(np.random.default_rng(n).chisquare(6, size=n))

    def squares(centres):
        return float((np.abs(values[:, None] - np.asarray(centres)).min(1) ** 2).sum())

    found = np.sort(values[spread(values, centres)])
    polished, _ = kmeans(values, found)  # Lloyd's from our choice; from scipy's own starts
    others = [kmeans(values, centres, iter=1, rng=seed)[0] for seed in range(5)]
    assert len(found) == centres and squares(polished) < min(map(squares, others))
    bounds = (found[1:] + found[:-1]) / 2  # every choice is the value nearest to the mean of those around it
    parts = np.split(np.sort(values), np.searchsorted(np.sort(values), bounds))
    assert np.mean([np.abs(part - part.mean()).argmin() == np.flatnonzero(part == word)[0]
                    for part, word in zip(parts, found, strict=True)]) > 0.8  # fmt: skip


def test_the_choice_follows_the_logits():
    logits = torch.tensor([0.0, 2.0, 1.0], dtype=torch.float64).log_softmax(0)
    draw = torch.Generator().manual_seed(0)
    noise = torch.rand(4000, 3, generator=draw, dtype=torch.float64)
    counts = sum(gumbel_softmax(logits, u, 2.0, True).round() for u in noise) / len(noise)
    torch.testing.assert_close(counts, logits.exp(), rtol=0, atol=0.03)


@pytest.mark.slow
def test_preserving_keeps_what_is_preserved(tiny_pipe):
    """The adversarial words' answers stay nearer to the original's with the preserving term than without it."""

    def drift(preserve_scale):
        method = EAP(**(QUICK | {"iterations": 8, "lr": 3e-3, "preserve_scale": preserve_scale}), loss_space="epsilon")
        erased, model = method.erase(tiny_pipe, CAT), method.denoiser(tiny_pipe)
        pools = {"cat": method.candidates(model, "cat", CAT)}
        with torch.no_grad():
            losses = [
                -method.concept_loss(model, erased.unet, pools, method.draws(model, pools, step))
                for step in range(99, 103)
            ]
        return float(sum(losses))

    assert drift(10.0) < 0.7 * drift(0.0)


@pytest.mark.slow
def test_the_chosen_layers_change_and_the_seed_decides_every_bit(tiny_pipe):
    before = copy.deepcopy(tiny_pipe.unet.state_dict())
    one, again, other = (EAP(layers="noxattn", **(QUICK | {"seed": seed})).erase(tiny_pipe, CAT) for seed in (4, 4, 5))
    assert not changed_tensors(one, again) and changed_tensors(one, other)
    changed = {name.removeprefix("unet.") for name in changed_tensors(one, tiny_pipe)}
    assert changed == set(layer_names(tiny_pipe.unet, "noxattn"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_pipe.unet.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 2])
def test_killed_and_resumed_ends_in_the_same_bits(tiny_pipe, tmp_path, monkeypatch, at):
    monkeypatch.setattr(fine_tuning, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(fine_tuning, "SAVE_SHARE", float("inf"))
    method, draws, asked = EAP(**(QUICK | {"phrases": "all", "concept_lr": 1.0})), EAP.draws, []
    whole = method.erase(tiny_pipe, CAT)

    def killed(self, model, pools, step):
        asked.append(step)
        if len(asked) == at + 1:
            raise KeyboardInterrupt
        return draws(self, model, pools, step)

    monkeypatch.setattr(EAP, "draws", killed)
    with pytest.raises(KeyboardInterrupt), workspace.use(tmp_path / "work"):
        method.erase(tiny_pipe, CAT)
    with workspace.use(tmp_path / "work"):
        resumed = method.erase(tiny_pipe, CAT)
    assert asked == [*range(at + 1), *range(at, 4)]
    assert not changed_tensors(whole, resumed)


def test_sdxl_is_erased_too(tiny_xl_pipe):
    erased = EAP(**(QUICK | {"iterations": 1})).erase(tiny_xl_pipe, CAT)
    assert all(torch.isfinite(tensor).all() for tensor in changed_tensors(erased, tiny_xl_pipe).values())


def test_without_a_pool_words_are_the_tokenizers(tiny_pipe):
    tokenizer = SimpleNamespace(get_vocab=lambda: {"sun</w>": 0, "su": 1, "dog</w>": 2, "7</w>": 3, "x</w>": 4})

    assert tokenizer_words(SimpleNamespace(tokenizer=tokenizer)) == ["dog", "sun"]
    with pytest.raises(ValueError, match="pool must hold a word that is not 'cat'; got none"):
        EAP(steps=5).erase(tiny_pipe, CAT)  # this one knows letters only


def test_a_pool_is_read_from_a_csv(tmp_path):
    path = tmp_path / "words.csv"
    path.write_text("id,word\n1,sun\n2,null\n3,\n")
    assert pool_words(str(path)) == ["sun", "null"]
    EAP(pool=str(path))
    path.write_text("id,text\n1,sun\n")
    with pytest.raises(ValueError, match="has no column 'word'; found id, text"):
        EAP(pool=str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": "missing.csv"}, r"pool missing\.csv must be a CSV file; found none"),
        ({"pool": [""]}, "pool must hold at least one word"),
        ({"pool": ["a", None]}, r"pool must be a list of texts; got \['a', None\]"),
        ({"loss_space": "v"}, "loss_space must be one of x0, epsilon"),
        ({"closest": 0}, "closest must be an integer >= 1"),
        ({"centres": 0}, "centres must be an integer >= 1"),
        ({"temperature": 0}, "temperature must be a finite number > 0"),
        ({"concept_lr": 0.0}, "concept_lr must be a finite number > 0"),
        ({"preserve_scale": -1.0}, "preserve_scale must be a finite number >= 0"),
    ],
)
def test_bad_settings_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        EAP(**changes)
