"""Cross-entropy of rows of logits that are pairs, and their gradient as pairs; formulas are in kernels.logits.row.

A row is first seen as a whole, and what is to be known of it is kept. With that, the gradient of any of its elements
comes from the element alone, with the same bits, when the logits of some classes are computed again.
"""

from __future__ import annotations

import numpy as np

from refloss import jit
from refloss.kernels.logits.chain import chain_pairs
from refloss.kernels.logits.chain import chained as through_chain
from refloss.kernels.logits.loop import (
    LINES,
    lines_of,
    masses_of_label,
    masses_of_probabilities,
    push_of_row,
    target_gradients,
    yield_row,
    yield_undefined,
)
from refloss.kernels.logits.row import (
    Row,
    gradient_of_class,
    gradient_of_term,
    load_row,
    mass_of_label,
    save_row,
    softmax_of,
)
from refloss.kernels.rows import load_strided, row_offset, save_strided
from refloss.kernels.softmax.loop import target_mass

# What a row of statistics begins with, if its gradient is 0 or undefined.
NOTHING, UNDEFINED = 2.0, 3.0
# Rows of float64 that a row is worked out in: those of kernels.logits, its target, and the gradient of that.
ALL_LINES = LINES + 2


@jit.helper
def fill(row, row_low, value):
    """One number for all classes of a row of pairs."""
    for j in range(row.size):
        row[j], row_low[j] = value, 0.0


@jit.helper
def _gradients(row, lines, high, low):
    for j in range(high.size):
        term, mass = (lines.term[j], lines.term_low[j]), (lines.mass[j], lines.mass_low[j])
        high[j], low[j] = gradient_of_term(row, j, term, mass, (lines.slope[j], lines.slope_low[j]))


@jit.kernel
def whole_rows(high, low, start, targets, labels, terms, chained, output, statistics, memory, first, last, wanted):
    """Losses of rows first ... last, which are rows start + first ... of the targets; gradients in place of logits.

    wanted: any gradient, and that of targets.
    """
    target, target_gradient = targets
    lines = lines_of(memory)
    probabilities, of_target = memory[LINES], memory[LINES + 1]
    has_labels = labels.size > 0
    any_gradient, gradient_of_target = wanted
    for i in range(first, last):
        index = start + i
        label = labels[index] if has_labels else -1
        ignored = has_labels and label == terms.ignore_index
        chain_pairs(high[i], low[i], chained.chain, lines.high, lines.low, lines.slope, lines.slope_low)
        softmax = softmax_of(lines.high, lines.low, lines.term, lines.term_low)
        if ignored or not softmax.defined:
            yield_undefined(output, index, softmax, ignored, chained.z_loss)
            statistics[index, 0] = NOTHING if ignored else UNDEFINED
            fill(high[i], low[i], 0.0 if ignored else np.nan)
            if not has_labels:
                fill(of_target, probabilities, np.nan)
        else:
            if has_labels:
                masses = masses_of_label(softmax, label, lines, terms)
            else:
                load_strided(target, row_offset(target, index), target.class_stride, probabilities)
                masses = masses_of_probabilities(softmax, probabilities, lines, terms)
            yield_row(output, index, softmax, masses, chained.z_loss)
            row = Row(softmax, masses, push_of_row(softmax, index, terms, chained))
            save_row(statistics[index], row)
            if any_gradient:
                _gradients(row, lines, high[i], low[i])
                if gradient_of_target:
                    target_gradients(softmax, lines, terms, index, of_target, target_gradient.format == 0)
        if gradient_of_target:
            save_strided(of_target, target_gradient, row_offset(target_gradient, index), target_gradient.class_stride)


@jit.kernel
def some_classes(high, low, class_, target, labels, terms, chained, statistics, step, start, first, last):
    """Gradients of classes class_, class_ + 1, ... in place of their logits.

    Of lines first ... last; line i is of the row start + i·step.
    """
    size = high.shape[1]
    probabilities = np.empty(size)
    has_labels = labels.size > 0
    for i in range(first, last):
        index = start + i * step
        if statistics[index, 0] > 1.0:
            fill(high[i], low[i], 0.0 if statistics[index, 0] == NOTHING else np.nan)
            continue
        row = load_row(statistics[index])
        label = labels[index] if has_labels else -1
        if not has_labels:
            offset = row_offset(target, index) + class_ * target.class_stride
            load_strided(target, offset, target.class_stride, probabilities)
        for j in range(size):
            z, slope = through_chain((high[i, j], low[i, j]), chained.chain)
            if has_labels:
                mass = mass_of_label(class_ + j, label, terms)
            else:
                mass = target_mass(probabilities[j], terms.weight[class_ + j], terms)
            high[i, j], low[i, j] = gradient_of_class(row, class_ + j, z, mass, slope)
