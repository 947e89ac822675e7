"""Find runs by the names people give them."""

from __future__ import annotations

import re
from pathlib import Path

from erasebench.store.files import locate


def find_run(path: str | Path) -> Path:
    """The folder of a run, or a file, as given; else the one run whose folders begin with the names given.

    So ``results/runs/emoji/cat/uce/none/seed0`` finds ``.../cat/uce/none@steps=5/seed0`` where it is the only one.

    Raises:
        ValueError: several runs have these names; they are listed.
    """
    path = locate(path)
    if path.exists() or len(path.parts) < 5 or not path.name.startswith("seed"):
        return path
    *above, model, concept, method, attack, seed = path.parts
    found = [Path(*above)]
    for word in (model, concept, method, attack, seed):
        begins = re.compile(re.escape(word) + r"([,@].*|-paper.*)?")
        found = [p for f in found if f.is_dir() for p in sorted(f.iterdir()) if begins.fullmatch(p.name)]
    found = [p for p in found if (p / "run.json").is_file()]
    if len(found) > 1:
        named = ", ".join(str(p) for p in found[:4])
        raise ValueError(f"run={path} must name one run; got {len(found)}: {named}; name one of them")
    return found[0] if found else path
