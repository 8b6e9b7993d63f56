"""Losses of similarities: mpmath, derivatives, edges, layouts and bad input."""

import functools
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


def of_lines(lines, smoothing):
    """Cross-entropies of rows whose labels are on the diagonal, and p − q."""
    losses, slopes = [], []
    for i, line in enumerate(lines):
        lse = mpmath.log(mpmath.fsum(map(mpmath.exp, line)))
        q = [(1 - smoothing) * (i == j) + smoothing / len(line) for j in range(len(line))]
        losses.append(mpmath.fsum(mass * (lse - value) for mass, value in zip(q, line, strict=True)))
        slopes.append([mpmath.exp(value - lse) - mass for mass, value in zip(q, line, strict=True)])
    return losses, slopes


def transposed(x):
    return [*zip(*x, strict=True)]


def of_softmaxes(x, each, smoothing=0.0):
    """Losses of pairs and the gradient, in mpmath."""
    (rows, of_rows), (columns, of_columns) = (of_lines(lines, mpmath.mpf(smoothing)) for lines in (x, transposed(x)))
    count = range(len(x))
    gradient = [[(each[i] * of_rows[i][j] + each[j] * of_columns[j][i]) / 2 for j in count] for i in count]
    return [(a + b) / 2 for a, b in zip(rows, columns, strict=True)], gradient


TRUTHS: dict[str, Any] = {
    "sigmoid_contrastive": ("logits", of_sigmoids, {}),
    "info_nce": ("similarity", of_softmaxes, {}),
    "info_nce smoothed": ("similarity", functools.partial(of_softmaxes, smoothing=0.1), {"label_smoothing": 0.1}),
}


def called(name: str) -> Any:
    return getattr(refloss, name.partition(" ")[0])


