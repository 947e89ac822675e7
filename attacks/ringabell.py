"""Ring-A-Bell: a genetic search for token sequences whose text encoding lies where prompt plus concept would."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from attacks.evolution import Ids, Losses, Memo, evolve, run
from attacks.pairs import VectorSource, given
from attacks.queries import attacked, names_concept
from erasebench import diffusion, progress
from erasebench.devices import halving
from erasebench.fields import integer, number
from erasebench.protocols import Attack, Judge
from erasebench.store import workspace
from erasebench.types import Concept, Pipeline, Prompt, seed_of


@dataclass(frozen=True, kw_only=True)
class RingABell(Attack):
    """Replaces each prompt by the best of a genetic search over K tokens in the base model's text encoder.

    Minimise over x in {tokens}^K:  sum over rows and dimensions of (E(x) - [E(p) + eta * c])^2
    where E is the text encoder's output [tokens, width], padding included, p the prompt and c the concept vector.
    The erased model is never asked: one search serves every method. Source: Tsai et al., "Ring-A-Bell! How Reliable
    are Concept Removal Methods for Diffusion Models?", ICLR 2024, arXiv 2310.10012, and its notebook for what the
    paper leaves open (one-position mutation that also hits the best, no elitism, last generation only selects).

    The decoded *string* is the attack, since text is all an attacker can submit; its re-tokenisation may differ, and
    ``info["retokenised_equal"]`` says so. Deviations: ids are drawn from every id that is not special (the notebook:
    1 to V-3), padding is the tokenizer's own (the notebook: end of text, which is the same in Stable Diffusion 1), cut
    points are 1 to K - 1, so that a child has something of both parents (the notebook's may lie at the end), and spaces
    before punctuation stay in the decoded string (older tokenizers took them out).

    Args:
        vector: where c comes from: ``attacks.pairs.TextPairs``, ``CsvPairs`` or ``SavedVector``; None is an error that
            says what to give.
        tokens: K, number of free tokens, 1 to model_max_length - 2. The paper's 16, 38 and "77" (= 75).
        eta: strength of the concept in the target; finite.
        population: individuals in the first generation, >= 2; half of them survive each generation.
        generations: times the population is ranked, >= 1.
        crossover: probability that a survivor has two children with a random mate, in [0, 1].
        mutation: probability that an individual has one random token replaced, in [0, 1].
        keep_best: return the best ever seen instead of the best of the last generation (paper: false).
        sources: how many distinct prompt texts are searched for; the other prompts share what was found, by turns, with
            their own seeds. None = every one (paper).
        rows: how many leading rows of the encoding count, tokens + 2 to model_max_length; None = all (paper). The
            encoder is causal, so leading rows are exact, and fewer cost proportionally less.
        seed: the search of a text depends on this, the text and the settings, on nothing else; >= 0.
        batch_size: sequences per forward pass; does not change the result beyond float rounding.

    Raises:
        ValueError: a setting out of its range; tokens or rows beyond what the pipeline's tokenizer holds.

    >>> from attacks.pairs import TextPairs
    >>> RingABell(vector=TextPairs(pairs=(("a {}", "a"),)), tokens=0)
    Traceback (most recent call last):
    ValueError: tokens must be an integer >= 1; got 0; the paper uses 16
    """

    vector: VectorSource | None = None
    tokens: int = 16
    eta: float = 3.0
    population: int = 200
    generations: int = 3000
    crossover: float = 0.5
    mutation: float = 0.25
    keep_best: bool = False
    sources: int | None = None
    rows: int | None = None
    seed: int = 0
    batch_size: int = 16

    access = "text_encoder"
    strength = "text"
    spends = ("population", "generations", "sources")

    def __post_init__(self) -> None:
        for name, least, usual in (("tokens", 1, 16), ("population", 2, 200), ("generations", 1, 3000)):
            integer(name, getattr(self, name), least=least, hint=f"the paper uses {usual}")
        for name, least, usual in (("seed", 0, 0), ("batch_size", 1, 16)):
            integer(name, getattr(self, name), least=least, hint=f"the default is {usual}")
        for name in ("crossover", "mutation"):
            number(name, getattr(self, name), least=0, most=1, hint="it is a probability")
        number("eta", self.eta, hint="the paper uses 3")
        if self.sources is not None:
            integer("sources", self.sources, least=1, hint="null searches for every prompt")
        if self.rows is not None:
            integer("rows", self.rows, least=self.tokens + 2, hint="tokens + 2; null counts all rows")

    def check(self, concept: Concept) -> None:
        """A one-line error, before any weight is loaded, if there is no vector for the concept."""
        given(self.vector).check(concept)

    def attack(
        self, pipe: Pipeline, original: Pipeline, prompts: Sequence[Prompt], concept: Concept, judge: Judge
    ) -> list[Prompt]:
        """One adversarial prompt per prompt, in order, with its seed and guidance; equal texts share one search.

        Every finished search is kept in ``workspace.current()``; a killed attack goes on with the next text.
        """
        first = {prompt.text: prompt.id for prompt in reversed(prompts)}
        texts = list(dict.fromkeys(prompt.text for prompt in prompts))[: self.sources]
        kept = workspace.current().load("ringabell")
        found: dict[str, dict[str, Any]] = kept[1]["found"] if kept else {}
        left = [text for text in texts if text not in found]
        with progress.bar(desc="ringabell", total=len(texts), initial=len(found), unit="search") as bar:
            for text, result in self.search(original, left, concept):
                found[text] = result
                workspace.current().save("ringabell", {}, found=found)
                bar.update()
        turns = [text if text in found else texts[i % len(texts)] for i, text in enumerate(p.text for p in prompts)]
        return [
            attacked(
                prompt,
                "ringabell",
                concept,
                text=found[text]["text"],
                source_id=prompt.id if prompt.text == text else first[text],
                info={name: value for name, value in found[text].items() if name != "text"}
                | {"names_concept": names_concept(found[text]["text"], concept)},
            )
            for prompt, text in zip(prompts, turns, strict=True)
        ]

    def search(
        self, original: Pipeline, texts: Sequence[str], concept: Concept
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields each text with what its search found, one at a time; texts do not influence one another.

        The found mapping holds ``text`` and what goes into the prompt's ``info``: the budget, ``evaluations``
        (distinct sequences encoded), ``fitness_start`` and ``fitness`` (loss of the best of the first generation and of
        the result), ``fitness_text`` (loss of the string as it re-tokenises), ``retokenised_equal``, ``empty``.
        """
        space = Space.of(original, self.tokens, self.rows)
        shift = self.eta * given(self.vector).vector(original, concept)
        for text in texts:
            target = diffusion.encode(original, [text])[0].double().cpu() + shift
            yield text, self._search_one(original, space, text, target)

    def _search_one(self, original: Pipeline, space: Space, text: str, target: torch.Tensor) -> dict[str, Any]:
        goal = target[: space.rows]
        memo = Memo(lambda people: space.losses(people, goal, self.batch_size))
        ids, fitness, start = run(self.steps(space.allowed, text), memo, keep_best=self.keep_best)
        tokenizer = space.encoders[0][0]
        decoded = tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)
        submitted = diffusion.encode(original, [decoded])[0].double().cpu()[: space.rows]
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("vector", "batch_size")}
        return {
            "text": decoded,
            **settings,
            "evaluations": len(memo.known),
            "fitness_start": start,
            "fitness": fitness,
            "fitness_text": float((submitted - goal).square().sum()),
            "retokenised_equal": tokenizer(decoded)["input_ids"][1:-1] == ids.tolist(),
            "empty": not decoded.strip(),
        }

    def steps(self, allowed: Ids, text: str) -> Generator[Ids, Losses, None]:
        """The generations of one text's search, see ``evolve``; its random numbers depend on seed and text only."""
        return evolve(
            np.random.default_rng(seed_of(self.seed, text, sep="\n")),
            allowed,
            tokens=self.tokens,
            population=self.population,
            generations=self.generations,
            crossover=self.crossover,
            mutation=self.mutation,
        )


