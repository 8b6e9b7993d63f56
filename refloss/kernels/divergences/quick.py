"""Divergences of rows that are easy, in a tenth of the time: float64 with a bound that says when it is enough.

Exponentials have errors of 2^-70, and so have the sums of them. With a and b both rows' logits over T less their
largest, Z and Z' the sums of e^a and e^b, δ = a − b and c = log Z − log Z',

    ρ = δ − c,    Σ t·log(t/s) = c − Σ e^b·δ/Z',    Σ s·log(s/t) = Σ e^a·δ/Z − c,    s − t = e^a/Z − e^b/Z'

in pairs, with what they may be off by: terms cancel, and no one knows beforehand how much of them is left. A loss is
rounded once, and so is a slope; where both ends of an interval around it are rounded to the same number, so are all
numbers inside, and it has the bits that row's pairs would give. One doubt, and row does the whole row. It does all that
is left out here: float64's gradients, whose last bit is always in doubt, what is not finite, and probabilities of no
size.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.divergences.row import FORWARD, JSD, PART, TVD
from refloss.kernels.logits.row import Pair
from refloss.kernels.softmax.split import scan
from refloss.kernels.vectors.loop import at
from refloss.numerics.accurate import log_accurate
from refloss.numerics.bits import float64_from_bits
from refloss.numerics.formats import from_ordinal, infinity_bits, lowest_ordinal, round_to_precision
from refloss.numerics.middle import MIDDLE, exp_middle, log_middle
from refloss.numerics.pairs import add, divide, fast_two_sum, multiply, negate, pair, product, scaled, two_sum
from refloss.numerics.sums import long_total, pair_counts

# Of logits over T: differences of them are within 600, where exponentials and their products are normal numbers.
_LARGEST = 150.0
# What sums lose of terms below 1, and pairs of logits; far more than they do.
_PAIRS = 2.0**-80
# Slopes are products of a few factors of float64: this covers eight roundings.
_ROUNDINGS = 2.0**-50
# Terms of sums are below 1 if they are over it.
_SCALE = 2.0**-10
_LEAST_FACTOR, _LARGEST_FACTOR = 2.0**-200, 2.0**200
_LEAST_SHARE = 2.0**-100
# Lines of the scratch: exponentials of both rows, and log m.
S, S_LOW, T, T_LOW, MIXED, MIXED_LOW = 6, 7, 8, 9, 10, 11


class Side(NamedTuple):
    """A row's softmax."""

    maximum: float
    total: Pair  # Z
    inverse: Pair  # 1/Z
    log_total: Pair
    error: float  # of its logarithm


class Quick(NamedTuple):
    """What is known of a row; losses and slopes are right if it is sure."""

    sure: bool
    loss: Pair
    student: Side
    teacher: Side
    of_student: Pair  # what is taken off the student's logarithms, or signs
    of_teacher: Pair
    error: float  # of logarithms less that


@jit.helper
def _maximum(x):
    """The largest of a row, and the largest magnitude; infinite where something is not finite."""
    highest, largest = scan(x, lowest_ordinal(x), 0)
    return from_ordinal(highest, x), float64_from_bits(largest) if largest < infinity_bits(x) else np.inf


@jit.helper
def _exponentials(x, maximum, inverse, high, low):
    """e^a of a row, pairs, and their sum."""
    coarse, fine, finest = 0, 0, 0
    for c in range(x.size):
        logit = product(two_sum(x[c], -maximum), inverse)
        term = exp_middle(logit[0], logit[1])
        high[c], low[c] = term
        counts = pair_counts(term[0], term[1])
        coarse += counts[0]
        fine += counts[1]
        finest += counts[2]
    return long_total(coarse, fine, finest)


@jit.helper
def _side(x, maximum, inverse, high, low):
    """The softmax of a row; the largest class's exponential is 1 and has no error."""
    total = _exponentials(x, maximum, inverse, high, low)
    share = (total[0] - 1.0) / total[0]
    error = MIDDLE * share + _PAIRS
    return Side(maximum, total, divide(pair(1.0), total), log_accurate(total[0], total[1]), error)


@jit.scalar
def _distance(x, y, reference, inverse):
    """δ; |x − y| and the reference may cancel."""
    high, low = two_sum(x, -y)
    top, rest = two_sum(high, -reference[0])
    return product(fast_two_sum(top, rest + (low - reference[1])), inverse)


