"""Every argument's errors: the message names the argument, what came and what was expected."""

import ml_dtypes
import numpy as np
import pytest

import refloss

LOGITS = np.zeros((2, 3, 5), np.float32)
FLAT = np.zeros((4, 5))
LABELS = np.array([[1, 2, 3], [4, 0, 1]])
TARGET = np.array([0, 1, 2, 3])


def read_only(array):
    array.flags.writeable = False
    return array


CROSS_ENTROPY = [
    (
        dict(logits=np.zeros((4, 5), int)),
        TypeError,
        "logits has dtype int64; expected float64, float32, float16 or bfloat16",
    ),
    (dict(logits=np.zeros((4, 5), complex)), TypeError, "logits has dtype complex128"),
    (dict(logits=np.zeros((4, 5), np.longdouble)), TypeError, "logits has dtype float128"),
    (dict(logits=np.zeros((4, 5), ml_dtypes.float8_e4m3fn)), TypeError, "logits has dtype float8_e4m3fn"),
    (dict(logits=np.zeros((4, 5), bool)), TypeError, "logits has dtype bool"),
    (dict(logits="four rows"), TypeError, "logits has dtype <U9"),
    (dict(logits=[[1.0], [2.0, 3.0]]), TypeError, "logits: cannot make an array of list"),
    (dict(logits=object()), TypeError, "logits: cannot make an array of object"),
    (dict(logits=None), TypeError, "logits: cannot make an array of NoneType"),
    (dict(logits=np.float64(3.0)), ValueError, r"logits has shape \(\); expected \[C\] or \[N, C, ...\]"),
    (dict(target=np.zeros(4)), TypeError, "target has dtype float64; expected an integer dtype"),
    (dict(target=np.zeros(4, bool)), TypeError, "target has dtype bool; expected an integer dtype"),
    (
        dict(target=np.zeros((4, 5), int)),
        TypeError,
        "target has the shape of logits and dtype int64; expected probabilities",
    ),
    (dict(target=np.zeros(3, int)), ValueError, r"target has shape \(3,\); expected \(4,\), one label for each row"),
    (dict(target=np.zeros((4, 1), int)), ValueError, r"target has shape \(4, 1\); expected \(4,\)"),
    (
        dict(target=[0, 1, 5, 2]),
        ValueError,
        r"target\[2\] = 5 is outside \[0, 5\) and is not ignore_index -100 \(1 such",
    ),
    (dict(target=[0, -1, -100, -7]), ValueError, r"target\[1\] = -1 is outside \[0, 5\) .* \(2 such in all\)"),
    (
        dict(target=np.array([0, 2**64 - 100, 0, 0], np.uint64)),
        ValueError,
        r"target\[1\] = 18446744073709551516 is outside",
    ),
    (dict(target=[0, 1, -100, 2], ignore_index=-1), ValueError, r"target\[2\] = -100 is outside"),
    (dict(weight=np.ones(4)), ValueError, r"weight has shape \(4,\); expected \(5,\), one for each class"),
    (dict(weight=np.ones((5, 1))), ValueError, r"weight has shape \(5, 1\)"),
    (dict(weight=np.ones(5, int)), TypeError, "weight has dtype int64"),
    (dict(ignore_index=1.0), TypeError, "ignore_index is 1.0 of type float; expected an integer"),
    (dict(ignore_index=True), TypeError, "ignore_index is a bool"),
    (dict(ignore_index=2**63), ValueError, "ignore_index is 9223372036854775808; expected an integer of 64 bits"),
    (dict(grad=False, grad_dtype="tea"), TypeError, "grad_dtype is 'tea'"),
    (dict(grad=False, out="tea"), TypeError, "out is a str"),
    (dict(out=np.lib.stride_tricks.as_strided(np.zeros(20), (4, 5), (8, 8))), ValueError, r"out has strides \(8, 8\)"),
    (dict(target=np.full((4, 5), 0.2), ignore_index=3), ValueError, "ignore_index is 3; with class probabilities"),
    (dict(reduction="batchmean"), ValueError, "reduction is 'batchmean'; expected one of 'mean', 'sum', 'none'"),
    (dict(label_smoothing=-0.1), ValueError, r"label_smoothing is -0.1; expected a number in \[0, 1\]"),
    (dict(label_smoothing=1.1), ValueError, "label_smoothing is 1.1"),
    (dict(label_smoothing=np.nan), ValueError, "label_smoothing is nan"),
    (dict(label_smoothing="some"), TypeError, "label_smoothing is 'some' of type str; expected a number"),
    (dict(label_smoothing=[0.1]), ValueError, r"label_smoothing has shape \(1,\); expected a number"),
    (dict(grad_output=np.ones(4)), ValueError, r"grad_output has shape \(4,\); expected \(\), the loss's shape"),
    (dict(grad_output=np.ones(3), reduction="none"), ValueError, r"grad_output has shape \(3,\); expected \(4,\)"),
    (dict(grad_output="one"), TypeError, "grad_output has dtype <U3; expected real numbers"),
    (dict(grad_output=1j), TypeError, "grad_output has dtype complex128"),
    (dict(grad_dtype=np.int32), TypeError, "grad_dtype is int32; expected float64"),
    (dict(grad_dtype="float77"), TypeError, "grad_dtype is 'float77'; expected float64"),
    (dict(out=[0.0]), TypeError, "out is a list; expected a NumPy array"),
    (dict(out=np.zeros((5, 4))), ValueError, r"out has shape \(5, 4\); expected \(4, 5\), the shape of logits"),
    (dict(out=np.zeros((4, 5), int)), TypeError, "out has dtype int64"),
    (
        dict(out=np.zeros((4, 5), np.float32), grad_dtype="float64"),
        TypeError,
        "out has dtype float32; expected float64",
    ),
    (dict(out=read_only(np.zeros((4, 5)))), ValueError, "out is read-only"),
    (dict(out=FLAT), ValueError, "out shares memory with"),
    (dict(out=np.lib.stride_tricks.as_strided(np.zeros(5), (4, 5), (0, 8))), ValueError, r"out has strides \(0, 8\)"),
    (dict(backend="tpu"), ValueError, "backend is 'tpu'; expected one of 'auto', 'cpu', 'cuda'"),
]


