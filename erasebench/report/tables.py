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
from erasebench.report.influence import by_image
from erasebench.report.printing import cell, uncell
from erasebench.report.runs import Run, recorded
from erasebench.report.sharing import clusters_of
from erasebench.report.summary import Runs, difference, summarise_prompts, summarise_whole
from erasebench.store.files import replacing
from erasebench.types import Headline, Prompt, Score, Status

CELL = ("model", "concept", "method", "recipe", "attack", "budget", "settings", "access", "strength", "control")
FACTS = ("role", "label", "head", "unit", "place")  # of a headline, as its evaluator declares it
DTYPES: Mapping[str, str] = {
    "run": "str", **dict.fromkeys(CELL, "str"), "control": "bool",
    "group": "str", "relation": "str", "evaluator": "str", "evaluator_version": "int64", "metric": "str",
    "judge": "str", "prompt_id": "str", "seed": "Int64", "value": "float64", "status": "str", "side": "str",
    "low": "float64", "high": "float64", "higher_is_better": "boolean", "cluster": "str", "weights": "str",
    "rate": "boolean", "terms": "str", "images": "Int64",
    **dict.fromkeys(FACTS, "str"), "place": "Int64",
}  # fmt: skip
COLUMNS = tuple(DTYPES)
METRIC = ("evaluator", "evaluator_version", "metric", "judge")
KEYS = (*CELL, "group", "relation", *METRIC)
NUMBERS = ("mean", "low", "high", "base", "base_low", "base_high", "delta", "delta_low", "delta_high", "p_value")
COUNTS = ("n", "clusters", "n_failed", "runs", "trainings")
SUMMARY = (*KEYS, *COUNTS, *NUMBERS, "higher_is_better", *FACTS)
SIDES = ("erased", "original")
_SUMMARY_DTYPES = {name: DTYPES.get(name, "int64" if name in COUNTS else "float64") for name in SUMMARY}
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


def _typed(frame: pd.DataFrame, name: str, dtypes: Mapping[str, str] = DTYPES) -> pd.DataFrame:
    """The frame with these columns and dtypes."""
    _complete(list(map(str, frame.columns)), name, dtypes)
    return frame[list(dtypes)].astype(dict(dtypes))


def _complete(columns: Sequence[str], name: str, dtypes: Mapping[str, str] = DTYPES) -> None:
    if absent := [c for c in dtypes if c not in columns]:
        raise ValueError(
            f"{name} has no column {absent[0]!r}, an older version wrote it or it is no table of this kind; found "
            f"{', '.join(columns)}; delete it and run its cell again"
        )


