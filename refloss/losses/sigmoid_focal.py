"""Sigmoid focal loss.

With p = σ(x), q = 1 − p, a target t in [0, 1], the binary cross-entropy b = t·softplus(−x) + (1 − t)·softplus(x) and
the probability m = p·(1 − t) + q·t that is missed,

    ℓ = a·m^γ·b,    a = α·t + (1 − α)·(1 − t), or 1 for α < 0
    ∂ℓ/∂x = a·m^γ·(p − t + γ·b·(1 − 2t)·p·q/m)
    ∂ℓ/∂t = (2α − 1)·m^γ·b + a·m^γ·(−x + γ·b·(1 − 2p)/m)

With u = e^−|x|, and t' = t for x ≤ 0, 1 − t for x > 0 (how much of the target is on the side that x is not on),

    b = log(1 + u) + t'·|x|,    m = n/(1 + u),    n = u·(1 − t') + t'
    ∂ℓ/∂x = ±a·m^γ/(1 + u)·(u·(1 − t') − t' + γ·b·(1 − 2t')·u/n)
    ∂ℓ/∂t = m^γ·((2α − 1)·b + a·(−x ± γ·(b/n)·(1 − u)))

with + for x ≤ 0. For a target of 0 or 1 both terms of ∂ℓ/∂x have one sign. Near x = 0, u·(1 − t') − t' is
(1 − 2t') − (1 − u)·(1 − t') with a series for 1 − u. m^γ is the square of a pair, or e^(γ·log m) with log m a pair.
What crosses 0, and all of an element where γ is large, is computed again in pairs that are good to 2^-90.

torch counterpart: torchvision.ops.sigmoid_focal_loss; transformers': loss_for_object_detection.sigmoid_focal_loss and
loss_grounding_dino.sigmoid_focal_loss, which differ in their reduction. Source: Lin et al., "Focal Loss for Dense
Object Detection", 2017.
"""

from __future__ import annotations

import numpy as np

from refloss import arrays, jit
from refloss.cases import boxes as cases
from refloss.error_model import focal
from refloss.kernels.elementwise.loop import Loop
from refloss.kernels.one_class.loop import OneClassLoop
from refloss.loss import loss
from refloss.losses.parts import elementwise
from refloss.numerics.accurate import (
    CLOSE,
    exp_alone,
    exp_less_one,
    log_accurate,
    logistic_accurate,
)
from refloss.numerics.bits import fma
from refloss.numerics.exponential import UNDERFLOW, exp_of_negative, log_pair, logistic
from refloss.numerics.pairs import (
    add,
    divide,
    fast_two_sum,
    multiply,
    negate,
    normalised,
    pair,
    product,
    quotient,
    rounded,
    two_product,
    two_sum,
)
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import REDUCTION, Parameter, Specification, probabilities, sigmoid_logits
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction

REDUCTIONS = ("mean", "sum", "none")
# A logit beyond this is as good as infinite (γ·2^60 > 746 for γ ≥ 2^-50), and its arithmetic stays finite.
FARTHEST = 2.0**60
# m has a relative error of 2^-54, and m^γ one of γ·2^-54; beyond this γ, elements are computed again.
STEEP = 3.0
# Beyond it, as a share of 1, log m is −|x| − log(1 + u) where t' is 0: the error of log(1 + u) is below 2^-57.
SURE = 2.0**-4
# Below it 1 − e^−|x| is a series of six terms: the next one is below 2^-60 of the first.
_SMALL = 2.0**-8
# Below it e^−|x| is known well enough from itself, above it 1 − e^−|x| from its series in pairs.
_HALF = 0.5
# What the errors of pairs, of some 2^-98, leave of a difference that is 0.
_NOTHING = 2.0**-92


@jit.scalar
def power_pair(logarithm, exponent):
    """e^(exponent·logarithm) of a pair ≤ 0, for exponents ≥ 0, as a pair."""
    # A low part that is not small beside the high one, times a large exponent, would be too much for the exponential.
    normalised = fast_two_sum(logarithm[0], logarithm[1])
    steep = exponent > STEEP
    first, second = (normalised[0] if steep else logarithm[0]), (normalised[1] if steep else logarithm[1])
    high, low = two_product(first, exponent)
    return exp_of_negative(high, fma(second, exponent, low))


@jit.scalar
def power(logarithm, exponent):
    """e^(exponent·logarithm) of a pair ≤ 0, for exponents ≥ 0."""
    return rounded(power_pair(logarithm, exponent))


