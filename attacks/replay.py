"""Prompts found on one model, tried on another: how far do they transfer?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from erasebench import fields
from erasebench.prompts.safety import safe_prompts
from erasebench.protocols import Attack, Judge
from erasebench.report.found import read_found
from erasebench.types import Concept, Pipeline, Prompt, Strength


@dataclass(frozen=True, kw_only=True)
class Replay(Attack):
    """Returns the stored attack prompts of another run, with their text, seed, guidance and embeddings.

    Nothing is searched, so the access of the replayed attack was to the model it was found on, not to this one. A
    prompt stays joined to the plain prompt it started from if this run has one of the same id and seed; rates that
    need the plain prompt (``docs/metrics.md``) leave out the others. Prompts of unsafe concepts that mention minors are
    dropped, always.

    Args:
        run: folder of the run that found them (``.../runs/<model>/<concept>/<method>/<attack>/seed<k>``), or a CSV
            written by ``python -m erasebench.found``.
        successes: only prompts whose own search succeeded; for attacks that say so.

    Raises:
        FileNotFoundError, ValueError: see :func:`erasebench.found.read_found`; prompts about another concept; nothing
            left.

    Cost: no model evaluation.
    """

    run: str
    successes: bool = False

    access = "none"

    @property
    def strength(self) -> Strength:  # type: ignore[override]
        """That of what is replayed: embeddings are no text, whoever hands them over."""
        return "embedding" if any(p.embeds is not None for p in read_found(self.run).prompts) else "text"

    def __post_init__(self) -> None:
        fields.path("attack.run", self.run)
        fields.flag("attack.successes", self.successes)

    def check(self, concept: Concept) -> None:
        """Read the prompts once, before any weight is loaded."""
        self._prompts(concept, [])

    def attack(
        self, pipe: Pipeline, original: Pipeline, prompts: Sequence[Prompt], concept: Concept, judge: Judge
    ) -> list[Prompt]:
        """The found prompts in their order; ``info`` says where they come from and whether they succeeded there."""
        return self._prompts(concept, prompts)

    def _prompts(self, concept: Concept, plain: Sequence[Prompt]) -> list[Prompt]:
        found = read_found(self.run)
        if found.concept not in ("", concept.name):
            raise ValueError(f"run {self.run} holds prompts about {found.concept!r}; got concept {concept.name!r}")
        kept = [p for p in found.prompts if not self.successes or p.info.get("success")]
        if not kept:
            raise ValueError(f"run {self.run} must hold a prompt that succeeded; got none; use attack.successes=false")
        seeds = {p.id: p.seed for p in plain}
        same = {i for i, seed in seeds.items() if found.source_seeds.get(i) == seed}
        return [
            p.with_(
                group="attack",
                concept=concept.name,
                source_id=p.source_id if p.source_id in same else "",
                info={"replayed_from": found.origin}
                | ({"succeeded_there": bool(p.info["success"])} if "success" in p.info else {}),
            )
            for p in safe_prompts(kept, concept)
        ]
