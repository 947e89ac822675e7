"""The runs of a results folder: found by the names people give them, read, and what tables call their methods."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erasebench.limits import read_text
from erasebench.store.files import damaged, locate

FILTERS = ("model", "concept", "method", "attack", "seed")
LITERAL = "paper"  # the recipe that changes nothing
NOTHING = "none"  # the method that erases nothing
ORACLE = "oracle"  # the method whose model never knew the concept


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and its run.json."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def key(self) -> str:
        return str(self.record["key"])

    @property
    def names(self) -> Mapping[str, str]:
        """model, concept, method, recipe, attack, budget and seed."""
        names: Mapping[str, str] = self.record["identity"]["names"]
        return {**names, "seed": str(self.record["config"]["seed"])}

    def is_(self, wanted: Mapping[str, Sequence[str]]) -> bool:
        """Whether it has one of the wanted values of each of :data:`FILTERS` that is given."""
        return all(self.names[k] in values for k, values in wanted.items())


def find_run(path: str | Path) -> Path:
    """The folder of a run, or a file, as given; else the one run whose folders begin with the names given.

    So ``results/runs/emoji/cat/uce/none/seed0`` finds ``.../cat/uce/none@steps-5/seed0`` where it is the only one.

    Raises:
        ValueError: several runs have these names; they are listed.
    """
    path = locate(path)
    if path.exists() or len(path.parts) < 5 or not path.name.startswith("seed"):
        return path
    *above, model, concept, method, attack, seed = path.parts
    found = [Path(*above)]
    for word in (model, concept, method, attack, seed):
        begins = re.compile(re.escape(word) + r"(@.*|-paper.*)?")
        found = [p for f in found if f.is_dir() for p in sorted(f.iterdir()) if begins.fullmatch(p.name)]
    found = [p for p in found if (p / "run.json").is_file()]
    if len(found) > 1:
        named = ", ".join(str(p) for p in found[:4])
        raise ValueError(f"run={path} must name one run; got {len(found)}: {named}; name one of them")
    return found[0] if found else path


def sealed(record: Mapping[str, Any]) -> str:
    """The text of a ``run.json``: the record with a checksum of itself."""
    plain = json.loads(json.dumps(record, default=str))
    return json.dumps({**plain, "checksum": _checksum(plain)}, indent=1)


def opened(text: str) -> dict[str, Any]:
    """The record of a ``run.json``; one without a checksum is an older one's.

    Raises:
        ValueError: it is no record, or its checksum is another.

    >>> opened(sealed({"key": "a"}))["key"]
    'a'
    """
    record = json.loads(text)
    if not isinstance(record, dict):
        raise ValueError(f"a record of a run must be a JSON object; got {type(record).__name__}")
    if "checksum" in record and record["checksum"] != _checksum({k: v for k, v in record.items() if k != "checksum"}):
        raise ValueError("the record's checksum must be that of its values; it was changed or damaged")
    return record


def _checksum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


TABLES = ("scores.parquet", "summary.csv", "budget.csv")  # what boards read of a run


def recorded(path: Path) -> Run:
    """The run of a ``run.json``, whose tables are as they were when it was written.

    Raises:
        ValueError: it is no record of a run, or a table is damaged or gone.
    """
    try:
        run = Run(path.parent, opened(read_text(path)))
        _ = run.names, run.record["steps"], run.key
        lost = damaged(path.parent, run.record.get("files", {}), TABLES)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is no record of a run; delete its folder and run its cell again") from None
    if lost:
        raise ValueError(f"{path.parent / lost[0]} is damaged or gone; run its cell again, which makes it anew")
    return run


def read_runs(root: str | Path, skipped: list[str] | None = None) -> list[Run]:
    """Every finished run under a results folder, in path order.

    Args:
        root: the results folder.
        skipped: a line is added for each run that is damaged, and the others are read; None: it is an error.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a record that cannot be read, or a damaged table.
    """
    found = []
    for path in sorted(Path(root).glob("runs/**/run.json")):
        try:
            found.append(recorded(path))
        except ValueError as error:
            if skipped is None:
                raise
            skipped.append(f"left out: {error}")
    if not found:
        raise FileNotFoundError(
            f"no run.json under {Path(root) / 'runs'}; run `python -m erasebench` first, or name another folder with "
            "results=DIR"
        )
    return found


def method_names(found: Iterable[Run]) -> dict[str, str]:
    """Key of a run -> what tables call its method: ``uce``, ``uce (literal)`` beside another recipe of the model.

    A method of which a model has one recipe only goes by its name. Beside others, the paper's is the literal one, and
    several others are told apart by their names.
    """
    found = list(found)
    recipes: dict[tuple[str, str], set[str]] = {}
    for run in found:
        recipes.setdefault((run.names["model"], run.names["method"]), set()).add(run.names["recipe"])
    out = {}
    for run in found:
        recipe, others = run.names["recipe"], recipes[run.names["model"], run.names["method"]]
        more = "literal" if recipe == LITERAL else recipe if len(others - {LITERAL}) > 1 else ""
        out[run.key] = run.names["method"] + (f" ({more})" if more and len(others) > 1 else "")
    return out
