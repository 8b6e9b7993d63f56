"""Losses of three arrays of corresponding elements: correct rounding, derivatives, layouts, edges."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

import refloss
from tests.test_derivatives import TOLERANCE, fourth_order
from tests.test_formats import nearest
from tests.test_same_bits import bits, layouts

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


BAD = [
    ({"input2": np.zeros(3)}, ValueError, r"input2 has shape \(3,\); expected \(2,\), the shape of input1"),
    ({"target": np.zeros((1, 2))}, ValueError, r"target has shape \(1, 2\); expected \(2,\), the shape of input1"),
    ({"target": np.ones(2, int)}, TypeError, "target has dtype int64"),
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
