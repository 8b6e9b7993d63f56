"""Dice loss of masks.

With p = σ(x), a target t in [0, 1] and sums over all elements of a mask,

    ℓ = 1 − (2·Σ p·t + 1)/D = S/D,    D = Σ p + Σ t + 1,    S = Σ p·(1 − t) + (1 − p)·t
    ∂ℓ/∂p_i = (1 − ℓ − 2·t_i)/D,    ∂p_i/∂x_i = p_i·(1 − p_i),    ∂ℓ/∂t_i = (1 − ℓ − 2·p_i)/D

S, what is missed, has no negative term, so that a mask that fits loses no digit; 1 − (2·Σ p·t + 1)/D would. Elements
of sums are pairs, off by 2^-53 of themselves at most.

1 − ℓ − 2·t and 1 − ℓ − 2·p cancel to nothing. Where float64 does not settle the rounding of a gradient, D and S are
added up again from probabilities that are good to some 2^-98, and the gradient is c·(D − S − 2·D·t)/D², in pairs.

transformers counterpart: loss_for_object_detection.dice_loss. Source: Milletari et al., "V-Net", 2016, equation 6, with
1 added above and below the line as in DETR, and without the squares.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from refloss import arrays, jit
from refloss.cases import boxes as cases
from refloss.error_model import focal
from refloss.kernels.masks import run
from refloss.kernels.masks.loop import DiceLoop
from refloss.loss import loss
from refloss.numerics.accurate import sigmoids_accurate
from refloss.numerics.bits import fma
from refloss.numerics.exact import as_pair, exact, ratio, total
from refloss.numerics.exponential import logistic
from refloss.numerics.pairs import (
    add,
    divide,
    fast_two_sum,
    multiply,
    negate,
    pair,
    product,
    times,
    two_product,
    two_sum,
)
from refloss.options import Options
from refloss.result import Intermediates, LossResult
from refloss.specification import Parameter, Specification, probabilities, reduction, sigmoid_logits
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients

REDUCTIONS = ("sum", "none")


# What a derivative is off by at most, relative to the magnitudes in 1 − ℓ − 2t and 1 − ℓ − 2p: 2^-53 of ℓ and of a
# probability, their roundings and those of the factors, less than 16·2^-53 in all.
_TOLERANCE = 2.0**-49
# What is below the errors of pairs, relative to D; exponentials are good to some 2^-98.
_NOTHING = 2.0**-90


@jit.scalar
def _quotient(top, bottom, inverse):
    """top/bottom for pairs and 1/bottom in float64, as a pair with a relative error of some 2^-100."""
    high = top[0] * inverse
    rest = fma(-high, bottom[0], top[0]) + (top[1] - high * bottom[1])
    return high, rest * inverse


@jit.scalar
def _exponential(x):
    """u = e^−|x|, a pair; 1/(1 + u); 1 + u, a pair."""
    u, inverse, _ = logistic(x)
    bottom, low = fast_two_sum(1.0, u[0])
    return u, inverse, (bottom, low + u[1])


@jit.scalar
def probability(x, t):
    """p and what is missed of an element: pairs."""
    u, inverse, bottom = _exponential(x)
    above = x > 0.0
    p = _quotient((1.0 if above else u[0], 0.0 if above else u[1]), bottom, inverse)
    rest, rest_low = two_sum(1.0, -t)
    near, near_low = (rest if above else t), (rest_low if above else 0.0)
    far, far_low = (t if above else rest), (0.0 if above else rest_low)
    share, share_low = two_product(u[0], far)
    top, top_low = two_sum(near, share)
    top_low += near_low + (share_low + fma(u[1], far, u[0] * far_low))
    return p, _quotient((top, top_low), bottom, inverse)


@jit.scalar
def terms(total, target_total, missed):
    """D and S/D as pairs, from Σ p, Σ t and S."""
    bottom = add(add(total, target_total), pair(1.0))
    return bottom, divide(missed, bottom)


@jit.scalar
def _factors(bottom, loss, cotangent):
    """1 − ℓ and c/D, pairs."""
    return add(pair(1.0), negate(loss)), divide(cotangent, bottom)


@jit.scalar
def _slopes(x, t, kept, by):
    """The gradient of an element and of its target, and what they may be off by."""
    u, inverse, bottom = _exponential(x)
    larger = _quotient(pair(1.0), bottom, inverse)
    smaller = product(u, larger)
    above = x > 0.0
    p = (larger[0] if above else smaller[0]), (larger[1] if above else smaller[1])
    flat = product(smaller, larger)
    of_element = (kept[0] - 2.0 * t) + kept[1]
    of_target = (kept[0] - 2.0 * p[0]) + (kept[1] - 2.0 * p[1])
    error = _TOLERANCE * abs(by[0])
    slope, target_slope = times(times(of_element, by), flat), times(of_target, by)
    return slope, error * (kept[0] + 2.0 * t) * flat[0], target_slope, error * (kept[0] + 2.0 * p[0])


@jit.helper
def _accurate(x, t):
    """σ(x), σ(−x) and what is missed of an element, pairs."""
    if x != x:
        return pair(x), pair(x), pair(x)
    _, larger, smaller = sigmoids_accurate(x)
    p, q = (larger, smaller) if x > 0.0 else (smaller, larger)
    return p, q, add(multiply(p, two_sum(1.0, -t)), multiply(q, pair(t)))


@jit.helper
def slope_accurate(bottom, missed, value, cotangent):
    """c·(D − S − 2·D·value)/D²."""
    slope = add(add(bottom, negate(missed)), multiply(bottom, (-2.0 * value[0], -2.0 * value[1])))
    slope = slope if abs(slope[0]) >= _NOTHING * bottom[0] else pair(0.0)
    return multiply(cotangent, divide(divide(slope, bottom), bottom))


@jit.helper
def _accurate_slopes(x, t, bottom, missed, cotangent):
    """The gradient of an element and of its target, pairs, from accurate sums."""
    p, q, _ = _accurate(x, t)
    return multiply(slope_accurate(bottom, missed, pair(t), cotangent), multiply(p, q)), slope_accurate(
        bottom, missed, p, cotangent
    )


LOOP = DiceLoop("dice", probability, terms, _factors, _slopes, _accurate, _accurate_slopes)


@loss(
    Specification(
        arguments={"inputs": sigmoid_logits(on_gpu=False), "targets": probabilities(on_gpu=False)},
        parameters={"num_boxes": Parameter(float, (1.0, 2.5)), "reduction": reduction("sum", "none")},
        mean="num_boxes",
        axes=2,
        per="row",
        order=100,
        follows="transformers.loss.loss_for_object_detection.dice_loss",
        cases=cases.dice,
        bounds=focal.dice,
        intermediates=("losses",),
    )
)
def dice(
    inputs: ArrayLike,
    targets: ArrayLike,
    num_boxes: float = 1.0,
    *,
    reduction: Literal["sum", "none"] = "sum",
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Dice loss of mask logits, as transformers' dice_loss.

    ℓ_n = 1 − (2·Σ p·t + 1)/(Σ p + Σ t + 1) with p = σ(x) for each mask n; the sum over masks / num_boxes. Gradient with
    D = Σ p + Σ t + 1: ∂ℓ/∂x = (1 − ℓ − 2t)·p·(1 − p)/D; ∂ℓ/∂t = (1 − ℓ − 2p)/D. Held constant: num_boxes.

    Args:
        inputs: [N, ...] logits; any float dtype and layout.
        targets: of the same shape, in [0, 1]; any float dtype.
        num_boxes: what the sum is divided by.
        reduction: "sum", or "none" for the loss of each mask, not divided.
        grad: True, False, or the names of the inputs whose gradients to compute.
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy; out is for the gradient of inputs.

    Returns:
        loss between 0 and 1 a mask. grads: "inputs" and "targets". intermediates: "losses" [N].

    Edges:
        A mask without elements has loss 0, and so has the sum over no masks. A logit of NaN: NaN for its mask.

    Raises:
        ValueError: a shape, a range or an option that does not fit. TypeError: a dtype that does not.
    """
    arrays.choice(reduction, "reduction", REDUCTIONS)
    x, t = arrays.float_array(inputs, "inputs"), arrays.float_array(targets, "targets")
    if x.ndim < 1:
        raise ValueError(f"inputs has shape {x.shape}; expected [N, ...]")
    arrays.check_shape(t, x.shape, "targets", "the shape of inputs")
    arrays.check_range(t, 0.0, 1.0, "targets")
    divisor = arrays.number(num_boxes, "num_boxes", finite=True, low=0.0)
    divisor = divisor if reduction == "sum" else 1.0
    options = Options(grad_output, grad, grad_dtype, out, backend)
    cotangent = options.cotangent(x.shape[:1] if reduction == "none" else ())
    wanted = options.wanted(("inputs", "targets"))
    gradient = options.buffer(x, "inputs", wanted="inputs" in wanted)
    target_gradient = np.empty(t.shape, t.dtype) if "targets" in wanted else None
    pairs = [as_pair(ratio(exact(c), exact(divisor))) for c in cotangent.tolist()]
    losses = run.dice(LOOP, x, t, np.array(pairs).reshape(-1, 2), gradient, target_gradient, backend)
    grads = {"inputs": gradient, "targets": target_gradient}
    return LossResult(
        loss=losses if reduction == "none" else total(losses, divisor),
        grads={name: value for name, value in grads.items() if value is not None},
        intermediates=Intermediates({"losses": losses}),
    )
