"""Log-probabilities of a row's indices, its entropy and their gradient, in pairs: see losses/selected_log_probs.py.

With r a class of the largest z, d_j = z_j − z_r ≤ 0 and e_j = e^(d_j), everything is made of two sums over the other
classes, all terms of which are positive:

    S = 1 + Σ_{j≠r} e_j,    m = Σ_{j≠r} e_j·(−d_j)/S
    log p_j = d_j − log S,    H = log S + m,    log p_j + H = d_j + m

Exponentials are 2^RAISED times as large, so that those of float64's least probabilities have all their digits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.log_probs.chain import Chain, distance, highest_of, slope
from refloss.kernels.rows import load_strided, row_offset, save_strided
from refloss.kernels.vectors.loop import total_of
from refloss.numerics.accurate import exp_significand, log1p_accurate
from refloss.numerics.bits import float64_from_bits
from refloss.numerics.pairs import add, divide, multiply, negate, pair, product, rounded, scaled, to_odd

RAISED = 200
ONE = 2.0**RAISED
# Below it e^d is 0: far below all that float64 holds, and far above what 2^RAISED times it could lose.
LEAST = -800.0
# Lines of the scratch: logits, d, e^d, what is summed and at last the gradient.
_X, _FAR, _FAR_LOW, _TERM, _TERM_LOW, _PART, _PART_LOW = range(7)
LINES = 7


class Given(NamedTuple):
    """What rows are given beside their logits."""

    index: np.ndarray  # [R, K] int64
    counts: np.ndarray  # [R] bool
    upstream: np.ndarray  # [R, K] float64, of the log-probabilities
    of_entropy: np.ndarray  # [R] float64, of the entropy
    chain: Chain


class Statistics(NamedTuple):
    """What a row's sums come to, pairs; exponentials raised."""

    highest: int  # r, −1 where nothing is defined
    others: tuple[float, float]  # S − 1
    total: tuple[float, float]  # S
    log_total: tuple[float, float]  # log S
    mean: tuple[float, float]  # m


class Results(NamedTuple):
    """What is written of every row."""

    log_probs: np.ndarray  # [R, K]
    entropy: np.ndarray  # [R]


@jit.scalar
def raised_exp(high, low):
    """2^RAISED·e^(high + low) of a pair not above 0, a pair."""
    vanishes = not high >= LEAST
    top, rest, n = exp_significand(0.0 if vanishes else high, 0.0 if vanishes else low)
    power = float64_from_bits((n + (RAISED + 1023)) << 52)
    return 0.0 if vanishes else top * power, 0.0 if vanishes else rest * power


@jit.helper
def _exponentials(scratch, highest, chain):
    """Distances from the highest class, and exponentials, of which its own is left out; what is to be summed."""
    x = scratch[_X]
    for c in range(x.size):
        scratch[_FAR, c], scratch[_FAR_LOW, c] = distance(x[c], x[highest], chain)
    for c in range(x.size):
        high, low = raised_exp(scratch[_FAR, c], scratch[_FAR_LOW, c])
        there = c != highest
        scratch[_TERM, c], scratch[_TERM_LOW, c] = high if there else 0.0, low if there else 0.0
        part = product((-high, -low), (scratch[_FAR, c], scratch[_FAR_LOW, c]))
        there = there and high > 0.0
        scratch[_PART, c], scratch[_PART_LOW, c] = part[0] if there else 0.0, part[1] if there else 0.0


@jit.helper
def statistics_of(scratch, chain):
    """Those of the row whose logits are in the first line of a scratch."""
    nothing = pair(0.0)
    highest = highest_of(scratch[_X], chain)
    if highest < 0:
        return Statistics(highest, nothing, nothing, nothing, nothing)
    _exponentials(scratch, highest, chain)
    others = total_of(scratch[_TERM], scratch[_TERM_LOW])
    total = add(pair(ONE), others)
    mean = divide(total_of(scratch[_PART], scratch[_PART_LOW]), total)
    scratch[_TERM, highest] = ONE
    log_total = log1p_accurate(others[0] / ONE, others[1] / ONE)
    return Statistics(highest, others, total, log_total, mean)