@pytest.mark.parametrize("name", TRUTHS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_gradients_are_correctly_rounded(name, reduction, dtype):
    argument, truth, options = TRUTHS[name]
    x = similarities(17, DTYPES.get(dtype, np.float64))
    upstream = np.linspace(-1.0, 1.7, 17) if reduction == "none" else -0.7
    with mpmath.workprec(2000):
        numbers = [[mpmath.mpf(float(value)) for value in row] for row in x]
        divisor = 17 if reduction == "mean" else 1
        losses, gradient = truth(numbers, [mpmath.mpf(float(c)) / divisor for c in np.broadcast_to(upstream, 17)])
        expected = pairs(losses if reduction == "none" else mpmath.fsum(losses) / divisor)
        gradient = pairs(gradient)
    result = called(name)(x, reduction=reduction, grad_output=upstream, **options)
    errors = ulp_errors(result.grads[argument], gradient, dtype)
    if dtype != "float64":
        assert np.all(correctly_rounded(errors))
    elif name != "info_nce smoothed" and reduction == "mean":
        assert errors.max() <= 2
    assert np.max(ulp_errors(result.loss, expected, "float64")) <= 2


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", TRUTHS)
def test_gradients_are_derivatives(name, reduction):
    argument, _, options = TRUTHS[name]
    generator = np.random.default_rng(0)
    x = generator.standard_normal((4, 4))
    upstream = generator.standard_normal(4) if reduction == "none" else -1.7
    loss = called(name)
    result = loss(x, reduction=reduction, grad_output=upstream, **options)
    expected = fourth_order(lambda a: np.sum(upstream * loss(a, reduction=reduction, grad=False, **options).loss), x)
    np.testing.assert_allclose(result.grads[argument], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", TRUTHS)
def test_threads_blocks_and_layouts_do_not_show(name, monkeypatch):
    from refloss.kernels.contrastive import run as of_pairs
    from refloss.kernels.elementwise import run

    argument, _, options = TRUTHS[name]
    x, upstream = similarities(31, np.float32), np.linspace(-1.0, 2.0, 31)
    loss = called(name)
    call = {"reduction": "none", "grad_output": upstream} | options
    expected = bits(loss(x, **call))
    threads = refloss.get_num_threads()
    for count, block in ((1, 7), (3, 64)):
        monkeypatch.setattr(run, "BLOCK_ELEMENTS", block)
        monkeypatch.setattr(of_pairs, "BLOCK_ELEMENTS", block)
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
    loss, empty = called(name), np.zeros((0, 0), np.float32)
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


def test_one_pair_costs_nothing():
    for options in ({}, {"label_smoothing": 0.3}, {"symmetric": False}):
        result = refloss.info_nce(np.float32([[7.0]]), **options)
        assert result.loss == 0.0
        assert not result.grads["similarity"].any()


def test_rows_and_columns_without_a_number():
    """As torch has it: NaN and +inf make a row and a column undefined, −inf makes none of them so unless all are."""
    x = np.array([[1.0, -INFINITY, 2.0], [0.0, 1.0, NAN], [0.0, 2.0, 1.0]])
    result = refloss.info_nce(x, reduction="none")
    assert np.array_equal(np.isnan(result.loss), [False, True, True])
    assert np.array_equal(np.isnan(result.grads["similarity"]), (np.arange(3) == 1)[:, None] | (np.arange(3) == 2))
    assert result.grads["similarity"][0, 1] == 0.0
    result = refloss.info_nce([[-INFINITY, -INFINITY], [0.0, 1.0]], reduction="none")
    assert np.array_equal(np.isnan(result.loss), [True, False])
    result = refloss.info_nce([[-INFINITY, 1.0], [0.0, 1.0]], reduction="none")
    assert result.loss[0] == INFINITY
    assert result.grads["similarity"][0, 0] == -1.0
    smoothed = refloss.info_nce([[0.0, -INFINITY], [0.0, 1.0]], label_smoothing=0.1)
    assert smoothed.loss == INFINITY
    assert np.isfinite(smoothed.grads["similarity"]).all()


def test_what_is_equal_cancels():
    """Masses of ε/N at equal similarities, rows and columns with opposed cotangents: rational numbers, and 0."""
    zeros = np.zeros((3, 3), np.float32)
    assert not refloss.info_nce(zeros, label_smoothing=1.0, grad_output=0.7).grads["similarity"].any()
    expected = (np.ones((3, 3)) - 3 * np.eye(3)).astype(np.float32)
    assert np.array_equal(refloss.info_nce(zeros, grad_output=9.0).grads["similarity"], expected)
    swapped = np.array([[0.3, 1.7], [1.7, 0.3]])
    gradient = refloss.info_nce(swapped, reduction="none", grad_output=np.array([1.0, -1.0])).grads["similarity"]
    assert gradient[0, 1] == gradient[1, 0] == 0.0


def test_rows_alone_are_a_cross_entropy():
    x = np.random.default_rng(3).standard_normal((4, 9)).astype(np.float32)
    for options in ({}, {"label_smoothing": 0.2}, {"reduction": "none", "grad_output": np.arange(4.0)}):
        rows = refloss.info_nce(x, symmetric=False, **options)
        expected = refloss.cross_entropy(x, np.arange(4), **options)
        assert np.array_equal(rows.loss, expected.loss)
        assert np.array_equal(rows.grads["similarity"], expected.grads["logits"])
    out = np.empty((4, 9))
    assert refloss.info_nce(x, symmetric=False, out=out).grads["similarity"] is out
    assert refloss.info_nce(x, symmetric=False, grad=False).grads == {}


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
    ("info_nce", {"similarity": np.zeros((2, 3))}, ValueError, r"similarity has shape \(2, 3\); expected \[N, N\]"),
    ("info_nce", {"similarity": np.zeros((3, 2)), "symmetric": False}, ValueError, r"expected \[N, M\] with M of at"),
    ("info_nce", {"similarity": np.zeros(2)}, ValueError, r"similarity has shape \(2,\)"),
    ("info_nce", {"similarity": np.zeros((2, 2)), "label_smoothing": 1.5}, ValueError, "label_smoothing is 1.5"),
    ("info_nce", {"similarity": np.zeros((2, 2)), "symmetric": "no"}, TypeError, "symmetric is 'no'"),
    ("info_nce", {"similarity": np.zeros((2, 2)), "grad": "logits"}, ValueError, "expected .*'similarity'"),
    ("info_nce", {"similarity": np.zeros((2, 2)), "out": np.zeros(2)}, ValueError, "the shape of similarity"),
]


@pytest.mark.parametrize(("name", "arguments", "error", "message"), BAD, ids=str)
def test_bad_input(name, arguments, error, message):
    with pytest.raises(error, match=message):
        getattr(refloss, name)(**arguments)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", [0, 1])
def test_undefined_rows_and_columns_stay_so_where_elements_are_computed_again(axis, value):
    generator = np.random.default_rng(0)
    similarity, cotangent = generator.standard_normal((130, 130)), generator.standard_normal(130)
    of_column = similarity if axis else similarity.T
    of_column[:, 1] = value if value < 0 else of_column[:, 1]
    of_column[5, 1] = value
    undefined = np.zeros((130, 130), bool)
    undefined[:, 1] = True
    undefined[5] |= not value < 0
    for smoothing in (0.2, 1.0):
        options = {"label_smoothing": smoothing, "reduction": "none", "grad_output": cotangent}
        gradient = refloss.info_nce(similarity, **options).grads["similarity"]
        assert np.array_equal(np.isnan(gradient), undefined if axis else undefined.T)
