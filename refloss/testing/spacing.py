"""Float types, the distance of their numbers, and errors measured by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from refloss.testing.verdict import Values

FLOATS: dict[Any, Any] = {
    np.dtype(kind): ml_dtypes.finfo(kind)  # type: ignore[no-untyped-call]
    for kind in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
}


class Errors(NamedTuple):
    """Of every element: the error and the bound in ulp of the candidate's type, and error ÷ bound."""

    error: np.ndarray
    bound: np.ndarray
    ratio: np.ndarray


def spacing(values: np.ndarray, dtype: Any) -> np.ndarray:
    """The distance between neighbours of a float type around values that are not negative."""
    limits = FLOATS[np.dtype(dtype)]
    _, exponent = np.frexp(np.maximum(values, float(limits.smallest_normal)))
    return np.asarray(np.ldexp(float(limits.eps), exponent - 1))


def errors(values: Values) -> Errors:
    """Of a tensor; infinite where one value is finite and the other is not."""
    with np.errstate(all="ignore"):
        error = np.abs(values.got - values.expected)
        same = (values.got == values.expected) | (np.isnan(values.got) & np.isnan(values.expected))
        error = np.where(same, 0.0, np.nan_to_num(error, nan=np.inf, posinf=np.inf))
        ratio = np.where(same, 0.0, np.nan_to_num(error / values.allowed, nan=np.inf, posinf=np.inf))
        return Errors(error / values.ulp, values.allowed / values.ulp, ratio)
