"""Numbers with an exponent of their own against mpmath, and loops over them."""

from __future__ import annotations

import re

import mpmath
import numba
import numpy as np
import pytest

from refloss.numerics import extended

mpmath.mp.prec = 400
BEYOND_DOUBT = mpmath.mpf(2) ** -100


@numba.njit
def _exponentials(logarithms, lows, high, low, exponent):
    for i in range(logarithms.size):
        high[i], low[i], exponent[i] = extended.exponential(logarithms[i], lows[i])


@numba.njit
def _probabilities(logits, lse, lse_low, high, low, exponent):
    for i in range(logits.size):
        high[i], low[i], exponent[i] = extended.probability(logits[i], (lse, lse_low))


@numba.njit
def _sums(a, b, n, high, low, exponent):
    for i in range(high.size):
        high[i], low[i], exponent[i] = extended.add((a[0, i], a[1, i], n[0, i]), (b[0, i], b[1, i], n[1, i]))


@numba.njit
def _products(a, b, n, high, low, exponent):
    for i in range(high.size):
        high[i], low[i], exponent[i] = extended.multiply((a[0, i], a[1, i], n[0, i]), (b[0, i], b[1, i], n[1, i]))


@numba.njit
def _ratios(a, b, n, high, low, exponent):
    for i in range(high.size):
        high[i], low[i], exponent[i] = extended.ratio((a[0, i], a[1, i], n[0, i]), (b[0, i], b[1, i], n[1, i]))


@numba.njit
def _sums_of_products(a, b, n, high, low, exponent):
    """Of products that are not normalised."""
    for i in range(high.size):
        x, y = (a[0, i], a[1, i], n[0, i]), (b[0, i], b[1, i], n[1, i])
        high[i], low[i], exponent[i] = extended.add(extended.product(x, x), extended.product(x, y))


@numba.njit
def _logarithms(high, low, exponent, results):
    for i in range(high.size):
        results[0, i], results[1, i] = extended.logarithm((high[i], low[i], exponent[i]))


@numba.njit
def _pairs_there_and_back(high, low, results):
    for i in range(high.size):
        a = extended.from_pair((high[i], low[i]))
        results[0, i], results[1, i] = extended.as_pair(a)
        results[2, i] = a[0]


def _empty(size):
    return np.empty(size), np.empty(size), np.empty(size, np.int64)


def _exact(high, low, exponent):
    return (mpmath.mpf(float(high)) + mpmath.mpf(float(low))) * mpmath.mpf(2) ** int(exponent)


def _numbers(seed, size=200):
    """Significands from 1 to 2 with low parts, and exponents that are equal, near or far apart; every tenth is 0."""
    generator = np.random.default_rng(seed)
    parts = np.stack([generator.uniform(1.0, 2.0, size), generator.uniform(-1.0, 1.0, size) * 2.0**-54])
    exponents = generator.choice([0, 1, -3, 60, -110, 2000, -(10**9)], size).astype(np.int64)
    parts[:, ::10], exponents[::10] = 0.0, extended.LEAST
    return parts, exponents


@pytest.mark.parametrize(
    ("loop", "operation"),
    [
        (_sums, lambda a, b: a + b),
        (_products, lambda a, b: a * b),
        (_ratios, lambda a, b: a / b),
        (_sums_of_products, lambda a, b: a * a + a * b),
    ],
)
def test_operations(loop, operation):
    (a, n), (b, m) = _numbers(1), _numbers(2)
    b = np.roll(b, 1, axis=1) if loop is not _ratios else np.where(b == 0.0, [[1.0], [0.0]], b)
    m = np.roll(m, 1) if loop is not _ratios else np.where(m == extended.LEAST, 0, m)
    results = _empty(n.size)
    loop(a, b, np.stack([n, m]), *results)
    for i in range(n.size):
        first = _exact(a[0, i], a[1, i], n[i]) if a[0, i] else mpmath.mpf(0)
        second = _exact(b[0, i], b[1, i], m[i]) if b[0, i] else mpmath.mpf(0)
        true = operation(first, second)
        if true == 0:
            assert (results[0][i], results[1][i], results[2][i]) == extended.ZERO
        else:
            assert 1.0 <= results[0][i] < 2.0 + 2.0**-50
            assert abs(_exact(*(part[i] for part in results)) / true - 1) < BEYOND_DOUBT


