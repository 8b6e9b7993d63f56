"""What a type rounds, and what every bound has in common.

An honest implementation rounds each of its operations to the type that it computes in. A sum is taken in any order, but
in float32 at least: 16-bit types are for values between operations, as every library has it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

# Roundings of a product or quotient on its way: weight, 1 − ε, ε/K, cotangent, normaliser, a sum of two parts.
STEPS = 8


class Roundoff(NamedTuple):
    """Of a type: unit roundoffs and the size below which numbers may be lost."""

    between: float  # u, of values between operations
    inside: float  # v, of values inside an operation, sums among them
    tiny: float  # what may become 0


_ROUNDOFFS = {
    "float64": Roundoff(2.0**-53, 2.0**-53, 2.0**-1022),
    "float32": Roundoff(2.0**-24, 2.0**-24, 2.0**-126),
    # tf32 rounds the inputs of matrix products to eleven bits, and no loss here multiplies matrices.
    "tf32": Roundoff(2.0**-24, 2.0**-24, 2.0**-126),
    "float16": Roundoff(2.0**-11, 2.0**-24, 2.0**-24),
    "bfloat16": Roundoff(2.0**-8, 2.0**-24, 2.0**-126),
}
COMPUTE_DTYPES = tuple(_ROUNDOFFS)


def roundoff(compute_dtype: str) -> Roundoff:
    """The roundoffs of a type that is computed in."""
    if compute_dtype not in _ROUNDOFFS:
        raise ValueError(f"compute_dtype is {compute_dtype!r}; expected one of {', '.join(COMPUTE_DTYPES)}")
    return _ROUNDOFFS[compute_dtype]


def real(values: Any) -> np.ndarray:
    """Values in float64, which holds those of every type."""
    return np.asarray(values, np.float64)
