"""Prompt sets whose rows say which erased concept they belong to, in which role and by which relation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from erasebench import fields
from erasebench.prompts.files import check_limit, read_rows, seed_cell
from erasebench.prompts.safety import safe_prompts
from erasebench.types import Concept, Prompt

ROLES = ("target", "paraphrase", "neighbour", "unrelated")
COLUMNS = ("id", "target", "dimension", "role", "concept", "word", "prompt", "seed")


@dataclass(frozen=True, kw_only=True)
class RelatedPrompts:
    """The rows of a file that belong to the run's concept, in the file's order, as the groups their roles name.

    Columns: ``target`` (a concept's name), ``role`` (:data:`ROLES`: the prompt's group), ``dimension`` (of a neighbour,
    its relation to the target), ``concept`` (what the text shows; of targets and paraphrases the target's name),
    ``word`` (the very text that was filled in: prompts of one are no independent draws), ``prompt``, ``seed`` and a
    unique ``id``. The parts of a joint concept are given their own rows; what one part erases is no other's neighbour.

    Args:
        path: .csv or .parquet file.
        n: group -> at most so many prompts of each target; groups left out have all.
        limit: of each group, at most so many prompts of a target; None for all.

    Raises:
        ValueError: a broken file, an unknown role, an id used twice, or no row for the concept.
    """

    path: str
    n: Mapping[str, int] = field(default_factory=dict)
    limit: int | None = None

    node: ClassVar[str] = "prompts"

    def __post_init__(self) -> None:
        fields.path(f"{self.node}.path", self.path)
        check_limit(self.node, self.limit)
        if not isinstance(self.n, Mapping):
            raise ValueError(
                f"{self.node}.n must map groups to numbers; got {self.n!r}; write {self.node}.n={{target: 5}}"
            )
        for group, number in self.n.items():
            fields.choice(f"group of {self.node}.n", group, ROLES)
            fields.integer(f"{self.node}.n.{group}", number, least=0)
        if self.limit is not None:  # said once for all groups; what a plan counts
            object.__setattr__(self, "n", {g: min(self.limit, self.n.get(g, self.limit)) for g in ROLES})

    def prompts(self, concept: Concept) -> list[Prompt]:
        """The concept's prompts."""
        erased = {part.name for part in concept.singles}
        found: list[Prompt] = []
        targets, seen, taken = dict[str, None](), dict[tuple[str, str], int](), dict[str, str]()
        for place, row in read_rows(self.path, dict.fromkeys(COLUMNS, "see erasebench/prompts/open/prompts.csv")):
            targets[row["target"]] = None
            prompt = self._prompt(place, row, taken)
            if row["target"] not in erased or (row["target"] != row["concept"] and row["concept"] in erased):
                continue
            count = seen[row["target"], row["role"]] = seen.get((row["target"], row["role"]), 0) + 1
            if count <= self.n.get(row["role"], count):
                found.append(prompt)
        if missing := sorted(erased - set(targets)):
            hint = fields.meant(missing[0], targets) or f"choose one of {', '.join(list(targets)[:8])}, ..."
            raise ValueError(f"{self.node}.path must have rows for concept {missing[0]!r}; found none; {hint}")
        return safe_prompts(found, concept)

    def _prompt(self, place: str, row: Mapping[str, str], taken: dict[str, str]) -> Prompt:
        where = f"{fields.path('path', self.path).name} {place}"
        role: Any = fields.choice(f"{where}, column 'role'", row["role"], ROLES)
        if not row["id"] or taken.setdefault(row["id"], place) != place:
            raise ValueError(f"{where}, column 'id' must be unique; got {row['id']!r}; correct it")
        own = role in ("target", "paraphrase")
        if own and row["concept"] != row["target"]:
            raise ValueError(f"{where}, column 'concept' must be {row['target']!r}, its target; got {row['concept']!r}")
        return Prompt(
            id=row["id"], text=row["prompt"], seed=seed_cell(f"{where}, column 'seed'", row["seed"]), group=role,
            concept=row["concept"], relation=row["dimension"] if role == "neighbour" else "" if own else "unrelated",
            info={} if role == "target" else {"word": row["word"]},
        )  # fmt: skip
