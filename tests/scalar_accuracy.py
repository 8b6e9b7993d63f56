"""Measure the scalars against mpmath, and write the table of docs/numerics.md.

python -m tests.scalar_accuracy --write

--dense measures exp alone, at as many points as one likes, against exponentials in pairs.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple

import mpmath
import numba
import numpy as np

from refloss import jit
from refloss.numerics import exponential
from refloss.numerics.accurate import exp_accurate
from tests.truth import Pairs, pairs, ulp_errors

PAGE = Path(__file__).parent.parent / "docs" / "numerics.md"
BEGIN, END = "<!-- scalars:begin -->\n", "<!-- scalars:end -->"


class Range(NamedTuple):
    """Where a scalar is used, and how its points are drawn."""

    scalar: str
    name: str
    low: float
    high: float
    logarithmic: bool = False


RANGES = [
    Range("exp", "near 0", -1.0, 1.0),
    Range("exp", "softmax terms", -60.0, 0.0),
    Range("exp", "small terms", -708.0, -60.0),
    Range("exp", "subnormal results, underflow", -746.0, -708.0),
    Range("exp", "tiny arguments", 1e-320, 1e-3, logarithmic=True),
    Range("exp", "large results, overflow", 0.0, 710.0),
    Range("log", "near 1", 0.999, 1.001),
    Range("log", "around 1", 0.5, 2.0),
    Range("log", "sums of terms", 1.0, 2.0**27),
    Range("log", "subnormal arguments", 5e-324, 1e-300, logarithmic=True),
    Range("log", "large arguments", 1e300, 1.7e308, logarithmic=True),
    Range("log1p", "confident rows", 1e-320, 1e-3, logarithmic=True),
    Range("log1p", "near 0", -1e-3, 1e-3),
    Range("log1p", "around 0", -0.5, 1.0),
    Range("log1p", "near −1", -1.0 + 2.0**-53, -0.5),
    Range("log1p", "large arguments", 1.0, 1e308, logarithmic=True),
    Range("exp_of_negative", "softmax terms", -60.0, 0.0),
    Range("exp_of_negative", "small terms", -700.0, -60.0),
    Range("exp_of_negative", "subnormal results, underflow", -746.0, -700.0),
    Range("sigmoid_of_positive", "undecided elements", 0.0, 1.0),
    Range("sigmoid_of_positive", "confident elements", 1.0, 60.0),
    Range("softplus_of_negative", "undecided elements", -1.0, 0.0),
    Range("softplus_of_negative", "confident elements", -700.0, -1.0),
    Range("softplus_of_negative", "subnormal results, underflow", -746.0, -700.0),
]

TRUE_FUNCTIONS = {
    "exp": mpmath.exp,
    "log": mpmath.log,
    "log1p": mpmath.log1p,
    "exp_of_negative": mpmath.exp,
    "sigmoid_of_positive": lambda x: 1 / (1 + mpmath.exp(-x)),
    "softplus_of_negative": lambda x: mpmath.log1p(mpmath.exp(x)),
}


@jit.scalar
def _log_pair(x):
    return exponential.log_pair(x, 0.0)


@jit.scalar
def _exp_of_negative(x):
    u, _, _ = exponential.logistic(x)
    return u


@jit.scalar
def _sigmoid_of_positive(x):
    _, sigmoid, _ = exponential.logistic(x)
    return sigmoid


@jit.scalar
def _softplus_of_negative(x):
    _, _, softplus = exponential.logistic(x)
    return softplus


# The three parts of logistic go by what they are; those that are pairs are rounded in the table.
SCALARS = {
    "exp": exponential.exp,
    "log": exponential.log,
    "log1p": exponential.log1p,
    "sigmoid_of_positive": _sigmoid_of_positive,
}
PAIRS = {"log": _log_pair, "exp_of_negative": _exp_of_negative, "softplus_of_negative": _softplus_of_negative}


@numba.njit
def _map(function, values):
    result = np.empty_like(values)
    for i in range(values.size):
        result[i] = function(values[i])
    return result


@numba.njit
def _map_pairs(function, values):
    high, low = np.empty_like(values), np.empty_like(values)
    for i in range(values.size):
        high[i], low[i] = function(values[i])
    return high, low


def evaluate_pair(scalar: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The high and the low part of a scalar of refloss.numerics at many points."""
    high, low = _map_pairs(PAIRS[scalar], values)
    return high, low