@jit.helper
def _mean_distance(x, y, high, low, reference, inverse):
    """Σ e·δ, and Σ e·|δ| with an error that does not matter."""
    coarse, fine, finest, sizes = 0, 0, 0, 0
    for c in range(x.size):
        distance = _distance(x[c], y[c], reference, inverse)
        term = product((high[c], low[c]), distance)
        counts = pair_counts(term[0] * _SCALE, term[1] * _SCALE)
        coarse += counts[0]
        fine += counts[1]
        finest += counts[2]
        sizes += abs(counts[0]) + 1
    total = long_total(coarse, fine, finest)
    return (total[0] / _SCALE, total[1] / _SCALE), np.float64(sizes) * 2.0**-36 / _SCALE


@jit.helper
def _leibler(x, y, student, teacher, reference, scratch, given):
    """Kullback and Leibler's divergences."""
    shift = add(student.log_total, negate(teacher.log_total))
    own = given.divergence == FORWARD
    high, low = scratch[T if own else S], scratch[T_LOW if own else S_LOW]
    side = teacher if own else student
    total, size = _mean_distance(x, y, high, low, reference, given.inverse)
    mean = multiply(total, side.inverse)
    between = student.error + teacher.error
    error = between + (2.0 * MIDDLE * size * side.inverse[0] + _PAIRS)
    # ρ + D = δ − Σ t·δ, and ρ − D = δ − Σ s·δ.
    loss = add(shift, negate(mean)) if own else add(mean, negate(shift))
    return Quick(loss[0] > error, loss, student, teacher, mean, mean, error)


@jit.scalar
def _difference(s, t, inverse, other):
    """s − t of exponentials and the inverses of their sums."""
    own, less = product(s, inverse), product(t, other)
    top, rest = two_sum(own[0], -less[0])
    return top, rest + (own[1] - less[1]), own[0], less[0]


@jit.helper
def _variation(student, teacher, scratch):
    """Half of Σ|s − t|, and Σ s·g and Σ t·g."""
    s, s_low, t, t_low = scratch[S], scratch[S_LOW], scratch[T], scratch[T_LOW]
    sums = (0, 0, 0, 0, 0, 0)
    doubts = 0
    for c in range(s.size):
        high, _low, own, other = _difference((s[c], s_low[c]), (t[c], t_low[c]), student.inverse, teacher.inverse)
        doubts += 0 if abs(high) > 8.0 * MIDDLE * (own + other) else 1
        sign = -1.0 if high < 0.0 else 1.0
        a = pair_counts(sign * s[c] * _SCALE, sign * s_low[c] * _SCALE)
        b = pair_counts(sign * t[c] * _SCALE, sign * t_low[c] * _SCALE)
        sums = (sums[0] + a[0], sums[1] + a[1], sums[2] + a[2], sums[3] + b[0], sums[4] + b[1], sums[5] + b[2])
    own, other = long_total(sums[0], sums[1], sums[2]), long_total(sums[3], sums[4], sums[5])
    of_student = multiply((own[0] / _SCALE, own[1] / _SCALE), student.inverse)
    of_teacher = multiply((other[0] / _SCALE, other[1] / _SCALE), teacher.inverse)
    # Σ|u| = Σ s·g − Σ t·g.
    both = add(of_student, negate(of_teacher))
    loss, error = (0.5 * both[0], 0.5 * both[1]), 8.0 * MIDDLE
    return Quick((doubts == 0) & (loss[0] > error), loss, student, teacher, of_student, of_teacher, error)


@jit.helper
def _mix(student, teacher, scratch, given):
    """log m of all classes; in two steps, as LLVM vectorises no loop that writes two lines of six."""
    s, s_low, t, t_low = scratch[S], scratch[S_LOW], scratch[T], scratch[T_LOW]
    high, low = scratch[MIXED], scratch[MIXED_LOW]
    own, other = multiply(student.inverse, given.rest), multiply(teacher.inverse, given.beta)
    for c in range(s.size):
        high[c], low[c] = product((s[c], s_low[c]), own)
    for c in range(s.size):
        part, part_low = product((t[c], t_low[c]), other)
        top, rest = two_sum(high[c], part)
        mixed = fast_two_sum(top, rest + (low[c] + part_low))
        high[c], low[c] = log_middle(mixed[0], mixed[1])


