"""The heads for classification, question answering and segmentation: plumbing, edges, errors."""

from types import SimpleNamespace
from typing import Any

import ml_dtypes
import mpmath
import numpy as np
import pytest

import refloss
from refloss.kernels.softmax import run
from tests.test_derivatives import TOLERANCE, fourth_order
from tests.test_same_bits import bits, layouts
from tests.truth import pairs, ulp_errors

GENERATOR = np.random.default_rng(0)
LOGITS = GENERATOR.standard_normal((4, 3))
LABELS = np.array([2, 0, 1, 1])
VALUES = GENERATOR.standard_normal((4, 3))
IMAGE = GENERATOR.standard_normal((2, 3, 4, 5))
AUXILIARY = GENERATOR.standard_normal((2, 3, 2, 3))
PIXELS = GENERATOR.integers(3, size=(2, 7, 9))
PIXELS[0, 2:4] = 255


@pytest.mark.parametrize(
    ("config", "labels", "loss", "targets"),
    [
        ({"num_labels": 3, "problem_type": None}, LABELS, "cross_entropy", LABELS),
        ({"num_labels": 3, "problem_type": None}, LABELS.astype(np.int32), "cross_entropy", LABELS),
        ({"num_labels": 3}, np.eye(3)[LABELS], "bce_with_logits", np.eye(3)[LABELS]),
        ({"num_labels": 3}, np.eye(3, dtype=np.int8)[LABELS], "bce_with_logits", np.eye(3)[LABELS]),
        ({"num_labels": 3, "problem_type": "regression"}, VALUES, "mse", VALUES),
        (
            {"num_labels": 3, "problem_type": "multi_label_classification"},
            np.eye(3, dtype=np.int64)[LABELS],
            "bce_with_logits",
            np.eye(3)[LABELS],
        ),
    ],
    ids=str,
)
def test_problem_types(config, labels, loss, targets):
    expected = getattr(refloss, loss)(LOGITS, targets)
    whole = {"problem_type": None} | config
    for given in ({"config": config}, {"config": SimpleNamespace(**whole)}, config):
        result = refloss.sequence_classification(labels, LOGITS, **given)
        assert result.loss == expected.loss
        first = next(iter(expected.grads.values()))
        assert np.array_equal(result.grads["pooled_logits"], first)
        assert list(result.grads) == ["pooled_logits"]


def test_one_label_is_regression_of_squeezed_arrays():
    for rows in (4, 1):
        logits, values = LOGITS[:rows, :1], VALUES[:rows, 0]
        expected = refloss.mse(logits[:, 0], values)
        for labels in (values, values[:, None], values.squeeze()):
            result = refloss.sequence_classification(labels, logits)
            assert result.loss == expected.loss
            assert result.grads["pooled_logits"].shape == (rows, 1)
            assert np.array_equal(result.grads["pooled_logits"][:, 0], expected.grads["input"])
    out = np.zeros((4, 1))
    result = refloss.sequence_classification(VALUES[:, 0], LOGITS[:, :1], out=out)
    assert np.shares_memory(result.grads["pooled_logits"], out)


def test_the_config_is_not_written_to():
    config = SimpleNamespace(num_labels=3, problem_type=None)
    refloss.sequence_classification(LABELS, LOGITS, config)
    assert vars(config) == {"num_labels": 3, "problem_type": None}


def test_question_answering_is_the_mean_of_two():
    start, end = GENERATOR.standard_normal((5, 6)), GENERATOR.standard_normal((5, 6))
    first, last = np.array([0, 3, 9, -4, 2]), np.array([[5], [6], [1], [1], [100]])
    result = refloss.question_answering(start, end, first, last, grad_output=3.0)
    one = refloss.cross_entropy(start, [0, 3, 6, 0, 2], ignore_index=6, grad_output=1.5)
    two = refloss.cross_entropy(end, [5, 6, 1, 1, 6], ignore_index=6, grad_output=1.5)
    assert result is not None
    assert result.loss == (one.loss + two.loss) / 2
    assert np.array_equal(result.grads["start_logits"], one.grads["logits"])
    assert np.array_equal(result.grads["end_logits"], two.grads["logits"])
    assert np.array_equal(result.intermediates["start_nll"], one.intermediates["nll"])
    assert np.array_equal(result.intermediates["end_positions"], [5, 6, 1, 1, 6])
    assert refloss.question_answering(start, end, None, last) is None
    assert refloss.question_answering(start, end, first, None) is None


