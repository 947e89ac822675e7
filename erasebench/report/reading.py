"""The tidy tables and their summaries as they are read: whole, or a run's damage said in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from csv import reader
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from erasebench.limits import read_parquet
from erasebench.report.codes import words as coded_words
from erasebench.report.columns import CODED, COLUMNS, DTYPES, SCHEMA, SUMMARY_DTYPES, WORDS, complete, typed
from erasebench.report.printing import uncell
from erasebench.report.runs import Run, recorded

_MAPPER = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}.get  # integers never through float
Means = Callable[[str, str], bool]  # whether a metric of an evaluator is meant


def _read(path: Path, headlines: bool = False, schema: pa.Schema = SCHEMA, means: Means | None = None) -> pa.Table:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; run the cell first")
    try:
        table = read_parquet(path, WORDS)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} is not a readable Parquet file; delete it and run its cell again") from error
    complete(table.column_names, str(path))
    try:
        table = table.select(list(COLUMNS))
        table = table.filter(table["place"].is_valid()) if headlines else table
        table = (table.filter(_meant(table, means)) if means else table).cast(schema)
    except pa.ArrowException as error:
        raise ValueError(f"{path} must have the types of a table of scores; {error}; run its cell again") from error
    return table


def _meant(table: pa.Table, means: Means) -> pa.Array:
    """Whether each row is of an evaluator and a metric that are meant."""
    two = [table[name].combine_chunks().cast(CODED.field(name).type) for name in ("evaluator", "metric")]
    first, second = (one.indices.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64) for one in two)
    evaluators, metrics = (one.dictionary.to_pylist() for one in two)
    there, place = np.unique(first * len(metrics) + second, return_inverse=True)
    kept = [means(evaluators[one // len(metrics)], metrics[one % len(metrics)]) for one in there]
    return pa.array(np.array(kept, bool)[place])


def _frame(table: pa.Table) -> pd.DataFrame:
    return table.to_pandas(types_mapper=_MAPPER).astype(dict(DTYPES))


def read_scores(path: str | Path, headlines: bool = False) -> pd.DataFrame:
    """The tidy table of one run, with the dtypes of :data:`DTYPES`; ``headlines``: only the rows of these.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a Parquet file of scores, or an older version wrote it.
    """
    return _frame(_read(Path(path), headlines))


def read_coded(paths: Sequence[Path], headlines: bool = False, means: Means | None = None) -> pd.DataFrame:
    """The tables of several runs, one after the other, indexed by the place of each, texts as codes: see ``codes``.

    Args:
        paths: of tables.
        headlines: only the rows of headline metrics.
        means: only the rows of an evaluator and a metric that it takes.

    Raises:
        FileNotFoundError, ValueError: the first that :func:`read_scores` refuses.
    """
    tables = [_read(path, headlines, CODED, means) for path in paths]
    table = pa.concat_tables(tables).unify_dictionaries()
    rest = table.drop_columns(WORDS).to_pandas(types_mapper=_MAPPER)
    columns = {name: _categorical(table[name]) if name in WORDS else rest[name] for name in DTYPES}
    frame = pd.DataFrame(columns).astype({name: dtype for name, dtype in DTYPES.items() if dtype != "str"})
    return frame.set_axis(np.repeat(range(len(tables)), [len(one) for one in tables]))


def _categorical(column: pa.ChunkedArray) -> pd.Categorical:
    """Texts that are there, in their order, and each row's place among them."""
    one = column.combine_chunks()
    codes = one.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    words = one.dictionary.to_pylist()
    known = sorted({words[i] for i in np.unique(codes) if i >= 0 and words[i] is not None})
    place = {word: i for i, word in enumerate(known)}
    return coded_words(np.array([*(place.get(word, -1) for word in words), -1], np.int64)[codes], known)


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
