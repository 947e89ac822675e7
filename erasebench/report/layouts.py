"""What a paper's table looks like, read from one yaml: ``conf/paper/nudity.yaml``, or a user's own file.

Nothing is measured here. A column names scores by patterns (``*`` and ``?`` as in file names); a key that is not one of
the fields below is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from erasebench import conf_folder
from erasebench.fields import choice as one_of
from erasebench.fields import chosen, flag, integer, meant, number, text
from erasebench.limits import check_size
from erasebench.report.published import COLUMNS
from erasebench.types import GROUPS

Patterns = tuple[str, ...]
Wanted = Mapping[str, Patterns | Mapping[str, Patterns]]  # of published numbers: column -> patterns, or by our own name
SPREADS = ("interval", "se", "none")
ROWS = (("method",), ("concept", "method"))
PLACES = (*GROUPS, "kept", "all", "erase")  # groups: of prompts, of sets of images, of the whole erasure, of its cost
WHERE = ("model", "task", "concept", "method", "attack")  # task: the concept's kind
DIRECTIONS = {"higher": True, "lower": False}
SIDES = ("both", "erased", "original")
MOST = 2**18  # bytes of a yaml


def fits(name: str, patterns: Patterns) -> bool:
    """Whether a name is meant by one of the patterns; no pattern means every name.

    >>> fits("sld_max", ("sld_*",)), fits("uce", ()), fits("uce", ("uce_v?",))
    (True, True, False)
    """
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A column as its yaml asks for it.

    Args:
        label: its head; an attack's name stands before it where the column is not about one attack alone.
        metric: pattern of the metric's name, or of its first parts: ``concept_present`` is every
            ``concept_present.<judge>.top1``. Of several that fit in one run it is the first.
        evaluator: pattern of the evaluator; ``cost`` is what runs recorded of their erase steps.
        group, relation, attack: which prompts; every one if left out. A relation with ``*`` becomes a column for each,
            and so does an attack.
        side: ``erased`` leaves out the original model, ``original`` all others.
        unit: ``%`` for a fraction shown in percent; as the evaluator declares if left out.
        scale: what values are multiplied by.
        decimals: as in every table if left out.
        direction: ``higher`` or ``lower`` is better; as the evaluator declares if left out.
        complement: show 100 % less the value, and turn the direction round.
        total: show the sum over the images instead of their mean.
        published: columns of the published numbers -> what stands there for this column.
    """

    label: str
    metric: str
    evaluator: str = "*"
    group: Patterns = ()
    relation: Patterns | None = None
    attack: Patterns = ()
    side: str = "both"
    unit: str | None = None
    scale: float = 1.0
    decimals: int | None = None
    direction: str = ""
    complement: bool = False
    total: bool = False
    published: Wanted = field(default_factory=dict)

    def means(self, evaluator: str, metric: str) -> bool:
        """Whether a metric is this column's."""
        return fnmatchcase(evaluator, self.evaluator) and fits(metric, (self.metric, f"{self.metric}.*"))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A table as its yaml describes it.

    Args:
        name: what it is asked for by.
        title: of the caption.
        columns: from left to right.
        rows: ``method``, or ``[concept, method]`` for a block of rows per concept and one of all.
        where: what runs must be, a pattern or several for some of :data:`WHERE`.
        marks: mark the best and the second best.
        spread: what stands beside a value, one of :data:`SPREADS`.
        needs: what to run for it, told when there is nothing to show.
        published_methods: patterns of published methods shown beside those that were run here.
    """

    name: str
    title: str
    columns: tuple[Asked, ...]
    rows: Patterns = ("method",)
    where: Mapping[str, Patterns] = field(default_factory=dict)
    marks: bool = True
    spread: str = "interval"
    needs: str = ""
    published_methods: Patterns = ()


def shipped() -> dict[str, Path]:
    """Name -> yaml of the layouts in ``conf/paper/``."""
    return {path.stem: path for path in sorted((conf_folder() / "paper").glob("*.yaml"))}


def about(path: Path) -> str:
    """The comment that a yaml begins with, on one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return " ".join(line.lstrip("# ").strip() for line in lines[:end])


