"""Sigmoid focal loss.

With p = σ(x), q = 1 − p, a target t in [0, 1], the binary cross-entropy b = t·softplus(−x) + (1 − t)·softplus(x) and
the probability m = p·(1 − t) + q·t that is missed,

    ℓ = a·m^γ·b,    a = α·t + (1 − α)·(1 − t), or 1 for α < 0
    ∂ℓ/∂x = a·m^γ·(p − t + γ·b·(1 − 2t)·p·q/m)
    ∂ℓ/∂t = (2α − 1)·m^γ·b + a·m^γ·(−x + γ·b·(1 − 2p)/m)

With u = e^−|x|, and t' = t for x ≤ 0, 1 − t for x > 0 (how much of the target is on the side that x is not on),

    b = log(1 + u) + t'·|x|,    m = (u·(1 − t') + t')/(1 + u)
    ∂ℓ/∂x = ±a·m^γ/(1 + u)·(u·(1 − t') − t' + γ·b·(1 − 2t')·r),    r = u/(u·(1 − t') + t'), 1 for t' = 0

with + for x ≤ 0. For a target of 0 or 1 both terms have one sign. m^γ is e^(γ·log m) with log m a pair.

torch counterpart: torchvision.ops.sigmoid_focal_loss; transformers': loss_for_object_detection.sigmoid_focal_loss and
loss_grounding_dino.sigmoid_focal_loss, which differ in their reduction. Source: Lin et al., "Focal Loss for Dense
Object Detection", 2017.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refloss import arrays, jit
from refloss.cases import boxes as cases
from refloss.error_model import focal
from refloss.kernels.elementwise.loop import Loop
from refloss.kernels.one_class.loop import OneClassLoop
from refloss.loss import loss
from refloss.losses.parts import elementwise
from refloss.numerics.bits import fma
from refloss.numerics.exponential import exp_of_negative, log_pair, logistic
from refloss.numerics.pairs import (
    add,
    divide,
    fast_two_sum,
    multiply,
    negate,
    pair,
    product,
    rounded,
    two_product,
    two_sum,
)
from refloss.options import Gradients, Options
from refloss.result import LossResult
from refloss.specification import REDUCTION, Parameter, Specification, probabilities, sigmoid_logits

REDUCTIONS = ("mean", "sum", "none")
# A logit beyond this is as good as infinite (γ·2^60 > 746 for γ ≥ 2^-50), and its arithmetic stays finite.
_FARTHEST = 2.0**60


@jit.scalar
def power_pair(logarithm, exponent):
    """e^(exponent·logarithm) of a pair ≤ 0, for exponents ≥ 0, as a pair."""
    high, low = two_product(logarithm[0], exponent)
    return exp_of_negative(high, fma(logarithm[1], exponent, low))


@jit.scalar
def power(logarithm, exponent):
    """e^(exponent·logarithm) of a pair ≤ 0, for exponents ≥ 0."""
    return rounded(power_pair(logarithm, exponent))


@jit.scalar
def log_probability(x, softplus):
    """log σ(x) as a pair, from log(1 + e^−|x|)."""
    size = abs(x) if abs(x) < _FARTHEST else _FARTHEST
    high, low = two_sum(0.0 if x > 0.0 else -size, -softplus[0])
    return high, low - softplus[1]


@jit.scalar
def _square(u, inverse, above):
    """σ(x)² from e^−|x|, a pair, and 1/(1 + e^−|x|): the usual exponent needs no power."""
    whole, whole_low = fast_two_sum(1.0, u[0])
    lost = fma(-inverse, whole, 1.0) - inverse * (whole_low + u[1])
    p, low = product((inverse, lost * inverse), (1.0, 0.0) if above else u)
    return fma(p, p, 2.0 * p * low)


@jit.scalar
def absent(x, alpha, gamma):
    """Value and derivative for a target of 0."""
    u, inverse, small = logistic(x)
    above = x > 0.0
    loss = (small[0] + (x if above else 0.0)) + small[1]
    scale = alpha * (_square(u, inverse, above) if gamma == 2.0 else power(log_probability(x, small), gamma))
    slope = (1.0 if above else u[0]) + gamma * loss * (u[0] if above else 1.0)
    return scale * loss, scale * inverse * slope


@jit.scalar
def _negative(x, focus):
    return absent(x, focus.negative, focus.gamma)


@jit.scalar
def _positive(x, quality, focus):
    value, derivative = absent(-x, focus.positive, focus.gamma)
    return value, -derivative


ONE_CLASS_LOOP = OneClassLoop("sigmoid_focal", _negative, _positive)


@jit.scalar
def _loss(x, t, factor, parameters):
    alpha, gamma = parameters
    u, inverse, small = logistic(x)
    positive, negative = (t, 0.0), two_sum(1.0, -t)
    near, far = (negative, positive) if x > 0.0 else (positive, negative)
    agrees = near[0] == 0.0
    missed = add(multiply(u, far), near)
    # Where x and t agree, m = u/(1 + u), which may be too small for a float64.
    size = abs(x) if abs(x) < _FARTHEST else _FARTHEST
    log_missed = (-size, 0.0) if agrees else log_pair(missed[0], missed[1])
    scale = power(add(log_missed, negate(small)), gamma)
    weight = 1.0 if alpha < 0.0 else fma(alpha, t, (1.0 - alpha) * (1.0 - t))
    loss = small if agrees else add(multiply(near, pair(abs(x))), small)
    ratio = pair(1.0) if agrees else divide(u, missed)
    steepened = multiply(multiply(pair(gamma), loss), multiply(add(far, negate(near)), ratio))
    slope = rounded(add(add(multiply(u, far), negate(near)), steepened))
    value = weight * scale * rounded(loss)
    derivative = weight * scale * inverse * slope
    # For the target: what the missed probability and a change by it.
    probability = missed[0] * inverse
    lowered = scale / probability if probability > 0.0 else (0.0 if gamma > 1.0 else 1.0)
    change = gamma * rounded(loss) * ((1.0 - u[0]) * inverse if x < 0.0 else (u[0] - 1.0) * inverse) * lowered
    for_target = weight * (change - x * scale) + (0.0 if alpha < 0.0 else (2.0 * alpha - 1.0) * scale * rounded(loss))
    return pair(value), pair(derivative if x <= 0.0 else -derivative), pair(for_target)


LOOP = Loop("sigmoid_focal", _loss)


@loss(
    Specification(
        arguments={"inputs": sigmoid_logits(on_gpu=False), "targets": probabilities(on_gpu=False)},
        parameters={
            "num_boxes": Parameter(float, (1.0, 2.5)),
            "alpha": Parameter(float, (0.25, 0.6, -1.0)),
            "gamma": Parameter(float, (2.0, 0.0, 1.5)),
            **REDUCTION,
        },
        mean="num_boxes",
        axes=2,
        order=80,
        follows="transformers.loss.loss_for_object_detection.sigmoid_focal_loss",
        cases=cases.sigmoid_focal,
        bounds=focal.sigmoid_focal,
    )
)
def sigmoid_focal(
    inputs: Any,
    targets: Any,
    num_boxes: float = 1.0,
    alpha: float = 0.25,
    gamma: float = 2.0,
    *,
    reduction: str = "mean",
    grad_output: Any = 1.0,
    grad: Gradients = True,
    grad_dtype: Any = None,
    out: np.ndarray | None = None,
    backend: str = "auto",
) -> LossResult:
    """Sigmoid focal loss of logits, as transformers' sigmoid_focal_loss in both its reductions.

    ℓ = a·(1 − p_t)^γ·b with p = σ(x), p_t = p·t + (1 − p)·(1 − t), b the binary cross-entropy and
    a = α·t + (1 − α)·(1 − t). "mean" averages over axis 1, adds up the rest and divides by num_boxes (the DETRs);
    "sum" divides the sum by num_boxes (Grounding DINO); "none" gives every element. Gradient for one element with
    m = 1 − p_t: ∂ℓ/∂x = a·m^γ·(p − t + γ·b·(1 − 2t)·p·(1 − p)/m);
    ∂ℓ/∂t = (2α − 1)·m^γ·b + a·m^γ·(γ·b·(1 − 2p)/m − x). Held constant: num_boxes.

    Args:
        inputs: logits; any float dtype and layout, [N, K, ...] for "mean".
        targets: of the same shape, in [0, 1]; any float dtype.
        num_boxes: what the loss is divided by.
        alpha: weight of positive targets, 1 − alpha that of negative ones; no weights at all if negative.
        gamma: exponent of the missed probability, at least 0.
        reduction: "mean", "sum" or "none".
        grad: True, False, or the names of the inputs whose gradients to compute.
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy; out is for the gradient of inputs.

    Returns:
        loss in nats. grads: "inputs" and "targets". intermediates: "losses" of the elements, when asked for.

    Edges:
        A logit of −inf with target 0, or +inf with target 1, has loss 0 and gradient 0 (NaN in torch); with the other
        target inf. No elements along axis 1: "mean" is NaN.

    Raises:
        ValueError: a shape, a range, an option or a buffer that does not fit. TypeError: a dtype that does not.
    """
    arrays.choice(reduction, "reduction", REDUCTIONS)
    x, t = arrays.float_array(inputs, "inputs"), arrays.float_array(targets, "targets")
    divisor = arrays.number(num_boxes, "num_boxes", finite=True, low=0.0)
    if reduction == "mean":
        if x.ndim < 2:
            raise ValueError(f"inputs has shape {x.shape}; expected [N, K, ...] for reduction 'mean'")
        divisor = arrays.number(divisor * x.shape[1], "num_boxes times the size of axis 1", finite=True)
    arrays.check_shape(t, x.shape, "targets", "the shape of inputs")
    arrays.check_range(t, 0.0, 1.0, "targets")
    exponent = arrays.number(gamma, "gamma", finite=True, low=0.0)
    options = Options(grad_output, grad, grad_dtype, out, backend)
    return elementwise.loss_of_elements(
        LOOP,
        {"inputs": x, "targets": t},
        options,
        parameters=(arrays.number(alpha, "alpha", finite=True), exponent),
        reduction="none" if reduction == "none" else "mean",
        divisor=divisor,
    )
