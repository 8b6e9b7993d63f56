"""Reading, ordering and rounding the four formats, against exact rationals."""

from fractions import Fraction

import ml_dtypes
import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refloss.kernels.rows import element_type
from refloss.numerics.formats import from_ordinal, infinity_bits, magnitude_bits, ordinal, store, store_pair, widen
from refloss.numerics.pairs import fast_two_sum, scaled, scaled_to_odd, to_odd
from tests.truth import FORMATS

SIXTEEN = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
ALL = [*SIXTEEN, np.dtype(np.float32), np.dtype(np.float64)]


@numba.njit
def _store_all(values, result):
    for i in range(values.size):
        store(result, i, values[i])


@numba.njit
def _store_pairs(high, low, result):
    for i in range(high.size):
        store_pair(result, i, (high[i], low[i]))


@numba.njit
def _products(high, low, factor, factor_low, result, odd):
    for i in range(high.size):
        product = scaled((high[i], low[i]), (factor[i], factor_low[i]))
        store_pair(result, i, product)
        odd[i] = to_odd(product) == scaled_to_odd((high[i], low[i]), (factor[i], factor_low[i]))


@numba.njit
def _normalise(high, low):
    for i in range(high.size):
        high[i], low[i] = fast_two_sum(high[i], low[i])


@numba.njit
def _widen_all(elements, result):
    for i in range(elements.size):
        result[i] = widen(elements[i])


@numba.njit
def _ordinals(elements, result, back):
    for i in range(elements.size):
        result[i] = ordinal(elements[i])
        back[i] = widen(from_ordinal(ordinal(elements[i]), elements))


@numba.njit
def _exceeds_infinity(elements, result):
    for i in range(elements.size):
        result[i] = magnitude_bits(elements[i]) > infinity_bits(elements)


def rounded(values, dtype):
    result = np.empty(len(values), element_type(dtype))
    _store_all(np.asarray(values, np.float64), result)
    return result.view(dtype)


def every_number(dtype):
    values = np.arange(2**16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):
        return values[~np.isnan(values)]


def nearest(value: float | Fraction, dtype: np.dtype) -> float:
    """The nearest value of a format, ties to even, by rational arithmetic."""
    precision, smallest = FORMATS[dtype.name]
    exact = abs(Fraction(value))
    exponent = max(smallest, _exponent(exact))
    unit = Fraction(2) ** (exponent - precision + 1)
    result = round(exact / unit) * unit
    largest = Fraction(2) ** (1 - smallest) * (2 - Fraction(2) ** (1 - precision))
    magnitude = float("inf") if result > largest else float(result)
    return float(np.copysign(magnitude, float(value)))


# A tie of a format, what a rounding to float64 makes of its neighbours.
TIES = st.builds(
    lambda significand, exponent, nudge, low: (
        np.ldexp(2.0 * significand + 1, exponent) * (1 + nudge * 2.0**-52),
        low * np.ldexp(float(significand), exponent) * 2.0**-54,
    ),
    st.integers(2**6, 2**24),
    st.integers(-40, -20),
    st.integers(-2, 2),
    st.sampled_from([0.0, 2.0**-60, -(2.0**-60), 1.0, -1.0, 0.7, -0.7, 1e-200, -1e-200]),
)


@pytest.mark.parametrize("dtype", [*SIXTEEN, np.dtype(np.float32)], ids=lambda dtype: dtype.name)
@given(st.lists(st.tuples(TIES, st.sampled_from([-1.0, 1.0])), min_size=1, max_size=40))
def test_a_pair_is_rounded_once(dtype, values):
    """A tie of the format that float64 makes of a number next to it must not be taken for one."""
    high, low = (np.array([sign * pair[part] for pair, sign in values]) for part in (0, 1))
    _normalise(high, low)
    result = np.empty(high.size, element_type(dtype))
    _store_pairs(high, low, result)
    exact = [Fraction(a) + Fraction(b) for a, b in zip(high, low, strict=True)]
    assert list(result.view(dtype).astype(np.float64)) == [nearest(value, dtype) for value in exact]


@pytest.mark.parametrize("dtype", [*SIXTEEN, np.dtype(np.float32)], ids=lambda dtype: dtype.name)
@given(
    st.lists(
        st.tuples(st.integers(-(2**12), 2**12), st.integers(1, 60), st.sampled_from([1 / 3, 0.1, 1 / 7, 1.0, 1e-3])),
        min_size=1,
        max_size=40,
    )
)
def test_products_of_quotients_and_short_numbers_are_rounded_once(dtype, values):
    """(d·n)·(c/n) is d·c exactly, also where neither c/n nor the product is a float64."""
    exact = [(Fraction(d * n), Fraction(c) / n) for d, n, c in values]
    factor = np.array([float(c) for _, c in exact])
    factor_low = np.array([float(c - Fraction(float(c))) for _, c in exact])
    number = np.array([float(d) for d, _ in exact])
    result, odd = np.empty(number.size, element_type(dtype)), np.empty(number.size, bool)
    _products(number, np.zeros_like(number), factor, factor_low, result, odd)
    assert list(result.view(dtype).astype(np.float64)) == [nearest(d * c, dtype) for d, c in exact]
    assert odd.all()