@jit.scalar
def log_probability(x, softplus):
    """log σ(x) as a pair, from log(1 + e^−|x|)."""
    size = abs(x) if abs(x) < FARTHEST else FARTHEST
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
def plus(a, b):
    """Sum of two pairs for hot loops, to 2^-105 of the larger one, with an undefined low part where it is infinite."""
    high, low = two_sum(a[0], b[0])
    rest = low + (a[1] + b[1])
    return fast_two_sum(high, rest if rest == rest else 0.0)


@jit.scalar
def either(condition, a, b):
    """One of two pairs."""
    return (a[0] if condition else b[0]), (a[1] if condition else b[1])


@jit.scalar
def whole_inverse(u, inverse):
    """1/(1 + u) as a pair, from its first digits."""
    whole, whole_low = fast_two_sum(1.0, u[0])
    lost = fma(-inverse, whole, 1.0) - inverse * (whole_low + u[1])
    return inverse, lost * inverse


@jit.scalar
def powered(base, distance, small, is_sure, gamma, squared):
    """A pair to the power γ, or 2; where is_sure, its logarithm is −distance − small."""
    if squared:
        return product(base, base)
    high, low = two_sum(-distance, -small[0])
    known = fast_two_sum(high, low - small[1])
    return power_pair(either(is_sure, known, log_pair(base[0], base[1])), gamma)


@jit.scalar
def _one_minus(size, u):
    """1 − e^−size from u = e^−size."""
    series = fma(-size * (1.0 / 5.0), fma(-size, 1.0 / 6.0, 1.0), 1.0)
    series = fma(-size * (1.0 / 3.0), fma(-size * (1.0 / 4.0), series, 1.0), 1.0)
    high, low = two_sum(1.0, -u[0])
    return either(size < _SMALL, (size, -0.5 * size * size * series), (high, low - u[1]))


@jit.scalar
def _weight(t, negative, alpha):
    """α·t + (1 − α)·(1 − t) as a pair; 1 for α < 0."""
    of_positive, of_negative = two_product(alpha, t), product(two_sum(1.0, -alpha), negative)
    return either(alpha < 0.0, pair(1.0), plus(of_positive, of_negative))


@jit.scalar
def _focal(x, t, alpha, gamma, squared):
    u, inverse, small = logistic(x)
    positive, negative = pair(t), two_sum(1.0, -t)
    above = x > 0.0
    near, far = either(above, negative, positive), either(above, positive, negative)
    agrees = near[0] == 0.0
    size = abs(x) if abs(x) < FARTHEST else FARTHEST
    small = fast_two_sum(small[0], small[1])
    missed = plus(product(u, far), near)
    inverse = whole_inverse(u, inverse)
    base = product(missed, inverse)
    scale = powered(base, size, small, agrees and u[0] < SURE, gamma, squared)
    loss = either(agrees, small, plus(product(near, pair(abs(x))), small))
    weight = _weight(t, negative, alpha)
    weighted = product(weight, scale)
    # b/n and u/n, whose limits are 1 where n is 0.
    steepness, ratio = quotient(loss, missed), quotient(u, missed)
    steepness, ratio = either(missed[0] == 0.0, pair(1.0), steepness), either(agrees, pair(1.0), ratio)
    # A logit that is infinite, on the wrong side: u is 0, and so is its product with b.
    steepened = either(ratio[0] == 0.0, pair(0.0), product(pair(gamma), product(loss, ratio)))
    rest = _one_minus(size, u)
    apart = plus(far, negate(near))
    pull = either(u[0] < _HALF, plus(product(u, far), negate(near)), plus(apart, negate(product(rest, far))))
    slope = product(product(weighted, inverse), plus(pull, product(apart, steepened)))
    pulled = product(pair(gamma), product(steepness, rest))
    moved = plus(pair(-x), either(above, negate(pulled), pulled))
    lean = either(alpha < 0.0, pair(0.0), two_sum(2.0 * alpha, -1.0))
    for_target = product(scale, plus(either(lean[0] == 0.0, lean, product(lean, loss)), product(weight, moved)))
    for_target = either(scale[0] == 0.0, pair(0.0), normalised(for_target))
    return product(weighted, loss), either(above, negate(slope), slope), for_target


@jit.scalar
def _loss(x, t, factor, parameters):
    return _focal(x, t, parameters[0], parameters[1], False)


