"""Log-probabilities and entropies of rows of logits that are pairs; formulas are in kernels.log_probs.loop.

As in loop: a row is first seen as a whole. With what is kept of it, its softmax and D, the gradient of any of its
elements comes from the element alone, with the same bits.
"""

from __future__ import annotations

import numpy as np

from refloss import jit
from refloss.kernels.linear.loop import NOTHING, UNDEFINED, fill
from refloss.kernels.log_probs.loop import Asked, Lines, entropy_of, row_of, write_gradient
from refloss.kernels.logits.chain import chain_pairs
from refloss.kernels.logits.row import (
    SOFTMAX_WIDTH,
    get_pair,
    load_softmax,
    put_pair,
    save_softmax,
    term_of,
)

# float64 numbers that are kept of a row.
KEPT = SOFTMAX_WIDTH + 2
# Rows of float64 that a row is worked out in, beside the two of its logits.
OTHER_LINES = 6


@jit.helper
def _lines(high, low, memory):
    """Logits give way to the terms of D, and those to the gradient."""
    return Lines(high, memory[0], memory[1], memory[2], memory[3], memory[4], memory[5], high, low)


@jit.helper
def _asked(given, row):
    return Asked(given.classes[row], given.upstream[row], given.of_entropy[row], given.chain)


@jit.helper
def _clear(log_probs):
    for k in range(log_probs.size):
        log_probs[k] = 0.0


@jit.kernel
def log_probs_of_rows(high, low, start, given, results, kept, memory, first, last, wanted):
    """Of rows first ... last, which are rows start + first ... of what is given; gradients in place of logits."""
    for i in range(first, last):
        row = start + i
        if not given.counts[row]:
            results.entropy[row] = 0.0
            _clear(results.log_probs[row])
            kept[row, 0] = NOTHING
            fill(high[i], low[i], 0.0)
            continue
        lines, asked = _lines(high[i], low[i], memory), _asked(given, row)
        chain_pairs(high[i], low[i], given.chain, lines.y, lines.y_low, lines.slope, lines.slope_low)
        softmax, mean = row_of(lines, asked, results.log_probs[row])
        results.entropy[row] = entropy_of(softmax, mean)
        save_softmax(kept[row], softmax)
        put_pair(kept[row], SOFTMAX_WIDTH, mean)
        kept[row, 0] = 1.0 if softmax.defined else UNDEFINED
        if wanted:
            write_gradient(lines, 0, asked, softmax, mean)


@jit.kernel
def gradients_of_classes(high, low, class_, given, kept, first, last):
    """Gradients of classes class_, class_ + 1, ... in place of their logits, of rows first ... last."""
    memory = np.empty((OTHER_LINES, high.shape[1]))
    for i in range(first, last):
        if kept[i, 0] > 1.0:
            fill(high[i], low[i], 0.0 if kept[i, 0] == NOTHING else np.nan)
            continue
        lines = _lines(high[i], low[i], memory)
        chain_pairs(high[i], low[i], given.chain, lines.y, lines.y_low, lines.slope, lines.slope_low)
        softmax, mean = load_softmax(kept[i]), get_pair(kept[i], SOFTMAX_WIDTH)
        for j in range(lines.y.size):
            lines.term[j], lines.term_low[j] = term_of((lines.y[j], lines.y_low[j]), softmax.maximum)
        write_gradient(lines, class_, _asked(given, i), softmax, mean)
