"""Rows whose logits go through a chain: the CPU's bits of a block of threads."""

import numpy as np
import pytest

import refloss
from tests.simulated.test_rows import both

CHAINS = [
    {"softcap": 4.0, "logit_scale": -0.75, "z_loss": 0.01},
    {"temperature": 0.7, "z_loss": 0.5},
]


def rows(dtype="float32", classes=37):
    generator = np.random.default_rng(0)
    logits = (generator.standard_normal((6, classes)) * 6).astype(dtype)
    labels = generator.integers(classes, size=6)
    logits[1, labels[1]] = 90.0
    logits[2, ::3] = -np.inf
    logits[2, labels[2]] = 1.0
    labels[3] = -100
    logits[3, 5] = np.nan
    logits[4] = 0.5
    return logits, labels


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("chain", CHAINS)
def test_labels(dtype, chain):
    logits, labels = rows(dtype)
    weight = np.linspace(0.1, 2, 37)
    both(refloss.cross_entropy, logits, labels, grad_output=-1.25, **chain)
    cotangent = {"cross_entropy": np.linspace(-3, 5, 6), "z_loss": 0.7}
    both(refloss.cross_entropy, logits, labels, weight, reduction="none", grad_output=cotangent, **chain)
    weight[3] = 1e20
    both(refloss.cross_entropy, logits, labels, weight, label_smoothing=0.1, grad_output=3.0, **chain)


@pytest.mark.parametrize("chain", CHAINS)
def test_probabilities_at_their_optimum(chain):
    generator = np.random.default_rng(5)
    target = np.round(generator.random((4, 9)) * 64) + 1
    target /= target.sum(axis=1, keepdims=True)
    target[3] = 0.1
    logits = np.log(target)
    both(refloss.cross_entropy, logits, target, reduction="sum", temperature=1.5)
    both(refloss.cross_entropy, logits, target, np.linspace(0.5, 2, 9), label_smoothing=0.2, grad_output=-2.0, **chain)
    both(refloss.cross_entropy, logits[:, ::-1], target, reduction="none", **chain)


def test_undefined_rows_and_what_is_asked_for_later():
    logits, labels = rows()
    logits[0], logits[5, 1] = -np.inf, np.inf
    for chain in CHAINS:
        results = [refloss.cross_entropy(logits, labels, backend=backend, **chain) for backend in ("cuda", "cpu")]
        for name in ("log_probabilities", "probabilities", "lse", "nll"):
            first, second = (result.intermediates[name] for result in results)
            assert first.tobytes() == second.tobytes()
        both(refloss.cross_entropy, logits, labels, reduction="none", grad=False, **chain)
