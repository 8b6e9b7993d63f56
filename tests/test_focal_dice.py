"""Sigmoid focal loss and dice loss."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest

import refloss
from refloss.kernels.one_class.loop import Focus
from refloss.kernels.one_class.run import one_class_loss, positives_of
from refloss.losses.sigmoid_focal import ONE_CLASS_LOOP
from tests import detection_truth as truth
from tests.exact_boxes import nearest
from tests.test_elementwise import DTYPES
from tests.truth import FORMATS, correctly_rounded, ulp_errors


def inputs(seed, shape, dtype, soft):
    """Logits near and far, and targets."""
    generator = np.random.default_rng(seed)
    x = (generator.standard_normal(shape) * generator.choice([0.1, 3.0, 40.0], shape)).astype(dtype)
    t = generator.random(shape) if soft else (generator.random(shape) < 0.4).astype(float)
    if soft:
        # Some targets are what the logit says, or nearly so.
        t[0] = 1 / (1 + np.exp(-x[0].astype(float)))
    return x, t.astype(dtype)


@pytest.mark.parametrize("options", [(0.25, 2.0), (-1.0, 2.0), (0.7, 1.5), (0.25, 0.0), (0.5, 1.0)], ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_focal_gradients_are_correctly_rounded(dtype, soft, options):
    x, t = inputs(1, (4, 20), DTYPES[dtype], soft)
    if not soft:
        x[0, :6] = [1000, -1000, 88, -88, 300, -300]
    alpha, gamma = options
    grad_output, boxes = -1.75, 3.0

    def loss(arrays):
        values = zip(arrays["inputs"].ravel(), arrays["targets"].ravel(), strict=True)
        with mpmath.workprec(4000):
            return sum(mpmath.mpf(grad_output) * truth.focal(a, b, alpha, gamma) for a, b in values) / boxes

    arrays = {"inputs": x, "targets": t}
    result = refloss.sigmoid_focal(x, t, boxes, alpha, gamma, reduction="sum", grad_output=grad_output)
    with mpmath.workprec(4000):
        for key in ("inputs", "targets"):
            if key == "targets" and not soft:
                continue  # a difference would leave [0, 1]
            coefficient = mpmath.mpf(grad_output) / boxes
            errors = ulp_errors(result.grads[key], element_derivative(arrays, key, options, coefficient), dtype)
            assert np.mean(correctly_rounded(errors)) >= 0.99999
            assert errors.max() <= 0.501
    assert ulp_errors(result.loss * grad_output, truth.value(loss, arrays), "float64") <= 3


def element_derivative(arrays, key, options, coefficient):
    """The derivative of every element's own loss, so that a difference costs two elements and not the sum."""
    with mpmath.workprec(4000):
        step = mpmath.ldexp(1, -1500)
        x, t = truth.exact(arrays["inputs"]), truth.exact(arrays["targets"])
        result = np.empty(x.shape, dtype=object)
        for index in np.ndindex(x.shape):
            a, b = x[index], t[index]
            move = (step, 0) if key == "inputs" else (0, step)
            high, low = truth.focal(a + move[0], b + move[1], *options), truth.focal(a - move[0], b - move[1], *options)
            result[index] = mpmath.mpf(coefficient) * (high - low) / (2 * step)
        return truth.pairs(result)


# Next to a soft target, next to 0, and far away; soft targets at what the logit says.
CROSSING = np.array([0.0, 1e-20, -1e-300, 2.0**-30, 1e-3, -0.01, 0.3, -0.5, 2.0, -3.0, 8.0, -20.0, 40.0, -80.0, 80.0])
FOCI = [(0.5, 2.0), (0.5, 0.0), (0.25, 2.0), (-1.0, 1.5), (0.75, 0.5), (0.25, 40.0), (0.5, 100.0), (0.25, 1e4)]
SIGNED = np.resize([1 / 3, 0.1, -0.7, 1 / 6, -1 / 7, 1.0], CROSSING.shape)


def soft_targets(x, kind):
    likely = 1 / (1 + np.exp(-x.astype(np.float64)))
    return {"likely": likely, "nearly": likely * (1 - 2.0**-12), "half": np.full(x.shape, 0.5)}[kind].astype(x.dtype)


