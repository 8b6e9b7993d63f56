"""Two axis-parallel boxes: conversions, IoU, GIoU, and their derivatives in all four coordinates.

A box is (x₁, y₁, x₂, y₂), its corners, or (c_x, c_y, w, h) with x₁ = c_x − w/2 and x₂ = c_x + w/2, y alike. With the
areas A and B, the intersection I, the union U = A + B − I and the area E of the smallest box around both,

    IoU = I/U,    GIoU = IoU − (E − U)/E = I/U + U/E − 1
    I = max(0, min(x₂, x₂') − max(x₁, x₁'))·(the same in y),    E = (max(x₂, x₂') − min(x₁, x₁'))·(the same in y)

Derivatives. With dU = dA − dI for a change in the first box alone,

    d(1 − IoU) = (I·dA − (A + B)·dI)/U²,    d(1 − GIoU) = d(1 − IoU) − (dU·E − U·dE)/E²

and in x, with i_w, i_h, e_w, e_h, w, h, w', h' the sides of I, E and both boxes,

    ∂w/∂x₁ = −1,    ∂i_w/∂x₁ = −[x₁ > x₁'],    ∂e_w/∂x₁ = −[x₁ < x₁']
    ∂w/∂x₂ = 1,     ∂i_w/∂x₂ =  [x₂ < x₂'],    ∂e_w/∂x₂ =  [x₂ > x₂']

where a bracket is ½ at a tie, as PyTorch has it for the maximum of two tensors, and ∂i_w is 0 where i_w < 0 (at i_w = 0
it is not: the clamp passes its gradient on). For centres ∂/∂c_x = ∂/∂x₁ + ∂/∂x₂ and ∂/∂w = (∂/∂x₂ − ∂/∂x₁)/2; the three
derivatives of lengths are multiples of 1/4 for every coordinate. With σ = ∂w, s = ∂i_w and r = ∂e_w of a coordinate,

    ∂(1 − IoU) = i_h·N/U²,          N = σ·i_w·h − s·(A + B)
    ∂(U/E) = M/(E·e_w),             M = (σ·h − s·i_h)·e_w − r·U

Numerics. Everything is a pair, and differences that cancel are not formed. What a box sticks out beyond the other,
w − i_w and w' − i_w, are sums of distances between ends (u and u' below, v and v' in y), and so

    A − I = u·h + i_w·v,    B − I = u'·h' + i_w·v',    U − I = (A − I) + (B − I)
    E − U = u·v' + u'·v where the boxes meet
    N = −σ·(u·h + B) for s = σ,    else (σ − 2s)·i_w·h − s·(u·h + u'·h' + i_w·(h' − h))
    M = (σ − s − r)·U + (σ − s)·Y + s·v·e_w,    Y = u'·(h − h') − i_w·v', or h·(e_w − w) − B where they are apart in x

where σ = s + r unless they are apart. The differences that remain are those of real crossings of zero; if nothing but
the errors of pairs is left of one, it is 0. Ties are decided by differences of pairs, whose signs are exact.

IoU does not change with the unit of x or y: lengths are relative to a power of two near e_w or e_h, so that areas stay
within the range of float64. Where boxes are apart and their areas relative to E are below 2^-900, ∂(U/E) loses digits.

Source: Rezatofighi et al., "Generalized Intersection over Union", 2019.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.boxes.loop import COORDINATES, BoxLoop
from refloss.numerics.exponential import scale
from refloss.numerics.pairs import add, divide, multiply, negate, pair, rounded, two_sum
from refloss.numerics.sums import exponent_of

Pair = tuple[float, float]

# Lengths are good to 2^-104, products of two of them to 2^-101; what is below this share of the terms of a sum, or of a
# result, is their errors.
NOTHING = 2.0**-97
# Coordinates within these have halves that are exact, and sums that do not overflow.
_LEAST, _MOST = 2.0**-900, 2.0**1020
_RAISED, _LOWERED = 100, -4


class Interval(NamedTuple):
    """A box's extent on one axis."""

    low: Pair
    high: Pair
    length: Pair


