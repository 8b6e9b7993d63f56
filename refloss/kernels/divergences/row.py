"""Two softmaxes of a row, how they differ, and what a divergence and its slopes are made of; see losses/distillation.

All of it in pairs. With d_j = x_j − y_j, r a class of the teacher's largest logit and g_j = e^δ_j − 1 for
δ_j = (d_j − d_r)/T, of which equal and shifted rows leave nothing at all,

    A = Σ_j t_j·g_j,    ρ_j = log(s_j/t_j) = δ_j − log(1 + A),    u_j = s_j − t_j = t_j·(g_j − A)/(1 + A)

Where δ_j is not small, t_j·g_j is s_j·(t_r/s_r) − t_j, and u_j the difference itself. If a student has all but lost
class r, 1 + A = t_r/s_r is beyond all measure: then δ_j is that beyond the difference of both largest logits, and with
S the sum of all other exponentials of a row ρ_j = δ_j − (log(1 + S) − log(1 + S')), of which sure rows leave little.

Every divergence is a sum of p·φ(z), φ(z) = e^z − 1 − z ≥ 0, because Σ p·(e^z − 1), the difference of two sums of
probabilities, is 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.logits.row import DUST, NOTHING, Pair, significand_of, softmax_of
from refloss.kernels.vectors.loop import at, total_of
from refloss.numerics.accurate import (
    INVERSE_FACTORIALS,
    INVERSE_FACTORIALS_LOW,
    exp_alone,
    exp_less_one,
    log1p_accurate,
)
from refloss.numerics.bits import fma
from refloss.numerics.exponential import UNDERFLOW, scale
from refloss.numerics.pairs import add, divide, multiply, negate, pair, scaled, two_sum

FORWARD, REVERSE, JSD, TVD = 0, 1, 2, 3
# Lines of the scratch: both logits; both over T; both probabilities; ρ; u; what is added up, and slopes; and of a
# Jensen-Shannon divergence log(s/m) and log(t/m).
LINES = 18
X, Y, PART, PART_LOW = 0, 1, 14, 15
# e^δ − 1 is a series up to here.
_NEAR = 0.5
# φ is a series up to here.
_SMALL = 2.0**-16
# The least share that a student may leave of the teacher's surest class.
_LEFT = 2.0**-20
# Below it a divergence is computed again with probabilities that are 2^_RAISED times as large, so that those of
# float64's least numbers have all their digits.
_LITTLE = 2.0**-800
_RAISED = 200


class Given(NamedTuple):
    """What rows are given beside their logits."""

    counts: np.ndarray  # [R] bool
    upstream: np.ndarray  # [R] or [1] float64
    divergence: int
    beta: Pair
    rest: Pair  # 1 − β
    inverse: Pair  # 1/T
    factor: Pair  # of a row's loss
    steepness: Pair  # of its slopes: that over T, over how many rows a mean is of


class Lines(NamedTuple):
    """Of one row, [V] each; pairs are two lines."""

    x: np.ndarray
    y: np.ndarray
    student: Any  # logits over T
    teacher: Any
    s: Any
    t: Any
    ratio: Any  # ρ
    change: Any  # u
    part: Any
    of_student: Any  # σ = log(s/m)
    of_teacher: Any  # α = log(t/m)


class Relation(NamedTuple):
    """How two rows are compared."""

    is_close: bool
    reference: Pair  # d_r, or the difference of both largest logits
    mean: Pair  # A
    inverse: Pair  # 1/(1 + A)
    shift: Pair  # log(1 + A), or the difference of both log(1 + S)
    noise: float  # what is an error of pairs in ρ


class Known(NamedTuple):
    """What is known of a row once its divergence is."""

    defined: bool
    loss: Pair
    raised: int  # the exponent of what all probabilities are multiplied by


@jit.scalar
def lines_of(scratch):
    """Lines in the rows of a matrix."""
    return Lines(
        scratch[0],
        scratch[1],
        (scratch[2], scratch[3]),
        (scratch[4], scratch[5]),
        (scratch[6], scratch[7]),
        (scratch[8], scratch[9]),
        (scratch[10], scratch[11]),
        (scratch[12], scratch[13]),
        (scratch[14], scratch[15]),
        (scratch[16], scratch[17]),
        (scratch[2], scratch[3]),
    )


@jit.scalar
def _get(line, c):
    return line[0][c], line[1][c]


@jit.scalar
def _put(line, c, value):
    line[0][c] = value[0]
    line[1][c] = value[1]


@jit.helper
def _soften(x, inverse, line):
    for c in range(x.size):
        _put(line, c, multiply(pair(x[c]), inverse))


@jit.helper
def _normalise(line, total):
    """Exponentials become probabilities."""
    inverse = divide(pair(1.0), total)
    for c in range(line[0].size):
        _put(line, c, multiply(_get(line, c), inverse))


@jit.helper
def _raise(logits, softmax, line):
    """The same from logits, 2^_RAISED times as large."""
    inverse = divide(pair(1.0), softmax.total)
    for c in range(line[0].size):
        term, n = significand_of(_get(logits, c), softmax.maximum)
        _put(line, c, multiply((scale(term[0], n + _RAISED), scale(term[1], n + _RAISED)), inverse))


@jit.helper
def _surest(x, y, top):
    """Of the classes of the teacher's largest logit one that the student gives most: no order shows."""
    best = top
    for c in range(x.size):
        if y[c] == y[top] and x[c] > x[best]:
            best = c
    return best


