"""The softmax of a row, split into one class and the rest.

The split is what makes confident rows exact. Let k be a class of the row, and the others' terms be relative to their
own largest logit m':

    S = Σ_{j≠k} e^(x_j − m'),    d = x_k − m',    Z = S + e^d

    p_j = e^(x_j − m') / Z,    p_k = e^d / Z,    1 − p_k = S / Z,    −log p_k = log Z − d

For d > 0 the same with both sides multiplied by e^−d, so that nothing overflows and nothing cancels:

    y = S·e^−d,    −log p_k = log1p(y),    1 − p_k = y / (1 + y)

The naive p_k − 1 and log Z − x_k lose every digit when p_k is near 1; S has a maximum, and a grid, of its own and loses
none. Only a class with p_k > 1/2 needs this, so k is the label where there is one, else the largest logit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.softmax.refine import is_close, is_near
from refloss.numerics.bits import fma
from refloss.numerics.exponential import TINY, exp_difference, exp_pair, log_pair, scale
from refloss.numerics.formats import (
    before_storing,
    from_ordinal,
    infinity_bits,
    lowest_ordinal,
    magnitude_bits,
    ordinal,
    store,
    store_pair,
    widen,
)
from refloss.numerics.pairs import (
    add,
    divide,
    fast_two_sum,
    multiply,
    negate,
    pair,
    scaled,
    times,
    two_product,
    two_sum,
)
from refloss.numerics.sums import grid_bits, grid_total

# A logit farther than this from the other side's largest leaves 0 of the smaller side, also of a sum of MAX_TERMS
# exponentials: 2^26·e^−800 < 2^-1075.
FAR = 800.0


class Split(NamedTuple):
    """A row's softmax; the pairs are double-double numbers."""

    defined: bool  # no NaN, no +inf, at least one finite logit
    maximum: float
    total: tuple[float, float]  # Σ_j e^(x_j − maximum), all classes
    log_total: tuple[float, float]  # lse − maximum
    nll: tuple[float, float]  # −log p of the split class
    term: tuple[float, float]  # p_j / exponentials[j] for the others
    share: tuple[float, float]  # p of the split class
    rest: tuple[float, float]  # 1 − share


@jit.scalar
def scan(x, highest, largest):
    """The highest ordinal and the largest magnitude of x, starting from given ones."""
    for i in range(x.size):
        here = ordinal(x[i])
        highest = here if here > highest else highest
        size = magnitude_bits(x[i])
        largest = size if size > largest else largest
    return highest, largest


@jit.helper
def highest_excluding(x, excluded):
    """The largest element but for one index, and whether no element at all is NaN or +inf."""
    start = lowest_ordinal(x)
    highest, largest = scan(x[: max(excluded, 0)], start, infinity_bits(x))
    highest, largest = scan(x[excluded + 1 :], highest, largest)
    overall, largest = scan(x[max(excluded, 0) : excluded + 1], highest, largest)
    sound = largest == infinity_bits(x) and overall < infinity_bits(x)
    return widen(from_ordinal(highest, x)), sound


@jit.helper
def find(x, value):
    """The first index of a value, or -1."""
    for i in range(x.size):
        if widen(x[i]) == value:
            return i
    return -1


@jit.scalar
def _exponentials(x, reference, terms):
    """e^(x − reference) into terms; the sums of their bits on the grids."""
    coarse = 0
    fine = 0
    for i in range(x.size):
        term = exp_difference(widen(x[i]), reference)
        terms[i] = term
        coarse_bits, fine_bits = grid_bits(term)
        coarse += coarse_bits
        fine += fine_bits
    return coarse, fine


@jit.helper
def exponentials_excluding(x, excluded, reference, terms):
    """Σ e^(x_j − reference) over all j but one, as a pair; the terms are kept, 0 at the one."""
    if reference == -np.inf:
        terms[:] = 0.0
        return 0.0, 0.0
    before, after = max(excluded, 0), excluded + 1
    coarse, fine = _exponentials(x[:before], reference, terms[:before])
    more_coarse, more_fine = _exponentials(x[after:], reference, terms[after:])
    if excluded >= 0:
        terms[excluded] = 0.0
    return grid_total(coarse + more_coarse, fine + more_fine, x.size - (after - before))


