"""Elementwise losses where an adversary looks: ties of formats, zero crossings, close values, the ends of float64."""

from fractions import Fraction

import ml_dtypes
import mpmath
import numpy as np
import pytest

import refloss
from tests.test_elementwise import sigmoid, softplus
from tests.test_formats import nearest
from tests.truth import pairs, ulp_errors

SHORT = [np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)]
# Each as a float64, whose product with a short number is rounded to a tie of a short format now and then.
COTANGENTS = [1 / 3, -0.1, 0.7, 1 / 6, -1 / 7, 1.0, 3.0]
BETA = Fraction(0.1)


def _clamped(value, limit):
    return max(min(value, limit), -limit)


def _bce_slope(p, t):
    return (p - t) / max(p * (1 - p), Fraction(1e-12))


# Rational derivatives, of which a float64 or a tie of a shorter format may be an exact one.
SLOPES = {
    "mse": (lambda x, t: 2 * (x - t), {}),
    "l1": (lambda x, t: Fraction((x > t) - (x < t)), {}),
    "huber": (lambda x, t: _clamped(x - t, Fraction(3)), {"delta": 3.0}),
    "smooth_l1": (lambda x, t: _clamped((x - t) / BETA, Fraction(1)), {"beta": 0.1}),
    "bce": (_bce_slope, {}),
    "kl_div": (lambda _, t: -t, {}),
}


def _short_numbers(name, dtype, generator, shape):
    """Few bits, so that products with cotangents and quotients often come next to a tie."""
    if name == "bce":
        return ((generator.integers(0, 64, shape) + 0.5) / 64).astype(dtype)
    numbers = generator.integers(1, 1024, shape) * np.exp2(generator.integers(-9, 0, shape))
    if name == "kl_div":
        return (numbers / 1024).astype(dtype)
    return (numbers * generator.choice([-1, 1], shape)).astype(dtype)