def read_layout(path: str | Path) -> Layout:
    """The layout of a yaml.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no yaml, or a key or a value is not one of a layout's; one line that names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"table - must be a layout's yaml; found no {path}; check the path")
    try:
        given = yaml.load(check_size(path, MOST).read_text(encoding="utf-8"), Loader=_Strict)
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be a yaml; {' '.join(str(error).split())}; mend it") from None
    given = _keys(f"{path}", given, Layout, {"title", "columns"}, {"name"})
    columns = given.pop("columns")
    if not isinstance(columns, list) or not columns:
        raise ValueError(f"{path}: columns must be a list of at least one column; got {columns!r}; add - label: ...")
    asked = tuple(_column(f"{path}: columns[{i}]", one) for i, one in enumerate(columns))
    return Layout(name=path.stem, columns=asked, **{key: _of_layout(path, key, one) for key, one in given.items()})


class _Strict(yaml.SafeLoader):
    """Yaml whose keys stand once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if double := sorted({key for key in keys if keys.count(key) > 1}):
            raise yaml.YAMLError(f"key {double[0]!r} stands there twice")
        return super().construct_mapping(node, deep)


def _keys(where: str, given: Any, kind: type, needed: set[str], own: set[str] = frozenset()) -> dict[str, Any]:  # type: ignore[assignment]
    """The mapping, all of whose keys are fields of a class and that has the needed ones."""
    known = [one.name for one in fields(kind) if one.name not in own]
    if not isinstance(given, dict):
        raise ValueError(f"{where} must be a mapping of {', '.join(known)}; got {type(given).__name__}")
    for key in given:
        if key not in known:
            advice = meant(key, known) or "leave it out"
            raise ValueError(f"{where}: {key} - must be one of {', '.join(known)}; {advice}")
    if missing := sorted(needed - set(given)):
        raise ValueError(f"{where}: {missing[0]} - must be given; got nothing; add it")
    return dict(given)


def _of_layout(path: Path, key: str, value: Any) -> Any:
    name = f"{path}: {key}"
    if key == "rows":
        rows = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
        if rows not in ROWS:
            raise ValueError(f"{name} must be method or [concept, method]; got {value!r}")
        return rows
    if key == "where":
        if not isinstance(value, dict) or not set(value) <= set(WHERE):
            raise ValueError(f"{name} must be a mapping of some of {', '.join(WHERE)}; got {value!r}")
        return {one: patterns(f"{name}.{one}", those) for one, those in value.items()}
    if key == "marks":
        return flag(name, value)
    if key == "spread":
        return one_of(name, value, SPREADS)
    return patterns(name, value) if key == "published_methods" else text(name, value, empty=False)


def _column(where: str, given: Any) -> Asked:
    given = _keys(where, given, Asked, {"label", "metric"})
    return Asked(**{key: _of_column(f"{where}.{key}", key, value) for key, value in given.items()})


def _of_column(name: str, key: str, value: Any) -> Any:
    if key == "group":
        return chosen(name, [value] if isinstance(value, str) else value, PLACES, least=1)
    if key in ("relation", "attack"):
        return patterns(name, value)
    if key in ("complement", "total"):
        return flag(name, value)
    if key == "published":
        return _published(name, value)
    choices = {"side": SIDES, "direction": tuple(DIRECTIONS), "unit": ("", "%")}
    if key in choices:
        return one_of(name, value, choices[key])
    if key == "scale":
        return float(number(name, value, above=0))
    return integer(name, value, least=0, most=9) if key == "decimals" else text(name, value, empty=key == "label")


def patterns(name: str, value: Any) -> Patterns:
    """One text or a list of them.

    Raises:
        ValueError: neither.
    """
    found = value if isinstance(value, list) else [value]
    if not found or not all(isinstance(one, str) for one in found):
        raise ValueError(f"{name} must be a text or a list of texts; got {value!r}; write it in quotes")
    return tuple(found)


def _published(name: str, value: Any) -> Wanted:
    """What published rows a column shows: of concepts and attacks also by what they are called here."""
    if not isinstance(value, dict) or "metric" not in value or not set(value) <= set(COLUMNS):
        raise ValueError(f"{name} must be a mapping with metric and some of {', '.join(COLUMNS)}; got {value!r}")
    found: dict[str, Patterns | Mapping[str, Patterns]] = {}
    for key, those in value.items():
        if isinstance(those, dict) and key in ("concept", "attack"):
            found[key] = {text(f"{name}.{key}", ours): patterns(f"{name}.{key}.{ours}", p) for ours, p in those.items()}
        else:
            found[key] = patterns(f"{name}.{key}", those)
    return found
