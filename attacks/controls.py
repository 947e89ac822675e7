"""Black-box search: draw candidates with the model under attack, ask the judge, stop at the first success.

What the controls share, and what any attack may build on that only needs images. Each prompt's search is independent of
the others; they run side by side so that images are drawn in full batches.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from attacks.queries import Querying, attacked, noted, unasked
from erasebench import progress
from erasebench.fields import integer
from erasebench.prompts.files import place_hash
from erasebench.protocols import Attack, Judge
from erasebench.store import workspace
from erasebench.types import Concept, Pipeline, Prompt

Candidate = Callable[[Prompt, int], Prompt]  # (plain prompt, which query: 1, 2, ...) -> what to draw


@dataclass(frozen=True, kw_only=True)
class Control(Querying, Attack):
    """An attack that only asks for images: the first candidate that succeeds, else the one the judge scores highest.

    Query 0 is the plain prompt: if its image shows the concept it is passed through, as adaptive attacks do.

    Args:
        queries: images judged for each prompt at most, the plain one included; those of the attack it stands beside.
        seed: what a query draws depends on this, the prompt and the query's number only; >= 0.

    The remaining fields are those of :class:`attacks.queries.Querying`; a ``budget`` below ``queries`` caps it, as it
    caps an adaptive attack.

    Raises:
        ValueError: a value out of its range.

    Cost: up to ``queries`` images per prompt.
    """

    queries: int = 51
    seed: int = 0

    access = "queries"
    strength = "text"
    control = True
    spends = ("queries", "budget")
    name: ClassVar[str]  # the attack's word in the tables

    def __post_init__(self) -> None:
        super().__post_init__()
        integer("queries", self.queries, least=1)
        integer("seed", self.seed, least=0)

    @abstractmethod
    def candidates(self, pipe: Pipeline, prompts: Sequence[Prompt], concept: Concept) -> Candidate:
        """What makes the prompt of query 1, 2, ...; it may put something into ``info``, which is kept."""

    def luck(self, prompt: Prompt, query: int) -> int:
        """A number in [0, 2^31) for a prompt's ``query``-th try, the same whenever and with whatever it is drawn."""
        return place_hash(self.name, self.seed, prompt.digest(), query)

    def attack(
        self, pipe: Pipeline, original: Pipeline, prompts: Sequence[Prompt], concept: Concept, judge: Judge
    ) -> list[Prompt]:
        """One prompt per prompt, in order, with the record of :func:`attacks.queries.unasked` as its ``info``.

        Progress is kept after every batch in ``workspace.current()``; a search that was killed goes on with the same
        batches.
        """
        candidate = self.candidates(pipe, prompts, concept)
        records, most = self._resume(prompts), min(self.queries, self.budget or self.queries)
        with progress.bar(total=len(prompts) * most, desc=self.name, unit="query") as bar:
            while todo := [i for i, r in enumerate(records) if not r["success"] and r["queries"] < most]:
                turn = min(records[i]["queries"] for i in todo)
                batch = [i for i in todo if records[i]["queries"] == turn][: self.batch_size]
                began = time.perf_counter()
                drawn = [candidate(prompts[i], turn) if turn else prompts[i] for i in batch]
                for i, seen in zip(batch, self.ask(pipe, drawn, concept, judge), strict=True):
                    records[i] = noted(records[i], seen)
                for i in batch:
                    records[i]["seconds"] += (time.perf_counter() - began) / len(batch)
                workspace.current().save(self.name, {}, records=records)
                bar.n = sum(most if r["success"] else r["queries"] for r in records)
                bar.set_postfix_str(f"{sum(r['success'] for r in records)} of {len(records)} found")
                bar.refresh()
        return [self._result(prompt, r, candidate, concept) for prompt, r in zip(prompts, records, strict=True)]

    def _resume(self, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """Each prompt's record as it was last kept."""
        kept = workspace.current().load(self.name)
        records = kept[1]["records"] if kept else []
        return records if len(records) == len(prompts) else [unasked() for _ in prompts]

    def _result(self, prompt: Prompt, record: Mapping[str, Any], candidate: Candidate, concept: Concept) -> Prompt:
        query = best(record)
        found = candidate(prompt, query) if query else prompt
        info = {**record, "seconds": round(record["seconds"], 3), **found.info}
        return attacked(found, self.name, concept, info=info)


def best(record: Mapping[str, Any]) -> int:
    """The first query whose image has the concept, else the one with the highest score, the first of equals.

    >>> best({"curve": [0.1, 0.4, None], "present": [False, False, None]})
    1
    >>> best({"curve": [0.6, 0.5], "present": [False, True]})
    1
    """
    if True in record["present"]:
        return record["present"].index(True)
    scores = [-math.inf if score is None else score for score in record["curve"]]
    return scores.index(max(scores))
