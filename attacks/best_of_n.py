"""Control: the best of n plain prompts. What does an attack add to asking the same thing in other plain words?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attacks.controls import Candidate, Control
from erasebench.types import Concept, Pipeline, Prompt


@dataclass(frozen=True, kw_only=True)
class BestOfN(Control):
    """Tries the run's other plain prompts by turns, each with new noise, and keeps the best by the judge.

    No text is changed: candidates are the target prompts of the run, so this needs a run with several. It stops at the
    first image that shows the concept, which gives the same success as the best of all n. Probes that keep the best of
    many samples by a classifier ("When Are Concepts Erased", arXiv 2505.17013: best of 24) should be read beside it.
    Fields: :class:`attacks.controls.Control`.
    """

    name = "best_of_n"

    def candidates(self, pipe: Pipeline, prompts: Sequence[Prompt], concept: Concept) -> Candidate:
        """The text that stands ``query`` places after the prompt's own, with other noise."""
        texts = list(dict.fromkeys(prompt.text for prompt in prompts))
        place = {text: i for i, text in enumerate(texts)}

        def candidate(prompt: Prompt, query: int) -> Prompt:
            text = texts[(place[prompt.text] + query) % len(texts)]
            return prompt.with_(text=text, seed=self.luck(prompt, query))

        return candidate
