"""Gradient elements Q·p_j − q_j of which little is left: probabilities that agree with their target.

In float64 such an element keeps 53 bits less those that cancel, too few for a correctly rounded float32 once p and q
agree in some ten bits: soft labels near their optimum, above all a model's own probabilities. Rows that have such
elements are computed again with exponentials, masses and their sums as pairs, good to some 2^-98.

An element of which even that leaves little, a sure class whose target is as sure, is the sum

    Q·p_j − q_j = (1/Z)·Σ_i (q_i·e_j − q_j·e_i)

whose terms are differences that keep their digits: where class i is as sure as class j and has the same
target, it is 0.
"""

from __future__ import annotations

import numpy as np

from refloss import jit
from refloss.numerics.accurate import exp_accurate
from refloss.numerics.bits import float64_bits, float64_from_bits
from refloss.numerics.exponential import UNDERFLOW
from refloss.numerics.pairs import add, divide, multiply, negate, scaled, to_odd, two_sum
from refloss.numerics.sums import long_sum

# A row in which an element has less than this share of q_j left is computed again. p_j has a relative error of 2^-53
# from its own exponential and as much from the sum, at most (as measured): 2·2^-53/2^-18 = 2^-34 of what is left,
# 0.001 float32 ulp.
CLOSE = 2.0**-18
# So is one with many elements below this share: in a row of them one in 10^5 would be misrounded, at 2^-53/2^-11 of
# what is left, 2^-18 ulp, on either side of a tie. Below CROWD of a row's elements, and for one alone, they are too few
# to tell: at CLOSE they are misrounded one in 2^11, so a row of which they are a part of 2^-7 is one in 2^18.
NEAR = 2.0**-11
CROWD = 2.0**-7
# Less than this share of q_j is known to less than 2^-34 from pairs, which are good to 2^-98.
DEEP = 2.0**-64
# In a row of equal logits Q·p and q are rational numbers, and what is left of them may be a short one, perhaps a tie.
# The last place of 2^-46 times a number is below 2^-98 of that number; LARGEST_COUNT is beyond any number of classes.
KNOWN = 2.0**-46
LARGEST_COUNT = 2.0**30
# Products of pairs that differ by less are the same product.
DUST = 2.0**-98
# Sums whose terms leave less are 0: rounding errors of 2^-102, up to a thousand of them.
NOTHING = 2.0**-92

# Elements of a page, and how far apart in it lines begin: a processor takes the same places of two pages for one.
PAGE = 512
APART = 136


@jit.scalar
def accurate_term(logit, maximum):
    """e^(logit − maximum) as a pair."""
    high, low = two_sum(logit, -maximum)
    vanishes = not high > UNDERFLOW
    term = exp_accurate(UNDERFLOW if vanishes else high, 0.0 if vanishes else low)
    return 0.0 if vanishes else term[0], 0.0 if vanishes else term[1]


@jit.scalar
def kept(value, wide):
    """A normalised pair as float64: rounded, or to odd where a rounding to a narrower format follows."""
    return value[0] if wide else to_odd(value)


@jit.scalar
def known(difference, size):
    """A difference of pairs of a size without what they do not know: if it is a short number, nothing else is left."""
    magic = size * KNOWN
    return difference[0], (difference[1] + magic) - magic


@jit.scalar
def is_close(value, subtracted):
    """Whether too little of a difference is left."""
    return abs(value) < CLOSE * abs(subtracted)


@jit.scalar
def is_near(value, subtracted):
    """Whether little of a difference is left."""
    return abs(value) < NEAR * abs(subtracted)


@jit.scalar
def is_whole(number):
    """Whether a pair is an integer, as Σ e^(x_j − maximum) is if all logits but −inf are equal, and in no other row."""
    return number[1] == 0.0 and number[0] < LARGEST_COUNT and (number[0] + 2.0**52) - 2.0**52 == number[0]


@jit.scalar
def wants_pairs(close, near, classes, whole):
    """Whether a row is to be computed again: for elements that are close, many that are near, or short numbers."""
    return close > 0 or (near > 1 and near > CROWD * classes) or is_whole(whole)


