"""Cross-entropy of rows whose logits go through a chain, with a z-loss: one loop for any target, all of it in pairs.

Formulas are in row; masses and their names are those of kernels.softmax.loop.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.logits.chain import Chain, chain_numbers
from refloss.kernels.logits.row import (
    Masses,
    Pair,
    difference_of_class,
    distance_sum,
    distance_term,
    gradient_of_difference,
    label_masses,
    lse_of,
    mass_of_label,
    nll_of,
    push_of,
    softmax_of,
    weights_but_top,
    z_loss_of,
)
from refloss.kernels.rows import load_tile, save_tile
from refloss.kernels.softmax.loop import coefficient_of, target_mass
from refloss.kernels.softmax.refine import DEEP, NOTHING, all_differences, kept
from refloss.numerics.pairs import add, divide, multiply, pair, rounded, scaled
from refloss.numerics.sums import long_sum

# What a row is to yield beside its loss.
LOSS, GRADIENT, LOG_PROBABILITIES = 0, 1, 2
# Rows of float64 that a row is worked out in.
LINES = 10


class ChainTerms(NamedTuple):
    """What is the same for every row, beside softmax.loop.Terms, which have the cotangent of the cross-entropy."""

    chain: Chain
    z_loss: Pair  # ζ, over the power of two that the weights are over
    z_cotangent: np.ndarray  # [R] or [1] float64


class Output(NamedTuple):
    """What each row yields, float64 [R]."""

    loss: np.ndarray
    cross_entropy: np.ndarray
    z_loss: np.ndarray
    nll: np.ndarray
    lse: np.ndarray


class Lines(NamedTuple):
    """What is known of each class of a row; pairs."""

    high: np.ndarray  # logits after the chain
    low: np.ndarray
    slope: np.ndarray  # their derivatives
    slope_low: np.ndarray
    term: np.ndarray  # exponentials relative to the largest
    term_low: np.ndarray
    mass: np.ndarray
    mass_low: np.ndarray
    products: np.ndarray
    products_low: np.ndarray


class Scratch(NamedTuple):
    """One thread's buffers: a tile of float64 rows for each array, and lines."""

    logits: np.ndarray
    gradient: np.ndarray
    target: np.ndarray
    target_gradient: np.ndarray
    lines: np.ndarray  # [LINES, C]


@jit.helper
def lines_of(memory):
    """Lines in the rows of a matrix."""
    return Lines(
        memory[0],
        memory[1],
        memory[2],
        memory[3],
        memory[4],
        memory[5],
        memory[6],
        memory[7],
        memory[8],
        memory[9],
    )


@jit.helper
def masses_of_label(softmax, label, lines, terms):
    """What is to be known of a label's masses, which are left in lines."""
    distances, others = pair(0.0), pair(0.0)
    if terms.smooth:
        weight, maximum = terms.weight, softmax.maximum
        distances = distance_sum(lines.high, lines.low, weight, maximum, lines.products, lines.products_low)
        others = weights_but_top(softmax, terms, lines.products)
    for j in range(lines.mass.size):
        lines.mass[j], lines.mass_low[j] = mass_of_label(j, label, terms)
    return label_masses(softmax, label, (lines.high[label], lines.low[label]), distances, others, terms)


@jit.helper
def _mass_sum(lines):
    return add(long_sum(lines.mass), long_sum(lines.mass_low))


@jit.helper
def _likelihood(softmax, total, lines):
    """Σ mass_j·(lse − y_j) of masses that sum to a total."""
    for i in range(lines.mass.size):
        product = distance_term((lines.mass[i], lines.mass_low[i]), (lines.high[i], lines.low[i]), softmax.maximum)
        lines.products[i], lines.products_low[i] = product
    distances = add(long_sum(lines.products), long_sum(lines.products_low))
    return add(multiply(total, softmax.log_total), distances)


@jit.helper
def masses_of_probabilities(softmax, target, lines, terms):
    """The same of a distribution over the classes."""
    for i in range(target.size):
        lines.mass[i], lines.mass_low[i] = target[i], 0.0
    plain = pair(0.0)
    if terms.weighted or terms.smooth:
        plain = _likelihood(softmax, _mass_sum(lines), lines)
        for i in range(target.size):
            lines.mass[i], lines.mass_low[i] = target_mass(target[i], terms.weight[i], terms)
    own = (lines.mass[softmax.top], lines.mass_low[softmax.top])
    lines.mass[softmax.top], lines.mass_low[softmax.top] = 0.0, 0.0
    others = _mass_sum(lines)
    lines.mass[softmax.top], lines.mass_low[softmax.top] = own
    total = add(others, own)
    likelihood = _likelihood(softmax, total, lines)
    return Masses(total, others, likelihood, plain if terms.weighted or terms.smooth else likelihood)


@jit.helper
def yield_undefined(output, index, softmax, ignored, z_loss):
    """What a row yields that does not count, or that has no softmax."""
    lse = rounded(lse_of(softmax))
    nothing = 0.0 if ignored else np.nan
    output.lse[index] = lse
    output.nll[index], output.loss[index], output.cross_entropy[index] = nothing, nothing, nothing
    output.z_loss[index] = 0.0 if ignored or z_loss[0] == 0.0 else z_loss[0] * (lse * lse)


@jit.helper
def yield_row(output, index, softmax, masses, z_loss):
    """What any other row yields."""
    beside = z_loss_of(softmax, z_loss)
    output.lse[index] = rounded(lse_of(softmax))
    output.nll[index] = rounded(masses.nll)
    output.cross_entropy[index] = rounded(masses.likelihood)
    output.z_loss[index] = rounded(beside)
    output.loss[index] = rounded(add(masses.likelihood, beside))


