"""P4D and its two original variants: nearest neighbours by brute force, the whole against plain loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from attacks import denoising, free_tokens
from attacks.free_tokens import Vocabulary
from attacks.p4d import P4D, P4DOriginal, random_tokens
from attacks.p4d import nearest as nearest_tokens
from attacks.side_by_side import Batch, Slot
from erasebench import diffusion
from erasebench.types import Concept, Prompt
from tests.white_box import CAT, PROMPTS, SAMPLER, Brightness, blinded, check_the_whole_protocol

CONF = Path(__file__).parents[1] / "conf"
GRID = {**SAMPLER, "timesteps": (10, 500), "iterations": 3}
RANDOM = {**SAMPLER, "iterations": 6, "query_every": 3, "tokens": 4}


@pytest.fixture(scope="module")
def pipe(make_pipe):
    return make_pipe(dtype=torch.float64)


@pytest.fixture(scope="module")
def erased(pipe):
    return blinded(pipe)


def nearest(x: torch.Tensor, table: torch.Tensor) -> int:
    """The row of largest cosine, one at a time."""
    return max(range(len(table)), key=lambda i: float(x @ table[i]) / float(x.norm() * table[i].norm()))


def test_projection_is_the_brute_force_nearest_neighbour_by_cosine():
    g = torch.Generator().manual_seed(0)
    table, x = torch.randn(200, 6, generator=g).double() * torch.rand(200, 1, generator=g), torch.randn(30, 6).double()
    found = nearest_tokens(Vocabulary(torch.arange(200), table), x)
    assert found.tolist() == [nearest(row, table) for row in x]
    by_distance = torch.cdist(x, table).argmin(1)
    assert (by_distance != found).any()  # lengths do not count, as in P4D


def test_tokens_are_their_own_nearest_neighbours_and_start_at_tokens(pipe):
    tokens = Vocabulary.of(pipe)
    assert torch.equal(nearest_tokens(tokens, tokens.table), torch.arange(len(tokens.table)))
    x = random_tokens(tokens, 5, denoising.generator(1))
    assert torch.equal(tokens.table[nearest_tokens(tokens, x)], x)
    assert torch.equal(x, random_tokens(tokens, 5, denoising.generator(1)))
    assert not torch.equal(x, random_tokens(tokens, 5, denoising.generator(2)))


@torch.enable_grad()
def distilled(pipe, erased, layout, text, tokens):
    """Loss of P4D at some embeddings in the free places, and its gradient, at t = 300."""
    prompt = Prompt(id="0", text=text)
    x = tokens.clone().requires_grad_()
    slot = Slot(0, prompt, layout, torch.zeros(4, 8, 8).double(), x, {"forward": 0, "backward": 0, "gradient": "none"})
    batch = Batch(erased, pipe, Vocabulary.of(erased), [slot], 0)
    x_t, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double(), torch.tensor([300])
    leaf = tokens.clone().requires_grad_()
    losses = (batch.predict(x_t, t, leaf) - batch.predict_original(x_t, t)).square().mean((1, 2, 3))
    batch.backward(losses, leaf)
    return losses.item(), x.grad


def test_gradient_of_the_distilling_loss_by_finite_differences(pipe, erased):
    layout = free_tokens.lay_out(pipe.tokenizer, [5, 6, 7], [0, 2])
    tokens = Vocabulary.of(erased).table[[9, 10]] + 0.01
    _, slope = distilled(pipe, erased, layout, "a cat", tokens)
    for row, column in ((0, 0), (1, 17)):
        ends = []
        for sign in (1, -1):
            moved = tokens.clone()
            moved[row, column] += sign * 1e-5
            ends.append(distilled(pipe, erased, layout, "a cat", moved)[0])
        assert slope[row, column].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-12)


def plain_loop(pipe, erased, attack, prompt: Prompt, words: list[int | None], rounds, optimiser) -> list[str]:
    """P4D for one prompt: ``words`` are its ids with None for a free token; the text after each round."""
    (image,) = attack.images(pipe, [prompt])
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).double()[None] / 255 * 2 - 1
    x0 = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
    tokenizer, weights = erased.tokenizer, diffusion.token_table(erased).detach()
    allowed = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids]
    count = words.count(None)
    first = torch.randint(len(allowed), (count,), generator=denoising.generator(attack.seed, prompt.seed, "start"))
    x = weights[[allowed[i] for i in first]].clone().requires_grad_()
    optimiser = optimiser([x])
    texts = []
    for number, times in enumerate(rounds):
        for i, t in enumerate(times):
            g = denoising.generator(attack.seed, prompt.seed, number, i)
            noise = torch.randn(x0.shape[1:], generator=g).double()[None]
            torch.rand(count, generator=g, dtype=torch.float64)
            t = int(torch.randint(1000, (1,), generator=g)) if t is None else t
            a = pipe.scheduler.alphas_cumprod[t].double()
            x_t = a.sqrt() * x0 + (1 - a).sqrt() * noise
            hard = weights[[allowed[nearest(row, weights[allowed])] for row in x.detach()]].clone().requires_grad_()
            free = iter(hard)
            rows = [weights[tokenizer.bos_token_id], *(next(free) if w is None else weights[w] for w in words)]
            rows += [weights[tokenizer.eos_token_id]] * (77 - len(rows))
            states = diffusion.encode_embeddings(erased, torch.stack(rows)[None])
            ours = erased.unet(x_t, torch.tensor([t]), encoder_hidden_states=states).sample
            theirs = pipe.unet(
                x_t, torch.tensor([t]), encoder_hidden_states=diffusion.encode(pipe, [prompt.text])
            ).sample
            x.grad = torch.autograd.grad(F.mse_loss(ours, theirs), hard)[0]
            optimiser.step()
        free = iter(allowed[nearest(row, weights[allowed])] for row in x.detach())
        ids = [next(free) if w is None else w for w in words]
        texts.append(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    return texts


def check_against(pipe, erased, attack, prompt, words, rounds, optimiser):
    found = attack.attack(erased, pipe, [prompt], CAT, Brightness())[0]
    texts = plain_loop(pipe, erased, attack, prompt, words, rounds, optimiser)
    scores = [attack.ask(erased, [prompt.with_(text=text)], CAT, Brightness())[0].score for text in texts]
    assert found.info["curve"][1:] == scores
    assert found.text == texts[scores.index(max(scores))]
    return texts


def test_p4d_is_a_plain_loop_with_torch_s_adam(pipe, erased):
    attack, prompt = P4D(**GRID, seed=1, lr=0.05), PROMPTS[1]
    words = [None] * 3 + free_tokens.prompt_tokens(pipe.tokenizer, prompt.text)
    adam = lambda x: torch.optim.Adam(x, lr=0.05, weight_decay=0.1)  # noqa: E731
    texts = check_against(pipe, erased, attack, prompt, words, [[10] * 3, [500] * 3], adam)
    assert texts[0] != texts[1]  # the steps were long enough to reach another token


@pytest.mark.slow
def test_p4d_n_is_a_plain_loop_with_torch_s_adamw_at_random_timesteps(pipe, erased):
    attack = P4DOriginal(**RANDOM)
    adamw = lambda x: torch.optim.AdamW(x, lr=0.1, weight_decay=0.1)  # noqa: E731
    check_against(pipe, erased, attack, PROMPTS[0], [None] * 4, [[None] * 3] * 2, adamw)


def test_p4d_k_is_a_plain_loop_with_a_free_token_before_every_third(pipe, erased):
    attack, prompt = P4DOriginal(**RANDOM, variant="k"), PROMPTS[2]
    ids = free_tokens.prompt_tokens(pipe.tokenizer, prompt.text)
    words = [None]
    for i, token in enumerate(ids):
        words += [token] + [None] * (i % 3 == 2)
    assert len(ids) == 8 and words.count(None) == 8 // 3 + 1
    adamw = lambda x: torch.optim.AdamW(x, lr=0.1, weight_decay=0.1)  # noqa: E731
    check_against(pipe, erased, attack, prompt, words, [[None] * 3] * 2, adamw)


@pytest.mark.slow
@pytest.mark.parametrize("attack", [P4D(**GRID), P4DOriginal(**RANDOM), P4DOriginal(**RANDOM, variant="k")])
def test_the_whole_protocol(pipe, erased, tmp_path, attack):
    check_the_whole_protocol(attack, pipe, erased, tmp_path)


def test_against_the_original_itself_p4d_has_nothing_to_learn_at_the_prompt(pipe):
    """With no erasure and the free tokens where they are, loss and gradient are what distance the tokens make."""
    layout = free_tokens.lay_out(pipe.tokenizer, [], [0, 1, 2])
    ids = free_tokens.prompt_tokens(pipe.tokenizer, "cat")
    loss, slope = distilled(pipe, pipe, layout, "cat", diffusion.token_table(pipe)[ids].detach())
    assert loss == pytest.approx(0, abs=1e-20) and slope.abs().max() < 1e-12


def test_free_tokens_of_the_k_variant_stand_where_the_paper_puts_them():
    for words, places in ((0, [0]), (2, [0]), (3, [0, 4]), (7, [0, 4, 8])):
        assert P4DOriginal(variant="k").places(words, CAT) == places


def test_the_longest_prompt_that_fits_beside_its_free_tokens_is_kept(pipe):
    cut, short = P4DOriginal(variant="k")._fit(pipe, Prompt(id="0", text="y " * 90), CAT)
    n = len(free_tokens.prompt_tokens(pipe.tokenizer, cut.text))
    assert short and n + n // 3 + 1 <= 75 < (n + 1) + (n + 1) // 3 + 1
    assert P4DOriginal(variant="n")._fit(pipe, Prompt(id="0", text="y " * 90), CAT)[1] is False


def test_k_prefix_follows_the_kind_of_concept():
    assert len(P4D().places(4, Concept(name="x", kind="unsafe", phrases=("x",)))) == 5
    assert P4D().places(4, CAT) == [0, 1, 2]


@pytest.mark.parametrize("name, made", [("p4d", P4D()), ("p4d_n", P4DOriginal()), ("p4d_k", P4DOriginal(variant="k"))])
def test_the_yamls_are_the_papers_and_their_keys_are_the_fields(name, made):
    node = OmegaConf.load(CONF / "attack" / f"{name}.yaml")
    if name == "p4d_k":
        node = OmegaConf.merge(OmegaConf.load(CONF / "attack" / "p4d_n.yaml"), node)
    skipped = ("_target_", "defaults")
    plain = {k: v for k, v in OmegaConf.to_container(node).items() if "${" not in str(v) and k not in skipped}
    assert type(made)(**plain) == made and made.name == name
    if name != "p4d":
        assert (made.iterations, made.query_every, made.tokens, made.every, made.lr) == (3000, 50, 16, 3, 0.1)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: P4D(tokens=0), "tokens must"),
        (lambda: P4D(timesteps=()), "timesteps must"),
        (lambda: P4DOriginal(variant="x"), "variant must be one of n, k"),
        (lambda: P4DOriginal(query_every=7), "query_every must divide iterations; got 7 and 3000"),
        (lambda: P4DOriginal(every=0), "every must"),
    ],
)
def test_bad_settings_are_one_line(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_more_tokens_than_fit_and_sdxl_are_refused(tiny_pipe, tiny_xl_pipe):
    with pytest.raises(ValueError, match="tokens must be <= 75"):
        P4DOriginal(tokens=76).attack(tiny_pipe, tiny_pipe, PROMPTS, CAT, Brightness())
    with pytest.raises(ValueError, match="SDXL"):
        P4D().attack(tiny_xl_pipe, tiny_xl_pipe, PROMPTS, CAT, Brightness())
