"""Every constant of the numerics is what its recipe gives, and the inequalities that stand beside the others hold."""

import ast
import math
from fractions import Fraction
from pathlib import Path

import mpmath
import numba
import numpy as np
import pytest

from refloss.kernels.softmax import refine, split
from refloss.numerics import accurate, bits, exponential, middle, sums, triples
from tests import coefficients

UNIT_ROUNDOFF = 2.0**-53
LEAST = Fraction(1, 2**1074)
LEAST_NORMAL = Fraction(1, 2**1022)
# What exponential.py has besides real numbers; the inequalities are below.
LIMITS = {"OVERFLOW", "UNDERFLOW", "LEAST_NORMAL", "TINY", "RAISED", "LOWER"}


def power(exponent):
    return Fraction(2) ** exponent


@pytest.fixture(autouse=True)
def _many_digits():
    with mpmath.workdps(coefficients.DIGITS):
        yield


@pytest.mark.parametrize(
    ("module", "name", "value"), coefficients.constants(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_constants_are_what_their_recipes_give(module, name, value):
    assert coefficients.in_module(module, name) == value


def test_every_constant_of_the_exponential_has_a_recipe():
    tree = ast.parse(Path(exponential.__file__).read_text())
    assigned = {target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets}
    assert assigned == set(coefficients.exponential_constants()) | LIMITS


@pytest.mark.parametrize(
    ("fit", "closed_form"),
    [
        (coefficients.EXPONENTIAL, lambda r: (mpmath.exp(r) - 1 - r) / r**2),
        (coefficients.ARTANH, lambda x: (2 * mpmath.atanh(mpmath.sqrt(x)) / mpmath.sqrt(x) - 2) / x),
        (coefficients.UNIT, lambda x: (2 * mpmath.atanh(mpmath.sqrt(x) / 2) / mpmath.sqrt(x) - 1) / x),
    ],
    ids=["exponential", "artanh", "unit"],
)
def test_fits_equal_their_functions_at_the_chebyshev_nodes(fit, closed_form):
    low, high = fit.interval()
    count = len(fit.names)
    polynomial = fit.coefficients()
    for k in range(1, count + 1):
        node = (low + high) / 2 + (high - low) / 2 * mpmath.cos(mpmath.pi * (k - 0.5) / count)
        node = node if abs(node) > 1e-20 else mpmath.mpf("1e-20")
        assert abs(coefficients.value_at(polynomial, node) - closed_form(node)) < mpmath.mpf("1e-19")


@pytest.mark.parametrize(
    ("fit", "exponent"),
    [(coefficients.EXPONENTIAL, -61), (coefficients.ARTANH, -60), (coefficients.UNIT, -58)],
    ids=["exponential", "artanh", "unit"],
)
def test_fits_are_as_close_as_is_said(fit, exponent):
    error = fit.largest_error([getattr(exponential, name) for name in fit.names])
    assert 2.0 ** (exponent - 1) < error < 2.0**exponent


def test_a_taylor_polynomial_would_need_two_more_terms():
    fit = coefficients.EXPONENTIAL

    def error(terms):
        return fit.largest_error([fit.taylor(k) for k in range(terms)])

    assert error(len(fit.names) + 1) > 2.0**-61 > error(len(fit.names) + 2)


def exp_errors(r):
    """A bound on the error of e^r before its last addition, whatever the roundings in _exp_series and exp_terms."""
    square = r * r
    inner = exponential.E3 * r + exponential.E2
    quadratic = exponential.E4 * square
    rest = sum(getattr(exponential, f"E{k}") * abs(r) ** (k - 2) for k in range(5, 13))
    series = inner + quadratic + rest
    # One rounding each of the inner and the outer multiply-add, the square and the last step; ten of what is small.
    of_series = UNIT_ROUNDOFF * (inner + (inner + quadratic) + quadratic + series + 10 * rest)
    small = square * series
    unseen = np.spacing(np.abs(r)) / 2 * np.abs(np.expm1(r))  # what is lost of r multiplies 1, not e^r
    of_tail = np.spacing(small + UNIT_ROUNDOFF) / 2
    return square * of_series + UNIT_ROUNDOFF * small + of_tail + unseen + 2.0**-61 * np.exp(r)


def test_roundings_of_the_exponential_add_up_to_what_is_said():
    reach = math.log(2) / 2 * (1 + 1e-9)
    r = np.linspace(-reach, reach, 100_001)
    errors, values = exp_errors(r), np.exp(r)
    assert np.max(errors / np.spacing(values)) < 0.33  # ulp, besides the last one's half
    assert np.max(errors / values) < 2.0**-54  # of a pair


def test_ln_2_in_parts():
    assert (Fraction(exponential.LN2_HIGH) / power(-53)).denominator == 1
    assert (Fraction(exponential.LN2_SHORT) / power(-32)).denominator == 1
    largest_exponent = 1074
    assert (32 + largest_exponent.bit_length()) <= 53
    # The reduced argument stays within the fit's interval, whatever the rounding of LOG2_E, for |x| up to 10^6.
    furthest = 10**6
    beyond = furthest * abs(mpmath.mpf(exponential.LOG2_E) * mpmath.log(2) - 1) + np.spacing(float(furthest)) / 2
    _, end = coefficients.EXPONENTIAL.interval()
    assert beyond < 1e-9
    assert mpmath.log(2) / 2 + beyond < end


def test_exponential_leaves_the_range_of_float64_within_its_cutoffs():
    overflow, underflow = exponential.OVERFLOW, exponential.UNDERFLOW
    assert mpmath.exp(overflow) > mpmath.mpf(2) ** 1024
    assert mpmath.exp(underflow) < mpmath.mpf(2) ** -1075
    assert mpmath.exp(exponential.LEAST_NORMAL) > mpmath.mpf(2) ** -1022
    steps = [round(cutoff * exponential.LOG2_E) for cutoff in (underflow, overflow)]
    assert steps == [-1076, 1024]
    # e^r ≥ 2^-1/2 has the exponent −1, and n is at most 0 where RAISED is used.
    assert power(steps[0] + exponential.RAISED - 1) >= LEAST_NORMAL
    assert Fraction(exponential.LOWER) * power(exponential.RAISED) == 1


def test_tiny_arguments_of_log1p():
    tiny = Fraction(exponential.TINY)
    assert tiny**2 / 3 < power(-121)
    assert power(-121) < power(-106)
    assert tiny > 2 * LEAST_NORMAL


def test_logarithm_scales_what_is_subnormal():
    assert power(-1000) >= LEAST_NORMAL
    assert LEAST * power(100) >= LEAST_NORMAL


def test_a_far_side_of_a_softmax_is_zero():
    assert sums.MAX_TERMS * mpmath.exp(-split.FAR) < mpmath.mpf(2) ** -1075
    assert round(-split.FAR * exponential.LOG2_E) > -2040  # scale's reach


def test_magic_constants_round_to_integers():
    magic = Fraction(bits.ROUND_TO_INTEGER)
    assert (magic - 2**51, magic + 2**51) == (2**52, 2**53)
    assert np.array(bits.SIGN_BIT).view(np.float64) == 0.0
    assert np.signbit(np.array(bits.SIGN_BIT).view(np.float64))


def test_grids_hold_their_terms():
    coarse, fine, finest = (
        Fraction(magic) / Fraction(bits.ROUND_TO_INTEGER)
        for magic in (sums.COARSE_MAGIC, sums.FINE_MAGIC, sums.FINEST_MAGIC)
    )
    assert (coarse, fine, finest) == (power(-36), power(-72), power(-108))
    assert sums.MAX_TERMS / coarse < 2**63 <= 2 * sums.MAX_TERMS / coarse
    assert sums.MAX_TERMS * (coarse / 2) / fine < 2**63
    assert 2**17 * fine / 2 == power(-56)
    exponents = sums.GRID_EXPONENTS
    assert Fraction(sums.COARSE_MAGIC) * power(exponents) < power(1023)
    assert Fraction(sums.FINEST_MAGIC) * power(-exponents) >= LEAST_NORMAL
    assert finest * power(-exponents) >= LEAST


@numba.njit
def _limb_parts(magnitude, place):
    return sums.limb_parts(magnitude, False, place)


def test_accumulators_hold_all_of_float64():
    last_bit = Fraction(math.ulp(np.finfo(np.float64).max)) / LEAST
    limb, *parts = _limb_parts(2**53 - 1, last_bit.numerator.bit_length() - 1)
    assert limb + len(parts) == sums.LIMBS
    assert Fraction(1, sums.UNITS) == LEAST
    magnitudes = (2**32 - 1, 2**53 - 1, 2**62, 2**63 - 1)
    most = max(max(_limb_parts(magnitude, place)[1:]) for magnitude in magnitudes for place in range(32))
    assert most == 2**32 - 1
    assert sums.DEPOSITS * 2**32 < 2**63


def test_close_elements_are_known_to_a_thousandth_of_an_ulp():
    error, thousandth = 2 * power(-53), Fraction(1, 1000) * power(-24)
    assert error / Fraction(refine.CLOSE) <= thousandth
    assert error / Fraction(refine.CLOSE / 2) > thousandth


def test_rows_of_near_elements_are_rounded_as_promised():
    one_in_100_000 = Fraction(1, 100_000)
    assert power(-53) / Fraction(refine.NEAR) / power(-24) * 2 < one_in_100_000
    at_close = power(-53) / Fraction(refine.CLOSE) / power(-24) * 2
    assert at_close * Fraction(refine.CROWD) < one_in_100_000


def test_what_pairs_know():
    pairs, sums_of_rows = power(-98), 2**15 * power(-109)
    assert sums_of_rows < power(-92) == Fraction(refine.NOTHING)
    assert pairs / Fraction(refine.DEEP) == error_of_close()
    assert Fraction(refine.KNOWN) * power(-52) == pairs == Fraction(refine.DUST)
    assert refine.LARGEST_COUNT > sums.MAX_TERMS


def error_of_close():
    """What is_close leaves to float64: 2·2^-53 over CLOSE."""
    return 2 * power(-53) / Fraction(refine.CLOSE)


@numba.njit
def _exp_accurate(values):
    high, low = np.empty_like(values), np.empty_like(values)
    for i in range(values.size):
        high[i], low[i] = accurate.exp_accurate(values[i], 0.0)
    return high, low


def test_exponentials_in_pairs():
    s = mpmath.log(2) / 2 / 2**accurate._HALVINGS
    assert s ** (accurate._TERMS - 1) / mpmath.factorial(accurate._TERMS) < mpmath.mpf(2) ** -122
    assert s**6 / mpmath.factorial(7) < mpmath.mpf(2) ** -57
    x = np.concatenate([np.random.default_rng(4).uniform(-600.0, 0.0, 2000), -np.geomspace(1e-300, 1.0, 500)])
    for at, high, low in zip(x, *_exp_accurate(x), strict=True):
        true = mpmath.exp(mpmath.mpf(at))
        assert abs(mpmath.mpf(high) + mpmath.mpf(low) - true) < true * mpmath.mpf(2) ** -101


@numba.njit
def _logarithms(values, results):
    for i in range(values.size):
        results[0, i], results[1, i] = exponential.log_finely(values[i])
        results[2, i], results[3, i] = accurate.log_accurate(values[i], 0.0)
        beyond = accurate.log1p_accurate(values[i] * 2.0**-30, values[i] * 2.0**-90)
        results[4, i], results[5, i] = beyond


def _error(high, low, true):
    return abs((mpmath.mpf(high) + mpmath.mpf(low) - true) / true)


@pytest.mark.parametrize(("low", "high"), [(1e-320, 1e-300), (1e-6, 1.0), (0.5, 2.0), (0.9999, 1.0001), (1.0, 1e300)])
def test_logarithms_in_pairs(low, high):
    x = np.exp(np.random.default_rng(5).uniform(np.log(low), np.log(high), 500))
    results = np.empty((6, x.size))
    _logarithms(x, results)
    for at, (a, b, c, d, e, f) in zip(x, results.T, strict=True):
        true = mpmath.log(mpmath.mpf(at))
        assert _error(a, b, true) < mpmath.mpf(2) ** -62
        assert _error(c, d, true) < mpmath.mpf(2) ** -88
        # Low parts of subnormal numbers are lost.
        true = mpmath.log1p(mpmath.mpf(at) * mpmath.mpf(2) ** -30 * (1 + mpmath.mpf(2) ** -60))
        assert at < 1e-200 or _error(e, f, true) < mpmath.mpf(2) ** -88


@numba.njit
def _middle(exponents, lows, values, results):
    for i in range(values.size):
        results[0, i], results[1, i] = middle.exp_middle(exponents[i], exponents[i] * lows[i])
        results[2, i], results[3, i] = middle.log_middle(values[i], values[i] * lows[i])


def test_middle_exponentials_and_logarithms():
    """Within half of what is said of them; the ends of tables are among the arguments."""
    generator = np.random.default_rng(6)
    ends = (np.arange(-200, 1) + 0.5) * (math.log(2) / 32)
    exponents = np.concatenate([generator.uniform(-600.0, 0.0, 1000), -np.geomspace(1e-300, 1.0, 300), ends])
    near = 1.0 + np.arange(65) / 64
    values = np.concatenate([np.exp(generator.uniform(-600.0, 0.0, 1000)), 1 - np.geomspace(1e-16, 0.5, 306), near])
    values = np.concatenate([values, np.nextafter(near, 0.0), np.nextafter(near, 2.0)])
    lows = generator.uniform(-1.0, 1.0, values.size) * 2.0**-54
    results = np.empty((4, values.size))
    _middle(exponents, lows, values, results)
    bound = mpmath.mpf(middle.MIDDLE) / 2
    for x, m, low, (a, b, c, d) in zip(exponents, values, lows, results.T, strict=True):
        assert _error(a, b, mpmath.exp(mpmath.mpf(x) + mpmath.mpf(x * low))) < bound
        assert abs(mpmath.mpf(c) + d - mpmath.log(mpmath.mpf(m) + mpmath.mpf(m * low))) < bound
        assert a + b == a
        assert c + d == c


@numba.njit
def _logistic(values, results):
    for i in range(values.size):
        parts = accurate.logistic_accurate(values[i])
        for k in range(4):
            results[2 * k, i], results[2 * k + 1, i] = parts[k]


def test_sigmoids_in_pairs():
    x = np.concatenate([np.random.default_rng(6).uniform(-40.0, 40.0, 500), [0.0, 1e-300, 600.0]])
    results = np.empty((8, x.size))
    _logistic(x, results)
    for at, found in zip(x, results.T, strict=True):
        u = mpmath.exp(-abs(mpmath.mpf(at)))
        for k, true in enumerate((u, 1 / (1 + u), u / (1 + u), mpmath.log1p(u))):
            assert _error(found[2 * k], found[2 * k + 1], true) < mpmath.mpf(2) ** -87


@numba.njit
def _beyond(t, x, results):
    for i in range(t.size):
        results[0, i], results[1, i] = triples.log_beyond(t[i], x[i])


def test_logarithms_next_to_a_number():
    """However close a float64 comes to the logarithm of another."""
    t = np.concatenate([np.random.default_rng(7).uniform(0.0, 4.0, 300), [1e-310, 1e300]])
    x = np.log(t)
    x[::3] *= 1 + 2.0**-35
    results = np.empty((2, t.size))
    _beyond(t, x, results)
    for a, b, high, low in zip(t, x, *results, strict=True):
        true = mpmath.log(mpmath.mpf(a)) - mpmath.mpf(b)
        assert _error(high, low, true) < mpmath.mpf(2) ** -60