class Side(NamedTuple):
    """Two intervals a and b: lengths in units of 2^unit, and how they change with the ends of a."""

    length: Pair  # of a
    other: Pair  # of b
    common: Pair  # of the intersection, at least 0
    around: Pair  # of the smallest interval around both
    beyond: Pair  # length − common
    other_beyond: Pair
    apart: bool
    flat: bool  # whether a has no length
    other_flat: bool
    unit: int
    common_low: float  # ∂common/∂a.low
    common_high: float
    around_low: float  # ∂around/∂a.low
    around_high: float


class Overlap(NamedTuple):
    """What two boxes have in common: areas but for the first four and the last two, in the units of their sides."""

    iou: Pair
    giou: Pair
    iou_loss: Pair  # 1 − IoU
    giou_loss: Pair  # 1 − GIoU
    other: Pair  # B
    both: Pair  # A + B
    union: Pair
    of_union: Pair  # 1/U², 0 where boxes are apart
    of_around: Pair  # 1/E


@jit.helper
def subtract(a, b):
    """Difference of two pairs."""
    return add(a, negate(b))


@jit.helper
def _remainder(a, b):
    """a + b; 0 where only the errors of a and b are left of it."""
    high, low = add(a, b)
    nothing = abs(high) < NOTHING * (abs(a[0]) + abs(b[0]))
    return 0.0 if nothing else high, 0.0 if nothing else low


@jit.helper
def _part(factor, a):
    """A multiple of 1/4 times a pair."""
    return factor * a[0], factor * a[1]


@jit.helper
def _scaled(a, exponent):
    return scale(a[0], exponent), scale(a[1], exponent)


@jit.helper
def _positive(a):
    """max(0, a)."""
    return (a[0], a[1]) if a[0] > 0.0 else (0.0, 0.0)


@jit.helper
def _interval(first, second, centered):
    """A box's extent on an axis: from centre and size, or from both ends."""
    if centered:
        return Interval(two_sum(first, -0.5 * second), two_sum(first, 0.5 * second), pair(second))
    return Interval(pair(first), pair(second), two_sum(second, -first))


@jit.helper
def _bracket(difference):
    """[difference > 0], ½ at 0."""
    return 1.0 if difference[0] > 0.0 else (0.5 if difference[0] == 0.0 else 0.0)


@jit.helper
def _common(a, b, low, high):
    """The length of the intersection, negative where there is none; a box's own length where it is inside the other."""
    if low[0] >= 0.0 and high[0] <= 0.0:
        return a.length
    if low[0] <= 0.0 and high[0] >= 0.0:
        return b.length
    return subtract(a.high if high[0] < 0.0 else b.high, a.low if low[0] > 0.0 else b.low)


@jit.helper
def _around(a, b, low, high):
    """The length of the smallest interval around both."""
    if low[0] <= 0.0 and high[0] >= 0.0:
        return a.length
    if low[0] >= 0.0 and high[0] <= 0.0:
        return b.length
    return subtract(a.high if high[0] > 0.0 else b.high, a.low if low[0] < 0.0 else b.low)


@jit.helper
def _side(a, b, raised):
    """Two intervals on one axis, whose numbers are 2^raised times too large."""
    low, high = subtract(a.low, b.low), subtract(a.high, b.high)
    inner, outer = _common(a, b, low, high), _around(a, b, low, high)
    apart = inner[0] < 0.0
    reach = 0.0 if apart else 1.0
    beyond = a.length if apart else add(_positive(negate(low)), _positive(high))
    other_beyond = b.length if apart else add(_positive(low), _positive(negate(high)))
    unit = exponent_of(outer[0])
    return Side(
        length=_scaled(a.length, -unit),
        other=_scaled(b.length, -unit),
        common=pair(0.0) if apart else _scaled(inner, -unit),
        around=_scaled(outer, -unit),
        beyond=_scaled(beyond, -unit),
        other_beyond=_scaled(other_beyond, -unit),
        apart=apart,
        flat=a.length[0] == 0.0,
        other_flat=b.length[0] == 0.0,
        unit=unit - raised,
        common_low=-reach * _bracket(low),
        common_high=reach * _bracket(negate(high)),
        around_low=-_bracket(negate(low)),
        around_high=_bracket(high),
    )


