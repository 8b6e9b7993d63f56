"""Rows of logits that are pairs, and the logit chain, against mpmath."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import mpmath
import numba
import numpy as np
import pytest

from refloss.kernels.logits.chain import Chain, chained
from refloss.kernels.logits.row import (
    WIDTH,
    Row,
    distance_sum,
    gradient_of_class,
    label_masses,
    load_row,
    mass_of_label,
    push_of,
    save_row,
    softmax_of,
    weights_but_top,
)
from refloss.kernels.softmax.loop import Terms
from refloss.numerics.exact import as_pair, exact_sum

BITS = 1500
BEYOND_DOUBT = mpmath.mpf(2) ** -95
COEFFICIENT, SLOPE = (0.3, 1e-18), (0.7, -1e-18)


@numba.njit(error_model="numpy")
def _chain(z, low, chain, results):
    for i in range(z.size):
        value, slope = chained((z[i], low[i]), chain)
        results[0, i], results[1, i] = value
        results[2, i], results[3, i] = slope


@numba.njit(error_model="numpy")
def _row(high, low, label, of_targets, z_coefficient, statistics, gradient, gradient_low):
    lines = np.empty((4, high.size))
    softmax = softmax_of(high, low, lines[0], lines[1])
    distances = distance_sum(high, low, of_targets.weight, softmax.maximum, lines[2], lines[3])
    others = weights_but_top(softmax, of_targets, lines[2])
    masses = label_masses(softmax, label, (high[label], low[label]), distances, others, of_targets)
    save_row(statistics, Row(softmax, masses, push_of(softmax, COEFFICIENT, z_coefficient)))
    row = load_row(statistics)
    for j in range(high.size):
        mass = mass_of_label(j, label, of_targets)
        gradient[j], gradient_low[j] = gradient_of_class(row, j, (high[j], low[j]), mass, SLOPE)


def _number(high: float, low: float) -> Any:
    return mpmath.mpf(float(high)) + mpmath.mpf(float(low))


def _of_targets(weight: np.ndarray, smoothing: float) -> Terms:
    shares = as_pair(1 - Fraction(smoothing)), as_pair(Fraction(smoothing) / weight.size)
    total = as_pair(exact_sum(weight))
    return Terms((0.0,), weight, total, *shares, smoothing > 0.0, True, np.ones(1), (1.0, 0.0), -100)


@pytest.mark.parametrize(
    "chain", [Chain(1.0, 30.0, 1.0), Chain(0.0625, 15.0, 0.7), Chain(-3.0, 2.0, 1.3), Chain(1.7, np.inf, 0.9)]
)
def test_the_chain_is_exact_beyond_doubt(chain: Chain) -> None:
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(size=300) * 10.0 ** rng.integers(-8, 4, 300), [0.0, 1e-300, 9.1 * 30, -280.0]])
    low = z * 2.0**-54 * rng.uniform(-1, 1, z.size)
    results = np.empty((4, z.size))
    _chain(z, low, chain, results)
    with mpmath.workprec(BITS):
        for i in range(z.size):
            slope = mpmath.mpf(chain.scale) / mpmath.mpf(chain.temperature)
            y = _number(z[i], low[i]) * slope
            if chain.cap < np.inf:
                v = _number(z[i], low[i]) * mpmath.mpf(chain.scale) / chain.cap
                y = chain.cap * mpmath.tanh(v) / mpmath.mpf(chain.temperature)
                slope *= mpmath.sech(v) ** 2
            if abs(y) > 1e-270:
                assert abs(_number(*results[:2, i]) - y) < BEYOND_DOUBT * abs(y)
            # Below, a low part is subnormal.
            if abs(slope) > 1e-270:
                assert abs(_number(*results[2:, i]) - slope) < BEYOND_DOUBT * abs(slope)


def test_the_chain_at_infinity_is_as_in_torch() -> None:
    results = np.empty((4, 3))
    z = np.array([np.inf, -np.inf, np.nan])
    _chain(z, np.zeros(3), Chain(1.0, 30.0, 1.0), results)
    np.testing.assert_array_equal(results[0], [30.0, -30.0, np.nan])
    np.testing.assert_array_equal(results[2], [0.0, 0.0, np.nan])
    _chain(z, np.zeros(3), Chain(-1.0, np.inf, 2.0), results)
    np.testing.assert_array_equal(results[0], [-np.inf, np.inf, np.nan])


def _draw(case: int) -> tuple[np.ndarray, np.ndarray, int, np.ndarray, float]:
    """Flat, spread, confident and equal logits, some of them −inf."""
    rng = np.random.default_rng(case)
    size = int(rng.integers(1, 40))
    high = rng.normal(size=size) * 10.0 ** rng.integers(-3, 3)
    high[0] += rng.choice([0.0, 20.0, 100.0, 600.0])
    high = np.full(size, 1.5) if case % 7 == 0 else high
    low = np.zeros(size) if case % 7 == 0 else high * 2.0**-54 * rng.uniform(-1, 1, size)
    if case % 5 == 0 and size > 2:
        high[2], low[2] = -np.inf, 0.0
    weight = np.ones(size) if case % 2 else rng.uniform(0.5, 3.0, size)
    weight[0] = 1e30 if case % 11 == 0 else weight[0]
    label = int(rng.integers(0, size)) if case % 4 else 0
    label = 0 if high[label] == -np.inf else label
    return high, low, label, weight, 0.0 if case % 5 == 0 else (0.0, 0.1, 1.0)[case % 3]


@pytest.mark.parametrize("case", range(60))
def test_a_row_is_exact_beyond_doubt(case: int) -> None:
    high, low, label, weight, smoothing = _draw(case)
    z_coefficient = (1e-2 if case % 2 else 0.0, 0.0)
    statistics, gradient = np.empty(WIDTH), np.empty((2, high.size))
    of_targets = _of_targets(weight, smoothing)
    _row(high, low, label, of_targets, z_coefficient, statistics, gradient[0], gradient[1])
    with mpmath.workprec(BITS):
        y = [_number(*parts) for parts in zip(high, low, strict=True)]
        terms = [mpmath.exp(value) for value in y]
        lse = mpmath.log(mpmath.fsum(terms))
        epsilon = mpmath.mpf(smoothing)
        mass = [mpmath.mpf(w) * ((1 - epsilon) * (j == label) + epsilon / high.size) for j, w in enumerate(weight)]
        total = mpmath.fsum(mass)
        loss = mpmath.fsum(q * (lse - value) for q, value in zip(mass, y, strict=True) if q)
        assert abs(_number(*statistics[14:16]) - loss) <= max(2.0**-90 * loss, mpmath.mpf(2) ** -1070)
        for j in range(high.size):
            p = terms[j] / mpmath.exp(lse)
            pushed = _number(*COEFFICIENT) * (total * p - mass[j]) + 2 * _number(*z_coefficient) * lse * p
            exact = pushed * _number(*SLOPE)
            error = abs(_number(*gradient[:, j]) - exact)
            assert error <= max(BEYOND_DOUBT * (abs(exact) + 2.0**-20 * abs(mass[j])), mpmath.mpf(2) ** -1070)


def test_a_row_does_not_depend_on_the_order_of_its_classes() -> None:
    high, low, label, weight, _ = _draw(3)
    of_targets, order = _of_targets(weight, 0.1), np.random.default_rng(1).permutation(high.size)
    results = []
    for turn in (np.arange(high.size), order):
        statistics, gradient = np.empty(WIDTH), np.empty((2, high.size))
        moved = of_targets._replace(weight=weight[turn])
        where = int(np.flatnonzero(turn == label)[0])
        _row(high[turn], low[turn], where, moved, (0.01, 0.0), statistics, gradient[0], gradient[1])
        results.append((np.delete(statistics, 1), gradient))
    assert results[0][0].tobytes() == results[1][0].tobytes()
    assert results[0][1][:, order].tobytes() == results[1][1].tobytes()
