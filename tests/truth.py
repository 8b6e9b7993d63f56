"""The definitions, evaluated in mpmath with so many digits that no cancellation matters, and errors in ulp.

A true value is handed on as a pair of float64, high + low, which holds it to some 2^-106: errors of a result can then
be computed in NumPy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mpmath
import numpy as np

PRECISION_BITS = 300


class Format(NamedTuple):
    """A float format: bits of its significand, the exponent of its smallest normal number."""

    precision: int
    smallest_exponent: int


FORMATS = {
    "float64": Format(53, -1022),
    "float32": Format(24, -126),
    "bfloat16": Format(8, -126),
    "float16": Format(11, -14),
}


class Pairs(NamedTuple):
    """True values as high + low·2^-shift; small values have a shift, so that their low part is never subnormal."""

    high: np.ndarray
    low: np.ndarray
    shift: np.ndarray

    def at(self, where: np.ndarray) -> Pairs:
        """Some of the values."""
        return Pairs(self.high[where], self.low[where], self.shift[where])


def pairs(values: Any) -> Pairs:
    """mpmath numbers of any nesting as pairs."""
    array = np.array(values, dtype=object)
    high = np.array([float(value) for value in array.ravel()])
    shift = np.where(np.abs(high) < 1, 200, 0)
    low = [
        float(mpmath.ldexp(value - mpmath.mpf(top), int(by))) if np.isfinite(top) else 0.0
        for value, top, by in zip(array.ravel(), high, shift, strict=True)
    ]
    return Pairs(high.reshape(array.shape), np.array(low).reshape(array.shape), shift.reshape(array.shape))


def ulp_errors(result: Any, true: Pairs, dtype: str) -> np.ndarray:
    """How far results are from true values, in units in the last place of the true value in a format."""
    precision, smallest = FORMATS[dtype]
    got = np.asarray(result).astype(np.float64)
    exponent = np.where(true.high == 0, smallest, np.maximum(np.frexp(true.high)[1] - 1, smallest))
    with np.errstate(invalid="ignore"):
        gap = np.where(got == true.high, 0.0, got - true.high)
    difference = np.ldexp(gap, true.shift) - true.low
    return np.abs(np.ldexp(difference, precision - 1 - exponent - true.shift))


def correctly_rounded(errors: np.ndarray) -> np.ndarray:
    """Which errors are those of the nearest value; exact ties must be looked at by hand."""
    return errors <= 0.5


class Truth(NamedTuple):
    """A row's cross-entropy in mpmath numbers."""

    loss: Any
    lse: Any
    gradient: list[Any]
    target_gradient: list[Any]  # of probabilities


def cross_entropy_row(
    logits: np.ndarray,
    target: int | np.ndarray,
    *,
    weight: np.ndarray | None = None,
    label_smoothing: float = 0.0,
    coefficient: Any = 1,
    precision_bits: int = PRECISION_BITS,
) -> Truth:
    """Σ q_j·(lse − x_j) and its derivatives times a coefficient, from the definition.

    A loss of e^-m wants 1.45·m bits to be told from 0, and a hundred more.
    """
    with mpmath.workprec(precision_bits):
        x = [mpmath.mpf(float(value)) for value in logits]
        classes = len(x)
        w = [mpmath.mpf(1)] * classes if weight is None else [mpmath.mpf(float(value)) for value in weight]
        t, smoothing = _distribution(target, classes), mpmath.mpf(label_smoothing)
        if smoothing:
            t = [(1 - smoothing) * share + smoothing / classes for share in t]
        q = [w[j] * t[j] for j in range(classes)]
        shift = max(x)
        terms = [mpmath.exp(value - shift) for value in x]
        total = mpmath.fsum(terms)
        lse = shift + mpmath.log(total)
        mass = mpmath.fsum(q)
        return Truth(
            loss=mpmath.fsum(q[j] * (lse - x[j]) for j in range(classes) if q[j] != 0),
            lse=lse,
            gradient=[coefficient * (mass * terms[j] / total - q[j]) for j in range(classes)],
            target_gradient=[]
            if isinstance(target, int | np.integer)
            else [coefficient * (1 - smoothing) * w[j] * (lse - x[j]) for j in range(classes)],
        )


def _distribution(target: int | np.ndarray, classes: int) -> list[Any]:
    """A label's, or the one that is given."""
    if isinstance(target, int | np.integer):
        return [mpmath.mpf(int(j == target)) for j in range(classes)]
    return [mpmath.mpf(float(share)) for share in target]
