"""The defined answers at the edges."""

from typing import Any

import numpy as np
import pytest

import refloss
from refloss.files import nested
from refloss.golden.corpus import corpus
from refloss.registry import FUNCTIONS

NAN = np.nan


def test_all_rows_ignored():
    logits = np.random.default_rng(0).standard_normal((3, 4))
    for options in ({}, {"label_smoothing": 0.1}, {"weight": [1.0, 2.0, 3.0, 4.0]}):
        result = refloss.cross_entropy(logits, [-100, -100, -100], **options)
        assert np.isnan(result.loss)
        assert not np.any(result.grads["logits"])
    assert refloss.cross_entropy(logits, [-100, -100, -100], reduction="sum").loss == 0.0


def test_weights_of_zero_leave_no_mean():
    result = refloss.cross_entropy(np.zeros((2, 3)), [2, -100], [1.0, 1.0, 0.0])
    assert np.isnan(result.loss)
    assert np.all(np.isnan(result.grads["logits"][0]))
    assert not np.any(result.grads["logits"][1])


@pytest.mark.parametrize(("reduction", "expected"), [("mean", NAN), ("sum", 0.0)])
def test_an_empty_batch(reduction, expected):
    result = refloss.cross_entropy(np.zeros((0, 5)), np.zeros(0, int), reduction=reduction)
    assert np.array_equal(result.loss, expected, equal_nan=True)
    assert result.grads["logits"].shape == (0, 5)


def test_an_empty_batch_without_reduction():
    result = refloss.cross_entropy(np.zeros((0, 5, 2)), np.zeros((0, 2), int), reduction="none")
    assert result.loss.shape == (0, 2)
    assert result.intermediates["lse"].shape == (0, 2)


def test_an_empty_batch_with_out():
    out = np.zeros((0, 5))
    assert refloss.cross_entropy(np.zeros((0, 5)), np.zeros(0, int), out=out).grads["logits"] is out


def test_no_classes_at_all():
    result = refloss.cross_entropy(np.zeros((2, 0)), [-100, -100], reduction="sum")
    assert result.loss == 0.0
    assert result.grads["logits"].shape == (2, 0)


def test_one_class_costs_nothing():
    result = refloss.cross_entropy(np.array([[7.0], [-3.0]]), [0, 0], reduction="none")
    assert np.array_equal(result.loss, [0.0, 0.0])
    assert not np.any(result.grads["logits"])


def test_masked_classes_are_absent():
    logits = np.array([[1.0, -np.inf, 2.0, -np.inf]])
    result = refloss.cross_entropy(logits, [0])
    alone = refloss.cross_entropy(logits[:, ::2], [0])
    assert result.loss == alone.loss
    assert np.array_equal(result.grads["logits"][:, ::2], alone.grads["logits"])
    assert not np.any(result.grads["logits"][:, 1::2])


def test_a_masked_target_costs_infinity():
    result = refloss.cross_entropy(np.array([[-np.inf, 0.0, 0.0]]), [0])
    assert result.loss == np.inf
    assert np.array_equal(result.grads["logits"], [[-1.0, 0.5, 0.5]])


@pytest.mark.parametrize(
    "row", [[NAN, 0.0, 1.0], [0.0, NAN, 1.0], [np.inf, 0.0, 1.0], [0.0, np.inf, 1.0], [-np.inf] * 3]
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_undefined_rows_are_nan_and_alone(row, dtype):
    logits = np.array([row, [0.0, 0.0, 0.0]], dtype)
    result = refloss.cross_entropy(logits, [0, 1], reduction="none")
    assert np.isnan(result.loss[0])
    assert result.loss[1] == np.log(3)
    assert np.all(np.isnan(result.grads["logits"][0]))
    assert np.all(np.isfinite(result.grads["logits"][1]))
    assert np.isnan(refloss.cross_entropy(logits, [0, 1]).loss)
    by_probability = refloss.cross_entropy(logits, np.full((2, 3), 1 / 3), reduction="none")
    assert np.isnan(by_probability.loss[0])
    assert np.isfinite(by_probability.loss[1])


def test_no_logit_is_close_to_a_huge_one():
    """The spacing of float64 there is larger than the range of exp."""
    low = np.finfo(np.float32).min
    result = refloss.cross_entropy(np.array([[low, -np.inf, low]], np.float32), [2])
    assert result.loss == np.log(2)
    assert np.array_equal(result.grads["logits"], [[0.5, 0.0, -0.5]])
    for logits in ([[1e20, -1.7e20, 0.0]], [[2.0**63, 0.0, 0.0]], [[2.0**55, 0.0, 2.0**55 - 800]]):
        result = refloss.cross_entropy(logits, [1])
        assert np.array_equal(result.grads["logits"], [[1.0, -1.0, 0.0]])
        assert result.loss == logits[0][0] - logits[0][1]


def test_an_infinite_normaliser_leaves_nothing():
    result = refloss.masked_lm([[1.0, 2.0]], [0], num_items_in_batch=np.inf)
    assert result.loss == 0.0
    assert np.array_equal(result.grads["logits"], [[0.0, 0.0]])


@pytest.mark.parametrize("magnitude", [1e30, 1e38])
def test_huge_logits(magnitude):
    logits = np.array([[magnitude, -magnitude, magnitude]], np.float32)
    result = refloss.cross_entropy(logits, [1], reduction="none")
    assert result.loss[0] == 2 * float(np.float32(magnitude))
    assert np.array_equal(result.grads["logits"], [[0.5, -1.0, 0.5]])


def test_smoothing_an_infinite_logit_costs_infinity():
    logits = np.array([[0.0, -np.inf, 1.0]])
    assert refloss.cross_entropy(logits, [0], label_smoothing=0.1).loss == np.inf
    assert refloss.cross_entropy(logits, [[0.5, 0.0, 0.5]], label_smoothing=0.1).loss == np.inf
    # A probability of 0 times an infinite distance is not a number, as in torch.
    assert np.isnan(refloss.cross_entropy(logits, [[0.5, 0.0, 0.5]]).loss)


def test_no_items_in_the_batch():
    logits = np.zeros((1, 3, 4))
    assert refloss.causal_lm(logits, [[1, 2, 3]], num_items_in_batch=0).loss == np.inf
    assert np.isnan(refloss.causal_lm(logits, [[-100] * 3], num_items_in_batch=0).loss)


def test_a_sequence_of_one_token_has_no_target():
    result = refloss.causal_lm(np.ones((2, 1, 5), np.float32), np.array([[3], [4]]))
    assert np.isnan(result.loss)
    assert not np.any(result.grads["logits"])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64])
