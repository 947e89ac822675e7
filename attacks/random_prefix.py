"""Control: random tokens before the prompt. What does a search add to disturbing the text at random?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from erasebench.prompt_files import place_hash
from erasebench.published import token_count
from erasebench.querying import QueryAttack, search
from erasebench.types import Concept, Judge, Pipeline, Prompt


@dataclass(frozen=True, kw_only=True)
class RandomPrefix(QueryAttack):
    """Puts k random tokens before each prompt, new ones for each query, until the judge sees the concept.

    The random attacker of UnlearnDiffAtk's repository (arXiv 2310.11868), which tries 40 prefixes: the same form of
    text, the same number of images, no gradient. Tokens are drawn evenly from every id that is not special. The decoded
    string is the attack; ``retokenised_equal`` says whether the tokenizer gives the drawn ids and the prompt's own
    again, ``truncated`` whether the end of the prompt is pushed out of the encoder, and ``names_concept`` whether the
    prefix happens to say one of the concept's phrases.

    Args:
        tokens: k; UnlearnDiffAtk uses 5 for nudity and 3 for objects and styles.
        see :class:`erasebench.querying.QueryAttack` for the others.

    Raises:
        ValueError: tokens, queries or batch_size below 1, seed below 0; more tokens than the encoder takes.

    Cost: up to ``queries`` images per prompt.
    """

    tokens: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.tokens, int) or isinstance(self.tokens, bool) or self.tokens < 1:
            raise ValueError(f"tokens must be an integer >= 1; got {self.tokens!r}; UnlearnDiffAtk uses 3 and 5")

    def attack(
        self, pipe: Pipeline, original: Pipeline, prompts: Sequence[Prompt], concept: Concept, judge: Judge
    ) -> list[Prompt]:
        """One prompt per prompt, in order, with its seed and guidance; see ``querying.search`` for ``info``."""
        tokenizer = pipe.tokenizer
        room = tokenizer.model_max_length - 2
        if self.tokens > room:
            raise ValueError(f"tokens must be <= {room}, what fits between start and end of text; got {self.tokens}")
        allowed = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
        phrases = [f" {phrase.lower()} " for phrase in concept.phrases]

        def candidate(prompt: Prompt, query: int) -> Prompt:
            ids = self.draw(allowed, prompt, query)
            prefix = tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip()
            text = f"{prefix} {prompt.text}"
            words = f" {' '.join(prefix.lower().split())} "
            info = {
                "retokenised_equal": _ids(tokenizer, text) == ids + _ids(tokenizer, prompt.text),
                "truncated": token_count(tokenizer, text) > room,
                "names_concept": any(phrase in words for phrase in phrases),
            }
            return prompt.with_(text=text, info=info)

        return search(pipe, judge, prompts, concept, candidate, settings=self, name="random_prefix")

    def draw(self, allowed: np.ndarray, prompt: Prompt, query: int) -> list[int]:
        """The k ids of a prompt's ``query``-th prefix, each drawn evenly from ``allowed`` int64 [n].

        >>> ids = RandomPrefix().draw(np.arange(1000), Prompt(id="0", text="a cat"), 1)
        >>> len(ids), ids == RandomPrefix().draw(np.arange(1000), Prompt(id="1", text="a cat"), 2)
        (3, False)
        """
        rng = np.random.default_rng(place_hash("random_prefix", self.seed, prompt.digest(), query))
        return [int(i) for i in rng.choice(allowed, size=self.tokens)]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])
