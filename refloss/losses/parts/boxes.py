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
from refloss.kernels.boxes.loop import COORDINATES, BoxLoop, Distances
from refloss.numerics.bits import float64_from_bits, fma
from refloss.numerics.pairs import add, fast_two_sum, multiply, negate, pair, product, rounded, two_sum
from refloss.numerics.sums import exponent_of

Pair = tuple[float, float]

# Lengths are good to 2^-104, products of two of them to 2^-101; what is below this share of the terms of a sum, or of a
# result, is their errors.
NOTHING = 2.0**-97
# Coordinates within these have halves that are exact, and sums that do not overflow.
_LEAST, _MOST = 2.0**-900, 2.0**1020
_RAISED, _LOWERED = 2.0**100, 2.0**-4
# The exponents of units: powers of two with these are normal numbers, minus or not.
_FARTHEST = 1000


class Interval(NamedTuple):
    """A box's extent on one axis."""

    low: Pair
    high: Pair
    length: Pair


class Side(NamedTuple):
    """Two intervals a and b: lengths in a unit, and how they change with the ends of a."""

    length: Pair  # of a
    other: Pair  # of b
    common: Pair  # of the intersection, at least 0
    around: Pair  # of the smallest interval around both
    beyond: Pair  # length − common
    other_beyond: Pair
    apart: bool
    flat: bool  # whether a has no length
    other_flat: bool
    per_unit: float  # a power of two: what lengths are multiplied by, after
    raised: float  # another one, for coordinates near the ends of float64
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
    of_union: Pair  # 1/U, 0 where boxes are apart
    of_around: Pair  # 1/E


class Factors(NamedTuple):
    """What the slopes along an axis are made of."""

    inside: Pair  # i_w·h
    crossing: Pair  # u·h + u'·h' + i_w·(h' − h)
    covered: Pair  # u·h + B
    wider: Pair  # Y
    taller: Pair  # v·e_w
    of_iou: Pair  # i_h/U
    of_around: Pair  # 1/(E·e_w)


@jit.scalar
def _add(a, b):
    """Sum of two pairs, finite ones, as numerics.pairs.add: there are many in a chain."""
    high, low = two_sum(a[0], b[0])
    tail, tail_low = two_sum(a[1], b[1])
    high, low = fast_two_sum(high, low + tail)
    return fast_two_sum(high, low + tail_low)


@jit.scalar
def _subtract(a, b):
    """Difference of two pairs."""
    return _add(a, negate(b))


@jit.scalar
def _times(a, b):
    """Product of two pairs."""
    high, low = product(a, b)
    return fast_two_sum(high, low)


@jit.scalar
def _over(a, b):
    """Quotient of two pairs."""
    high = a[0] / b[0]
    rest = fma(-high, b[0], a[0]) + fma(-high, b[1], a[1])
    return fast_two_sum(high, rest / b[0])


@jit.scalar
def _remainder(a, b):
    """a + b; 0 where only the errors of a and b are left of it."""
    high, low = _add(a, b)
    nothing = abs(high) < NOTHING * (abs(a[0]) + abs(b[0]))
    return 0.0 if nothing else high, 0.0 if nothing else low


@jit.scalar
def _part(factor, a):
    """A multiple of 1/4, or a power of two, times a pair."""
    return factor * a[0], factor * a[1]


@jit.scalar
def _either(condition, a, b):
    return (a[0] if condition else b[0]), (a[1] if condition else b[1])


@jit.scalar
def _positive(a):
    """max(0, a)."""
    return _either(a[0] > 0.0, a, pair(0.0))


@jit.scalar
def _interval(first, second, raised, centered):
    """A box's extent on an axis: from centre and size, or from both ends."""
    first, second = raised * first, raised * second
    half = 0.5 * second
    low = _either(centered, two_sum(first, -half), pair(first))
    high = _either(centered, two_sum(first, half), pair(second))
    return Interval(low, high, _either(centered, pair(second), two_sum(second, -first)))


@jit.scalar
def _bracket(difference):
    """[difference > 0], ½ at 0."""
    return 1.0 if difference[0] > 0.0 else (0.5 if difference[0] == 0.0 else 0.0)


@jit.scalar
def _length(a, b, of_a, of_b, from_a, to_a):
    """The length from an end of a or of b to another one; a box's own where both may be taken of one box."""
    between = _subtract(_either(to_a, a.high, b.high), _either(from_a, a.low, b.low))
    return _either(of_a, a.length, _either(of_b, b.length, between))


