"""Pairs and order-independent sums, against exact rationals."""

import math
from fractions import Fraction

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refloss.numerics import exact, pairs, sums
from tests.compiled import compiled

two_sum, two_product = compiled(pairs.two_sum), compiled(pairs.two_product)
add, multiply, divide = compiled(pairs.add), compiled(pairs.multiply), compiled(pairs.divide)
row_sum, long_sum = compiled(sums.row_sum), compiled(sums.long_sum)

moderate = st.floats(-1e100, 1e100, allow_subnormal=False).filter(lambda value: value == 0 or abs(value) > 1e-100)


def pair_of(high, low):
    return two_sum(high, low * 2.0**-60)


@given(moderate, moderate)
def test_two_sum_and_two_product_lose_nothing(a, b):
    assert sum(map(Fraction, two_sum(a, b))) == Fraction(a) + Fraction(b)
    assert sum(map(Fraction, two_product(a, b))) == Fraction(a) * Fraction(b)


@given(moderate, moderate, moderate, moderate)
def test_pair_arithmetic_is_good_to_a_hundred_bits(a, a_low, b, b_low):
    x, y = pair_of(a, a_low if abs(a_low) <= abs(a) else 0.0), pair_of(b, b_low if abs(b_low) <= abs(b) else 0.0)
    exact_x, exact_y = sum(map(Fraction, x)), sum(map(Fraction, y))

    def close(result, exact, scale):
        return abs(sum(map(Fraction, result)) - exact) <= scale * Fraction(2) ** -100

    assert close(multiply(x, y), exact_x * exact_y, abs(exact_x * exact_y))
    assert close(add(x, y), exact_x + exact_y, abs(exact_x) + abs(exact_y))
    if exact_y:
        assert close(divide(x, y), exact_x / exact_y, abs(exact_x / exact_y))


@pytest.mark.parametrize(
    ("operation", "a", "b", "expected"),
    [
        (add, np.inf, 1.0, np.inf),
        (add, np.inf, -np.inf, np.nan),
        (multiply, np.inf, -2.0, -np.inf),
        (multiply, np.inf, 0.0, np.nan),
        (divide, 1.0, 0.0, np.inf),
        (divide, 1.0, np.inf, 0.0),
        (divide, 0.0, 0.0, np.nan),
    ],
)
def test_pairs_follow_the_float_rules_where_results_are_not_finite(operation, a, b, expected):
    high, low = operation((a, 0.0), (b, 0.0))
    assert np.array_equal(high, expected, equal_nan=True)
    assert low == 0.0


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)))
def test_exact_sum_is_exact(values):
    assert exact.exact_sum(np.array(values, float)) == sum(map(Fraction, values))


@given(st.lists(moderate, min_size=1), st.randoms())
def test_exact_sum_rounds_as_fsum_in_any_order(values, random):
    shuffled = random.sample(values, len(values))
    assert exact.rounded(exact.exact_sum(np.array(shuffled))) == math.fsum(values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], 0.0),
        ([np.inf, 1.0], np.inf),
        ([np.inf, -np.inf], np.nan),
        ([1e308, 1e308, -np.inf], -np.inf),
        ([np.nan], np.nan),
        ([1.7e308, 1.7e308], np.inf),
        ([-1.7e308, -1.7e308], -np.inf),
        ([5e-324, 5e-324], 1e-323),
    ],
)
def test_exact_sum_at_the_edges(values, expected):
    assert np.array_equal(exact.rounded(exact.exact_sum(np.array(values, float))), expected, equal_nan=True)


def test_as_pair_keeps_the_remainder():
    high, low = exact.as_pair(Fraction(1, 3))
    assert abs(Fraction(high) + Fraction(low) - Fraction(1, 3)) < Fraction(2) ** -106


@numba.njit
def _grid_sum(terms):
    coarse = 0
    fine = 0
    for term in terms:
        coarse_bits, fine_bits = sums.grid_bits(term)
        coarse += coarse_bits
        fine += fine_bits
    return sums.grid_total(coarse, fine, terms.size)


