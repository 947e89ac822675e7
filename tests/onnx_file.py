"""A small ONNX classifier written byte by byte: mean of each channel times a matrix, so that its outputs are known."""

from __future__ import annotations

import numpy as np


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _value(name: str, dims: list[int | str]) -> bytes:
    shape = b"".join(_field(1, _field(1, d) if isinstance(d, int) else _field(2, d)) for d in dims)
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, shape)))


def _node(kind: str, inputs: list[str], output: str) -> bytes:
    return _field(1, b"".join(_field(1, i) for i in inputs) + _field(2, output) + _field(4, kind))


def channel_means(matrix: np.ndarray) -> bytes:
    """A model: pixels [n, 3, h, w] -> GlobalAveragePool -> Flatten -> MatMul(matrix [3, k]) -> [n, k]."""
    rows, k = matrix.shape
    weights = _field(1, rows) + _field(1, k) + _field(2, 1) + _field(8, "W") + _field(9, matrix.astype("<f4").tobytes())
    graph = (
        _node("GlobalAveragePool", ["x"], "pooled") + _node("Flatten", ["pooled"], "flat")
        + _node("MatMul", ["flat", "W"], "y") + _field(2, "means") + _field(5, weights)
        + _field(11, _value("x", ["n", 3, "h", "w"])) + _field(12, _value("y", ["n", k]))
    )  # fmt: skip
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 13))
