"""Control: random tokens before the prompt. What does a search add to disturbing the text at random?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attacks import denoising
from attacks.controls import Candidate, Control
from attacks.queries import check_whole, names_concept
from erasebench.types import Concept, Pipeline, Prompt


@dataclass(frozen=True, kw_only=True)
class RandomPrefix(Control):
    """Puts k random tokens before each prompt, new ones for each query, until the judge sees the concept.

    The random attacker of UnlearnDiffAtk's repository (arXiv 2310.11868), which tries 40 prefixes: the same form of
    text, the same number of images, no gradient. Tokens are drawn evenly from every id that is not special. The decoded
    string is the attack; ``retokenised_equal`` says whether the tokenizer gives the drawn ids and the prompt's own
    again, ``truncated`` whether the end of the prompt is pushed out of the encoder, and ``names_concept`` whether the
    prefix happens to say one of the concept's phrases.

    Args:
        tokens: k; UnlearnDiffAtk uses 5 for nudity and 3 for objects and styles.

    The remaining fields are those of :class:`attacks.controls.Control`.

    Raises:
        ValueError: a value out of its range; more tokens than the encoder takes.
    """

    tokens: int = 3

    name = "random_prefix"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("tokens", self.tokens, 1, "UnlearnDiffAtk uses 3 and 5")

    def candidates(self, pipe: Pipeline, prompts: Sequence[Prompt], concept: Concept) -> Candidate:
        """The prompt behind tokens of its own for each query, with its own noise."""
        tokenizer = pipe.tokenizer
        room = tokenizer.model_max_length - 2
        if self.tokens > room:
            raise ValueError(f"tokens must be <= {room}, what fits between start and end of text; got {self.tokens}")
        allowed = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)

        def candidate(prompt: Prompt, query: int) -> Prompt:
            ids = self.draw(allowed, prompt, query)
            prefix = denoising.decode(tokenizer, ids).strip()
            text = f"{prefix} {prompt.text}"
            found = denoising.prompt_tokens(tokenizer, text)
            info = {
                "retokenised_equal": found == ids + denoising.prompt_tokens(tokenizer, prompt.text),
                "truncated": len(found) > room,
                "names_concept": names_concept(prefix, concept),
            }
            return prompt.with_(text=text, info=info)

        return candidate

    def draw(self, allowed: np.ndarray, prompt: Prompt, query: int) -> list[int]:
        """The k ids of a prompt's ``query``-th prefix, each drawn evenly from ``allowed`` int64 [n].

        >>> ids = RandomPrefix().draw(np.arange(1000), Prompt(id="0", text="a cat"), 1)
        >>> len(ids), ids == RandomPrefix().draw(np.arange(1000), Prompt(id="1", text="a cat"), 2)
        (3, False)
        """
        rng = np.random.default_rng(self.luck(prompt, query))
        return [int(i) for i in rng.choice(allowed, size=self.tokens)]
