"""How far an honest loss of a linear layer's outputs may be from the exact one.

Notation as in softmax, with K features and V classes. A logit z_v = Σ_k x_k·W_vk + b_v is a sum that is rounded, and
may be rounded again where it is written down:

    |δz_v| ≤ s(K)·Σ_k |x_k·W_vk| + 2·u·(|z_v| + |b_v|)

which after the chain is an error d_v of the logits of a cross-entropy, whose bound for the gradient is |δg_v|. With it,

    |δ∂x_k|  ≤ Σ_v (|δg_v| + (s(V) + k·u)·|g_v|)·|W_vk|
    |δ∂W_vk| ≤ Σ_i (|δg_iv| + (s(N) + k·u)·|g_iv|)·|x_ik|
    |δ∂b_v|  ≤ Σ_i (|δg_iv| + (s(N) + k·u)·|g_iv|)

|g| is at most |c|·(|q| + p·(|Q| + |2ζ·lse|))·|∂y/∂z|. Both factors of a product may be rounded to what is computed in,
and in tf32 to eleven bits: 2·u is added to each s. Where logits are written down in a type (logits_dtype), what is off
may land on its neighbour there. The curvature of a cap turns |δz| into an error of ∂y/∂z. Whoever adds up chunks of
rows in a gradient's own 16-bit type, as Liger does unless it is told otherwise, is off by more than this.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss.error_model.bound import Bound, whole, without_nan
from refloss.error_model.chain import Chained, chained, error_of_slope, error_of_value, z_factor
from refloss.error_model.softmax import Rows, row_bounds
from refloss.roundoff import STEPS, Roundoff, real
from refloss.specification import AddedTerms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refloss.cases.source import Case
    from refloss.result import LossResult

_OPTIONS = ("ignore_index", "reduction", "label_smoothing")


def _squared(factor: float, lse: np.ndarray, _: np.ndarray) -> AddedTerms:
    """What factor·lse² adds."""
    return AddedTerms(factor * lse**2, 2 * factor * lse, 2 * factor * lse, np.full_like(lse, 2 * factor))


def _written(z: np.ndarray, off: np.ndarray, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are written down in a type, and how far apart that may have landed what was off by so much."""
    near, *ends = (real(values.astype(np.dtype(dtype))) for values in (z, z - off, z + off))
    return near, np.maximum(*(np.where(np.isfinite(end - near), np.abs(end - near), 0.0) for end in ends))


def _bend(of: Chained, parameters: Mapping[str, Any]) -> np.ndarray | float:
    """|∂²y/∂z²| at most."""
    cap = parameters.get("softcap")
    return 0.0 if cap is None else 2.0 * of.steepest * abs(parameters.get("logit_scale", 1.0)) / cap


class _Layer(NamedTuple):
    """A layer's numbers in float64, its logits, and how far those are off."""

    x: np.ndarray
    w: np.ndarray
    z: np.ndarray
    off: np.ndarray


def _layer(case: Case, unit: Roundoff) -> _Layer:
    x, w = np.atleast_2d(real(case.inputs["input"])), real(case.inputs["linear_weight"])
    bias = real(case.inputs.get("linear_bias", 0.0))
    z = x @ w.T + bias
    factors = _of_factors(unit)
    off = (unit.sum(x.shape[1]) + factors) * (np.abs(x) @ np.abs(w).T) + 2 * unit.between * (np.abs(z) + np.abs(bias))
    dtype = case.parameters.get("logits_dtype")
    return _Layer(x, w, *(_written(z, off, dtype) if dtype else (z, off)))


def _of_factors(unit: Roundoff) -> float:
    """What rounding the factors of a product costs."""
    return 2 * max(unit.between, unit.inside) + unit.factor


@np.errstate(all="ignore")
def linear_cross_entropy(case: Case, _: LossResult, unit: Roundoff) -> dict[str, Bound]:
    """Of rows [N, K], or one [K]."""
    layer, parameters = _layer(case, unit), case.parameters
    of, factor = chained(layer.z, parameters), z_factor(case.parameters)
    shape = (*case.inputs["input"].shape[:-1], len(layer.w))
    slope = np.broadcast_to(np.abs(of.slope), layer.z.shape)
    rows = Rows(
        of.value.reshape(shape),
        case.inputs["target"],
        case.grad_output,
        weight=case.inputs.get("weight"),
        added=partial(_squared, factor) if factor else None,
        error=(error_of_value(of.value, parameters, unit) + of.steepest * layer.off).reshape(shape),
        slope=(slope.reshape(shape), error_of_slope(of, unit)),
        **{name: value for name, value in parameters.items() if name in _OPTIONS},
    )
    limits, size = row_bounds(rows, unit), _sizes(rows, factor).reshape(layer.z.shape)
    of_logits = np.asarray(limits.pop("grad.logits")).reshape(layer.z.shape)
    wrong = of_logits + _bend(of, parameters) * without_nan(layer.off * size)
    return limits | _of_products(case, layer, size * slope, wrong, unit)


def _sizes(rows: Rows, factor: float) -> np.ndarray:
    """|∂L/∂y| at most."""
    at = rows.at(0, math.prod(rows.shape))
    pushed = at.totals.pushed + 2 * factor * at.totals.lse
    return without_nan(at.cotangent / abs(rows.normaliser) * (at.mass + pushed * at.probability))


def _of_products(case: Case, layer: _Layer, size: np.ndarray, wrong: np.ndarray, unit: Roundoff) -> dict[str, Bound]:
    """Of sums of gradients of logits, which are off by `wrong`, times what else is in a product."""
    (count, classes), step = size.shape, STEPS * unit.between + _of_factors(unit)
    x = np.where((size > 0).any(axis=1, keepdims=True), np.abs(layer.x), 0.0)
    by_rows = wrong + (unit.sum(count) + step) * size
    sums = {
        "input": (wrong + (unit.sum(classes) + step) * size) @ np.abs(layer.w),
        "linear_weight": by_rows.T @ x,
        "linear_bias": by_rows.sum(axis=0),
    }
    shapes = {name: case.inputs[name].shape for name in sums if name in case.inputs}
    return {f"grad.{name}": whole(without_nan(sums[name]), shape, lost=unit.tiny) for name, shape in shapes.items()}
