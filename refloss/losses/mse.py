"""Squared error: (x − t)². Its derivatives are 2(x − t) and −2(x − t).

Torch counterpart: torch.nn.functional.mse_loss.
"""

from __future__ import annotations

import numpy as np

from refloss import arrays, jit
from refloss.cases.elements import elements, kinked, weighted
from refloss.kernels.elementwise.loop import Loop
from refloss.loss import loss
from refloss.losses.parts import elementwise
from refloss.numerics.pairs import negate, product, two_sum
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import REDUCTION, Elementwise, Magnitudes, values, weight
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction


@jit.scalar
def _loss(x, t, factor, parameters):
    difference = two_sum(x, -t)
    return product(difference, difference), difference, negate(difference)


LOOP = Loop("mse", _loss, steepness=2.0)


def _magnitudes(x, t, case, unit):
    d = np.abs(x - t)
    return Magnitudes(d * d, 2 * d, 2 * d)


@loss(
    Elementwise(
        arguments={"input": values(), "target": values(), "weight": weight(differentiable=True)},
        parameters=REDUCTION,
        mean="weights",
        order=10,
        identities=("a distance",),
        degree=2,
        follows="torch.nn.functional.mse_loss",
        cases=elements(10, weighted, kinked),
        magnitudes=_magnitudes,
    )
)
def mse(
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
    """Mean squared error, as torch.nn.functional.mse_loss.

    ℓ_i = w_i·(x_i − t_i)²; "mean" divides the sum by the number of elements, or by Σ w_i. With c = grad_output over
    that
    normaliser: ∂/∂x_i = 2c·w_i·(x_i − t_i), ∂/∂t_i = −∂/∂x_i, ∂/∂w_i = c·((x_i − t_i)² − L) with L the mean (0 for
        "sum" and "none"). Held constant: nothing.

    Args:
        input, target: arrays of one shape, any float dtype and layout; torch only warns where shapes differ.
        weight: of the same shape.
        reduction: "mean", "sum" or "none".
        grad: True, False, or the names of the inputs whose gradients to compute.
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy; out is for input's gradient.

    Returns:
        loss in squared units of the input. grads: "input", "target", and "weight" where given.
        intermediates: "losses" of the elements, computed from the inputs when asked for.

    Edges:
        No elements: "mean" is NaN. Weights that sum to 0: ±inf or NaN, as the division gives.

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
