"""Two axis-parallel boxes: conversions, IoU, GIoU, and their derivatives in all four coordinates.

A box is (x₁, y₁, x₂, y₂), its corners, or (c_x, c_y, w, h) with x₁ = c_x − w/2 and x₂ = c_x + w/2, y alike. With the
areas A and B, the intersection I, the union U = A + B − I and the area E of the smallest box around both,

    IoU = I/U,    GIoU = IoU − (E − U)/E = I/U + U/E − 1
    I = max(0, min(x₂, x₂') − max(x₁, x₁'))·(the same in y),    E = (max(x₂, x₂') − min(x₁, x₁'))·(the same in y)

Derivatives. For a loss a·(1 − IoU) + b·(1 − GIoU), with dU = dA − dI for a change in the first box alone,

    dL = k_I·dI + k_A·dA + k_E·dE,
    k_I = b/E − (a + b)·(1 + IoU)/U,    k_A = (a + b)·IoU/U − b/E,    k_E = b·U/E²

and in x, with i_w, i_h, e_w, e_h, w, h the sides of I, E and the first box,

    ∂A/∂x₁ = −h,    ∂I/∂x₁ = −i_h·[x₁ > x₁'],    ∂E/∂x₁ = −e_h·[x₁ < x₁']
    ∂A/∂x₂ = h,     ∂I/∂x₂ =  i_h·[x₂ < x₂'],    ∂E/∂x₂ =  e_h·[x₂ > x₂']

where a bracket is ½ at a tie, as PyTorch has it for the maximum of two tensors, and ∂I is 0 where i_w < 0 (at i_w = 0
it is not: the clamp passes its gradient on). For centres ∂/∂c_x = ∂/∂x₁ + ∂/∂x₂ and ∂/∂w = (∂/∂x₂ − ∂/∂x₁)/2.

Numerics. 1 − IoU = (U − I)/U and 1 − GIoU = (U − I)/U + (E − U)/E, both of them sums of what is not negative. Corners,
areas and all that follows are pairs: what a box that fits well leaves of U − I, and of the sum of ∂x₁ and ∂x₂, is more
than rounding.

Source: Rezatofighi et al., "Generalized Intersection over Union", 2019.
"""

from __future__ import annotations

from typing import NamedTuple

from refloss import jit
from refloss.kernels.boxes.loop import COORDINATES, BoxLoop
from refloss.numerics.pairs import add, divide, multiply, negate, pair, rounded, two_sum

Pair = tuple[float, float]


class Interval(NamedTuple):
    """A box's extent on one axis."""

    low: Pair
    high: Pair


class Side(NamedTuple):
    """Two intervals a and b: lengths, and how the lengths change with the ends of a."""

    length: Pair  # of a
    other: Pair  # of b
    common: Pair  # of the intersection, at least 0
    around: Pair  # of the smallest interval around both
    common_low: float  # ∂common/∂a.low
    common_high: float
    around_low: float  # ∂around/∂a.low
    around_high: float


class Overlap(NamedTuple):
    """What two boxes have in common; areas but for the first two."""

    iou: Pair
    giou: Pair
    iou_loss: Pair  # 1 − IoU
    giou_loss: Pair  # 1 − GIoU
    union: Pair
    around: Pair


@jit.helper
def subtract(a, b):
    """Difference of two pairs."""
    return add(a, negate(b))


@jit.helper
def interval(first, second, centered):
    """A box's extent on an axis: from centre and size, or from both ends."""
    if centered:
        return Interval(two_sum(first, -0.5 * second), two_sum(first, 0.5 * second))
    return Interval(pair(first), pair(second))


@jit.helper
def _bracket(difference):
    """[difference > 0], ½ at 0."""
    return 1.0 if difference[0] > 0.0 else (0.5 if difference[0] == 0.0 else 0.0)


