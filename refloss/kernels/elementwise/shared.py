"""The gradient of a number that several elements share: the exact sum of theirs, rounded once."""

from __future__ import annotations

import numpy as np

from refloss import jit
from refloss.kernels.rows import AnyRows, elements_of, save_pairs
from refloss.numerics.pairs import scaled, two_product
from refloss.numerics.sums import LIMBS, add_exactly, carry, limbs_pair

_BLOCK = 2048


@jit.helper
def _products(cotangents, values, products):
    """Products without error, high parts first; of what is not finite there is no low part."""
    count = values.size
    for i in range(count):
        high, low = two_product(cotangents[i], values[i])
        products[i] = high
        products[count + i] = low if abs(high) < np.inf else 0.0


@jit.helper
def _total(limbs):
    """What an accumulator holds, of either sign, as a pair."""
    carry(limbs)
    negative = limbs[LIMBS - 1] < 0
    if negative:
        for i in range(LIMBS):
            limbs[i] = -limbs[i]
    high, low = limbs_pair(limbs)
    return (-high, -low) if negative else (high, low)


@jit.kernel
def _add_rows(high, low, cotangents, coefficient, count, out):
    """Of each row of so many pairs the sum of their products with cotangents, times the coefficient."""
    rows, limbs, products = AnyRows(*out), np.empty(LIMBS, np.int64), np.empty(2 * _BLOCK)
    one, one_low = np.empty(1), np.empty(1)
    for row in range(high.size // count):
        limbs[:] = 0
        special = 0.0
        for start in range(row * count, (row + 1) * count, _BLOCK):
            end = min(start + _BLOCK, (row + 1) * count)
            for values in (high, low):
                part = products[: 2 * (end - start)]
                _products(cotangents[start:end], values[start:end], part)
                special += add_exactly(part, limbs)
        total = (special, 0.0) if special != 0.0 else _total(limbs)
        one[0], one_low[0] = scaled(total, coefficient)
        save_pairs(one, one_low, rows, row)


def add_shared(
    high: np.ndarray, low: np.ndarray, cotangent: np.ndarray, coefficient: tuple[float, float], out: np.ndarray
) -> None:
    """Sum the pairs of elements, times their cotangents, over the axes on which out has one element; then scale."""
    shape = high.shape
    if not high.size:
        out[...] = 0.0
        return
    summed = [axis for axis in range(high.ndim) if out.shape[axis] == 1]
    order = [axis for axis in range(high.ndim) if out.shape[axis] != 1] + summed
    arrays = (np.broadcast_to(each, shape).transpose(order).reshape(-1) for each in (high, low, cotangent))
    count = high.size // out.size
    _add_rows(*map(np.ascontiguousarray, arrays), coefficient, count, tuple(elements_of(out)))
