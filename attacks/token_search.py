"""The search UnlearnDiffAtk and P4D share: descend the denoising loss on free tokens, ask at times, stop early.

One round of a prompt is some iterations and one query. Prompts are attacked in one batch; each has its own state, noise
and round, and one that is done makes room for the next, so that the batch stays full and no result depends on it.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from attacks import denoising, free_tokens
from attacks.free_tokens import Vocabulary
from attacks.queries import Querying, attacked, better, names_concept, noted, unasked
from attacks.side_by_side import Batch, Slot
from erasebench import progress
from erasebench.devices import halving
from erasebench.fields import integer, number
from erasebench.protocols import Attack, Judge
from erasebench.store import workspace
from erasebench.types import Concept, Pipeline, Prompt

Records = dict[int, dict[str, Any]]  # of each prompt, by its place
TIMESTEPS = tuple(range(10, 1000, 20))
SAMPLER = ("batch_size", "steps", "guidance_scale", "height", "width")  # fields that info does not repeat


@dataclass(frozen=True)
class Models:
    """What a search is given, with what it derives from it once."""

    pipe: Pipeline
    original: Pipeline
    concept: Concept
    judge: Judge
    vocabulary: Vocabulary
    prompts: Sequence[Prompt]


@dataclass(frozen=True, kw_only=True)
class TokenSearch(Querying, Attack):
    """Settings of a white-box token search, and the search.

    Args:
        lr: of Adam, > 0.
        weight_decay: >= 0; coupled (L2) unless the attack says AdamW.
        seed: the search of a prompt depends on this, the prompt and the settings, on nothing else; >= 0.

    The remaining fields are those of :class:`attacks.queries.Querying`.

    Raises:
        ValueError: a value out of its range.
    """

    lr: float = 0.01
    weight_decay: float = 0.1
    seed: int = 0

    access = "model"
    strength = "text"
    spends: ClassVar[tuple[str, ...]] = ("budget",)
    decimals = 6  # the next ones change with the batch, and should not choose another text

    def __post_init__(self) -> None:
        super().__post_init__()
        integer("seed", self.seed, least=0)
        number("lr", self.lr, above=0)
        number("weight_decay", self.weight_decay, least=0)

    @property
    @abstractmethod
    def name(self) -> str:
        """The attack's word in the tables."""

    @abstractmethod
    def places(self, words: int, concept: Concept) -> list[int]:
        """Where free tokens stand with a prompt of some ``words`` tokens, counted in the finished prompt from 0."""

    def keeps_prompt(self) -> bool:
        """Whether the prompt stays, or the free tokens stand alone."""
        return True

    @property
    @abstractmethod
    def rounds(self) -> int:
        """Rounds of a prompt, each so many steps and one query."""

    @property
    @abstractmethod
    def latest(self) -> int:
        """The latest timestep."""

    @abstractmethod
    def start(self, vocabulary: Vocabulary, count: int, generator: torch.Generator) -> Tensor:
        """The first rows [count, n] that stand for so many free tokens."""

    @abstractmethod
    def descend(self, batch: Batch) -> None:
        """The steps of one round: the attack itself."""

    @abstractmethod
    def answer(self, vocabulary: Vocabulary, x: Tensor) -> Tensor:
        """The tokens that rows [m, n] stand for, as rows of the vocabulary [m]."""

    def attack(
        self, pipe: Pipeline, original: Pipeline, prompts: Sequence[Prompt], concept: Concept, judge: Judge
    ) -> list[Prompt]:
        """One prompt per prompt, in order: the first text that succeeded, else the one the judge saw most in.

        A prompt whose plain image shows the concept is passed through (``pre``).
        """
        if not prompts:
            return []
        for model in (pipe, original):
            denoising.check_pipeline(model, self.latest)
        fitted, shortened = zip(*(self._fit(pipe, prompt, concept) for prompt in prompts), strict=True)
        victim = denoising.without_weight_gradients(pipe)
        models = Models(victim, original, concept, judge, Vocabulary.of(victim), fitted)
        records, latents = self._open(models, shortened)
        with progress.bar(total=len(latents) * self.rounds, desc=self.name, unit="round") as bar:
            self._search(models, records, latents, bar)
        return [self._result(prompt, models, i, records[i]) for i, prompt in enumerate(prompts)]

    def _fit(self, pipe: Pipeline, prompt: Prompt, concept: Concept) -> tuple[Prompt, bool]:
        """The prompt, cut so that the free tokens fit beside it, and whether it was cut."""
        room = pipe.tokenizer.model_max_length - 2
        if len(self.places(0, concept)) > room:
            raise ValueError(f"tokens must be <= {room}, what fits a prompt; got {len(self.places(0, concept))}")
        if not self.keeps_prompt():
            return prompt, False
        fits = lambda n: n + len(self.places(n, concept)) <= room  # noqa: E731
        text = free_tokens.shortened(pipe.tokenizer, prompt.text, fits)
        return prompt.with_(text=text), text != prompt.text

    def _open(self, models: Models, shortened: Sequence[bool]) -> tuple[Records, dict[int, Tensor]]:
        """Each prompt's record after its plain query, and the latents of the original's image where one is needed."""
        prompts, kept = models.prompts, workspace.current().load("opened")
        if kept is not None:
            tensors, values = kept
            return {int(i): r for i, r in values["records"].items()}, {int(i): z for i, z in tensors.items()}
        began = time.perf_counter()
        plain = self.ask(models.pipe, prompts, models.concept, models.judge)
        more = {"gradient": "none", "loss": None, "retokenised_equal": True, "names_concept": False, "best": None}
        pairs = zip(plain, shortened, strict=True)
        records = {i: noted(unasked(**more, truncated=short), seen) for i, (seen, short) in enumerate(pairs)}
        wanted = [] if self.budget == 1 else [i for i, record in records.items() if not record["pre"]]
        images = self.images(models.original, [prompts[i] for i in wanted])
        targets = {i: image for i, image in zip(wanted, images, strict=True) if image is not None}
        latents = {i: denoising.to_latents(models.original, image) for i, image in targets.items()}
        for i in wanted:
            records[i]["forward"] += self.passes(prompts[i])
        for record in records.values():
            record["seconds"] += (time.perf_counter() - began) / len(prompts)
        tensors = {str(i): z for i, z in latents.items()}
        workspace.current().save("opened", tensors, records={str(i): record for i, record in records.items()})
        return records, latents

    def _search(self, models: Models, records: Records, latents: dict[int, Tensor], bar: progress.Bar) -> None:
        """Runs the search into ``records``; after every round all there is to keep is kept."""
        slots = self._resume(models, records, latents)
        pending = [i for i in sorted(latents) if records[i]["queries"] == 1]
        bar.update(sum(slot.round for slot in slots) + self.rounds * (len(latents) - len(slots) - len(pending)))
        while slots or pending:
            while pending and len(slots) < self.batch_size:
                slots.append(self._slot(models, pending.pop(0), records, latents))
            began = time.perf_counter()
            device = models.pipe.unet.device
            for _ in halving(partial(self._round, models), slots, self.batch_size, f"prompts of {self.name}", device):
                pass
            self._query(models, slots)
            for slot in slots:
                slot.record["seconds"] += (time.perf_counter() - began) / len(slots)
                records[slot.index] = slot.record
            over = [slot for slot in slots if self._over(slot)]
            bar.update(len(slots) + sum(self.rounds - slot.round for slot in over))
            bar.set_postfix(found=sum(r["success"] and not r["pre"] for r in records.values()), refresh=False)
            slots = [slot for slot in slots if slot not in over]
            states = {slot.index: {"x": slot.x, **slot.moments} for slot in slots}
            tensors = {f"{i}.{name}": value for i, state in states.items() for name, value in state.items()}
            named = {str(i): record for i, record in records.items()}
            workspace.current().save("search", tensors, records=named, rounds=[[s.index, s.round] for s in slots])

    def _round(self, models: Models, slots: Sequence[Slot]) -> None:
        """One round of some prompts, side by side; where it fails they are as they were."""
        before = [(slot.x.detach().clone(), {k: v.clone() for k, v in slot.moments.items()}) for slot in slots]
        try:
            batch = Batch(models.pipe, models.original, models.vocabulary, slots, self.seed)
            self.descend(batch)
            batch.close()
        except BaseException:
            for slot, (x, moments) in zip(slots, before, strict=True):
                slot.x.data, slot.x.grad, slot.moments = x, None, moments
            raise

    def _over(self, slot: Slot) -> bool:
        broke = self.budget is not None and slot.record["queries"] >= self.budget
        return slot.record["success"] or slot.round >= self.rounds or broke

    def _slot(self, models: Models, index: int, records: Records, latents: dict[int, Tensor]) -> Slot:
        """A prompt at the start of its search."""
        prompt, tokenizer = models.prompts[index], models.pipe.tokenizer
        ids = free_tokens.prompt_tokens(tokenizer, prompt.text) if self.keeps_prompt() else []
        layout = free_tokens.lay_out(tokenizer, ids, self.places(len(ids), models.concept))
        draw = denoising.generator(self.seed, prompt.seed, "start")
        x = self.start(models.vocabulary, len(layout.free), draw).to(models.vocabulary.table).requires_grad_()
        return Slot(index, prompt, layout, latents[index], x, records[index])

    def _query(self, models: Models, slots: Sequence[Slot]) -> None:
        """Asks for the text of what each prompt's rows stand for, as it re-tokenises."""
        tokenizer, texts, facts = models.pipe.tokenizer, [], []
        for slot in slots:
            free = models.vocabulary.ids[self.answer(models.vocabulary, slot.x.detach())].cpu()
            ids = slot.layout.filled(free)
            texts.append(free_tokens.decode(tokenizer, ids))
            same = free_tokens.prompt_tokens(tokenizer, texts[-1]) == ids
            names = names_concept(free_tokens.decode(tokenizer, free.tolist()), models.concept)
            facts.append({"retokenised_equal": same, "names_concept": names})
        asked = [slot.prompt.with_(text=text) for slot, text in zip(slots, texts, strict=True)]
        found = self.ask(models.pipe, asked, models.concept, models.judge)
        for slot, text, fact, seen in zip(slots, texts, facts, found, strict=True):
            slot.record = better(noted(slot.record, seen), seen, text, **fact)

    def _resume(self, models: Models, records: Records, latents: dict[int, Tensor]) -> list[Slot]:
        """Slots as they were when the search was last kept; ``records`` are brought up to then."""
        kept = workspace.current().load("search")
        if kept is None:
            return []
        tensors, values = kept
        records.update({int(i): record for i, record in values["records"].items()})
        slots = []
        for index, round in values["rounds"]:
            slot = self._slot(models, index, records, latents)
            own = {key.partition(".")[2]: value for key, value in tensors.items() if key.startswith(f"{index}.")}
            slot.x.data = own.pop("x").to(slot.x.device)
            slot.moments = {name: value.to(slot.x.device) if value.ndim else value for name, value in own.items()}
            slot.round = round
            slots.append(slot)
        return slots

    def _result(self, prompt: Prompt, models: Models, index: int, record: dict[str, Any]) -> Prompt:
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in SAMPLER}
        settings = {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()}
        best = record["best"]
        info = {name: value for name, value in record.items() if name != "best"} | settings
        info |= {"sees_guide": getattr(models.pipe, "guide", None) is None, "seconds": round(record["seconds"], 3)}
        text = best["text"] if best else models.prompts[index].text
        return attacked(prompt, self.name, models.concept, text=text, info=info)


