"""Losses of a row's softmax, row by row: the loss, its parts and the gradient, from a description of a split row.

The target of a row puts masses q_j = w_j·((1 − ε)·t_j + ε/C) on its classes, with Q = Σ q_j; t is one-hot for a label.
c is the row's cotangent over the normaliser.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import gather, load_tile, row, save_tile, scatter
from refloss.kernels.softmax.refine import is_close, is_near, kept, new_lines, refine, wants_pairs
from refloss.kernels.softmax.split import (
    difference,
    extent_excluding,
    find,
    slope_of_split,
    split_softmax,
    store_difference,
    store_scaled,
)
from refloss.numerics.formats import store, store_pair
from refloss.numerics.pairs import add, divide, multiply, negate, pair, rounded, scaled, two_sum
from refloss.numerics.sums import row_sum

Pair = tuple[float, float]
# Weights whose sum is so much smaller than one more weight have a relative error of 2^-104/2^-40 as a difference.
LOST = 2.0**-40
# What a loop without parameters is handed: compiled code has no use for an empty tuple.
NO_PARAMETERS = (0.0,)


@dataclass(frozen=True)
class SoftmaxLoop(jit.Description):
    """A loss's scalars, which rows, columns and both forms on a GPU make loops of. All numbers are pairs.

    Loss and factors are proportional to the masses: weights far from 1 come without a common power of two.

    label(split, mass, parameters): of a row whose label has all the mass, its loss and two factors of its gradient,
    which is c·pushed·p_j for the other classes and −c·pulled for the label.

    soft(split, mass, likelihood, parameters): of a row with the mass Q spread over its classes and the likelihood
    Σ q_j·(lse − x_j), its loss and the factor of its gradient c·(pushed·p_j − q_j). None for a loss of hard labels. The
    gradient of a target is that of cross-entropy: what a loss adds may depend on Q, but a target's gradient lacks it.
    """

    label: Callable[..., Any]
    soft: Callable[..., Any] | None = None


class Task(NamedTuple):
    """A softmax loss as its file states it.

    target holds labels [R], or class probabilities in the shape of logits; divisor is what a "sum" is divided by.
    """

    loop: SoftmaxLoop
    parameters: tuple[float, ...]
    logits: np.ndarray
    target: np.ndarray
    class_axis: int
    weight: np.ndarray | None
    label_smoothing: float
    ignore_index: int
    reduction: str
    divisor: float
    cotangent: np.ndarray
    gradient: np.ndarray | None
    target_gradient: np.ndarray | None

    @property
    def has_labels(self) -> bool:
        """Whether the target are labels, not probabilities."""
        return self.target.dtype.kind == "i"


class Answer(NamedTuple):
    """The reduced loss, and rows in the order of the labels."""

    loss: np.float64 | np.ndarray
    nll: np.ndarray
    lse: np.ndarray


class Terms(NamedTuple):
    """What is the same for every row."""

    parameters: tuple[float, ...]
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
    """One thread's buffers of hard labels: a tile for each array whose rows are strided, and a float64 row."""

    logits: np.ndarray
    gradient: np.ndarray
    exponentials: np.ndarray


class SoftScratch(NamedTuple):
    """One thread's buffers of soft targets: a tile of float64 rows for each array, and more such rows.

    All rows are float64, whatever the arrays hold, so that what comes of them is compiled once.
    """

    logits: np.ndarray
    gradient: np.ndarray
    target: np.ndarray
    target_gradient: np.ndarray
    exponentials: np.ndarray
    products: np.ndarray
    mass: np.ndarray
    mass_low: np.ndarray


@jit.helper
def coefficient_of(terms, index):
    """A row's cotangent over the normaliser, a pair."""
    cotangent = terms.cotangent[index if terms.cotangent.size > 1 else 0]
    return divide(pair(cotangent), terms.normaliser)


@jit.helper
def _distance_sum(x, maximum, weight, products):
    """Σ weight_j·(maximum − x_j), a pair."""
    for i in range(x.size):
        products[i] = weight[i] * (maximum - x[i])
    return row_sum(products)


