"""What each rank computes of its part of a row, and what the ranks' sums come to, in pairs.

With m_r the largest logit of rank r behind the chain, and m the largest of all,

    own = Σ_{j of r} e^(y_j − m_r),    e^(m_r − m)·own = Σ_{j of r} e^(y_j − m)

of which the first is summed as kernels.logits.row says.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.logits.chain import chain_numbers
from refloss.kernels.logits.row import softmax_of
from refloss.kernels.rows import load_strided, row_offset
from refloss.kernels.vectors.loop import total_of
from refloss.numerics.accurate import exp_significand
from refloss.numerics.exponential import scale
from refloss.numerics.pairs import add, multiply, negate, pair, rounded, to_odd

# Below it, e^x of no more terms than a row may have is less than half of the least float64.
_NOTHING = -800.0
_LEAST_NORMAL = 2.0**-1022
_LINES = 7


class Own(NamedTuple):
    """What ranks know by themselves: float64 [ranks, rows], pairs of such."""

    maximum: np.ndarray
    maximum_low: np.ndarray
    total: np.ndarray  # Σ e^(y − maximum)
    total_low: np.ndarray
    label: np.ndarray  # y of the label, rounded; 0 where it is not the rank's
    logits: np.ndarray  # Σ y, rounded


class Common(NamedTuple):
    """What is made of it, rounded."""

    maximum: np.ndarray  # [rows]
    sums: np.ndarray  # [ranks, rows], Σ e^(y − maximum)
    total: np.ndarray  # [rows]


@jit.kernel
def rank_rows(rows, rank, labels, chain, own, first, last):
    """What a rank knows of rows first ... last; labels are its own classes, or −1."""
    lines = np.empty((_LINES, rows.classes))
    high, low = lines[1], lines[2]
    for row in range(first, last):
        load_strided(rows, row_offset(rows, row), rows.class_stride, lines[0])
        chain_numbers(lines[0], chain, high, low, lines[3], lines[4])
        softmax = softmax_of(high, low, lines[5], lines[6])
        own.maximum[rank, row], own.maximum_low[rank, row] = softmax.maximum
        own.total[rank, row], own.total_low[rank, row] = softmax.total
        label = labels[row]
        own.label[rank, row] = high[label] + low[label] if label >= 0 else 0.0
        own.logits[rank, row] = rounded(total_of(high, low))


@jit.scalar
def _power(exponent, total):
    """e^exponent·total of pairs: a pair and a power of two that it is still to be multiplied by."""
    vanishes = not exponent[0] > _NOTHING
    top, rest, n = exp_significand(_NOTHING if vanishes else exponent[0], 0.0 if vanishes else exponent[1])
    value = multiply((top, rest), total)
    return (0.0 if vanishes else value[0], 0.0 if vanishes else value[1]), n


@jit.scalar
def _scaled(value, n):
    """A pair times 2^n, rounded once, where it is subnormal as well."""
    result = scale(rounded(value), n)
    return result if abs(result) > _LEAST_NORMAL else scale(to_odd(value), n)


@jit.kernel
def common_rows(own, common):
    """The largest logit of each row, and the ranks' sums relative to it."""
    ranks, rows = own.maximum.shape
    for row in range(rows):
        top, defined = pair(-np.inf), True
        for rank in range(ranks):
            each = own.maximum[rank, row], own.maximum_low[rank, row]
            defined = defined and each[0] == each[0]
            top = each if each[0] > top[0] or (each[0] == top[0] and each[1] > top[1]) else top
        defined = defined and top[0] > -np.inf
        whole = pair(0.0)
        for rank in range(ranks):
            each = own.maximum[rank, row], own.maximum_low[rank, row]
            masked = each[0] == -np.inf
            total = 0.0 if masked else own.total[rank, row], 0.0 if masked else own.total_low[rank, row]
            value, n = _power(pair(-np.inf) if masked else add(each, negate(top)), total)
            whole = add(whole, (scale(value[0], n), scale(value[1], n)))
            common.sums[rank, row] = _scaled(value, n) if defined else np.nan
        common.maximum[row] = rounded(top) if defined or top[0] == -np.inf else np.nan
        common.total[row] = rounded(whole) if defined else np.nan
