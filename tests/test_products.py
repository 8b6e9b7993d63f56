"""Matrix products on BLAS, against rational numbers; their bits, against other ways to add up and other blocks."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from refloss.kernels.products import run
from refloss.kernels.products.run import NOT_WRITTEN, Factor, PairProduct, add_logits, rounding_to

FORMATS = [np.dtype(name) for name in (np.float64, np.float32, ml_dtypes.bfloat16, np.float16)]
NO_BIAS = np.empty(0)


def numbers(seed, shape, dtype, spread=0.0):
    random = np.random.default_rng(seed)
    return (random.standard_normal(shape) * np.exp2(random.uniform(-spread, spread, shape))).astype(dtype)


def pairs_of(seed, shape, spread=0.0):
    high = numbers(seed, shape, np.float64, spread)
    low = high * numbers(seed + 1, shape, np.float64) * 2.0**-56
    whole = high + low
    return whole, low - (whole - high)


def logits_of(a, b, *, block=1000, bias=NO_BIAS, rounding=NOT_WRITTEN):
    high, low = np.empty((2, len(a), len(b)))
    left, right = Factor(a, len(a)), Factor(b, block)
    for first in range(0, len(b), block):
        last = min(first + block, len(b))
        add_logits(left.cut(0, len(a)), right.cut(first, last), bias, rounding, high, low, column=first)
    return high, low


def products_of(pairs, b, dtype, *, block=1000, columns=None):
    factor = Factor(b, block)
    spans = [(first, min(first + block, len(b))) for first in range(0, len(b), block)]
    exponents = np.concatenate([np.empty(0, np.int64), *(factor.cut(*span).exponents.copy() for span in spans)])
    product = PairProduct(*pairs, exponents, dtype, b.shape[1], columns)
    for span in spans:
        product.add(factor.cut(*span))
    result = np.empty(product.sums.shape, dtype)
    product.save(factor, result, 0)
    return result


def exact(array):
    return [[Fraction(float(value)) for value in row] for row in array]


def terms_of(a, b):
    """Of each element of A·Bᵀ, its terms."""
    return [[[x * y for x, y in zip(row, other, strict=True)] for other in exact(b)] for row in exact(a)]


def worst_error(pairs, terms):
    worst = Fraction(0)
    for high, low, row in zip(*map(exact, pairs), terms, strict=True):
        for h, rest, summed in zip(high, low, row, strict=True):
            size = sum(map(abs, summed))
            worst = max(worst, abs(h + rest - sum(summed)) / size if size else abs(h + rest))
    return float(worst)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_logits_of_usual_numbers_are_exact_to_the_last_bit(dtype):
    a, b = numbers(1, (5, 200), dtype), numbers(2, (9, 200), dtype)
    assert worst_error(logits_of(a, b), terms_of(a, b)) <= (2.0**-106 if dtype == np.float64 else 0)


@pytest.mark.parametrize(
    ("dtype", "left", "right"),
    [
        (np.float32, 60, 60),
        (np.float32, 140, 3),
        (np.float64, 400, 100),
        (ml_dtypes.bfloat16, 20, 60),
        (np.float16, 9, 5),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_no_number_is_too_small_beside_the_others(dtype, left, right):
    a, b = numbers(3, (4, 60), dtype, left), numbers(4, (6, 60), dtype, right)
    a[~np.isfinite(a.astype(np.float64))] = 0
    assert worst_error(logits_of(a, b), terms_of(a, b)) < 2.0**-96


def test_what_is_left_counts_where_the_largest_numbers_meet_zeros():
    a, b = np.zeros((2, 3)), np.zeros((2, 3))
    a[:, 0], a[:, 1], b[:, 1] = 1e300, 1e-300, 1e300
    assert (logits_of(a, b)[0] == 1e-300 * 1e300).all()
    b[0] = 1e-200
    assert logits_of(a, b)[0][0, 0] == 1e300 * 1e-200


def test_more_terms_than_one_matrix_product_adds_up():
    a, b = numbers(5, (2, 5000), np.float32), numbers(6, (3, 5000), np.float32)
    assert worst_error(logits_of(a, b), terms_of(a, b)) == 0


def test_a_row_that_is_not_finite_is_what_plain_arithmetic_makes_of_it_and_no_other_is():
    a, b = numbers(7, (6, 20), np.float32), numbers(8, (7, 20), np.float32)
    sound = logits_of(a, b)[0]
    a[1, 3], a[2, 4], b[3, 5], b[4, 4], b[5, 3] = np.nan, np.inf, -np.inf, 0, 1e-30
    with np.errstate(invalid="ignore"):
        plain = np.einsum("ik,jk->ij", a.astype(np.float64), b.astype(np.float64))
    high, low = logits_of(a, b)
    finite = np.isfinite(plain)
    assert np.array_equal(high[~finite], plain[~finite], equal_nan=True)
    assert np.allclose(high[finite], plain[finite])
    assert (low[~finite] == 0).all()
    untouched = np.ix_([0, 3, 4, 5], [0, 1, 2, 6])
    assert np.array_equal(high[untouched], sound[untouched])


def test_infinite_times_infinite_is_infinite():
    a, b = np.ones((1, 3), np.float32), np.ones((1, 3), np.float32)
    a[0, 1] = b[0, 1] = np.inf
    assert logits_of(a, b)[0] == np.inf


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_a_logit_that_is_written_down_is_the_exact_one_rounded_once(dtype):
    a, b = numbers(9, (4, 50), np.float32), numbers(10, (30, 50), np.float32)
    bias = numbers(11, 30, np.float64)
    high, low = logits_of(a, b, bias=bias, rounding=rounding_to(dtype))
    assert not low.any()
    for i, row in enumerate(terms_of(a, b)):
        for j, terms in enumerate(row):
            assert high[i, j] == nearest(sum(terms) + Fraction(bias[j]), dtype)
    beyond = logits_of(a * np.float32(1e30), b, rounding=rounding_to(np.dtype(np.float16)))[0]
    assert np.isinf(beyond).all()


def nearest(value, dtype):
    """The number of a format next to a rational one, of two the even one."""
    guess = np.array([float(value)]).astype(dtype)
    bits = guess.view(f"u{dtype.itemsize}").astype(np.int64)
    around = (bits + np.array([-1, 0, 1])).astype(f"u{dtype.itemsize}").view(dtype).astype(np.float64)
    return min(around, key=lambda number: (abs(Fraction(number) - value), number != around[1]))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("spread", [0, 40])
def test_sums_of_pairs_are_rounded_once(dtype, spread):
    pairs = pairs_of(12, (4, 150), 0.4 * spread if dtype == np.float16 else spread)
    b = numbers(13, (150, 6), dtype, 3)
    result = products_of(pairs, b, dtype)
    for row, high, low in zip(result, *map(exact, pairs), strict=True):
        for got, column in zip(row, exact(b.T), strict=True):
            value = sum((h + rest) * w for h, rest, w in zip(high, low, column, strict=True))
            if abs(value) < 60000:
                assert float(got) == (float(value) if dtype == np.float64 else nearest(value, dtype))


def test_what_cancels_to_nothing_is_nothing_and_what_does_not_is_not():
    third = Fraction(1, 3)
    high = np.full((1, 3), float(third))
    low = np.full((1, 3), float(third - Fraction(float(third))))
    high[0, 2], low[0, 2] = -2 * high[0, 0], -2 * low[0, 0]
    b = np.ones((3, 4), np.float32)
    b[2, 1] = np.float32(1 + 2.0**-23)
    b[:, 2] = 0
    b[0, 3] = np.float32(1e-30)
    result = products_of((high, low), b, np.dtype(np.float32))[0]
    assert result.tolist()[::2] == [0, 0]
    assert result[1] == np.float32(-2 / 3 * 2.0**-23)
    assert result[3] == np.float32(-1 / 3)


@pytest.mark.parametrize("dtype", [FORMATS[0], FORMATS[1]], ids=str)
def test_undefined_pairs_make_their_own_rows_undefined_only(dtype):
    high, low = pairs_of(14, (4, 30))
    b = numbers(15, (30, 5), dtype)
    sound = products_of((high, low), b, dtype)
    high[1, 2], low[1, 2] = np.nan, 0
    high[2, 3], low[2, 3] = np.inf, 0
    result = products_of((high, low), b, dtype)
    assert np.isnan(result[1]).all()
    assert np.array_equal(result[2], np.copysign(np.inf, b[3]).astype(dtype))
    assert np.array_equal(result[[0, 3]], sound[[0, 3]])


def _other_way(a, b, out):
    """A matrix product that adds from the last term to the first, in three parts."""
    thirds = np.array_split(np.arange(a.shape[1])[::-1], 3)
    out[...] = sum(np.einsum("ik,kj->ij", a[:, part], b[part]) for part in thirds)


@pytest.mark.parametrize("spread", [0, 30])
def test_bits_depend_on_no_blas(monkeypatch, spread):
    a, b = numbers(16, (5, 300), np.float32, spread), numbers(17, (40, 300), np.float32, spread)
    pairs = pairs_of(18, (5, 40), spread)
    expected = [*logits_of(a, b), products_of(pairs, b, np.dtype(np.float64))]
    monkeypatch.setattr(run.np, "matmul", _other_way)
    results = [*logits_of(a, b), products_of(pairs, b, np.dtype(np.float64))]
    for result, known in zip(results, expected, strict=True):
        assert np.array_equal(result, known)


@pytest.mark.parametrize("spread", [0, 30])
def test_bits_depend_on_no_blocks_and_not_on_which_is_transposed(spread):
    a, b = numbers(19, (5, 64), np.float32, spread), numbers(20, (70, 64), np.float32, spread)
    pairs = pairs_of(21, (5, 70), spread)
    whole = logits_of(a, b)
    product = products_of(pairs, b, np.dtype(np.float32))
    for block in (1, 7, 64):
        assert all(map(np.array_equal, logits_of(a, b, block=block), whole))
        assert np.array_equal(products_of(pairs, b, np.dtype(np.float32), block=block), product)
    turned = tuple(np.ascontiguousarray(part.T) for part in pairs)
    for columns in ((0, 5), (2, 4)):
        result = products_of(turned, b, np.dtype(np.float32), block=9, columns=columns)
        assert np.array_equal(result, product[slice(*columns)])


def test_any_layout_of_a_factor():
    b = numbers(22, (70, 64), ml_dtypes.bfloat16)
    a = numbers(23, (4, 64), np.float32)
    whole = logits_of(a, b)
    for other in (np.asfortranarray(b), np.repeat(b, 2, axis=1)[:, ::2], b[::-1].copy()[::-1]):
        assert all(map(np.array_equal, logits_of(a, other), whole))


def test_sums_without_terms_are_zero():
    high, _low = logits_of(np.empty((2, 0)), np.empty((3, 0)))
    assert high.tolist() == np.zeros((2, 3)).tolist()
    assert (
        products_of((np.empty((2, 0)),) * 2, np.empty((0, 3)), np.dtype(np.float32), block=1).tolist() == [[0] * 3] * 2
    )
