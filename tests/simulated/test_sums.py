"""Exact sums by many threads at a time."""

from fractions import Fraction
from typing import NamedTuple

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numba import cuda

from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.accumulate import (
    add_value,
    block_totals,
    exact_total,
    flush,
    merge,
    new_state,
    new_totals,
)


class Values(NamedTuple):
    array: np.ndarray


@cuda.jit
def add_all(values, totals, by_block):
    state, own = new_state(), block_totals()
    for i in range(cuda.grid(1), values.array.size, cuda.gridsize(1)):
        state = add_value(values.array[i], state, own if by_block else totals)
    if by_block:
        merge(state, own, totals)
    else:
        flush(state, totals)


def total(values, by_block=True):
    totals = new_totals()
    runtime.launch(add_all, 2, 3, Values(np.asarray(values, np.float64)), totals, by_block)
    return exact_total(totals)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=12), st.booleans())
def test_sums_are_exact_whatever_their_size(values, by_block):
    assert total(values, by_block) == sum(map(Fraction, values), Fraction(0))


def test_what_is_not_finite_decides():
    assert total([1.0, np.inf, 3.0]) == np.inf
    assert total([1.0, -np.inf, -np.inf]) == -np.inf
    assert np.isnan(total([np.inf, 0.0, -np.inf]))
    assert np.isnan(total([1.0, np.nan]))


def test_cancellation_leaves_what_is_left():
    tiny, huge = 5e-324, 1.7e308
    assert total([huge, tiny, -huge]) == Fraction(tiny)
    assert total([]) == 0
