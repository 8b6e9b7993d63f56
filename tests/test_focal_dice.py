"""Sigmoid focal loss and dice loss."""

import mpmath
import numpy as np
import pytest

import refloss
from tests import detection_truth as truth
from tests.test_elementwise import DTYPES
from tests.truth import correctly_rounded, ulp_errors


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
    np.testing.assert_array_equal(result.grads["inputs"][0, :3], [0.0, 0.0, np.nan])
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