@pytest.mark.parametrize("count", [1, 7, 100_000])
def test_grid_sum_of_softmax_terms(count):
    generator = np.random.default_rng(count)
    terms = np.exp(-generator.exponential(10.0, count))
    exact = sum(map(Fraction, terms))
    high, low = _grid_sum(terms)
    assert abs(Fraction(high) + Fraction(low) - exact) <= count * Fraction(2) ** -73
    assert high == float(Fraction(high) + Fraction(low))
    assert _grid_sum(generator.permutation(terms)) == (high, low)


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=60), st.randoms())
def test_row_sum_depends_on_the_terms_alone(values, random):
    exact = sum(map(Fraction, values))
    high, low = row_sum(np.array(values))
    largest = max(abs(Fraction(value)) for value in values)
    # What falls below the smallest subnormal is lost as well.
    allowed = len(values) * (largest * Fraction(2) ** -72 + Fraction(2) ** -1074)
    assert abs(Fraction(high) + Fraction(low) - exact) <= allowed
    assert row_sum(np.array(random.sample(values, len(values)))) == (high, low)


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=60), st.randoms())
def test_long_sum_keeps_what_is_far_below_the_largest(values, random):
    exact = sum(map(Fraction, values))
    high, low = long_sum(np.array(values))
    largest = max(abs(Fraction(value)) for value in values)
    allowed = len(values) * (largest * Fraction(2) ** -104 + Fraction(2) ** -1074)
    assert abs(Fraction(high) + Fraction(low) - exact) <= allowed
    assert long_sum(np.array(random.sample(values, len(values)))) == (high, low)
    assert long_sum(np.array([1.0, 2.0**-100, 3 * 2.0**-105, -1.0])) == (35 * 2.0**-105, 0.0)


@pytest.mark.parametrize("row_sum", [row_sum, long_sum], ids=["row", "long"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [([], 0.0), ([0.0, -0.0], 0.0), ([np.inf, 1.0], np.inf), ([np.inf, -np.inf], np.nan), ([np.nan, 1.0], np.nan)],
)
def test_row_sum_at_the_edges(row_sum, values, expected):
    high, low = row_sum(np.array(values, float))
    assert np.array_equal(high, expected, equal_nan=True)
    assert low == 0.0


@numba.njit
def _add_exactly(values, limbs):
    return sums.add_exactly(values.copy(), limbs)


def _added(values, parts=1):
    """The exact sum of values that enter an accumulator part by part, and of those that are not finite."""
    limbs = np.zeros(sums.LIMBS, np.int64)
    special = sum(_add_exactly(part, limbs) for part in np.array_split(np.array(values, float), parts))
    return Fraction(sums.accumulated(limbs), sums.UNITS), special


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.randoms(), st.integers(1, 5))
def test_add_exactly_is_exact_in_any_order_and_split(values, random, parts):
    exact = sum(map(Fraction, values))
    assert _added(values) == (exact, 0.0)
    assert _added(random.sample(values, len(values)), parts) == (exact, 0.0)


@pytest.mark.parametrize(
    "values",
    [
        [5e-324, -5e-324, 1e-310],
        [1e308, 1e-308, -1e308],
        [1.0, 2.0**-60, 2.0**-120, 2.0**-300, 2.0**-1074],
        [2.0**900, 2.0**-900, -(2.0**900)],
        [-0.0, 0.0],
    ],
)
def test_add_exactly_of_what_no_grid_holds(values):
    assert _added(values) == (sum(map(Fraction, values)), 0.0)


@pytest.mark.parametrize(
    ("values", "special"),
    [([np.inf, 1.0], np.inf), ([-np.inf, 3.0], -np.inf), ([np.inf, -np.inf], np.nan), ([np.nan, 2.0], np.nan)],
)
def test_add_exactly_hands_on_what_is_not_finite(values, special):
    exact, found = _added(values)
    assert exact == 0
    assert np.array_equal(found, special, equal_nan=True)


