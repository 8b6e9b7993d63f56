"""Log-probabilities of a row's indices, its entropy and their gradient, in pairs: see losses/selected_log_probs.py.

What kernels.logits says of a row, with one sum more. With m the largest logit behind the chain, e_j = e^(y_j − m) and Z
their sum,

    D = Σ_j e_j·(m − y_j)/Z,    −log p_j = (m − y_j) + log Z,    H = log Z + D,    log p_j + H = D − (m − y_j)

whose terms all have one sign, but for the last one's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.logits.chain import Chain, chained
from refloss.kernels.logits.row import (
    Masses,
    Push,
    difference_of_class,
    gradient_of_difference,
    nll_of,
    significand_of,
    softmax_of,
)
from refloss.kernels.rows import load_strided, row_offset, save_strided
from refloss.kernels.vectors.loop import total_of
from refloss.numerics.exponential import scale
from refloss.numerics.pairs import add, divide, multiply, negate, pair, rounded, to_odd

# Terms of D are 2^_RAISED times as large, so that those of float64's least probabilities have all their digits.
_RAISED = 200
# Lines of the scratch: logits, those behind the chain and its derivative, e^(y − m), and terms of D, or the gradient.
X, _Y, _Y_LOW, _SLOPE, _SLOPE_LOW, _TERM, _TERM_LOW, PART, PART_LOW = range(9)
LINES = 9


class Given(NamedTuple):
    """What rows are given beside their logits."""

    classes: np.ndarray  # [R, K] int64
    counts: np.ndarray  # [R] bool
    upstream: np.ndarray  # [R, K] float64, of the log-probabilities
    of_entropy: np.ndarray  # [R] float64, of the entropy
    chain: Chain


class Results(NamedTuple):
    """What is written of every row."""

    log_probs: np.ndarray  # [R, K]
    entropy: np.ndarray  # [R]


class Asked(NamedTuple):
    """What one row is given."""

    classes: np.ndarray  # [K]
    upstream: np.ndarray  # [K]
    of_entropy: float
    chain: Chain


@jit.scalar
def _at(scratch, line, c):
    """A pair of two lines."""
    return scratch[line, c], scratch[line + 1, c]


@jit.scalar
def _put(scratch, line, c, value):
    scratch[line, c] = value[0]
    scratch[line + 1, c] = value[1]


@jit.scalar
def _distance(scratch, c, softmax):
    """m − y of a class, a pair; +inf where it is masked."""
    return add(softmax.maximum, negate(_at(scratch, _Y, c)))


@jit.helper
def _softmax(scratch, chain):
    """That of the row whose logits are in the first line."""
    for c in range(scratch.shape[1]):
        value, slope = chained(pair(scratch[X, c]), chain)
        _put(scratch, _Y, c, value)
        _put(scratch, _SLOPE, c, slope)
    return softmax_of(scratch[_Y], scratch[_Y_LOW], scratch[_TERM], scratch[_TERM_LOW])


@jit.helper
def _mean_distance(scratch, softmax):
    """D, a pair."""
    for c in range(scratch.shape[1]):
        term, n = significand_of(_at(scratch, _Y, c), softmax.maximum)
        raised = scale(term[0], n + _RAISED), scale(term[1], n + _RAISED)
        nothing = raised[0] == 0.0 or c == softmax.top
        part = multiply(raised, _distance(scratch, c, softmax))
        _put(scratch, PART, c, (0.0 if nothing else part[0], 0.0 if nothing else part[1]))
    high, low = divide(total_of(scratch[PART], scratch[PART_LOW]), softmax.total)
    return scale(high, -_RAISED), scale(low, -_RAISED)


@jit.helper
def _write_log_probs(scratch, asked, softmax, log_probs):
    """Those of the classes that a row names."""
    for k in range(log_probs.size):
        # 0 has no sign, as minus the surprise of a class that is alone would have.
        value = 0.0 - rounded(nll_of(softmax, _at(scratch, _Y, asked.classes[k])))
        log_probs[k] = value if softmax.defined else np.nan


@jit.helper
def _upstream(asked, label):
    """The sums of a row's cotangents: of those for a class, and of those for others; pairs."""
    own, others = pair(0.0), pair(0.0)
    for k in range(asked.classes.size):
        if asked.classes[k] == label:
            own = add(own, pair(asked.upstream[k]))
        else:
            others = add(others, pair(asked.upstream[k]))
    return own, others


@jit.helper
def _gradient(scratch, c, mass, masses, of_entropy, softmax, mean):
    """Of a class with the cotangents `mass` of its own: −(Σc·e − mass·Z) − h·e·(log p + H), over Z."""
    term = _at(scratch, _TERM, c)
    difference, _ = difference_of_class(softmax, masses, c == softmax.top, term, mass)
    excess = pair(0.0)
    if term[0] > 0.0:
        excess = multiply(pair(-of_entropy), add(mean, negate(_distance(scratch, c, softmax))))
    return gradient_of_difference(softmax, Push(pair(-1.0), excess), difference, term, _at(scratch, _SLOPE, c))


@jit.helper
def _write_gradient(scratch, asked, softmax, mean):
    """The gradient of a row that counts, into the last lines."""
    none = pair(0.0)
    of_top, others = _upstream(asked, softmax.top)
    masses = Masses(add(of_top, others), others, none, none)
    for c in range(scratch.shape[1]):
        value = pair(np.nan)
        if softmax.defined:
            value = _gradient(scratch, c, none, masses, asked.of_entropy, softmax, mean)
        _put(scratch, PART, c, value)
    for k in range(asked.classes.size if softmax.defined else 0):
        label = asked.classes[k]
        own, _ = _upstream(asked, label)
        _put(scratch, PART, label, _gradient(scratch, label, own, masses, asked.of_entropy, softmax, mean))


@jit.helper
def clear(scratch, log_probs):
    """A row that does not count."""
    for k in range(log_probs.size):
        log_probs[k] = 0.0
    for c in range(scratch.shape[1]):
        _put(scratch, PART, c, pair(0.0))


@jit.helper
def work_on(scratch, asked, log_probs, with_gradient):
    """The entropy of the row whose logits are in the first line of the scratch; its gradient into the last two."""
    softmax = _softmax(scratch, asked.chain)
    mean = _mean_distance(scratch, softmax) if softmax.defined else pair(np.nan)
    _write_log_probs(scratch, asked, softmax, log_probs)
    if with_gradient:
        _write_gradient(scratch, asked, softmax, mean)
    return rounded(add(softmax.log_total, mean))


@jit.kernel
def log_prob_rows(rows, gradient, given, results, with_gradient, first, last):
    """Log-probabilities and entropy of rows first ... last, and their gradient."""
    scratch = np.empty((LINES, rows.classes))
    high, low = scratch[PART], scratch[PART_LOW]
    for row in range(first, last):
        results.entropy[row] = 0.0
        if given.counts[row]:
            load_strided(rows, row_offset(rows, row), rows.class_stride, scratch[X])
            asked = Asked(given.classes[row], given.upstream[row], given.of_entropy[row], given.chain)
            results.entropy[row] = work_on(scratch, asked, results.log_probs[row], with_gradient)
        else:
            clear(scratch, results.log_probs[row])
        if not with_gradient:
            continue
        for c in range(high.size if gradient.format != 0 else 0):
            high[c] = to_odd((high[c], low[c]))
        save_strided(high, gradient, row_offset(gradient, row), gradient.class_stride)
