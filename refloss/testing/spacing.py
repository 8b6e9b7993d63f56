"""Float types, the distance of their numbers, and errors measured by it."""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

FLOATS: dict[Any, Any] = {
    np.dtype(kind): ml_dtypes.finfo(kind)  # type: ignore[no-untyped-call]
    for kind in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
}


class Elements(NamedTuple):
    """Some elements of a candidate's tensor, all float64 and of one shape."""

    got: np.ndarray
    right: np.ndarray
    allowed: np.ndarray
    ulp: np.ndarray  # the distance of neighbours of the candidate's type around what is right


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


def elements(got: np.ndarray, right: np.ndarray, bound: np.ndarray) -> Elements:
    """Elements of a candidate beside the right ones, and how far off they may be.

    The candidate rounds once to its type, and what is right was rounded once to its own.
    """
    values = right.astype(np.float64)
    size = np.abs(np.where(np.isfinite(values), values, 0.0))
    allowed = bound + (spacing(size + bound, got.dtype) + spacing(size, right.dtype)) / 2
    return Elements(got.astype(np.float64), values, allowed, spacing(size, got.dtype))


def errors(given: Elements) -> Errors:
    """Of elements; infinite where one value is finite and the other is not."""
    with np.errstate(all="ignore"):
        error = np.abs(given.got - given.right)
        same = (given.got == given.right) | (np.isnan(given.got) & np.isnan(given.right))
        error = np.where(same, 0.0, _or_infinite(error))
        ratio = np.where(same, 0.0, _or_infinite(error / given.allowed))
        return Errors(error / given.ulp, given.allowed / given.ulp, ratio)


def _or_infinite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), np.inf, values)