@jit.scalar
def _distance(x, y, reference, inverse):
    """(x − y − reference)/T: infinite where one class is masked, 0 where both are."""
    value = multiply(add(two_sum(x, -y), negate(reference)), inverse)
    both = x == -np.inf and y == -np.inf
    return 0.0 if both else value[0], 0.0 if both else value[1]


@jit.scalar
def _growth(distance):
    """e^δ − 1 of a δ that is near 0, and whether it is."""
    near = abs(distance[0]) <= _NEAR
    return near, exp_less_one((distance[0] if near else 0.0, distance[1] if near else 0.0))


@jit.helper
def _grow(lines, reference, inverse, kept):
    """δ, g and t·g of all classes; the largest magnitude of the last one."""
    largest = 0.0
    for c in range(lines.x.size):
        distance = _distance(lines.x[c], lines.y[c], reference, inverse)
        near, growth = _growth(distance)
        t = _get(lines.t, c)
        beside, apart = multiply(t, growth), add(multiply(_get(lines.s, c), kept), negate(t))
        part = beside[0] if near else apart[0], beside[1] if near else apart[1]
        largest = max(largest, abs(part[0]))
        _put(lines.ratio, c, distance)
        _put(lines.change, c, growth)
        _put(lines.part, c, part)
    return largest


@jit.helper
def _distances(lines, reference, inverse):
    """δ of all classes."""
    for c in range(lines.x.size):
        _put(lines.ratio, c, _distance(lines.x[c], lines.y[c], reference, inverse))


@jit.helper
def _apart(lines, student, teacher, given):
    """The same of rows that are far apart; δ is beyond that of both largest logits."""
    reference = two_sum(lines.x[student.top], -lines.y[teacher.top])
    _distances(lines, reference, given.inverse)
    shift = add(student.log_total, negate(teacher.log_total))
    noise = NOTHING * max(student.log_total[0], teacher.log_total[0])
    return Relation(False, reference, pair(0.0), pair(1.0), shift, noise)


@jit.helper
def _relate(lines, student, teacher, given):
    """How the rows are compared; δ and g are left where ρ and u will be."""
    r = _surest(lines.x, lines.y, teacher.top)
    s, t = _get(lines.s, r), _get(lines.t, r)
    if s[0] < _LEFT * t[0]:
        return _apart(lines, student, teacher, given)
    reference = two_sum(lines.x[r], -lines.y[r])
    largest = _grow(lines, reference, given.inverse, divide(t, s))
    mean = total_of(lines.part[0], lines.part[1])
    nothing = abs(mean[0]) <= NOTHING * largest
    mean = 0.0 if nothing else mean[0], 0.0 if nothing else mean[1]
    inverse = divide(pair(1.0), add(pair(1.0), mean))
    shift = log1p_accurate(mean[0], mean[1])
    return Relation(True, reference, mean, inverse, shift, NOTHING * largest * min(1.0, inverse[0]))