def test_exponentials():
    generator = np.random.default_rng(3)
    high = np.concatenate([generator.uniform(-1e6, 0.0, 100), -(10.0 ** generator.uniform(-30.0, 12.0, 100)), [0.0]])
    low = high * 2.0**-55
    results = _empty(high.size)
    _exponentials(high, low, *results)
    for i in range(high.size):
        true = mpmath.exp(mpmath.mpf(high[i]) + mpmath.mpf(low[i]))
        assert 1.0 <= results[0][i] < 2.0
        assert abs(_exact(*(part[i] for part in results)) / true - 1) < BEYOND_DOUBT


def test_what_is_no_probability():
    results = _empty(4)
    _exponentials(np.array([-np.inf, np.nan, np.inf, -3e38]), np.zeros(4), *results)
    np.testing.assert_array_equal(results[0], [0.0, np.nan, np.nan, 0.0])
    np.testing.assert_array_equal(results[1], 0.0)
    assert results[2][0] == results[2][3] == extended.LEAST
    _probabilities(np.array([-np.inf, np.nan, np.inf, 1.0]), 1.0, 0.0, *results)
    np.testing.assert_array_equal(results[0], [0.0, np.nan, np.nan, 1.0])


def test_probabilities():
    logits = np.random.default_rng(4).normal(0.0, 300.0, 100)
    results = _empty(logits.size)
    _probabilities(logits, 812.3, 3e-14, *results)
    for i, logit in enumerate(logits):
        true = mpmath.exp(mpmath.mpf(logit) - mpmath.mpf(812.3) - mpmath.mpf(3e-14))
        assert abs(_exact(*(part[i] for part in results)) / true - 1) < BEYOND_DOUBT


def test_logarithms():
    parts, exponents = _numbers(5)
    # Next to 1, from both sides.
    parts[:, 1], exponents[1] = (2.0 - 2.0**-52, 2.0**-55), -1
    parts[:, 2], exponents[2] = (1.0, 2.0**-70), 0
    results = np.empty((2, exponents.size))
    _logarithms(*parts, exponents, results)
    for i in range(exponents.size):
        if parts[0, i] == 0.0:
            assert results[0, i] == -np.inf
            continue
        true = mpmath.log(_exact(parts[0, i], parts[1, i], exponents[i]))
        assert abs((mpmath.mpf(results[0, i]) + mpmath.mpf(results[1, i])) / true - 1) < mpmath.mpf(2) ** -96


def test_pairs():
    high = np.array([0.0, 1.0, 1e300, 3e-280, 5e-324, np.nan])
    results = np.empty((3, high.size))
    lows = np.where(np.isnan(high), 0.0, high * 2.0**-55)
    _pairs_there_and_back(high, lows, results)
    np.testing.assert_array_equal(results[0], high)
    np.testing.assert_array_equal(results[1][:4], lows[:4])


@numba.njit
def _recursion(frames, p):
    """A path or another, 1000 times: α ← (α + α)·p."""
    total = extended.ONE
    for _ in range(frames):
        total = extended.multiply(extended.add(total, total), p)
    return total


def test_a_recursion_keeps_eighty_bits():
    p = _empty(1)
    _exponentials(np.array([-7.3]), np.zeros(1), *p)
    found = _recursion(1000, (p[0][0], p[1][0], p[2][0]))
    true = mpmath.exp(mpmath.mpf(-7.3) * 1000) * mpmath.mpf(2) ** 1000
    assert abs(_exact(*found) / true - 1) < mpmath.mpf(2) ** -88


def test_loops_vectorise():
    numbers, exponents, results = np.ones((2, 64)), np.zeros((2, 64), np.int64), _empty(64)
    _sums(numbers, numbers, exponents, *results)
    _products(numbers, numbers, exponents, *results)
    _exponentials(numbers[0], numbers[1], *results)
    for loop in (_sums, _products, _exponentials):
        assembly = "".join(loop.inspect_asm().values())
        # Multiplications of two or more numbers at a time: of x86, or of ARM.
        assert re.search(r"mulpd.*%[yz]mm|fmul.*\.2d", assembly)