def test_every_integer_dtype_of_labels(dtype):
    logits = np.random.default_rng(1).standard_normal((2, 3, 4))
    labels = np.array([[3, 1, 2], [0, 1, 3]], dtype)
    assert refloss.causal_lm(logits, labels).loss == refloss.causal_lm(logits, labels.astype(np.int64)).loss


def test_heads_accept_flat_and_deep_logits():
    generator = np.random.default_rng(2)
    logits, labels = generator.standard_normal((2, 3, 2, 5)), generator.integers(5, size=(2, 3, 2))
    deep = refloss.causal_lm(logits, labels)
    flat = refloss.causal_lm(logits.reshape(12, 5), labels)
    assert deep.loss == flat.loss
    assert deep.intermediates["lse"].shape == flat.intermediates["lse"].shape == (2, 3, 2)
    assert flat.grads["logits"].shape == (12, 5)
    assert deep.grads["logits"].shape == (2, 3, 2, 5)
    grouped = refloss.masked_lm(logits.reshape(2, 3, 10), labels, vocab_size=5)
    assert grouped.grads["logits"].shape == (2, 3, 10)
    assert grouped.loss == refloss.masked_lm(logits, labels).loss


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_unknown_keyword_is_an_error_by_a_function_s_own_name_and_ignored_by_the_mapping(name):
    case = corpus({name})[0]
    arguments = nested(case.inputs) | dict(case.parameters)
    right = FUNCTIONS[name].call(**arguments).loss
    with pytest.raises(TypeError, match="unexpected keyword argument 'device'"):
        FUNCTIONS[name].call(**arguments, device="cpu")
    for key in FUNCTIONS[name].specification.keys:
        assert refloss.LOSS_MAPPING[key](**arguments, device="cpu", return_dict=True).loss == right, key


MODULE: Any = refloss  # whose types a checker does not know
MISSPELT = {
    "a keyword": (
        lambda: MODULE.causal_lm(np.zeros((1, 2, 3)), labelz=[[0, 1]]),
        TypeError,
        r"causal_lm\(\) got an unexpected keyword argument 'labelz'; did you mean 'labels'\?",
    ),
    "an option of all": (
        lambda: MODULE.mse([1.0], [2.0], gradoutput=2.0, out=np.zeros(1)),
        TypeError,
        r"got an unexpected keyword argument 'gradoutput'; did you mean 'grad_output'\?",
    ),
    "nothing like it": (lambda: MODULE.mse([1.0], [2.0], sugar=2.0), TypeError, "keyword argument 'sugar'$"),
    "another error": (lambda: MODULE.mse([1.0], [2.0], "mean", 3), TypeError, "positional arguments"),
    "a function": (
        lambda: MODULE.causal_ml,
        AttributeError,
        r"module 'refloss' has no attribute 'causal_ml'; did you mean 'causal_lm'\?",
    ),
    "no function": (lambda: MODULE.tea, AttributeError, "module 'refloss' has no attribute 'tea'$"),
    "what Python asks for": (lambda: MODULE.__mse__, AttributeError, "no attribute '__mse__'$"),
}


@pytest.mark.parametrize("name", MISSPELT)
def test_what_is_misspelt_is_asked_for(name):
    call, error, message = MISSPELT[name]
    with pytest.raises(error, match=message):
        call()
