"""The tidy tables: one long table of scores, written whole, and the summary derived from it.

``scores.parquet`` has one row per value with the columns of :data:`DTYPES`. A row is of the erased model or of the
original model (``side``) on the same prompts and noise. ``prompt_id`` is missing for a metric of a whole group, which
then brings its own interval in ``low`` and ``high``. ``place`` is missing for a metric that is no headline. Everything
else people read is a function of these rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from csv import QUOTE_ALL, reader
from io import StringIO
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from erasebench.limits import read_parquet
from erasebench.report.columns import (
    CELL,
    COLUMNS,
    DTYPES,
    FACTS,
    KEYS,
    METRIC,
    SIDES,
    SUMMARY,
    SUMMARY_DTYPES,
    complete,
    typed,
    unique,
)
from erasebench.report.printing import cell, uncell
from erasebench.report.runs import Run, recorded
from erasebench.report.sharing import clusters_of
from erasebench.report.summarising import kinds, summarise
from erasebench.store.files import replacing
from erasebench.types import Headline, Prompt, Score, Status

__all__ = [  # columns and the summary, beside what reads and writes
    "CELL", "COLUMNS", "DTYPES", "FACTS", "METRIC", "SIDES", "SUMMARY", "kinds", "read_results", "read_scores",
    "read_summaries", "read_summary", "scores_frame", "summarise", "write_csv", "write_scores",
]  # fmt: skip
_IDENTITY = ["run", *KEYS, "side", "prompt_id"]
_ARROW = {
    "str": pa.string(), "int64": pa.int64(), "Int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_(),
    "boolean": pa.bool_(),
}  # fmt: skip
_WORDS = [name for name, dtype in DTYPES.items() if dtype == "str"]
_SCHEMA = pa.schema([(name, _ARROW[dtype]) for name, dtype in DTYPES.items()])


def _check(score: Score, versions: Mapping[str, int]) -> None:
    where = f"score {score.evaluator}/{score.metric} of {score.prompt_id or score.group}"
    if score.status not in get_args(Status):
        raise ValueError(f"{where}: status must be one of {', '.join(get_args(Status))}; got {score.status!r}")
    if (score.status == "ok") != math.isfinite(score.value):
        raise ValueError(
            f"{where}: value must be finite if and only if status is ok; got {score.value} with status "
            f"{score.status!r}; use value=nan and a status that says why"
        )
    if score.evaluator not in versions:
        raise ValueError(f"{where}: versions must name its evaluator; got {', '.join(versions) or 'none'}")


def scores_frame(
    scores: Iterable[Score],
    *,
    run: str,
    side: str,
    cell: Mapping[str, Any],
    versions: Mapping[str, int],
    headlines: Mapping[str, Sequence[Headline]] | None = None,
    prompts: Iterable[Prompt] = (),
    weights: str = "",
) -> pd.DataFrame:
    """Scores of one side of one run as rows of the tidy table.

    Args:
        scores: what the evaluators returned.
        run: key of the run.
        side: "erased" or "original".
        cell: what the run is, the keys of :data:`CELL`; the same for every row.
        versions: evaluator -> version of its definition.
        headlines: evaluator -> what tables show of it; the first that fits a score is joined to its row.
        prompts: where seeds and clusters are looked up, by group and id.
        weights: what tells this side's model from another training of it.

    Raises:
        ValueError: an unknown side or status, a value that contradicts its status, a missing version, a cell with
            other keys, or two values for one metric of one prompt.
    """
    if side not in SIDES:
        raise ValueError(f"side must be erased or original; got {side!r}")
    if set(cell) != set(CELL):
        raise ValueError(f"cell must have the keys {', '.join(CELL)}; got {', '.join(cell)}")
    scores = list(scores)
    for score in scores:
        _check(score, versions)
    prompts = list(prompts)
    seeds: dict[tuple[str, str | None], int] = {(p.group, p.id): p.seed for p in prompts}
    shared = clusters_of(prompts)
    facts = _Facts(headlines or {})
    rows = [
        {
            "run": run, **cell, "group": s.group, "relation": s.relation, "evaluator": s.evaluator,
            "evaluator_version": versions[s.evaluator], "metric": s.metric, "judge": s.judge, "prompt_id": s.prompt_id,
            "seed": seeds.get((s.group, s.prompt_id)), "value": s.value, "status": s.status, "side": side,
            "low": s.low, "high": s.high, "higher_is_better": s.higher_is_better,
            "cluster": shared.get((s.group, s.prompt_id), shared.get(("target", s.prompt_id), "")),
            "weights": weights, "rate": s.rate, "terms": " ".join(repr(float(term)) for term in s.terms),
            "images": s.n,
            **facts[s.evaluator, s.metric, s.group],
        }
        for s in scores
    ]  # fmt: skip
    # a column at a time: integers beside None would go through float64 and lose their last digits
    columns = {c: pd.array([row[c] for row in rows], dtype=dtype) for c, dtype in DTYPES.items()}
    return _sorted(pd.DataFrame(columns), f"run {run}")


class _Facts(dict[tuple[str, str, str], dict[str, Any]]):
    """(evaluator, metric, group) -> the facts of its headline, looked up once each."""

    def __init__(self, headlines: Mapping[str, Sequence[Headline]]) -> None:
        super().__init__()
        self.headlines = headlines

    def __missing__(self, key: tuple[str, str, str]) -> dict[str, Any]:
        evaluator, metric, group = key
        found = next((h for h in self.headlines.get(evaluator, ()) if h.fits(metric, group)), None)
        if found is None:
            self[key] = dict.fromkeys(FACTS, "") | {"place": None}
        else:
            self[key] = {name: getattr(found, name) for name in FACTS}
            self[key]["label"] = found.label.replace("{metric}", metric)
        return self[key]


def _sorted(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows in the schema's order; one value per metric, prompt and side."""
    unique(frame.duplicated(_IDENTITY).to_numpy(), frame, name)
    return frame.sort_values(_IDENTITY, kind="stable", na_position="first").reset_index(drop=True)


