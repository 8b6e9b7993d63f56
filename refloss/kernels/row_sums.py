"""Sums of rows of float64, exact enough to be rounded once."""

from __future__ import annotations

import numpy as np

from refloss import jit
from refloss.numerics.pairs import divide, pair, rounded
from refloss.numerics.sums import long_sum


@jit.kernel
def _quotients(values, divisor, results):
    for row in range(values.shape[0]):
        result = rounded(divide(long_sum(values[row]), pair(divisor)))
        # One NaN, whichever an operation makes.
        results[row] = result if result == result else np.nan


def row_quotients(values: np.ndarray, divisor: float) -> np.ndarray:
    """The sum of every row of values [R, C] over a divisor, float64 [R]; the order of a row does not show."""
    results = np.empty(values.shape[0])
    _quotients(values, divisor, results)
    return results