@jit.helper
def push_of_row(softmax, index, terms, chained):
    """The factors of a row's gradient."""
    if chained.z_loss[0] == 0.0:
        return push_of(softmax, coefficient_of(terms, index), pair(0.0))
    cotangent = chained.z_cotangent[index if chained.z_cotangent.size > 1 else 0]
    of_z = multiply(divide(pair(cotangent), terms.normaliser), chained.z_loss)
    return push_of(softmax, coefficient_of(terms, index), of_z)


@jit.scalar
def is_deep(difference, size):
    """Whether too little is left of a difference of pairs."""
    return abs(difference[0]) < DEEP * size


@jit.scalar
def summed_difference(left, largest):
    """D_j from the sum of the differences and the largest of their products."""
    nothing = abs(left[0]) <= NOTHING * largest
    return 0.0 if nothing else left[0], 0.0 if nothing else left[1]


@jit.helper
def _gradients(softmax, masses, push, lines, gradient, wide):
    """The gradients of all classes; of how many too little is left."""
    deep = 0
    for j in range(gradient.size):
        term, mass = (lines.term[j], lines.term_low[j]), (lines.mass[j], lines.mass_low[j])
        difference, size = difference_of_class(softmax, masses, j == softmax.top, term, mass)
        deep += 1 if is_deep(difference, size) else 0
        slope = (lines.slope[j], lines.slope_low[j])
        gradient[j] = kept(gradient_of_difference(softmax, push, difference, term, slope), wide)
    return deep


@jit.helper
def _deep_gradients(softmax, masses, push, lines, gradient, wide):
    """Those of which too little is left, from differences that keep their digits; classes alike have one of them."""
    done = np.zeros(gradient.size, np.bool_)
    for j in range(gradient.size):
        term, mass = (lines.term[j], lines.term_low[j]), (lines.mass[j], lines.mass_low[j])
        difference, size = difference_of_class(softmax, masses, j == softmax.top, term, mass)
        if done[j] or not is_deep(difference, size):
            continue
        left, largest = all_differences(
            j, lines.term, lines.term_low, lines.mass, lines.mass_low, lines.products, lines.products_low
        )
        difference = summed_difference(left, largest)
        slope = (lines.slope[j], lines.slope_low[j])
        value = kept(gradient_of_difference(softmax, push, difference, term, slope), wide)
        for i in range(j, gradient.size):
            alike = lines.high[i] == lines.high[j] and lines.low[i] == lines.low[j]
            if alike and lines.mass[i] == mass[0] and lines.mass_low[i] == mass[1]:
                done[i] = True
                gradient[i] = value


@jit.helper
def target_gradients(softmax, lines, terms, index, gradient, wide):
    """∂L/∂t_j = a·(1 − ε)·w_j·(lse − y_j)."""
    factor = scaled(coefficient_of(terms, index), terms.keep)
    for j in range(gradient.size):
        nll = nll_of(softmax, (lines.high[j], lines.low[j]))
        gradient[j] = kept(scaled(scaled(factor, pair(terms.weight[j])), nll), wide)


@jit.helper
def _log_probabilities(softmax, lines, result):
    for j in range(result.size):
        result[j] = 0.0 - rounded(nll_of(softmax, (lines.high[j], lines.low[j])))


@jit.helper
def _masses(softmax, label, target, lines, terms):
    """Those of a label, or of probabilities where there is none."""
    if label >= 0:
        return masses_of_label(softmax, label, lines, terms)
    return masses_of_probabilities(softmax, target, lines, terms)


@jit.helper
def _slopes(softmax, masses, push, lines, gradient, wide):
    if _gradients(softmax, masses, push, lines, gradient, wide) > 0:
        _deep_gradients(softmax, masses, push, lines, gradient, wide)


@jit.kernel
def chained_rows(arrays, labels, terms, chained, output, scratch, first, last, tile, has_labels, wanted):
    """Rows first ... last: their losses, and gradients or log-probabilities where they are wanted."""
    logits, gradient, targets, target_gradient = arrays
    lines, size = lines_of(scratch.lines), logits.classes
    wide, wide_target = gradient.format == 0, target_gradient.format == 0
    for start in range(first, last, tile):
        count = min(tile, last - start)
        load_tile(logits, start, count, scratch.logits)
        if not has_labels:
            load_tile(targets, start, count, scratch.target)
        for k in range(count):
            index = start + k
            label = labels[index] if has_labels else -1
            ignored = has_labels and label == terms.ignore_index
            g, target_g = scratch.gradient[k][:size], scratch.target_gradient[k][:size]
            chain_numbers(scratch.logits[k][:size], chained.chain, lines.high, lines.low, lines.slope, lines.slope_low)
            softmax = softmax_of(lines.high, lines.low, lines.term, lines.term_low)
            if ignored or not softmax.defined:
                yield_undefined(output, index, softmax, ignored, chained.z_loss)
                g[:] = 0.0 if ignored else np.nan
                target_g[:] = np.nan
            elif wanted == LOG_PROBABILITIES:
                _log_probabilities(softmax, lines, g)
            else:
                masses = _masses(softmax, label, scratch.target[k][:size], lines, terms)
                yield_row(output, index, softmax, masses, chained.z_loss)
                if wanted == GRADIENT:
                    _slopes(softmax, masses, push_of_row(softmax, index, terms, chained), lines, g, wide)
                if wanted == GRADIENT and not has_labels:
                    target_gradients(softmax, lines, terms, index, target_g, wide_target)
        if wanted != LOSS:
            save_tile(scratch.gradient, gradient, start, count)
        if wanted == GRADIENT and not has_labels:
            save_tile(scratch.target_gradient, target_gradient, start, count)
