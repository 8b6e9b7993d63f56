"""Smooth L1: quadratic below β, linear above.

With d = x − t: d²/2β for |d| < β, else |d| − β/2. Its derivative in x is d/β or sign(d), that in t the negative; both
pieces meet with slope ±1 at |d| = β. β = 0 is the absolute error. Girshick, "Fast R-CNN", 2015.

Torch counterpart: torch.nn.functional.smooth_l1_loss.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from refloss import arrays, jit
from refloss.cases.elements import elements, kinked, one_each
from refloss.kernels.elementwise.loop import Loop
from refloss.loss import loss
from refloss.losses.parts import elementwise
from refloss.numerics.pairs import is_below, negate, pair, product, quotient, two_sum
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import REDUCTION, Elementwise, Magnitudes, Parameter, values
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction


@jit.scalar
def _loss(x, t, factor, parameters):
    beta = parameters[0]
    high, low = two_sum(x, -t)
    negative = high < 0.0
    distance = (-high if negative else high, -low if negative else low)
    inside = is_below(distance, beta) or (high != high and beta > 0.0)
    share = quotient((high, low), pair(beta))
    half = (0.5 * high, 0.5 * low)
    rest, rest_low = two_sum(distance[0], -0.5 * beta)
    value = product(half, share) if inside else (rest, rest_low + distance[1])
    sign = (1.0 if high > 0.0 else 0.0) - (1.0 if negative else 0.0)
    slope = share if inside else pair(sign)
    return value, slope, negate(slope)


LOOP = Loop("smooth_l1", _loss)


def _magnitudes(x, t, case, unit):
    d, beta = np.abs(x - t), case.parameters.get("beta", 1.0)
    slope = np.minimum(d / beta, 1.0) if beta else np.ones_like(d)
    return Magnitudes(np.where(d < beta, slope * d / 2, d + beta / 2), slope, slope)


@loss(
    Elementwise(
        arguments={"input": values(), "target": values()},
        parameters=REDUCTION | {"beta": Parameter(float, (1.0, 0.0, 0.25, 3.0))},
        order=30,
        identities=("a distance",),
        degree=1,
        scales=("beta",),
        follows="torch.nn.functional.smooth_l1_loss",
        cases=elements(
            12, one_each("beta", 0.0, 0.25, 3.0, grad_output=1.25), partial(kinked, weighted=False, beta=0.5)
        ),
        magnitudes=_magnitudes,
    )
)
def smooth_l1(
    input: ArrayLike,  # noqa: A002
    target: ArrayLike,
    *,
    reduction: Reduction = "mean",
    beta: float = 1.0,
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Smooth L1 loss, as torch.nn.functional.smooth_l1_loss.

    With d_i = x_i − t_i: ℓ_i = d_i²/2β for |d_i| < β, else |d_i| − β/2; "mean" divides the sum by the number of
    elements. With c = grad_output over that: ∂/∂x_i = c·d_i/β or c·sign(d_i), ∂/∂t_i = −∂/∂x_i. Held constant:
    nothing.

    Args:
        input, target: arrays of one shape, any float dtype and layout; torch only warns where shapes differ.
        reduction: "mean", "sum" or "none".
        grad: True, False, or the names of the inputs whose gradients to compute.
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy; out is for input's gradient.
        beta: where the pieces meet, in units of the input; not negative.

    Returns:
        loss in units of the input. grads: "input" and "target".
        intermediates: "losses" of the elements, computed from the inputs when asked for.

    Edges:
        |d| = β belongs to the linear piece. β = 0 is refloss.l1. No elements: "mean" is NaN.

    Raises:
        ValueError: a shape, an option or a buffer that does not fit. TypeError: a dtype that does not.
    """
    arrays.choice(reduction, "reduction", elementwise.REDUCTIONS)
    beta = arrays.number(beta, "beta", low=0.0)
    x, t = arrays.float_array(input, "input"), arrays.float_array(target, "target")
    options = Options(grad_output, grad, grad_dtype, out, backend)
    return elementwise.loss_of_elements(
        LOOP,
        {"input": x, "target": t},
        options,
        parameters=(beta,),
        reduction=reduction,
    )
