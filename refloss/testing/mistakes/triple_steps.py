"""Mistaken formulas of counts, variances and ranks; of losses of three arrays the third is among the inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.roundoff import real
from refloss.testing.mistakes.elements import STEP, Elements, derivatives, gathered, of_formula, tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.testing.mistakes.elements import Formula, Step, Tensors


def _third(given: Elements, name: str, slope: np.ndarray) -> Tensors:
    """The gradient for the third array: the sum of those of elements that share a number of it."""
    array = given.inputs[name]
    each = given.cotangent / given.divisor * slope
    return {f"grad.{name}": gathered(each, _kept(given, array)).reshape(array.shape)}


def _kept(given: Elements, array: np.ndarray) -> tuple[int, ...]:
    """Its shape with an axis for each of the first array's, of which it may lack the last ones."""
    return array.shape + (1,) * (len(given.shape) - array.ndim)


def _no_slope_at_hinge(given: Elements) -> Iterator[Tensors]:
    y, distance = real(given.inputs["target"]), given.x - given.t
    hinge = given.parameters.get("margin", 0.0) - y * distance
    if (hinge == 0).any():
        above = hinge > 0
        slope = np.where(above, y, 0.0)
        yield tensors(given, None, -slope, slope) | _third(given, "target", np.where(above, -distance, 0.0))


def _variances(given: Elements) -> np.ndarray:
    var = given.inputs["var"]
    return np.broadcast_to(real(var).reshape(_kept(given, var)), given.x.shape)


def _of_variance(given: Elements, formula: Formula) -> Iterator[Tensors]:
    """Another function of d and the clamped variance."""
    d, v = given.x - given.t, np.maximum(_variances(given), given.parameters.get("eps", 1e-6))
    constant = np.log(2 * np.pi) / 2 if given.parameters.get("full") else 0.0
    of_d, of_v = formula(d + STEP * 1j, v + 0j), formula(d + 0j, v + STEP * 1j)
    slope = of_d.imag / STEP
    yield tensors(given, of_d.real + constant, slope, -slope) | _third(given, "var", of_v.imag / STEP)


def _of_deviations(given: Elements) -> Iterator[Tensors]:
    yield from _of_variance(given, lambda d, v: np.log(v) + d * d / (2 * v * v))


def _of_log_variances(given: Elements) -> Iterator[Tensors]:
    yield from _of_variance(given, lambda d, v: (v + d * d * np.exp(-v)) / 2)


def _clamp_differentiated(given: Elements) -> Iterator[Tensors]:
    var, eps = _variances(given), given.parameters.get("eps", 1e-6)
    if (var < eps).any():
        v = np.maximum(var, eps)
        slope = (1 - (given.x - given.t) ** 2 / v) / (2 * v)
        yield _third(given, "var", np.where(var < eps, 0.0, slope))


def _mean_of_shared(given: Elements) -> Iterator[Tensors]:
    counts = {name: given.x.size / max(array.size, 1) for name, array in given.inputs.items()}
    if max(counts.values()) > 1:
        d, v = given.x - given.t, np.maximum(_variances(given), given.parameters.get("eps", 1e-6))
        right = tensors(given, None, d / v, -d / v) | _third(given, "var", (1 - d**2 / v) / (2 * v))
        yield {f"grad.{name}": right[f"grad.{name}"] / count for name, count in counts.items() if count > 1}


OF_VARIANCES: dict[str, Step] = {
    "var is taken to be a standard deviation": _of_deviations,
    "var is taken to be a logarithm": _of_log_variances,
    "var has no gradient below eps": _clamp_differentiated,
    "the gradient of a shared number is a mean": _mean_of_shared,
}


def _counted(given: Elements, some: np.ndarray) -> Formula:
    """With Stirling's term where some are."""
    log_input, eps = given.parameters.get("log_input", True), given.parameters.get("eps", 1e-8)

    def formula(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        term = t * np.log(t) - t + np.log(2 * np.pi * t) / 2
        value = np.exp(x) - t * x if log_input else x - t * np.log(x + eps)
        # The derivative in t of a term that is left out is undefined for t ≤ 0; there is none in x.
        left_out = np.where((t.real <= 0) & (t.imag != 0), complex(0, np.nan), 0)
        return np.asarray(value + np.where(some, term, left_out))

    return formula


def _always_stirling(given: Elements) -> Iterator[Tensors]:
    if given.parameters.get("full") and (given.t <= 1).any():
        yield of_formula(given, _counted(given, given.t > -np.inf))


def _stirling_without_slope(given: Elements) -> Iterator[Tensors]:
    if given.parameters.get("full"):
        _, _, for_target = derivatives(_counted(given, given.t == np.inf), given)
        yield tensors(given, None, None, for_target)


OF_COUNTS: dict[str, Step] = {
    "Stirling's term is there where t ≤ 1": _always_stirling,
    "Stirling's term has no derivative": _stirling_without_slope,
}
OF_RANKS: dict[str, Step] = {"the hinge has no slope where it is 0": _no_slope_at_hinge}
