"""What must hold between results, whatever the right value is."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refloss

DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]
logits_strategy = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).standard_normal((6, 9)) * 5)


def labels_for(logits, ignored=2):
    labels = np.random.default_rng(0).integers(logits.shape[1], size=logits.shape[0])
    labels[:ignored] = -100
    return labels


@given(logits_strategy, st.sampled_from([-64.0, 0.5, 1024.0]))
def test_a_shift_of_the_logits_changes_nothing(logits, shift):
    logits = np.round(logits * 2**20) / 2**20
    labels = labels_for(logits)
    result = refloss.cross_entropy(logits, labels, reduction="none")
    shifted = refloss.cross_entropy(logits + shift, labels, reduction="none")
    assert np.array_equal(shifted.loss, result.loss)
    assert np.array_equal(shifted.grads["logits"], result.grads["logits"])
    np.testing.assert_allclose(shifted.intermediates["lse"], result.intermediates["lse"] + shift, rtol=1e-15)


@given(logits_strategy)
def test_a_batch_is_its_rows_one_by_one(logits):
    labels = labels_for(logits)
    grad_output = np.linspace(-1, 2, 6)
    batch = refloss.cross_entropy(logits, labels, reduction="none", grad_output=grad_output)
    for i in range(6):
        row = refloss.cross_entropy(logits[i], labels[i], reduction="sum", grad_output=grad_output[i])
        assert row.loss == batch.loss[i]
        assert np.array_equal(row.grads["logits"], batch.grads["logits"][i])


@given(logits_strategy, st.floats(0.01, 3) | st.floats(-3, -0.01))
def test_sum_and_mean_are_those_of_the_rows(logits, grad_output):
    labels = labels_for(logits)
    rows = refloss.cross_entropy(logits, labels, reduction="none")
    total = refloss.cross_entropy(logits, labels, reduction="sum", grad_output=grad_output)
    mean = refloss.cross_entropy(logits, labels, grad_output=grad_output)
    np.testing.assert_allclose([total.loss, mean.loss], [rows.loss.sum(), rows.loss.sum() / 4], rtol=1e-15)
    np.testing.assert_allclose(total.grads["logits"], grad_output * rows.grads["logits"], rtol=1e-14)
    np.testing.assert_allclose(mean.grads["logits"], grad_output * rows.grads["logits"] / 4, rtol=1e-14)


@given(logits_strategy, st.booleans(), st.sampled_from([0.0, 0.2]))
def test_rows_of_the_gradient_sum_to_zero(logits, weighted, smoothing):
    weight = np.linspace(0.5, 2, 9) if weighted else None
    result = refloss.cross_entropy(logits, labels_for(logits), weight, label_smoothing=smoothing, grad_output=-3.0)
    scale = np.abs(result.grads["logits"]).max()
    assert np.all(np.abs(result.grads["logits"].sum(axis=1)) <= 9 * scale * 2.0**-52)


@given(logits_strategy)
def test_one_hot_probabilities_are_labels(logits):
    labels = labels_for(logits, ignored=0)
    by_label = refloss.cross_entropy(logits, labels, label_smoothing=0.3, reduction="none")
    by_probability = refloss.cross_entropy(logits, np.eye(9)[labels], label_smoothing=0.3, reduction="none")
    np.testing.assert_allclose(by_probability.loss, by_label.loss, rtol=1e-15)
    np.testing.assert_allclose(by_probability.grads["logits"], by_label.grads["logits"], rtol=0, atol=1e-15)
    np.testing.assert_allclose(by_probability.intermediates["nll"], by_label.intermediates["nll"], rtol=1e-15)


@given(logits_strategy)
def test_losses_are_not_negative(logits):
    logits[:, 3] += 40
    assert np.all(refloss.cross_entropy(logits, np.full(6, 3), reduction="none").loss > 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("head", [refloss.causal_lm, refloss.masked_lm])
def test_micro_batches_add_up_to_the_whole_batch(dtype, head):
    generator = np.random.default_rng(3)
    logits = generator.standard_normal((8, 7, 33)).astype(dtype)
    labels = generator.integers(33, size=(8, 7))
    labels[generator.random((8, 7)) < 0.3] = -100
    counted = labels[:, 1:] if head is refloss.causal_lm else labels
    items = np.array(np.count_nonzero(counted != -100))
    whole = head(logits, labels)
    parts = [head(logits[i : i + 2], labels[i : i + 2], num_items_in_batch=items) for i in range(0, 8, 2)]
    gradient = np.concatenate([part.grads["logits"] for part in parts])
    assert gradient.tobytes() == whole.grads["logits"].tobytes()
    np.testing.assert_allclose(sum(part.loss for part in parts), whole.loss, rtol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_poisoned_ignored_rows_do_not_leak(dtype, poison, smoothing):
    logits = (np.random.default_rng(4).standard_normal((6, 9)) * 3).astype(dtype)
    labels = labels_for(logits)
    clean = refloss.cross_entropy(logits, labels, label_smoothing=smoothing)
    poisoned = logits.copy()
    poisoned[0] = poison
    poisoned[1, 4] = poison
    result = refloss.cross_entropy(poisoned, labels, label_smoothing=smoothing)
    assert result.loss == clean.loss
    assert result.grads["logits"].tobytes() == clean.grads["logits"].tobytes()
    assert not np.any(result.grads["logits"][:2])
    assert not np.any(np.signbit(result.grads["logits"][:2]))


def test_ignore_index_may_be_a_class():
    logits = np.random.default_rng(5).standard_normal((5, 4))
    labels = np.array([0, 2, 1, 2, 3])
    result = refloss.cross_entropy(logits, labels, ignore_index=2)
    expected = refloss.cross_entropy(logits[[0, 2, 4]], labels[[0, 2, 4]])
    assert result.loss == expected.loss
    assert np.array_equal(result.grads["logits"][[0, 2, 4]], expected.grads["logits"])
    assert not np.any(result.grads["logits"][[1, 3]])


def test_causal_lm_is_masked_lm_of_shifted_labels():
    generator = np.random.default_rng(6)
    logits, labels = generator.standard_normal((2, 5, 7)), generator.integers(7, size=(2, 5))
    shifted = np.concatenate([labels[:, 1:], np.full((2, 1), -100)], axis=1)
    causal = refloss.causal_lm(logits, labels)
    assert np.array_equal(causal.intermediates["shift_labels"], shifted)
    for other in (refloss.masked_lm(logits, shifted), refloss.causal_lm(logits, None, shift_labels=shifted)):
        assert other.loss == causal.loss
        assert np.array_equal(other.grads["logits"], causal.grads["logits"])
    assert not np.any(causal.grads["logits"][:, -1])


def test_grad_false_changes_the_loss_in_no_bit():
    logits = np.random.default_rng(7).standard_normal((6, 9))
    full = refloss.cross_entropy(logits, labels_for(logits))
    short = refloss.cross_entropy(logits, labels_for(logits), grad=False)
    assert short.grads == {}
    assert short.loss == full.loss


def test_grad_dtype_rounds_the_same_gradient():
    logits = np.random.default_rng(8).standard_normal((6, 9)).astype(np.float32)
    fine = refloss.cross_entropy(logits, labels_for(logits), grad_dtype=np.float64).grads["logits"]
    for dtype in DTYPES:
        coarse = refloss.cross_entropy(logits, labels_for(logits), grad_dtype=dtype).grads["logits"]
        assert coarse.dtype == dtype
        assert np.array_equal(coarse, fine.astype(dtype))
