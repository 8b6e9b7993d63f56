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
from refloss.numerics.pairs import add
from refloss.numerics.sums import exponent_of, grid_counts, grid_total, long_counts, long_total

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


# Each is many instructions, of which a compiler makes copies: whoever wants several of them calls one in a loop.
block_sum = _reduction(_sum)
block_max = _reduction(_larger)


@gpu_function
def block_sums(first, second, third, scratch):
    """block_sum of three integers."""
    for _ in range(3):
        first, second, third = second, third, block_sum(first, scratch)
    return first, second, third


@gpu_function
def _exponent_of_row(terms, scratch):
    """The exponent of the largest of the terms that the block's threads have just written."""
    cuda.syncthreads()
    largest = -_UNDEFINED
    for i in range(cuda.threadIdx.x, terms.size, cuda.blockDim.x):
        here = exponent_of(terms[i])
        largest = here if here > largest else largest
    return max(block_max(largest, scratch), -1022)


@gpu_function
def _special_sum(terms):
    """In the order of the row: what becomes of infinities and NaN does not depend on it."""
    special = 0.0
    for i in range(terms.size):
        special += terms[i] if exponent_of(terms[i]) >= _UNDEFINED else 0.0
    cuda.syncthreads()
    return special


@gpu_function
def row_sum(terms, scratch):
    """numerics.sums.row_sum of a row that the block's threads have just written."""
    exponent = _exponent_of_row(terms, scratch)
    if exponent >= _UNDEFINED:
        return _special_sum(terms), 0.0
    coarse, fine = np.int64(0), np.int64(0)
    for i in range(cuda.threadIdx.x, terms.size, cuda.blockDim.x):
        counts = grid_counts(scale(terms[i], -exponent))
        coarse += counts[0]
        fine += counts[1]
    coarse, fine = block_sum(coarse, scratch), block_sum(fine, scratch)
    high, low = grid_total(coarse, fine, 0)
    return scale(high, exponent), scale(low, exponent)


@gpu_function
def long_sum(terms, scratch):
    """numerics.sums.long_sum of such a row."""
    exponent = _exponent_of_row(terms, scratch)
    if exponent >= _UNDEFINED:
        return _special_sum(terms), 0.0
    coarse, fine, finest = np.int64(0), np.int64(0), np.int64(0)
    for i in range(cuda.threadIdx.x, terms.size, cuda.blockDim.x):
        counts = long_counts(scale(terms[i], -exponent))
        coarse += counts[0]
        fine += counts[1]
        finest += counts[2]
    coarse, fine, finest = block_sums(coarse, fine, finest, scratch)
    high, low = long_total(coarse, fine, finest)
    return scale(high, exponent), scale(low, exponent)


@gpu_function
def sum_of_pairs(high, low, scratch):
    """The sum of such a row of pairs, a pair: that of its high parts and that of its low parts."""
    first, second = (0.0, 0.0), (0.0, 0.0)
    for part in range(2):
        first, second = second, long_sum(high if part == 0 else low, scratch)
    return add(first, second)