@jit.helper
def smoothed_likelihood(split, label, terms, distances):
    """Σ q_j·(lse − x_j) of a smoothed label; distances are Σ w_j·(maximum − x_j), a pair."""
    of_label = multiply(pair(terms.weight[label]), split.nll)
    spread = add(multiply(terms.weight_total, split.log_total), distances)
    return add(multiply(terms.keep, of_label), multiply(terms.uniform, spread))


@jit.helper
def smoothed_masses(label, terms):
    """Q and the label's q with smoothing; pairs."""
    weight = pair(terms.weight[label])
    total = add(multiply(terms.keep, weight), multiply(terms.uniform, terms.weight_total))
    return total, add(multiply(terms.keep, weight), multiply(terms.uniform, weight))


@jit.scalar
def target_mass(target, weight, terms):
    """q_j = w_j·((1 − ε)·t_j + ε/C), a pair."""
    return multiply(add(multiply(terms.keep, pair(target)), terms.uniform), pair(weight))


@jit.scalar
def target_slope(factor, weight, split, logit):
    """∂/∂t_j = factor·w_j·(lse − x_j), a pair; the factor is c·(1 − ε)."""
    return scaled(scaled(factor, pair(weight)), add(two_sum(split.maximum, -logit), split.log_total))


@jit.helper
def others_of_label(label, terms):
    """The masses of all classes but the label with smoothing, a pair, and whether they are lost beside its own."""
    weight = terms.weight[label]
    others = add(terms.weight_total, pair(-weight))
    return multiply(terms.uniform, others), abs(others[0]) < LOST * abs(weight)


@jit.helper
def _fill(gradient, value):
    for i in range(gradient.size):
        store(gradient, i, value)


@jit.once
def label_rows(loop: SoftmaxLoop) -> Any:
    """The kernel for rows with class labels, without smoothing."""
    describe = loop.label

    def rows(logits, gradient, labels, terms, output, scratch, first, last, tile, headroom, with_gradient):
        """Rows first ... last."""
        for start in range(first, last, tile):
            count = min(tile, last - start)
            gather(logits, start, count, scratch.logits)
            for k in range(count):
                index = start + k
                label = labels[index]
                ignored = label == terms.ignore_index
                x = row(logits, index, scratch.logits, k)
                g = row(gradient, index, scratch.gradient, k)
                coming = row(logits, min(index + 1, last - 1), scratch.logits, min(k + 1, count - 1))
                chosen = -1 if ignored else label
                split, extent = split_softmax(x, chosen, headroom, scratch.exponentials, coming, g)
                output.lse[index] = rounded(add(pair(split.maximum), split.log_total))
                output.nll[index] = 0.0 if ignored else rounded(split.nll)
                loss, pushed, pulled = pair(0.0 if ignored else np.nan), pair(0.0), pair(0.0)
                if split.defined and not ignored:
                    loss, pushed, pulled = describe(split, pair(terms.weight[label]), terms.parameters)
                output.loss[index] = rounded(loss)
                if not with_gradient:
                    continue
                if ignored or not split.defined:
                    _fill(g, 0.0 if ignored else np.nan)
                else:
                    coefficient = coefficient_of(terms, index)
                    factor = scaled(coefficient, scaled(pushed, split.term))
                    store_scaled(scratch.exponentials, extent, factor, g)
                    store_pair(g, label, negate(scaled(coefficient, pulled)))
            if with_gradient:
                scatter(scratch.gradient, gradient, start, count)

    return jit.kernel(rows, loop.name)


