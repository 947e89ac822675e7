"""Several erased models in one picture: the same prompts and noise, a column for each method.

    python -m erasebench.compare concept=cat [results=DIR] [method=uce,rece] [seed=0] [per_group=2] [tile=72] [out=FILE]

Shows what runs without an attack have drawn; nothing is drawn here. Written to ``results/compare_<concept>.png``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from erasebench.building import build
from erasebench.cell import image_set
from erasebench.report.contact_sheet import contact_sheet
from erasebench.store.files import replacing
from erasebench.store.images import ImageSet
from erasebench.types import Concept, joint

USAGE = (
    "usage: python -m erasebench.compare concept=NAME [results=DIR] [model=NAME] [method=A,B] [seed=0] [per_group=2] "
    "[tile=72] [out=FILE]"
)
DEFAULTS = {
    "concept": "", "results": "results", "model": "emoji", "method": "", "seed": "0", "per_group": "2", "tile": "72",
    "out": "",
}  # fmt: skip


def compare(
    root: Path, concept: str, *, model: str = "emoji", methods: Sequence[str] = (), seed: int = 0, per_group: int = 2,
    tile: int = 72,
) -> Image.Image:  # fmt: skip
    """One page: rows are prompts, columns the original model and every method's.

    Args:
        root: results folder.
        concept: name of the erased concept, as its folder is called.
        model: name of the model.
        methods: folder names (``uce``, ``uce-paper``) in the order of the columns; none: all, alphabetically.
        seed: of the runs.
        per_group: prompts of each group.
        tile: side of an image in pixels.

    Raises:
        FileNotFoundError: a method without such a run.
        ValueError: runs on different prompts or models, which cannot stand side by side.
        KeyError, OSError: images that were removed or damaged since; the same run draws them again.
    """
    place = root / "runs" / model / concept
    names = list(methods) or sorted(p.name for p in place.glob("*") if (p / "none" / f"seed{seed}").is_dir())
    records = {name: _record(place / name / "none" / f"seed{seed}" / "run.json") for name in names}
    records = {name: record for name, record in records.items() if name != "none" or not methods}
    if not records:
        raise FileNotFoundError(f"{place} must hold runs with attack=none and seed={seed}; found none; run some first")
    first, *others = records.values()
    for name, record in zip(list(records)[1:], others, strict=True):
        for part in ("model", "concept", "prompts"):
            if record["identity"][part] != first["identity"][part] or record["model_hash"] != first["model_hash"]:
                raise ValueError(f"{name} must have the {part} config of {next(iter(records))}; leave one of them out")
    config = first["config"]
    nodes = [config["concept"], *config["also"]]
    concepts: list[Concept] = [build(node) for node in nodes]
    erased = joint(concepts) if len(concepts) > 1 else concepts[0]
    prompts = [p for p in build(config["prompts"]).prompts(erased) if p.group != "coco"]

    def images(weights: str) -> ImageSet:
        return image_set(root, weights, config["model"], prompts)

    columns = {"original": images(first["model_hash"])}
    columns |= {name: images(r["steps"]["erase"]["key"]) for name, r in records.items() if name != "none"}
    blur = config["model"]["blur_unsafe"] and any(node.get("kind") == "unsafe" for node in nodes)
    title = f"{concept}: original and erased models, same prompts and noise"
    return contact_sheet(columns, title=title, per_group=per_group, blur=blur, tile=tile)


def _record(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path.parent} holds no run; run that method with attack=none first") from None
    return record


def main(arguments: list[str]) -> int:
    """The command; 0 if it worked, 2 with one line of explanation if not."""
    given = DEFAULTS | dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    bad = [a for a in arguments if "=" not in a] + sorted(set(given) - set(DEFAULTS))
    if {"-h", "--help"} & set(arguments):
        print(f"{USAGE}\n\n{__doc__}")
        return 0
    if bad or not given["concept"]:
        print(f"error: {f'unknown argument {bad[0]!r}' if bad else 'concept= is needed'}; {USAGE}", file=sys.stderr)
        return 2
    root = Path(given["results"])
    out = Path(given["out"] or root / f"compare_{given['concept']}.png")
    try:
        numbers = {name: int(given[name]) for name in ("seed", "per_group", "tile")}
        methods = [name for name in given["method"].split(",") if name]
        page = compare(root, given["concept"], model=given["model"], methods=methods, **numbers)
        with replacing(out) as work:
            page.save(work, format="PNG", optimize=True)
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 2
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
