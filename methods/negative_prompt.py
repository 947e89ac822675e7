"""Negative prompt: classifier-free guidance leads away from the concept's words. The baseline every table needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from erasebench import fields
from erasebench.diffusion import check_length, fork
from erasebench.protocols import Guide, Method
from erasebench.types import Concept, Pipeline


@dataclass(frozen=True, kw_only=True)
class NegativeGuide(Guide):
    """What :class:`NegativePrompt` sets on the pipeline it returns: ``empty`` stands in for the empty text."""

    empty: str
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "extra", tuple(self.extra))

    def needed(self, scales: Sequence[float], step: int) -> bool:
        """Never: there is no further branch."""
        return False

    def combine(
        self, empty: Tensor, text: Tensor, extra: Sequence[Tensor], scale: Tensor, step: int, state: dict[str, Tensor]
    ) -> Tensor:
        """``e_N + g (e_p - e_N)``."""
        return empty + scale * (text - empty)


@dataclass(frozen=True, kw_only=True)
class NegativePrompt(Method):
    r"""Returns the pipeline with a guide under which each step predicts

    .. math:: \bar e = e_N + g (e_p - e_N)

    for the prompt p and the concept's words N in place of the empty text. Classifier-free guidance, Ho and Salimans,
    arXiv:2207.12598, as every user interface offers it. At g = 1 it does nothing, since e_N cancels.

    Weights stay as they are. Cost: none, the branch of the empty text is replaced.

    Args:
        prefix: put before the concept's phrases.

    Raises:
        ValueError: words that the tokenizer would cut; a pipeline that has a guide.

    Several concepts are erased jointly, by naming all of them; one after another they are not.

    >>> NegativePrompt().text(Concept(name="cat", phrases=("cat", "kitty")))
    'cat, kitty'
    """

    prefix: str = ""

    together = ("joint",)
    guard = True

    def __post_init__(self) -> None:
        fields.text("prefix", self.prefix, hint="write method.prefix= for none")

    def text(self, concept: Concept) -> str:
        """The negative prompt N: the concept's phrases, joined by commas."""
        return self.prefix + ", ".join(phrase for part in concept.singles for phrase in part.phrases)

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """The same weights with a guide; ``pipe`` itself gets none."""
        if getattr(pipe, "guide", None) is not None:
            raise ValueError(
                "negative_prompt needs a pipeline without a guide; got one erased by a guide; use together=joint"
            )
        text = self.text(concept)
        check_length(pipe, "negative prompt", text)
        erased = fork(pipe)
        erased.guide = NegativeGuide(empty=text)
        return erased