@jit.helper
def _compare(lines, relation):
    """ρ and u of all classes, from δ and g."""
    for c in range(lines.x.size):
        distance, growth = _get(lines.ratio, c), _get(lines.change, c)
        s, t = _get(lines.s, c), _get(lines.t, c)
        ratio = add(distance, negate(relation.shift))
        if not relation.is_close:
            growth = _growth(ratio)[1]
        near = abs(distance[0] if relation.is_close else ratio[0]) <= _NEAR
        beside = multiply(t, multiply(add(growth, negate(relation.mean)), relation.inverse))
        apart = add(s, negate(t))
        # Infinities are no errors.
        nothing = abs(ratio[0]) <= max(NOTHING * abs(distance[0]), relation.noise) < np.inf
        change = beside[0] if near else apart[0], beside[1] if near else apart[1]
        _put(lines.ratio, c, (0.0 if nothing else ratio[0], 0.0 if nothing else ratio[1]))
        _put(lines.change, c, (0.0 if nothing else change[0], 0.0 if nothing else change[1]))


@jit.scalar
def _series(z):
    """(e^z − 1 − z)/z² next to 0, a pair."""
    inverse, low = INVERSE_FACTORIALS, INVERSE_FACTORIALS_LOW
    rest = fma(fma(fma(inverse[7], z[0], inverse[6]), z[0], inverse[5]), z[0], inverse[4])
    value = add((inverse[3], low[3]), multiply(z, (rest, low[4])))
    return add((inverse[2], low[2]), multiply(z, value))


@jit.scalar
def _excess(p, z, change):
    """p·(e^z − 1 − z) from p·(e^z − 1); +inf for a z of −inf."""
    small = abs(z[0]) < _SMALL
    near = z[0] if small else 0.0, z[1] if small else 0.0
    beside = multiply(multiply(p, near), multiply(near, _series(near)))
    product = multiply(p, z)
    none = p[0] == 0.0 and z[0] > -np.inf
    apart = add(change, (0.0 if none else -product[0], 0.0 if none else -product[1]))
    infinite = z[0] == -np.inf
    high, low = beside[0] if small else apart[0], beside[1] if small else apart[1]
    return np.inf if infinite else high, 0.0 if infinite else low


@jit.helper
def _excess_sum(p, z, sign, change, factor, lines):
    """Σ p·φ(z), of which z times a sign and p·(e^z − 1) over a factor are lines."""
    for c in range(p[0].size):
        exponent = _get(z, c)
        term = _excess(_get(p, c), (sign * exponent[0], sign * exponent[1]), multiply(factor, _get(change, c)))
        _put(lines.part, c, term)
    return total_of(lines.part[0], lines.part[1])


@jit.helper
def _less_than_one(size):
    """e^−|size| − 1."""
    exponent = -abs(size[0]), -size[1] if size[0] > 0.0 else size[1]
    if exponent[0] >= -_NEAR:
        return exp_less_one(exponent)
    if not exponent[0] > UNDERFLOW:
        return pair(-1.0)
    return add(exp_alone(exponent[0], exponent[1]), pair(-1.0))


@jit.helper
def _mix(lines, given):
    """log(s/m) and log(t/m) of m = β·t + (1 − β)·s; the logarithm is that of the larger of both."""
    for c in range(lines.x.size):
        ratio = _get(lines.ratio, c)
        above = ratio[0] > 0.0
        share = given.beta if above else given.rest
        part = multiply(share, _less_than_one(ratio))
        own = negate(log1p_accurate(part[0], part[1]))
        other = add(own, negate(ratio) if above else ratio)
        _put(lines.of_student, c, own if above else other)
        _put(lines.of_teacher, c, other if above else own)


