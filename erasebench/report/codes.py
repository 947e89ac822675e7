"""Texts as numbers: rows of tables are grouped, matched and told apart by integers, never by comparing texts.

A column of texts may be a categorical; its codes count only where its categories are in their order, as those of
:func:`erasebench.report.tables.read_coded` are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd


def coded(column: pd.Series) -> tuple[np.ndarray, pd.Index]:
    """A column's values as places [rows] int64 in the sorted distinct ones; -1 where one is missing."""
    if isinstance(column.dtype, pd.CategoricalDtype) and column.cat.categories.is_monotonic_increasing:
        return column.cat.codes.to_numpy(np.int64), column.cat.categories
    codes, values = pd.factorize(column, sort=True)
    return codes.astype(np.int64), values


def codes(frame: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    """[rows] int64: equal where rows are equal in these columns, in the order of the columns; missing values first."""
    return together([coded(frame[name])[0] + 1 for name in names])


def together(parts: Sequence[np.ndarray]) -> np.ndarray:
    """[rows] int64: several numbers >= 0 of each row as one, in the order of the first, then of the second, ..."""
    whole = np.zeros(len(parts[0]), np.int64)
    most = 1
    for part in parts:
        wide = int(part.max(initial=0)) + 1
        if most * wide > 2**62:
            whole = np.unique(whole, return_inverse=True)[1]
            most = int(whole.max(initial=0)) + 1
        whole, most = whole * wide + part, most * wide
    return whole


def firsts(numbers: np.ndarray) -> np.ndarray:
    """The places, in their order, where each number stands for the first time."""
    return np.sort(np.unique(numbers, return_index=True)[1])


def words(codes: np.ndarray, values: Any) -> pd.Categorical:
    """Codes into sorted distinct texts as a categorical."""
    return pd.Categorical.from_codes(codes, categories=pd.Index(values, dtype="str"))


def sorted_words(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with every text as a code into sorted categories: the same order, a tenth of the memory."""
    own = [name for name in frame if isinstance(frame[name].dtype, pd.CategoricalDtype | pd.StringDtype)]
    return frame.assign(**{str(name): words(*coded(frame[name])) for name in own})


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with texts as texts again."""
    own = [name for name in frame if isinstance(frame[name].dtype, pd.CategoricalDtype)]
    return frame.astype(dict.fromkeys(own, "str"))


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as ``to_dict("records")`` has them, many times as fast where texts are many."""
    columns = [(frame[name].astype(object) if _words(frame[name]) else frame[name]).tolist() for name in frame]
    names = list(map(str, frame))
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _words(column: pd.Series) -> bool:
    return isinstance(column.dtype, pd.CategoricalDtype | pd.StringDtype)


def joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of frames of :func:`sorted_words`, one after the other; texts stay codes into sorted categories."""
    columns = {}
    for name in frames[0]:
        parts = [frame[name] for frame in frames]
        if isinstance(parts[0].dtype, pd.CategoricalDtype):
            columns[name] = pd.Series(_union([coded(part) for part in parts]))
        else:
            columns[name] = pd.concat(parts, ignore_index=True)
    return pd.DataFrame(columns)


def _union(parts: Sequence[tuple[np.ndarray, pd.Index]]) -> pd.Categorical:
    known = sorted({word for _, values in parts for word in values})
    place = {word: i for i, word in enumerate(known)}
    moved = [np.append(np.array([place[word] for word in values], np.int64), -1)[own] for own, values in parts]
    return words(np.concatenate(moved), known)