def write_scores(path: str | Path, frame: pd.DataFrame) -> Path:
    """Write the tidy table in one move: rows sorted, so that equal rows give an equal file.

    Raises:
        ValueError: a column is missing, or there are two values for one metric of one prompt.
        OSError: the folder is not writable or the disk is full.
    """
    path = Path(path)
    frame = _sorted(typed(frame, path.name), path.name)
    table = pa.Table.from_pandas(frame, schema=_SCHEMA, preserve_index=False)
    with replacing(path) as work:
        pq.write_table(table.replace_schema_metadata(None), work, compression="zstd")
    return path


def _read(path: Path, headlines: bool = False) -> pa.Table:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; run the cell first")
    try:
        table = read_parquet(path, _WORDS)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} is not a readable Parquet file; delete it and run its cell again") from error
    complete(table.column_names, str(path))
    try:
        table = table.select(list(COLUMNS))
        table = (table.filter(table["place"].is_valid()) if headlines else table).cast(_SCHEMA)
    except pa.ArrowException as error:
        raise ValueError(f"{path} must have the types of a table of scores; {error}; run its cell again") from error
    return table


def _frame(table: pa.Table) -> pd.DataFrame:
    mapper = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}.get  # integers never through float
    return table.to_pandas(types_mapper=mapper).astype(dict(DTYPES))


def read_scores(path: str | Path, headlines: bool = False) -> pd.DataFrame:
    """The tidy table of one run, with the dtypes of :data:`DTYPES`; ``headlines``: only the rows of these.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a Parquet file of scores, or an older version wrote it.
    """
    return _frame(_read(Path(path), headlines))


