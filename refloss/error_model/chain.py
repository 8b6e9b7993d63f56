"""What a logit chain makes of logits, and of errors in them: y = c·tanh(z·s/c)/τ.

With k roundings of a product (STEPS), whoever computes y and its slope in a type with the unit roundoff u is off by

    |δy|      ≤ k·u·|y|        of v = z·s/c, an error of 2·u·|v|·sech² v, which is at most 2·u·|tanh v|
    |δ∂y/∂z|  ≤ k·u·|s/τ|      where it is computed as 1 − tanh², an absolute error
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss.roundoff import STEPS, Roundoff, real

if TYPE_CHECKING:
    from collections.abc import Mapping

CHAIN = ("logit_scale", "softcap", "temperature")


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


def error_of_value(of: Chained, unit: Roundoff) -> np.ndarray:
    """|δy|; a masked class has none."""
    return np.asarray(np.where(np.isfinite(of.value), STEPS * unit.between * np.abs(of.value), 0.0))


def error_of_slope(of: Chained, unit: Roundoff) -> float:
    """|δ∂y/∂z|, where it is not the same for all."""
    return float(STEPS * unit.between * of.steepest)
