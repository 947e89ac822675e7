"""Ring-A-Bell: the genetic steps by their invariants and by brute force, the loss against a hand-built forward pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import MISSING, fields
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from attacks.evolution import Memo, cross, evolve, mutate, run
from attacks.none import NoAttack
from attacks.pairs import TextPairs
from attacks.ringabell import RingABell, Space
from erasebench import diffusion
from erasebench.types import Concept, Prompt

CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
PAIRS = TextPairs(pairs=(("a {} on red", "red"), ("a {}", "a thing")))
PROMPTS = [
    Prompt(id="0", text="a cat", seed=3, guidance_scale=2.0, concept="cat"),
    Prompt(id="1", text="cat on blue", seed=4, concept="cat"),
    Prompt(id="2", text="a cat", seed=5, concept="cat"),
]
CONF = Path(__file__).parents[1] / "conf" / "attack"


def small(**changes: object) -> RingABell:
    return RingABell(**{"vector": PAIRS, "tokens": 5, "population": 12, "generations": 6, "rows": 12, **changes})


def distance_to(goal: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A loss with many interactions between positions and one minimum, 0, at ``goal``."""
    return lambda people: ((np.cumsum(people, axis=1) - np.cumsum(goal)) ** 2).sum(1).astype(float)


generators = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@settings(max_examples=50, deadline=None)
@given(rng=generators, n=st.integers(1, 9), tokens=st.integers(1, 8), probability=st.floats(0, 1))
def test_children_are_a_head_and_a_tail_of_two_parents(rng, n, tokens, probability):
    parents = rng.integers(0, 50, size=(n, tokens))
    children = cross(rng, parents, probability)
    assert children.shape[1:] == (tokens,) and len(children) % 2 == 0 and len(children) <= 2 * n
    spliced = {(*a[:cut], *b[cut:]) for a in parents for b in parents for cut in range(1, max(tokens, 2))}
    assert {tuple(child) for child in children} <= spliced
    for one, other in zip(*np.split(children, 2), strict=True):  # together they hold what two parents hold
        sums = [tuple(a + b) for a in parents for b in parents]
        assert tuple(one + other) in sums


def test_crossover_rates_zero_and_one():
    parents = np.arange(12).reshape(4, 3)
    assert cross(np.random.default_rng(0), parents, 0.0).shape == (0, 3)
    assert cross(np.random.default_rng(0), parents, 1.0).shape == (8, 3)


@settings(max_examples=50, deadline=None)
@given(rng=generators, n=st.integers(1, 9), tokens=st.integers(1, 8), probability=st.floats(0, 1))
def test_mutation_replaces_at_most_one_token_by_an_allowed_one(rng, n, tokens, probability):
    people, allowed = rng.integers(0, 50, size=(n, tokens)), np.array([100, 107])
    before = people.copy()
    after = mutate(rng, people, allowed, probability)
    changed = after != people
    assert (changed.sum(1) <= 1).all() and np.isin(after[changed], allowed).all()
    assert (people == before).all()


def test_mutation_hits_a_quarter_of_everybody_and_every_position():
    people = np.zeros((20_000, 4), dtype=np.int64)
    changed = mutate(np.random.default_rng(0), people, np.array([1]), 0.25) == 1
    assert changed.any(1).mean() == pytest.approx(0.25, abs=0.01)
    assert changed.mean(0) == pytest.approx(np.full(4, 0.0625), abs=0.006)
    assert changed[:10_000].any(1).mean() == pytest.approx(0.25, abs=0.02)  # the best are not spared


def test_without_variation_the_best_half_is_what_remains():
    steps = evolve(
        np.random.default_rng(0), np.arange(9), tokens=3, population=8, generations=3, crossover=0.0, mutation=0.0
    )
    first = next(steps)
    losses = first.sum(1).astype(float)
    second = steps.send(losses)
    assert (second == first[np.argsort(losses, kind="stable")[:4]]).all()
    third = steps.send(second.sum(1).astype(float))
    assert (third == second).all()
    with pytest.raises(StopIteration):
        steps.send(third.sum(1).astype(float))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_search_finds_what_brute_force_finds(seed):
    allowed, goal = np.array([0, 2, 3, 7]), np.random.default_rng(seed).integers(0, 9, size=3)
    loss = lambda people: ((people - goal) ** 2).sum(1).astype(float)  # noqa: E731
    best = min(loss(np.array([ids]))[0] for ids in product(allowed, repeat=3))
    steps = evolve(
        np.random.default_rng(seed), allowed, tokens=3, population=20, generations=60, crossover=0.5, mutation=0.25
    )
    ids, found, start = run(steps, loss, keep_best=True)
    assert found == best == loss(ids[None])[0] <= start
    assert np.isin(ids, allowed).all()


