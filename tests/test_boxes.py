"""IoU and GIoU of pairs of boxes."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest

import refloss
from tests import detection_truth as truth
from tests import exact_boxes
from tests.test_elementwise import DTYPES
from tests.truth import FORMATS, correctly_rounded, ulp_errors

GENERATOR = np.random.default_rng(5)
CENTERS = np.concatenate([GENERATOR.random((2, 12, 2)), GENERATOR.random((2, 12, 2)) * 0.6 + 0.01], axis=-1)
CORNERS = np.concatenate([CENTERS[..., :2] - CENTERS[..., 2:] / 2, CENTERS[..., :2] + CENTERS[..., 2:] / 2], axis=-1)
BOXES = {"xyxy": CORNERS, "cxcywh": CENTERS}
UNIT = np.array([[0.0, 0.0, 1.0, 1.0]])


def definition(name, box_format, cotangents):
    """Σ c·(1 − overlap) of two arrays of boxes."""

    def loss(arrays):
        total = mpmath.mpf(0)
        for a, b, c in zip(arrays["boxes1"], arrays["boxes2"], cotangents, strict=True):
            either = (a, b) if box_format == "xyxy" else (truth.corners(a), truth.corners(b))
            total += mpmath.mpf(float(c)) * (1 - truth.overlap(*either)[name == "giou"])
        return total

    return loss


def have_ties(a, b, box_format):
    """Which boxes share a coordinate with their partner."""
    if box_format == "cxcywh":
        a, b = (
            np.concatenate([x[:, :2] - x[:, 2:] / 2, x[:, :2] + x[:, 2:] / 2], axis=1)
            for x in (a.astype(float), b.astype(float))
        )
    ends = [np.stack([x[:, :2], x[:, 2:]], axis=-1) for x in (a, b)]
    return (ends[0][..., :, None] == ends[1][..., None, :]).any(axis=(1, 2, 3))


@pytest.mark.parametrize("box_format", BOXES)
@pytest.mark.parametrize("name", ["iou", "giou"])
@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_gradients_are_correctly_rounded(name, box_format, dtype):
    arrays = {
        key: boxes.astype(DTYPES.get(dtype, np.float64))
        for key, boxes in zip(("boxes1", "boxes2"), BOXES[box_format], strict=True)
    }
    cotangents = GENERATOR.standard_normal(12)
    result = getattr(refloss, name)(**arrays, box_format=box_format, reduction="none", grad_output=cotangents)
    for key, gradient in result.grads.items():
        # Each pair has a gradient of its own, so that a pair's is that of its own loss.
        true = truth.derivative(definition(name, box_format, cotangents), arrays, key)
        errors = ulp_errors(gradient, true, dtype)
        # Coordinates of a coarse format coincide now and then, which a difference does not see.
        errors = errors[~have_ties(*arrays.values(), box_format)]
        assert np.mean(correctly_rounded(errors)) >= 0.99999
        assert errors.max() <= 0.501
    with mpmath.workprec(300):
        losses = [
            truth.value(definition(name, box_format, [1.0]), {k: v[i : i + 1] for k, v in arrays.items()}).high
            for i in range(12)
        ]
    np.testing.assert_allclose(result.loss, losses, rtol=5e-16)


COTANGENTS = np.array([1 / 3, 0.1, 0.7, -1 / 6, 1 / 7, -1.0, 257 / 256, 3.0])


def close_boxes(kind, box_format):
    """Pairs of boxes that differ in a way, float64."""
    first, second = BOXES[box_format].copy()
    if kind == "grid":
        first, second = np.round(8 * first) / 8, np.round(8 * second) / 8
        first[:, 2:] = np.maximum(first[:, 2:], (0 if box_format == "cxcywh" else first[:, :2]) + 0.125)
        second[:, 2:] = np.maximum(second[:, 2:], (0 if box_format == "cxcywh" else second[:, :2]) + 0.125)
    elif kind == "same":
        second = first.copy()
    elif kind == "near":
        second = first * (1 + 2.0**-7 * np.arange(-24, 24).reshape(first.shape) % 3)
    elif kind == "nearer":
        second = first * (1 + 2.0**-22 * (np.arange(48).reshape(first.shape) % 3))
    elif kind == "shared":
        second[:, [0, 2]] = first[:, [0, 2]]
    elif kind == "touching":
        second = first.copy()
        width = first[:, 2] if box_format == "cxcywh" else first[:, 2] - first[:, 0]
        second[:, 0] += width
        second[:, 2] += 0 if box_format == "cxcywh" else width
    elif kind == "inside":
        second[:, 2:] = 0.5 * first[:, 2:] + (0.0 if box_format == "cxcywh" else 0.5 * first[:, :2])
    return first, second


def assert_exact(name, box_format, dtype, first, second):
    """Every element is the exact one, rounded once; float64 is within 1 ulp of it, and 0 where it is 0."""
    arrays = {"boxes1": first, "boxes2": second}
    cotangents = np.resize(COTANGENTS, len(first))
    result = getattr(refloss, name)(**arrays, box_format=box_format, reduction="none", grad_output=cotangents)
    for key, (a, b) in zip(arrays, ((first, second), (second, first)), strict=True):
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            exact = exact_boxes.losses(one.astype(float), other.astype(float), box_format)[name]
            assert abs(result.loss[i] - float(exact.value)) <= 2 * np.spacing(float(exact.value)) * (exact.value != 0)
            for got, slope in zip(result.grads[key][i].astype(float), exact.slopes, strict=True):
                true = Fraction(float(cotangents[i])) * slope
                wanted = exact_boxes.nearest(true, *FORMATS[dtype])
                if dtype == "float64":
                    assert abs(Fraction(got) - true) <= Fraction(np.spacing(abs(float(wanted)))) * (true != 0)
                else:
                    assert Fraction(got) == wanted, (key, i, got, float(true))


@pytest.mark.parametrize("kind", ["grid", "same", "near", "nearer", "shared", "touching", "inside"])
@pytest.mark.parametrize("box_format", BOXES)
@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_boxes_that_share_edges_or_nearly_so(dtype, box_format, kind):
    first, second = (boxes.astype(DTYPES.get(dtype, np.float64)) for boxes in close_boxes(kind, box_format))
    for name in ("iou", "giou"):
        assert_exact(name, box_format, dtype, first, second)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_just_below_a_tie_is_no_tie(dtype):
    """The slope is 3·n/2^k, of an n that is half way between two numbers of the format; 1/3 is a little too small."""
    precision = FORMATS[dtype].precision
    slope = 3 * (2**precision + 3) / 2.0 ** (precision + 2)
    first, second = np.array([[0, 0, 1, 1]], DTYPES[dtype]), np.array([[1 - slope, 0, 1, 1]])
    got = refloss.iou(first, second, grad_output=1 / 3).grads["boxes1"][0, 0]
    wanted = exact_boxes.nearest(-Fraction(1 / 3) * Fraction(slope), *FORMATS[dtype])
    assert Fraction(float(got)) == wanted == Fraction(-(2**precision + 2)) / 2 ** (precision + 2)


def test_crossings_of_zero_on_a_grid():
    """Where the terms of a slope cancel, nothing is left of it."""
    generator = np.random.default_rng(0)
    sides = np.array([1, 2, 3, 5, 6, 7]) / 3
    first = np.concatenate([generator.integers(0, 8, (400, 2)) / 3, generator.choice(sides, (400, 2))], axis=1)
    second = np.concatenate([generator.integers(0, 8, (400, 2)) / 3, generator.choice(sides, (400, 2))], axis=1)
    first[:, 2:] += first[:, :2]
    second[:, 2:] += second[:, :2]
    for scale in (1.0, 3.0 / 8.0):
        a, b = np.float32(first * scale), np.float32(second * scale)
        got = refloss.giou(a, b, reduction="none", grad_output=np.full(400, 1 / 3)).grads["boxes1"]
        slopes = [exact_boxes.losses(u, v, "xyxy")["giou"].slopes for u, v in zip(a, b, strict=True)]
        zero = np.array([[slope == 0 for slope in row] for row in slopes])
        assert zero.any()
        np.testing.assert_array_equal(got == 0.0, zero)


@pytest.mark.parametrize("unit", [(1e200, 1e200), (1e-200, 1e-200), (1e150, 1e-150), (1e300, 1e-300)])
@pytest.mark.parametrize("box_format", BOXES)
def test_boxes_of_any_size(box_format, unit):
    first, second = (boxes * np.array(unit * 2) for boxes in BOXES[box_format])
    for name in ("iou", "giou"):
        assert_exact(name, box_format, "float64", first, second)


def test_an_infinite_cotangent_goes_by_the_float_rules():
    slopes = refloss.giou(*CORNERS).grads["boxes1"]
    np.testing.assert_array_equal(refloss.giou(*CORNERS, grad_output=np.inf).grads["boxes1"], slopes * np.inf)
    same = refloss.giou(CORNERS[0], CORNERS[0], grad_output=np.inf)
    assert np.isnan(same.grads["boxes1"]).all()


def test_tiny_boxes_far_apart():
    first, second = np.array([[0.0, 0.0, 1e-200, 1e-200]]), np.array([[1e200, 0.0, 1e-200, 1e-200]])
    result = refloss.giou(first, second, box_format="cxcywh")
    assert result.loss == 2.0
    assert np.isfinite(result.grads["boxes1"]).all()


def test_boxes_that_fit_keep_their_digits():
    near = CENTERS[0].astype(np.float32)
    far = near.copy()
    far[:, 2] *= np.float32(1 + 2.0**-20)
    result = refloss.giou(near, far, box_format="cxcywh", reduction="none", grad_output=3.0)
    arrays = {"boxes1": near, "boxes2": far}
    for i in range(len(near)):
        own = {key: boxes[i : i + 1] for key, boxes in arrays.items()}
        assert ulp_errors(result.loss[i], truth.value(definition("giou", "cxcywh", [1.0]), own), "float64").max() <= 2


@pytest.mark.parametrize(
    ("other", "iou", "giou"),
    [
        (UNIT, [0, 0, 0, 0], [0, 0, 0, 0]),  # identical
        ([[1, 0, 2, 1]], [0, 0, -0.5, 0], [0, 0, -0.5, 0]),  # touching
        ([[3, 0, 4, 1]], [0, 0, 0, 0], [0.125, -0.125, -0.25 - 0.125, 0.125]),  # apart
    ],
)
def test_kinks(other, iou, giou):
    other = np.array(other, float)
    np.testing.assert_array_equal(refloss.iou(UNIT, other).grads["boxes1"][0], iou)
    if other[0, 0] < 3:
        np.testing.assert_array_equal(refloss.giou(UNIT, other).grads["boxes1"][0], giou)


def test_reductions_and_values():
    a, b = CORNERS
    losses = refloss.giou(a, b, reduction="none")
    total = refloss.giou(a, b, reduction="sum", grad_output=-2.0)
    mean = refloss.giou(a, b, grad_output=-24.0)
    np.testing.assert_allclose(total.loss, losses.loss.sum(), rtol=1e-15)
    np.testing.assert_allclose(mean.loss, losses.loss.mean(), rtol=1e-15)
    for key in ("boxes1", "boxes2"):
        np.testing.assert_array_equal(total.grads[key], mean.grads[key])
        np.testing.assert_allclose(total.grads[key], -2 * losses.grads[key], rtol=1e-14)
    np.testing.assert_allclose(losses.intermediates["giou"], 1 - losses.loss, atol=1e-15)
    assert set(refloss.iou(a, b, grad="boxes2").grads) == {"boxes2"}


def test_edges():
    point = np.array([[0.5, 0.5, 0.5, 0.5]])
    assert np.isnan(refloss.iou(point, point).loss)
    assert np.isnan(refloss.giou(np.empty((0, 4)), np.empty((0, 4))).loss)
    assert refloss.giou(np.empty((0, 4)), np.empty((0, 4)), reduction="sum").loss == 0.0
    strided = np.repeat(CORNERS[0], 2, axis=1)[:, ::2]
    strided.flags.writeable = False
    plain = refloss.giou(CORNERS[0].astype(np.float32), CORNERS[1].astype(np.float32))
    turned = refloss.giou(np.asfortranarray(strided.astype(np.float32)), CORNERS[1].astype(np.float32))
    assert plain.grads["boxes1"].tobytes() == turned.grads["boxes1"].tobytes()
    assert refloss.iou(CORNERS[0].reshape(3, 4, 4), CORNERS[1].reshape(3, 4, 4)).grads["boxes1"].shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"boxes1": np.ones((3, 5))}, ValueError, "boxes1 has shape (3, 5); expected [..., 4]"),
        ({"boxes2": np.ones((3, 4))}, ValueError, "boxes2 has shape (3, 4); expected (12, 4), the shape of boxes1"),
        ({"box_format": "xywh"}, ValueError, "box_format is 'xywh'; expected one of 'xyxy', 'cxcywh'"),
        ({"reduction": "max"}, ValueError, "reduction is 'max'"),
        ({"boxes1": np.ones((12, 4), int)}, TypeError, "boxes1 has dtype int64"),
        ({"grad": "boxes"}, ValueError, "grad is 'boxes'"),
    ],
)
def test_errors(changes, error, message):
    with pytest.raises(error) as caught:
        refloss.giou(**{"boxes1": CORNERS[0], "boxes2": CORNERS[1]} | changes)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_head_s_coefficients_are_exact(dtype):
    """Of L1 alone the gradient is ± cotangent·weight over a number of boxes, rounded once."""
    boxes = np.array([[[0.5, 0.5, 0.25, 0.25], [0.25, 0.5, 0.25, 0.5], [0.75, 0.25, 0.25, 0.25]]], DTYPES[dtype])
    labels = [{"class_labels": np.zeros(3, int), "boxes": boxes[0].astype(np.float32) + np.float32(0.0625)}]
    for cotangent, weight in ((1 / 3, 3.0), (0.1, 5.0), (1 / 7, 7.0), (1 / 6, 257 * 6 / 256), (0.7, 5.0)):
        config = {
            "num_labels": 2,
            "class_cost": 0.0,
            "bbox_cost": 1.0,
            "giou_cost": 0.0,
            "focal_alpha": 0.25,
            "auxiliary_loss": False,
            "two_stage": False,
            "bbox_loss_coefficient": weight,
            "giou_loss_coefficient": 0.0,
            "mask_loss_coefficient": 0.0,
            "dice_loss_coefficient": 0.0,
            "decoder_layers": 1,
        }
        arguments = {"logits": np.zeros((1, 3, 2), DTYPES[dtype]), "labels": labels, "pred_boxes": boxes}
        result = refloss.deformable_detr_object_detection(**arguments, config=config, grad_output=cotangent)
        wanted = exact_boxes.nearest(Fraction(cotangent) * Fraction(weight) / 3, *FORMATS[dtype])
        assert {Fraction(float(value)) for value in result.grads["pred_boxes"].ravel()} == {-wanted}
