"""Published prompts as an attack: nothing is searched, the model is asked what others found or wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from erasebench.diffusion import cut_texts
from erasebench.prompts.published import PublishedPrompts
from erasebench.protocols import Attack, Judge
from erasebench.types import Concept, Group, Pipeline, Prompt


@dataclass(frozen=True, kw_only=True)
class PromptSet(PublishedPrompts, Attack):
    """Returns the prompts of a file, each with its own seed and guidance; the run's target prompts are not used.

    A static set tells how a model answers these prompts and nothing about prompts made for it: a low rate is no
    robustness. Sets that were optimised against one method (``p4d_*``: ESD) overstate its weakness and understate that
    of others. Rates on the original model stand beside in every table, and are the ceiling of the set.

    Prompts with more tokens than the text encoder takes lose their end, in the original model as in the erased one:
    they are kept and marked ``truncated`` in ``info``; the step that draws them counts them. The other counts of
    ``info`` are of the whole set, see :meth:`erasebench.prompts.published.PublishedPrompts.select`. Cost: no model
    evaluation.

    Args:
        see :class:`erasebench.prompts.published.PublishedPrompts`.

    Raises:
        FileNotFoundError, ValueError: see :meth:`erasebench.prompts.published.PublishedPrompts.prompts`.
    """

    group: Group = "attack"

    node: ClassVar[str] = "attack"
    access = "none"
    strength = "text"

    def attack(
        self, pipe: Pipeline, original: Pipeline, prompts: Sequence[Prompt], concept: Concept, judge: Judge
    ) -> list[Prompt]:
        """The set's prompts about ``concept`` in the file's order, group ``attack``."""
        found, counts = self.select(concept)
        cut = cut_texts(original, [p.text for p in found])
        return [p.with_(group="attack", info=counts | {"truncated": p.text in cut}) for p in found]