@jit.helper
def side(a, b, axis, centered):
    """Both boxes on one axis."""
    largest = max(max(abs(a[axis]), abs(a[axis + 2])), max(abs(b[axis]), abs(b[axis + 2])))
    raised = _RAISED if largest < _LEAST else (_LOWERED if largest > _MOST else 0)
    first, second = scale(a[axis], raised), scale(a[axis + 2], raised)
    of_a = _interval(first, second, centered)
    first, second = scale(b[axis], raised), scale(b[axis + 2], raised)
    return _side(of_a, _interval(first, second, centered), raised)


@jit.helper
def _area_beyond(x_beyond, y_length, x_common, y_beyond):
    """What a box covers beyond the intersection."""
    return add(multiply(x_beyond, y_length), multiply(x_common, y_beyond))


@jit.helper
def overlap(x, y):
    """IoU and GIoU of two boxes from their two sides."""
    apart = x.apart or y.apart
    common, around = multiply(x.common, y.common), multiply(x.around, y.around)
    other = multiply(x.other, y.other)
    rest = add(
        _area_beyond(x.beyond, y.length, x.common, y.beyond),
        _area_beyond(x.other_beyond, y.other, x.common, y.other_beyond),
    )
    union = add(common, rest)
    meeting = add(multiply(x.beyond, y.other_beyond), multiply(x.other_beyond, y.beyond))
    uncovered = divide(subtract(around, union) if apart else meeting, around)
    iou, iou_loss = divide(common, union), divide(rest, union)
    if apart:
        # What is too small for its unit is not nothing.
        nothing = (x.flat or y.flat) and (x.other_flat or y.other_flat)
        iou, iou_loss = pair(np.nan if nothing else 0.0), pair(np.nan if nothing else 1.0)
    return Overlap(
        iou=iou,
        giou=_remainder(iou, negate(uncovered)),
        iou_loss=iou_loss,
        giou_loss=add(iou_loss, uncovered),
        other=other,
        both=add(multiply(x.length, y.length), other),
        union=union,
        of_union=pair(0.0 * iou[0]) if apart else divide(pair(1.0), multiply(union, union)),
        of_around=divide(pair(1.0), around),
    )


class Factors(NamedTuple):
    """What the slopes along an axis are made of."""

    inside: Pair  # i_w·h
    crossing: Pair  # u·h + u'·h' + i_w·(h' − h)
    covered: Pair  # u·h + B
    wider: Pair  # Y
    taller: Pair  # v·e_w
    of_iou: Pair  # i_h/U²
    of_around: Pair  # 1/(E·e_w)


@jit.helper
def _factors(along, across, both):
    taller = subtract(across.length, across.other)
    beyond, inside = multiply(along.beyond, across.length), multiply(along.common, across.length)
    common = multiply(along.common, across.other_beyond)
    if along.apart:
        wider = _remainder(multiply(across.length, subtract(along.around, along.length)), negate(both.other))
    else:
        wider = _remainder(multiply(along.other_beyond, taller), negate(common))
    difference = negate(multiply(along.common, taller))
    return Factors(
        inside=inside,
        crossing=_remainder(add(beyond, multiply(along.other_beyond, across.other)), difference),
        covered=add(beyond, both.other),
        wider=wider,
        taller=multiply(across.beyond, along.around),
        of_iou=multiply(both.of_union, across.common),
        of_around=divide(both.of_around, along.around),
    )


