"""Hinge embedding loss: x for a target of 1, what x lacks of a margin for −1.

    ℓ = [y ≠ −1]·x + [y ≠ 1]·max(0, m − x),    ∂ℓ/∂x = [y ≠ −1] − [y ≠ 1]·[x ≤ m]

A target that is neither 1 nor −1, NaN among them, has both terms: ℓ = max(m, x). Where x = m the second one has a
slope. The difference is a pair, so that its sign is exact. A loss may be negative, as x may.

Torch counterpart: torch.nn.functional.hinge_embedding_loss.
"""

from __future__ import annotations

import numpy as np

from refloss import arrays, jit
from refloss.cases.elements import elements, hinged, one_each
from refloss.kernels.elementwise.loop import Loop
from refloss.loss import loss
from refloss.losses.parts import elementwise
from refloss.numerics.pairs import pair, two_sum
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import REDUCTION, Elementwise, Magnitudes, Parameter, signs, values
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction


@jit.scalar
def _loss(x, t, factor, parameters):
    margin = parameters[0]
    plain, lacking = t != -1.0, t != 1.0
    high, low = two_sum(margin, -x)
    below, beyond = high >= 0.0, high < 0.0
    hinge, hinge_low = 0.0 if beyond else high, 0.0 if beyond else low
    # m, but NaN for an infinite x, whose terms are infinities of both signs.
    both = x if beyond else margin + (x - x)
    value = both if plain and lacking else (x if plain else hinge)
    slope = (1.0 if plain else 0.0) - (1.0 if lacking and below else 0.0)
    return (value, 0.0 if plain else hinge_low), pair(slope), pair(0.0)


LOOP = Loop("hinge_embedding", _loss, signed=True)


def _magnitudes(x, t, case, unit):
    margin = case.parameters.get("margin", 1.0)
    plain, lacking = t != -1.0, (t != 1.0) & (x <= margin)
    value = plain * np.abs(x) + lacking * (abs(margin) + np.abs(x))
    slope = 1.0 * plain + lacking
    return Magnitudes(value, slope, np.zeros_like(slope))


@loss(
    Elementwise(
        arguments={"input": values(), "target": signs()},
        parameters=REDUCTION | {"margin": Parameter(float, (1.0, 0.25, 3.0))},
        order=62,
        positive=False,
        degree=1,
        scales=("margin",),
        follows="torch.nn.functional.hinge_embedding_loss",
        cases=elements(18, one_each("margin", 0.25, 3.0, grad_output=-2.0), hinged, signs=True),
        magnitudes=_magnitudes,
    )
)
def hinge_embedding(
    input: ArrayLike,  # noqa: A002
    target: ArrayLike,
    *,
    margin: float = 1.0,
    reduction: Reduction = "mean",
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Hinge embedding loss, as torch.nn.functional.hinge_embedding_loss.

    ℓ_i = x_i for y_i = 1, max(0, m − x_i) for y_i = −1, and the sum of both for any other target; "mean" divides the
    sum by the number of elements. With c = grad_output over that: ∂/∂x_i = c for y_i = 1; −c for y_i = −1 and x_i ≤ m;
    the sum of both for any other target. Held constant: target.

    Args:
        input, target: arrays of one shape, any float dtype and layout; torch broadcasts them. Targets may be of an
            integer dtype, too.
        margin: m, any finite number.
        reduction: "mean", "sum" or "none".
        grad: True, False, or the names of the inputs whose gradients to compute.
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy; out is for input's gradient.

    Returns:
        loss in units of the input. grads: "input".
        intermediates: "losses" of the elements, computed from the inputs when asked for.

    Edges:
        At x = m the derivative of max(0, m − x) is −1, at NaN it is 0. A target that is neither 1 nor −1, also one next
        to them: both terms. No elements: "mean" is NaN.

    Raises:
        ValueError: a shape, an option or a buffer that does not fit. TypeError: a dtype that does not.
    """
    arrays.choice(reduction, "reduction", elementwise.REDUCTIONS)
    margin = arrays.number(margin, "margin", finite=True)
    x, (t, _) = arrays.float_array(input, "input"), arrays.target_array(target, "target")
    options = Options(grad_output, grad, grad_dtype, out, backend)
    return elementwise.loss_of_elements(
        LOOP,
        {"input": x, "target": t},
        options,
        parameters=(margin,),
        target_has_gradient=False,
        divisor=x.size,
        reduction=reduction,
    )