@jit.helper
def _variation(lines):
    """Σ|u|/2."""
    for c in range(lines.x.size):
        change = _get(lines.change, c)
        sign = -0.5 if change[0] < 0.0 else 0.5
        _put(lines.part, c, (sign * change[0], sign * change[1]))
    return total_of(lines.part[0], lines.part[1])


@jit.helper
def _divergence(lines, given):
    """The divergence, from ρ and u."""
    if given.divergence == FORWARD:
        return _excess_sum(lines.t, lines.ratio, 1.0, lines.change, pair(1.0), lines)
    if given.divergence == REVERSE:
        return _excess_sum(lines.s, lines.ratio, -1.0, lines.change, pair(-1.0), lines)
    if given.divergence == TVD:
        return _variation(lines)
    _mix(lines, given)
    of_teacher = _excess_sum(lines.t, lines.of_teacher, -1.0, lines.change, given.rest, lines)
    of_student = _excess_sum(lines.s, lines.of_student, -1.0, lines.change, negate(given.beta), lines)
    return add(multiply(given.beta, of_teacher), multiply(given.rest, of_student))


@jit.helper
def _raised_divergence(lines, student, teacher, relation, given):
    """The same where probabilities are least: all lines are 2^_RAISED times as large."""
    _soften(lines.x, given.inverse, lines.student)
    _soften(lines.y, given.inverse, lines.teacher)
    _raise(lines.student, student, lines.s)
    _raise(lines.teacher, teacher, lines.t)
    if relation.is_close:
        _grow(lines, relation.reference, given.inverse, pair(1.0))
    else:
        _distances(lines, relation.reference, given.inverse)
    _compare(lines, relation)
    return _divergence(lines, given)


@jit.helper
def know(scratch, given):
    """The divergence of the row whose logits are in the first lines of the scratch."""
    lines = lines_of(scratch)
    _soften(lines.x, given.inverse, lines.student)
    _soften(lines.y, given.inverse, lines.teacher)
    student = softmax_of(lines.student[0], lines.student[1], lines.s[0], lines.s[1])
    teacher = softmax_of(lines.teacher[0], lines.teacher[1], lines.t[0], lines.t[1])
    if not (student.defined and teacher.defined):
        return Known(False, pair(np.nan), 0)
    _normalise(lines.s, student.total)
    _normalise(lines.t, teacher.total)
    relation = _relate(lines, student, teacher, given)
    _compare(lines, relation)
    loss = _divergence(lines, given)
    if loss[0] < _LITTLE:
        return Known(True, _raised_divergence(lines, student, teacher, relation, given), _RAISED)
    return Known(True, loss, 0)


@jit.scalar
def loss_of(known, given):
    """A row's loss, a pair that is to be rounded."""
    value = multiply(known.loss, given.factor)
    return scale(value[0], -known.raised), scale(value[1], -known.raised)


@jit.helper
def _reference(p, logarithm):
    """The least logarithm of the likeliest classes: no order shows."""
    best = 0
    for c in range(p[0].size):
        alike = p[0][c] == p[0][best] and logarithm[0][c] < logarithm[0][best]
        if p[0][c] > p[0][best] or alike:
            best = c
    return _get(logarithm, best)


@jit.helper
def _pull(p, logarithm, factor, raised, lines):
    """factor·p·(a − Σ p·a) of logarithms a, as they are beyond that of the likeliest class; 0 without probability."""
    reference, largest = negate(_reference(p, logarithm)), 0.0
    for c in range(p[0].size):
        own = _get(p, c)
        part = multiply(own, add(_get(logarithm, c), reference))
        _put(lines.part, c, (0.0 if own[0] == 0.0 else part[0], 0.0 if own[0] == 0.0 else part[1]))
        largest = max(largest, abs(lines.part[0][c]))
    mean = total_of(lines.part[0], lines.part[1])
    mean, largest = (scale(mean[0], -raised), scale(mean[1], -raised)), NOTHING * scale(largest, -raised)
    for c in range(p[0].size):
        own = _get(p, c)
        beyond = add(add(_get(logarithm, c), reference), negate(mean))
        slope = multiply(factor, multiply(own, beyond))
        nothing = abs(beyond[0]) <= largest or own[0] == 0.0
        _put(lines.part, c, (0.0 if nothing else slope[0], 0.0 if nothing else slope[1]))


