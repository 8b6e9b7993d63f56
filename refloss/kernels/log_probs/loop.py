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
from refloss.kernels.logits.chain import Chain, chain_numbers
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
from refloss.numerics.pairs import add, divide, multiply, negate, pair, rounded, scaled, to_odd

# Where the others have little, terms of D are 2^_RAISED times as large, so that those of float64's least probabilities
# have all their digits.
_RAISED = 200
_LITTLE = 2.0**-800
# Lines of the scratch: logits, those behind the chain and its derivative, e^(y − m), and terms of D, or the gradient.
LINES = 9
X, PART, PART_LOW = 0, 7, 8


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


class Lines(NamedTuple):
    """Of one row, [V] each; pairs are two lines."""

    x: np.ndarray
    y: np.ndarray
    y_low: np.ndarray
    slope: np.ndarray
    slope_low: np.ndarray
    term: np.ndarray
    term_low: np.ndarray
    part: np.ndarray
    part_low: np.ndarray


@jit.scalar
def _lines(scratch):
    return Lines(
        scratch[0],
        scratch[1],
        scratch[2],
        scratch[3],
        scratch[4],
        scratch[5],
        scratch[6],
        scratch[7],
        scratch[8],
    )


@jit.scalar
def _distance(y, y_low, softmax):
    """m − y of a class, a pair; +inf where it is masked."""
    return add(softmax.maximum, (-y, -y_low))


@jit.helper
def _plain_parts(y, y_low, term, term_low, part, part_low, softmax):
    """e·(m − y), 0 for what has no probability."""
    for c in range(y.size):
        value = multiply((term[c], term_low[c]), _distance(y[c], y_low[c], softmax))
        there = term[c] > 0.0
        part[c], part_low[c] = value[0] if there else 0.0, value[1] if there else 0.0


@jit.helper
def _raised_parts(y, y_low, part, part_low, softmax):
    """The same times 2^_RAISED."""
    for c in range(y.size):
        term, n = significand_of((y[c], y_low[c]), softmax.maximum)
        raised = scale(term[0], n + _RAISED), scale(term[1], n + _RAISED)
        value = multiply(raised, _distance(y[c], y_low[c], softmax))
        there = raised[0] > 0.0
        part[c], part_low[c] = value[0] if there else 0.0, value[1] if there else 0.0


@jit.helper
def _mean_distance(lines, softmax):
    """D, a pair."""
    raised = _RAISED if softmax.others[0] < _LITTLE else 0
    if raised:
        _raised_parts(lines.y, lines.y_low, lines.part, lines.part_low, softmax)
    else:
        _plain_parts(lines.y, lines.y_low, lines.term, lines.term_low, lines.part, lines.part_low, softmax)
    high, low = divide(total_of(lines.part, lines.part_low), softmax.total)
    return scale(high, -raised), scale(low, -raised)


@jit.helper
def _write_log_probs(lines, asked, softmax, log_probs):
    """Those of the classes that a row names."""
    for k in range(log_probs.size):
        label = asked.classes[k]
        # 0 has no sign, as minus the surprise of a class that is alone would have.
        value = 0.0 - rounded(nll_of(softmax, (lines.y[label], lines.y_low[label])))
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
def _push_all(lines, pushed, of_entropy, softmax, mean):
    """Gradients of classes that are not named: −e·(Σ c + h·(log p + H))/Z times the derivative of the logit."""
    for c in range(lines.y.size):
        beyond = add(mean, negate(_distance(lines.y[c], lines.y_low[c], softmax)))
        of_row = add(pushed, multiply(pair(of_entropy), beyond))
        term = lines.term[c], lines.term_low[c]
        there = term[0] > 0.0
        of_row = of_row[0] if there else pushed[0], of_row[1] if there else pushed[1]
        value = divide(multiply(term, (-of_row[0], -of_row[1])), softmax.total)
        lines.part[c], lines.part_low[c] = scaled(value, (lines.slope[c], lines.slope_low[c]))


@jit.helper
def _of_named(lines, c, at_top, own, masses, of_entropy, softmax, mean):
    """That of a class with the cotangents `own`: −(Σc·e − own·Z) − h·e·(log p + H), over Z, times the derivative."""
    term = lines.term[c], lines.term_low[c]
    difference, _ = difference_of_class(softmax, masses, at_top, term, own)
    excess = pair(0.0)
    if term[0] > 0.0:
        excess = multiply(pair(-of_entropy), add(mean, negate(_distance(lines.y[c], lines.y_low[c], softmax))))
    slope = lines.slope[c], lines.slope_low[c]
    return gradient_of_difference(softmax, Push(pair(-1.0), excess), difference, term, slope)


@jit.helper
def write_gradient(lines, first, asked, softmax, mean):
    """The gradient of a row that counts, into the last lines, which are of classes first, first + 1, ..."""
    if not softmax.defined:
        for c in range(lines.part.size):
            lines.part[c], lines.part_low[c] = np.nan, 0.0
        return
    of_top, others = _upstream(asked, softmax.top)
    pushed = add(of_top, others)
    masses = Masses(pushed, others, pair(0.0), pair(0.0))
    _push_all(lines, pushed, asked.of_entropy, softmax, mean)
    for k in range(asked.classes.size):
        label = asked.classes[k]
        c = label - first
        if c < 0 or c >= lines.part.size:
            continue
        own, _ = _upstream(asked, label)
        value = _of_named(lines, c, label == softmax.top, own, masses, asked.of_entropy, softmax, mean)
        lines.part[c], lines.part_low[c] = value


@jit.helper
def row_of(lines, asked, log_probs):
    """What is to be known of a row of logits behind the chain, and D; its log-probabilities are written."""
    softmax = softmax_of(lines.y, lines.y_low, lines.term, lines.term_low)
    mean = _mean_distance(lines, softmax) if softmax.defined else pair(np.nan)
    _write_log_probs(lines, asked, softmax, log_probs)
    return softmax, mean


@jit.scalar
def entropy_of(softmax, mean):
    """H, rounded."""
    return rounded(add(softmax.log_total, mean))


@jit.helper
def clear(scratch, log_probs):
    """A row that does not count."""
    for k in range(log_probs.size):
        log_probs[k] = 0.0
    for c in range(scratch.shape[1]):
        scratch[PART, c] = 0.0
        scratch[PART_LOW, c] = 0.0


@jit.helper
def work_on(scratch, asked, log_probs, with_gradient):
    """The entropy of the row whose logits are in the first line of the scratch; its gradient into the last two."""
    lines = _lines(scratch)
    chain_numbers(lines.x, asked.chain, lines.y, lines.y_low, lines.slope, lines.slope_low)
    softmax, mean = row_of(lines, asked, log_probs)
    if with_gradient:
        write_gradient(lines, 0, asked, softmax, mean)
    return entropy_of(softmax, mean)


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
