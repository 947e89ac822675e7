"""Control: the best of n plain prompts. What does an attack add to asking the same thing in other plain words?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from erasebench.prompt_files import place_hash
from erasebench.querying import QueryAttack, search
from erasebench.types import Concept, Judge, Pipeline, Prompt


@dataclass(frozen=True, kw_only=True)
class BestOfN(QueryAttack):
    """Tries the run's other plain prompts by turns, each with new noise, and keeps the best by the judge.

    No text is changed: candidates are the target prompts of the run, so this needs a run with several. It stops at the
    first image that shows the concept, which gives the same success as the best of all n, and otherwise hands in the
    candidate with the highest score. Probes that keep the best of many samples by a classifier ("When Are Concepts
    Erased", arXiv 2505.17013: best of 24) should be read beside it.

    Args:
        see :class:`erasebench.querying.QueryAttack`.

    Raises:
        ValueError: queries or batch_size below 1, seed below 0.

    Cost: up to ``queries`` images per prompt.
    """

    def attack(
        self, pipe: Pipeline, original: Pipeline, prompts: Sequence[Prompt], concept: Concept, judge: Judge
    ) -> list[Prompt]:
        """One prompt per prompt, in order, whose text is that of a plain prompt; see ``querying.search``."""
        texts = list(dict.fromkeys(prompt.text for prompt in prompts))
        place = {text: i for i, text in enumerate(texts)}

        def candidate(prompt: Prompt, query: int) -> Prompt:
            text = texts[(place[prompt.text] + query) % len(texts)]
            return prompt.with_(text=text, seed=place_hash("best_of_n", self.seed, prompt.digest(), query))

        return search(pipe, judge, prompts, concept, candidate, settings=self, name="best_of_n")