@pytest.mark.parametrize(
    ("arguments", "error", "message"), CROSS_ENTROPY, ids=lambda value: value if isinstance(value, str) else ""
)
def test_cross_entropy(arguments, error, message):
    with pytest.raises(error, match=message):
        refloss.cross_entropy(**{"logits": FLAT, "target": TARGET} | arguments)


HEADS = [
    (dict(logits=np.zeros((2, 3, 5), int)), TypeError, "logits has dtype int64"),
    (dict(logits=np.float32(1.0)), ValueError, r"logits has shape \(\); expected \[..., V\]"),
    (dict(labels=LABELS.astype(float)), TypeError, "labels has dtype float64; expected an integer dtype"),
    (dict(labels=None), TypeError, "labels: cannot make an array of NoneType"),
    (
        dict(labels=LABELS[:, :2]),
        ValueError,
        r"logits has shape \(2, 3, 5\) and vocab_size is 5; expected a row for each of",
    ),
    (dict(labels=LABELS + 3), ValueError, r"labels\[0, [12]\] = [56] is outside \[0, 5\) and is not ignore_index -100"),
    (
        dict(vocab_size=4),
        ValueError,
        r"logits has shape \(2, 3, 5\) and vocab_size is 4; expected a row for each of labels",
    ),
    (dict(vocab_size=-5), ValueError, "vocab_size is -5"),
    (dict(vocab_size=5.0), TypeError, "vocab_size is 5.0 of type float; expected an integer"),
    (dict(num_items_in_batch="six"), TypeError, "num_items_in_batch is 'six' of type str; expected a number"),
    (dict(num_items_in_batch=np.array([6])), ValueError, r"num_items_in_batch has shape \(1,\); expected a number"),
    (dict(ignore_index=None), TypeError, "ignore_index is None of type NoneType; expected an integer"),
    (dict(grad_output=np.ones(2)), ValueError, r"grad_output has shape \(2,\); expected \(\)"),
    (dict(grad_dtype=int), TypeError, "grad_dtype is int64"),
    (dict(out=np.zeros((6, 4))), ValueError, "out has shape"),
    (dict(backend="gpu"), ValueError, "backend is 'gpu'"),
]


@pytest.mark.parametrize("head", [refloss.causal_lm, refloss.masked_lm])
@pytest.mark.parametrize(
    ("arguments", "error", "message"), HEADS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_heads(head, arguments, error, message):
    with pytest.raises(error, match=message):
        head(**{"logits": LOGITS, "labels": LABELS} | arguments)


def test_positions_are_those_of_the_callers_labels():
    labels = np.zeros((4, 20), int)
    labels[3, 17] = 50300
    logits = np.zeros((4, 20, 11), np.float32)
    message = r"labels\[3, 17\] = 50300 is outside \[0, 11\) and is not ignore_index -100"
    for head in (refloss.causal_lm, refloss.masked_lm):
        with pytest.raises(ValueError, match=message):
            head(logits, labels)
    with pytest.raises(ValueError, match="shift_" + message):
        refloss.causal_lm(logits, None, shift_labels=labels)


def test_the_first_label_is_never_a_causal_target():
    assert refloss.causal_lm(LOGITS, [[99, 1, 2], [-5, 0, 1]]).loss == np.log(5)


def test_shift_labels_must_fit():
    with pytest.raises(ValueError, match=r"expected a row for each of shift_labels \(2, 2\), 4 in all"):
        refloss.causal_lm(LOGITS, LABELS, shift_labels=LABELS[:, :2])
    with pytest.raises(ValueError, match=r"shift_labels has shape \(\)"):
        refloss.causal_lm(LOGITS, LABELS, shift_labels=3)


def test_nothing_is_written_when_the_input_is_bad():
    buffer = np.full((4, 5), 7.0)
    with pytest.raises(ValueError, match="outside"):
        refloss.cross_entropy(FLAT, TARGET + 3, out=buffer)
    assert np.all(buffer == 7.0)


def test_out_shares_memory_with_no_input():
    target, weight = np.full((4, 5), 0.2), np.ones(20)
    with pytest.raises(ValueError, match="out shares memory with"):
        refloss.cross_entropy(FLAT, target, out=target)
    with pytest.raises(ValueError, match="out shares memory with"):
        refloss.cross_entropy(FLAT, TARGET, weight[:5], out=weight.reshape(4, 5))
    with pytest.raises(ValueError, match="out shares memory with"):
        refloss.mse(FLAT, target, out=target)


def test_threads_must_be_an_integer():
    with pytest.raises(TypeError, match=r"count is 2\.5 of type float"):
        refloss.set_num_threads(2.5)


def test_threads_must_be_positive():
    with pytest.raises(ValueError, match="count is 0; expected at least 1"):
        refloss.set_num_threads(0)