@jit.helper
def _iou_slope(known, both, of_length, of_common):
    """N from σ and s."""
    if of_length == 0.0:
        return _part(-of_common, both.both)
    if of_common == of_length:
        return _part(-of_length, known.covered)
    return _remainder(_part(of_length - 2.0 * of_common, known.inside), _part(-of_common, known.crossing))


@jit.helper
def _around_slope(known, both, of_length, of_common, of_around):
    """M from σ, s and r."""
    wider = _part(of_length - of_common, known.wider)
    apart = _remainder(_part(of_length - of_common - of_around, both.union), wider)
    return _remainder(apart, _part(of_common, known.taller))


@jit.helper
def _slope(known, both, lengths, coefficients, unit, sign):
    """The gradient of a coordinate, given the derivatives σ, s and r of lengths, and that of the L1 distance."""
    of_iou = multiply(_iou_slope(known, both, lengths[0], lengths[1]), known.of_iou)
    of_around = multiply(_around_slope(known, both, lengths[0], lengths[1], lengths[2]), known.of_around)
    of_giou = _remainder(of_iou, negate(of_around))
    overlaps = _remainder(multiply(of_iou, _coefficient(coefficients, 1)), multiply(of_giou, _coefficient(coefficients, 2)))
    high, low = _remainder(_scaled(overlaps, -unit), multiply(pair(sign), _coefficient(coefficients, 0)))
    # Errors must not stand where a short number, perhaps a tie of a format, has nothing.
    return high, low if abs(low) > NOTHING * abs(high) else 0.0


@jit.helper
def _coefficient(coefficients, k):
    return coefficients[0, k], coefficients[1, k]


@jit.helper
def _sign(difference):
    # NaN is handed on.
    return 1.0 if difference > 0.0 else (-1.0 if difference < 0.0 else difference)


@jit.helper
def _axis_gradient(a, b, axis, known, both, along, coefficients, centered, gradient):
    """The gradient of the two numbers that a box has on an axis."""
    s, r = (along.common_low, along.common_high), (along.around_low, along.around_high)
    if centered:
        first = (0.0, s[0] + s[1], r[0] + r[1])
        second = (1.0, 0.5 * (s[1] - s[0]), 0.5 * (r[1] - r[0]))
    else:
        first, second = (-1.0, s[0], r[0]), (1.0, s[1], r[1])
    for k in range(2):
        i = axis + 2 * k
        lengths = second if k else first
        gradient[0, i], gradient[1, i] = _slope(
            known, both, lengths, coefficients, along.unit, _sign(a[i] - b[i])
        )


@jit.helper
def _compare(a, b, coefficients, centered, with_gradient, distances, index, gradient):
    """A pair of boxes: its distances, L1 of the coordinates among them, and the gradient for the first."""
    x, y = side(a, b, 0, centered), side(a, b, 1, centered)
    both = overlap(x, y)
    total = pair(0.0)
    # What is not finite has no overlap, whatever the formulas make of it.
    undefined = 0.0
    for k in range(COORDINATES):
        high, low = two_sum(a[k], -b[k])
        total = add(total, (high, low) if high >= 0.0 else (-high, -low))
        undefined += 0.0 * a[k] + 0.0 * b[k]
    distances.l1[index] = rounded(total)
    distances.iou[index], distances.iou_low[index] = both.iou[0] + undefined, both.iou[1]
    distances.giou[index] = rounded(both.giou) + undefined
    distances.iou_loss[index] = rounded(both.iou_loss) + undefined
    distances.giou_loss[index] = rounded(both.giou_loss) + undefined
    if with_gradient:
        _axis_gradient(a, b, 0, _factors(x, y, both), both, x, coefficients, centered, gradient)
        _axis_gradient(a, b, 1, _factors(y, x, both), both, y, coefficients, centered, gradient)
        for k in range(COORDINATES):
            gradient[0, k] += undefined


LOOP = BoxLoop("boxes", _compare)
