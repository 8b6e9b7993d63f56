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
from refloss.kernels.softmax.refine import is_close, is_near, kept
from refloss.numerics.bits import fma
from refloss.numerics.exponential import LEAST_NORMAL, TINY, exp_difference, exp_normal, exp_pair, log_pair, scale
from refloss.numerics.fetch import fetch
from refloss.numerics.formats import (
    before_storing,
    below_magnitude,
    from_ordinal,
    infinity_bits,
    is_tame,
    lowest_ordinal,
    magnitude_bits,
    ordinal,
    store,
    store_tame,
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
# Exponentials that are computed between two rounds of fetching: some lines of memory at a time are on their way.
CHUNK = 256


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


class Extent(NamedTuple):
    """The largest of a row's logits but for one, and what is known of the others."""

    reference: float
    sound: bool  # no NaN, no +inf in the whole row
    plain: bool  # differences from the reference are float64, their exponentials normal numbers
    span: float  # from the smallest to the largest


@jit.scalar
def scan(x, highest, largest):
    """The highest ordinal and the largest magnitude of x, starting from given ones."""
    for i in range(x.size):
        here = ordinal(x[i])
        highest = here if here > highest else highest
        size = magnitude_bits(x[i])
        largest = size if size > largest else largest
    return highest, largest


@jit.scalar
def _scan_ends(x, highest, lowest, least):
    """The highest and the lowest ordinal of x, and the bits of the least magnitude but 0, less one."""
    for i in range(x.size):
        here = ordinal(x[i])
        highest = here if here > highest else highest
        lowest = here if here < lowest else lowest
        size = below_magnitude(x[i])
        least = size if size < least else least
    return highest, lowest, least


@jit.helper
def extent_excluding(x, excluded, headroom):
    """The extent of a row but for one class; headroom is 2^(53 − p) for logits that have p bits.

    The unit in the last place of the least magnitude, more than 2^-p of it, is one of every difference, and below 2^53
    of them are a float64.
    """
    highest, lowest, least = lowest_ordinal(x), infinity_bits(x), infinity_bits(x)
    start, stop = 0, max(excluded, 0)
    for _ in range(2):
        highest, lowest, least = _scan_ends(x[start:stop], highest, lowest, least)
        start, stop = excluded + 1, x.size
    overall, largest = scan(x[max(excluded, 0) : excluded + 1], highest, infinity_bits(x))
    # A NaN is above +inf or below −inf.
    sound = largest == infinity_bits(x) and overall < infinity_bits(x) and lowest >= lowest_ordinal(x)
    reference = widen(from_ordinal(highest, x))
    span = reference - widen(from_ordinal(lowest, x))
    plain = span <= min(-LEAST_NORMAL, widen(from_ordinal(least, x)) * headroom)
    return Extent(reference, sound, plain, span)


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


@jit.scalar
def _plain_exponentials(x, reference, terms):
    """The same for a row whose extent is plain."""
    coarse = 0
    fine = 0
    for i in range(x.size):
        term = exp_normal(widen(x[i]) - reference)
        terms[i] = term
        coarse_bits, fine_bits = grid_bits(term)
        coarse += coarse_bits
        fine += fine_bits
    return coarse, fine


@jit.helper
def exponentials_excluding(x, excluded, extent, terms, coming, gradient):
    """Σ e^(x_j − reference) over all j but one, as a pair; the terms are kept, 0 at the one.

    What is read and written next, the coming row and the gradient, is fetched meanwhile.
    """
    if extent.reference == -np.inf:
        terms[:] = 0.0
        return 0.0, 0.0
    coarse, fine, start = 0, 0, 0
    while start < x.size:
        if start == excluded:
            terms[start] = 0.0
            start += 1
            continue
        stop = min(start + CHUNK, excluded if start < excluded else x.size)
        fetch(coming, start, stop, False)
        fetch(gradient, start, stop, True)
        if extent.plain:
            bits = _plain_exponentials(x[start:stop], extent.reference, terms[start:stop])
        else:
            bits = _exponentials(x[start:stop], extent.reference, terms[start:stop])
        coarse += bits[0]
        fine += bits[1]
        start = stop
    return grid_total(coarse, fine, x.size - (1 if excluded >= 0 else 0))


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
def split_softmax(x, k, headroom, terms, coming, gradient):
    """The softmax of a row, split into class k (or none, for k = -1) and the rest; terms receives the exponentials."""
    extent = extent_excluding(x, k, headroom)
    logit = widen(x[k]) if k >= 0 else -np.inf
    maximum = max(extent.reference, logit)
    if not extent.sound or maximum == -np.inf:
        return undefined_split(extent.sound, maximum), extent
    others = exponentials_excluding(x, k, extent, terms, coming, gradient)
    return split_class(logit, extent.reference, others), extent


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


@jit.helper
def store_scaled(terms, extent, factor, gradient):
    """gradient_j = factor·terms_j, rounded once; factor is normalised.

    A term between 0 and 1 is no rational number, so that its multiples keep away from ties; 1 may be on one.
    """
    at_one = before_storing(gradient, factor)
    # Half of what is least, for what roundings take from it.
    least = 0.5 * abs(factor[0]) * exp_normal(-extent.span) if extent.plain else 0.0
    if is_tame(gradient, least, abs(factor[0])):
        for i in range(terms.size):
            value = times(terms[i], factor)
            store_tame(gradient, i, at_one if terms[i] == 1.0 else value)
        return
    for i in range(terms.size):
        value = times(terms[i], factor)
        store(gradient, i, at_one if terms[i] == 1.0 else value)


@jit.scalar
def store_difference(terms, factor, weight, uniform, coefficient, gradient, wide):
    """gradient_j = coefficient·(factor·terms_j − uniform·weight_j); how many of them are close to 0, and near it.

    The gradient is in float64, to be rounded once more if it is not to be wide.
    """
    close, near = 0, 0
    for i in range(terms.size):
        subtracted = multiply(uniform, pair(weight[i]))
        value = difference(terms[i], factor, subtracted)
        close += 1 if is_close(value[0], subtracted[0]) else 0
        near += 1 if is_near(value[0], subtracted[0]) else 0
        gradient[i] = kept(scaled(coefficient, value), wide)
    return close, near