@pytest.mark.parametrize("keep_best", [False, True])
def test_the_answer_is_the_best_of_the_last_generation_or_of_all(keep_best):
    seen: list[np.ndarray] = []
    loss = distance_to(np.array([4, 1, 3, 2]))

    def watched(people: np.ndarray) -> np.ndarray:
        seen.append(people)
        return loss(people)

    steps = small(tokens=4, mutation=1.0, crossover=0.2).steps(np.arange(10), "a cat")
    ids, found, start = run(steps, watched, keep_best=keep_best)
    minima = [loss(people).min() for people in seen]
    assert found == (min(minima) if keep_best else minima[-1]) == loss(ids[None])[0]
    assert start == minima[0] and len(seen) == 6


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_remembering_changes_nothing_but_the_number_of_evaluations(seed):
    loss, computed, asked = distance_to(np.array([4, 1, 3])), [], []
    memo = Memo(lambda people: computed.append(people) or loss(people))
    attack = small(tokens=3, seed=seed, population=20, generations=20)
    plain = run(attack.steps(np.arange(4), "a cat"), lambda people: asked.append(people) or loss(people))
    remembered = run(attack.steps(np.arange(4), "a cat"), memo)
    assert (plain[0] == remembered[0]).all() and plain[1:] == remembered[1:]
    everybody = {tuple(ids) for people in asked for ids in people}
    assert sorted(tuple(ids) for people in computed for ids in people) == sorted(everybody)
    assert len(everybody) < sum(map(len, asked))


def test_search_texts_have_their_own_random_numbers():
    first = {text: next(small().steps(np.arange(500), text)).tobytes() for text in ("a cat", "a dog")}
    assert first["a cat"] != first["a dog"]
    assert first["a cat"] == next(small().steps(np.arange(500), "a cat")).tobytes()
    assert first["a cat"] != next(small(seed=1).steps(np.arange(500), "a cat")).tobytes()


def by_hand(pipe, people: np.ndarray, goal: torch.Tensor) -> list[float]:
    """Losses one sequence at a time, each written out in full and summed row by row."""
    tokenizer, losses = pipe.tokenizer, []
    for ids in people.tolist():
        padding = [tokenizer.eos_token_id] * (76 - len(ids))
        sequence = torch.tensor([[tokenizer.bos_token_id, *ids, *padding]])
        rows = pipe.text_encoder(sequence).last_hidden_state[0].double()
        losses.append(sum(float(((row - aim) ** 2).sum()) for row, aim in zip(rows, goal.double(), strict=False)))
    return losses


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("rows", [None, 9])
def test_losses_equal_those_made_by_hand(tiny_pipe, batch_size, rows):
    space = Space.of(tiny_pipe, 5, rows)
    people = np.random.default_rng(0).choice(space.allowed, size=(7, 5))
    goal = torch.randn(77, 32, generator=torch.Generator().manual_seed(0))[: space.rows]
    assert space.losses(people, goal, batch_size).tolist() == pytest.approx(by_hand(tiny_pipe, people, goal), rel=1e-5)


def test_every_id_that_is_not_special_may_be_used(tiny_pipe):
    allowed = Space.of(tiny_pipe, 5, None).allowed.tolist()
    assert sorted([*allowed, *set(tiny_pipe.tokenizer.all_special_ids)]) == list(range(len(tiny_pipe.tokenizer)))


def test_attack_gives_each_prompt_the_text_of_its_search(tiny_pipe):
    attack = small()
    found = attack.attack(None, tiny_pipe, PROMPTS, CAT, None)
    assert [p.id for p in found] == ["0-ringabell", "1-ringabell", "2-ringabell"]
    assert [(p.seed, p.guidance_scale, p.source_id) for p in found] == [(3, 2.0, "0"), (4, None, "1"), (5, None, "2")]
    assert {p.group for p in found} == {"attack"} and {p.concept for p in found} == {"cat"}
    assert found[0].text == found[2].text != found[1].text
    assert {p.info["names_concept"] for p in found} == {False}
    reverse = attack.attack(None, tiny_pipe, PROMPTS[::-1], CAT, None)[::-1]
    assert reverse == found and [p.info for p in reverse] == [p.info for p in found]
    assert small(batch_size=3).attack(None, tiny_pipe, PROMPTS[1:2], CAT, None)[0].text == found[1].text
    assert small(seed=1).attack(None, tiny_pipe, PROMPTS[:1], CAT, None)[0].text != found[0].text
    assert attack.attack(None, tiny_pipe, [], CAT, None) == []


def test_info_says_what_was_spent_and_found(tiny_pipe):
    info = small().attack(None, tiny_pipe, PROMPTS[:1], CAT, None)[0].info
    assert json.loads(json.dumps(info)) == info
    assert (info["tokens"], info["eta"], info["population"], info["generations"]) == (5, 3.0, 12, 6)
    assert 12 <= info["evaluations"] <= 12 * 6 * 2 and info["fitness"] < info["fitness_start"]


