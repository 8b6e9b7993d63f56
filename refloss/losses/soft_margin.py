"""Soft margin loss: the logistic loss of an input and a sign.

With z = y·x and σ(z) = 1/(1 + e^−z),

    ℓ = log(1 + e^−z),    ∂ℓ/∂x = −y·σ(−z)

With u = e^−|z|, ℓ is log(1 + u), and −z more where z < 0; σ(−z) is u/(1 + u), or 1/(1 + u) where z < 0. Nothing cancels
and nothing overflows. The product z has two parts, as a pair: the lower one, δ, changes ℓ by −σ(−z)·δ and σ(−z) by
−σ(−z)·σ(z)·δ, up to its square.

Torch counterpart: torch.nn.functional.soft_margin_loss, which takes the logarithm of 1 + e^−z as it is written: where
e^−z is infinite, beyond 88 in float32, its loss is infinite and its gradient NaN.
"""

from __future__ import annotations

import numpy as np

from refloss import arrays, jit
from refloss.cases.elements import elements, margins
from refloss.kernels.elementwise.loop import Loop
from refloss.loss import loss
from refloss.losses.parts import elementwise
from refloss.numerics.bits import fma
from refloss.numerics.exponential import logistic
from refloss.numerics.pairs import fast_two_sum, pair, product, two_product, two_sum
from refloss.options import Options
from refloss.result import LossResult
from refloss.roundoff import STEPS
from refloss.specification import REDUCTION, Elementwise, Magnitudes, signs, values
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction


@jit.scalar
def _loss(x, t, factor, parameters):
    z, rest = two_product(x, t)
    rest = rest if abs(z) < np.inf else 0.0
    u, inverse, small = logistic(z)
    wins = z > 0.0
    top, top_low = u[0] if wins else 1.0, u[1] if wins else 0.0
    whole, whole_low = fast_two_sum(1.0, u[0])
    missed = top * inverse
    left = fma(-missed, whole, top) + fma(-missed, whole_low + u[1], top_low)
    met = inverse if wins else u[0] * inverse
    missed_low = fma(-missed * met, rest, left * inverse)
    high, low = two_sum(0.0 if wins else -z, small[0])
    value = high, low + fma(-missed, rest, small[1])
    return value, product(pair(-t), (missed, missed_low)), pair(0.0)


LOOP = Loop("soft_margin", _loss)


def magnitudes_of_margins(x: np.ndarray, t: np.ndarray) -> Magnitudes:
    """Of log(1 + e^−yx): a product that is rounded moves the loss by σ(−z), and the slope by σ(−z)·σ(z)."""
    z = x * t
    value, met = np.logaddexp(0.0, -z), np.exp(-np.logaddexp(0.0, -z))
    missed = np.exp(-np.logaddexp(0.0, z))
    moved = np.where(missed > 0.0, np.abs(z) * missed, 0.0)
    return Magnitudes(value + moved, np.abs(t) * missed * (1.0 + np.abs(z) * met), np.zeros_like(z))


def _magnitudes(x, t, case, unit):
    terms = magnitudes_of_margins(x, t)
    # σ(−z) may be e^(−z − log(1 + e^−z)), whose exponent is rounded twice, by at most the smaller of its terms.
    z = x * t
    of_exponent = np.minimum(unit.between * np.abs(z), np.log1p(np.exp(-np.abs(z)))) / (STEPS * unit.between)
    return terms._replace(first=terms.first + 2 * of_exponent * np.abs(t) * np.exp(-np.logaddexp(0.0, z)))


@loss(
    Elementwise(
        arguments={"input": values(), "target": signs()},
        parameters=REDUCTION,
        order=61,
        identities=("mirrored",),
        follows="torch.nn.functional.soft_margin_loss",
        cases=elements(17, margins, signs=True),
        magnitudes=_magnitudes,
    )
)
def soft_margin(
    input: ArrayLike,  # noqa: A002
    target: ArrayLike,
    *,
    reduction: Reduction = "mean",
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Soft margin loss, as torch.nn.functional.soft_margin_loss.

    ℓ_i = log(1 + e^(−y_i·x_i)); "mean" divides the sum by the number of elements. With c = grad_output over that:
    ∂/∂x_i = −c·y_i·σ(−y_i·x_i). Held constant: target.

    Args:
        input, target: arrays of one shape, any float dtype and layout; torch broadcasts them. Targets are usually 1 and
            −1, and may be any numbers, of an integer dtype, too.
        reduction: "mean", "sum" or "none".
        grad: True, False, or the names of the inputs whose gradients to compute.
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy; out is for input's gradient.

    Returns:
        loss in nats. grads: "input".
        intermediates: "losses" of the elements, computed from the inputs when asked for.

    Edges:
        An input that is far on the wrong side has the loss −y·x and the gradient −c·y; torch has inf and NaN where
        e^(−y·x) overflows. No elements: "mean" is NaN.

    Raises:
        ValueError: a shape, an option or a buffer that does not fit. TypeError: a dtype that does not.
    """
    arrays.choice(reduction, "reduction", elementwise.REDUCTIONS)
    x, (t, _) = arrays.float_array(input, "input"), arrays.target_array(target, "target")
    options = Options(grad_output, grad, grad_dtype, out, backend)
    return elementwise.loss_of_elements(
        LOOP,
        {"input": x, "target": t},
        options,
        target_has_gradient=False,
        divisor=x.size,
        reduction=reduction,
    )