def read_results(
    root: str | Path, headlines: bool = False, skipped: list[str] | None = None, runs: list[Run] | None = None
) -> pd.DataFrame:
    """All scores under a results folder, ``runs/**/scores.parquet``, in path order.

    Args:
        root: the results folder.
        headlines: only the rows of headline metrics.
        skipped: a line is added for each run whose table is damaged, and the others are read; None: it is an error.
        runs: the runs whose tables are read are added, as far as they have records.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a file that :func:`read_scores` refuses, or that is not as its run.json says.
    """
    paths = sorted(Path(root).glob("runs/**/scores.parquet"))
    if not paths:
        raise FileNotFoundError(
            f"no scores.parquet under {Path(root) / 'runs'}; run `python -m erasebench` first, or name another "
            "folder with results=DIR"
        )
    found = []
    for path in paths:
        try:
            record = path.parent / "run.json"
            run = [recorded(record)] if record.exists() else []
            found.append(_read(path, headlines))
            if runs is not None:
                runs += run
        except (OSError, ValueError) as error:
            if skipped is None:
                raise
            skipped.append(f"left out: {error}")
    if not found:
        raise ValueError(f"{Path(root) / 'runs'} must hold a table that can be read; {(skipped or [''])[0]}")
    return _frame(pa.concat_tables(found))


def write_csv(path: str | Path, frame: pd.DataFrame) -> Path:
    """Write a derived table as CSV in one move, floats in full precision, missing values empty, no formula in it."""
    texts = {n: frame[n].map(cell, na_action="ignore") for n in frame if not pd.api.types.is_numeric_dtype(frame[n])}
    text = frame.assign(**texts).rename(columns=cell).to_csv(index=False, lineterminator="\n")
    if "\r" in text:  # which neither pandas nor csv put in quotes
        text = frame.assign(**texts).rename(columns=cell).to_csv(index=False, lineterminator="\n", quoting=QUOTE_ALL)
    with replacing(path) as work:
        work.write_text(text, encoding="utf-8", newline="")
    return Path(path)


def read_summary(path: str | Path) -> pd.DataFrame:
    """A ``summary.csv`` with the dtypes that :func:`summarise` gives it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an older version wrote it, or it is no summary.
    """
    return read_summaries([path]).reset_index(drop=True)


def read_summaries(paths: Sequence[str | Path]) -> pd.DataFrame:
    """The rows of several summaries, one file after the other, indexed by its place; see :func:`read_summary`.

    Raises:
        FileNotFoundError: one of them is not there.
        ValueError: the first that an older version wrote, or that is no summary.
    """
    texts = [_text(Path(path)) for path in paths]
    if len({head for head, _ in texts}) > 1:  # which of them is of another version is said by its own reading
        return _one_by_one(paths)
    path = ", ".join(map(str, paths[:1]))
    try:
        whole = texts[0][0] + "".join(body for _, body in texts)
        frame = pd.read_csv(StringIO(whole), dtype="str", keep_default_na=False)
        if "'" in whole:
            frame = frame.apply(lambda column: column.map(uncell) if column.str.startswith("'").any() else column)
        complete(list(frame.columns), path, SUMMARY_DTYPES)
        truth = {"True": True, "False": False, "": None}
        for name, dtype in SUMMARY_DTYPES.items():
            if dtype in ("bool", "boolean"):
                frame[name] = pd.array([truth[word] for word in frame[name]], dtype="boolean")
            elif dtype != "str":
                frame[name] = frame[name].replace("", None if dtype == "Int64" else "nan")
        lengths = [sum(map(bool, reader(StringIO(body)))) for _, body in texts]
        return typed(frame, str(path), SUMMARY_DTYPES).set_axis(np.repeat(range(len(paths)), lengths))
    except (KeyError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        if len(paths) > 1:
            return _one_by_one(paths)
        raise ValueError(f"{path} is no readable summary; {error}; delete it and run its cell again") from error


def _one_by_one(paths: Sequence[str | Path]) -> pd.DataFrame:
    parts = [read_summary(path) for path in paths]
    return pd.concat([part.set_axis([i] * len(part)) for i, part in enumerate(parts)])


def _text(path: Path) -> tuple[str, str]:
    """The first line of a file and the rest."""
    try:
        head, end, body = path.read_text(encoding="utf-8").partition("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no readable summary; {error}; delete it and run its cell again") from error
    return head + end, body if body.endswith("\n") or not body else body + "\n"