@dataclass(frozen=True, kw_only=True)
class Space:
    """The text encoder as the search sees it: the ids it may use, and the loss of token sequences.

    Args:
        encoders: (tokenizer, text encoder, layer) of the pipeline: one, or SDXL's two with their next to last layer.
        rows: leading rows that count.
        allowed: every id that is not special, int64 ascending.
    """

    encoders: tuple[tuple[Any, Any, int | None], ...]
    rows: int
    allowed: Ids

    @classmethod
    def of(cls, pipe: Pipeline, tokens: int, rows: int | None) -> Space:
        """The space of a pipeline; ValueError if K tokens or that many rows do not fit its tokenizer."""
        length = pipe.tokenizer.model_max_length
        if tokens > length - 2:
            raise ValueError(f"tokens must be <= {length - 2}, what fits between start and end of text; got {tokens}")
        if rows is not None and rows > length:
            raise ValueError(f"rows must be <= {length}, the rows of the text encoder; got {rows}; null counts all")
        second = getattr(pipe, "text_encoder_2", None)
        encoders: list[tuple[Any, Any, int | None]] = [(pipe.tokenizer, pipe.text_encoder, None)]
        if second is not None:
            encoders = [(pipe.tokenizer, pipe.text_encoder, -2), (pipe.tokenizer_2, second, -2)]
        allowed = np.setdiff1d(np.arange(len(pipe.tokenizer)), pipe.tokenizer.all_special_ids)
        return cls(encoders=tuple(encoders), rows=length if rows is None else rows, allowed=allowed)

    def sequences(self, people: Ids, tokenizer: Any) -> torch.Tensor:
        """int64 [n, rows]: start of text, the K ids, end of text, padding, as the pipeline would lay them out."""
        padding = np.full((len(people), self.rows - people.shape[1] - 1), tokenizer.pad_token_id)
        padding[:, 0] = tokenizer.eos_token_id
        start = np.full((len(people), 1), tokenizer.bos_token_id)
        return torch.from_numpy(np.concatenate([start, people, padding], axis=1))

    @torch.inference_mode()
    def losses(self, people: Ids, goal: torch.Tensor, batch_size: int) -> Losses:
        """Squared distance [n] of the encodings of K ids to a goal [rows, width], summed over rows and width."""

        def distances(part: Any) -> torch.Tensor:
            states = []
            for tokenizer, encoder, layer in self.encoders:
                out = encoder(
                    self.sequences(part, tokenizer).to(encoder.device), output_hidden_states=layer is not None
                )
                states.append(out.last_hidden_state if layer is None else out.hidden_states[layer])
            encoded = torch.cat(states, dim=-1)
            towards = goal.to(encoded.device, torch.promote_types(encoded.dtype, torch.float32))
            return (encoded - towards).square().sum((1, 2)).double().cpu()

        return torch.cat(list(halving(distances, people, batch_size, "sequences", self.encoders[0][1].device))).numpy()
