"""Gradient elements Q·p_j − q_j of which little is left: probabilities that agree with their target.

In float64 such an element keeps 53 bits less those that cancel, too few for a correctly rounded float32 once p and q
agree in some 18 bits: soft labels near their optimum. These elements are computed again with exponentials and products
as pairs, good to some 2^-90. So is the sum of the exponentials, in rows of up to ACCURATE_CLASSES; in longer ones the
errors of the float64 exponentials average out in it.
"""

from __future__ import annotations

import numpy as np

from refloss import jit
from refloss.numerics.accurate import exp_accurate
from refloss.numerics.exponential import UNDERFLOW
from refloss.numerics.formats import store, widen
from refloss.numerics.pairs import add, divide, multiply, negate, pair, rounded, two_sum
from refloss.numerics.sums import row_sum

ACCURATE_CLASSES = 4096
# Elements with less than this share of q_j left are computed again. p_j has a relative error of 2^-53 from its own
# exponential and as much from the sum, at most (as measured): 2·2^-53/2^-18 = 2^-34 of what is left, 0.001 float32 ulp.
CLOSE = 2.0**-18
# A probability closer to 1 than this is known from the sum of the others, to better than these pairs know it: an error
# of 2.4·2^-53 of a sum that is below 2^-40 is below NOTHING.
SURE = 2.0**-40
# What is below the errors of pairs is 0: equal logits with equal targets. Of a sum of ACCURATE_CLASSES exponentials the
# parts below 2^-31 are each added to 2^-72 of the largest: 4096·2^-103 = 2^-91, and pairs are good to 2^-98.
NOTHING = 2.0**-90


@jit.helper
def accurate_term(logit, maximum):
    """e^(logit − maximum) as a pair."""
    high, low = two_sum(logit, -maximum)
    return exp_accurate(high, low) if high > UNDERFLOW else pair(0.0)


@jit.scalar
def split_term(high):
    """A number in [0, 1] as its first bits and the rest: thirty at a time, so that the grids of a sum take them all."""
    top = (high + 1.5 * 2.0**22) - 1.5 * 2.0**22
    return top, high - top


@jit.helper
def _total(x, maximum):
    """Σ e^(x_j − maximum), a pair."""
    high, low = np.empty(x.size), np.empty(x.size)
    rest = np.empty(x.size)
    for i in range(x.size):
        term, low[i] = accurate_term(widen(x[i]), maximum)
        high[i], rest[i] = split_term(term)
    return add(row_sum(high), add(row_sum(rest), row_sum(low)))


@jit.helper
def is_close(value, subtracted):
    """Whether too little of a difference is left."""
    return abs(value) < CLOSE * abs(subtracted)


@jit.helper
def refined(logit, maximum, whole, total, coefficient, subtracted):
    """Whether total·p − subtracted is to be computed again, and coefficient times it; whole is Σ e^(x_j − maximum)."""
    share = divide(accurate_term(logit, maximum), whole)
    value = add(multiply(total, share), negate(subtracted))
    nothing = abs(value[0]) < NOTHING * abs(subtracted[0])
    wanted = is_close(value[0], subtracted[0]) and share[0] < 1.0 - SURE
    return wanted, 0.0 if nothing else rounded(multiply(coefficient, value))


@jit.helper
def refine(x, split, total, coefficient, mass, mass_low, gradient):
    """Compute the elements of a row's gradient again where Q·p_j and q_j = mass_j are close; total is Q."""
    whole = _total(x, split.maximum) if x.size <= ACCURATE_CLASSES else split.total
    for i in range(x.size):
        wanted, value = refined(widen(x[i]), split.maximum, whole, total, coefficient, (mass[i], mass_low[i]))
        if wanted:
            store(gradient, i, value)