@jit.scalar
def _beyond(x, side, inverse, mixed, mixed_low):
    """log(p/m) of a logit."""
    logit = product(two_sum(x, -side.maximum), inverse)
    top, rest = two_sum(logit[0], -side.log_total[0])
    value, left = two_sum(top, -mixed)
    return fast_two_sum(value, left + (rest + ((logit[1] - side.log_total[1]) - mixed_low)))


@jit.helper
def _mean_beyond(x, high, low, side, scratch, inverse):
    """Σ p·log(p/m), and Σ p·|log(p/m)| with an error that does not matter."""
    mixed, mixed_low = scratch[MIXED], scratch[MIXED_LOW]
    coarse, fine, finest, sizes = 0, 0, 0, 0
    for c in range(x.size):
        term = product((high[c], low[c]), _beyond(x[c], side, inverse, mixed[c], mixed_low[c]))
        counts = pair_counts(term[0] * _SCALE, term[1] * _SCALE)
        coarse += counts[0]
        fine += counts[1]
        finest += counts[2]
        sizes += abs(counts[0]) + 1
    total = long_total(coarse, fine, finest)
    mean = multiply((total[0] / _SCALE, total[1] / _SCALE), side.inverse)
    return mean, np.float64(sizes) * 2.0**-36 / _SCALE * side.inverse[0]


@jit.helper
def _jensen(x, y, student, teacher, scratch, given):
    """Jensen and Shannon's divergence; m is off by 2^-69 of it, and so are logarithms, and what is taken off them."""
    _mix(student, teacher, scratch, given)
    own, size = _mean_beyond(x, scratch[S], scratch[S_LOW], student, scratch, given.inverse)
    other, other_size = _mean_beyond(y, scratch[T], scratch[T_LOW], teacher, scratch, given.inverse)
    loss = add(multiply(given.rest, own), multiply(given.beta, other))
    error = MIDDLE * (8.0 + 2.0 * (size + other_size)) + _PAIRS
    return Quick(loss[0] > error, loss, student, teacher, own, other, error)


@jit.helper
def quick(scratch, given):
    """What is known of the row whose logits are in the first lines of the scratch."""
    x, y = scratch[0], scratch[1]
    (maximum, size), (other, other_size) = _maximum(x), _maximum(y)
    none = Side(0.0, pair(0.0), pair(0.0), pair(0.0), 0.0)
    near = max(size, other_size) * given.inverse[0] < _LARGEST
    if not (near and min(given.beta[0], given.rest[0]) > _LEAST_SHARE):
        return Quick(False, pair(0.0), none, none, pair(0.0), pair(0.0), 0.0)
    student = _side(x, maximum, given.inverse, scratch[S], scratch[S_LOW])
    teacher = _side(y, other, given.inverse, scratch[T], scratch[T_LOW])
    if given.divergence == TVD:
        return _variation(student, teacher, scratch)
    if given.divergence == JSD:
        return _jensen(x, y, student, teacher, scratch, given)
    return _leibler(x, y, student, teacher, two_sum(maximum, -other), scratch, given)


@jit.helper
def settled_loss(known, given):
    """A row's loss, rounded, and whether that is sure."""
    value = multiply(known.loss, given.factor)
    error = (known.error + _PAIRS) * given.factor[0]
    return value[0] + value[1], known.sure & (value[0] + (value[1] - error) == value[0] + (value[1] + error))


@jit.scalar
def _is_right(value, error, dropped, smallest):
    """Whether all within an error of a value, which has one itself, is rounded to one number of its sign."""
    error += _ROUNDINGS * abs(value)
    below = round_to_precision(value - error, dropped, smallest)
    above = round_to_precision(value + error, dropped, smallest)
    return (below == above) & (abs(value) > error)