@jit.scalar
def accurate_slope(term, whole, total, excess, mass):
    """Q·p − q and, of losses that push with more than Q, excess·p; whether it is to be summed from differences."""
    share = divide(term, whole)
    pushed = multiply(total, share)
    value = add(pushed, negate(mass))
    value = known(value, abs(pushed[0]) + abs(mass[0])) if is_whole(whole) else value
    return add(value, multiply(excess, share)), abs(value[0]) < DEEP * abs(mass[0])


@jit.scalar
def difference_of_classes(term, mass, other_term, other_mass):
    """q_i·e_j − q_j·e_i of class j and another one, and how large the first product is, 0 where both are the same."""
    pushed, pulled = multiply(other_mass, term), multiply(mass, other_term)
    left = add(pushed, negate(pulled))
    same = abs(left[0]) <= DUST * abs(pushed[0])
    return 0.0 if same else left[0], 0.0 if same else left[1], 0.0 if same else abs(pushed[0])


@jit.scalar
def as_ordered(value):
    """A number that is not negative as an integer that is as large beside others."""
    return float64_bits(value)


@jit.scalar
def from_ordered(bits):
    """The number of such an integer."""
    return float64_from_bits(bits)


@jit.scalar
def deep_slope(left, largest, term, whole, excess):
    """Q·p − q, and excess·p, from the sum of the differences and the largest of their products."""
    nothing = abs(left[0]) <= NOTHING * largest
    value = divide((0.0 if nothing else left[0], 0.0 if nothing else left[1]), whole)
    return add(value, multiply(excess, divide(term, whole)))


@jit.helper
def new_lines(count, classes):
    """Rows of float64, not whole pages apart."""
    return np.empty((count, (classes // PAGE + 1) * PAGE + APART))[:, :classes]


@jit.helper
def all_differences(j, high, low, mass, mass_low, left, left_low):
    """Σ_i (q_i·e_j − q_j·e_i), and the largest product in it."""
    here, mass_here = (high[j], low[j]), (mass[j], mass_low[j])
    largest = 0.0
    for i in range(high.size):
        difference = difference_of_classes(here, mass_here, (high[i], low[i]), (mass[i], mass_low[i]))
        left[i], left_low[i] = difference[0], difference[1]
        largest = difference[2] if difference[2] > largest else largest
    return add(long_sum(left), long_sum(left_low)), largest


@jit.helper
def _refine_deep(x, high, low, whole, excess, coefficient, mass, mass_low, deep, gradient, wide):
    """Elements that want the sum of differences: one for each logit with its mass."""
    lines = new_lines(2, x.size)
    for j in range(x.size):
        if not deep[j]:
            continue
        left, largest = all_differences(j, high, low, mass, mass_low, lines[0], lines[1])
        value = kept(scaled(coefficient, deep_slope(left, largest, (high[j], low[j]), whole, excess)), wide)
        for i in range(j, x.size):
            if deep[i] and x[i] == x[j] and mass[i] == mass[j] and mass_low[i] == mass_low[j]:
                deep[i] = False
                gradient[i] = value


@jit.helper
def _accurate_terms(x, maximum, high, low):
    for i in range(x.size):
        high[i], low[i] = accurate_term(x[i], maximum)


@jit.helper
def refine(x, split, excess, coefficient, mass, mass_low, gradient, wide):
    """Compute a row's gradient again, from its masses; what is pushed is Q and an excess. All rows are float64."""
    lines = new_lines(2, x.size)
    high, low = lines[0], lines[1]
    _accurate_terms(x, split.maximum, high, low)
    whole = add(long_sum(high), long_sum(low))
    total = add(long_sum(mass), long_sum(mass_low))
    deep, any_deep = np.empty(x.size, np.bool_), False
    for i in range(x.size):
        value, deep[i] = accurate_slope((high[i], low[i]), whole, total, excess, (mass[i], mass_low[i]))
        any_deep |= deep[i]
        gradient[i] = kept(scaled(coefficient, value), wide)
    if any_deep:
        _refine_deep(x, high, low, whole, excess, coefficient, mass, mass_low, deep, gradient, wide)
