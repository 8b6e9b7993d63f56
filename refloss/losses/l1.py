"""Absolute error: |x − t|.

Its derivatives are sign(x − t) and −sign(x − t), 0 where x = t.

Torch counterpart: torch.nn.functional.l1_loss.
"""

from __future__ import annotations

import numpy as np

from refloss import arrays, jit
from refloss.cases.elements import elements, kinked, weighted
from refloss.kernels.elementwise.loop import Loop
from refloss.loss import loss
from refloss.losses.parts import elementwise
from refloss.numerics.pairs import pair, two_sum
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import REDUCTION, Elementwise, Magnitudes, values, weight
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction


@jit.scalar
def _loss(x, t, factor, parameters):
    high, low = two_sum(x, -t)
    negative = high < 0.0
    slope = (1.0 if x > t else 0.0) - (1.0 if x < t else 0.0)
    return (-high if negative else high, -low if negative else low), pair(slope), pair(-slope)


LOOP = Loop("l1", _loss)


def _magnitudes(x, t, case, unit):
    d = np.abs(x - t)
    return Magnitudes(d, np.ones_like(d), np.ones_like(d))


@loss(
    Elementwise(
        arguments={"input": values(), "target": values(), "weight": weight(differentiable=True)},
        parameters=REDUCTION,
        mean="weights",
        order=20,
        identities=("a distance",),
        degree=1,
        follows="torch.nn.functional.l1_loss",
        cases=elements(11, weighted, kinked),
        magnitudes=_magnitudes,
    )
)
def l1(
    input: ArrayLike,  # noqa: A002
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    reduction: Reduction = "mean",
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Mean absolute error, as torch.nn.functional.l1_loss.

    ℓ_i = w_i·|x_i − t_i|; "mean" divides the sum by the number of elements, or by Σ w_i. With c = grad_output over that
    normaliser: ∂/∂x_i = c·w_i·sign(x_i − t_i), ∂/∂t_i = −∂/∂x_i, ∂/∂w_i = c·(|x_i − t_i| − L) with L the mean (0 for
        "sum" and "none"). Held constant: nothing.

    Args:
        input, target: arrays of one shape, any float dtype and layout; torch only warns where shapes differ.
        weight: of the same shape.
        reduction: "mean", "sum" or "none".
        grad: True, False, or the names of the inputs whose gradients to compute.
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy; out is for input's gradient.

    Returns:
        loss in units of the input. grads: "input", "target", and "weight" where given.
        intermediates: "losses" of the elements, computed from the inputs when asked for.

    Edges:
        At x = t the derivative is 0, also for NaN, as torch has it. No elements: "mean" is NaN.

    Raises:
        ValueError: a shape, an option or a buffer that does not fit. TypeError: a dtype that does not.
    """
    arrays.choice(reduction, "reduction", elementwise.REDUCTIONS)
    x, t = arrays.float_array(input, "input"), arrays.float_array(target, "target")
    options = Options(grad_output, grad, grad_dtype, out, backend)
    return elementwise.loss_of_elements(
        LOOP,
        {"input": x, "target": t},
        options,
        weight=elementwise.same_shape(weight, x.shape, "weight", "the shape of input"),
        weight_has_gradient=True,
        reduction=reduction,
    )