@pytest.mark.parametrize("options", FOCI, ids=str)
@pytest.mark.parametrize("kind", ["likely", "nearly", "half"])
@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_focal_slopes_that_cross_zero(dtype, kind, options):
    """And exponents that are large: of a loss, a logit's and a target's gradient."""
    x = CROSSING.astype(DTYPES.get(dtype, np.float64))
    arrays = {"inputs": x, "targets": soft_targets(x, kind)}
    result = refloss.sigmoid_focal(*arrays.values(), 1.0, *options, reduction="none", grad_output=SIGNED)
    with mpmath.workprec(4000):
        values = [truth.focal(a, b, *options) for a, b in zip(*map(truth.exact, arrays.values()), strict=True)]
        # What is subnormal has fewer digits.
        assert (ulp_errors(result.loss, truth.pairs(values), "float64") <= 2.0).all()
        for key in arrays:
            slopes = element_derivative(arrays, key, options, 1.0)
            for got, high, low, shift, c in zip(result.grads[key].astype(float), *slopes, SIGNED, strict=True):
                exact = mpmath.mpf(high) + mpmath.ldexp(mpmath.mpf(low), -int(shift))
                exact *= mpmath.mpf(float(c))
                if dtype != "float64":
                    assert ulp_errors(got, truth.pairs(exact), dtype) <= 0.501
                elif abs(exact) > 1e-300:
                    # Of the terms that cross, twice 2^-53, times what is_close leaves.
                    assert abs(got - exact) <= abs(exact) * 2.0**-39


@pytest.mark.parametrize("gamma", [0.0, 2.0, 3.5, 40.0, 100.0, 1e4])
@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_varifocal_exponents_that_are_large(dtype, gamma):
    x, t = CROSSING.astype(DTYPES.get(dtype, np.float64)), np.zeros(CROSSING.shape)
    result = refloss.varifocal(x, t, 1.0, 0.5, gamma, reduction="none", grad_output=SIGNED)
    with mpmath.workprec(300):
        for got, value, logit, c in zip(result.grads["inputs"].astype(float), result.loss, x, SIGNED, strict=True):
            p = truth.sigmoid(mpmath.mpf(float(logit)))
            weight = p ** mpmath.mpf(gamma) / 2
            assert ulp_errors(value, truth.pairs(weight * truth.softplus(mpmath.mpf(float(logit)))), "float64") <= 2
            error = ulp_errors(got, truth.pairs(mpmath.mpf(float(c)) * weight * p), dtype)
            assert error <= (2 if dtype == "float64" else 0.501)


@pytest.mark.parametrize("alpha", [0.25, 0.75, 3 / 8 + 2.0**-9])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_short_slope_is_rounded_once(dtype, alpha):
    """With γ = 0 it is half of α, times a cotangent over a number of boxes that no float64 is equal to."""
    logits = np.zeros((4, 5), DTYPES[dtype])
    gradient = np.empty_like(logits)
    nobody = positives_of(np.full(4, -1))
    for cotangent in (
        Fraction(1 / 3) * 3,
        Fraction(0.1) * 10,
        Fraction(1 / 7) * 7,
        Fraction(257, 256),
        Fraction(1 / 3),
    ):
        one_class_loss(
            ONE_CLASS_LOOP,
            logits,
            gradient,
            nobody,
            Focus(1.0 - alpha, alpha, 0.0),
            cotangent=cotangent,
            divisor=3.0,
            backend="cpu",
        )
        wanted = nearest(cotangent / 3 * Fraction(alpha) / 2, *FORMATS[dtype])
        assert {Fraction(float(value)) for value in gradient.ravel()} == {wanted}


@pytest.mark.parametrize("gamma", [3.0, 3.5, 40.0, 400.0])
def test_focal_values_keep_their_digits(gamma):
    generator = np.random.default_rng(7)
    x, t = generator.standard_normal(150) * 2, generator.random(150)
    found = refloss.sigmoid_focal(x, t, 1.0, 0.25, gamma, reduction="none").loss
    with mpmath.workprec(300):
        values = [truth.focal(a, b, 0.25, gamma) for a, b in zip(truth.exact(x), truth.exact(t), strict=True)]
    assert ulp_errors(found, truth.pairs(values), "float64").max() <= 1.5


def test_focal_reductions():
    x, t = inputs(2, (4, 20), np.float32, True)
    each = refloss.sigmoid_focal(x, t, reduction="none", grad_output=0.5)
    mean = refloss.sigmoid_focal(x, t, 2.0, grad_output=20.0)
    total = refloss.sigmoid_focal(x, t, 2.0, reduction="sum")
    np.testing.assert_allclose(mean.loss, each.loss.mean(axis=1).sum() / 2, rtol=1e-14)
    np.testing.assert_allclose(total.loss, each.loss.sum() / 2, rtol=1e-14)
    np.testing.assert_array_equal(mean.grads["inputs"], each.grads["inputs"])
    np.testing.assert_array_equal(each.intermediates["losses"], each.loss)


