"""Binary cross-entropy of logits.

With σ(x) = 1/(1 + e^−x), a target t and a factor p on the positive term,

    ℓ = −p·t·log σ(x) − (1 − t)·log(1 − σ(x)) = p·t·softplus(−x) + (1 − t)·softplus(x)
    ∂ℓ/∂x = (1 − t)·σ(x) − p·t·σ(−x),    ∂ℓ/∂t = p·softplus(−x) − softplus(x) = (p − 1)·softplus(−x) − x

With u = e^−|x|, one of the two softplus terms is log(1 + u) and the other |x| more: for x > 0

    ℓ = (1 − t)·x + (p·t + 1 − t)·log(1 + u),    ∂ℓ/∂x = (1 − t − u·p·t)/(1 + u)

and for x < 0 the same with p·t and 1 − t exchanged and the derivative negated. All terms of ℓ have one sign for t in
[0, 1], so that a confident element loses no digit; the usual (1 − t)·x + softplus(−x) cancels there. With p = 1,
∂ℓ/∂t is −x exactly.

Where a soft target is nearly σ(x), little is left of 1 − t − u·p·t. Such elements are computed again in pairs, and so
are those where ∂ℓ/∂t crosses 0 with p between 0 and 1.

Torch counterpart: torch.nn.functional.binary_cross_entropy_with_logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss import arrays, jit
from refloss.cases.elements import elements, sure_logits
from refloss.device import host
from refloss.kernels.elementwise.loop import Loop
from refloss.kernels.maps import sigmoids
from refloss.loss import loss
from refloss.losses.parts import elementwise
from refloss.numerics.accurate import is_close, logistic_accurate
from refloss.numerics.bits import fma
from refloss.numerics.exponential import logistic
from refloss.numerics.pairs import (
    add,
    divide,
    fast_two_sum,
    multiply,
    negate,
    normalised,
    pair,
    product,
    rounded,
    two_product,
    two_sum,
)
from refloss.options import Options
from refloss.result import LossResult
from refloss.roundoff import STEPS, real
from refloss.specification import (
    REDUCTION,
    Elementwise,
    Magnitudes,
    probabilities,
    sigmoid_logits,
    weight,
)
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from refloss.roundoff import Roundoff


@jit.scalar
def _value(x, larger, small):
    """The hinge of |x| and what is above it, as a pair."""
    hinge = product(larger, pair(abs(x)))
    high, low = two_sum(hinge[0], small[0])
    return high, low + (hinge[1] + small[1])


@jit.scalar
def _slope(x, larger, smaller, u, inverse):
    """∂ℓ/∂x = ±(larger − u·smaller)/(1 + u), of pairs: the two terms may agree in many of their digits."""
    subtracted = product(smaller, u)
    high, low = two_sum(larger[0], -subtracted[0])
    # A sure logit's slope, too small for a float64, keeps its sign.
    high = -subtracted[0] if larger[0] == 0.0 else high
    low += larger[1] - subtracted[1]
    whole, whole_low = fast_two_sum(1.0, u[0])
    slope = high * inverse
    rest = fma(-slope, whole, high) + fma(-slope, whole_low + u[1], low)
    rest *= inverse
    return (slope, rest) if x > 0.0 else (-slope, -rest)


@jit.scalar
def _sides(x, factor, t):
    """p·t and 1 − t: that of the side which x is not on, and the other one."""
    positive, negative = two_product(factor, t), two_sum(1.0, -t)
    return (negative, positive) if x > 0.0 else (positive, negative)


@jit.scalar
def unweighted(x, t, factor, parameters):
    """ℓ and its derivatives for p = 1, pairs; where little is left of ∂ℓ/∂x, accurate_slope is better."""
    u, inverse, small = logistic(x)
    larger, smaller = _sides(x, 1.0, t)
    return _value(x, larger, small), _slope(x, larger, smaller, u, inverse), pair(-x)


@jit.scalar
def _for_target(x, factor, small):
    """∂ℓ/∂t = (p − 1)·log(1 + u) + (p·|x| for x < 0, else −|x|), a pair."""
    hinge = two_product(-1.0 if x > 0.0 else factor, abs(x))
    rest = product(two_sum(factor, -1.0), small)
    high, low = two_sum(hinge[0], rest[0])
    # The low part of log(1 + u) is not small: what is left shows in their sum only.
    return two_sum(high, low + (hinge[1] + rest[1]))


@jit.scalar
def _loss_with_factor(x, t, factor, parameters):
    u, inverse, small = logistic(x)
    larger, smaller = _sides(x, factor, t)
    high, low = two_sum(larger[0], smaller[0])
    value = _value(x, larger, product((high, low + (larger[1] + smaller[1])), small))
    return value, _slope(x, larger, smaller, u, inverse), _for_target(x, factor, small)


@jit.helper
def accurate_slope(x, positive, negative):
    """∂ℓ/∂x for the pairs p·t and 1 − t, however close they make it to 0."""
    u = logistic_accurate(x).u
    larger, smaller = (negative, positive) if x > 0.0 else (positive, negative)
    slope = divide(add(larger, negate(multiply(smaller, u))), add(pair(1.0), u))
    return slope if x > 0.0 else negate(slope)


@jit.helper
def soft_target(x, target):
    """ℓ and ∂ℓ/∂x for a target that is a pair; x finite."""
    _, _, small = logistic(x)
    negative = add(pair(1.0), negate(target))
    return rounded(_value(x, negative if x > 0.0 else target, small)), rounded(accurate_slope(x, target, negative))


@jit.scalar
def _is_close(x, t, factor, parameters, value, for_input, for_target):
    # A target outside [0, 1] makes the terms of a value differ in sign.
    larger = 1.0 - t if x > 0.0 else factor * t
    hinge = abs(x) if x > 0.0 else factor * x
    return abs(value) < 0.5 * abs(larger * x), is_close(for_input, larger), is_close(for_target, hinge)


@jit.helper
def _accurate(x, t, factor, parameters):
    positive, negative = two_product(factor, t), two_sum(1.0, -t)
    small = logistic_accurate(x).small
    value = _value(x, negative if x > 0.0 else positive, multiply(add(positive, negative), small))
    return value, accurate_slope(x, positive, negative), _for_target(x, factor, small)


@jit.scalar
def _value_alone(x, t, factor, parameters):
    """ℓ, which is the derivative in a weight: as a value, as that of the first argument, and its low part alone."""
    value = normalised(unweighted(x, t, factor, parameters)[0])
    return value, value, pair(value[1])


@jit.scalar
def _is_value_close(x, t, factor, parameters, value, for_input, for_target):
    close = _is_close(x, t, factor, parameters, value, value, value)[0]
    return close, close, close


@jit.helper
def _accurate_value(x, t, factor, parameters):
    value = normalised(_accurate(x, t, factor, parameters)[0])
    return value, value, pair(value[1])


LOOP = Loop("bce_with_logits", unweighted, _is_close, _accurate)
LOOP_FOR_WEIGHT = Loop("bce_with_logits_for_weight", _value_alone, _is_value_close, _accurate_value)
LOOP_WITH_FACTOR = Loop("bce_with_logits_with_factor", _loss_with_factor, _is_close, _accurate)


def magnitudes_of_logits(x: np.ndarray, t: np.ndarray, case: Case, unit: Roundoff) -> Magnitudes:
    """Of a value and both derivatives, with the factor of a case if it has one."""
    given = case.inputs.get("pos_weight")
    factor = np.ones(()) if given is None else real(given)
    positive, negative = np.logaddexp(0.0, -x), np.logaddexp(0.0, x)
    value = np.abs((1 - t) * x) + (np.abs((factor - 1) * t) + 1) * positive
    pulled = np.abs(factor * t)
    slope = (pulled + 1 + np.abs(t)) * np.exp(-positive) + pulled
    # σ(x) may be e^(x − log(1 + e^x)), whose exponent is rounded twice, by at most the smaller of its terms.
    of_exponent = np.minimum(unit.between * np.abs(x), np.log1p(np.exp(-np.abs(x)))) / (STEPS * unit.between)
    slope += 2 * of_exponent * (pulled * np.exp(-negative) + np.abs(1 - t) * np.exp(-positive))
    return Magnitudes(value, slope, np.abs(factor) * positive + negative)


@loss(
    Elementwise(
        arguments={
            "logits": sigmoid_logits(),
            "target": probabilities(),
            "weight": weight(broadcast=True),
            "pos_weight": weight(broadcast=True),
        },
        parameters=REDUCTION,
        order=60,
        identities=("mirrored", "linear in the target"),
        follows="torch.nn.functional.binary_cross_entropy_with_logits",
        cases=elements(15, sure_logits, first="logits", probabilities=("target",)),
        magnitudes=magnitudes_of_logits,
        intermediates=("losses", "probabilities"),
    )
)
def bce_with_logits(
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    *,
    reduction: Reduction = "mean",
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Binary cross-entropy of logits, as torch.nn.functional.binary_cross_entropy_with_logits.

    ℓ_i = w_i·(p_i·t_i·softplus(−x_i) + (1 − t_i)·softplus(x_i)); "mean" divides the sum by the number of elements. With
    c = grad_output over that: ∂/∂x_i = c·w_i·((1 − t_i)·σ(x_i) − p_i·t_i·σ(−x_i)),
    ∂/∂t_i = c·w_i·(p_i·softplus(−x_i) − softplus(x_i)). Held constant: weight and pos_weight.

    Args:
        logits, target: arrays of one shape, any float dtype and layout; targets are usually in [0, 1].
        weight: broadcasts to the shape of logits.
        pos_weight: p, broadcasts to the shape of logits.
        reduction: "mean", "sum" or "none".
        grad: True, False, or the names of the inputs whose gradients to compute.
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy; out is for logits' gradient.

    Returns:
        loss in nats. grads: "logits" and "target".
        intermediates: "losses" of the elements, and "probabilities" σ(x);
        both computed from the inputs when asked for.

    Edges:
        A logit of ±inf on the right side of a hard target is 0·inf = NaN, as in torch; its gradient is 0. No
        elements: "mean" is NaN.

    Raises:
        ValueError: a shape, an option or a buffer that does not fit. TypeError: a dtype that does not.
    """
    arrays.choice(reduction, "reduction", elementwise.REDUCTIONS)
    x, t = arrays.float_array(logits, "logits"), arrays.float_array(target, "target")
    options = Options(grad_output, grad, grad_dtype, out, backend)
    result = elementwise.loss_of_elements(
        LOOP if pos_weight is None else LOOP_WITH_FACTOR,
        {"logits": x, "target": t},
        options,
        weight=elementwise.broadcast(weight, x.shape, "weight"),
        factor=elementwise.broadcast(pos_weight, x.shape, "pos_weight"),
        divisor=x.size,
        reduction=reduction,
    )
    result.intermediates.later["probabilities"] = lambda: sigmoids(host(x))
    return result