def evaluate(scalar: str, values: np.ndarray) -> np.ndarray:
    """A scalar of refloss.numerics at many points; rounded where it is a pair."""
    if scalar not in SCALARS:
        return np.add(*evaluate_pair(scalar, values))
    result: np.ndarray = _map(SCALARS[scalar], values)
    return result


def draw(where: Range, count: int) -> np.ndarray:
    """Points of a range, its ends included."""
    generator = np.random.default_rng(20)
    if where.logarithmic:
        points = np.exp(generator.uniform(np.log(where.low), np.log(where.high), count - 2))
    else:
        points = generator.uniform(where.low, where.high, count - 2)
    return np.concatenate([[where.low, where.high], points])


def true_values(where: Range, points: np.ndarray) -> Pairs:
    """The right results, from mpmath."""
    with mpmath.workprec(180):
        function: Any = TRUE_FUNCTIONS[where.scalar]
        return pairs([function(mpmath.mpf(float(point))) for point in points])


def worst_error(where: Range, count: int) -> tuple[float, float]:
    """The largest error in ulp, and the point where it occurs."""
    points = draw(where, count)
    true = true_values(where, points)
    got = evaluate(where.scalar, points)
    errors = np.where(np.isinf(true.high), np.where(got == true.high, 0.0, np.inf), 0.0)
    finite = np.isfinite(true.high)
    errors[finite] = ulp_errors(got[finite], true.at(finite), "float64")
    return float(errors.max()), float(points[errors.argmax()])


def worst_pair_error(where: Range, count: int) -> tuple[float, float]:
    """The largest relative error of a pair, and the point where it occurs."""
    points = draw(where, count)
    true = true_values(where, points)
    high, low = evaluate_pair(where.scalar, points)
    off = (high - true.high) + (low - np.ldexp(true.low, -true.shift))
    errors = np.abs(off / np.where(true.high == 0.0, 1.0, true.high))
    return float(errors.max()), float(points[errors.argmax()])


@numba.njit
def _dense_exp_error(count, low):
    np.random.seed(20)  # noqa: NPY002 - Numba's own generator
    worst, where = 0.0, 0.0
    for _ in range(count):
        x = np.random.uniform(low, 0.0)  # noqa: NPY002
        true, rest = exp_accurate(x, 0.0)
        _, exponent = math.frexp(true)
        error = abs((exponential.exp(x) - true) - rest) / math.ldexp(1.0, exponent - 53)
        if error > worst:
            worst, where = error, x
    return worst, where


def dense_exp_error(count: int) -> tuple[float, float]:
    """The largest error of exp in ulp at points of [-650, 0], where results are normal, and where it occurs."""
    error, point = _dense_exp_error(count, -650.0)
    return error, point


def main() -> None:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--dense", action="store_true")
    arguments = parser.parse_args()
    if arguments.dense:
        error, point = dense_exp_error(arguments.points)
        print(f"exp: {error:.3f} ulp at {point!r}")
        return
    lines = ["| scalar | range | from | to | worst error, ulp | at |", "|---|---|---|---|---|---|"]
    for where in RANGES:
        error, point = worst_error(where, arguments.points)
        lines.append(
            f"| `{where.scalar}` | {where.name} | {where.low:.4g} | {where.high:.4g} | {error:.3f} | {point!r} |"
        )
    table = "\n".join(lines) + "\n"
    if not arguments.write:
        print(table)
        return
    page = PAGE.read_text()
    head, rest = page.split(BEGIN)
    PAGE.write_text(head + BEGIN + table + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