@jit.helper
def _differences(known, coefficient, scratch, dropped, smallest):
    """Slopes that are s − t; of how many one is in doubt."""
    s, s_low, t, t_low = scratch[S], scratch[S_LOW], scratch[T], scratch[T_LOW]
    inverse, other, result, size = known.student.inverse, known.teacher.inverse, scratch[PART], abs(coefficient)
    doubts = 0
    for c in range(result.size):
        high, low, own, less = _difference((s[c], s_low[c]), (t[c], t_low[c]), inverse, other)
        value = coefficient * (high + low)
        doubts += 0 if _is_right(value, 4.0 * MIDDLE * size * (own + less), dropped, smallest) else 1
        result[c] = value
    return doubts


@jit.helper
def _pulls(known, p, inverse, coefficient, scratch, given, precision):
    """Slopes that are p times δ less its mean."""
    x, y, result = scratch[0], scratch[1], scratch[PART]
    dropped, smallest = precision
    reference = two_sum(known.student.maximum, -known.teacher.maximum)
    factor = coefficient * inverse
    doubts = 0
    for c in range(result.size):
        distance = _distance(x[c], y[c], reference, given.inverse)
        top, rest = two_sum(distance[0], -known.of_student[0])
        own = factor * p[c]
        value = own * (top + (rest + (distance[1] - known.of_student[1])))
        doubts += 0 if _is_right(value, abs(own) * known.error, dropped, smallest) else 1
        result[c] = value
    return doubts


@jit.helper
def _mixed_pulls(x, p, side, mean, coefficient, known, scratch, given, precision):
    """Slopes that are p times log(p/m) less its mean."""
    mixed, mixed_low, result = scratch[MIXED], scratch[MIXED_LOW], scratch[PART]
    dropped, smallest = precision
    factor = coefficient * side.inverse[0]
    doubts = 0
    for c in range(result.size):
        beyond = _beyond(x[c], side, given.inverse, mixed[c], mixed_low[c])
        top, rest = two_sum(beyond[0], -mean[0])
        own = factor * p[c]
        value = own * (top + (rest + (beyond[1] - mean[1])))
        doubts += 0 if _is_right(value, abs(own) * known.error, dropped, smallest) else 1
        result[c] = value
    return doubts


@jit.helper
def _pushes(p, mean, inverse, coefficient, known, scratch, precision):
    """Slopes that are p times a sign less its mean."""
    s, t, result = scratch[S], scratch[T], scratch[PART]
    dropped, smallest = precision
    up, down = add(pair(1.0), negate(mean)), add(pair(-1.0), negate(mean))
    factor = coefficient * inverse
    s_low, t_low = scratch[S_LOW], scratch[T_LOW]
    doubts = 0
    for c in range(result.size):
        high = _difference((s[c], s_low[c]), (t[c], t_low[c]), known.student.inverse, known.teacher.inverse)[0]
        own = factor * p[c]
        value = own * (up[0] if high > 0.0 else down[0])
        doubts += 0 if _is_right(value, abs(own) * known.error, dropped, smallest) else 1
        result[c] = value
    return doubts


@jit.helper
def _precision(number):
    """The bits of float64 that a format lacks, and its smallest exponent, from its number."""
    return 29 if number == 1 else (45 if number == 2 else 42), -14 if number == 3 else -126


@jit.helper
def quick_gradient(scratch, known, given, row, number, of_teacher):
    """The gradient of one of both arrays into a line, and whether each of its elements is sure."""
    precision = _precision(number)
    upstream = scaled(pair(at(given.upstream, row)), given.steepness)[0]
    if not _LEAST_FACTOR < abs(upstream) < _LARGEST_FACTOR:
        return False
    side = known.teacher if of_teacher else known.student
    inverse, p = side.inverse[0], scratch[T if of_teacher else S]
    mean = known.of_teacher if of_teacher else known.of_student
    if given.divergence == JSD:
        factor = upstream * (given.beta if of_teacher else given.rest)[0]
        line = scratch[1 if of_teacher else 0]
        return _mixed_pulls(line, p, side, mean, factor, known, scratch, given, precision) == 0
    if given.divergence == TVD:
        sign = -0.5 if of_teacher else 0.5
        return _pushes(p, mean, inverse, sign * upstream, known, scratch, precision) == 0
    if (given.divergence == FORWARD) != of_teacher:
        sign = -1.0 if of_teacher else 1.0
        return _differences(known, sign * upstream, scratch, precision[0], precision[1]) == 0
    return _pulls(known, p, inverse, -upstream if of_teacher else upstream, scratch, given, precision) == 0