@pytest.mark.parametrize("dtype", SHORT, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("name", SLOPES)
def test_rational_gradients_are_rounded_once(name, reduction, dtype):
    slope, options = SLOPES[name]
    generator = np.random.default_rng(1)
    for count, cotangent in zip((777, 259, 1000, 513, 96, 63, 1554), COTANGENTS, strict=True):
        x = _short_numbers(name, dtype, generator, count)
        t = _short_numbers(name, dtype, generator, count)
        got = getattr(refloss, name)(x, t, reduction=reduction, grad_output=cotangent, grad="input", **options).grads[
            "input"
        ]
        factor = Fraction(cotangent) / (count if reduction == "mean" else 1)
        points = zip(map(Fraction, x.tolist()), map(Fraction, t.tolist()), strict=True)
        expected = [nearest(factor * slope(a, b), dtype) for a, b in points]
        assert got.astype(np.float64).tolist() == expected


@pytest.mark.parametrize("dtype", SHORT, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("reduction", ["sum", "none", "mean"])
def test_weighted_gradients_are_rounded_once(reduction, dtype):
    generator = np.random.default_rng(2)
    x, t = (_short_numbers("mse", dtype, generator, 500) for _ in range(2))
    weight = np.abs(_short_numbers("mse", np.float64, generator, 500)) * 3
    cotangent = generator.choice(COTANGENTS, 500) if reduction == "none" else 1 / 7
    got = refloss.mse(x, t, weight, reduction=reduction, grad_output=cotangent).grads["target"]
    exact = [Fraction(w) for w in weight.tolist()]
    normaliser = sum(exact) if reduction == "mean" else 1
    upstream = np.broadcast_to(cotangent, 500).tolist()
    points = zip(map(Fraction, x.tolist()), map(Fraction, t.tolist()), exact, map(Fraction, upstream), strict=True)
    assert got.astype(np.float64).tolist() == [
        nearest(2 * c * w * (b - a) / normaliser, dtype) for a, b, w, c in points
    ]


def test_a_product_next_to_a_tie():
    """(768 + 9)·2·(1/6 as float64) is 259 less 7e-15, and 259 is a tie of bfloat16."""
    x, t = np.array([768], ml_dtypes.bfloat16), np.array([-9], ml_dtypes.bfloat16)
    assert Fraction(1 / 6) * 2 * 777 < 259
    assert refloss.mse(x, t, grad_output=1 / 6, reduction="sum").grads["input"][0] == 258


@pytest.mark.parametrize("dtype", SHORT, ids=lambda dtype: dtype.name)
def test_a_target_far_below_decides_a_tie(dtype):
    """x is a tie of the gradient's format, and x − t just below it, by less than a float64 of its size holds."""
    unit = float(ml_dtypes.finfo(dtype).eps)
    x = np.array([1 + unit / 2, 1 + 3 * unit / 2])
    t = np.float32([2.0**-100, -(2.0**-100)])
    for name in ("mse", "huber", "smooth_l1"):
        options = {} if name == "mse" else {"delta" if name == "huber" else "beta": 4.0}
        slope = 2 if name == "mse" else (1 if name == "huber" else Fraction(1, 4))
        got = getattr(refloss, name)(x, t, reduction="sum", grad_dtype=dtype, **options).grads["input"]
        exact = [slope * (Fraction(a) - Fraction(b)) for a, b in zip(x.tolist(), t.tolist(), strict=True)]
        assert got.astype(np.float64).tolist() == [nearest(value, dtype) for value in exact]


@pytest.mark.parametrize(
    ("name", "values"), [("mse", [1, 1.0000001, 1.0000002]), ("l1", [0.3, 0.3, 0.3000001]), ("mse", [0.1, 0.1])]
)
def test_weights_of_a_mean_of_close_values(name, values):
    generator = np.random.default_rng(3)
    weight = generator.uniform(0.1, 3.0, len(values))
    x, t = np.array(values), np.zeros(len(values))
    result = getattr(refloss, name)(x, t, weight, grad_output=1 / 3)
    exact = [Fraction(value) ** (2 if name == "mse" else 1) for value in values]
    weights = [Fraction(w) for w in weight.tolist()]
    mean = sum(w * value for w, value in zip(weights, exact, strict=True)) / sum(weights)
    gradient = [Fraction(1 / 3) / sum(weights) * (value - mean) for value in exact]
    errors = ulp_errors(
        result.grads["weight"], pairs([mpmath.mpf(g.numerator) / g.denominator for g in gradient]), "float64"
    )
    assert errors.max() <= 2
    assert float(result.loss) == float(mean)


@pytest.mark.parametrize("name", ["mse", "l1"])
def test_the_weight_of_a_mean_over_one_element_has_no_gradient(name):
    generator = np.random.default_rng(4)
    for x, t, weight in generator.uniform(0.1, 3.0, (50, 3)):
        result = getattr(refloss, name)(np.array([x]), np.array([t]), np.array([weight]), grad_output=0.7)
        assert result.grads["weight"].tolist() == [0.0]


def _definition(function, *arrays):
    """Values of a function of float64 numbers in mpmath, as pairs."""
    with mpmath.workprec(400):
        points = zip(*(array.astype(np.float64).tolist() for array in arrays), strict=True)
        return pairs([function(*map(mpmath.mpf, point)) for point in points])


def _check(got, true, dtype):
    errors = ulp_errors(got, true, dtype)
    worst = int(errors.argmax())
    assert errors.max() <= (2 if dtype == "float64" else 0.5), f"{errors.max()} ulp at {worst}: {got.flat[worst]}"


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_kl_div_crosses_zero_where_x_is_log_t_and_one_more(dtype):
    generator = np.random.default_rng(5)
    t = generator.uniform(1e-6, 1.0, 300).astype(np.float32)
    x = np.log(t.astype(np.float64)) + 1
    close = x.astype(np.float32)
    t = t.astype(dtype)
    got = refloss.kl_div(close, t, reduction="sum", grad="target").grads["target"]
    _check(got, _definition(lambda a, b: mpmath.log(b) + 1 - a, close, t), dtype)


@pytest.mark.parametrize("narrow", [np.float32, np.float64], ids=lambda dtype: np.dtype(dtype).name)
def test_kl_div_of_close_distributions(narrow):
    generator = np.random.default_rng(6)
    t = generator.dirichlet(np.ones(40), 5).astype(narrow)
    x = np.log(t.astype(np.float64)).astype(narrow)
    rows = refloss.kl_div(x, t, reduction="none", grad=False).loss
    with mpmath.workprec(400):
        exact = [
            mpmath.mpf(float(b)) * (mpmath.log(mpmath.mpf(float(b))) - mpmath.mpf(float(a)))
            for a, b in zip(x.flat, t.flat, strict=True)
        ]
        total = mpmath.fsum(exact)
    _check(rows.reshape(-1), pairs(exact), "float64")
    _check(np.asarray(refloss.kl_div(x, t, reduction="sum").loss).reshape(1), pairs([total]), "float64")


def test_kl_div_of_logarithms_whose_exponentials_are_subnormal():
    x, t = np.array([-1e8, 0.0, -1e300, 709.7, -3.0]), np.array([-740.0, -745.5, -1300.0, 709.8, -2.5])
    result = refloss.kl_div(x, t, log_target=True, reduction="none")
    with mpmath.workprec(400):
        true = [mpmath.exp(mpmath.mpf(b)) * (mpmath.mpf(b) - mpmath.mpf(a)) for a, b in zip(x, t, strict=True)]
    _check(result.loss, pairs(true), "float64")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_bce_with_logits_crosses_zero_in_its_target(dtype):
    """∂ℓ/∂t = p·softplus(−x) − softplus(x), with p next to the quotient, and with p = 0."""
    generator = np.random.default_rng(7)
    x = generator.uniform(-6, 6, 200).astype(np.float32)
    wide = x.astype(np.float64)
    factor = np.logaddexp(0, wide) / np.logaddexp(0, -wide) * (1 + generator.choice([0.0, 1e-7, -1e-4], 200))
    factor[::7] = 0.0
    x[::14] = -generator.uniform(40, 90, len(x[::14]))
    t = generator.random(200).astype(dtype)
    got = refloss.bce_with_logits(x, t, pos_weight=factor, reduction="sum").grads["target"]
    true = _definition(lambda a, p: p * softplus(-a) - softplus(a), x, factor)
    _check(got, true, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_bce_with_logits_near_its_optimum(dtype):
    generator = np.random.default_rng(8)
    x = generator.uniform(-8, 8, 400).astype(np.float32)
    near = 1 + generator.choice([0.0, 2.0**-10, -(2.0**-14), 2.0**-18, 2.0**-24], 400)
    t = (near / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32)
    got = refloss.bce_with_logits(x, t, reduction="sum", grad="logits", grad_dtype=dtype).grads["logits"]
    _check(got, _definition(lambda a, b: sigmoid(a) - b, x, t), dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_bce_crosses_zero_in_its_target_at_one_half(dtype):
    p = (0.5 + np.array([0.0, 2.0**-25, -(2.0**-24), 2.0**-15, 2.0**-12, 2.0**-11])).astype(np.float32)
    t = np.full(p.size, 0.25, dtype)
    got = refloss.bce(p, t, reduction="sum", grad="target").grads["target"]
    assert got[0] == 0
    _check(got, _definition(lambda a: mpmath.log1p(-a) - mpmath.log(a), p), dtype)


def test_values_beyond_float64_are_infinite():
    x, t = np.array([1e200]), np.array([0.0])
    assert refloss.mse(x, t).loss == np.inf
    assert refloss.huber(x, t, delta=1e200).loss == np.inf
    assert refloss.smooth_l1(x, t, beta=1e300).loss == float(Fraction(1e200) ** 2 / 2 / Fraction(1e300))
    assert refloss.kl_div(np.array([-1e308]), np.array([1e200]), reduction="sum").loss == np.inf


def test_twice_a_difference_may_be_beyond_float64():
    x, t = np.array([1.7e308]), np.array([0.0])
    gradient = refloss.mse(x, t, grad_output=0.25).grads["input"]
    assert gradient.tolist() == [8.5e307]
    gradient = refloss.mse(x, t, np.array([2.0**-40]), grad_output=0.25, reduction="sum").grads["input"]
    assert gradient.tolist() == [8.5e307 * 2.0**-40]


def test_the_difference_itself_may_not():
    """Where the limit is: x − t must be a float64."""
    largest = np.finfo(np.float64).max
    for t, expected in ((0.0, largest / 2), (-largest / 2, np.inf)):
        result = refloss.mse(np.array([largest]), np.array([t]), reduction="sum", grad_output=0.25)
        assert result.grads["input"].tolist() == [expected]


FAR = [
    (1e38, 1e-285, 1e-75, "mean"),
    (1e300, 1e-285, 1e-75, "sum"),
    (1e-300, 1e305, 1e-10, "sum"),
    (3e-320, 1e300, 2e10, "sum"),
    (1e200, 1e200, 1e-250, "sum"),
    (1e-200, 1e-200, 1e300, "sum"),
]


@pytest.mark.parametrize(("x", "weight", "cotangent", "reduction"), FAR)
def test_factors_of_any_size(x, weight, cotangent, reduction):
    """No product on the way may leave the range of float64 if the result is within it."""
    weights = np.array([weight, weight / 3])
    result = refloss.mse(np.array([x, x / 7]), np.zeros(2), weights, grad_output=cotangent, reduction=reduction)
    normaliser = sum(map(Fraction, weights.tolist())) if reduction == "mean" else 1
    exact = [
        2 * Fraction(a) * Fraction(w) * Fraction(cotangent) / normaliser
        for a, w in zip([x, x / 7], weights.tolist(), strict=True)
    ]
    with mpmath.workprec(400):
        true = pairs([mpmath.mpf(value.numerator) / value.denominator for value in exact])
    _check(result.grads["input"], true, "float64")
