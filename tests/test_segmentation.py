"""Semantic segmentation against its definition: every pixel counts by its weight and not beyond."""

from fractions import Fraction

import ml_dtypes
import mpmath
import numpy as np
import pytest

import refloss
from refloss.cases.source import DTYPES
from tests.segmentation_truth import PRECISION_BITS, segmentation, shares
from tests.truth import pairs, ulp_errors

# Of logits and of labels: larger, smaller, the same, a point, a line.
SIZES = [((3, 2), (7, 9)), ((5, 7), (3, 4)), ((3, 4), (3, 4)), ((1, 1), (4, 3)), ((1, 1), (1, 1)), ((4, 5), (5, 1))]
OFFSETS = {"float64": (0, 1e4, 1e6, -1e6), "float32": (0, 1e4, 1e6, -1e6), "bfloat16": (0, 256), "float16": (0, 1024)}
THIRD = 1 / 3


def images(dtype, size, resized, offset, scale=1.0, seed=0):
    """Logits of four classes around an offset, and labels of which some are ignored."""
    generator = np.random.default_rng(seed)
    x = (generator.standard_normal((2, 4, *size)) * scale + offset).astype(dtype)
    labels = generator.integers(4, size=(2, *resized))
    labels[generator.random(labels.shape) < 0.1] = 255
    labels[0, 0, 0] = 1
    return x, labels


def assert_true(result, true, dtype):
    """Gradients rounded once; those in float64 within 2 ulp of each term of their sum."""
    with mpmath.workprec(PRECISION_BITS):
        if dtype == "float64":
            errors = [
                abs(mpmath.mpf(g) - t) for g, t in zip(result.ravel().tolist(), true.gradient.ravel(), strict=True)
            ]
            assert all(e <= size * 2.0**-51 for e, size in zip(errors, true.magnitude.ravel(), strict=True))
        else:
            assert ulp_errors(result, pairs(true.gradient), dtype).max() <= 0.501


