"""Binary cross-entropy of logits.

With σ(x) = 1/(1 + e^−x), a target t and a factor p on the positive term,

    ℓ = −p·t·log σ(x) − (1 − t)·log(1 − σ(x)) = p·t·softplus(−x) + (1 − t)·softplus(x)
    ∂ℓ/∂x = (1 − t)·σ(x) − p·t·σ(−x),    ∂ℓ/∂t = p·softplus(−x) − softplus(x) = (p − 1)·softplus(−x) − x

Both terms of ℓ have one sign for t in [0, 1], so that a confident element loses no digit; the usual (1 − t)·x +
softplus(−x) cancels there. With p = 1, ∂ℓ/∂t is −x exactly.

Torch counterpart: torch.nn.functional.binary_cross_entropy_with_logits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refloss import arrays, jit
from refloss.kernels.elementwise import loops
from refloss.losses import elementwise
from refloss.numerics.exponential import sigmoid, softplus_pair
from refloss.numerics.pairs import pair, product, rounded, two_product, two_sum
from refloss.result import LossResult


@jit.scalar
def _value(x, t, factor, parameter):
    # One of the two softplus terms is log1p(e^−|x|), the other |x| more.
    small = softplus_pair(-abs(x))
    positive, negative = two_product(factor, t), two_sum(1.0, -t)
    hinge = product(positive if x < 0.0 else negative, pair(abs(x)))
    if parameter > 0.0:
        high, low = two_sum(positive[0], negative[0])
        small = product((high, low + (positive[1] + negative[1])), small)
    high, low = two_sum(hinge[0], small[0])
    return high, low + (hinge[1] + small[1])


@jit.scalar
def _derivatives(x, t, factor, parameter):
    for_input = (1.0 - t) * sigmoid(x) - factor * t * sigmoid(-x)
    if parameter > 0.0:
        return for_input, (factor - 1.0) * rounded(softplus_pair(-x)) - x
    return for_input, -x


@jit.scalar
def _size(x, t, factor, parameter):
    return (abs(x) + 1.0) * (abs(factor * t) + abs(1.0 - t))


LOOPS = loops("bce_with_logits", _value, _derivatives, _size)


def bce_with_logits(
    logits: Any,
    target: Any,
    weight: Any = None,
    pos_weight: Any = None,
    *,
    reduction: str = "mean",
    grad_output: Any = 1.0,
    grad: bool = True,
    grad_dtype: Any = None,
    out: np.ndarray | None = None,
    backend: str = "auto",
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
        grad_output, grad, grad_dtype, out, backend: as in refloss.cross_entropy; out is for logits' gradient.

    Returns:
        loss in nats. grads: "logits" and "target".

    Edges:
        A logit of ±inf on the right side of a hard target is 0·inf = NaN, as in torch; its gradient is 0. No
        elements: "mean" is NaN.

    Raises:
        ValueError: a shape, an option or a buffer that does not fit. TypeError: a dtype that does not.
    """
    arrays.choice(reduction, "reduction", elementwise.REDUCTIONS)
    x, t = arrays.float_array(logits, "logits"), arrays.float_array(target, "target")
    return elementwise.evaluate(
        LOOPS,
        {"logits": x, "target": t},
        parameter=0.0 if pos_weight is None else 1.0,
        weight=elementwise.broadcast(weight, x.shape, "weight"),
        factor=elementwise.broadcast(pos_weight, x.shape, "pos_weight"),
        divisor=x.size,
        reduction=reduction,
        grad_output=grad_output,
        grad=grad,
        grad_dtype=grad_dtype,
        out=out,
        backend=backend,
    )
