"""Huber loss: quadratic up to δ, linear beyond.

With d = x − t: d²/2 for |d| ≤ δ, else δ·(|d| − δ/2). Its derivative in x is d, or δ·sign(d), that in t the negative.
Huber, "Robust estimation of a location parameter", 1964. It is δ times the smooth L1 loss with β = δ.

Torch counterpart: torch.nn.functional.huber_loss.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from refloss import arrays, jit
from refloss.cases.elements import elements, kinked, one_each, weighted
from refloss.kernels.elementwise.loop import Loop
from refloss.loss import loss
from refloss.losses.parts import elementwise
from refloss.numerics.pairs import is_above, negate, pair, product, two_sum
from refloss.options import Options
from refloss.result import LossResult
from refloss.roundoff import STEPS
from refloss.specification import REDUCTION, Elementwise, Magnitudes, Parameter, values, weight
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction


@jit.scalar
def _loss(x, t, factor, parameters):
    delta = parameters[0]
    high, low = two_sum(x, -t)
    negative = high < 0.0
    distance = (-high if negative else high, -low if negative else low)
    beyond = is_above(distance, delta)
    rest, rest_low = two_sum(distance[0], -0.5 * delta)
    linear = product((rest, rest_low + distance[1]), pair(delta))
    square = product(distance, (0.5 * distance[0], 0.5 * distance[1]))
    edge = -delta if negative else delta
    slope = (edge if beyond else high, 0.0 if beyond else low)
    return linear if beyond else square, slope, negate(slope)


LOOP = Loop("huber", _loss)


def _magnitudes(x, t, case, unit):
    d, delta = np.abs(x - t), case.parameters.get("delta", 1.0)
    # The derivative of q²/2 + δ·(d − q) with q = min(d, δ): below δ it is (d − δ) + δ, of which the first is rounded.
    slope = np.where(d <= delta, d + (delta - d) / STEPS, delta)
    return Magnitudes(np.where(d <= delta, d * d / 2, delta * (d + delta / 2)), slope, slope)


@loss(
    Elementwise(
        arguments={"input": values(), "target": values(), "weight": weight(differentiable=True)},
        parameters=REDUCTION | {"delta": Parameter(float, (1.0, 0.25, 3.0))},
        order=40,
        identities=("a distance",),
        degree=2,
        scales=("delta",),
        follows="torch.nn.functional.huber_loss",
        cases=elements(13, weighted, one_each("delta", 0.25, 3.0, grad_output=-2.0), partial(kinked, delta=0.5)),
        magnitudes=_magnitudes,
    )
)
def huber(
    input: ArrayLike,  # noqa: A002
    target: ArrayLike,
    *,
    reduction: Reduction = "mean",
    delta: float = 1.0,
    weight: ArrayLike | None = None,
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Huber loss, as torch.nn.functional.huber_loss.

    With d_i = x_i − t_i: ℓ_i = w_i·d_i²/2 for |d_i| ≤ δ, else w_i·δ·(|d_i| − δ/2); "mean" divides the sum by the
    number of elements, with weights too (mse and l1 divide by their sum). With c = grad_output over that: ∂/∂x_i =
    c·w_i·d_i clamped to ±δ before the product, ∂/∂t_i = −∂/∂x_i, ∂/∂w_i = c·ℓ_i/w_i. Held constant: nothing.

    Args:
        input, target: arrays of one shape, any float dtype and layout; torch only warns where shapes differ.
        reduction: "mean", "sum" or "none".
        grad: True, False, or the names of the inputs whose gradients to compute.
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy; out is for input's gradient.
        delta: where the pieces meet, in units of the input; positive.
        weight: of the same shape.

    Returns:
        loss in squared units of the input. grads: "input", "target", and "weight" where given.
        intermediates: "losses" of the elements, computed from the inputs when asked for.

    Edges:
        |d| = δ belongs to the quadratic piece. No elements: "mean" is NaN.

    Raises:
        ValueError: a shape, an option or a buffer that does not fit. TypeError: a dtype that does not.
    """
    arrays.choice(reduction, "reduction", elementwise.REDUCTIONS)
    delta = arrays.number(delta, "delta", positive=True)
    x, t = arrays.float_array(input, "input"), arrays.float_array(target, "target")
    options = Options(grad_output, grad, grad_dtype, out, backend)
    return elementwise.loss_of_elements(
        LOOP,
        {"input": x, "target": t},
        options,
        parameters=(delta,),
        weight=elementwise.same_shape(weight, x.shape, "weight", "the shape of input"),
        weight_has_gradient=True,
        divisor=x.size,
        reduction=reduction,
    )