@dataclass(frozen=True, kw_only=True)
class PrefixSearch(TokenSearch):
    """A token search before the prompt, over a grid of timesteps with a query after each.

    Args:
        tokens: k >= 1, or None for 5 with unsafe concepts and 3 otherwise.
        timesteps: t of each round, in this order; >= 0.
        iterations: Adam steps at each timestep, >= 1.

    The remaining fields are those of :class:`TokenSearch`.

    Raises:
        ValueError: a setting out of its range.
    """

    tokens: int | None = None
    timesteps: tuple[int, ...] = TIMESTEPS
    iterations: int = 40

    spends = ("timesteps", "iterations", "budget")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.timesteps, list | tuple) or not self.timesteps:
            raise ValueError(
                f"timesteps must hold at least one integer >= 0; got {self.timesteps!r}; write timesteps=[500]"
            )
        object.__setattr__(self, "timesteps", tuple(integer("timesteps", t, least=0) for t in self.timesteps))
        integer("iterations", self.iterations, least=1)
        if self.tokens is not None:
            integer("tokens", self.tokens, least=1)

    def places(self, words: int, concept: Concept) -> list[int]:
        """Before the prompt: 0 to k - 1."""
        return list(range(self.tokens or (5 if concept.kind == "unsafe" else 3)))

    @property
    def rounds(self) -> int:
        return len(self.timesteps)

    @property
    def latest(self) -> int:
        return max(self.timesteps)

    def timestep(self, round: int, generator: torch.Generator) -> int:
        """The timestep of a round, whatever the step."""
        return self.timesteps[round]