@pytest.mark.parametrize("dtype", ALL, ids=lambda dtype: dtype.name)
def test_there_is_one_nan(dtype):
    payload = np.array([0x7FF8 << 48, 0xFFF8 << 48, 0x7FF0 << 48 | 1, 0x7FF8 << 48 | 12345], np.uint64).view(np.float64)
    got = rounded(payload, dtype)
    expected = np.full(payload.size, np.nan).astype(dtype)
    assert got.tobytes() == expected.tobytes()


def _exponent(exact: Fraction) -> int:
    return int(np.frexp(float(exact))[1]) - 1 if exact else -1074


def near(dtype: np.dtype) -> st.SearchStrategy[float]:
    """Values at and around the ties of a format, subnormals and overflow included."""
    _, smallest = FORMATS[dtype.name]
    lowest = smallest - FORMATS[dtype.name].precision - 2
    return st.builds(
        lambda significand, exponent, nudge, sign: sign * np.ldexp(significand, exponent) * (1 + nudge * 2.0**-50),
        st.integers(0, 2 ** (FORMATS[dtype.name].precision + 2)).map(float),
        st.integers(lowest, 2 - smallest),
        st.integers(-2, 2),
        st.sampled_from([-1.0, 1.0]),
    )


@pytest.mark.parametrize("dtype", SIXTEEN, ids=lambda dtype: dtype.name)
@given(data=st.data())
def test_rounding_is_to_nearest_even(dtype, data):
    values = data.draw(
        st.lists(near(dtype) | st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40)
    )
    got = rounded(values, dtype).astype(np.float64)
    expected = np.array([nearest(value, dtype) for value in values])
    assert np.array_equal(got, expected)
    assert np.array_equal(np.signbit(got), np.signbit(values))


@given(st.lists(st.floats(width=64), min_size=1))
def test_float32_is_rounded_once(values):
    with np.errstate(over="ignore", invalid="ignore"):
        assert np.array_equal(rounded(values, np.dtype(np.float32)), np.float32(values), equal_nan=True)


@pytest.mark.parametrize("dtype", SIXTEEN, ids=lambda dtype: dtype.name)
def test_every_sixteen_bit_value_survives_the_round_trip(dtype):
    values = every_number(dtype)
    wide = np.empty(values.size)
    _widen_all(values.view(element_type(dtype)), wide)
    assert np.array_equal(wide, values.astype(np.float64), equal_nan=True)
    assert np.array_equal(np.signbit(wide), np.signbit(values))
    back = rounded(wide, dtype)
    assert np.array_equal(back.astype(np.float64), wide, equal_nan=True)


@pytest.mark.parametrize("dtype", SIXTEEN, ids=lambda dtype: dtype.name)
def test_values_beyond_the_magic_constants_overflow(dtype):
    values = np.ldexp(1.25, np.arange(900, 1024))
    assert np.all(rounded(np.concatenate([values, -values]), dtype) == np.repeat([np.inf, -np.inf], values.size))


@pytest.mark.parametrize("dtype", ALL, ids=lambda dtype: dtype.name)
def test_non_finite_values_are_rounded_to_themselves(dtype):
    got = rounded([np.inf, -np.inf, np.nan, 0.0, -0.0], dtype).astype(np.float64)
    assert np.array_equal(got, [np.inf, -np.inf, np.nan, 0.0, 0.0], equal_nan=True)
    assert list(np.signbit(got)[[3, 4]]) == [False, True]


@pytest.mark.parametrize("dtype", ALL, ids=lambda dtype: dtype.name)
def test_ordinals_are_ordered_as_the_values(dtype):
    if dtype.itemsize == 2:
        values = every_number(dtype)
    else:
        values = np.random.default_rng(0).standard_cauchy(1000).astype(dtype)
        values = np.concatenate([values, np.array([np.inf, -np.inf, 0.0], dtype)])
    keys = np.empty(values.size, np.int64)
    back = np.empty(values.size)
    _ordinals(values.view(element_type(dtype)), keys, back)
    assert np.array_equal(back, values.astype(np.float64))
    assert np.all(np.diff(values.astype(np.float64)[np.argsort(keys)]) >= 0)


@pytest.mark.parametrize("dtype", ALL, ids=lambda dtype: dtype.name)
def test_only_nan_exceeds_infinity(dtype):
    values = np.array([1.0, np.inf, -np.inf, np.nan, -np.nan, 0.0]).astype(dtype)
    got = np.empty(values.size, bool)
    _exceeds_infinity(values.view(element_type(dtype)), got)
    assert list(got) == [False, False, False, True, True, False]