@jit.helper
def side(a, b):
    """Two intervals on one axis."""
    low, high = subtract(a.low, b.low), subtract(a.high, b.high)
    inner = subtract(a.high if high[0] < 0.0 else b.high, a.low if low[0] > 0.0 else b.low)
    outer = subtract(a.high if high[0] > 0.0 else b.high, a.low if low[0] < 0.0 else b.low)
    apart = inner[0] < 0.0
    reach = 0.0 if apart else 1.0
    return Side(
        length=subtract(a.high, a.low),
        other=subtract(b.high, b.low),
        common=pair(0.0) if apart else inner,
        around=outer,
        common_low=-reach * _bracket(low),
        common_high=reach * _bracket(negate(high)),
        around_low=-_bracket(negate(low)),
        around_high=_bracket(high),
    )


@jit.helper
def overlap(x, y):
    """IoU and GIoU of two boxes from their two sides."""
    first, second = multiply(x.length, y.length), multiply(x.other, y.other)
    common, around = multiply(x.common, y.common), multiply(x.around, y.around)
    union = subtract(add(first, second), common)
    iou_loss = divide(subtract(union, common), union)
    giou_loss = add(iou_loss, divide(subtract(around, union), around))
    return Overlap(
        iou=divide(common, union),
        giou=subtract(pair(1.0), giou_loss),
        iou_loss=iou_loss,
        giou_loss=giou_loss,
        union=union,
        around=around,
    )


@jit.helper
def _scaled(a, factor):
    return multiply(a, pair(factor))


@jit.helper
def factors(both, of_iou, of_giou):
    """k_I, k_A and k_E of of_iou·(1 − IoU) + of_giou·(1 − GIoU)."""
    total = add(pair(of_iou), pair(of_giou))
    by_around = divide(pair(of_giou), both.around)
    by_union = divide(total, both.union)
    for_common = subtract(by_around, multiply(by_union, add(pair(1.0), both.iou)))
    for_area = subtract(multiply(by_union, both.iou), by_around)
    return for_common, for_area, multiply(by_around, divide(both.union, both.around))


@jit.helper
def slopes(along, across, weights):
    """∂L/∂a.low and ∂L/∂a.high on one axis, from the sides along and across it and k_I, k_A, k_E."""
    common = multiply(weights[0], across.common)
    area = multiply(weights[1], across.length)
    around = multiply(weights[2], across.around)
    low = add(add(_scaled(common, along.common_low), negate(area)), _scaled(around, along.around_low))
    high = add(add(_scaled(common, along.common_high), area), _scaled(around, along.around_high))
    return low, high


@jit.helper
def _sign(difference):
    # NaN is handed on.
    return 1.0 if difference > 0.0 else (-1.0 if difference < 0.0 else difference)


@jit.helper
def _axis_gradient(a, b, axis, low, high, of_l1, centered, gradient):
    """The gradient of the two numbers that a box has on an axis."""
    if centered:
        first = add(low, high)
        second = add(negate(low), high)
        second = (0.5 * second[0], 0.5 * second[1])
    else:
        first, second = low, high
    gradient[axis] = rounded(add(first, pair(of_l1 * _sign(a[axis] - b[axis]))))
    gradient[axis + 2] = rounded(add(second, pair(of_l1 * _sign(a[axis + 2] - b[axis + 2]))))


@jit.helper
def _compare(a, b, coefficients, centered, distances, index, gradient):
    """A pair of boxes: its distances, L1 of the coordinates among them, and the gradient for the first."""
    x = side(interval(a[0], a[2], centered), interval(b[0], b[2], centered))
    y = side(interval(a[1], a[3], centered), interval(b[1], b[3], centered))
    both = overlap(x, y)
    total = pair(0.0)
    for k in range(COORDINATES):
        high, low = two_sum(a[k], -b[k])
        total = add(total, (high, low) if high >= 0.0 else (-high, -low))
    distances.l1[index] = rounded(total)
    distances.iou[index], distances.iou_low[index] = both.iou
    distances.giou[index] = rounded(both.giou)
    distances.iou_loss[index], distances.giou_loss[index] = rounded(both.iou_loss), rounded(both.giou_loss)
    weights = factors(both, coefficients[1], coefficients[2])
    low, high = slopes(x, y, weights)
    _axis_gradient(a, b, 0, low, high, coefficients[0], centered, gradient)
    low, high = slopes(y, x, weights)
    _axis_gradient(a, b, 1, low, high, coefficients[0], centered, gradient)


LOOP = BoxLoop("boxes", _compare)
