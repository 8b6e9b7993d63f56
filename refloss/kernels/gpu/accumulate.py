"""Exact sums of many threads' float64 values of any size: the accumulator of numerics.sums, in device memory.

A thread counts its values on three grids below an exponent of its own, and deposits the counts when it is done. What a
grid cannot hold, and what the grids leave, is deposited at once. All of that is integer addition, which may happen in
any order.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, int64

from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.jit import gpu_function
from refloss.numerics.sums import (
    GRID_EXPONENTS,
    LIMBS,
    UNITS,
    accumulated,
    carry,
    counts_below,
    exponent_of,
    limb_parts,
    mantissa_of,
)

_COARSE, _FINE, _FINEST = 1074 - 36, 1074 - 72, 1074 - 108
_NO_ANCHOR = -(2**20)
_FINITE = 1024
# Bits above the exponent of the first value, so that somewhat larger ones fit the same grids.
_HEADROOM = 8
_LEAST_ANCHOR = -GRID_EXPONENTS + 1
_SPECIAL = (np.inf, -np.inf, np.nan)
_KINDS = 3


class Totals(NamedTuple):
    """An accumulator, or as many as there are rows, and how often +inf, −inf and NaN were added to it."""

    limbs: Any  # [66] or [N, 66] int64
    special: Any  # [3] or [N, 3] int64


@gpu_function
def new_state():
    """A thread's exponent and its counts on the grids below it."""
    return np.int64(_NO_ANCHOR), np.int64(0), np.int64(0), np.int64(0)


@gpu_function
def _deposit(magnitude, negative, offset, totals):
    limb, low, middle, high = limb_parts(magnitude, negative, offset)
    cuda.atomic.add(totals.limbs, limb, low)
    cuda.atomic.add(totals.limbs, limb + 1, middle)
    cuda.atomic.add(totals.limbs, limb + 2, high)


@gpu_function
def _deposit_value(value, totals):
    magnitude, negative, offset = mantissa_of(value)
    _deposit(magnitude, negative, offset, totals)


@gpu_function
def flush(state, totals):
    """Deposit a thread's counts."""
    anchor, coarse, fine, finest = state
    if coarse != 0:
        _deposit(abs(coarse), coarse < 0, anchor + _COARSE, totals)
    if fine != 0:
        _deposit(abs(fine), fine < 0, anchor + _FINE, totals)
    if finest != 0:
        _deposit(abs(finest), finest < 0, anchor + _FINEST, totals)


@gpu_function
def add_value(value, state, totals):
    """Add a value; the new state."""
    exponent = exponent_of(value)
    if exponent > _FINITE:
        cuda.atomic.add(totals.special, 2 if value != value else (0 if value > 0.0 else 1), 1)
        return state
    if value == 0.0:
        return state
    if exponent + _HEADROOM >= GRID_EXPONENTS:
        _deposit_value(value, totals)
        return state
    anchor, coarse, fine, finest = state
    if exponent > anchor:
        flush(state, totals)
        anchor = max(exponent + _HEADROOM, np.int64(_LEAST_ANCHOR))
        coarse, fine, finest = np.int64(0), np.int64(0), np.int64(0)
    more_coarse, more_fine, more_finest, rest = counts_below(value, anchor)
    if rest != 0.0:
        _deposit_value(rest, totals)
    return anchor, coarse + more_coarse, fine + more_fine, finest + more_finest


@gpu_function
def block_totals():
    """An empty accumulator of the block, in shared memory; for the threads of a block that all end with merge."""
    # The simulator tells shared arrays apart by their line.
    limbs = cuda.shared.array(LIMBS, int64)
    special = cuda.shared.array(_KINDS, int64)
    totals = Totals(limbs, special)
    for i in range(cuda.threadIdx.x, LIMBS, cuda.blockDim.x):
        totals.limbs[i] = 0
    for i in range(cuda.threadIdx.x, _KINDS, cuda.blockDim.x):
        totals.special[i] = 0
    cuda.syncthreads()
    return totals


@gpu_function
def merge(state, of_block, totals):
    """Flush a thread's counts into the accumulator of its block, and that into the one of all."""
    flush(state, of_block)
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        # So that the limbs of any number of blocks fit.
        carry(of_block.limbs)
    cuda.syncthreads()
    for i in range(cuda.threadIdx.x, LIMBS, cuda.blockDim.x):
        if of_block.limbs[i] != 0:
            cuda.atomic.add(totals.limbs, i, of_block.limbs[i])
    for i in range(cuda.threadIdx.x, _KINDS, cuda.blockDim.x):
        if of_block.special[i] != 0:
            cuda.atomic.add(totals.special, i, of_block.special[i])


def new_totals(count: int | None = None) -> Totals:
    """Empty accumulators in device memory: one, or count of them."""
    rows = () if count is None else (count,)
    return Totals(*(runtime.Array.of(np.zeros((*rows, size), np.int64)) for size in (LIMBS, _KINDS)))


def exact(limbs: np.ndarray, special: np.ndarray) -> Fraction | float:
    """What an accumulator holds; the sum of what was not finite, if anything was."""
    if special.any():
        with np.errstate(invalid="ignore"):
            return float(sum(value for value, count in zip(_SPECIAL, special.tolist(), strict=True) if count))
    return Fraction(accumulated(limbs), UNITS)


def exact_total(totals: Totals) -> Fraction | float:
    """What the one accumulator in device memory holds."""
    return exact(totals.limbs.download(), totals.special.download())