@jit.helper
def write_values(scratch, row, given, of_row, results):
    """A row's log-probabilities and its entropy; 0 where it does not count."""
    counts, defined = given.counts[row], of_row.highest >= 0
    for k in range(given.index.shape[1]):
        value = np.nan
        if counts and defined:
            label = given.index[row, k]
            far = scratch[_FAR, label], scratch[_FAR_LOW, label]
            # 0 has no sign, as −log 1 would have.
            value = rounded(add(far, negate(of_row.log_total))) + 0.0
        results.log_probs[row, k] = value if counts else 0.0
    entropy = rounded(add(of_row.log_total, of_row.mean)) if defined else np.nan
    results.entropy[row] = entropy if counts else 0.0


@jit.helper
def _asked(given, row, label):
    """The cotangents of a class, and those of all others, pairs."""
    own, others = pair(0.0), pair(0.0)
    for k in range(given.index.shape[1]):
        upstream = pair(given.upstream[row, k])
        if given.index[row, k] == label:
            own = add(own, upstream)
        else:
            others = add(others, upstream)
    return own, others


@jit.helper
def _pushed(scratch, c, all_upstream, of_entropy, of_row):
    """The cotangents of all indices and what the entropy adds: what a class's probability is multiplied by."""
    if not scratch[_TERM, c] > 0.0:
        return all_upstream
    beyond = add((scratch[_FAR, c], scratch[_FAR_LOW, c]), of_row.mean)
    return add(all_upstream, multiply(pair(of_entropy), beyond))


@jit.helper
def write_slopes(scratch, row, given, of_row):
    """The gradient of a row that counts, into the last lines of the scratch."""
    chain, of_entropy = given.chain, given.of_entropy[row]
    defined = of_row.highest >= 0
    _, everything = _asked(given, row, -1)
    for c in range(scratch.shape[1]):
        value = pair(np.nan)
        if defined:
            pushed = _pushed(scratch, c, everything, of_entropy, of_row)
            value = negate(multiply((scratch[_TERM, c], scratch[_TERM_LOW, c]), pushed))
            value = scaled(divide(value, of_row.total), slope(scratch[_X, c], chain))
        scratch[_PART, c], scratch[_PART_LOW, c] = value
    if not defined:
        return
    for k in range(given.index.shape[1]):
        label = given.index[row, k]
        own, others = _asked(given, row, label)
        if label == of_row.highest:
            # 1 − p is what the others have.
            pushed = add(others, multiply(pair(of_entropy), of_row.mean))
            value = add(multiply(own, of_row.others), (-ONE * pushed[0], -ONE * pushed[1]))
        else:
            pushed = _pushed(scratch, label, add(own, others), of_entropy, of_row)
            term = scratch[_TERM, label], scratch[_TERM_LOW, label]
            value = add(multiply(own, of_row.total), negate(multiply(term, pushed)))
        value = scaled(divide(value, of_row.total), slope(scratch[_X, label], chain))
        scratch[_PART, label], scratch[_PART_LOW, label] = value


@jit.helper
def clear_slopes(scratch):
    """The gradient of a row that does not count."""
    for c in range(scratch.shape[1]):
        scratch[_PART, c] = 0.0
        scratch[_PART_LOW, c] = 0.0


@jit.helper
def work_on(scratch, row, given, results, with_slopes):
    """Everything of the row whose logits are in the first line of the scratch."""
    if not given.counts[row]:
        write_values(scratch, row, given, Statistics(-1, pair(0.0), pair(0.0), pair(0.0), pair(0.0)), results)
        if with_slopes:
            clear_slopes(scratch)
        return
    of_row = statistics_of(scratch, given.chain)
    write_values(scratch, row, given, of_row, results)
    if with_slopes:
        write_slopes(scratch, row, given, of_row)


@jit.kernel
def log_prob_rows(rows, gradient, given, results, with_slopes, first, last):
    """Log-probabilities and entropy of rows first ... last, and their gradient."""
    scratch = np.empty((LINES, rows.classes))
    high, low = scratch[_PART], scratch[_PART_LOW]
    for row in range(first, last):
        load_strided(rows, row_offset(rows, row), rows.class_stride, scratch[_X])
        work_on(scratch, row, given, results, with_slopes)
        if not with_slopes:
            continue
        for c in range(high.size if gradient.format != 0 else 0):
            high[c] = to_odd((high[c], low[c]))
        save_strided(high, gradient, row_offset(gradient, row), gradient.class_stride)
