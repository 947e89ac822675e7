"""What a run has drawn: its prompts, made again from its record, and where their images lie in the store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erasebench import store
from erasebench.limits import read_json
from erasebench.rebuilding import rebuild
from erasebench.report import runs
from erasebench.report.tables import read_scores
from erasebench.report.verdicts import Verdicts, verdicts
from erasebench.store.images import ImageSet
from erasebench.types import Concept, Prompt, joint


@dataclass(frozen=True)
class Run(runs.Run):
    """A finished run with its pictures."""

    @property
    def erased(self) -> str:
        """Key of all that its erased images depend on."""
        return str(self.record["steps"]["erase"]["key"])

    @property
    def root(self) -> Path:
        """The results folder it lies in."""
        return next(parent for parent in self.folder.parents if parent.name == "runs").parent

    def drawn(self) -> dict[tuple[str, str, str], Prompt]:
        """The prompts besides its attack's whose images of both sides are in the store, by what makes them the same."""
        prompts = self.prompts()
        lost = {
            digest
            for side in ("original", "erased")
            for digest in store.missing(self.images(side, prompts).folder, [p.digest() for p in prompts])
        }
        return {(p.group, p.id, p.digest()): p for p in prompts if p.digest() not in lost}

    def prompts(self) -> list[Prompt]:
        """The prompts it was to draw, besides its attack's and the general ones (group coco)."""
        config = self.record["config"]
        nodes = [config["concept"], *config["also"]], config["prompts"]
        return list(_prompts(json.dumps(nodes), str(self.folder / "run.json")))

    def attacked(self) -> list[Prompt]:
        """The prompts its attack found, from the store; none if they are gone.

        Raises:
            OSError, ValueError: files that cannot be read.
        """
        import numpy as np
        from safetensors.numpy import load_file

        found: list[Prompt] = []
        for key in self.record.get("stored", {}).get("attack", []):
            folder = self.root / "cache" / "attack" / store.plain_key(str(key))
            if not (folder / "prompts.json").is_file():
                continue
            embeds = load_file(folder / "embeds.safetensors") if (folder / "embeds.safetensors").is_file() else {}
            for row in read_json(folder / "prompts.json"):
                own = embeds.get(row["id"])
                found.append(Prompt(**row, embeds=None if own is None else np.asarray(own)))
        return found

    def images(self, side: str, prompts: Sequence[Prompt]) -> ImageSet:
        """Images of one side, where the run says they lie."""
        key = str(self.record["steps"]["draw"]["keys"][side])
        return ImageSet(key=key, folder=store.image_folder(self.root, key), prompts=tuple(prompts))

    def verdicts(self, side: str) -> Verdicts:
        """What its judge said; nothing if its table cannot be read."""
        try:
            return verdicts(read_scores(self.folder / "scores.parquet"), side)
        except (OSError, ValueError):
            return {}


def _prompts(nodes: str, where: str) -> Sequence[Prompt]:
    """Those of a source and concepts, in JSON; runs of one concept and seed ask for the same, one after the other."""
    if nodes not in _LATEST:
        concepts, prompts = json.loads(nodes)
        erased = [rebuild(node, Concept, where) for node in concepts]
        source: Any = rebuild(prompts, object, where)
        found = source.prompts(joint(erased) if len(erased) > 1 else erased[0])
        if len(_LATEST) >= FEW:
            _LATEST.pop(next(iter(_LATEST)))
        _LATEST[nodes] = tuple(p for p in found if p.group != "coco")
    return _LATEST[nodes]


FEW = 8
_LATEST: dict[str, Sequence[Prompt]] = {}
