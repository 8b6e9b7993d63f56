"""Cross-entropy, row by row: the loss, its parts and the gradient. The derivation is in losses/cross_entropy.py.

Every row's loss is Σ_j q_j·(lse − x_j) with q_j = w_j·(keep·t_j + uniform); t is one-hot for labels. Its gradient is
c·(Q·p_j − q_j) with Q = Σ q_j and c the row's cotangent over the normaliser.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.refine import is_close, refine
from refloss.kernels.rows import gather, row, scatter
from refloss.kernels.softmax import (
    difference,
    find,
    highest_excluding,
    split_softmax,
    store_difference,
    store_scaled,
)
from refloss.numerics.formats import store, widen
from refloss.numerics.pairs import add, divide, multiply, negate, pair, rounded
from refloss.numerics.sums import row_sum

Pair = tuple[float, float]


class Terms(NamedTuple):
    """What is the same for every row."""

    weight: np.ndarray  # [C] float64
    weight_total: Pair
    keep: Pair  # 1 − label_smoothing
    uniform: Pair  # label_smoothing / C
    smooth: bool
    weighted: bool
    cotangent: np.ndarray  # [R] or [1] float64
    normaliser: Pair
    ignore_index: int


class Output(NamedTuple):
    """What each row yields, float64 [R]."""

    loss: np.ndarray
    nll: np.ndarray
    lse: np.ndarray


class Scratch(NamedTuple):
    """One thread's buffers: a tile for each array whose rows are strided, and float64 rows."""

    logits: np.ndarray
    gradient: np.ndarray
    target: np.ndarray
    target_gradient: np.ndarray
    exponentials: np.ndarray
    products: np.ndarray
    mass: np.ndarray


@jit.helper
def coefficient_of(terms, index):
    """A row's cotangent over the normaliser, a pair."""
    cotangent = terms.cotangent[index if terms.cotangent.size > 1 else 0]
    return divide(pair(cotangent), terms.normaliser)


@jit.helper
def _distance_sum(x, maximum, weight, products):
    """Σ weight_j·(maximum − x_j), a pair."""
    for i in range(x.size):
        products[i] = weight[i] * (maximum - widen(x[i]))
    return row_sum(products)


@jit.helper
def label_loss(split, label, terms, distances):
    """The loss of a row that is defined; distances are Σ w_j·(maximum − x_j), a pair, for smoothing."""
    loss = multiply(pair(terms.weight[label]), split.nll)
    if terms.smooth:
        spread = add(multiply(terms.weight_total, split.log_total), distances)
        loss = add(multiply(terms.keep, loss), multiply(terms.uniform, spread))
    return rounded(loss)


@jit.helper
def label_factors(split, label, terms, coefficient):
    """Without smoothing: what multiplies the exponentials, a pair, and the gradient at the label."""
    weight = pair(terms.weight[label])
    own = -rounded(multiply(coefficient, multiply(weight, split.rest)))
    return multiply(coefficient, multiply(weight, split.term)), own


@jit.helper
def smoothed_masses(split, label, terms):
    """With smoothing: Q, q of the label, and Q·p − q at the label; pairs."""
    weight = pair(terms.weight[label])
    total = add(multiply(terms.keep, weight), multiply(terms.uniform, terms.weight_total))
    own = add(multiply(terms.keep, weight), multiply(terms.uniform, weight))
    return total, own, add(multiply(total, split.share), negate(own))


@jit.helper
def _label_gradient(split, label, x, terms, coefficient, exponentials, gradient):
    if not terms.smooth:
        factor, value = label_factors(split, label, terms, coefficient)
        store_scaled(exponentials, factor, gradient)
        store(gradient, label, value)
        return
    total, own, mine = smoothed_masses(split, label, terms)
    factor = multiply(coefficient, multiply(total, split.term))
    close = store_difference(exponentials, factor, terms.weight, multiply(coefficient, terms.uniform), gradient)
    store(gradient, label, rounded(multiply(coefficient, mine)))
    if close > 0 or is_close(mine[0], own[0]):
        mass, mass_low = np.empty(x.size), np.empty(x.size)
        for i in range(x.size):
            mass[i], mass_low[i] = multiply(terms.uniform, pair(terms.weight[i]))
        mass[label], mass_low[label] = own
        refine(x, split, total, coefficient, mass, mass_low, gradient)


@jit.helper
def _fill(gradient, value):
    for i in range(gradient.size):
        store(gradient, i, value)


@jit.kernel
def label_rows(logits, gradient, labels, terms, output, scratch, first, last, tile, with_gradient):
    """Rows first ... last with class labels."""
    for start in range(first, last, tile):
        count = min(tile, last - start)
        gather(logits, start, count, scratch.logits)
        for k in range(count):
            index = start + k
            x = row(logits, index, scratch.logits, k)
            label = labels[index]
            ignored = label == terms.ignore_index
            split = split_softmax(x, -1 if ignored else label, scratch.exponentials)
            output.lse[index] = rounded(add(pair(split.maximum), split.log_total))
            output.nll[index] = 0.0 if ignored else rounded(split.nll)
            distances = pair(0.0)
            if terms.smooth and split.defined and not ignored:
                distances = _distance_sum(x, split.maximum, terms.weight, scratch.products)
            loss = label_loss(split, label, terms, distances) if split.defined and not ignored else np.nan
            output.loss[index] = 0.0 if ignored else loss
            if not with_gradient:
                continue
            g = row(gradient, index, scratch.gradient, k)
            if ignored:
                _fill(g, 0.0)
            elif not split.defined:
                _fill(g, np.nan)
            else:
                _label_gradient(split, label, x, terms, coefficient_of(terms, index), scratch.exponentials, g)
        if with_gradient:
            scatter(scratch.gradient, gradient, start, count)