def test_focal_edges():
    x = np.array([[-np.inf, np.inf, np.nan, -np.inf]])
    result = refloss.sigmoid_focal(x, np.array([[0.0, 1.0, 0.0, 1.0]]), reduction="none")
    np.testing.assert_array_equal(result.loss, [[0.0, 0.0, np.nan, np.inf]])
    # On the wrong side, a slope's limit.
    np.testing.assert_array_equal(result.grads["inputs"], [[0.0, 0.0, np.nan, -0.25]])
    np.testing.assert_array_equal(result.grads["targets"][0, :2], [0.0, 0.0])
    assert refloss.sigmoid_focal(np.empty((0, 3)), np.empty((0, 3))).loss == 0.0
    assert np.isnan(refloss.sigmoid_focal(np.empty((3, 0)), np.empty((3, 0))).loss)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dice_gradients_are_correctly_rounded(dtype, soft):
    x, t = inputs(3, (3, 4, 5), DTYPES[dtype], soft)
    x = np.clip(x, -60, 60)
    cotangents = np.array([1.5, -0.3, 2.0])

    def loss(arrays):
        masks = zip(cotangents, arrays["inputs"], arrays["targets"], strict=True)
        return sum(mpmath.mpf(float(c)) * truth.dice(a, b) for c, a, b in masks)

    arrays = {"inputs": x, "targets": t}
    result = refloss.dice(x, t, reduction="none", grad_output=cotangents)
    for key in ("inputs", "targets"):
        errors = ulp_errors(result.grads[key], truth.derivative(loss, arrays, key), dtype)
        assert np.mean(correctly_rounded(errors)) >= 0.99999
        assert errors.max() <= 0.501
    np.testing.assert_allclose(refloss.dice(x, t, 2.0).loss, result.loss.sum() / 2, rtol=1e-15)


def test_a_mask_that_fits_keeps_its_digits():
    t = (np.random.default_rng(0).random((2, 30)) < 0.5).astype(np.float32)
    x = np.where(t > 0, 80, -80).astype(np.float32)
    for row, target, found in zip(x, t, refloss.dice(x, t, reduction="none").loss, strict=True):
        true = truth.value(lambda arrays: truth.dice(arrays["x"], arrays["t"]), {"x": row, "t": target})
        assert 0 < found < 1e-30
        assert ulp_errors(found, true, "float64") <= 2


def test_dice_edges():
    assert refloss.dice(np.empty((0, 3)), np.empty((0, 3))).loss == 0.0
    assert refloss.dice(np.empty((2, 0)), np.empty((2, 0))).loss == 0.0
    x = np.zeros((2, 3))
    x[0, 1] = np.nan
    result = refloss.dice(x, np.ones((2, 3)), reduction="none")
    assert np.isnan(result.loss[0])
    assert np.isnan(result.grads["inputs"][0]).all()
    assert np.isfinite(result.grads["inputs"][1]).all()


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("sigmoid_focal", {"targets": np.ones((3, 2))}, ValueError, "targets has shape (3, 2)"),
        ("sigmoid_focal", {"targets": np.full((2, 3), 1.5)}, ValueError, "targets[0, 0] = 1.5 is outside [0, 1]"),
        ("sigmoid_focal", {"inputs": np.ones(3), "targets": np.ones(3)}, ValueError, "inputs has shape (3,)"),
        ("sigmoid_focal", {"gamma": -1}, ValueError, "gamma is -1.0; expected a finite number of at least 0"),
        ("sigmoid_focal", {"reduction": "all"}, ValueError, "reduction is 'all'"),
        ("sigmoid_focal", {"inputs": np.ones((2, 3), int)}, TypeError, "inputs has dtype int64"),
        ("dice", {"inputs": np.ones(()), "targets": np.ones(())}, ValueError, "inputs has shape ()"),
        ("dice", {"targets": np.ones((3, 2))}, ValueError, "targets has shape (3, 2)"),
        ("dice", {"reduction": "mean"}, ValueError, "reduction is 'mean'"),
        ("dice", {"targets": np.full((2, 3), -0.5)}, ValueError, "targets[0, 0] = -0.5 is outside [0, 1]"),
    ],
)
def test_errors(name, changes, error, message):
    with pytest.raises(error) as caught:
        getattr(refloss, name)(**{"inputs": np.ones((2, 3)), "targets": np.ones((2, 3))} | changes)
    assert str(caught.value).startswith(message)
