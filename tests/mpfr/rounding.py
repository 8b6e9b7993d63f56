"""Results against exact values: is each the nearest number of its format, and if not, how far off is it?

An exact value v is kept as (high + low)·2^exponent with float64 ½ ≤ |high| ≤ 1, low what high lacks, and the sign of
what both lack. That decides every rounding, ties and subnormals included, by arithmetic on arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import gmpy2
import ml_dtypes
import numpy as np

from tests.truth import FORMATS

Real = Any
"""An MPFR number."""

PRECISION = 320
DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
    "float64": np.float64,
}
_LARGEST_EXPONENTS = {"float64": 1023, "float32": 127, "bfloat16": 127, "float16": 15}


class Exact(NamedTuple):
    """Exact values of an array; high is the value itself where it is 0, infinite or NaN."""

    high: np.ndarray
    low: np.ndarray
    rest: np.ndarray  # the sign of what is lacking
    exponent: np.ndarray

    def text(self, index: int) -> str:
        """A value as people read it."""
        high, low, exponent = (float(part.reshape(-1)[index]) for part in (self.high, self.low, self.exponent))
        with gmpy2.context(precision=PRECISION):
            return f"{(gmpy2.mpfr(high) + gmpy2.mpfr(low)) * gmpy2.exp2(int(exponent)):.24g}"


class Verdict(NamedTuple):
    """Of every element: whether it is the exact value rounded once, and its distance from that in ulp."""

    right: np.ndarray
    ulp: np.ndarray


class Comparison(NamedTuple):
    """An array that was returned, and what it should be."""

    name: str  # of the gradient, or "loss"
    format: str
    got: np.ndarray
    exact: Exact
    describe: Callable[[int], str]  # an element's inputs


class Tally(NamedTuple):
    """How many elements were looked at, how many are not rounded once, and the worst of them."""

    function: str
    kind: str
    name: str
    format: str
    size: int
    wrong: int
    worst: float
    example: str


def real(value: Any) -> Real:
    """A number of any format as an MPFR number; NumPy's and Python's are float64 or convert exactly."""
    return gmpy2.mpfr(float(value))


def reals(array: Any) -> list[Real]:
    """All elements of an array, flat."""
    return [gmpy2.mpfr(value) for value in np.asarray(array).astype(np.float64).reshape(-1).tolist()]


def exact(values: Iterable[Real], shape: tuple[int, ...]) -> Exact:
    """MPFR numbers, flat, as an array of a shape."""
    parts = [_parts(value) for value in values]
    high, low, rest, exponent = np.array(parts, np.float64).reshape(-1, 4).T.reshape(4, *shape)
    return Exact(high, low, rest, exponent.astype(np.int64))


def _parts(value: Real) -> tuple[float, float, float, int]:
    if not gmpy2.is_finite(value) or value == 0:
        return float(value), 0.0, 0.0, 0
    exponent, mantissa = gmpy2.frexp(value)
    high = float(mantissa)
    beyond = mantissa - high
    low = float(beyond)
    return high, low, float(gmpy2.sign(beyond - low)), exponent


def judge(got: Any, true: Exact, format_name: str) -> Verdict:
    """Hold results against exact values."""
    precision, smallest = FORMATS[format_name]
    largest = _LARGEST_EXPONENTS[format_name]
    result = np.asarray(got).astype(np.float64).reshape(true.high.shape)
    special = (true.high == 0) | ~np.isfinite(true.high)
    leading = np.where(special, smallest, true.exponent - 1)
    unit = np.maximum(leading, smallest) - (precision - 1)
    shift = np.maximum(true.exponent - unit, -300)
    in_units = np.ldexp(np.where(special, 0.0, true.high), shift)
    low = np.ldexp(true.low, shift)
    nearest = np.rint(in_units)
    beyond = in_units - nearest
    odd = np.mod(nearest, 2) == 1
    above, below = _sign((beyond - 0.5) + low, true.rest), _sign((beyond + 0.5) + low, true.rest)
    nearest += (above > 0) | ((above == 0) & odd)
    nearest -= (below < 0) | ((below == 0) & odd)
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = np.ldexp(result, -unit)
        ulp = np.abs((scaled - in_units) - low)
        too_large = np.abs(nearest) >= np.ldexp(1.0, np.minimum(largest + 1 - unit, 1000))
        infinite = too_large & (result == np.copysign(np.inf, nearest))
        right = np.where(too_large, infinite, scaled == nearest)
        ulp = np.where(infinite, 0.0, ulp)
    same = (result == true.high) | (np.isnan(result) & np.isnan(true.high))
    zero = true.high == 0
    right = np.where(special, same, right)
    ulp = np.where(special & ~zero, np.where(same, 0.0, np.inf), ulp)
    return Verdict(right, np.where(np.isnan(ulp), np.inf, ulp))


def _sign(value: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    return np.where(value == 0, otherwise, np.sign(value))


def tally(function: str, kind: str, comparison: Comparison) -> Tally:
    """Count, and describe the worst element."""
    verdict = judge(comparison.got, comparison.exact, comparison.format)
    if verdict.ulp.size == 0:
        return Tally(function, kind, comparison.name, comparison.format, 0, 0, 0.0, "")
    # A wrong element of half an ulp, a tie, is worse than a right one.
    index = int(np.argmax(verdict.ulp + 0.0001 * ~verdict.right))
    got = np.asarray(comparison.got).reshape(-1)[index]
    example = f"{comparison.describe(index)}: {float(got)!r}, exactly {comparison.exact.text(index)}"
    return Tally(
        function=function,
        kind=kind,
        name=comparison.name,
        format=comparison.format,
        size=verdict.ulp.size,
        wrong=int(np.count_nonzero(~verdict.right)),
        worst=float(verdict.ulp.reshape(-1)[index]),
        example=example,
    )
