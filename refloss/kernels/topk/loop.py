"""Rows of logits against a teacher's log-probabilities of some classes, in pairs: see losses/topk_distillation.

Of the teacher's row ℓ with its largest ℓ_t: a_k = e^(ℓ_k − ℓ_t), A their sum, p_k = e^ℓ_t·a_k and P = e^ℓ_t·A. Of the
student's: y = x/τ, e_j = e^(y_j − m), Z their sum, q_j = e_j/Z, and δ_k = log q_k − ℓ_k. Gradients are

    named classes    (M·e_j − m_j·Z)/Z times a coefficient, with masses m that sum to M: kernels.logits.row
    all others       e_j·M/Z, or of a bucket (e_j/O)·(P·T − R·Q)

drop and renormalise have the masses a and a coefficient that holds e^ℓ_t, or 1/A; renormalise sees the named classes
alone. A bucket has the masses p and M = 1; its classes have a maximum of their own, so that T and their shares e_j/O
are known where float64 has no e_j.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.logits.loop import is_deep, summed_difference
from refloss.kernels.logits.row import (
    Masses,
    Pair,
    Push,
    Softmax,
    difference_of_class,
    gradient_of_difference,
    nll_of,
    softmax_of,
    term_of,
)
from refloss.kernels.rows import load_strided, row_offset, save_strided
from refloss.kernels.softmax.refine import all_differences, kept
from refloss.kernels.vectors.loop import at, total_of
from refloss.numerics.accurate import exp_less_one, log1p_accurate, log_accurate
from refloss.numerics.pairs import add, divide, multiply, negate, pair, scaled

DROP, BUCKET, RENORMALISE = 0, 1, 2
# A place of the teacher that names no class; the mass of a class that is not named, where that matters.
NOT_NAMED = -1
_IN_BUCKET = -1.0
# Lines of the scratch, [V] each: logits, later gradients; y; e; masses; products; and of some classes logits and terms.
LINES = 13
X = 0
# Below it e^δ − 1 − δ is a series of terms δ^n/n!: the first that is left out is 2^-91 of the first. Above _CLOSE it is
# a difference of numbers that are large enough.
_SMALL, _CLOSE = 2.0**-10, 0.5
_TERMS = 9


class Given(NamedTuple):
    """What rows are given beside their logits."""

    log_probs: np.ndarray  # [R, K] float64
    classes: np.ndarray  # [R, K] int64, NOT_NAMED where a place has none
    counts: np.ndarray  # [R] bool
    cotangent: np.ndarray  # [R] or [1]
    temperature: float
    factor: Pair  # of every loss
    normaliser: float  # of gradients
    tail: int


class Asked(NamedTuple):
    """What one row is given."""

    log_probs: np.ndarray  # [K]
    classes: np.ndarray  # [K]
    temperature: float
    coefficient: Pair  # of its gradient
    tail: int


class Lines(NamedTuple):
    """Of one row; pairs are two lines. As many elements as there are classes, or as are named."""

    y: np.ndarray
    y_low: np.ndarray
    term: np.ndarray
    term_low: np.ndarray
    mass: np.ndarray
    mass_low: np.ndarray
    part: np.ndarray
    part_low: np.ndarray
    some: np.ndarray
    some_low: np.ndarray
    some_term: np.ndarray
    some_term_low: np.ndarray


class Teacher(NamedTuple):
    """What is to be known of the teacher's row."""

    softmax: Softmax  # of the ℓ alone, whose classes are places that name one
    base: Pair  # e^ℓ_t
    inside: Pair  # P
    outside: Pair  # R = 1 − P


class Bucket(NamedTuple):
    """What is to be known of the classes that are not named; pairs."""

    softmax: Softmax  # of them alone
    outside: Pair  # T
    inside: Pair  # Q
    surplus: Pair  # P·T − R·Q = T − R


@jit.scalar
def _lines(scratch, count):
    return Lines(
        scratch[1][:count],
        scratch[2][:count],
        scratch[3][:count],
        scratch[4][:count],
        scratch[5][:count],
        scratch[6][:count],
        scratch[7],
        scratch[8],
        scratch[9],
        scratch[10],
        scratch[11],
        scratch[12],
    )


@jit.helper
def _named(classes):
    """How many classes a row names."""
    count = 0
    for k in range(classes.size):
        count += 1 if classes[k] != NOT_NAMED else 0
    return count


