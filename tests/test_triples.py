"""Losses of three arrays of corresponding elements, and of counts: correct rounding, derivatives, layouts, edges."""

from fractions import Fraction

import ml_dtypes
import mpmath
import numpy as np
import pytest

import refloss
from tests.test_derivatives import TOLERANCE, fourth_order
from tests.test_formats import nearest
from tests.test_same_bits import bits, layouts
from tests.truth import correctly_rounded, pairs, ulp_errors

SHORT = [np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)]


def _pairs_apart(generator, count, dtype):
    """Numbers of few bits, of which many are a quarter apart, up or down."""
    z = np.round(generator.standard_normal(count) * 8) / 8
    y = generator.choice([-1.0, 1.0, 0.75], count)
    x = z + generator.choice([0.25, -0.25, 0.0, 0.5, 1.125], count)
    return tuple(array.astype(dtype) for array in (x, z, y))


@pytest.mark.parametrize("dtype", SHORT, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_margin_ranking_is_rounded_once(reduction, dtype):
    generator = np.random.default_rng(1)
    arrays = _pairs_apart(generator, 777, dtype)
    cotangent = generator.choice([1 / 3, -0.1, 0.7], 777) if reduction == "none" else 1 / 7
    result = refloss.margin_ranking(*arrays, margin=0.25, reduction=reduction, grad_output=cotangent)
    each = np.broadcast_to(cotangent, 777).tolist()
    values, slopes = [], []
    for x, z, y, c in zip(*(array.astype(float).tolist() for array in arrays), each, strict=True):
        distance = Fraction(x) - Fraction(z)
        hinge = Fraction(1, 4) - Fraction(y) * distance
        factor = Fraction(c) / (777 if reduction == "mean" else 1)
        values.append(max(hinge, Fraction(0)))
        slopes.append(
            [factor * slope if hinge >= 0 else Fraction(0) for slope in (-Fraction(y), Fraction(y), -distance)]
        )
    for gradient, exact in zip(result.grads.values(), zip(*slopes, strict=True), strict=True):
        assert gradient.astype(float).tolist() == [nearest(value, dtype) for value in exact]
    if reduction == "none":
        assert result.loss.tolist() == list(map(float, values))
    else:
        assert result.loss == float(sum(values) / (777 if reduction == "mean" else 1))


def test_the_hinge_is_found_exactly():
    """m − y·(x₁ − x₂) is 2^-120 of its terms, on either side of 0, and 0 for numbers of 53 bits."""
    x, z, y = np.array([1.0 + 2.0**-52] * 3), np.array([2.0**-60, 0.0, -(2.0**-60)]), np.ones(3)
    result = refloss.margin_ranking(x, z, y, margin=1.0 + 2.0**-52, reduction="none")
    assert result.loss.tolist() == [2.0**-60, 0.0, 0.0]
    assert result.grads["input1"].tolist() == [-1.0, -1.0, 0.0]
    # (1 + 2^-30)² is 1 + 2^-29 + 2^-60, of which a float64 has no more than 1 + 2^-29.
    factor = np.array([1.0 + 2.0**-30])
    result = refloss.margin_ranking(factor, np.zeros(1), factor, margin=1.0 + 2.0**-29)
    assert (result.loss, result.grads["input1"].tolist()) == (0.0, [0.0])
    result = refloss.margin_ranking(factor, np.zeros(1), factor, margin=1.0 + 2.0**-29 + 2.0**-52)
    assert result.loss == 2.0**-52 - 2.0**-60


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_margin_ranking_gradients_are_derivatives(reduction):
    generator = np.random.default_rng(2)
    arrays = dict(zip(("input1", "input2", "target"), generator.standard_normal((3, 3, 5)), strict=True))
    # Away from the hinge.
    arrays["input1"] += np.sign(arrays["input1"] - arrays["input2"])
    cotangent = generator.standard_normal((3, 5)) if reduction == "none" else -1.7
    given = {"margin": 0.05, "reduction": reduction}
    result = refloss.margin_ranking(**arrays, grad_output=cotangent, **given)
    for name, value in arrays.items():

        def contracted(moved, name=name):
            return np.sum(cotangent * refloss.margin_ranking(**arrays | {name: moved}, grad=False, **given).loss)

        np.testing.assert_allclose(result.grads[name], fourth_order(contracted, value), rtol=0, atol=TOLERANCE)


def test_margin_ranking_of_values_that_are_not_finite():
    x, z = np.array([-np.inf, np.inf, np.nan, np.inf]), np.array([0.0, 0.0, 1.0, np.inf])
    result = refloss.margin_ranking(x, z, np.ones(4), reduction="none")
    assert np.array_equal(result.loss, [np.inf, 0.0, np.nan, np.nan], equal_nan=True)
    assert result.grads["input1"].tolist() == [-1.0, 0.0, 0.0, 0.0]
    assert np.array_equal(result.grads["target"], [np.inf, np.nan, np.nan, np.nan], equal_nan=True)


def test_threads_blocks_order_and_layout_do_not_show(monkeypatch):
    from refloss.kernels.elementwise import run

    arrays = [array.reshape(20, 30) for array in _pairs_apart(np.random.default_rng(3), 600, np.float32)]
    loss = refloss.margin_ranking
    expected = bits(loss(*arrays, margin=0.25, grad_output=1.3))
    threads = refloss.get_num_threads()
    for count, block in ((1, 7), (3, 64), (2, 1 << 18)):
        monkeypatch.setattr(run, "BLOCK_ELEMENTS", block)
        refloss.set_num_threads(count)
        assert bits(loss(*arrays, margin=0.25, grad_output=1.3)) == expected
    refloss.set_num_threads(threads)
    for k in range(3):
        for layout, view in layouts(arrays[k]):
            moved = [*arrays[:k], view, *arrays[k + 1 :]]
            assert bits(loss(*moved, margin=0.25, grad_output=1.3)) == expected, (k, layout)


def test_gradients_by_name_have_the_same_bits():
    arrays = _pairs_apart(np.random.default_rng(4), 50, np.float32)
    everything = refloss.margin_ranking(*arrays, grad_output=-1.5)
    for asked in (("target",), ("input2", "target"), ("input1",), ()):
        result = refloss.margin_ranking(*arrays, grad_output=-1.5, grad=asked)
        assert result.grads.keys() == set(asked)
        assert result.loss == everything.loss
        assert all(np.array_equal(result.grads[name], everything.grads[name]) for name in asked)


def _gaussian(x, t, v, *, full=False, eps=1e-6):
    """The value and the three derivatives in mpmath."""
    x, t, v = (mpmath.mpf(float(value)) for value in (x, t, v))
    v = max(v, mpmath.mpf(eps))
    value = mpmath.log(v) + (x - t) ** 2 / v + (mpmath.log(2 * mpmath.pi) if full else 0)
    return value / 2, (x - t) / v, (t - x) / v, (1 / v - (x - t) ** 2 / v**2) / 2


SHARED = {"none": (20, 30), "last": (20, 1), "lacking": (20,), "first": (1, 30), "all": ()}


@pytest.mark.parametrize("dtype", SHORT, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("shared", SHARED)
def test_gaussian_nll_is_rounded_once(shared, dtype):
    generator = np.random.default_rng(5)
    x, t = (generator.standard_normal((20, 30)) * 2).astype(dtype), generator.standard_normal((20, 30)).astype(dtype)
    v = generator.exponential(1.0, SHARED[shared]).astype(dtype)
    options = {"full": shared == "last", "eps": 0.05}
    result = refloss.gaussian_nll(x, t, v, reduction="sum", grad_output=1 / 3, **options)
    wide = np.broadcast_to(v[:, None] if v.shape == (20,) else v, x.shape)
    with mpmath.workprec(400):
        found = [_gaussian(*point, **options) for point in zip(x.flat, t.flat, wide.flat, strict=True)]
        values, for_x, for_t, for_v = zip(*found, strict=True)
        axes = tuple(k for k, size in enumerate(v.shape) if size == 1) if v.ndim == 2 else (1,) * v.ndim or (0, 1)
        summed = np.asarray(np.add.reduce(np.array(for_v, dtype=object).reshape(x.shape), axes)).reshape(v.shape)
        factor = mpmath.mpf(1 / 3)
        exact = {"input": np.array(for_x) * factor, "target": np.array(for_t) * factor, "var": summed * factor}
        exact = {name: pairs(array) for name, array in exact.items()}
        total = pairs(mpmath.fsum(values))
    for name, gradient in result.grads.items():
        errors = ulp_errors(np.asarray(gradient).reshape(exact[name].high.shape), exact[name], dtype.name)
        assert correctly_rounded(errors).all(), (name, errors.max())
    assert ulp_errors(result.loss, total, "float64") <= 2


# Shapes of input, target and var; torch has them all.
BROADCAST = {
    "target-last": ((20, 30), (20, 1), (20,)),
    "target-lacking": ((20, 30), (30,), (20, 30)),
    "target-all": ((20, 30), (), (1, 30)),
    "input-lacking": ((30,), (20, 30), (1,)),
    "both": ((20, 1), (1, 30), (20,)),
}


def _summed(values, shape, var=False):
    """Of elements, the sums over those that share a number of an array of a shape."""
    values = np.array(values, dtype=object).reshape(20, 30)
    own = (*shape, 1) if var and shape == (20,) else (1,) * (2 - len(shape)) + shape
    axes = tuple(axis for axis in (0, 1) if own[axis] == 1)
    return np.asarray(np.add.reduce(values, axes)).reshape(shape) if axes else values.reshape(shape)


@pytest.mark.parametrize("dtype", SHORT, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("shapes", BROADCAST)
def test_the_gradient_of_what_is_broadcast_is_a_sum_that_is_rounded_once(shapes, dtype):
    generator = np.random.default_rng(11)
    shapes = BROADCAST[shapes]
    x, t = (generator.standard_normal(shape).astype(dtype) for shape in shapes[:2])
    v = generator.exponential(1.0, shapes[2]).astype(dtype)
    cotangent = generator.choice([1 / 3, -0.1, 1 / 7, 0.7], (20, 30))
    result = refloss.gaussian_nll(x, t, v, reduction="none", grad_output=cotangent, eps=0.05)
    assert result.loss.shape == result.intermediates["losses"].shape == (20, 30)
    variances = v[:, None] if v.shape == (20,) else v
    points = [np.broadcast_to(array, (20, 30)).ravel() for array in (x, t, variances)]
    with mpmath.workprec(400):
        found = [
            [mpmath.mpf(c) * slope for slope in _gaussian(*point, eps=0.05)[1:]]
            for c, *point in zip(cotangent.ravel(), *points, strict=True)
        ]
        slopes = zip(*found, strict=True)
        exact = [pairs(_summed(each, array.shape, array is v)) for each, array in zip(slopes, (x, t, v), strict=True)]
    for name, right in zip(("input", "target", "var"), exact, strict=True):
        errors = ulp_errors(result.grads[name], right, dtype.name)
        assert result.grads[name].dtype == dtype
        assert correctly_rounded(errors).all(), (name, errors.max())


def test_what_is_broadcast_is_as_if_it_were_repeated():
    """Losses and gradients of what is not broadcast are; input's gradient goes where it is told to, in any dtype."""
    generator = np.random.default_rng(12)
    x, t = generator.standard_normal((4, 3)), generator.standard_normal((3,))
    v = generator.uniform(0.5, 2.0, (4, 3))
    for reduction in ("mean", "sum", "none"):
        narrow = refloss.gaussian_nll(x, t, v, reduction=reduction, grad_output=-0.3)
        wide = refloss.gaussian_nll(x, np.tile(t, (4, 1)), v, reduction=reduction, grad_output=-0.3)
        assert np.array_equal(narrow.loss, wide.loss)
        assert all(np.array_equal(narrow.grads[name], wide.grads[name]) for name in ("input", "var"))
    out = np.empty(3, np.float32)
    result = refloss.gaussian_nll(t, x, np.ones(1), grad="input", out=out)
    assert result.grads.keys() == {"input"}
    assert result.grads["input"] is out
    assert out.tolist() == refloss.gaussian_nll(t, x, 1.0, grad_dtype=np.float32).grads["input"].tolist()
    with pytest.raises(ValueError, match=r"out has shape \(4, 3\); expected \(3,\), the shape of input"):
        refloss.gaussian_nll(t, x, 1.0, out=np.empty((4, 3)))
    nothing = refloss.gaussian_nll(np.empty((0, 3)), t, np.ones((1, 3)), reduction="sum")
    assert (nothing.loss, nothing.grads["target"].tolist()) == (0.0, [0.0, 0.0, 0.0])
    endless = refloss.gaussian_nll(np.array([np.inf, 1.0]), np.zeros(1), np.ones(2), reduction="sum")
    assert endless.grads["target"].tolist() == [-np.inf]


def test_gaussian_nll_where_terms_cancel():
    """log v + d²/v next to 0 for float64 inputs, and d² next to v, to the bit."""
    generator = np.random.default_rng(6)
    v = np.exp(-generator.exponential(1.0, 300))
    x = np.sqrt(-v * np.log(v)) * (1 + generator.choice([0.0, 2.0**-52, 2.0**-45, 2.0**-20, 2.0**-9], 300))
    loss = refloss.gaussian_nll(x, np.zeros(300), v, reduction="none", grad=False).loss
    with mpmath.workprec(400):
        true = pairs([_gaussian(a, 0.0, b)[0] for a, b in zip(x, v, strict=True)])
    assert ulp_errors(loss, true, "float64").max() <= 1
    x[:100] = np.round(16 * x[:100]) / 16 + 0.0625
    v = x * x * (1 + generator.choice([0.0, 2.0**-52, 2.0**-30], 300))
    slope = refloss.gaussian_nll(x, np.zeros(300), v, reduction="sum", grad="var").grads["var"]
    with mpmath.workprec(400):
        true = pairs([_gaussian(a, 0.0, b)[3] for a, b in zip(x, v, strict=True)])
    assert ulp_errors(slope, true, "float64").max() <= 1
    assert np.array_equal(slope[:100] == 0, v[:100] == x[:100] ** 2)


def test_a_shared_variance_has_an_exact_sum():
    """The sum is 0, or what is left where all else cancels."""
    x = np.array([[3.0, -1.0, 1.0, 1e8], [0.0, 0.0, 2.0, 2.0]])
    v = np.array([[1.0], [2.0]])
    result = refloss.gaussian_nll(x, np.zeros((2, 4)), v, reduction="sum")
    expected = [
        sum(1 / Fraction(b) - Fraction(a) ** 2 / Fraction(b) ** 2 for a in row) / 2
        for row, (b,) in zip(x, v, strict=True)
    ]
    assert result.grads["var"].tolist() == [[float(expected[0])], [0.0]]
    cotangent = np.array([[1e30, -1e30 / 3, 1.0, 0.0], [1.0, -1.0, 3.0, -3.0]])
    again = refloss.gaussian_nll(x, np.zeros((2, 4)), v, reduction="none", grad_output=cotangent)
    exact = sum(
        Fraction(c) * (1 / Fraction(2) - Fraction(a) ** 2 / 4) / 2 for a, c in zip(x[1], cotangent[1], strict=True)
    )
    assert again.grads["var"][1].tolist() == [float(exact)]


@pytest.mark.parametrize("shared", [*SHARED, *BROADCAST])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gaussian_nll_gradients_are_derivatives(reduction, shared):
    generator = np.random.default_rng(7)
    shapes = BROADCAST.get(shared) or ((20, 30), (20, 30), SHARED[shared])
    shapes = [tuple({20: 3, 30: 5, 1: 1}[size] for size in shape) for shape in shapes]
    x, t = (np.asarray(generator.standard_normal(shape)) for shape in shapes[:2])
    arrays = {"input": x, "target": t, "var": np.asarray(generator.uniform(0.8, 2.0, shapes[2]))}
    cotangent = generator.standard_normal((3, 5)) if reduction == "none" else -1.7
    given = {"full": True, "reduction": reduction}
    result = refloss.gaussian_nll(**arrays, grad_output=cotangent, **given)
    for name, value in arrays.items():

        def contracted(moved, name=name):
            return np.sum(cotangent * refloss.gaussian_nll(**arrays | {name: moved}, grad=False, **given).loss)

        assert result.grads[name].shape == value.shape
        np.testing.assert_allclose(result.grads[name], fourth_order(contracted, value), rtol=0, atol=20 * TOLERANCE)


def test_a_variance_below_eps_has_the_gradient_of_eps():
    x, t = np.array([1.0, 1.0, 1.0]), np.zeros(3)
    below = refloss.gaussian_nll(x, t, np.array([0.0, 0.1, 0.5]), eps=0.5, reduction="none")
    at = refloss.gaussian_nll(x, t, np.full(3, 0.5), reduction="none")
    assert bits(below) == bits(at)
    assert below.grads["var"].tolist() == [-1.0, -1.0, -1.0]


def test_gaussian_nll_of_values_at_the_ends():
    """A distance whose square is beyond float64, or a variance whose square is; no variance, and an infinite one."""
    far = refloss.gaussian_nll(
        np.array([1e200, 3.0]), np.zeros(2), np.array([1e250, 1e-200]), eps=0.0, reduction="none"
    )
    assert np.allclose(far.loss, [0.5e150, 4.5e200], rtol=1e-15)
    assert np.allclose(far.grads["var"][0], -0.5e-100, rtol=1e-15)
    with np.errstate(all="ignore"):
        edges = refloss.gaussian_nll(
            np.array([0.0, 1.0, 1.0, np.inf]), np.zeros(4), np.array([0.0, 0.0, np.inf, 1.0]), eps=0.0, reduction="none"
        )
    assert np.array_equal(edges.loss, [np.nan, np.nan, np.inf, np.inf], equal_nan=True)
    assert np.array_equal(edges.grads["var"], [np.nan, np.nan, 0.0, -np.inf], equal_nan=True)


def test_a_number_is_a_variance_of_all():
    x, t = np.random.default_rng(8).standard_normal((2, 4, 3))
    result = refloss.gaussian_nll(x, t, 2.5)
    assert bits(result) == bits(refloss.gaussian_nll(x, t, np.array(2.5)))
    assert result.grads["var"].shape == ()
    assert result.loss == refloss.gaussian_nll(x, t, np.full((4, 3), 2.5)).loss


BAD_VARIANCES = [
    ({"var": np.zeros((3, 4))}, ValueError, r"var has shape \(3, 4\); expected \(2, 3\), that with one axis of size 1"),
    ({"var": np.zeros((1, 1))}, ValueError, "var has shape"),
    ({"var": np.zeros(3)}, ValueError, "var has shape"),
    ({"var": -1.0}, ValueError, "var = -1.0 is negative"),
    ({"var": np.array([1.0, -0.5])}, ValueError, r"var\[1\] = -0.5 is negative"),
    ({"var": np.ones((2, 3), int)}, TypeError, "var has dtype int64"),
    ({"target": np.zeros((3, 2))}, ValueError, r"target has shape \(3, 2\); expected one that broadcasts with input's"),
    ({"grad_output": np.zeros(3), "reduction": "none"}, ValueError, r"grad_output has shape \(3,\); expected \(2, 3\)"),
    ({"eps": np.inf}, ValueError, "eps is inf; expected a finite number"),
    ({"full": "no"}, TypeError, "full is 'no'"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_VARIANCES, ids=str)
def test_bad_input_of_gaussian_nll(arguments, error, message):
    with pytest.raises(error, match=message):
        refloss.gaussian_nll(**{"input": np.zeros((2, 3)), "target": np.zeros((2, 3)), "var": 1.0} | arguments)


@pytest.mark.parametrize("shared", [*SHARED, *BROADCAST])
def test_threads_blocks_and_layouts_do_not_show_in_a_shared_gradient(shared, monkeypatch):
    from refloss.kernels.elementwise import run

    generator = np.random.default_rng(9)
    shapes = BROADCAST.get(shared) or ((20, 30), (20, 30), SHARED[shared])
    x, t = (np.asarray(generator.standard_normal(shape), np.float32) for shape in shapes[:2])
    v = generator.exponential(1.0, shapes[2]).astype(np.float32)
    cotangent = generator.standard_normal((20, 30))
    expected = bits(refloss.gaussian_nll(x, t, v, reduction="none", grad_output=cotangent))
    threads = refloss.get_num_threads()
    for count, block in ((1, 7), (3, 64)):
        monkeypatch.setattr(run, "BLOCK_ELEMENTS", block)
        refloss.set_num_threads(count)
        assert bits(refloss.gaussian_nll(x, t, v, reduction="none", grad_output=cotangent)) == expected
    refloss.set_num_threads(threads)
    for layout, view in layouts(x):
        assert bits(refloss.gaussian_nll(view, t, v, reduction="none", grad_output=cotangent)) == expected, layout
    order = generator.permutation(600)
    if not v.ndim:
        mixed = [array.reshape(-1)[order] for array in (x, t)]
        again = refloss.gaussian_nll(*mixed, v, reduction="none", grad_output=cotangent.reshape(-1)[order])
        assert again.grads["var"] == refloss.gaussian_nll(x, t, v, reduction="none", grad_output=cotangent).grads["var"]


def _poisson(x, t, *, log_input=True, full=False, eps=1e-8):
    """The value and both derivatives in mpmath."""
    x, t, eps = (mpmath.mpf(float(value)) for value in (x, t, eps))
    if log_input:
        value, slope, of_target = mpmath.exp(x) - t * x, mpmath.exp(x) - t, -x
    else:
        value, slope, of_target = x - t * mpmath.log(x + eps), 1 - t / (x + eps), -mpmath.log(x + eps)
    if full and t > 1:
        value += t * mpmath.log(t) - t + mpmath.log(2 * mpmath.pi * t) / 2
        of_target += mpmath.log(t) + 1 / (2 * t)
    return value, slope, mpmath.nan if full and t <= 0 else of_target


COUNTS = [
    *({"log_input": log_input, "full": full} for log_input in (True, False) for full in (False, True)),
    {"log_input": False, "full": True, "eps": 0.3},
]


@pytest.mark.parametrize("dtype", SHORT, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("options", COUNTS, ids=str)
def test_poisson_nll_is_rounded_once(options, dtype):
    generator = np.random.default_rng(10)
    x = generator.uniform(-3.0, 4.0, 500)
    t = generator.poisson(np.exp(x)).astype(float)
    t[::5] = np.exp(x[::5]) * (1 + generator.choice([0.0, 2.0**-12, 2.0**-20], 100))
    x, t = (x if options["log_input"] else np.exp(x)).astype(dtype), t.astype(dtype)
    result = refloss.poisson_nll(x, t, reduction="sum", grad_output=-1 / 7, **options)
    rows = refloss.poisson_nll(x, t, reduction="none", grad=False, **options).loss
    with mpmath.workprec(400):
        found = zip(*(_poisson(*point, **options) for point in zip(x, t, strict=True)), strict=True)
        values, for_x, for_t = (np.array(each) for each in found)
        exact = {"input": pairs(for_x * mpmath.mpf(-1 / 7)), "target": pairs(for_t * mpmath.mpf(-1 / 7))}
        total, each = pairs(mpmath.fsum(values)), pairs(values)
    for name, gradient in result.grads.items():
        undefined = (t <= 0) & (name == "target" and options["full"])
        assert np.array_equal(np.isnan(gradient), undefined)
        assert correctly_rounded(ulp_errors(gradient, exact[name], dtype.name))[~undefined].all(), name
    assert ulp_errors(result.loss, total, "float64") <= 2
    assert ulp_errors(rows, each, "float64").max() <= 2


@pytest.mark.parametrize("options", COUNTS, ids=str)
def test_poisson_nll_gradients_are_derivatives(options):
    generator = np.random.default_rng(11)
    x, t = generator.uniform(0.5, 1.5, (3, 5)), generator.uniform(1.5, 3.0, (3, 5))
    cotangent = generator.standard_normal((3, 5))
    given = {**options, "reduction": "none"}
    result = refloss.poisson_nll(x, t, grad_output=cotangent, **given)
    for name, value in (("input", x), ("target", t)):

        def contracted(moved, name=name):
            return np.sum(
                cotangent * refloss.poisson_nll(**{"input": x, "target": t, name: moved}, grad=False, **given).loss
            )

        np.testing.assert_allclose(result.grads[name], fourth_order(contracted, value), rtol=0, atol=20 * TOLERANCE)


def test_large_counts_keep_what_is_left_of_large_terms():
    """Near its optimum the loss of 10^15 is 18, what is left of terms of 3·10^16."""
    t = np.array([1e15, 3e7, 1e3])
    x = np.log(t)
    result = refloss.poisson_nll(x, t, full=True, reduction="none")
    with mpmath.workprec(400):
        values, slopes, of_target = zip(*(_poisson(*point, full=True) for point in zip(x, t, strict=True)), strict=True)
        exact = [pairs(np.array(each)) for each in (values, slopes, of_target)]
    found = (result.loss, result.grads["input"], result.grads["target"])
    assert all(ulp_errors(got, true, "float64").max() <= 2 for got, true in zip(found, exact, strict=True))


def test_poisson_nll_edges():
    """Stirling's term begins above 1, and is not to be differentiated from 0 down; a rate of −eps, and one below."""
    x, t = np.zeros(7), np.array([1.0, np.nextafter(1.0, 2.0), 5e-324, 0.5, 0.0, -0.0, -2.0])
    for cotangent in (1.0, 0.0):
        result = refloss.poisson_nll(x, t, full=True, reduction="none", grad_output=cotangent)
        assert result.loss[[0, *range(2, 7)]].tolist() == [1.0] * 6
        assert np.allclose(result.loss[1], np.log(2 * np.pi) / 2)
        assert result.grads["target"][[0, 2, 3]].tolist() == [0.0, 0.0, 0.0]
        assert np.allclose(result.grads["target"][1], 0.5 * cotangent)
        assert np.isnan(result.grads["target"][4:]).all()
    assert not np.isnan(refloss.poisson_nll(x, t).grads["target"]).any()
    rates = np.array([-0.5, -0.5, -1.0])
    result = refloss.poisson_nll(rates, np.array([2.0, 0.0, 1.0]), log_input=False, eps=0.5, reduction="none")
    assert np.array_equal(result.loss, [np.inf, np.nan, np.nan], equal_nan=True)
    assert np.array_equal(result.grads["input"], [-np.inf, np.nan, 3.0], equal_nan=True)


@pytest.mark.parametrize("log_input", [True, False])
def test_threads_blocks_and_layouts_do_not_show_in_poisson_nll(log_input, monkeypatch):
    from refloss.kernels.elementwise import run

    generator = np.random.default_rng(12)
    x, t = generator.uniform(0.1, 3.0, (2, 20, 30)).astype(np.float32)
    options = {"log_input": log_input, "full": True, "grad_output": 1.3}
    expected = bits(refloss.poisson_nll(x, t, **options))
    threads = refloss.get_num_threads()
    for count, block in ((1, 7), (3, 64)):
        monkeypatch.setattr(run, "BLOCK_ELEMENTS", block)
        refloss.set_num_threads(count)
        assert bits(refloss.poisson_nll(x, t, **options)) == expected
    refloss.set_num_threads(threads)
    for layout, view in layouts(x):
        assert bits(refloss.poisson_nll(view, t, **options)) == expected, layout


@pytest.mark.parametrize("name", ["poisson_nll", "margin_ranking"])
def test_integer_targets_have_no_gradient(name):
    arrays, target = [np.array([0.5, 2.0, 1.0], np.float32)] * (1 + (name == "margin_ranking")), np.array([1, 3, -1])
    loss = getattr(refloss, name)
    found = loss(*arrays, target)
    floats = loss(*arrays, target.astype(np.float32), grad=list(found.grads))
    assert "target" not in found.grads
    assert "target" in loss(*arrays, target.tolist()).grads
    assert bits(found) == bits(floats)
    with pytest.raises(ValueError, match="grad is 'target'"):
        loss(*arrays, target, grad="target")


BAD_COUNTS = [
    ({"target": np.zeros((2, 1))}, ValueError, "target has shape"),
    ({"target": np.ones(2, bool)}, TypeError, "target has dtype bool"),
    ({"eps": np.nan}, ValueError, "eps is nan; expected a finite number"),
    ({"log_input": "no"}, TypeError, "log_input is 'no'"),
    ({"full": "no"}, TypeError, "full is 'no'"),
    ({"reduction": "batchmean"}, ValueError, "reduction is 'batchmean'"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_COUNTS, ids=str)
def test_bad_input_of_poisson_nll(arguments, error, message):
    with pytest.raises(error, match=message):
        refloss.poisson_nll(**{"input": np.zeros(2), "target": np.zeros(2)} | arguments)


BAD = [
    ({"input2": np.zeros(3)}, ValueError, r"input2 has shape \(3,\); expected \(2,\), the shape of input1"),
    ({"target": np.zeros((1, 2))}, ValueError, r"target has shape \(1, 2\); expected \(2,\), the shape of input1"),
    ({"target": np.ones(2, bool)}, TypeError, "target has dtype bool"),
    ({"margin": np.nan}, ValueError, "margin is nan; expected a finite number"),
    ({"reduction": "batchmean"}, ValueError, "reduction is 'batchmean'"),
    ({"grad": "margin"}, ValueError, "margin"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=str)
def test_bad_input_of_margin_ranking(arguments, error, message):
    with pytest.raises(error, match=message):
        refloss.margin_ranking(**dict.fromkeys(("input1", "input2", "target"), np.full(2, 0.5)) | arguments)


def test_no_elements():
    empty = np.zeros((0, 3))
    assert np.isnan(refloss.margin_ranking(empty, empty, empty).loss)
    assert refloss.margin_ranking(empty, empty, empty, reduction="sum").loss == 0.0
    assert refloss.margin_ranking(empty, empty, empty, reduction="none").grads["target"].shape == (0, 3)
    result = refloss.gaussian_nll(empty, empty, np.ones((1, 3)))
    assert np.isnan(result.loss)
    assert result.grads["var"].tolist() == [[0.0] * 3]
    assert np.isnan(refloss.poisson_nll(empty, empty).loss)
    assert refloss.poisson_nll(empty, empty, log_input=False, reduction="sum").loss == 0.0
