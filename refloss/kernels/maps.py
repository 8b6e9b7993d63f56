"""Scalars over arrays of float64, for intermediates: values that people look at, not what losses are made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from refloss import jit
from refloss.numerics.bits import fma
from refloss.numerics.exponential import exp, logistic


@jit.kernel
def _exp(values, results):
    for i in range(values.size):
        results[i] = exp(values[i])


@jit.kernel
def _sigmoid(values, results):
    for i in range(values.size):
        u, inverse, _ = logistic(values[i])
        results[i] = inverse if values[i] > 0.0 else fma(u[0], inverse, u[1] * inverse)


def _mapped(kernel: Any, array: np.ndarray) -> np.ndarray:
    values = np.array(array, np.float64, order="C")
    kernel(values.reshape(-1), values.reshape(-1))
    return values


def exponentials(array: np.ndarray) -> np.ndarray:
    """e^x, float64."""
    return _mapped(_exp, array)


def sigmoids(array: np.ndarray) -> np.ndarray:
    """1/(1 + e^−x), float64."""
    return _mapped(_sigmoid, array)
