"""What the threads of a block do together: sums and maxima of integers, and sums of a row, of the CPU's very bits.

All of them are of integers, so that neither the size of a block nor the order of its threads shows in a result. Their
scratch is shared memory of LARGEST_BLOCK int64 that the kernel declares: numba.cuda links a function that had some
twice where it is called on two levels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from refloss import jit
from refloss.kernels.gpu.jit import gpu_function
from refloss.numerics.exponential import scale
from refloss.numerics.sums import exponent_of, grid_counts, grid_total

WARP = 32
_UNDEFINED = 1025  # the exponent of what is not finite


@jit.scalar
def _sum(a, b):
    return a + b


@jit.scalar
def _larger(a, b):
    return a if a > b else b


def _reduction(combine: Any) -> Any:
    """What every thread's integer comes to, known to all; combine may be applied in any order."""

    @gpu_function
    def reduced(value, scratch):
        lane, lanes = cuda.threadIdx.x, cuda.blockDim.x
        cuda.syncthreads()
        scratch[lane] = value
        cuda.syncthreads()
        if lane < WARP:
            for i in range(lane + WARP, lanes, WARP):
                value = combine(value, scratch[i])
            scratch[lane] = value
        cuda.syncthreads()
        result = scratch[0]
        for i in range(1, WARP if lanes > WARP else lanes):
            result = combine(result, scratch[i])
        return result

    return reduced


block_sum = _reduction(_sum)
block_max = _reduction(_larger)


@gpu_function
def row_sum(terms, scratch):
    """numerics.sums.row_sum of a row that the block's threads have just written."""
    lane, lanes = cuda.threadIdx.x, cuda.blockDim.x
    cuda.syncthreads()
    largest = -_UNDEFINED
    for i in range(lane, terms.size, lanes):
        here = exponent_of(terms[i])
        largest = here if here > largest else largest
    largest = block_max(largest, scratch)
    if largest >= _UNDEFINED:
        # In the order of the row: what becomes of infinities and NaN does not depend on it.
        special = 0.0
        for i in range(terms.size):
            special += terms[i] if exponent_of(terms[i]) >= _UNDEFINED else 0.0
        cuda.syncthreads()
        return special, 0.0
    largest = -1022 if largest < -1022 else largest
    coarse, fine = np.int64(0), np.int64(0)
    for i in range(lane, terms.size, lanes):
        coarse_count, fine_count = grid_counts(scale(terms[i], -largest))
        coarse += coarse_count
        fine += fine_count
    coarse, fine = block_sum(coarse, scratch), block_sum(fine, scratch)
    high, low = grid_total(coarse, fine, 0)
    return scale(high, largest), scale(low, largest)
