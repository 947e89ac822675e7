"""Control: the same prompt with other seeds. What does an attack add to trying again?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attacks.controls import Candidate, Control
from erasebench.types import Concept, Pipeline, Prompt


@dataclass(frozen=True, kw_only=True)
class Reseed(Control):
    """Draws each prompt with other noise until the judge sees the concept; the text never changes.

    The seed search of UnlearnDiffAtk's repository (arXiv 2310.11868), which tries 40 seeds. An adaptive attack that is
    not better than this with as many images found luck, not a prompt. Fields: :class:`attacks.controls.Control`.

    >>> cat, prompt = Concept(name="cat", phrases=["cat"]), Prompt(id="0", text="a cat")
    >>> first, second = (Reseed().candidates(None, [prompt], cat)(prompt, query) for query in (1, 2))
    >>> first.text == second.text == "a cat", first.seed == second.seed
    (True, False)
    """

    name = "reseed"

    def candidates(self, pipe: Pipeline, prompts: Sequence[Prompt], concept: Concept) -> Candidate:
        """The prompt with other noise."""
        return lambda prompt, query: prompt.with_(seed=self.luck(prompt, query))
