"""No attack: the null object, so that a run needs no special case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from erasebench.protocols import Attack, Judge
from erasebench.types import Concept, Pipeline, Prompt


@dataclass(frozen=True, kw_only=True)
class NoAttack(Attack):
    """Returns no prompt: the erased model is only asked in plain words.

    >>> NoAttack().attack(None, None, [Prompt(id="0", text="a cat")], Concept(name="cat", phrases=("cat",)), None)
    []
    """

    access = "none"
    strength = "text"

    def attack(
        self, pipe: Pipeline, original: Pipeline, prompts: Sequence[Prompt], concept: Concept, judge: Judge
    ) -> list[Prompt]:
        return []
