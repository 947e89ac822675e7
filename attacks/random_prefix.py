"""Control: random tokens before the prompt. What does a search add to disturbing the text at random?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attacks import free_tokens
from attacks.controls import Candidate, Control
from attacks.queries import names_concept
from erasebench.fields import integer
from erasebench.protocols import Judge
from erasebench.types import Concept, Pipeline, Prompt


@dataclass(frozen=True, kw_only=True)
class RandomPrefix(Control):
    """Puts k random tokens before each prompt, new ones for each query, until the judge sees the concept.

    The random attacker of UnlearnDiffAtk's repository (arXiv 2310.11868), which tries 40 prefixes: the same form of
    text, the same number of images, no gradient. Tokens are drawn evenly from every id that is not special. The decoded
    string is the attack; ``retokenised_equal`` says whether the tokenizer gives the drawn ids and the prompt's own
    again, and ``names_concept`` whether the prefix happens to say one of the concept's phrases. A prompt too long for k
    more tokens is cut at its end before the plain query too, as UnlearnDiffAtk does; ``truncated`` says so.

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
        integer("tokens", self.tokens, least=1, hint="UnlearnDiffAtk uses 3 and 5")

    def attack(
        self, pipe: Pipeline, original: Pipeline, prompts: Sequence[Prompt], concept: Concept, judge: Judge
    ) -> list[Prompt]:
        """As :meth:`attacks.controls.Control.attack`, on prompts that leave room for k tokens."""
        room = pipe.tokenizer.model_max_length - 2
        if self.tokens > room:
            raise ValueError(f"tokens must be <= {room}, what fits between start and end of text; got {self.tokens}")
        fits = lambda n: n + self.tokens <= room  # noqa: E731
        texts = [free_tokens.shortened(pipe.tokenizer, prompt.text, fits) for prompt in prompts]
        fitted = [prompt.with_(text=text) for prompt, text in zip(prompts, texts, strict=True)]
        found = super().attack(pipe, original, fitted, concept, judge)
        cut = [prompt.text != text for prompt, text in zip(prompts, texts, strict=True)]
        return [prompt.with_(info={**prompt.info, "truncated": c}) for prompt, c in zip(found, cut, strict=True)]

    def candidates(self, pipe: Pipeline, prompts: Sequence[Prompt], concept: Concept) -> Candidate:
        """The prompt behind tokens of its own for each query, with its own noise."""
        tokenizer = pipe.tokenizer
        allowed = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)

        def candidate(prompt: Prompt, query: int) -> Prompt:
            ids = self.draw(allowed, prompt, query)
            prefix = free_tokens.decode(tokenizer, ids).strip()
            text = f"{prefix} {prompt.text}"
            info = {
                "retokenised_equal": free_tokens.prompt_tokens(tokenizer, text)
                == ids + free_tokens.prompt_tokens(tokenizer, prompt.text),
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