@jit.scalar
def undefined_split(sound, maximum):
    """The split of a row with NaN or +inf, or with nothing but −inf."""
    none, undefined = pair(0.0), pair(np.nan)
    lse = maximum if sound else np.nan
    return Split(False, lse, undefined, none, undefined, undefined, undefined, undefined)


@jit.scalar
def _scaled(value, n):
    return scale(value[0], n), scale(value[1], n)


@jit.scalar
def _either(condition, a, b):
    return (a[0] if condition else b[0]), (a[1] if condition else b[1])


@jit.scalar
def split_class(logit, reference, others):
    """The split for a class with a logit, from the others' maximum and sum; one of the two logits must be finite.

    Without branches, so that it serves one row as well as a vector of them.
    """
    one = pair(1.0)
    above = logit > reference
    larger = logit if above else reference
    smaller = reference if above else logit
    far = smaller < larger - FAR
    distance, distance_low = two_sum(larger, -smaller)
    leading, tail, n = exp_pair(-FAR if far else -distance, 0.0 if far else -distance_low)
    # The smaller side relative to the larger one: the others' sum if the class is above them, else the class itself.
    ratio = _scaled(multiply(_either(above, others, one), (leading, tail)), n)
    total = add(_either(above, one, others), ratio)
    log_total = log_pair(total[0], total[1])
    tiny = (ratio[0], fma(-0.5 * ratio[0], ratio[0], ratio[1]))
    log_total = _either(above and ratio[0] < TINY, tiny, log_total)
    nll = _either(above, log_total, add(log_total, (distance, distance_low)))
    of_larger = divide(one, total)
    of_smaller = _scaled(divide((leading, tail), total), n)
    rest = divide(_either(above, ratio, others), total)
    term, share = _either(above, of_smaller, of_larger), _either(above, of_larger, of_smaller)
    return Split(True, larger, total, log_total, nll, term, share, rest)


@jit.helper
def split_softmax(x, k, terms):
    """The softmax of a row, split into class k (or none, for k = -1) and the rest; terms receives the exponentials."""
    reference, sound = highest_excluding(x, k)
    logit = widen(x[k]) if k >= 0 else -np.inf
    maximum = max(reference, logit)
    if not sound or maximum == -np.inf:
        return undefined_split(sound, maximum)
    return split_class(logit, reference, exponentials_excluding(x, k, reference, terms))


@jit.scalar
def difference(term, factor, subtracted):
    """factor·term − subtracted for pairs, normalised."""
    product, product_low = two_product(term, factor[0])
    high, low = two_sum(product, -subtracted[0])
    low += fma(term, factor[1], product_low) - subtracted[1]
    return fast_two_sum(high, low if abs(low) < np.inf else 0.0)


@jit.scalar
def slope_of_split(split, pushed, mass, others, excess):
    """pushed·p − q of the split class, where pushed is Q and an excess, and what it is close to 0 beside.

    A sure class is pushed by the others' masses and pulled by the others' probabilities: its own mass is no part of it.
    """
    sure = split.share[0] > 0.5
    push = multiply(_either(sure, others, pushed), split.share)
    pull = multiply(mass, _either(sure, split.rest, pair(1.0)))
    slope = add(push, negate(pull))
    slope = add(slope, _either(sure, multiply(excess, split.share), pair(0.0)))
    return slope, max(abs(push[0]), abs(pull[0])) if sure else abs(mass[0])


@jit.scalar
def store_scaled(terms, factor, gradient):
    """gradient_j = factor·terms_j, rounded once; factor is normalised.

    A term between 0 and 1 is no rational number, so that its multiples keep away from ties; 1 may be on one.
    """
    at_one = before_storing(gradient, factor)
    for i in range(terms.size):
        value = times(terms[i], factor)
        store(gradient, i, at_one if terms[i] == 1.0 else value)


@jit.scalar
def store_difference(terms, factor, weight, uniform, coefficient, gradient):
    """gradient_j = coefficient·(factor·terms_j − uniform·weight_j); how many of them are close to 0, and near it."""
    close, near = 0, 0
    for i in range(terms.size):
        subtracted = multiply(uniform, pair(weight[i]))
        value = difference(terms[i], factor, subtracted)
        close += 1 if is_close(value[0], subtracted[0]) else 0
        near += 1 if is_near(value[0], subtracted[0]) else 0
        store_pair(gradient, i, scaled(coefficient, value))
    return close, near