@numba.njit
def _pair_of(values):
    limbs = np.zeros(sums.LIMBS, np.int64)
    sums.add_exactly(values.copy(), limbs)
    return sums.limbs_pair(limbs)


@given(st.lists(st.floats(0.0, 1e300), min_size=1, max_size=60))
def test_limbs_as_a_pair(values):
    exact = sum(map(Fraction, values))
    high, low = _pair_of(np.array(values))
    assert abs(Fraction(high) + Fraction(low) - exact) <= exact * Fraction(2) ** -100 + Fraction(2) ** -1074


def mixed_magnitudes(count):
    """Terms that cancel but for their smallest, and do not fit the grids of their largest."""
    generator = np.random.default_rng(count)
    large = generator.standard_normal(count) * np.exp2(generator.uniform(-500, 500, count))
    small = generator.standard_normal(count) * np.exp2(generator.uniform(-1074, -500, count))
    return generator.permutation(np.concatenate([large, -large, small]))


@pytest.mark.parametrize("count", [10, 30_000])
def test_add_exactly_keeps_what_massive_cancellation_leaves(count):
    values = mixed_magnitudes(count)
    assert _added(values, parts=7) == (sum(map(Fraction, values)), 0.0)


def test_add_exactly_of_so_many_that_counts_are_large():
    values = np.full(2**22, np.nextafter(2.0, 0.0))
    values[::3] = -(2.0**-60)
    ones = values.size - (values.size + 2) // 3
    assert _added(values)[0] == ones * Fraction(np.nextafter(2.0, 0.0)) - (values.size - ones) * Fraction(2) ** -60


def test_add_exactly_makes_the_same_limbs_in_any_order():
    values, generator = mixed_magnitudes(1000), np.random.default_rng(0)
    limbs = np.zeros((3, sums.LIMBS), np.int64)
    for accumulator in limbs:
        _add_exactly(generator.permutation(values), accumulator)
    assert (limbs == limbs[0]).all()


def test_add_exactly_adds_to_what_is_there():
    limbs = np.zeros(sums.LIMBS, np.int64)
    for values in ([1.0, 2.0**-1074], [], [-1.0], [2.0**1000]):
        assert _add_exactly(np.array(values, float), limbs) == 0.0
    assert Fraction(sums.accumulated(limbs), sums.UNITS) == Fraction(2) ** 1000 + Fraction(2) ** -1074


@numba.njit
def _add_short(values, exponent, limbs):
    magics = sums.short_magics(exponent)
    coarse, fine, left = 0, 0, 0
    for value in values:
        of_coarse, of_fine, rest = sums.short_counts(value, magics)
        coarse += of_coarse
        fine += of_fine
        left |= sums.magnitude_bits(rest)
    sums.deposit_short(coarse, fine, exponent, limbs)
    return left != 0


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("exponent", [-900, 0, 7, 900])
def test_a_short_sum_is_exact_up_to_its_largest_counts(exponent, sign):
    largest = np.nextafter(2.0**exponent, 0.0)
    values = np.full(2**12, sign * largest)
    values[::3] = np.ldexp(np.random.default_rng(0).integers(-(2**50), 2**50, len(values[::3])), exponent - 100)
    limbs = np.zeros(sums.LIMBS, np.int64)
    assert not _add_short(values, exponent, limbs)
    assert Fraction(sums.accumulated(limbs), sums.UNITS) == sum(map(Fraction, values.tolist()))


def test_a_short_sum_says_what_its_grids_leave():
    limbs = np.zeros(sums.LIMBS, np.int64)
    assert _add_short(np.array([1.0, 2.0**-101]), 1, limbs)
    assert not _add_short(np.array([1.0, 2.0**-99]), 1, limbs)