@jit.helper
def _others_are_masked(x, classes):
    """Whether no class that is not named has a probability: whatever else is wrong with a row shows elsewhere."""
    count = 0
    for j in range(x.size):
        count += 1 if x[j] != -np.inf else 0
    for k in range(classes.size):
        if classes[k] != NOT_NAMED and x[classes[k]] != -np.inf:
            count -= 1
    return count == 0


@jit.helper
def _teacher_of(asked, lines, count):
    """The teacher's row; the a_k are left in some_term, in the order of the places."""
    some, some_low = lines.some[:count], lines.some_low[:count]
    c = 0
    for k in range(asked.classes.size):
        if asked.classes[k] != NOT_NAMED:
            some[c], some_low[c] = asked.log_probs[k], 0.0
            c += 1
    softmax = softmax_of(some, some_low, lines.some_term[:count], lines.some_term_low[:count])
    if not softmax.defined:
        return Teacher(softmax, softmax.maximum, softmax.maximum, softmax.maximum)
    largest = softmax.maximum[0]
    base = term_of(softmax.maximum, pair(0.0))
    missed = add(pair(1.0), negate(base))
    if abs(largest) < _CLOSE:
        missed = negate(exp_less_one(pair(largest)))
    inside = multiply(base, softmax.total)
    return Teacher(softmax, base, inside, add(missed, negate(multiply(base, softmax.others))))


@jit.helper
def _load_logits(x, asked, lines, own):
    """y of all classes, or of those that are named."""
    inverse = divide(pair(1.0), pair(asked.temperature))
    if not own:
        for j in range(lines.y.size):
            lines.y[j], lines.y_low[j] = multiply(pair(x[j]), inverse)
        return
    c = 0
    for k in range(asked.classes.size):
        if asked.classes[k] != NOT_NAMED:
            lines.y[c], lines.y_low[c] = multiply(pair(x[asked.classes[k]]), inverse)
            c += 1


@jit.helper
def _put_masses(asked, lines, teacher, own, bucket):
    """Masses of named classes: a_k, or p_k beside a bucket."""
    for j in range(lines.mass.size):
        lines.mass[j], lines.mass_low[j] = _IN_BUCKET if bucket else 0.0, 0.0
    c = 0
    for k in range(asked.classes.size):
        if asked.classes[k] != NOT_NAMED:
            mass = (lines.some_term[c], lines.some_term_low[c])
            if bucket:
                mass = multiply(mass, teacher.base)
            j = c if own else asked.classes[k]
            lines.mass[j], lines.mass_low[j] = mass
            c += 1


@jit.helper
def _top_class(asked, teacher, own):
    """Which element of the lines is the teacher's most probable class."""
    c = 0
    for k in range(asked.classes.size):
        if asked.classes[k] != NOT_NAMED:
            if c == teacher.softmax.top:
                return c if own else asked.classes[k]
            c += 1
    return -1


@jit.helper
def _masses_of(softmax, teacher, top, lines, bucket):
    """M, and what of it is not the student's most probable class; top is the teacher's."""
    whole = pair(1.0) if bucket else teacher.softmax.total
    mass = (lines.mass[softmax.top], lines.mass_low[softmax.top])
    others = add(whole, negate(mass if mass[0] > 0.0 else pair(0.0)))
    if softmax.top == top and bucket:
        others = add(teacher.outside, multiply(teacher.base, teacher.softmax.others))
    elif softmax.top == top:
        others = teacher.softmax.others
    return Masses(whole, others, pair(0.0), pair(0.0))


@jit.helper
def _excess_of_exponential(x):
    """e^x − 1 − x of a pair below _CLOSE in size."""
    if abs(x[0]) > _SMALL:
        return add(exp_less_one(x), negate(x))
    series = pair(1.0)
    for n in range(_TERMS, 2, -1):
        series = add(pair(1.0), divide(multiply(x, series), pair(np.float64(n))))
    square = multiply(multiply(x, x), series)
    return 0.5 * square[0], 0.5 * square[1]


@jit.helper
def _divergence(p, q, delta):
    """p·(e^δ − 1 − δ) of q = p·e^δ, which is never negative."""
    if delta[0] == -np.inf:
        return np.inf, 0.0
    if abs(delta[0]) < _CLOSE:
        return multiply(p, _excess_of_exponential(delta))
    return add(add(q, negate(p)), multiply(negate(delta), p))


