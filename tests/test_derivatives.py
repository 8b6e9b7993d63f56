"""Finite differences of fourth order in float64, for pairs of options; cotangents signed and non-uniform."""

import itertools

import numpy as np
import pytest

import refloss

STEP = 2.0**-9
SHAPE = (4, 6, 2)
# The truncation error of the stencil is about f⁗·h⁴/30 and its rounding error some ulp over h: both below 1e-10.
TOLERANCE = 1e-9


def fourth_order(function, x):
    """The gradient of a scalar function: (f(x−2h) − 8f(x−h) + 8f(x+h) − f(x+2h)) / 12h."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        for shift, factor in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
            moved = x.copy()
            moved[index] += shift * STEP
            gradient[index] += factor * function(moved)
    return gradient / (12 * STEP)


OPTIONS = {
    "target": ["labels", "probabilities"],
    "reduction": ["mean", "sum", "none"],
    "weight": [False, True],
    "label_smoothing": [0.0, 0.3, 1.0],
    "rows": ["plain", "ignored", "masked class", "confident"],
}


def combinations():
    """All of them: pairwise would be a third, and each takes a few milliseconds."""
    for values in itertools.product(*OPTIONS.values()):
        case = dict(zip(OPTIONS, values, strict=True))
        if case["target"] == "probabilities" and case["rows"] in ("ignored", "masked class"):
            continue
        # A masked class has probability 0, and smoothing gives it weight: the loss is infinite.
        if case["rows"] == "masked class" and case["label_smoothing"]:
            continue
        yield pytest.param(case, id=" ".join(str(value) for value in values))


@pytest.mark.parametrize("case", list(combinations()))
def test_gradients_are_derivatives(case):
    generator = np.random.default_rng(0)
    logits = generator.standard_normal(SHAPE) * 2
    row_shape = (SHAPE[0], *SHAPE[2:])
    target = generator.integers(1, SHAPE[1], size=row_shape)
    if case["rows"] == "ignored":
        target[1] = -100
    if case["rows"] == "confident":
        logits[:, 2] += 7
        target[::2] = 2
    if case["rows"] == "masked class":
        logits[:, 0] = -np.inf
    if case["target"] == "probabilities":
        target = generator.dirichlet(np.ones(SHAPE[1]), row_shape).transpose(0, 2, 1)
    grad_output = generator.standard_normal(row_shape) if case["reduction"] == "none" else -1.7
    options = {
        "weight": generator.uniform(0.2, 3.0, SHAPE[1]) if case["weight"] else None,
        "label_smoothing": case["label_smoothing"],
        "reduction": case["reduction"],
    }

    def contracted(x, t):
        return np.sum(grad_output * refloss.cross_entropy(x, t, grad=False, **options).loss)

    result = refloss.cross_entropy(logits, target, grad_output=grad_output, **options)
    expected = fourth_order(lambda x: contracted(x, target), logits)
    np.testing.assert_allclose(result.grads["logits"], expected, rtol=0, atol=TOLERANCE)
    if case["target"] == "probabilities":
        expected = fourth_order(lambda t: contracted(logits, t), target)
        np.testing.assert_allclose(result.grads["target"], expected, rtol=0, atol=TOLERANCE)
    else:
        assert set(result.grads) == {"logits"}


@pytest.mark.parametrize("head", [refloss.causal_lm, refloss.masked_lm])
@pytest.mark.parametrize("num_items_in_batch", [None, 3, 7.5])
@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_heads_give_derivatives(head, num_items_in_batch, ignore_index):
    generator = np.random.default_rng(1)
    logits = generator.standard_normal((2, 5, 4))
    labels = generator.integers(4, size=(2, 5))
    labels[0, 3] = ignore_index
    options = {"num_items_in_batch": num_items_in_batch, "ignore_index": ignore_index}
    result = head(logits, labels, grad_output=-0.6, **options)
    expected = fourth_order(lambda x: -0.6 * head(x, labels, grad=False, **options).loss, logits)
    np.testing.assert_allclose(result.grads["logits"], expected, rtol=0, atol=TOLERANCE)
