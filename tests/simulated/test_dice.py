"""Dice on a simulated GPU where float64 does not settle a gradient."""

import numpy as np
import pytest

import refloss
from refloss.cases.source import DTYPES
from tests.cuda_cases import assert_same_result


@pytest.mark.parametrize("wanted", [True, "inputs", "targets"], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dice_has_the_cpu_s_bits(dtype, wanted):
    x = np.zeros((4, 4))
    x[1], x[2, 1] = (3.0, -3.0, 1.5, -1.5), np.nan
    x[3] = np.random.default_rng(0).standard_normal(4)
    x = x.astype(DTYPES[dtype])
    t = np.full(x.shape, 0.25, DTYPES[dtype])
    for reduction in ("sum", "none"):
        results = [
            refloss.dice(x, t, 3.0, reduction=reduction, grad_output=1 / 3, grad=wanted, backend=backend)
            for backend in ("cuda", "cpu")
        ]
        assert_same_result(*results)
