"""How far an honest loss of a linear layer's outputs may be from the exact one.

Notation as in softmax, with K features and V classes (of all places, if there are several). A logit
z_v = Σ_k x_k·W_vk + b_v is a sum that is rounded, and may be rounded again where it is written down:

    |δz_v| ≤ s(K)·Σ_k |x_k·W_vk| + 2·u·(|z_v| + |b_v|)

which after the chain is an error d_v of the logits of a cross-entropy, whose bound for the gradient is |δg_v|. With it,

    |δ∂x_k|  ≤ Σ_v (|δg_v| + (s(V) + k·u)·|g_v|)·|W_vk|
    |δ∂W_vk| ≤ Σ_i (|δg_iv| + (s(N) + k·u)·|g_iv|)·|x_ik|
    |δ∂b_v|  ≤ Σ_i (|δg_iv| + (s(N) + k·u)·|g_iv|)

|g| is at most |c|·(|q| + p·(|Q| + |2ζ·lse|))·|∂y/∂z|; of log-probabilities and entropies, log_probs has it and |δg|.
Both factors of a product may be rounded to what is computed in, and in tf32 to eleven bits: 2·u is added to each s.
Where logits are written down in a type (logits_dtype), what is off may land on its neighbour there. The curvature of a
cap turns |δz| into an error of ∂y/∂z.

Two approximations are allowed where they are declared (bounds(..., filtered=, parts=)), because they are off by more.
CCE leaves out gradients of logits where |Q·p − q| < ε: |c|·(|Q·p − q| + p·|2ζ·lse|) may be missing there. Liger, unless
it is told otherwise, adds up gradients of parameters by parts of rows in the parameters' type, with unit roundoff u':
n parts cost n·u'·Σ|terms|.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np

from refloss.error_model.bound import Bound, whole, without_nan
from refloss.error_model.chain import Chained, chained, error_of_slope, error_of_value, z_factor
from refloss.error_model.log_probs import RowBounds
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
    x, w = (_matrix(real(case.inputs[name])) for name in ("input", "linear_weight"))
    bias = real(case.inputs.get("linear_bias", np.zeros(1))).reshape(-1)
    z = x @ w.T + bias
    factors = _of_factors(unit)
    off = (unit.sum(x.shape[1]) + factors) * (np.abs(x) @ np.abs(w).T) + 2 * unit.between * (np.abs(z) + np.abs(bias))
    dtype = case.parameters.get("logits_dtype")
    return _Layer(x, w, *(_written(z, off, dtype) if dtype else (z, off)))


def _matrix(array: np.ndarray) -> np.ndarray:
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])


def _logits_shape(case: Case) -> tuple[int, ...]:
    return (*case.inputs["input"].shape[:-1], *case.inputs["linear_weight"].shape[:-1])


def _of_factors(unit: Roundoff) -> float:
    """What rounding the factors of a product costs."""
    return 2 * max(unit.between, unit.inside) + unit.factor


@np.errstate(all="ignore")
def linear_cross_entropy(case: Case, _: LossResult, unit: Roundoff) -> dict[str, Bound]:
    """Of rows [N, K], or one [K]; in the order of logits [N, V, places ...]."""
    layer, parameters = _layer(case, unit), case.parameters
    of, factor = chained(layer.z, parameters), z_factor(case.parameters)
    shape = _logits_shape(case)
    slope = np.broadcast_to(np.abs(of.slope), layer.z.shape)
    rows = Rows(
        of.value.reshape(shape),
        case.inputs["target"],
        case.grad_output,
        class_axis=case.inputs["input"].ndim - 1,
        weight=case.inputs.get("weight"),
        added=partial(_squared, factor) if factor else None,
        error=(error_of_value(of.value, parameters, unit) + of.steepest * layer.off).reshape(shape),
        slope=(slope.reshape(shape), error_of_slope(of, unit)),
        **{name: value for name, value in parameters.items() if name in _OPTIONS},
    )
    limits, size = row_bounds(rows, unit), _sizes(rows, factor).reshape(layer.z.shape)
    of_logits = np.asarray(limits.pop("grad.logits")).reshape(layer.z.shape)
    wrong = of_logits + _bend(of, parameters) * without_nan(layer.off * size)
    wrong = wrong + _left_out(rows, factor, of_logits.reshape(shape), unit).reshape(layer.z.shape) * slope
    return limits | _of_products(case, layer, size * slope, wrong, unit)


@np.errstate(all="ignore")
def linear_selected_log_probs(case: Case, _: LossResult, unit: Roundoff) -> dict[str, Bound]:
    """Of rows [..., K]: g and |δg| are those of log_probs, of logits that are off."""
    layer, parameters = _layer(case, unit), case.parameters
    of = chained(layer.z, parameters)
    error = np.where(np.isfinite(layer.z), of.steepest * layer.off, 0.0)
    rows = RowBounds(case, unit, layer.z.reshape(_logits_shape(case)), error)
    wrong, size = (without_nan(part).reshape(layer.z.shape) for part in rows.slopes(0, layer.z.size))
    wrong = wrong + _bend(of, parameters) * without_nan(layer.off * size)
    return rows.outputs() | _of_products(case, layer, without_nan(size * np.abs(of.slope)), wrong, unit)


def _left_out(rows: Rows, factor: float, off: np.ndarray, unit: Roundoff) -> np.ndarray:
    """|∂L/∂y| where it may be missing: below the filter, or off by so much that it may seem to be."""
    if not unit.filtered:
        return np.zeros(rows.shape)
    at = rows.at(0, math.prod(rows.shape))
    scale = at.cotangent / abs(rows.normaliser)
    small = without_nan(scale * np.abs(at.totals.pushed * at.probability - at.mass))
    missing = small + without_nan(scale * 2 * factor * np.abs(at.totals.lse) * at.probability)
    return np.where(small - off.reshape(small.shape) < scale * unit.filtered, missing, 0.0)


def _sizes(rows: Rows, factor: float) -> np.ndarray:
    """|∂L/∂y| at most."""
    at = rows.at(0, math.prod(rows.shape))
    pushed = at.totals.pushed + 2 * factor * at.totals.lse
    return without_nan(at.cotangent / abs(rows.normaliser) * (at.mass + pushed * at.probability))


def _of_parts(dtype: Any, unit: Roundoff) -> float:
    """What adding up parts in a type costs."""
    return 0.0 if unit.parts == 1 else unit.parts * float(ml_dtypes.finfo(dtype).eps) / 2  # type: ignore[no-untyped-call]


def _of_products(case: Case, layer: _Layer, size: np.ndarray, wrong: np.ndarray, unit: Roundoff) -> dict[str, Bound]:
    """Of sums of gradients of logits, which are off by `wrong`, times what else is in a product."""
    (count, classes), step = size.shape, STEPS * unit.between + _of_factors(unit)
    x = np.where((size > 0).any(axis=1, keepdims=True), np.abs(layer.x), 0.0)
    by_rows = {
        name: wrong + (unit.sum(count) + step + _of_parts(case.inputs[name].dtype, unit)) * size
        for name in ("linear_weight", "linear_bias")
        if name in case.inputs
    }
    sums = {
        "input": (wrong + (unit.sum(classes) + step) * size) @ np.abs(layer.w),
        "linear_weight": by_rows["linear_weight"].T @ x,
        "linear_bias": by_rows.get("linear_bias", wrong).sum(axis=0),
    }
    shapes = {name: case.inputs[name].shape for name in sums if name in case.inputs}
    return {f"grad.{name}": whole(without_nan(sums[name]), shape, lost=unit.tiny) for name, shape in shapes.items()}