def test_token_classification_is_masked_lm_over_labels():
    logits, labels = GENERATOR.standard_normal((2, 4, 3)), GENERATOR.integers(3, size=(2, 4))
    expected = refloss.masked_lm(logits, labels, num_items_in_batch=5)
    for given in ({}, {"num_labels": 3}, {"config": {"num_labels": 3}}, {"config": SimpleNamespace(num_labels=3)}):
        result = refloss.token_classification(logits, labels, num_items_in_batch=5, **given)
        assert bits(result) == bits(expected)


def matrix(size: int, resized: int) -> np.ndarray:
    """Bilinear interpolation along an axis as a matrix, from its definition."""
    weights = np.zeros((resized, size))
    for output in range(resized):
        place = max((output + 0.5) * size / resized - 0.5, 0.0)
        first = min(int(np.floor(place)), size - 1)
        weights[output, first] += 1 - (place - first)
        weights[output, min(first + 1, size - 1)] += place - first
    return weights


@pytest.mark.parametrize("size", [(7, 9), (4, 5), (2, 2), (13, 3), (1, 1)])
def test_upsampling_is_its_matrix_and_the_gradient_the_transpose(size):
    labels = GENERATOR.integers(3, size=(2, *size))
    result = refloss.semantic_segmentation(IMAGE, labels, grad_output=-2.0)
    vertical, horizontal = matrix(4, size[0]), matrix(5, size[1])
    upsampled = vertical @ IMAGE @ horizontal.T
    np.testing.assert_allclose(result.intermediates["upsampled_logits"], upsampled, rtol=0, atol=1e-14)
    expected = refloss.cross_entropy(upsampled, labels, grad_output=-2.0)
    np.testing.assert_allclose(result.loss, expected.loss, rtol=1e-14)
    spread = vertical.T @ expected.grads["logits"] @ horizontal
    np.testing.assert_allclose(result.grads["logits"], spread, rtol=0, atol=1e-14)
    with pytest.raises(KeyError):
        result.intermediates["tea"]


def test_segmentation_gives_derivatives():
    options: dict[str, Any] = {"auxiliary_loss_weight": 0.7, "grad_output": -1.3}
    result = refloss.semantic_segmentation(IMAGE, PIXELS, auxiliary_logits=AUXILIARY, **options)

    def contracted(x, auxiliary):
        return -1.3 * refloss.semantic_segmentation(x, PIXELS, auxiliary_logits=auxiliary, grad=False, **options).loss

    expected = fourth_order(lambda x: contracted(x, AUXILIARY), IMAGE)
    np.testing.assert_allclose(result.grads["logits"], expected, rtol=0, atol=TOLERANCE)
    expected = fourth_order(lambda x: contracted(IMAGE, x), AUXILIARY)
    np.testing.assert_allclose(result.grads["auxiliary_logits"], expected, rtol=0, atol=TOLERANCE)


def test_segmentation_rounds_once():
    x = IMAGE.astype(np.float32)
    fine = refloss.semantic_segmentation(x, PIXELS, grad_dtype=np.float64)
    exact = pairs(
        [[[[mpmath.mpf(float(v)) for v in row] for row in plane] for plane in image] for image in fine.grads["logits"]]
    )
    errors = ulp_errors(refloss.semantic_segmentation(x, PIXELS).grads["logits"], exact, "float32")
    assert errors.max() <= 0.5