@jit.scalar
def _side(a, b, raised):
    """Two intervals on one axis, whose numbers are raised."""
    low, high = _subtract(a.low, b.low), _subtract(a.high, b.high)
    a_inside, b_inside = low[0] >= 0.0 and high[0] <= 0.0, low[0] <= 0.0 and high[0] >= 0.0
    inner = _length(a, b, a_inside, b_inside, low[0] > 0.0, high[0] < 0.0)
    outer = _length(a, b, b_inside, a_inside, low[0] < 0.0, high[0] > 0.0)
    apart = inner[0] < 0.0
    reach = 0.0 if apart else 1.0
    beyond = _either(apart, a.length, _add(_positive(negate(low)), _positive(high)))
    other_beyond = _either(apart, b.length, _add(_positive(low), _positive(negate(high))))
    unit = min(max(exponent_of(outer[0]), -_FARTHEST), _FARTHEST)
    per_unit = float64_from_bits((1023 - unit) << 52)
    return Side(
        length=_part(per_unit, a.length),
        other=_part(per_unit, b.length),
        common=_either(apart, pair(0.0), _part(per_unit, inner)),
        around=_part(per_unit, outer),
        beyond=_part(per_unit, beyond),
        other_beyond=_part(per_unit, other_beyond),
        apart=apart,
        flat=a.length[0] == 0.0,
        other_flat=b.length[0] == 0.0,
        per_unit=per_unit,
        raised=raised,
        common_low=-reach * _bracket(low),
        common_high=reach * _bracket(negate(high)),
        around_low=-_bracket(negate(low)),
        around_high=_bracket(high),
    )


@jit.scalar
def _side_of(a_first, a_second, b_first, b_second, centered):
    """Both boxes on one axis."""
    largest = max(abs(a_first), abs(a_second), abs(b_first), abs(b_second))
    raised = _RAISED if largest < _LEAST else (_LOWERED if largest > _MOST else 1.0)
    a, b = _interval(a_first, a_second, raised, centered), _interval(b_first, b_second, raised, centered)
    return _side(a, b, raised)


@jit.scalar
def _area_beyond(x_beyond, y_length, x_common, y_beyond):
    """What a box covers beyond the intersection."""
    return _add(_times(x_beyond, y_length), _times(x_common, y_beyond))


@jit.scalar
def _overlap(x, y):
    """IoU and GIoU of two boxes from their two sides."""
    apart = x.apart or y.apart
    common, around = _times(x.common, y.common), _times(x.around, y.around)
    other = _times(x.other, y.other)
    rest = _add(
        _area_beyond(x.beyond, y.length, x.common, y.beyond),
        _area_beyond(x.other_beyond, y.other, x.common, y.other_beyond),
    )
    union = _add(common, rest)
    meeting = _add(_times(x.beyond, y.other_beyond), _times(x.other_beyond, y.beyond))
    of_union, of_around = _over(pair(1.0), union), _over(pair(1.0), around)
    uncovered = _over(_either(apart, _subtract(around, union), meeting), around)
    # What is too small for its unit is not nothing.
    nothing = np.nan if (x.flat or y.flat) and (x.other_flat or y.other_flat) else 0.0
    iou = _either(apart, pair(nothing), _over(common, union))
    iou_loss = _either(apart, pair(1.0 + nothing), _over(rest, union))
    return Overlap(
        iou=iou,
        giou=_remainder(iou, negate(uncovered)),
        iou_loss=iou_loss,
        giou_loss=_add(iou_loss, uncovered),
        other=other,
        both=_add(_times(x.length, y.length), other),
        union=union,
        of_union=_either(apart, pair(nothing), of_union),
        of_around=of_around,
    )


@jit.scalar
def _factors(along, across, both):
    shorter = _subtract(across.length, across.other)
    beyond, inside = _times(along.beyond, across.length), _times(along.common, across.length)
    # Of Y: a product, and another one that is taken off.
    length = _either(along.apart, across.length, along.other_beyond)
    width = _either(along.apart, _subtract(along.around, along.length), shorter)
    taken = _either(along.apart, both.other, _times(along.common, across.other_beyond))
    rest = _add(beyond, _times(along.other_beyond, across.other))
    return Factors(
        inside=inside,
        crossing=_remainder(rest, negate(_times(along.common, shorter))),
        covered=_add(beyond, both.other),
        wider=_remainder(_times(length, width), negate(taken)),
        taller=_times(across.beyond, along.around),
        of_iou=_times(both.of_union, across.common),
        of_around=_over(both.of_around, along.around),
    )