@jit.helper
def _smoothed_gradient(split, label, x, pushed, terms, coefficient, exponentials, gradient, wide):
    total, label_mass = smoothed_masses(label, terms)
    others, lost = others_of_label(label, terms)
    excess = add(pushed, negate(total))
    factor = multiply(pushed, split.term)
    close, near = store_difference(exponentials, factor, terms.weight, terms.uniform, coefficient, gradient, wide)
    slope, beside = slope_of_split(split, pushed, label_mass, others, excess)
    gradient[label] = kept(scaled(coefficient, slope), wide)
    close += 1 if lost or is_close(slope[0], beside) else 0
    near += 1 if is_near(slope[0], beside) else 0
    if wants_pairs(close, near, x.size, split.total):
        lines = new_lines(2, x.size)
        mass, mass_low = lines[0], lines[1]
        for i in range(x.size):
            mass[i], mass_low[i] = multiply(terms.uniform, pair(terms.weight[i]))
        mass[label], mass_low[label] = label_mass
        refine(x, split, excess, coefficient, mass, mass_low, gradient, wide)


@jit.once
def smoothed_rows(loop: SoftmaxLoop) -> Any:
    """The kernel for rows with class labels and label smoothing."""
    describe = soft_scalar(loop)

    def rows(logits, gradient, labels, terms, output, scratch, first, last, tile, headroom, with_gradient):
        """Rows first ... last."""
        for start in range(first, last, tile):
            count = min(tile, last - start)
            load_tile(logits, start, count, scratch.logits)
            for k in range(count):
                index = start + k
                label = labels[index]
                ignored = label == terms.ignore_index
                x, g = scratch.logits[k][: logits.classes], scratch.gradient[k][: logits.classes]
                split, _ = split_softmax(x, -1 if ignored else label, headroom, scratch.exponentials, x, g)
                output.lse[index] = rounded(add(pair(split.maximum), split.log_total))
                output.nll[index] = 0.0 if ignored else rounded(split.nll)
                loss, pushed = pair(0.0 if ignored else np.nan), pair(0.0)
                if split.defined and not ignored:
                    distances = _distance_sum(x, split.maximum, terms.weight, scratch.products)
                    mass, _ = smoothed_masses(label, terms)
                    likelihood = smoothed_likelihood(split, label, terms, distances)
                    loss, pushed = describe(split, mass, likelihood, terms.parameters)
                output.loss[index] = rounded(loss)
                if not with_gradient:
                    continue
                if ignored or not split.defined:
                    g[:] = 0.0 if ignored else np.nan
                else:
                    coefficient = coefficient_of(terms, index)
                    _smoothed_gradient(
                        split, label, x, pushed, terms, coefficient, scratch.exponentials, g, gradient.format == 0
                    )
            if with_gradient:
                save_tile(scratch.gradient, gradient, start, count)

    return jit.kernel(rows, loop.name)


def soft_scalar(loop: SoftmaxLoop) -> Callable[..., Any]:
    """A loop's scalar for soft targets, which one of hard labels lacks."""
    if loop.soft is None:
        raise TypeError(f"the softmax loss {loop.name!r} is one of hard labels: it has no scalar for a soft target")
    return loop.soft


@jit.helper
def _likelihood(split, total, x, weight, products):
    """Σ_j weight_j·(lse − x_j) for weights that sum to a total, a pair."""
    return add(multiply(total, split.log_total), _distance_sum(x, split.maximum, weight, products))


@jit.helper
def _masses_of_probabilities(split, top, x, target, terms, scratch):
    """The masses of all classes but a sure one, Q, Σ q_j·(lse − x_j), and that without weights and smoothing; pairs."""
    mass, mass_low = scratch.mass, scratch.mass_low
    for i in range(target.size):
        mass[i], mass_low[i] = target[i], 0.0
    plain = pair(0.0)
    if terms.weighted or terms.smooth:
        plain = _likelihood(split, row_sum(mass), x, mass, scratch.products)
        for i in range(target.size):
            mass[i], mass_low[i] = target_mass(target[i], terms.weight[i], terms)
    own = pair(0.0)
    if split.share[0] > 0.5:
        own = (mass[top], mass_low[top])
        mass[top] = 0.0
    others = row_sum(mass)
    total = add(others, own)
    if split.share[0] > 0.5:
        mass[top] = own[0]
    likelihood = _likelihood(split, total, x, mass, scratch.products)
    return others, total, likelihood, plain if terms.weighted or terms.smooth else likelihood