@pytest.mark.parametrize(("size", "resized"), SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_and_losses_are_those_of_the_definition(dtype, size, resized):
    for offset in OFFSETS[dtype]:
        for scale in (0.5, 8.0):
            x, labels = images(DTYPES[dtype], size, resized, offset, scale)
            result = refloss.semantic_segmentation(x, labels, grad_output=-THIRD)
            true = segmentation(x, labels, by=-mpmath.mpf(THIRD))
            assert_true(result.grads["logits"], true, dtype)
            with mpmath.workprec(PRECISION_BITS):
                assert ulp_errors(result.loss, pairs(true.loss), "float64") <= 2
                assert ulp_errors(result.intermediates["nll"], pairs(true.nll), "float64").max() <= 2
                if offset:
                    # Close to 0 it is a difference of others.
                    assert ulp_errors(result.intermediates["lse"], pairs(true.lse), "float64").max() <= 2


@pytest.mark.parametrize(("size", "resized"), SIZES, ids=str)
def test_upsampled_logits_are_rounded_once(size, resized):
    for offset in (0, 1e6):
        x, labels = images(np.float32, size, resized, offset)
        got = refloss.semantic_segmentation(x, labels).intermediates["upsampled_logits"]
        down, across = (shares(*sizes) for sizes in zip(size, resized, strict=True))
        for image, c, row, column in np.ndindex(got.shape):
            exact = sum(v * h * Fraction(float(x[image, c, i, j])) for i, v in down[row] for j, h in across[column])
            assert got[image, c, row, column] == float(exact)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_ignored_pixel_s_logits_stay_with_it(dtype, value):
    x = np.zeros((1, 2, 1, 2), DTYPES[dtype])
    x[0, :, 0, 1] = value
    result = refloss.semantic_segmentation(x, [[[0, 255]]])
    assert result.loss == np.log(2.0)
    assert result.grads["logits"].astype(float).ravel().tolist() == [-0.5, 0.0, 0.5, 0.0]
    # Above and below, and three outputs to an element: the middle one lies on it.
    tall, labels = x.transpose(0, 1, 3, 2), np.array([255, 0, 255, 255, 255, 255])[None, :, None]
    result = refloss.semantic_segmentation(tall, labels)
    assert result.loss == np.log(2.0)
    assert result.grads["logits"].astype(float).ravel().tolist() == [-0.5, 0.0, 0.5, 0.0]


def test_a_masked_class_is_the_neighbour_s_business():
    x = np.array([[[[1.0, -np.inf, 2.0]], [[0.5, 1.0, -np.inf]], [[-1.0, 0.25, 1.0]]]], np.float32)
    labels = np.array([[[0, 1, 0]]])
    result = refloss.semantic_segmentation(x, labels)
    true = segmentation(x, labels)
    assert_true(result.grads["logits"], true, "float32")
    assert result.grads["logits"][0, 0, 0, 1] == 0
    assert result.grads["logits"][0, 1, 0, 2] == 0
    # What has a share in it has one: between the two, the class is masked.
    result = refloss.semantic_segmentation(x, np.array([[[1, 1, 2, 2]]]))
    assert_true(result.grads["logits"], segmentation(x, np.array([[[1, 1, 2, 2]]])), "float32")


@pytest.mark.parametrize("offset", [0.0, 1e6, -1e6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_cancels_is_zero(dtype, offset):
    """Equal logits, and as many pixels of each class at the same distances."""
    x = np.full((1, 2, 3, 3), 0.0 if dtype in ("bfloat16", "float16") else offset, DTYPES[dtype])
    board = (np.arange(36).reshape(1, 6, 6) + np.arange(6)[:, None]) % 2
    for by in (1.0, THIRD, -0.7):
        result = refloss.semantic_segmentation(x, board, grad_output=by)
        true = segmentation(x, board, by=mpmath.mpf(by))
        assert [abs(value) < 2.0**-1000 for value in true.gradient.ravel()] == (
            result.grads["logits"] == 0
        ).ravel().tolist()
        assert_true(result.grads["logits"], true, dtype)
    for classes in (3, 5, 7):
        # Each class once, at points of the same weight: 1/C of them all less one.
        labels = np.arange(classes).reshape(1, 1, classes)
        ones = np.full((1, classes, 1, 1), offset if dtype in ("float32", "float64") else 0.0, DTYPES[dtype])
        result = refloss.semantic_segmentation(ones, labels, grad_output=THIRD)
        assert not result.grads["logits"].astype(float).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_nearly_cancels_is_computed_again(dtype):
    """A confident class and its label, balanced by another pixel to a few digits."""
    for step in (2.0**-6, 2.0**-3):
        x = np.zeros((1, 2, 1, 1), DTYPES[dtype])
        x[0, 0] = step
        labels = np.array([[[0, 1, 1, 0]]])
        result = refloss.semantic_segmentation(x, labels, grad_output=0.7)
        assert_true(result.grads["logits"], segmentation(x, labels, by=mpmath.mpf(0.7)), dtype)
    generator = np.random.default_rng(3)
    x = (generator.standard_normal((1, 2, 2, 2)) * 2.0**-20).astype(DTYPES[dtype])
    labels = np.tile([0, 1, 1, 0], (1, 4, 1))
    result = refloss.semantic_segmentation(x, labels, grad_output=THIRD)
    assert_true(result.grads["logits"], segmentation(x, labels, by=mpmath.mpf(THIRD)), dtype)


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_ties_go_to_the_even_number(classes):
    """Gradients of equal logits are fractions: those on a tie of bfloat16, and those just beside."""
    for by in (classes * 257 / 256, classes * 515 / 512, 257 / 3, 1 / 7, 0.1):
        x = np.zeros((1, classes, 1, 1), ml_dtypes.bfloat16)
        result = refloss.semantic_segmentation(x, np.zeros((1, 1, 3), int), grad_output=by)
        exact = [Fraction(by) * (Fraction(1, classes) - (c == 0)) for c in range(classes)]
        assert result.grads["logits"].ravel().tolist() == [_bfloat16(value) for value in exact]


def _bfloat16(value):
    """The nearest of its numbers, by fractions: 8 bits."""
    exponent = int(np.floor(np.log2(float(abs(value))))) - 7
    return float(np.ldexp(round(value / Fraction(2) ** exponent), exponent))


def test_parts_are_added_exactly():
    x, labels = images(np.float32, (2, 2), (4, 4), 0)
    auxiliary, _ = images(np.float32, (3, 1), (4, 4), 0, seed=1)
    options = {"num_items_in_batch": 7, "auxiliary_loss_weight": 0.1}
    result = refloss.semantic_segmentation(x, labels, auxiliary_logits=auxiliary, grad_output=THIRD, **options)
    first, second = (sum(map(Fraction, result.intermediates[name].ravel())) for name in ("nll", "auxiliary_nll"))
    assert result.loss == float((first + Fraction(0.1) * second) / 7)
    true = segmentation(auxiliary, labels, by=mpmath.mpf(THIRD) * mpmath.mpf(0.1), items=7)
    assert_true(result.grads["auxiliary_logits"], true, "float32")
    # Neither a part nor what is asked for besides changes the other.
    alone = refloss.semantic_segmentation(x, labels, num_items_in_batch=7, grad_output=THIRD)
    assert np.array_equal(alone.grads["logits"], result.grads["logits"])
    without = refloss.semantic_segmentation(x, labels, num_items_in_batch=7, grad=False)
    assert np.array_equal(without.intermediates["nll"], result.intermediates["nll"])


def test_a_cotangent_that_is_not_finite():
    x, labels = images(np.float32, (2, 2), (2, 2), 0)
    labels[0] = [[255, 0], [1, 2]]
    gradient = refloss.semantic_segmentation(x, labels, num_items_in_batch=0).grads["logits"]
    assert not gradient[0, :, 0, 0].any()
    assert np.isinf(gradient[0, :, 0, 1]).all()
    everywhere = refloss.semantic_segmentation(x, np.full_like(labels, 255))
    assert np.isnan(everywhere.loss)
    assert not everywhere.grads["logits"].any()


def test_large_logits_do_not_overflow():
    for dtype, largest in ((np.float64, 1.7e308), (np.float32, 3.4e38)):
        x = np.full((1, 2, 2, 2), largest, dtype)
        result = refloss.semantic_segmentation(x, np.zeros((1, 3, 3), int))
        assert result.loss == np.log(2.0)
