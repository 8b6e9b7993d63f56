"""Triplet margin loss: a positive should be nearer to its anchor than a negative is, by a margin.

With distances d(x, y) = ‖x − y + ε‖_p, whose slopes in x are s(x, y) (losses/parts/distances.py), and

    z = m + d(a, p) − e,    e = d(a, n), or with swap min(d(a, n), d(p, n))
    ℓ = max(0, z)
    ∂ℓ/∂a = s(a, p) − w·s(a, n),    ∂ℓ/∂p = −s(a, p) − w'·s(p, n),    ∂ℓ/∂n = w·s(a, n) + w'·s(p, n)

where w and w' are 1 for the distance that is the smaller one, ½ for both where they are equal, and all of it is 0 where
z < 0; at z = 0 the slope passes, as torch has it. z cancels where the positive is just near enough, and slopes do where
positive and negative lie in one direction: distances and slopes are pairs, good to some 2^-100 (2^-85 where p is not 1,
2 or ∞), and what is left of a sum below that is 0.

Torch counterpart: torch.nn.functional.triplet_margin_loss. Source: Balntas et al., "Learning local feature descriptors
with triplets and shallow convolutional neural networks", BMVC 2016; swap is its section 3.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss import arrays, jit
from refloss.cases import vectors as cases
from refloss.cases.draws import Drawn
from refloss.error_model import vectors as error_model
from refloss.kernels.vectors.loop import VectorLoop
from refloss.loss import loss
from refloss.losses.parts.distances import distance
from refloss.losses.parts.vectors import REDUCTIONS, loss_of_vectors, vector_array
from refloss.numerics.pairs import add, negate, pair
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import REDUCTION, Parameter, Specification, vectors
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction

if TYPE_CHECKING:
    from refloss.cases.draws import Draws
    from refloss.cases.source import Case

# Lines of the scratch: the vectors, the slopes of the loss, those of the three distances, and what these work in.
_ANCHOR, _POSITIVE, _NEGATIVE, _SLOPES, _TO_POSITIVE, _TO_NEGATIVE, _ACROSS, _OWN = 0, 1, 2, 3, 9, 11, 13, 15
_LINES = 19
# What pairs leave of a sum of equal terms, relative to them: of square roots, and of powers.
_NOTHING, _NOTHING_OF_POWERS = 2.0**-94, 2.0**-80


@jit.scalar
def _sum(a, b, nothing):
    """The sum of two pairs; 0 where nothing but their errors is left."""
    total = add(a, b)
    return pair(0.0) if abs(total[0]) < nothing * (abs(a[0]) + abs(b[0])) else total


@jit.scalar
def _of(weight, scratch, line, i):
    """A slope times a number with few digits."""
    return weight * scratch[line, i], weight * scratch[line + 1, i]


@jit.scalar
def _weights(near, far):
    """What passes to the smaller of two distances, and to the other one: of NaN all to both."""
    equal = near[0] == far[0]
    return (0.5 if equal else (0.0 if near[0] > far[0] else 1.0)), (
        0.5 if equal else (0.0 if far[0] > near[0] else 1.0)
    )


@jit.helper
def _of_row(scratch, labels, parameters, with_slopes):
    """max(0, z) of a row, and its slopes."""
    margin, p, eps, swap = parameters
    nothing = _NOTHING if p in (1.0, 2.0, np.inf) else _NOTHING_OF_POWERS
    own = scratch[_OWN:]
    to_positive = distance(scratch[_ANCHOR], scratch[_POSITIVE], eps, p, scratch[_TO_POSITIVE:], own)
    to_negative = distance(scratch[_ANCHOR], scratch[_NEGATIVE], eps, p, scratch[_TO_NEGATIVE:], own)
    weight, across = 1.0, 0.0
    if swap != 0.0:
        other = distance(scratch[_POSITIVE], scratch[_NEGATIVE], eps, p, scratch[_ACROSS:], own)
        gap = _sum(to_negative, negate(other), nothing)
        weight, across = _weights(gap, pair(0.0))
        to_negative = other if across == 1.0 else to_negative
    z = _sum(add(pair(margin), to_positive), negate(to_negative), nothing)
    if with_slopes:
        _slopes(scratch, 1.0 if z[0] >= 0.0 else 0.0, weight, across, swap != 0.0, nothing)
    return pair(0.0) if z[0] < 0.0 else z


@jit.helper
def _slopes(scratch, active, weight, across, swap, nothing):
    """Those of the loss from those of the distances."""
    for i in range(scratch.shape[1]):
        near = _of(active, scratch, _TO_POSITIVE, i)
        far = _of(active * weight, scratch, _TO_NEGATIVE, i)
        of_anchor, of_positive, of_negative = _sum(near, negate(far), nothing), negate(near), far
        if swap:
            between = _of(active * across, scratch, _ACROSS, i)
            of_positive = _sum(of_positive, negate(between), nothing)
            of_negative = _sum(of_negative, between, nothing)
        scratch[_SLOPES, i], scratch[_SLOPES + 1, i] = of_anchor
        scratch[_SLOPES + 2, i], scratch[_SLOPES + 3, i] = of_positive
        scratch[_SLOPES + 4, i], scratch[_SLOPES + 5, i] = of_negative


LOOP = VectorLoop("triplet_margin", 3, _LINES, _of_row)
_PARAMETERS = {
    "margin": Parameter(float, (1.0, 0.25, 3.0)),
    "p": Parameter(float, (2.0, 1.0, 3.0, 1.5)),
    "eps": Parameter(float, (1e-6, 0.0625)),
    "swap": Parameter(bool, (False, True)),
} | REDUCTION


def _draw(draws: Draws) -> Drawn:
    """Negatives and positives are anywhere, or some of them next to the anchor, or at it."""
    rows, size = draws.row_shape(0, 1), draws.classes()
    anchor = draws.logits(*rows, size)
    others = {name: draws.logits(*rows, size) for name in ("positive", "negative")}
    if not draws.limits.exact and draws.maybe():
        others["positive"] = draws.near(anchor)
    if not draws.limits.exact and draws.maybe():
        others["negative"] = np.where(draws.uniform(*rows, size) < 0.5, others["positive"], others["negative"])
    return Drawn({"anchor": anchor, **others}, draws.parameters(_PARAMETERS), rows)


def _mistakes(case: Case) -> dict[str, dict[str, np.ndarray]]:
    changed = {"positive": case.inputs["negative"], "negative": case.inputs["positive"]}
    return {"positive and negative change places": changed}


@loss(
    Specification(
        arguments={"anchor": vectors("... D"), "positive": vectors("... D"), "negative": vectors("... D")},
        parameters=_PARAMETERS,
        mean="rows",
        per="row",
        order=143,
        degree=1,
        scales=("margin", "eps"),
        follows="torch.nn.functional.triplet_margin_loss",
        cases=cases.triplet_margin,
        draw=_draw,
        bounds=error_model.triplet_margin,
        mistakes=_mistakes,
        intermediates=("losses",),
    )
)
def triplet_margin(
    anchor: ArrayLike,
    positive: ArrayLike,
    negative: ArrayLike,
    *,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: Reduction = "mean",
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Triplet margin loss, as torch.nn.functional.triplet_margin_loss.

    ℓ_r = max(0, margin + d(a, p) − d(a, n)) with d(x, y) = ‖x − y + eps‖_p: eps is added to every element. With swap,
    min(d(a, n), d(p, n)) takes the place of d(a, n). "mean" divides the sum by the number of rows. With c = grad_output
    over that and s(x, y) = ∂d/∂x: ∂/∂a = c·(s(a, p) − s(a, n)), ∂/∂p = −c·s(a, p), ∂/∂n = c·s(a, n); with swap
    s(p, n) as the smaller distance has it, and half of both where they are equal. Held constant: nothing.

    Args:
        anchor, positive, negative: [..., D] of one shape; any float dtype and layout. torch broadcasts.
        margin: positive.
        p: of the norm, above 0; infinity for the largest element.
        eps: any finite number.
        swap: whether a positive that is nearer to the negative takes the anchor's place.
        reduction: "mean", "sum" or "none".
        grad: True, False, or the names of the inputs whose gradients to compute.
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy; out is for anchor's gradient.

    Returns:
        loss in units of the inputs. grads: "anchor", "positive" and "negative". intermediates: "losses" of the rows.

    Edges:
        margin + d(a, p) = d(a, n): the loss is 0 and the slope passes. A distance of 0 has no slope; among equal
        largest elements (p = ∞) it is shared out. NaN in a vector: the loss is NaN. No rows: "mean" is NaN.

    Raises:
        ValueError: a shape, an option or a buffer that does not fit. TypeError: a dtype that does not.
    """
    arrays.choice(reduction, "reduction", REDUCTIONS)
    given = {"anchor": anchor, "positive": positive, "negative": negative}
    inputs = {name: vector_array(value, name, "[..., D]", axes=arrays.MAX_AXES) for name, value in given.items()}
    first = inputs["anchor"]
    for name, array in inputs.items():
        arrays.check_shape(array, first.shape, name, "the shape of anchor")
    numbers = (
        arrays.number(margin, "margin", positive=True, finite=True),
        arrays.number(p, "p", positive=True),
        arrays.number(eps, "eps", finite=True),
        float(arrays.flag(swap, "swap")),
    )
    return loss_of_vectors(
        LOOP,
        inputs,
        Options(grad_output, grad, grad_dtype, out, backend),
        row_shape=first.shape[:-1],
        parameters=numbers,
        reduction=reduction,
    )
