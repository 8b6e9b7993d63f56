"""What cases are made of. Inputs come from integers by exact arithmetic, so that they are the same on every machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
    "float64": np.float64,
}


class Case(NamedTuple):
    """A call of a public function: function(**inputs, **parameters, grad_output=grad_output)."""

    id: str
    function: str
    inputs: dict[str, np.ndarray]
    parameters: dict[str, Any]
    grad_output: Any  # a number, an array, or a mapping from components to such


def changed_cotangent(given: Any, change: Callable[[Any], Any]) -> Any:
    """A cotangent, or each of a mapping's, changed; a number stays one."""
    if isinstance(given, Mapping):
        return {name: changed_cotangent(value, change) for name, value in given.items()}
    return change(given) if np.ndim(given) else float(change(np.float64(given)))


def is_one_number(cotangent: Any) -> bool:
    """Whether a cotangent is the same for all losses and components."""
    return not isinstance(cotangent, Mapping) and np.ndim(cotangent) == 0


class Source:
    """Reproducible values: a bit generator's raw stream is fixed, unlike the distributions that NumPy makes of it."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def uniform(self, *shape: int) -> np.ndarray:
        """Multiples of 2^-53 in [0, 1)."""
        raw = np.array(self._bits.random_raw(int(np.prod(shape))), np.uint64)
        return (raw >> np.uint64(11)).astype(np.float64).reshape(shape) * 2.0**-53

    def normal(self, *shape: int) -> np.ndarray:
        """Roughly normal values of variance 1: the sum of twelve uniform ones."""
        values: np.ndarray = self.uniform(12, *shape).sum(axis=0) - 6.0
        return values

    def integers(self, high: int, *shape: int) -> np.ndarray:
        """Integers in [0, high)."""
        return (self.uniform(*shape) * high).astype(np.int64)

    def probabilities(self, *shape: int) -> np.ndarray:
        """Positive values that sum to about 1 along axis 1."""
        values = self.uniform(*shape) + 0.01
        values /= values.sum(axis=1, keepdims=True)
        return values
