"""A prompt in which some tokens are free, the attack's to choose, and the vocabulary to choose from.

Tokens between start and end of text are words; free ones stand at some places among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attacks import denoising
from erasebench import diffusion
from erasebench.types import Pipeline


@dataclass(frozen=True)
class Layout:
    """A prompt with free tokens in it.

    Args:
        ids: all token ids as the pipeline lays them out, start, words, end, padding; int64 [tokens].
        free: rows of the free tokens, ascending; int64 [m].
        words: how many tokens stand between start and end.
    """

    ids: Tensor
    free: Tensor
    words: int

    def filled(self, chosen: Tensor) -> list[int]:
        """The words' ids with some ids [m] in the free places."""
        ids = self.ids.clone()
        ids[self.free] = chosen
        return ids[1 : self.words + 1].tolist()


def lay_out(tokenizer: Any, prompt: Sequence[int], places: Sequence[int]) -> Layout:
    """A prompt's tokens with free tokens at some ``places``, counted among the words from 0.

    Raises:
        ValueError: more words than fit between start and end of text.
    """
    length, free = tokenizer.model_max_length, set(places)
    words = len(prompt) + len(free)
    if words > length - 2:
        raise ValueError(f"words must number <= {length - 2}, what fits a prompt; got {words}; use fewer free tokens")
    rest = iter(prompt)
    middle = [tokenizer.eos_token_id if i in free else next(rest) for i in range(words)]
    ids = [tokenizer.bos_token_id, *middle, tokenizer.eos_token_id]
    ids += [tokenizer.pad_token_id] * (length - len(ids))
    return Layout(torch.tensor(ids), torch.tensor(sorted(free)) + 1, words)


def prompt_tokens(tokenizer: Any, text: str) -> list[int]:
    """A text's own token ids, without start, end, padding or truncation."""
    return tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Token ids as the string that a user would type."""
    return tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def shortened(tokenizer: Any, text: str, fits: Callable[[int], bool]) -> str:
    """The text itself if ``fits(number of its own tokens)``, else what is left when enough of its last are taken."""
    ids = prompt_tokens(tokenizer, text)
    count = len(ids)
    while not fits(count):
        ids = ids[:-1]
        text = decode(tokenizer, ids)
        count = len(prompt_tokens(tokenizer, text))
    return text


@dataclass(frozen=True)
class Vocabulary:
    """The tokens an attack may use: all but the special ones, which nobody can type.

    Args:
        ids: int64 [v], ascending.
        table: their embeddings [v, width], float32 (or float64).
    """

    ids: Tensor
    table: Tensor

    @cached_property
    def directions(self) -> Tensor:
        """The embeddings, each of length 1."""
        return F.normalize(self.table, dim=1)

    @classmethod
    def of(cls, pipe: Pipeline) -> Vocabulary:
        table = diffusion.token_table(pipe).detach()
        size = min(len(pipe.tokenizer), len(table))
        ids = torch.from_numpy(np.setdiff1d(np.arange(size), pipe.tokenizer.all_special_ids)).to(table.device)
        return cls(ids, table[ids].to(denoising.precise(pipe)))
