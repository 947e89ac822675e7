"""The genetic algorithm of Ring-A-Bell: generations of token sequences, their losses, and who is looked up.

The search knows no model: it yields a generation and is sent its losses. Source: the notebook of Ring-A-Bell
(arXiv 2310.10012), which fixes what the paper leaves open.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Losses = NDArray[np.float64]


def evolve(
    rng: np.random.Generator,
    allowed: Ids,
    *,
    tokens: int,
    population: int,
    generations: int,
    crossover: float,
    mutation: float,
) -> Generator[Ids, Losses, None]:
    """Yields each generation [n, tokens] and is sent its losses [n]; the search itself knows no model.

    The first generation is uniform over ``allowed``. Then: the best half of ``population`` survives, pairs of survivors
    have children, everybody may mutate. Nothing follows the last generation, whose best is the paper's answer.
    """
    people = rng.choice(allowed, size=(population, tokens))
    for generation in range(1, generations + 1):
        losses = yield people
        if generation < generations:
            survivors = people[np.argsort(losses, kind="stable")[: population // 2]]
            children = cross(rng, survivors, crossover)
            people = mutate(rng, np.concatenate([survivors, children]), allowed, mutation)


def cross(rng: np.random.Generator, parents: Ids, probability: float) -> Ids:
    """Two children of each chosen parent: its head with the tail of a random mate, and vice versa."""
    n, tokens = parents.shape
    chosen = np.flatnonzero(rng.random(n) < probability)
    first, second = parents[chosen], parents[rng.integers(n, size=len(chosen))]
    cut = rng.integers(1, max(tokens, 2), size=(len(chosen), 1))
    head = np.arange(tokens) < cut
    return np.concatenate([np.where(head, first, second), np.where(head, second, first)])


def mutate(rng: np.random.Generator, people: Ids, allowed: Ids, probability: float) -> Ids:
    """A copy of ``people`` in which each, with ``probability``, has one random position replaced from ``allowed``."""
    people = people.copy()
    hit = np.flatnonzero(rng.random(len(people)) < probability)
    people[hit, rng.integers(people.shape[1], size=len(hit))] = rng.choice(allowed, size=len(hit))
    return people


def run(
    steps: Generator[Ids, Losses, None], loss: Callable[[Ids], Losses], *, keep_best: bool = False
) -> tuple[Ids, float, float]:
    """Drives ``evolve`` with a loss: the answer [tokens], its loss, and the best loss of the first generation."""
    people = next(steps)
    losses = loss(people)
    start = float(losses.min())
    ids, best = people[losses.argmin()], start
    while True:
        try:
            people = steps.send(losses)
        except StopIteration:
            return ids, best, start
        losses = loss(people)
        if not keep_best or losses.min() < best:
            ids, best = people[losses.argmin()], float(losses.min())


@dataclass(frozen=True)
class Memo:
    """A loss that computes each distinct individual once: survivors and repeated children are looked up.

    >>> seen = []
    >>> memo = Memo(lambda ids: seen.extend(ids.tolist()) or ids.sum(1).astype(float))
    >>> memo(np.array([[1, 2], [1, 2], [3, 4]])).tolist(), memo(np.array([[3, 4]])).tolist(), len(seen)
    ([3.0, 3.0, 7.0], [7.0], 2)
    """

    loss: Callable[[Ids], Losses]
    known: dict[bytes, float] = field(default_factory=dict)

    def __call__(self, people: Ids) -> Losses:
        keys = [person.tobytes() for person in people]
        new = {key: i for i, key in enumerate(keys) if key not in self.known}
        if new:
            self.known.update(zip(new, self.loss(people[list(new.values())]).tolist(), strict=True))
        return np.array([self.known[key] for key in keys])