@jit.scalar
def _iou_slope(known, both, of_length, of_common):
    """N from σ and s."""
    whole, first, second = of_length == of_common, of_length - 2.0 * of_common, -of_common
    general = _remainder(_part(first, known.inside), _part(second, known.crossing))
    special = _part(second, _either(of_length == 0.0, both.both, known.covered))
    return _either(whole or of_length == 0.0, special, general)


@jit.scalar
def _around_slope(known, both, of_length, of_common, of_around):
    """M from σ, s and r."""
    wider = _part(of_length - of_common, known.wider)
    apart = _remainder(_part(of_length - of_common - of_around, both.union), wider)
    return _remainder(apart, _part(of_common, known.taller))


@jit.scalar
def _sign(difference):
    # NaN is handed on.
    return 1.0 if difference > 0.0 else (-1.0 if difference < 0.0 else difference)


@jit.scalar
def _slope(known, both, lengths, along, cotangents, difference):
    """The gradient of a coordinate, given the derivatives σ, s and r of lengths; difference is of L1."""
    share = _times(_iou_slope(known, both, lengths[0], lengths[1]), both.of_union)
    of_iou = _times(share, known.of_iou)
    of_around = _times(_around_slope(known, both, lengths[0], lengths[1], lengths[2]), known.of_around)
    of_giou = _remainder(of_iou, negate(of_around))
    overlaps = add(multiply(of_iou, cotangents.iou), multiply(of_giou, cotangents.giou))
    overlaps = _part(along.raised, _part(along.per_unit, overlaps))
    high, low = add(overlaps, multiply(pair(_sign(difference)), cotangents.l1))
    high = 0.0 if abs(high) < NOTHING * abs(cotangents.l1[0]) else high
    # Errors must not stand where a short number, perhaps a tie of a format, has nothing.
    return high, low if abs(low) > NOTHING * abs(high) else 0.0


@jit.scalar
def _axis_gradient(a, b, known, both, along, cotangents, centered):
    """The gradient of the two numbers that a box has on an axis."""
    s, r = (along.common_low, along.common_high), (along.around_low, along.around_high)
    first = (
        0.0 if centered else -1.0,
        s[0] + s[1] if centered else s[0],
        r[0] + r[1] if centered else r[0],
    )
    second = (1.0, 0.5 * (s[1] - s[0]) if centered else s[1], 0.5 * (r[1] - r[0]) if centered else r[1])
    return (
        _slope(known, both, first, along, cotangents, a[0] - b[0]),
        _slope(known, both, second, along, cotangents, a[1] - b[1]),
    )


@jit.scalar
def _distance(a, b):
    """|a − b| as a pair."""
    high, low = two_sum(a, -b)
    return (high, low) if high >= 0.0 else (-high, -low)


@jit.scalar
def _compare(a, b, cotangents, centered):
    """A pair of boxes, each a tuple of four: its distances, L1 of the coordinates among them, and a's gradient."""
    x, y = _side_of(a[0], a[2], b[0], b[2], centered), _side_of(a[1], a[3], b[1], b[3], centered)
    both = _overlap(x, y)
    l1 = add(add(_distance(a[0], b[0]), _distance(a[1], b[1])), add(_distance(a[2], b[2]), _distance(a[3], b[3])))
    # What is not finite has no overlap, whatever the formulas make of it.
    undefined = 0.0
    for k in range(COORDINATES):
        undefined += 0.0 * a[k] + 0.0 * b[k]
    along_x = _axis_gradient((a[0], a[2]), (b[0], b[2]), _factors(x, y, both), both, x, cotangents, centered)
    along_y = _axis_gradient((a[1], a[3]), (b[1], b[3]), _factors(y, x, both), both, y, cotangents, centered)
    distances = Distances(
        l1=rounded(l1),
        iou=both.iou[0] + undefined,
        iou_low=both.iou[1],
        giou=rounded(both.giou) + undefined,
        iou_loss=rounded(both.iou_loss) + undefined,
        giou_loss=rounded(both.giou_loss) + undefined,
    )
    # 0 takes the sign of a zero away.
    high = (along_x[0][0] + undefined, along_y[0][0] + undefined, along_x[1][0] + undefined, along_y[1][0] + undefined)
    return distances, high, (along_x[0][1], along_y[0][1], along_x[1][1], along_y[1][1])


LOOP = BoxLoop("boxes", _compare)
