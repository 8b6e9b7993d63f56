"""Losses of similarities: mpmath, derivatives, edges, layouts and bad input."""

from typing import Any

import mpmath
import numpy as np
import pytest

import refloss
from tests.test_derivatives import TOLERANCE, fourth_order
from tests.test_elementwise import DTYPES, sigmoid, softplus
from tests.test_same_bits import bits, layouts
from tests.truth import correctly_rounded, pairs, ulp_errors

INFINITY, NAN = np.inf, np.nan
REDUCTIONS = ("mean", "sum", "none")


def similarities(count: int, dtype: Any, seed: int = 0) -> np.ndarray:
    """Of all sizes, with pairs that are more alike than others."""
    generator = np.random.default_rng([seed, count])
    values = generator.standard_normal((count, count)) * generator.choice([0.1, 3.0, 60.0], (count, count))
    return (values + 20.0 * np.diag(generator.random(count))).astype(dtype)


def of_sigmoids(x, each):
    """Losses of rows and the gradient, in mpmath."""
    sign = [[1 if i == j else -1 for j in range(len(x))] for i in range(len(x))]
    losses = [mpmath.fsum(softplus(-y * z) for y, z in zip(*row, strict=True)) for row in zip(sign, x, strict=True)]
    gradient = [
        [-c * y * sigmoid(-y * z) for y, z in zip(*row, strict=True)]
        for c, row in zip(each, zip(sign, x, strict=True), strict=True)
    ]
    return losses, gradient


TRUTHS = {"sigmoid_contrastive": ("logits", of_sigmoids, {})}


@pytest.mark.parametrize("name", TRUTHS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_gradients_are_correctly_rounded(name, reduction, dtype):
    argument, truth, options = TRUTHS[name]
    x = similarities(17, DTYPES.get(dtype, np.float64))
    upstream = np.linspace(0.3, 1.7, 17) if reduction == "none" else -0.7
    with mpmath.workprec(2000):
        numbers = [[mpmath.mpf(float(value)) for value in row] for row in x]
        divisor = 17 if reduction == "mean" else 1
        losses, gradient = truth(numbers, [mpmath.mpf(float(c)) / divisor for c in np.broadcast_to(upstream, 17)])
        expected = pairs(losses if reduction == "none" else mpmath.fsum(losses) / divisor)
        gradient = pairs(gradient)
    result = getattr(refloss, name)(x, reduction=reduction, grad_output=upstream, **options)
    errors = ulp_errors(result.grads[argument], gradient, dtype)
    assert errors.max() <= 2 if dtype == "float64" else np.all(correctly_rounded(errors))
    assert np.max(ulp_errors(result.loss, expected, "float64")) <= 2


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", TRUTHS)
def test_gradients_are_derivatives(name, reduction):
    argument, _, options = TRUTHS[name]
    generator = np.random.default_rng(0)
    x = generator.standard_normal((4, 4))
    upstream = generator.standard_normal(4) if reduction == "none" else -1.7
    loss = getattr(refloss, name)
    result = loss(x, reduction=reduction, grad_output=upstream, **options)
    expected = fourth_order(lambda a: np.sum(upstream * loss(a, reduction=reduction, grad=False, **options).loss), x)
    np.testing.assert_allclose(result.grads[argument], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", TRUTHS)
def test_threads_blocks_and_layouts_do_not_show(name, monkeypatch):
    from refloss.kernels.elementwise import run

    argument, _, options = TRUTHS[name]
    x, upstream = similarities(31, np.float32), np.linspace(-1.0, 2.0, 31)
    loss = getattr(refloss, name)
    call = {"reduction": "none", "grad_output": upstream} | options
    expected = bits(loss(x, **call))
    threads = refloss.get_num_threads()
    for count, block in ((1, 7), (3, 64)):
        monkeypatch.setattr(run, "BLOCK_ELEMENTS", block)
        refloss.set_num_threads(count)
        assert bits(loss(x, **call)) == expected
    refloss.set_num_threads(threads)
    for layout, view in layouts(x):
        assert bits(loss(view, **call)) == expected, layout
    order = np.random.default_rng(1).permutation(31)
    permuted = loss(x[order][:, order], **call | {"grad_output": upstream[order]})
    whole = loss(x, **call)
    assert np.array_equal(permuted.loss, whole.loss[order])
    assert np.array_equal(permuted.grads[argument], whole.grads[argument][order][:, order])


@pytest.mark.parametrize("name", TRUTHS)
def test_no_pairs(name):
    loss, empty = getattr(refloss, name), np.zeros((0, 0), np.float32)
    assert np.isnan(loss(empty).loss)
    assert loss(empty, reduction="sum").loss == 0.0
    result = loss(empty, reduction="none")
    assert result.loss.shape == (0,)
    assert next(iter(result.grads.values())).shape == (0, 0)


def test_sigmoids_of_infinite_logits():
    result = refloss.sigmoid_contrastive([[INFINITY, -INFINITY], [0.0, -INFINITY]], reduction="none")
    assert np.array_equal(result.loss, [0.0, INFINITY])
    assert np.array_equal(result.grads["logits"], [[0.0, 0.0], [0.5, -1.0]])
    result = refloss.sigmoid_contrastive([[NAN, 0.0], [0.0, 1.0]])
    assert np.isnan(result.loss)
    assert np.array_equal(np.isnan(result.grads["logits"]), [[True, False], [False, False]])


def test_losses_of_elements_when_asked_for():
    x = similarities(5, np.float32)
    result = refloss.sigmoid_contrastive(x, reduction="sum")
    losses = result.intermediates["losses"]
    assert losses.shape == (5, 5)
    np.testing.assert_allclose(losses.sum(), result.loss, rtol=1e-14)


BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("sigmoid_contrastive", {"logits": np.zeros((2, 3))}, ValueError, r"logits has shape \(2, 3\); expected \[N, N\]"),
    ("sigmoid_contrastive", {"logits": np.zeros((2, 2), int)}, TypeError, "logits has dtype int64"),
    ("sigmoid_contrastive", {"logits": np.zeros((2, 2)), "grad_output": np.ones(2)}, ValueError, "grad_output has"),
    ("sigmoid_contrastive", {"logits": np.zeros((2, 2)), "reduction": "all"}, ValueError, "reduction is 'all'"),
]


@pytest.mark.parametrize(("name", "arguments", "error", "message"), BAD, ids=str)
def test_bad_input(name, arguments, error, message):
    with pytest.raises(error, match=message):
        getattr(refloss, name)(**arguments)
