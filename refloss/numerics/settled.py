"""Whether a result that is off by some error is rounded right all the same; the rounding of an accurate one.

Ziv's strategy: where both ends of the interval around a float64 are rounded to the same number of a format, the real
number inside it is as well. Where not, because something cancelled or a tie is near, it is computed again in pairs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from refloss import jit
from refloss.numerics.formats import round_to_precision
from refloss.numerics.pairs import to_odd

# A float64 has no digits to spare: it is computed again where it has cancelled as a narrower format's could not.
_OF_FLOAT64 = 2.0**-32
# What is closer to a float64 than this is that number, which only the errors of pairs make another.
_SHORT = 2.0**-96


class Precision(NamedTuple):
    """The bits of float64 that a format lacks, and its smallest exponent."""

    dropped: int
    smallest: int


PRECISIONS: dict[np.dtype[Any], Precision] = {
    np.dtype(np.float64): Precision(0, -1022),
    np.dtype(np.float32): Precision(29, -126),
    np.dtype(ml_dtypes.bfloat16): Precision(45, -126),
    np.dtype(np.float16): Precision(42, -14),
}


# Of a result that is not wanted: everything is settled.
UNWANTED = Precision(-1, 0)


@jit.scalar
def is_settled(value, error, precision):
    """Whether all within an error of a value is one number in a format; NaN and infinities are what they are."""
    if precision.dropped < 0:
        return True
    if precision.dropped == 0:
        return (not error > _OF_FLOAT64 * abs(value)) | (not error < np.inf)
    below = round_to_precision(value - error, precision.dropped, precision.smallest)
    above = round_to_precision(value + error, precision.dropped, precision.smallest)
    return (below == above) | (not error < np.inf)


@jit.scalar
def settled(pair, precision):
    """A normalised pair as a float64 that one more rounding makes the right number of a format."""
    low = pair[1] if abs(pair[1]) >= _SHORT * abs(pair[0]) else 0.0
    return pair[0] if precision.dropped == 0 else to_odd((pair[0], low))
