"""Distances between vectors, ‖x − y + ε‖_p, and their slopes: scalars and helpers of triplet_margin.

With d = x − y + ε, exact as a pair, and N = ‖d‖_p,

    p = 1: N = Σ |d|,  s = sign d        p = ∞: N = max |d|,  s = sign(d)/n where |d| = N, n times, else 0
    p = 2: N = √Σ d²,  s = d/N           else:  N = (Σ |d|^p)^(1/p),  s = sign(d)·(|d|/N)^(p − 1)

s = 0 where N = 0, and where d = 0. Powers are e^(p·log |d|), with logarithms relative to a power of two near the
largest |d| so that none of them is lost; they are good to some 2^-88. NaN and infinities come out as torch's do.
"""

from __future__ import annotations

import numpy as np

from refloss import jit
from refloss.kernels.vectors.loop import total_of
from refloss.numerics.accurate import exp_alone, log_accurate
from refloss.numerics.exponential import scale
from refloss.numerics.pairs import add, divide, fast_two_sum, multiply, negate, pair, two_sum
from refloss.numerics.roots import root
from refloss.numerics.sums import exponent_of

# Exponents at which squares of elements leave pairs behind: they are scaled there.
_FAR = 300
# Ends of the exponential's range.
_LEAST, _LARGEST = -745.0, 709.0
# Lines of a distance: d, which becomes the slopes, as pairs; and those that all of them share.
_HIGH, _LOW = 0, 1
_LINES = 2


@jit.scalar
def _difference(x, y, eps):
    """x − y + ε, a normalised pair."""
    plain = (x - y) + eps
    first, first_low = two_sum(x, -y)
    second, second_low = two_sum(first, eps)
    rest, rest_low = two_sum(first_low, second_low)
    high, low = two_sum(second, rest)
    high, low = fast_two_sum(high, low + rest_low)
    ordinary = abs(plain) < np.inf and low == low
    return high if ordinary else plain, low if ordinary else 0.0


@jit.scalar
def _magnitude(a):
    negative = a[0] < 0.0
    return -a[0] if negative else a[0], -a[1] if negative else a[1]


@jit.scalar
def _sign(x):
    """−1, 0 or 1; 0 of NaN."""
    return 1.0 if x > 0.0 else (-1.0 if x < 0.0 else 0.0)


@jit.helper
def _sum_of_magnitudes(high, low, term, term_low):
    """‖d‖_1; slopes in place of d."""
    for i in range(high.size):
        term[i], term_low[i] = _magnitude((high[i], low[i]))
        high[i], low[i] = _sign(high[i]), 0.0
    return total_of(term, term_low)


@jit.helper
def _largest_magnitude(high, low):
    """‖d‖_∞; slopes in place of d."""
    largest, count, undefined = pair(0.0), 0.0, False
    for i in range(high.size):
        size = _magnitude((high[i], low[i]))
        undefined |= size[0] != size[0]
        same = size[0] == largest[0] and size[1] == largest[1]
        larger = size[0] > largest[0] or (size[0] == largest[0] and size[1] > largest[1])
        count = 1.0 if larger else (count + 1.0 if same else count)
        largest = (size[0] if larger else largest[0]), (size[1] if larger else largest[1])
    share = divide(pair(1.0), pair(max(count, 1.0)))
    for i in range(high.size):
        size = _magnitude((high[i], low[i]))
        sign = _sign(high[i])
        sign = sign if size[0] == largest[0] and size[1] == largest[1] and not undefined else 0.0
        high[i], low[i] = sign * share[0], sign * share[1]
    return pair(np.nan) if undefined else largest


@jit.helper
def _exponent(high):
    """That of the largest; 1025 where one is not finite."""
    exponent = -1022
    for i in range(high.size):
        exponent = max(exponent, exponent_of(high[i]))
    return exponent


@jit.helper
def _euclidean(high, low, term, term_low):
    """‖d‖_2; slopes in place of d."""
    exponent = _exponent(high)
    exponent = exponent if abs(exponent) > _FAR and exponent < 1025 else 0
    for i in range(high.size):
        scaled = scale(high[i], -exponent), scale(low[i], -exponent)
        term[i], term_low[i] = multiply(scaled, scaled)
    norm = root(total_of(term, term_low))
    for i in range(high.size):
        slope = divide((scale(high[i], -exponent), scale(low[i], -exponent)), norm)
        high[i], low[i] = slope if norm[0] != 0.0 else (0.0, 0.0)
    return scale(norm[0], exponent), scale(norm[1], exponent)


@jit.helper
def _exp(x):
    """e^x of a pair, within the range of float64."""
    if x[0] > _LARGEST:
        return pair(np.inf)
    return exp_alone(x[0], x[1]) if x[0] >= _LEAST else pair(0.0)


@jit.helper
def _undefined_power(high, low, p):
    """The norm and the slopes where an element is infinite or NaN."""
    norm = np.inf
    for i in range(high.size):
        norm = norm if high[i] == high[i] else np.nan
    # What torch has: powers of an infinite norm times those of the elements.
    for i in range(high.size):
        slope = 0.0 if p > 1.0 else _sign(high[i]) * np.inf
        high[i], low[i] = slope if abs(high[i]) < norm else np.nan, 0.0
    return pair(norm)


@jit.helper
def _power(high, low, p, lines):
    """‖d‖_p; slopes in place of d. lines: terms and logarithms, as pairs."""
    exponent = _exponent(high)
    if exponent >= 1025:
        return _undefined_power(high, low, p)
    term, term_low, log, log_low = lines[0], lines[1], lines[2], lines[3]
    for i in range(high.size):
        size = _magnitude((scale(high[i], -exponent), scale(low[i], -exponent)))
        logarithm, power = pair(0.0), pair(0.0)
        if size[0] > 0.0:
            logarithm = log_accurate(size[0], size[1])
            power = _exp(multiply(pair(p), logarithm))
        log[i], log_low[i] = logarithm
        term[i], term_low[i] = power
    total = total_of(term, term_low)
    if total[0] == 0.0:
        for i in range(high.size):
            high[i], low[i] = 0.0, 0.0
        return pair(0.0)
    of_norm = divide(log_accurate(total[0], total[1]), pair(p))
    for i in range(high.size):
        slope = pair(0.0)
        if high[i] != 0.0:
            slope = _exp(multiply(add(pair(p), pair(-1.0)), add((log[i], log_low[i]), negate(of_norm))))
        negative = high[i] < 0.0
        high[i], low[i] = -slope[0] if negative else slope[0], -slope[1] if negative else slope[1]
    norm = _exp(of_norm)
    return scale(norm[0], exponent), scale(norm[1], exponent)


@jit.helper
def distance(x, y, eps, p, slopes, lines):
    """‖x − y + ε‖_p, a pair; its slopes in x, pairs, into two lines. lines: four that are its own meanwhile."""
    high, low = slopes[_HIGH], slopes[_LOW]
    for i in range(x.size):
        high[i], low[i] = _difference(x[i], y[i], eps)
    if p == 1.0:
        return _sum_of_magnitudes(high, low, lines[0], lines[1])
    if p == 2.0:
        return _euclidean(high, low, lines[0], lines[1])
    if p == np.inf:
        return _largest_magnitude(high, low)
    return _power(high, low, p, lines)