@jit.helper
def _mass(p, change, sign, lines):
    """Σ p of the classes whose u has a sign, or is 0."""
    for c in range(p[0].size):
        there = change[0][c] * sign > 0.0 or (sign == 0.0 and change[0][c] == 0.0)
        _put(lines.part, c, (p[0][c] if there else 0.0, p[1][c] if there else 0.0))
    return total_of(lines.part[0], lines.part[1])


@jit.helper
def _push_variation(p, sign, lines):
    """sign·p·(sgn u − Σ p·sgn u)/2, from the masses on either side: 1 − (a − b) is 2·b and the ties'."""
    above, below = _mass(p, lines.change, 1.0, lines), _mass(p, lines.change, -1.0, lines)
    ties = _mass(p, lines.change, 0.0, lines)
    up, down = add(add(below, below), ties), negate(add(add(above, above), ties))
    level = add(below, negate(above))
    nothing = abs(level[0]) <= NOTHING * above[0]
    level = 0.0 if nothing else level[0], 0.0 if nothing else level[1]
    total = add(add(above, below), ties)
    half = divide(pair(0.5 * sign), total)
    for c in range(p[0].size):
        change = lines.change[0][c]
        push = up if change > 0.0 else (down if change < 0.0 else level)
        _put(lines.part, c, multiply(multiply(_get(p, c), push), half))


@jit.helper
def _sink(p, lines):
    """The slopes of an infinite divergence, as torch's log_softmax has them: −∞·p, NaN of the classes to blame."""
    for c in range(p.size):
        there = p[c] > 0.0 and abs(lines.ratio[0][c]) < np.inf
        _put(lines.part, c, pair(-np.inf if there else np.nan))


@jit.helper
def _push(lines, known, given, of_teacher):
    """Slopes of a row's divergence for the logits over T of one of both, into the last lines."""
    divergence = given.divergence
    if divergence == TVD:
        _push_variation(lines.t if of_teacher else lines.s, -1.0 if of_teacher else 1.0, lines)
    elif divergence == JSD and of_teacher:
        _pull(lines.t, lines.of_teacher, given.beta, known.raised, lines)
    elif divergence == JSD:
        _pull(lines.s, lines.of_student, given.rest, known.raised, lines)
    elif (divergence == FORWARD) != of_teacher:
        sign = -1.0 if of_teacher else 1.0
        for c in range(lines.x.size):
            _put(lines.part, c, (sign * lines.change[0][c], sign * lines.change[1][c]))
    elif known.loss[0] == np.inf:
        _sink(lines.t[0] if of_teacher else lines.s[0], lines)
    elif of_teacher:
        _pull(lines.t, lines.ratio, pair(-1.0), known.raised, lines)
    else:
        _pull(lines.s, lines.ratio, pair(1.0), known.raised, lines)


@jit.helper
def write_gradient(scratch, known, given, row, of_teacher):
    """The gradient of one of both arrays of logits into the last lines: pairs that are ready for their one rounding."""
    lines = lines_of(scratch)
    if known.defined:
        _push(lines, known, given, of_teacher)
    coefficient = scaled(pair(at(given.upstream, row)), given.steepness)
    coefficient = scale(coefficient[0], -known.raised), scale(coefficient[1], -known.raised)
    for c in range(lines.x.size):
        value = scaled(_get(lines.part, c), coefficient)
        rest = value[1] if abs(value[1]) >= DUST * abs(value[0]) else 0.0
        _put(lines.part, c, (value[0] if known.defined else np.nan, rest if known.defined else 0.0))


@jit.helper
def clear(scratch):
    """The gradient of a row that does not count."""
    for c in range(scratch.shape[1]):
        scratch[PART, c] = 0.0
        scratch[PART_LOW, c] = 0.0
