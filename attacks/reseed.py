"""Control: the same prompt with other seeds. What does an attack add to trying again?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from erasebench.prompt_files import place_hash
from erasebench.querying import QueryAttack, search
from erasebench.types import Concept, Judge, Pipeline, Prompt


@dataclass(frozen=True, kw_only=True)
class Reseed(QueryAttack):
    """Draws each prompt with other noise until the judge sees the concept; the text never changes.

    The seed search of UnlearnDiffAtk's repository (arXiv 2310.11868), which tries 40 seeds. An adaptive attack that is
    not better than this with as many images found luck, not a prompt.

    Args:
        see :class:`erasebench.querying.QueryAttack`.

    Raises:
        ValueError: queries or batch_size below 1, seed below 0.

    Cost: up to ``queries`` images per prompt.
    """

    def attack(
        self, pipe: Pipeline, original: Pipeline, prompts: Sequence[Prompt], concept: Concept, judge: Judge
    ) -> list[Prompt]:
        """One prompt per prompt, in order, with its text and the seed that was kept; see ``querying.search``."""
        return search(pipe, judge, prompts, concept, self.candidate, settings=self, name="reseed")

    def candidate(self, prompt: Prompt, query: int) -> Prompt:
        """The prompt with the noise of its ``query``-th try.

        >>> prompt = Prompt(id="0", text="a cat")
        >>> a, b = Reseed().candidate(prompt, 1), Reseed().candidate(prompt, 2)
        >>> a.text == b.text == "a cat" and a.seed != b.seed
        True
        """
        return prompt.with_(seed=place_hash("reseed", self.seed, prompt.digest(), query))
