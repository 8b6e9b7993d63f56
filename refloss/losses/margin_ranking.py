"""Margin ranking loss: which of two numbers ranks higher, by a margin.

    ℓ = max(0, m − y·(x₁ − x₂)),    ∂ℓ/∂x₁ = −y, ∂ℓ/∂x₂ = y, ∂ℓ/∂y = −(x₁ − x₂) where m − y·(x₁ − x₂) ≥ 0, else 0

At the hinge the derivatives are torch's, those of the side that has some. Which side it is, is decided by an exact sum:
x₁ − x₂ is a pair, its product with y are four float64, and m is the fifth.

Torch counterpart: torch.nn.functional.margin_ranking_loss.
"""

from __future__ import annotations

import numpy as np

from refloss import arrays, jit
from refloss.cases.triples import ranked
from refloss.kernels.elementwise.loop import Loop
from refloss.loss import loss
from refloss.losses.parts import elementwise
from refloss.numerics.pairs import negate, normalised, pair, two_product, two_sum
from refloss.options import Options
from refloss.result import LossResult
from refloss.roundoff import STEPS, real
from refloss.specification import REDUCTION, Elementwise, Magnitudes, Parameter, values
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction


@jit.scalar
def _hinge(difference, y, margin):
    """m − y·d as a normalised pair, with errors of 2^-158 of its terms: what is left of them has no others."""
    product, product_low = two_product(-y, difference[0])
    rest, rest_low = two_product(-y, difference[1])
    high, low = two_sum(margin, product)
    high, second = two_sum(high, product_low)
    high, third = two_sum(high, rest)
    plain = margin - y * difference[0]
    # Infinities leave nothing to correct.
    return normalised((high if abs(plain) < np.inf else plain, ((low + second) + third) + rest_low))


@jit.scalar
def _loss(x1, x2, y, parameters):
    hinge = _hinge(two_sum(x1, -x2), y, parameters[0])
    # A slope of NaN or of an infinity is one where it is multiplied by 0 as well, as torch has it.
    slope = pair(y if hinge[0] >= 0.0 else 0.0 * y)
    return pair(0.0) if hinge[0] < 0.0 else hinge, negate(slope), slope


@jit.scalar
def _for_target(x1, x2, y, parameters):
    difference = two_sum(x1, -x2)
    counts = _hinge(difference, y, parameters[0])[0] >= 0.0
    slope = normalised((difference[0] if counts else 0.0 * difference[0], difference[1] if counts else 0.0))
    return pair(0.0), negate(slope), pair(0.0)


LOOP = Loop("margin_ranking", _loss)
LOOP_FOR_TARGET = Loop("margin_ranking_for_target", _for_target)


def _is_rounded(x1, x2, y, unit):
    """Whether y·(x1 − x2) has more digits than a type, or may have: y is no power of two."""
    difference = x1 - x2
    seen = difference - x1
    lost = (x1 - (difference - seen)) - (x2 + seen)
    shifted = difference * (1.0 + 2.0**53 * unit.between)
    held = shifted - (shifted - difference)
    return (lost != 0.0) | (held != difference) | ~np.isin(np.abs(np.frexp(y)[0]), (0.0, 0.5))


def _magnitudes(x1, x2, case, unit):
    y, margin = real(case.inputs["target"]), case.parameters.get("margin", 0.0)
    distance = np.abs(x1 - x2)
    terms = np.abs(margin) + np.abs(y) * distance
    # So near the hinge, either side may be taken by who rounds: a slope may be left out.
    near = np.abs(margin - y * (x1 - x2)) < STEPS * unit.between * terms
    sides = 1.0 + (near & _is_rounded(x1, x2, y, unit)) / (STEPS * unit.between)
    return Magnitudes(terms, np.abs(y) * sides, np.abs(y) * sides, third=distance * sides)


@loss(
    Elementwise(
        arguments={"input1": values(), "input2": values(), "target": values()},
        parameters=REDUCTION | {"margin": Parameter(float, (0.0, 0.5, -0.25))},
        order=71,
        follows="torch.nn.functional.margin_ranking_loss",
        cases=ranked(31),
        magnitudes=_magnitudes,
    )
)
def margin_ranking(
    input1: ArrayLike,
    input2: ArrayLike,
    target: ArrayLike,
    *,
    margin: float = 0.0,
    reduction: Reduction = "mean",
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Margin ranking loss, as torch.nn.functional.margin_ranking_loss.

    With h_i = margin − t_i·(x_i − z_i) for x = input1 and z = input2: ℓ_i = max(0, h_i); "mean" divides the sum by the
    number of elements. With c = grad_output over that, where h_i ≥ 0: ∂/∂x_i = −c·t_i, ∂/∂z_i = c·t_i,
    ∂/∂t_i = −c·(x_i − z_i); elsewhere 0. Held constant: nothing.

    Args:
        input1, input2, target: arrays of one shape, any float dtype and layout; torch broadcasts where shapes differ.
            A target of 1 says that input1 should rank higher, one of −1 that input2 should; any other is a factor.
            Targets may be of an integer dtype; they have no gradient then.
        margin: any finite number.
        reduction: "mean", "sum" or "none".
        grad: True, False, or the names of the inputs whose gradients to compute.
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy; out is for input1's gradient.

    Returns:
        loss in units of the inputs. grads: "input1", "input2" and "target".
        intermediates: "losses" of the elements, computed from the inputs when asked for.

    Edges:
        h = 0: the derivatives are those of h > 0, as torch has them; so with margin 0 two equal inputs have some. An
        undefined h: the loss is NaN, the derivatives are 0·t and 0·(x − z). No elements: "mean" is NaN.

    Raises:
        ValueError: a shape, an option or a buffer that does not fit. TypeError: a dtype that does not.
    """
    arrays.choice(reduction, "reduction", elementwise.REDUCTIONS)
    x = {name: arrays.float_array(array, name) for name, array in (("input1", input1), ("input2", input2))}
    x["target"], is_float = arrays.target_array(target, "target")
    return elementwise.loss_of_elements(
        LOOP,
        x,
        Options(grad_output, grad, grad_dtype, out, backend),
        parameters=(arrays.number(margin, "margin", finite=True),),
        factor_loop=LOOP_FOR_TARGET,
        factor_has_gradient=is_float,
        divisor=x["input1"].size,
        reduction=reduction,
    )