def test_segmentation_does_not_depend_on_threads_or_layout():
    expected = bits(refloss.semantic_segmentation(IMAGE, PIXELS, auxiliary_logits=AUXILIARY))
    threads = refloss.get_num_threads()
    for count in (1, 3):
        refloss.set_num_threads(count)
        assert bits(refloss.semantic_segmentation(IMAGE, PIXELS, auxiliary_logits=AUXILIARY)) == expected
    refloss.set_num_threads(threads)
    for name, view in layouts(IMAGE):
        assert bits(refloss.semantic_segmentation(view, PIXELS, auxiliary_logits=AUXILIARY)) == expected, name


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_short_rows_have_the_bits_of_long_ones(dtype, monkeypatch):
    """Two kernels, one for a vector of rows and one for a vector of classes."""
    generator = np.random.default_rng(7)
    logits = (generator.standard_normal((700, 13)) * 8).astype(dtype)
    logits[::7, 3] += 60
    logits[5, :] = -np.inf
    logits[6, 2] = np.nan
    logits[7, 1:] = -np.inf
    logits[8, 1] = np.inf
    labels = generator.integers(13, size=700)
    labels[::7] = 3
    labels[9:12] = -100
    logits[10] = np.nan
    options: dict[str, Any] = {
        "weight": generator.random(13),
        "reduction": "none",
        "grad_output": generator.random(700),
    }
    columns = bits(refloss.cross_entropy(logits, labels, **options))
    monkeypatch.setattr(run, "MAX_CLASSES", 0)
    assert bits(refloss.cross_entropy(logits, labels, **options)) == columns


