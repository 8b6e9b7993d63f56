"""Rows that golden cases are too short for: a block of threads for each, in chunks of memory and without."""

import numpy as np
import pytest

import refloss
from refloss.cases.source import DTYPES
from refloss.kernels.gpu import runtime
from tests.cuda_cases import assert_same_bits, assert_same_result

# Whole chunks in every format, and not in any.
ALIGNED, UNALIGNED = 160, 131


def rows(dtype, classes, seed=0):
    generator = np.random.default_rng(seed)
    logits = (generator.standard_normal((6, classes)) * 6).astype(DTYPES[dtype])
    labels = generator.integers(classes, size=6)
    logits[1, labels[1]] = 40
    logits[2, ::3] = -np.inf
    logits[2, labels[2]] = 1
    labels[3] = -100
    logits[3, 5] = np.nan
    return logits, labels


def both(call, *arguments, **keywords):
    results = [call(*arguments, **keywords, backend=backend) for backend in ("cuda", "cpu")]
    assert_same_result(*results)
    return results[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [ALIGNED, UNALIGNED])
def test_labels(dtype, classes):
    logits, labels = rows(dtype, classes)
    cotangent = np.linspace(-3, 5, 6)
    both(refloss.cross_entropy, logits, labels, grad_output=-1.25)
    weight = np.linspace(0.1, 2, classes)
    both(refloss.cross_entropy, logits, labels, weight, reduction="none", grad_output=cotangent)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_and_formats(dtype):
    logits, labels = rows(dtype, ALIGNED + UNALIGNED)
    other = np.float32 if dtype != "float32" else np.float64
    both(refloss.cross_entropy, logits, labels, grad_dtype=other)
    both(refloss.cross_entropy, logits[:, :ALIGNED], labels % ALIGNED)
    both(refloss.cross_entropy, np.asfortranarray(logits), labels)


@pytest.mark.parametrize("spoilt", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at_label", [True, False])
@pytest.mark.parametrize("classes", [ALIGNED, 7])
def test_undefined_rows(spoilt, at_label, classes):
    logits, labels = rows("float32", classes)
    logits[4, labels[4] if at_label else (labels[4] + 1) % classes] = spoilt
    logits[5] = -np.inf
    both(refloss.cross_entropy, logits, labels, reduction="sum")
    both(refloss.cross_entropy, logits, labels, reduction="sum", label_smoothing=0.25)


@pytest.mark.parametrize("dtype", DTYPES)
def test_smoothing_and_probabilities(dtype):
    logits, labels = rows(dtype, UNALIGNED)
    weight = np.linspace(0.1, 2, UNALIGNED)
    both(refloss.cross_entropy, logits, labels, weight, label_smoothing=0.1, grad_output=3.0)
    exponentials = np.exp(np.where(np.isfinite(logits), logits, 0).astype(np.float64) % 5)
    target = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(DTYPES[dtype])
    logits = np.where(np.isneginf(logits), DTYPES[dtype](-3), logits)
    both(refloss.cross_entropy, logits, target, weight, label_smoothing=0.2, grad_output=-2.0)
    both(refloss.cross_entropy, logits, target, reduction="none", grad_output=np.linspace(-3, 5, 6))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_probabilities_at_their_optimum_are_refined(dtype):
    generator = np.random.default_rng(5)
    target = np.round(generator.random((4, 9)) * 64) + 1
    target /= target.sum(axis=1, keepdims=True)
    both(refloss.cross_entropy, np.log(target).astype(dtype), target.astype(dtype), reduction="sum")


def test_several_blocks_and_grids():
    logits, labels = rows("float32", ALIGNED)
    alone = refloss.cross_entropy(logits, labels, backend="cpu")
    for block in (1, 3, 4):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runtime, "LARGEST_BLOCK", block)
            assert_same_result(refloss.cross_entropy(logits, labels, backend="cuda"), alone)


def test_an_empty_batch_and_buffers_of_the_caller_s():
    both(refloss.cross_entropy, np.empty((0, 5)), np.empty(0, np.int64), reduction="sum")
    logits, labels = rows("bfloat16", 40)
    out = np.zeros((6, 80), np.float32)[:, ::2]
    result = refloss.cross_entropy(logits, labels, out=out, backend="cuda")
    assert result.grads["logits"] is out
    assert_same_bits(out, refloss.cross_entropy(logits, labels, grad_dtype=np.float32).grads["logits"], "out")
    logits.flags.writeable = False
    both(refloss.cross_entropy, logits[::-1], labels)
    assert not refloss.cross_entropy(logits, labels, grad=False, backend="cuda").grads
