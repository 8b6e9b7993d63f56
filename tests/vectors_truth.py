"""Losses of a row of vectors in mpmath, from their definitions alone."""

from __future__ import annotations

import itertools
from typing import Any

import mpmath
import numpy as np

Row = dict[str, Any]


def _margins(x: list[Any], targets: list[int], margin: Any, p: int) -> Any:
    others = [j for j in range(len(x)) if j not in targets]
    return mpmath.fsum(max(mpmath.mpf(0), margin - x[k] + x[j]) ** p for k in targets for j in others) / len(x)


def multi_margin(row: Row, parameters: dict[str, Any]) -> Any:
    """w_y·Σ max(0, m − x_y + x_j)^p/C."""
    label = int(row["target"][0])
    weight = row["weight"][label] if "weight" in row else 1
    margin = mpmath.mpf(parameters.get("margin", 1.0))
    return weight * _margins(row["input"], [label], margin, parameters.get("p", 1))


def multilabel_margin(row: Row, _: dict[str, Any]) -> Any:
    """Σ_k Σ_j max(0, 1 − x_k + x_j)/C."""
    labels = [int(label) for label in row["target"]]
    return _margins(row["input"], labels[: labels.index(-1)], mpmath.mpf(1), 1)


def _distance(x: list[Any], y: list[Any], eps: float, p: float) -> Any:
    d = [abs(a - b + mpmath.mpf(eps)) for a, b in zip(x, y, strict=True)]
    return max(d) if p == mpmath.inf else mpmath.fsum(each**p for each in d) ** (1 / mpmath.mpf(p))


def triplet_margin(row: Row, parameters: dict[str, Any]) -> Any:
    """max(0, m + ‖a − p + ε‖ − ‖a − n + ε‖), or with the smaller of that and ‖p − n + ε‖."""
    a, p, n = row["anchor"], row["positive"], row["negative"]
    given = parameters["eps"], parameters["p"]
    ends = [_distance(a, n, *given)] + [_distance(p, n, *given)] * parameters["swap"]
    return max(mpmath.mpf(0), mpmath.mpf(parameters["margin"]) + _distance(a, p, *given) - min(ends))


def cosine_embedding(row: Row, parameters: dict[str, Any]) -> Any:
    """1 − cos, or max(0, cos − m), with torch's ε in both squared lengths."""
    x, y = row["input1"], row["input2"]
    squares = [mpmath.fsum(a * a for a in v) + mpmath.mpf(1e-12) for v in (x, y)]
    cosine = mpmath.fsum(a * b for a, b in zip(x, y, strict=True)) / mpmath.sqrt(squares[0] * squares[1])
    if row["target"][0] == 1:
        return 1 - cosine
    return max(mpmath.mpf(0), cosine - mpmath.mpf(parameters["margin"])) if row["target"][0] == -1 else mpmath.mpf(0)


VALUES = {
    "multi_margin": multi_margin,
    "multilabel_margin": multilabel_margin,
    "triplet_margin": triplet_margin,
    "cosine_embedding": cosine_embedding,
}


def drawn() -> list[tuple[str, tuple[dict[str, np.ndarray], dict[str, Any]]]]:
    """Rows of every function, away from their kinks."""
    generator = np.random.default_rng(3)
    x, weight = generator.standard_normal((6, 5)), generator.uniform(0.5, 2.0, 5)
    found: list[Any] = []
    for k, p in enumerate((1, 2, 2)):
        row = {"input": x[k], "target": np.array(k), "weight": weight}
        found.append(("multi_margin", (row, {"p": p, "margin": 0.75})))
    found.append(("multilabel_margin", ({"input": x[3], "target": np.array([3, 1, -1, 0, 2])}, {})))
    found.append(("multilabel_margin", ({"input": x[4], "target": np.array([2, 2, 0, -1, 1])}, {})))
    for power, swap in itertools.product((1.0, 2.0, 3.0, 1.5, np.inf), (False, True)):
        row = dict(zip(("anchor", "positive", "negative"), generator.standard_normal((3, 4)), strict=True))
        found.append(("triplet_margin", (row, {"p": power, "swap": swap, "eps": 1e-6, "margin": 2.0})))
    for target in (1, -1, 0):
        row = dict(zip(("input1", "input2"), generator.standard_normal((2, 4)), strict=True))
        found.append(("cosine_embedding", (row | {"target": np.array(target)}, {"margin": -0.9})))
    return found