@jit.helper
def _differences(x, maximum, exponentials, factor, mass, mass_low, coefficient, gradient, wide):
    """The gradients of all classes but the largest: how many of them are close to 0, and near it."""
    close, near = 0, 0
    for i in range(x.size):
        slope = difference(exponentials[i], factor, (mass[i], mass_low[i]))
        below = x[i] < maximum
        close += 1 if below and is_close(slope[0], mass[i]) else 0
        near += 1 if below and is_near(slope[0], mass[i]) else 0
        gradient[i] = kept(scaled(coefficient, slope), wide)
    return close, near


@jit.helper
def _probability_gradient(split, x, others, total, pushed, coefficient, scratch, gradient, wide):
    mass, mass_low = scratch.mass, scratch.mass_low
    excess, factor = add(pushed, negate(total)), multiply(pushed, split.term)
    exponentials = scratch.exponentials
    close, near = _differences(x, split.maximum, exponentials, factor, mass, mass_low, coefficient, gradient, wide)
    for i in range(x.size):
        # The class that was split off, and any that is its equal: the order of classes must not show.
        if x[i] == split.maximum:
            slope, beside = slope_of_split(split, pushed, (mass[i], mass_low[i]), others, excess)
            close += 1 if is_close(slope[0], beside) else 0
            near += 1 if is_near(slope[0], beside) else 0
            gradient[i] = kept(scaled(coefficient, slope), wide)
    if wants_pairs(close, near, x.size, split.total):
        refine(x, split, excess, coefficient, mass, mass_low, gradient, wide)


@jit.helper
def _target_gradient(split, x, terms, coefficient, gradient, wide):
    factor = scaled(coefficient, terms.keep)
    for i in range(x.size):
        gradient[i] = kept(target_slope(factor, terms.weight[i], split, x[i]), wide)


@jit.once
def probability_rows(loop: SoftmaxLoop) -> Any:
    """The kernel for rows with class probabilities."""
    describe = soft_scalar(loop)

    @functools.partial(jit.helper, name=loop.name)
    def of_row(split, top, x, target, terms, scratch):
        others, mass, likelihood, plain = _masses_of_probabilities(split, top, x, target, terms, scratch)
        loss, pushed = describe(split, mass, likelihood, terms.parameters)
        return rounded(loss), rounded(plain), others, mass, pushed

    def rows(arrays, terms, output, scratch, first, last, tile, headroom, with_gradient):
        """Rows first ... last."""
        logits, gradient, targets, target_gradient = arrays
        for start in range(first, last, tile):
            count = min(tile, last - start)
            load_tile(logits, start, count, scratch.logits)
            load_tile(targets, start, count, scratch.target)
            for k in range(count):
                index = start + k
                x, g = scratch.logits[k][: logits.classes], scratch.gradient[k][: logits.classes]
                target = scratch.target[k][: logits.classes]
                target_g = scratch.target_gradient[k][: logits.classes]
                top = find(x, extent_excluding(x, -1, headroom).reference)
                split, _ = split_softmax(x, top, headroom, scratch.exponentials, x, g)
                loss, nll, others, mass, pushed = np.nan, np.nan, pair(0.0), pair(0.0), pair(0.0)
                if split.defined:
                    loss, nll, others, mass, pushed = of_row(split, top, x, target, terms, scratch)
                output.lse[index] = rounded(add(pair(split.maximum), split.log_total))
                output.nll[index] = nll
                output.loss[index] = loss
                if not with_gradient:
                    continue
                coefficient = coefficient_of(terms, index)
                if split.defined:
                    _probability_gradient(split, x, others, mass, pushed, coefficient, scratch, g, gradient.format == 0)
                    _target_gradient(split, x, terms, coefficient, target_g, target_gradient.format == 0)
                else:
                    g[:] = np.nan
                    target_g[:] = np.nan
            if with_gradient:
                save_tile(scratch.gradient, gradient, start, count)
                save_tile(scratch.target_gradient, target_gradient, start, count)

    return jit.kernel(rows, loop.name)