def _sorted(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows in the schema's order; one value per metric, prompt and side."""
    _unique(frame.duplicated(_IDENTITY).to_numpy(), frame, name)
    return frame.sort_values(_IDENTITY, kind="stable", na_position="first").reset_index(drop=True)


def _unique(double: np.ndarray, frame: pd.DataFrame, name: str) -> None:
    if double.any():
        row = frame[double].iloc[0]
        raise ValueError(
            f"{name} must have one value per metric, prompt and side; got two of {row.metric} for "
            f"{row.prompt_id} ({row.side})"
        )


def write_scores(path: str | Path, frame: pd.DataFrame) -> Path:
    """Write the tidy table in one move: rows sorted, so that equal rows give an equal file.

    Raises:
        ValueError: a column is missing, or there are two values for one metric of one prompt.
        OSError: the folder is not writable or the disk is full.
    """
    path = Path(path)
    frame = _sorted(_typed(frame, path.name), path.name)
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
    _complete(table.column_names, str(path))
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
        _complete(list(frame.columns), path, _SUMMARY_DTYPES)
        truth = {"True": True, "False": False, "": None}
        for name, dtype in _SUMMARY_DTYPES.items():
            if dtype in ("bool", "boolean"):
                frame[name] = pd.array([truth[word] for word in frame[name]], dtype="boolean")
            elif dtype != "str":
                frame[name] = frame[name].replace("", None if dtype == "Int64" else "nan")
        lengths = [sum(map(bool, reader(StringIO(body)))) for _, body in texts]
        return _typed(frame, str(path), _SUMMARY_DTYPES).set_axis(np.repeat(range(len(paths)), lengths))
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


# --- the summary ---


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Scores -> one row per cell, group, relation and metric, with the columns of :data:`SUMMARY`.

    ``mean`` is of the erased model, ``base`` of the original one, each over its ok rows; ``n`` counts the erased
    model's ok rows and ``n_failed`` its others, which enter nothing else. ``delta`` is the mean of erased - original
    over the prompts that are ok on both sides, so it can differ from mean - base when images failed.
    A metric whose values are all 0 or 1 is a rate: Wilson's interval, Newcombe's paired interval for the difference
    and McNemar's exact p-value. Other metrics get Student's intervals and no p-value. ``clusters`` are the distinct
    texts, searches, words or concepts behind the n values; where they are fewer than n, and where several trainings
    of one configuration are pooled, intervals and p-values are by cluster, of both ways the widest
    (``erasebench.report.clusters``). ``runs`` and ``trainings`` say over how many seeds a row goes. Prompts with a
    relation are summarised per relation and, with relation "", together. A metric of a whole group (no prompt_id)
    keeps its own interval, and its difference has one where its evaluator recorded influences
    (``erasebench.report.influence``); its n is the number of images it says it saw, else 1 per run; over several runs
    see :func:`erasebench.report.summary.over_runs`.

    Raises:
        ValueError: columns are missing, or there are two values for one metric of one prompt.
    """
    frame = _typed(frame, "scores").reset_index(drop=True)
    rates = _rates(frame.loc[frame.role != "influence", [*METRIC, "status", "value", "rate"]])
    places = frame.groupby(["model", "concept"], sort=True)  # no group of rows is in two of them; saves memory
    parts = [_summarised(part, rates) for _, part in places] if places.ngroups > 1 else [_summarised(frame, rates)]
    return parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True).astype(_SUMMARY_DTYPES)


def _summarised(frame: pd.DataFrame, rates: pd.Series[bool]) -> pd.DataFrame:
    """:func:`summarise` of some concepts; ``rates``: row -> whether its metric is a rate."""
    images, frame = by_image(frame), frame[frame.role != "influence"]
    frame = frame.assign(_rate=rates)
    related = frame[(frame.relation != "") & frame.prompt_id.notna()]
    relation = pd.concat([frame.relation, related.relation], ignore_index=True)
    frame = pd.concat([frame, related.assign(relation="")], ignore_index=True)
    if not len(frame):
        return pd.DataFrame(columns=list(SUMMARY)).astype(_SUMMARY_DTYPES)
    group = frame.groupby(list(KEYS), sort=True).ngroup().to_numpy()
    pair = frame.groupby(["run", relation, "prompt_id"], sort=True, dropna=False).ngroup().to_numpy()
    erased = (frame.side == "erased").to_numpy(bool)
    order = np.lexsort((pair, ~erased, group))
    frame, group, pair, erased = frame.iloc[order], group[order], pair[order], erased[order]
    same = (np.diff(group) == 0) & (np.diff(pair) == 0) & (np.diff(erased.astype(int)) == 0)
    _unique(np.append(False, same), frame, "scores")
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    table = frame.iloc[starts].reset_index(drop=True)  # one row for each group of rows, with its keys and facts
    numbers = _numbers(frame, np.append(starts, len(frame)), pair, erased, frame._rate.iloc[starts].to_numpy(bool))
    direction = frame.groupby(group, sort=True).higher_is_better.first().reset_index(drop=True)
    table = pd.concat([table[[*KEYS, *FACTS]], numbers], axis=1).assign(higher_is_better=direction)
    for i, by in _differences(images, table):
        table.loc[i, ["clusters", "delta_low", "delta_high"]] = by["clusters"], by["delta_low"], by["delta_high"]
    return table[list(SUMMARY)].astype(_SUMMARY_DTYPES)


def _differences(images: pd.DataFrame, table: pd.DataFrame) -> Iterable[tuple[int, dict[str, float]]]:
    """Row of the table -> the paired difference of its distance, where each image's part in it is known."""
    images = images.assign(code=_codes(images))[[*KEYS, "run", "side", "prompt_id", "value", "weights", "code"]]
    known = images.groupby(list(KEYS), sort=False, dropna=False)
    rows = {key: i for i, key in enumerate(table[list(KEYS)].itertuples(index=False, name=None))}
    for key, part in known:
        part = part[["run", "side", "prompt_id", "value", "weights", "code"]]
        erased, original = (part[part.side == side] for side in SIDES)
        both = erased.merge(original[["run", "prompt_id", "value"]], on=["run", "prompt_id"], suffixes=("", "_b"))
        trained = pd.factorize(both.weights)[0]
        ways = [both.code.to_numpy(), trained][: 1 + (len(set(trained)) > 1)]
        if key in rows and len(both):
            by = difference(both.value.to_numpy(float), both.value_b.to_numpy(float), False, ways)
            yield rows[key], by | {"clusters": len(set(ways[0]))}


def kinds(frame: pd.DataFrame) -> pd.DataFrame:
    """Each metric of a frame of scores, and in column ``rate`` whether :func:`summarise` takes it for a rate."""
    frame = frame[frame.role != "influence"]
    return frame[list(METRIC)].assign(rate=_rates(frame)).drop_duplicates()


def _rates(frame: pd.DataFrame) -> pd.Series[bool]:
    """For each row whether its metric is a rate: as its evaluator says, else all ok values 0 or 1, in every group."""
    other = ((frame.status == "ok") & ~frame.value.isin((0.0, 1.0))).mask(frame.rate.notna(), frame.rate.eq(False))
    other = other.astype(bool)
    return ~other.groupby([frame[name] for name in METRIC], sort=False).transform("any")


def _numbers(frame: pd.DataFrame, edges: np.ndarray, pair: np.ndarray, erased: np.ndarray, rates: np.ndarray) -> Any:
    """n, n_failed and :data:`NUMBERS` of each slice between two edges; rows are in order of side and pair."""
    value = frame.value.to_numpy()
    ok, whole = (frame.status == "ok").to_numpy(bool), frame.prompt_id.isna().to_numpy()
    cluster, run = _codes(frame), pd.factorize(frame.run)[0]
    training = pd.factorize(frame.weights.where(frame.side == "erased"))[0]
    images = frame.images.astype("float64").to_numpy()
    said = [frame[name].to_numpy(float) for name in ("value", "low", "high")], frame.terms.to_numpy(object)
    rows = []
    for start, stop, rate in zip(edges[:-1], edges[1:], rates, strict=True):
        good, ours = ok[start:stop], erased[start:stop]
        here, there = start + np.flatnonzero(good & ours), start + np.flatnonzero(good & ~ours)
        counts = {
            "n": len(here), "clusters": len(set(cluster[here])), "n_failed": int((~good & ours).sum()),
            "runs": len(set(run[here])), "trainings": len(set(training[here])),
        }  # fmt: skip
        if whole[start:stop].all():
            if (seen := images[here][~np.isnan(images[here])]).size:  # of several runs, the fewest that one had
                counts["n"] = counts["clusters"] = int(seen.min())
            rows.append(counts | summarise_whole(*(_runs(*said, training, i) for i in (here, there))))
        else:
            shared = np.intersect1d(pair[here], pair[there], assume_unique=True, return_indices=True)[1:]
            ways = [cluster[here], training[here]][: 1 + (counts["trainings"] > 1)], [cluster[there]]
            rows.append(counts | summarise_prompts(value[here], value[there], shared, bool(rate), ways))
    return pd.DataFrame(rows)


def _runs(numbers: Sequence[np.ndarray], words: np.ndarray, training: np.ndarray, rows: np.ndarray) -> Runs:
    """What several runs, each a row, say of a whole group."""
    terms = [[float(word) for word in told.split()] for told in words[rows]]
    value, low, high = (column[rows] for column in numbers)
    return Runs(value, low, high, len(set(training[rows])), np.array(terms) if terms and all(terms) else None)


def _codes(frame: pd.DataFrame) -> np.ndarray:
    """A number for each row's cluster; a prompt of which none is known is a cluster of its own in its run."""
    own = frame.run + "\x1f" + frame.group + "\x1f" + frame.prompt_id.fillna("")
    codes: np.ndarray = pd.factorize(own.where(frame.cluster == "", "\x1e" + frame.cluster), sort=True)[0]
    return codes
