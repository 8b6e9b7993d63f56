"""Dice loss of masks.

With p = σ(x), a target t in [0, 1] and sums over all elements of a mask,

    ℓ = 1 − (2·Σ p·t + 1)/D = S/D,    D = Σ p + Σ t + 1,    S = Σ p·(1 − t) + (1 − p)·t
    ∂ℓ/∂p_i = (1 − ℓ − 2·t_i)/D,    ∂p_i/∂x_i = p_i·(1 − p_i),    ∂ℓ/∂t_i = (1 − ℓ − 2·p_i)/D

S, what is missed, has no negative term, so that a mask that fits loses no digit; 1 − (2·Σ p·t + 1)/D would.

transformers counterpart: loss_for_object_detection.dice_loss. Source: Milletari et al., "V-Net", 2016, equation 6, with
1 added above and below the line as in DETR, and without the squares.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refloss import arrays, jit
from refloss.cases import boxes as cases
from refloss.error_model import focal
from refloss.kernels.masks import run
from refloss.kernels.masks.loop import DiceLoop
from refloss.loss import loss
from refloss.numerics.bits import fma
from refloss.numerics.exact import total
from refloss.numerics.exponential import logistic
from refloss.numerics.pairs import add, divide, multiply, negate, pair, rounded
from refloss.options import Gradients, Options
from refloss.result import Intermediates, LossResult
from refloss.specification import Parameter, Specification, probabilities, reduction, sigmoid_logits

REDUCTIONS = ("sum", "none")


@jit.scalar
def _probability(x, t):
    """p and what is missed of an element."""
    u, inverse, _ = logistic(x)
    above = x > 0.0
    missed = fma(1.0 - t if above else t, 1.0, u[0] * (t if above else 1.0 - t)) * inverse
    return inverse if above else u[0] * inverse, missed


@jit.scalar
def terms(total, target_total, missed):
    """D and S/D as pairs, from Σ p, Σ t and S."""
    bottom = add(add(total, target_total), pair(1.0))
    return bottom, divide(missed, bottom)


@jit.helper
def _slope(loss, bottom, probability, coefficient):
    """coefficient·(1 − loss − 2·probability)/bottom, a pair."""
    slope = add(add(pair(1.0), negate(loss)), (-2.0 * probability[0], -2.0 * probability[1]))
    return multiply(pair(coefficient), divide(slope, bottom))


@jit.scalar
def _probability_pair(x):
    """σ(x) and σ(−x) as pairs."""
    u, _, _ = logistic(x)
    bottom = add(pair(1.0), u)
    larger, smaller = divide(pair(1.0), bottom), divide(u, bottom)
    return (larger, smaller) if x > 0.0 else (smaller, larger)


@jit.helper
def _slopes(x, t, loss, bottom, cotangent):
    """The gradient of an element and of its target."""
    above, below = _probability_pair(x)
    slope = multiply(_slope(loss, bottom, pair(t), cotangent), multiply(above, below))
    return rounded(slope), rounded(_slope(loss, bottom, above, cotangent))


LOOP = DiceLoop("dice", _probability, terms, _slopes)


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
    )
)
def dice(
    inputs: Any,
    targets: Any,
    num_boxes: float = 1.0,
    *,
    reduction: str = "sum",
    grad_output: Any = 1.0,
    grad: Gradients = True,
    grad_dtype: Any = None,
    out: np.ndarray | None = None,
    backend: str = "auto",
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
    with np.errstate(divide="ignore", invalid="ignore"):
        coefficients = cotangent / divisor
    losses = run.dice(LOOP, x, t, coefficients, gradient, target_gradient, backend)
    grads = {"inputs": gradient, "targets": target_gradient}
    return LossResult(
        loss=losses if reduction == "none" else total(losses, divisor),
        grads={name: value for name, value in grads.items() if value is not None},
        intermediates=Intermediates({"losses": losses}),
    )
