"""Ranks whose logits live on a GPU: they are copied to lie side by side, and their gradients go back there."""

import numpy as np

import refloss
from refloss.device import DeviceArray
from tests.cuda_cases import assert_same_bits
from tests.simulated.test_arrays import ByInterface

LABELS = np.array([1, -100, 3])


def test_gradients_are_where_the_shards_are():
    logits = (np.random.default_rng(0).standard_normal((3, 5)) * 4).astype(np.float32)
    parts = np.split(logits, [2], axis=1)
    wanted = refloss.vocab_parallel_cross_entropy(parts, LABELS, grad_output=-2.0)
    found = refloss.vocab_parallel_cross_entropy([*map(ByInterface, parts)], LABELS, grad_output=-2.0)
    assert_same_bits(found.loss, wanted.loss, "loss")
    for mine, theirs in zip(found.grads["shards"], wanted.grads["shards"], strict=True):
        assert isinstance(mine, DeviceArray)
        assert_same_bits(np.asarray(mine), theirs, "gradient")
    for name, value in wanted.intermediates.items():
        assert_same_bits(found.intermediates[name], value, name)