@jit.scalar
def target_mass(target, weight, terms):
    """q_j = w_j·(keep·t_j + uniform), a pair."""
    return multiply(add(multiply(terms.keep, pair(target)), terms.uniform), pair(weight))


@jit.helper
def _likelihood(split, total, x, weight, products):
    """Σ_j weight_j·(lse − x_j) for weights that sum to a total, a pair."""
    return add(multiply(total, split.log_total), _distance_sum(x, split.maximum, weight, products))


@jit.helper
def _probability_gradient(split, x, target, total, terms, coefficient, exponentials, gradient):
    factor = multiply(coefficient, multiply(total, split.term))
    close = 0
    for i in range(target.size):
        taken = multiply(coefficient, target_mass(widen(target[i]), terms.weight[i], terms))
        value = difference(exponentials[i], factor, taken)
        close += 1 if is_close(value, taken[0]) else 0
        store(gradient, i, value)
    for i in range(target.size):
        # The class that was split off, and any that is its equal: the order of classes must not show.
        if widen(x[i]) == split.maximum:
            own = target_mass(widen(target[i]), terms.weight[i], terms)
            mine = add(multiply(total, split.share), negate(own))
            close += 1 if is_close(mine[0], own[0]) else 0
            store(gradient, i, rounded(multiply(coefficient, mine)))
    if close > 0:
        mass, mass_low = np.empty(x.size), np.empty(x.size)
        for i in range(x.size):
            mass[i], mass_low[i] = target_mass(widen(target[i]), terms.weight[i], terms)
        refine(x, split, total, coefficient, mass, mass_low, gradient)


@jit.scalar
def target_slope(factor, weight, log_total, below):
    """∂/∂t_j = c·keep·w_j·(lse − x_j), from how far x_j is below the maximum."""
    return factor * weight * (log_total + below)


@jit.helper
def _target_gradient(split, x, terms, coefficient, gradient):
    factor = rounded(multiply(coefficient, terms.keep))
    log_total = rounded(split.log_total)
    for i in range(x.size):
        store(gradient, i, target_slope(factor, terms.weight[i], log_total, split.maximum - widen(x[i])))


@jit.helper
def _probability_loss(split, x, target, terms, scratch):
    """The row's loss, its likelihood without weights or smoothing, and Q = Σ q_j as a pair."""
    mass = scratch.mass
    for i in range(target.size):
        mass[i] = widen(target[i])
    total = row_sum(mass)
    likelihood = _likelihood(split, total, x, mass, scratch.products)
    if not (terms.weighted or terms.smooth):
        return rounded(likelihood), rounded(likelihood), total
    for i in range(target.size):
        mass[i] = widen(target[i]) * terms.weight[i]
    total = add(multiply(terms.keep, row_sum(mass)), multiply(terms.uniform, terms.weight_total))
    for i in range(target.size):
        mass[i] = rounded(target_mass(widen(target[i]), terms.weight[i], terms))
    return rounded(_likelihood(split, total, x, mass, scratch.products)), rounded(likelihood), total


@jit.kernel
def probability_rows(
    logits, gradient, targets, target_gradient, terms, output, scratch, first, last, tile, with_gradient
):
    """Rows first ... last with class probabilities."""
    for start in range(first, last, tile):
        count = min(tile, last - start)
        gather(logits, start, count, scratch.logits)
        gather(targets, start, count, scratch.target)
        for k in range(count):
            index = start + k
            x = row(logits, index, scratch.logits, k)
            target = row(targets, index, scratch.target, k)
            top = find(x, highest_excluding(x, -1)[0])
            split = split_softmax(x, top, scratch.exponentials)
            loss, likelihood, total = np.nan, np.nan, pair(np.nan)
            if split.defined:
                loss, likelihood, total = _probability_loss(split, x, target, terms, scratch)
            output.lse[index] = rounded(add(pair(split.maximum), split.log_total))
            output.nll[index] = likelihood
            output.loss[index] = loss
            if not with_gradient:
                continue
            g = row(gradient, index, scratch.gradient, k)
            target_g = row(target_gradient, index, scratch.target_gradient, k)
            coefficient = coefficient_of(terms, index)
            if split.defined:
                _probability_gradient(split, x, target, total, terms, coefficient, scratch.exponentials, g)
                _target_gradient(split, x, terms, coefficient, target_g)
            else:
                _fill(g, np.nan)
                _fill(target_g, np.nan)
        if with_gradient:
            scatter(scratch.gradient, gradient, start, count)
            scatter(scratch.target_gradient, target_gradient, start, count)
