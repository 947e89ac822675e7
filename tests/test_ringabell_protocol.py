"""Ring-A-Bell's genetic step against an enumeration of all its outcomes; prompts one by one; killed and run again."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import product

import numpy as np
import pytest

from attacks.pairs import TextPairs
from attacks.ringabell import RingABell, Space
from erasebench.store import workspace
from erasebench.types import Concept, Prompt

CAT = Concept(name="cat", phrases=("cat",), anchor="dog")
VECTOR = TextPairs(pairs=(("a {}", "a dog"), ("the {}", "the dog")))
SMALL = RingABell(vector=VECTOR, tokens=3, population=6, generations=4, batch_size=4)
PROMPTS = [Prompt(id=str(i), text=text, seed=i) for i, text in enumerate(["a cat", "cat on blue", "a red cat"])]


def next_generation(survivors, crossover, mutation, vocabulary=(0, 1)):
    """Every outcome of one step with its probability: length -> position -> individual -> probability.

    Two survivors of two tokens: each has two children with that probability, with either survivor as the mate; the cut
    can only lie between the tokens. Then each individual has, with that probability, one of its two tokens redrawn.
    """
    found = defaultdict(float)
    for parents in product((False, True), repeat=2):
        chosen = [i for i in (0, 1) if parents[i]]
        weight = np.prod([crossover if p else 1 - crossover for p in parents])
        for mates in product((0, 1), repeat=len(chosen)):
            heads = [(survivors[i][0], survivors[m][1]) for i, m in zip(chosen, mates, strict=True)]
            tails = [(survivors[m][0], survivors[i][1]) for i, m in zip(chosen, mates, strict=True)]
            people = [*survivors, *heads, *tails]
            for place, person in enumerate(people):
                at = weight * 0.5 ** len(chosen)
                found[len(people), place, person] += at * (1 - mutation)
                for position, token in product((0, 1), vocabulary):
                    new = (token, person[1]) if position == 0 else (person[0], token)
                    found[len(people), place, new] += at * mutation / 4
    return found


def test_a_genetic_step_has_the_distribution_that_enumeration_gives():
    attack = RingABell(vector=VECTOR, tokens=2, population=4, generations=2, crossover=0.4, mutation=0.3)
    seen, total = defaultdict(Counter), Counter()
    for i in range(6000):
        steps = attack.steps(np.array([0, 1]), f"text {i}")
        first = next(steps)
        losses = (2 * first[:, 0] + first[:, 1]).astype(float)
        people = steps.send(losses)
        best = tuple(tuple(person) for person in first[np.argsort(losses, kind="stable")[:2]].tolist())
        total[best] += 1
        for place, person in enumerate(people.tolist()):
            seen[best][len(people), place, tuple(person)] += 1
    common = [best for best, n in total.items() if n > 300]
    assert len(common) >= 4
    for best in common:
        expected, n = next_generation(best, 0.4, 0.3), total[best]
        assert set(seen[best]) <= set(expected)
        for outcome, p in expected.items():
            assert seen[best][outcome] / n == pytest.approx(p, abs=5 * (p * (1 - p) / n) ** 0.5), (best, outcome)


def outcome(found):
    skipped = ("seconds", "fitness", "fitness_start", "fitness_text")
    return [(p.id, p.text, p.seed, {k: v for k, v in p.info.items() if k not in skipped}) for p in found]


def test_prompts_do_not_influence_one_another(tiny_pipe):
    whole = SMALL.attack(tiny_pipe, tiny_pipe, PROMPTS, CAT, None)
    alone = [SMALL.attack(tiny_pipe, tiny_pipe, [p], CAT, None)[0] for p in PROMPTS]
    reversed_ = SMALL.attack(tiny_pipe, tiny_pipe, PROMPTS[::-1], CAT, None)[::-1]
    assert outcome(whole) == outcome(alone) == outcome(reversed_)
    assert len({p.text for p in whole}) == 3


def test_killed_and_resumed_gives_the_same_prompts_without_searching_twice(tiny_pipe, tmp_path, monkeypatch):
    losses, calls, killed_at = Space.losses, [], None

    def counted(self, *args, **options):
        calls.append(1)
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        return losses(self, *args, **options)

    monkeypatch.setattr(Space, "losses", counted)
    alone = [SMALL.attack(tiny_pipe, tiny_pipe, [p], CAT, None)[0] for p in PROMPTS[:1]]
    first = len(calls)
    whole = SMALL.attack(tiny_pipe, tiny_pipe, PROMPTS, CAT, None)
    total = len(calls) - first
    calls.clear()
    killed_at = first + 2  # in the search of the second prompt
    with pytest.raises(KeyboardInterrupt), workspace.use(tmp_path):
        SMALL.attack(tiny_pipe, tiny_pipe, PROMPTS, CAT, None)
    calls.clear()
    killed_at = None
    with workspace.use(tmp_path):
        resumed = SMALL.attack(tiny_pipe, tiny_pipe, PROMPTS, CAT, None)
    assert outcome(resumed) == outcome(whole) and outcome(resumed)[:1] == outcome(alone)
    assert len(calls) == total - first