@jit.helper
def _loss_of_named(asked, lines, softmax, teacher, own, bucket):
    """Σ over the named classes: of −p·δ where classes are dropped, else of p·(e^δ − 1 − δ)."""
    c = 0
    for k in range(asked.classes.size):
        label = asked.classes[k]
        if label == NOT_NAMED:
            continue
        j = c if own else label
        student, mass = nll_of(softmax, (lines.y[j], lines.y_low[j])), (lines.mass[j], lines.mass_low[j])
        surprise = nll_of(teacher.softmax, pair(asked.log_probs[k])) if own else pair(-asked.log_probs[k])
        delta = add(surprise, negate(student))
        if own or bucket:
            p = divide(mass, teacher.softmax.total) if own else mass
            q = divide((lines.term[j], lines.term_low[j]), softmax.total)
            value = _divergence(p, q, delta)
        else:
            value = multiply(multiply(mass, teacher.base), negate(delta))
            value = (np.inf if delta[0] == -np.inf else value[0], 0.0 if delta[0] == -np.inf else value[1])
        lines.part[c], lines.part_low[c] = value
        c += 1
    return total_of(lines.part[:c], lines.part_low[:c])


@jit.helper
def _bucket_of(lines, softmax, teacher):
    """The classes that are not named; their terms are left in some_term."""
    c, n = 0, 0
    for j in range(lines.mass.size):
        if lines.mass[j] == _IN_BUCKET:
            lines.some[c], lines.some_low[c] = lines.y[j], lines.y_low[j]
            c += 1
        else:
            lines.part[n], lines.part_low[n] = lines.term[j], lines.term_low[j]
            n += 1
    others = softmax_of(lines.some[:c], lines.some_low[:c], lines.some_term[:c], lines.some_term_low[:c])
    inside = divide(total_of(lines.part[:n], lines.part_low[:n]), softmax.total)
    outside = divide(multiply(term_of(others.maximum, softmax.maximum), others.total), softmax.total)
    surplus = add(multiply(teacher.inside, outside), negate(multiply(teacher.outside, inside)))
    return Bucket(others, outside, inside, surplus)


@jit.helper
def _loss_of_bucket(bucket, softmax, teacher):
    """R·(e^δ − 1 − δ) of δ = log T − log R."""
    log_student = add(bucket.softmax.maximum, negate(softmax.maximum))
    log_student = add(log_student, add(bucket.softmax.log_total, negate(softmax.log_total)))
    if bucket.inside[0] < _CLOSE:
        log_student = log1p_accurate(-bucket.inside[0], -bucket.inside[1])
    if teacher.inside[0] < _CLOSE:
        log_teacher = log1p_accurate(-teacher.inside[0], -teacher.inside[1])
    else:
        log_teacher = log_accurate(teacher.outside[0], teacher.outside[1])
    return _divergence(teacher.outside, bucket.outside, add(log_student, negate(log_teacher)))


@jit.helper
def _twin(lines, j):
    """The first class with the term and the mass of class j."""
    for i in range(j):
        alike = lines.term[i] == lines.term[j] and lines.term_low[i] == lines.term_low[j]
        if alike and lines.mass[i] == lines.mass[j] and lines.mass_low[i] == lines.mass_low[j]:
            return i
    return j


@jit.helper
def _gradients(lines, softmax, masses, push, slope, values, wide):
    """Those of a row without a bucket. Where too little is left of a difference, it is summed from others."""
    for j in range(values.size):
        term, mass = (lines.term[j], lines.term_low[j]), (lines.mass[j], lines.mass_low[j])
        difference, size = difference_of_class(softmax, masses, j == softmax.top, term, mass)
        if is_deep(difference, size):
            twin = _twin(lines, j)
            if twin < j:
                values[j] = values[twin]
                continue
            left, largest = all_differences(
                j, lines.term, lines.term_low, lines.mass, lines.mass_low, lines.part[: values.size],
                lines.part_low[: values.size],
            )  # fmt: skip
            difference = summed_difference(left, largest)
        values[j] = kept(gradient_of_difference(softmax, push, difference, term, slope), wide)


@jit.helper
def _gradients_with_bucket(lines, softmax, masses, bucket, push, slope, values, wide):
    """Those of a row that has one."""
    c = 0
    for j in range(values.size):
        term, mass = (lines.term[j], lines.term_low[j]), (lines.mass[j], lines.mass_low[j])
        if mass[0] != _IN_BUCKET:
            difference, _ = difference_of_class(softmax, masses, j == softmax.top, term, mass)
            values[j] = kept(gradient_of_difference(softmax, push, difference, term, slope), wide)
            continue
        share = divide((lines.some_term[c], lines.some_term_low[c]), bucket.softmax.total)
        values[j] = kept(scaled(multiply(multiply(push.coefficient, bucket.surplus), share), slope), wide)
        c += 1


