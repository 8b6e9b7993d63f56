"""What a logit chain makes of logits, and of errors in them: y = c·tanh(z·s/c)/τ.

Whoever computes y and its slope in a type with the unit roundoff u is off by

    |δy|      ≤ n·u·|y|
    |δ∂y/∂z|  ≤ k·u·|s/τ|      where it is computed as 1 − tanh², an absolute error

with k roundings of a product (STEPS). Without a cap n counts those of y. To multiply by s costs one, and one more
where the type does not hold s; to divide by τ two, of 1/τ and of the product with it; powers of two cost nothing. With
a cap n is k: an error of v = z·s/c, of 2·u·|v|·sech² v, is at most 2·u·|tanh v|, and a tanh is good to some u. No more
than that may be granted: a logit and the lse are both off by it, and beside logits of 14 two roundings are 3e-6 of a
loss, which of a confident row is 1e-3.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss.roundoff import STEPS, Roundoff, real

if TYPE_CHECKING:
    from collections.abc import Mapping

CHAIN = ("logit_scale", "softcap", "temperature")
# The significand of powers of two.
_OF_POWERS = 0.5


class Chained(NamedTuple):
    """Logits after a chain, and their slopes; float64."""

    value: np.ndarray
    slope: np.ndarray | float
    steepest: float  # |s/τ|


def is_chained(parameters: Mapping[str, Any]) -> bool:
    """Whether a case has a chain."""
    return any(name in parameters for name in CHAIN)


def z_factor(parameters: Mapping[str, Any]) -> float:
    """The factor of lse²."""
    return float(parameters.get("z_loss", 0.0))


@np.errstate(all="ignore")
def chained(logits: np.ndarray, parameters: Mapping[str, Any]) -> Chained:
    """In float64."""
    scale, temperature = float(parameters.get("logit_scale", 1.0)), float(parameters.get("temperature", 1.0))
    cap = parameters.get("softcap")
    scaled = real(logits) * scale
    if cap is None:
        return Chained(scaled / temperature, scale / temperature, abs(scale / temperature))
    twice = np.exp(-2.0 * np.abs(scaled / cap))
    slope = np.where(np.isnan(scaled), np.nan, 4.0 * twice / (1.0 + twice) ** 2) * scale / temperature
    return Chained(cap * np.tanh(scaled / cap) / temperature, slope, abs(scale / temperature))


def error_of_value(value: np.ndarray, parameters: Mapping[str, Any], unit: Roundoff) -> np.ndarray:
    """|δy|; a masked class has none."""
    return np.asarray(np.where(np.isfinite(value), _roundings(parameters, unit) * unit.between * np.abs(value), 0.0))


def _roundings(parameters: Mapping[str, Any], unit: Roundoff) -> int:
    """Of a logit on its way through a chain."""
    if parameters.get("softcap") is not None:
        return STEPS
    (scale, _), (temperature, _) = (math.frexp(parameters.get(name, 1.0)) for name in ("logit_scale", "temperature"))
    of_scale = 0 if abs(scale) == _OF_POWERS else 1 if (scale / unit.between).is_integer() else 2
    return of_scale + (0 if temperature == _OF_POWERS else 2)


def error_of_slope(of: Chained, unit: Roundoff) -> float:
    """|δ∂y/∂z|, where it is not the same for all."""
    return float(STEPS * unit.between * of.steepest)
