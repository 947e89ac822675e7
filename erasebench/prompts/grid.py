"""Prompt sets that cross two domains, styles and objects: every style with every object and every seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from erasebench import fields
from erasebench.prompts.files import check_limit
from erasebench.prompts.safety import safe_prompts
from erasebench.types import Concept, Group, Prompt


@dataclass(frozen=True, kw_only=True)
class GridPrompts:
    """UnlearnCanvas' prompts (Zhang et al., arXiv 2402.11846), of a style or an object that is erased.

    Groups, for a style (an object likewise): target, every object and seed in that style, of which UA is one less the
    rate; neighbour (relation ``in_domain``), the other styles' images, asked for their style: IRA; unrelated (relation
    ``cross_domain``), the very same images, asked for their object: CRA. An image that is asked two things is drawn
    once. Whether the paper's CRA leaves the target's images out is not known here; this one does.

    Args:
        template: with {style} and {object}; names are filled in with blanks for underscores.
        styles, objects: names; the concept's stands in one of them, compared without case.
        seeds: of each pair.
        rows: images of one model, for plans; None counts them.
        limit: of each group, the first so many; None for all.

    Raises:
        ValueError: a template without a slot, an empty list, a name twice, or a concept in neither list.
    """

    template: str
    styles: tuple[str, ...]
    objects: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("styles", "objects"):
            values = fields.texts(f"prompts.{name}", getattr(self, name), least=1)
            if len({value.casefold() for value in values}) < len(values):
                raise ValueError(f"prompts.{name} must be each once; got {', '.join(values)}; leave one out")
            object.__setattr__(self, name, values)
        seeds = tuple(fields.integer("prompts.seeds", seed, least=0) for seed in self.seeds)
        object.__setattr__(self, "seeds", seeds)
        if not seeds or any(slot not in self.template for slot in ("{style}", "{object}")):
            raise ValueError(
                f"prompts.template must have {{style}} and {{object}}, and seeds at least one; got {self.template!r} "
                f"and {list(seeds)}; add what lacks"
            )
        check_limit("prompts", self.limit)

    def prompts(self, concept: Concept) -> list[Prompt]:
        """The prompts of all three groups about ``concept``."""
        own = concept.name.casefold()
        in_styles = own in {name.casefold() for name in self.styles}
        if not in_styles and own not in {name.casefold() for name in self.objects}:
            known = ", ".join(name.casefold() for name in (*self.styles, *self.objects))
            raise ValueError(f"concept must be a style or an object of the set; got {concept.name!r}; it has {known}")
        made: dict[str, list[Prompt]] = {"target": [], "neighbour": [], "unrelated": []}
        for style, thing, seed in self._pairs():
            same, other = (style, thing) if in_styles else (thing, style)
            if same.casefold() == own:
                made["target"].append(self._prompt("target", style, thing, seed, concept.name, ""))
            else:
                made["neighbour"].append(self._prompt("neighbour", style, thing, seed, same.casefold(), "in_domain"))
                made["unrelated"].append(
                    self._prompt("unrelated", style, thing, seed, other.casefold(), "cross_domain")
                )
        return safe_prompts([prompt for group in made.values() for prompt in group[: self.limit]], concept)

    def _pairs(self) -> Iterator[tuple[str, str, int]]:
        for style in self.styles:
            for thing in self.objects:
                for seed in self.seeds:
                    yield style, thing, seed

    def _prompt(self, group: Group, style: str, thing: str, seed: int, concept: str, relation: str) -> Prompt:
        words = {"style": style.replace("_", " "), "object": thing.replace("_", " ")}
        return Prompt(
            id=f"{group}-{style}-{thing}-{seed}".casefold(), text=self.template.format(**words), seed=seed, group=group,
            concept=concept, relation=relation, info={} if group == "target" else {"word": concept},
        )  # fmt: skip