def test_fitness_is_the_distance_to_prompt_plus_concept(tiny_pipe):
    prompt = small(rows=None, seed=2).attack(None, tiny_pipe, PROMPTS[:1], CAT, None)[0]
    goal = diffusion.encode(tiny_pipe, ["a cat"])[0] + 3.0 * PAIRS.vector(tiny_pipe, CAT)
    text = diffusion.encode(tiny_pipe, [prompt.text])[0]
    assert prompt.info["fitness_text"] == pytest.approx(float(((text - goal) ** 2).sum()), rel=1e-4)
    ids = tiny_pipe.tokenizer(prompt.text)["input_ids"][1:-1]
    if prompt.info["retokenised_equal"]:
        assert by_hand(tiny_pipe, np.array([ids]), goal)[0] == pytest.approx(prompt.info["fitness"], rel=1e-4)


def test_the_search_beats_random_search_of_equal_cost(tiny_pipe):
    attack = small(population=40, generations=15, tokens=6)
    _, found = next(iter(attack.search(tiny_pipe, ["a cat"], CAT)))
    space = Space.of(tiny_pipe, 6, 12)
    goal = (diffusion.encode(tiny_pipe, ["a cat"])[0] + 3.0 * PAIRS.vector(tiny_pipe, CAT))[:12]
    anybody = np.random.default_rng(0).choice(space.allowed, size=(found["evaluations"], 6))
    assert found["fitness"] < space.losses(anybody, goal, 64).min()


def test_both_encoders_of_sdxl_are_searched(tiny_xl_pipe):
    found = small(rows=None).attack(None, tiny_xl_pipe, PROMPTS[:1], CAT, None)[0]
    if found.info["retokenised_equal"]:
        assert found.info["fitness_text"] == pytest.approx(found.info["fitness"], rel=1e-4)
    assert found.info["fitness"] < found.info["fitness_start"]


def test_no_attack_adds_no_prompt():
    assert NoAttack().attack(None, None, PROMPTS, CAT, None) == []
    assert (NoAttack.access, NoAttack.strength) == ("none", "text")
    assert (RingABell.access, RingABell.strength) == ("text_encoder", "text")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 0}, "tokens must be an integer >= 1; got 0"),
        ({"population": 1}, "population must be an integer >= 2; got 1"),
        ({"generations": 0}, "generations must be an integer >= 1; got 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer >= 1; got 2.5"),
        ({"seed": -1}, "seed must be an integer >= 0; got -1"),
        ({"crossover": 1.5}, "crossover must be a finite number >= 0 and <= 1; got 1.5; it is a probability"),
        ({"mutation": float("nan")}, "mutation must be a finite number >= 0 and <= 1; got nan; it is a probability"),
        ({"eta": float("inf")}, "eta must be a finite number; got inf"),
        ({"rows": 6}, "rows must be an integer >= 7; got 6; tokens + 2"),
    ],
)
def test_impossible_settings_are_refused_at_once(changes, message):
    with pytest.raises(ValueError) as error:
        small(**changes)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_more_tokens_or_rows_than_the_encoder_holds_are_refused(tiny_pipe):
    with pytest.raises(ValueError, match=r"tokens must be <= 75, .* got 76"):
        small(tokens=76, rows=None).attack(None, tiny_pipe, PROMPTS, CAT, None)
    with pytest.raises(ValueError, match=r"rows must be <= 77, .* got 78"):
        small(rows=78).attack(None, tiny_pipe, PROMPTS, CAT, None)
    assert small(tokens=75, rows=None, generations=1).attack(None, tiny_pipe, PROMPTS[:1], CAT, None)[0].text


def test_the_yaml_holds_every_field_with_the_papers_values():
    config = OmegaConf.to_container(OmegaConf.load(CONF / "ringabell.yaml"))
    brought = {"vector"}  # by the yaml's defaults: the model's or the concept's own
    defaults = {f.name: f.default for f in fields(RingABell) if f.default is not MISSING and f.name not in brought}
    assert {k: v for k, v in config.items() if k not in ("_target_", "defaults")} == {**defaults, "seed": "${seed}"}
    assert OmegaConf.load(CONF / "ringabell_k77.yaml").tokens == 75


def test_fewer_sources_share_what_was_found_by_turns_and_keep_their_own_seeds(tiny_pipe):
    from dataclasses import replace

    alone = small().attack(None, tiny_pipe, PROMPTS, CAT, None)
    shared = replace(small(), sources=1).attack(None, tiny_pipe, PROMPTS, CAT, None)
    assert {p.text for p in shared} == {alone[0].text}
    assert [p.seed for p in shared] == [p.seed for p in PROMPTS] and {p.source_id for p in shared} <= {"0", "2"}
    with pytest.raises(ValueError, match="sources"):
        replace(small(), sources=0)