_TEA: Any = "tea"
BAD: list[tuple[Any, type[Exception], str]] = [
    (
        lambda: refloss.sequence_classification(LABELS, LOGITS, problem_type=_TEA),
        ValueError,
        "Invalid problem type: 'tea'",
    ),
    (lambda: refloss.sequence_classification(LABELS, LOGITS, problem_type=_TEA), RuntimeError, "Invalid problem type"),
    (lambda: refloss.sequence_classification(LABELS, LOGITS, {}), ValueError, "config has no 'num_labels'"),
    (lambda: refloss.sequence_classification(LABELS + 5, LOGITS), ValueError, r"labels\[0\] = 7 is outside \[0, 3\)"),
    (
        lambda: refloss.sequence_classification(LABELS[:3], LOGITS),
        ValueError,
        r"pooled_logits has shape \(4, 3\) and num_labels is 3; expected a row for each of labels",
    ),
    (lambda: refloss.sequence_classification(VALUES[:3], LOGITS), ValueError, r"labels has shape \(3, 3\)"),
    (lambda: refloss.sequence_classification(VALUES, LOGITS, {"num_labels": "3"}), TypeError, "num_labels is '3'"),
    (lambda: refloss.sequence_classification(LABELS, LABELS), TypeError, "pooled_logits has dtype int64"),
    (lambda: refloss.token_classification(IMAGE, PIXELS, {}), ValueError, "config has no 'num_labels'"),
    (lambda: refloss.question_answering(IMAGE, LOGITS, LABELS, LABELS), ValueError, "start_logits has shape"),
    (lambda: refloss.question_answering(LOGITS, LOGITS, LABELS[:2], LABELS), ValueError, "start_positions has shape"),
    (lambda: refloss.question_answering(LOGITS, LOGITS, LABELS, VALUES), TypeError, "end_positions has dtype float64"),
    (
        lambda: refloss.question_answering(LOGITS, LOGITS, LABELS, LABELS, grad_output=[1]),
        ValueError,
        "grad_output has shape",
    ),
    (
        lambda: refloss.semantic_segmentation(LOGITS, PIXELS),
        ValueError,
        r"logits has shape \(4, 3\); expected \[B, C, h, w\]",
    ),
    (
        lambda: refloss.semantic_segmentation(IMAGE, PIXELS[:1]),
        ValueError,
        r"labels has shape \(1, 7, 9\); expected \[2, H, W\]",
    ),
    (
        lambda: refloss.semantic_segmentation(IMAGE, PIXELS, 3),
        ValueError,
        r"labels\[0, 2, 0\] = 255 is outside \[0, 3\)",
    ),
    (
        lambda: refloss.semantic_segmentation(IMAGE, PIXELS, auxiliary_logits=LOGITS),
        ValueError,
        "auxiliary_logits has shape",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


CONFIDENT = np.array([[0.0, 50.0, -3.0], [-np.inf, 2.0, 700.0], [1e-3, 2e-3, -1e4], [-800.0, 0.0, 0.5]], np.float32)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_probabilities_are_computed_when_asked_for(dtype):
    logits = CONFIDENT.astype(dtype)
    with mpmath.workprec(3000):
        exact = []
        for row in logits:
            terms = [mpmath.exp(mpmath.mpf(float(x))) for x in row]
            exact.append([term / sum(terms) for term in terms])
        probabilities = pairs(exact)
        finite = np.isfinite(logits)
        logarithms = pairs([[mpmath.log(p) if p else mpmath.mpf(0) for p in row] for row in exact])
    for result in (
        refloss.cross_entropy(logits, LABELS, ignore_index=2),
        refloss.sequence_classification(LABELS, logits, num_labels=3, problem_type="single_label_classification"),
        refloss.token_classification(logits, LABELS, num_labels=3),
        refloss.causal_lm(logits, LABELS),
        refloss.masked_lm(logits, LABELS),
    ):
        assert not {"probabilities", "log_probabilities"} & set(result.intermediates.computed())
        found = result.intermediates["log_probabilities"]
        assert ulp_errors(found[finite], logarithms.at(finite), "float64").max() <= 2
        assert (found[~finite] == -np.inf).all()
        relative = np.abs(result.intermediates["probabilities"] - probabilities.high)
        # An absolute error of log p is a relative error of p.
        assert (relative <= 4e-16 * (1 + np.abs(logarithms.high)) * probabilities.high + 5e-324).all()


def test_probabilities_of_either_end():
    result = refloss.question_answering(LOGITS, VALUES, LABELS, LABELS)
    for side, logits in (("start", LOGITS), ("end", VALUES)):
        own = refloss.cross_entropy(logits, LABELS).intermediates
        for name in ("log_probabilities", "probabilities"):
            assert result.intermediates[f"{side}_{name}"].tobytes() == own[name].tobytes()


def test_probabilities_of_classes_on_any_axis():
    rows = np.moveaxis(IMAGE, 1, -1)
    found = refloss.cross_entropy(IMAGE, PIXELS[:, :4, :5] % 3).intermediates["probabilities"]
    own = refloss.cross_entropy(rows.reshape(-1, 3), np.zeros(40, int)).intermediates["probabilities"]
    assert np.moveaxis(found, 1, -1).tobytes() == own.tobytes()


@pytest.mark.parametrize(
    ("labels", "num_labels", "error", "message"),
    [
        (LABELS, 4, ValueError, r"logits has shape \(4, 3\) and num_labels is 4; expected a row for each of labels"),
        (LABELS, "3", TypeError, "num_labels is '3' of type str; expected an integer"),
        ([2, 7, 1, 1], 3, ValueError, r"labels\[1\] = 7 is outside \[0, 3\) and is not ignore_index -100"),
    ],
)
def test_token_classification_calls_its_arguments_by_their_names(labels, num_labels, error, message):
    for given in ({"num_labels": num_labels}, {"config": {"num_labels": num_labels}}):
        with pytest.raises(error, match=message):
            refloss.token_classification(LOGITS, labels, **given)


def test_probabilities_of_rows_that_are_not_finite():
    logits = np.array([[np.nan, 1.0], [-np.inf, -np.inf], [0.0, -np.inf]])
    intermediates = refloss.cross_entropy(logits, [0, 0, 0]).intermediates
    for name, last in (("probabilities", [1.0, 0.0]), ("log_probabilities", [0.0, -np.inf])):
        assert np.isnan(intermediates[name][:2]).all()
        assert np.array_equal(intermediates[name][2], last)
