"""Varifocal loss: binary cross-entropy with the quality of a box as its target.

With p = σ(x), the quality q in [0, 1] of the box of a positive class, softplus(x) = log(1 + e^x) and the binary
cross-entropy b(x, t) = softplus(x) − t·x,

    positive   ℓ = q·b(x, q),              ∂ℓ/∂x = q·(p − q)
    negative   ℓ = α·p^γ·softplus(x),      ∂ℓ/∂x = α·p^γ·p

Held constant: the quality, and the weight α·p^γ, although it depends on x: the focal factor only says how much an
element matters. (That of losses/sigmoid_focal.py is differentiated.) So the derivative is not the slope of the value,
and differences must hold the weight too.

p^γ is e^(γ·log p) with log p a pair; p − q is computed in pairs.

Counterparts: RTDetrLoss.loss_labels_vfl in transformers, where the quality is an IoU. Source: Zhang et al.,
"VarifocalNet: An IoU-aware Dense Object Detector", 2021.
"""

from __future__ import annotations

import numpy as np

from refloss import arrays, jit
from refloss.cases import boxes as cases
from refloss.error_model import focal
from refloss.kernels.elementwise.loop import Loop
from refloss.kernels.one_class.loop import OneClassLoop
from refloss.loss import loss
from refloss.losses.bce_with_logits import soft_target, unweighted
from refloss.losses.parts import elementwise
from refloss.losses.sigmoid_focal import (
    FARTHEST,
    REDUCTIONS,
    STEEP,
    either,
    log_probability,
    plus,
    power,
    power_accurate,
    powered,
    whole_inverse,
)
from refloss.numerics.accurate import exp_of_size, is_close, log1p_accurate
from refloss.numerics.exponential import logistic
from refloss.numerics.pairs import add, divide, fast_two_sum, multiply, negate, pair, product, scaled, two_sum
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import REDUCTION, Parameter, Specification, probabilities, sigmoid_logits
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction


@jit.scalar
def detached_focal(x, alpha, gamma):
    """Value and derivative of a negative class: the weight α·p^γ is constant."""
    u, inverse, small = logistic(x)
    above = x > 0.0
    weight = alpha * power(log_probability(x, small), gamma)
    loss = (small[0] + (x if above else 0.0)) + small[1]
    return weight * loss, weight * (inverse if above else u[0] * inverse)


@jit.scalar
def _negative(x, focus):
    return detached_focal(x, focus.negative, focus.gamma)


@jit.helper
def _positive(x, quality, focus):
    value, derivative = soft_target(x, quality)
    return quality[0] * value, quality[0] * derivative


ONE_CLASS_LOOP = OneClassLoop("varifocal", _negative, _positive)


@jit.scalar
def _absent(x, alpha, gamma, squared):
    """The same as pairs."""
    u, inverse, small = logistic(x)
    above = x > 0.0
    inverse, small = whole_inverse(u, inverse), fast_two_sum(small[0], small[1])
    p = either(above, inverse, product(u, inverse))
    distance = 0.0 if above else min(-x, FARTHEST)
    weight = product(pair(alpha), powered(p, distance, small, True, gamma, squared))
    return product(weight, plus(pair(x if above else 0.0), small)), product(weight, p)


@jit.scalar
def _varifocal(x, t, alpha, gamma, squared):
    absent, absent_slope = _absent(x, alpha, gamma, squared)
    value, slope, _ = unweighted(x, t, 1.0, (alpha, gamma))
    is_positive = t > 0.0
    of_value = either(is_positive, product(value, pair(t)), absent)
    return of_value, either(is_positive, product(slope, pair(t)), absent_slope), pair(0.0)


@jit.scalar
def _loss(x, t, factor, parameters):
    return _varifocal(x, t, parameters[0], parameters[1], False)


@jit.scalar
def _loss_squared(x, t, factor, parameters):
    return _varifocal(x, t, parameters[0], 2.0, True)


@jit.scalar
def _is_close(x, t, factor, parameters, value, for_input, for_target):
    steep = parameters[1] > STEEP and t == 0.0 and value != 0.0 and abs(value) < np.inf
    return steep, steep or (t > 0.0 and is_close(for_input, t * (1.0 - t if x > 0.0 else t))), False


@jit.helper
def _accurate(x, t, factor, parameters):
    u, above = exp_of_size(x), x > 0.0
    whole = add(pair(1.0), u)
    if t > 0.0:
        # p − t, or (1 − t) − (1 − p).
        apart = add(either(above, two_sum(1.0, -t), pair(-t)), divide(either(above, negate(u), u), whole))
        return pair(0.0), scaled(apart, pair(t)), pair(0.0)
    alpha, gamma = parameters
    small = log1p_accurate(u[0], u[1])
    weight = multiply(pair(alpha), power_accurate(negate(add(pair(max(-x, 0.0)), small)), gamma))
    p = divide(either(above, pair(1.0), u), whole)
    return multiply(weight, add(pair(max(x, 0.0)), small)), multiply(weight, p), pair(0.0)


LOOP = Loop("varifocal", _loss, _is_close, _accurate)
# The usual exponent needs no power.
SQUARED_LOOP = Loop("varifocal_squared", _loss_squared, _is_close, _accurate)


@loss(
    Specification(
        arguments={
            "inputs": sigmoid_logits(on_gpu=False),
            "targets": probabilities(on_gpu=False, differentiable=False),
        },
        parameters={
            "num_boxes": Parameter(float, (1.0, 2.5)),
            "alpha": Parameter(float, (0.25, 0.6)),
            "gamma": Parameter(float, (2.0, 0.0, 1.5)),
            **REDUCTION,
        },
        mean="num_boxes",
        axes=2,
        order=90,
        follows="RTDetrLoss.loss_labels_vfl of transformers",
        cases=cases.varifocal,
        bounds=focal.varifocal,
        intermediates=("losses",),
    )
)
def varifocal(
    inputs: ArrayLike,
    targets: ArrayLike,
    num_boxes: float = 1.0,
    alpha: float = 0.75,
    gamma: float = 2.0,
    *,
    reduction: Reduction = "mean",
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Varifocal loss of logits against the quality of their boxes.

    With p = σ(x): ℓ = −q·(q·log p + (1 − q)·log(1 − p)) where the target q > 0, and −α·p^γ·log(1 − p) where it is 0.
    "mean" averages over axis 1, adds up the rest and divides by num_boxes, as refloss.sigmoid_focal; "sum" divides the
    sum by num_boxes; "none" gives every element. Gradient: ∂ℓ/∂x = q·(p − q) and α·p^γ·p. Held constant: targets and
    the weights q and α·p^γ.

    Args:
        inputs: logits; any float dtype and layout, [N, K, ...] for "mean".
        targets: of the same shape, in [0, 1]: the quality (IoU) for the positive class, 0 elsewhere.
        num_boxes: what the loss is divided by.
        alpha: weight of the negative classes.
        gamma: exponent of their probability, at least 0.
        reduction: "mean", "sum" or "none".
        grad: True, False, or "inputs".
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy; out is for the gradient of inputs.

    Returns:
        loss in nats. grads: "inputs". intermediates: "losses" of the elements, when asked for.

    Edges:
        A logit of −inf with target 0 has loss 0 and gradient 0. No elements along axis 1: "mean" is NaN.

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
        SQUARED_LOOP if exponent == 2.0 else LOOP,
        {"inputs": x, "targets": t},
        options,
        parameters=(arrays.number(alpha, "alpha", finite=True), exponent),
        target_has_gradient=False,
        reduction="none" if reduction == "none" else "mean",
        divisor=divisor,
    )