@jit.scalar
def _loss_squared(x, t, factor, parameters):
    return _focal(x, t, parameters[0], 2.0, True)


@jit.scalar
def _is_close(x, t, factor, parameters, value, for_input, for_target):
    alpha, gamma = parameters
    steep = gamma > STEEP and value != 0.0 and abs(value) < np.inf
    # Where ∂ℓ/∂x crosses 0, b is between t'·|x| and t'·(|x| + 2), and its terms are near a·m^γ·t'.
    crosses = abs(for_input) * (abs(x) + 2.0) < CLOSE * value
    weight = 1.0 if alpha < 0.0 else fma(alpha, t, (1.0 - alpha) * (1.0 - t))
    lean = 0.0 if alpha < 0.0 else abs(2.0 * alpha - 1.0)
    return steep, steep or crosses, steep or abs(for_target) * weight < CLOSE * (lean * value)


@jit.helper
def power_accurate(logarithm, exponent):
    """e^(exponent·logarithm) of a pair ≤ 0 to the accuracy of pairs."""
    power = multiply(logarithm, pair(exponent))
    return exp_alone(power[0], power[1]) if power[0] > UNDERFLOW else pair(0.0)


@jit.helper
def _rest_accurate(size, u):
    """1 − e^−size."""
    if size > _HALF:
        return add(pair(1.0), negate(u))
    return negate(exp_less_one(pair(-size)))


@jit.helper
def _remainder(a, b):
    """a + b; 0 where only the errors of pairs are left of it."""
    result = add(a, b)
    return result if not abs(result[0]) < _NOTHING * abs(a[0]) else pair(0.0)


@jit.helper
def _accurate(x, t, factor, parameters):
    alpha, gamma = parameters
    known = logistic_accurate(x)
    positive, negative = pair(t), two_sum(1.0, -t)
    above, size = x > 0.0, abs(x)
    near, far = either(above, negative, positive), either(above, positive, negative)
    missed = add(multiply(known.u, far), near)
    loss = add(multiply(near, pair(size)), known.small)
    base = multiply(missed, known.larger)
    logarithm = negate(add(pair(size), known.small)) if near[0] == 0.0 else log_accurate(base[0], base[1])
    scale = power_accurate(logarithm, gamma)
    of_positive, of_negative = two_product(alpha, t), multiply(two_sum(1.0, -alpha), negative)
    weight = pair(1.0) if alpha < 0.0 else add(of_positive, of_negative)
    steepness = divide(loss, missed) if missed[0] != 0.0 else pair(1.0)
    rest = _rest_accurate(size, known.u)
    steepened = multiply(pair(gamma), multiply(steepness, known.u))
    apart = add(far, negate(near))
    if known.u[0] < _HALF:
        pull = _remainder(multiply(known.u, far), negate(near))
    else:
        pull = _remainder(apart, negate(multiply(rest, far)))
    slope = multiply(multiply(multiply(weight, scale), known.larger), _remainder(pull, multiply(apart, steepened)))
    pulled = multiply(pair(gamma), multiply(steepness, rest))
    moved = add(pair(-x), negate(pulled) if above else pulled)
    lean = pair(0.0) if alpha < 0.0 else two_sum(2.0 * alpha, -1.0)
    for_target = multiply(scale, _remainder(multiply(lean, loss), multiply(weight, moved)))
    return multiply(multiply(weight, scale), loss), negate(slope) if above else slope, for_target


LOOP = Loop("sigmoid_focal", _loss, _is_close, _accurate)
# The usual exponent needs no power.
SQUARED_LOOP = Loop("sigmoid_focal_squared", _loss_squared, _is_close, _accurate)


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
        identities=("mirrored",),
        follows="transformers.loss.loss_for_object_detection.sigmoid_focal_loss",
        cases=cases.sigmoid_focal,
        bounds=focal.sigmoid_focal,
        intermediates=("losses",),
    )
)
def sigmoid_focal(
    inputs: ArrayLike,
    targets: ArrayLike,
    num_boxes: float = 1.0,
    alpha: float = 0.25,
    gamma: float = 2.0,
    *,
    reduction: Reduction = "mean",
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
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
        SQUARED_LOOP if exponent == 2.0 else LOOP,
        {"inputs": x, "targets": t},
        options,
        parameters=(arrays.number(alpha, "alpha", finite=True), exponent),
        reduction="none" if reduction == "none" else "mean",
        divisor=divisor,
    )
