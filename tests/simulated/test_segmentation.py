"""Segmentation on a simulated GPU where float64 does not settle a gradient, and where pixels must not be looked at."""

import numpy as np
import pytest

import refloss
from refloss.cases.source import DTYPES
from tests.cuda_cases import assert_same_result

BOARD = (np.arange(16).reshape(1, 4, 4) + np.arange(4)[:, None]) % 2


def _logits(name):
    generator = np.random.default_rng(0)
    x = np.zeros((1, 2, 2, 2))
    if name == "close":
        x += generator.standard_normal(x.shape) * 2.0**-20
    if name == "far":
        x += 1e3 + generator.standard_normal(x.shape)
    if name in ("undefined", "masked"):
        x[0, :, 1, 1] = np.nan if name == "undefined" else -np.inf
    return x


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ["equal", "close", "far", "undefined", "masked"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_segmentation_has_the_cpu_s_bits(dtype, name, size):
    x, labels = _logits(name).astype(DTYPES[dtype]), BOARD[:, :size, :size].copy()
    labels[0, -1, -1] = 255
    results = [
        refloss.semantic_segmentation(x, labels, grad_output=1 / 3, backend=backend) for backend in ("cuda", "cpu")
    ]
    assert_same_result(*results)