@jit.helper
def _spread(values, asked, x):
    """Gradients of named classes to their places in a row; those of the others are 0."""
    for j in range(x.size):
        x[j] = 0.0
    c = 0
    for k in range(asked.classes.size):
        if asked.classes[k] != NOT_NAMED:
            x[asked.classes[k]] = values[c]
            c += 1


@jit.helper
def _undefined(x, asked, own):
    """NaN as the gradient of all classes that a loss depends on."""
    for j in range(0 if own else x.size):
        x[j] = np.nan
    if own:
        for j in range(x.size):
            x[j] = 0.0
        for k in range(asked.classes.size):
            if asked.classes[k] != NOT_NAMED:
                x[asked.classes[k]] = np.nan


@jit.helper
def _write_gradient(scratch, lines, asked, softmax, masses, teacher, bucket, has_bucket, wide):
    own = asked.tail == RENORMALISE
    coefficient = asked.coefficient
    if own:
        coefficient = divide(coefficient, teacher.softmax.total)
    elif not has_bucket:
        coefficient = multiply(coefficient, teacher.base)
    push, slope = Push(coefficient, pair(0.0)), divide(pair(1.0), pair(asked.temperature))
    x = scratch[X]
    if has_bucket:
        _gradients_with_bucket(lines, softmax, masses, bucket, push, slope, x, wide)
    elif own:
        values = lines.some[: lines.y.size]
        _gradients(lines, softmax, masses, push, slope, values, wide)
        _spread(values, asked, x)
    else:
        _gradients(lines, softmax, masses, push, slope, x, wide)


@jit.helper
def clear(scratch):
    """The gradient of a row that does not count."""
    for j in range(scratch.shape[1]):
        scratch[X, j] = 0.0


@jit.helper
def work_on(scratch, asked, with_gradient, wide):
    """The loss of the row whose logits are in the first line of the scratch, a pair; its gradient takes their place."""
    count, own, classes = _named(asked.classes), asked.tail == RENORMALISE, scratch.shape[1]
    if count == 0:
        clear(scratch)
        return pair(0.0)
    lines = _lines(scratch, count if own else classes)
    teacher = _teacher_of(asked, lines, count)
    has_bucket = asked.tail == BUCKET and teacher.outside[0] > 0.0
    has_bucket = has_bucket and not _others_are_masked(scratch[X], asked.classes)
    _put_masses(asked, lines, teacher, own, has_bucket)
    _load_logits(scratch[X], asked, lines, own)
    softmax = softmax_of(lines.y, lines.y_low, lines.term, lines.term_low)
    if not (softmax.defined and teacher.softmax.defined):
        _undefined(scratch[X], asked, own)
        return pair(np.nan)
    loss = _loss_of_named(asked, lines, softmax, teacher, own, has_bucket)
    bucket = Bucket(softmax, pair(0.0), pair(0.0), pair(0.0))
    if has_bucket:
        bucket = _bucket_of(lines, softmax, teacher)
        loss = add(loss, _loss_of_bucket(bucket, softmax, teacher))
    if with_gradient:
        masses = _masses_of(softmax, teacher, _top_class(asked, teacher, own), lines, has_bucket)
        _write_gradient(scratch, lines, asked, softmax, masses, teacher, bucket, has_bucket, wide)
    return loss


@jit.scalar
def asked_of(given, row):
    """What a row is given."""
    cotangent = scaled(pair(at(given.cotangent, row)), given.factor)
    return Asked(
        given.log_probs[row],
        given.classes[row],
        given.temperature,
        divide(cotangent, pair(given.normaliser)),
        given.tail,
    )


@jit.kernel
def topk_rows(rows, gradient, given, losses, with_gradient, first, last):
    """Losses [2, R] of rows first ... last, pairs, and their gradient."""
    scratch = np.empty((LINES, rows.classes))
    for row in range(first, last):
        losses[0, row], losses[1, row] = 0.0, 0.0
        if given.counts[row]:
            load_strided(rows, row_offset(rows, row), rows.class_stride, scratch[X])
            loss = work_on(scratch, asked_of(given, row), with_gradient, gradient.format == 0)
            losses[0, row], losses[1, row] = scaled(loss, given.factor)
        else:
            clear(scratch)
        if with_gradient:
            save_strided(scratch[X], gradient, row_offset(gradient, row), gradient.class_stride)
