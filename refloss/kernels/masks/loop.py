"""Masks against target masks: dice loss alone, or with the focal loss of resampled masks.

A thread works on one mask at a time. Dice's gradient needs sums over the whole mask, so what it multiplies is kept from
the first pass over the pixels for the second. The scalars are those of losses/dice.py and losses/parts/mask_focal.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.masks.refine import accurate_element, is_finished, sum_roundings, whole
from refloss.kernels.resample.loop import (
    Axis,
    between_lines,
    narrowed_line,
    resampled_line,
    scaled_total,
    spread_line,
    widen_plane,
)
from refloss.kernels.rows import AnyRows, copy, load, save
from refloss.numerics.pairs import multiply, rounded
from refloss.numerics.settled import Precision, is_settled, settled
from refloss.numerics.sums import LIMBS, add_exactly, grid_total, limbs_pair, unit_sum


@dataclass(frozen=True)
class DiceLoop(jit.Description):
    """A mask's scalars.

    probability(x, t) is p and what is missed, pairs; terms(Σ p, Σ t, Σ missed) are D and the loss, pairs; factors(D,
    loss, cotangent) are what slopes(x, t, *factors) asks for: the gradient of an element with what it may be off by,
    and that of its target. accurate(x, t) is p, 1 − p and what is missed, pairs that are good to some 2^-98;
    accurate_slopes(x, t, D, Σ missed, cotangent) are the gradients as pairs.
    """

    probability: Callable[..., Any]
    terms: Callable[..., Any]
    factors: Callable[..., Any]
    slopes: Callable[..., Any]
    accurate: Callable[..., Any]
    accurate_slopes: Callable[..., Any]


@dataclass(frozen=True)
class MaskLoop(jit.Description):
    """The scalars of focal and dice loss together.

    pixel(x, t) is the focal loss, its derivative, p·(1 − p), what is missed and p; dice(Σ p, Σ t, Σ missed, cotangent,
    special) is the mask's dice loss, and constant and factor of its derivative p·(1 − p)·(factor·t + constant);
    slope(derivative, p·(1 − p), t, cotangent, constant, factor, roundings) is the derivative of both losses, and what
    it may be off by in units of 2^-53. Good to some 2^-98, from a logit that is a pair: share(x, t) is p and what is
    missed, pairs; accurate_slope(x, t, D, Σ missed, *cotangents) is the derivative of both, a pair, and the magnitudes
    of the terms of either.
    """

    pixel: Callable[..., Any]
    dice: Callable[..., Any]
    slope: Callable[..., Any]
    share: Callable[..., Any]
    accurate_slope: Callable[..., Any]


class Targets(NamedTuple):
    """Targets [P, H, W] for a kernel that is compiled once for both kinds, of which one is empty."""

    whole: np.ndarray  # uint8
    fractions: np.ndarray  # float64


class Masks(NamedTuple):
    """Masks of height × width, P pairs of one with a target [P, H, W] of a larger size."""

    rows: np.ndarray  # [P] planes
    targets: Any  # [P, H, W] uint8 or float64; on the CPU Targets
    target_totals: np.ndarray  # [P, 2] sums of the targets, pairs
    vertical: Axis
    horizontal: Axis
    scale: tuple[float, float]  # the axes' inverse
    height: int
    width: int
    of_focal: tuple[float, float]  # cotangent of the sum of a mask's focal losses, a pair
    of_dice: tuple[float, float]  # cotangent of a mask's dice loss, a pair
    roundings: float  # of what a pixel hands back, until it is a gradient, but for those of sums over the mask
    spread: float  # a bound of 1 + log(H·W)
    precision: Precision  # of the gradient's format


class Scratch(NamedTuple):
    """One thread's buffers."""

    line: np.ndarray  # [w]
    bounds: np.ndarray  # [w]
    source: np.ndarray  # [w]
    wide: np.ndarray  # [2, h, W] a plane, resampled along its lines, then its gradient and bounds
    again: np.ndarray  # [2, h, W] the former for what is computed again
    slopes: np.ndarray  # [H, W] derivative of the focal loss
    flatness: np.ndarray  # [H, W] p·(1 − p)
    row: np.ndarray  # [W], as those that follow
    target: np.ndarray
    losses: np.ndarray
    missed: np.ndarray
    probability: np.ndarray
    high: np.ndarray
    low: np.ndarray


def new_scratch(height: int, width: int, shape: tuple[int, int]) -> Scratch:
    """Buffers for planes of height × width that become as large as shape."""
    # Spread over a page of 512, of which processors take the same places for one.
    rows = np.empty((7, -(-shape[1] // 512) * 512 + 88))[:, : shape[1]]
    line, bounds, source = np.empty((3, width + 24))[:, :width]
    wide, again = np.empty((2, 2, height, shape[1]))
    return Scratch(line, bounds, source, wide, again, np.empty(shape), np.empty(shape), *rows)


@jit.helper
def _target_line(targets, p, y, line):
    """Line y of target p as float64."""
    if targets.whole.size > 0:
        copy(targets.whole[p, y], line)
    else:
        copy(targets.fractions[p, y], line)


@jit.helper
def _target_plane(masks, p):
    """Target p as float64."""
    height, width = masks.vertical.first.size, masks.horizontal.first.size
    plane = np.empty(height * width)
    for y in range(height):
        _target_line(masks.targets, p, y, plane[y * width : (y + 1) * width])
    return plane


@jit.once
def _gradient_of_pair(loop: MaskLoop) -> Any:
    """The function that writes a plane's gradient on the CPU, once its sums are known."""
    slope_of, share_of, element_of = loop.slope, loop.share, accurate_element(loop)

    @functools.partial(jit.helper, name=loop.name)
    def combine(slopes, flatness, targets, of_focal, constant, factor, roundings, row, bounds):
        for i in range(row.size):
            row[i], bounds[i] = slope_of(slopes[i], flatness[i], targets[i], of_focal, constant, factor, roundings)

    @functools.partial(jit.helper, name=loop.name)
    def spread(masks, p, constant, factor, roundings, scratch):
        """What the pixels hand back to lines of the plane, and bounds of what that is off by."""
        values, bounds = scratch.wide[0], scratch.wide[1]
        values[:] = 0.0
        bounds[:] = 0.0
        # Where a mask is not finite, its gradient is what it is.
        factors = masks.of_focal[0], constant, factor, roundings if abs(constant) < np.inf else np.inf
        for y in range(masks.vertical.first.size):
            _target_line(masks.targets, p, y, scratch.target)
            combine(scratch.slopes[y], scratch.flatness[y], scratch.target, *factors, scratch.row, scratch.missed)
            spread_line(scratch.row, masks.vertical, y, values)
            spread_line(scratch.missed, masks.vertical, y, bounds)

    @functools.partial(jit.helper, name=loop.name)
    def fill_shares(high, low, targets, scale, p, p_low, missed, missed_low):
        for x in range(p.size):
            logit = multiply((high[x], low[x]), scale)
            (p[x], p_low[x]), (missed[x], missed_low[x]) = share_of(logit, targets[x])

    @functools.partial(jit.helper, name=loop.name)
    def add_up(wide, masks, p, targets, scratch):
        """D and what is missed, from probabilities that are good to pairs."""
        sums, logits, vertical = np.zeros((2, LIMBS), np.int64), (scratch.high, scratch.low), masks.vertical
        parts = scratch.row, scratch.losses, scratch.missed, scratch.probability
        width = scratch.row.size
        for y in range(vertical.first.size):
            i, j = vertical.first[y], vertical.second[y]
            lines = wide[0, i], wide[1, i], wide[0, j], wide[1, j]
            between_lines(*lines, vertical.near[y], vertical.far[y], *logits)
            fill_shares(*logits, targets[y * width : (y + 1) * width], masks.scale, *parts)
            for k, part in enumerate(parts):
                add_exactly(part, sums[k // 2])
        bottom, missed = whole(limbs_pair(sums[0]), masks.target_totals[p]), limbs_pair(sums[1])
        return bottom[0], bottom[1], missed[0], missed[1]

    @functools.partial(jit.helper, name=loop.name)
    def settle(masks, p, targets, sums, roundings, i, line, bounds, known, scratch):
        """Elements of line i that float64 leaves open; known are sums that are good to pairs, if any has asked."""
        wide = scratch.again
        for j in range(line.size):
            if is_finished(line[j], bounds[j], masks):
                continue
            value, done = element_of(wide[0], wide[1], targets, masks, sums, roundings, i, j)
            if not done:
                known = add_up(wide, masks, p, targets, scratch) if known[0] == 0.0 else known
                value, _ = element_of(wide[0], wide[1], targets, masks, known, 0.0, i, j)
            line[j] = value
        return known

    @functools.partial(jit.helper, name=loop.name)
    def narrow(planes, gradient, masks, p, sums, roundings, scratch):
        line, bounds, first = scratch.line, scratch.bounds, masks.rows[p] * masks.height
        known, targets = (0.0, 0.0, 0.0, 0.0), np.empty(0)
        for i in range(masks.height):
            narrowed_line(scratch.wide[0, i], masks.horizontal, line)
            narrowed_line(scratch.wide[1, i], masks.horizontal, bounds)
            all_settled = True
            for j in range(line.size):
                line[j] = scaled_total(line[j], masks.scale)
                all_settled &= is_finished(line[j], bounds[j], masks)
            if not all_settled:
                if targets.size == 0:
                    widen_plane(planes, masks.rows[p], masks.horizontal, scratch.source, scratch.again)
                    targets = _target_plane(masks, p)
                known = settle(masks, p, targets, sums, roundings, i, line, bounds, known, scratch)
            save(line, gradient, (first + i) * line.size)

    @functools.partial(jit.helper, name=loop.name)
    def write_gradient(planes, gradient, masks, p, constant, factor, sums, scratch):
        """The gradient of the plane of pair p, from D and what is missed."""
        roundings = sum_roundings(sums[0], masks)
        spread(masks, p, constant, factor, masks.roundings + roundings, scratch)
        narrow(planes, gradient, masks, p, sums, roundings, scratch)

    return write_gradient


@jit.once
def mask_pairs(loop: MaskLoop) -> Any:
    """The loop over pairs of a mask and a target on the CPU."""
    pixel, dice_of, write_gradient = loop.pixel, loop.dice, _gradient_of_pair(loop)

    @functools.partial(jit.helper, name=loop.name)
    def fill_pixels(x, targets, losses, slopes, flatness, missed, probability):
        for i in range(x.size):
            losses[i], slopes[i], flatness[i], missed[i], probability[i] = pixel(x[i], targets[i])

    def pairs(planes, gradient, masks, scratch, focal, dice, limbs, with_gradient, first, last):
        """Masks rows[p], resampled, against targets[p]: focal losses into limbs, dice losses, and a gradient."""
        row, losses, missed, probability = scratch.row, scratch.losses, scratch.missed, scratch.probability
        sums = np.empty(LIMBS, np.int64)
        for p in range(first, last):
            sums[:] = 0
            widen_plane(planes, masks.rows[p], masks.horizontal, scratch.line, scratch.wide)
            special, coarse, fine = 0.0, 0, 0
            for y in range(masks.vertical.first.size):
                resampled_line(scratch.wide, masks.vertical, y, masks.scale, row)
                _target_line(masks.targets, p, y, scratch.target)
                fill_pixels(row, scratch.target, losses, scratch.slopes[y], scratch.flatness[y], missed, probability)
                special += add_exactly(losses, limbs[p])
                special += add_exactly(missed, sums)
                more_coarse, more_fine = unit_sum(probability)
                coarse += more_coarse
                fine += more_fine
            total = grid_total(coarse, fine, masks.vertical.first.size * row.size)
            target_total = masks.target_totals[p, 0], masks.target_totals[p, 1]
            lost = limbs_pair(sums)
            dice[p], constant, factor = dice_of(total, target_total, lost, masks.of_dice, special)
            focal[p] = special
            if with_gradient:
                bottom = whole(total, target_total)
                known = bottom[0], bottom[1], lost[0], lost[1]
                write_gradient(planes, gradient, masks, p, constant, factor, known, scratch)

    return jit.kernel(pairs, loop.name)


class DiceGradient(NamedTuple):
    """Gradients of dice losses, of inputs or of targets, or what stands for one that is not wanted."""

    rows: AnyRows
    precision: Precision
    wanted: bool


class Row(NamedTuple):
    """A mask's elements, and a value for each: one thread's buffers."""

    x: np.ndarray
    t: np.ndarray
    p: np.ndarray  # then the gradient of the elements
    p_low: np.ndarray
    missed: np.ndarray  # then the gradient of the targets
    missed_low: np.ndarray


def new_row(count: int) -> Row:
    """Buffers for count elements."""
    # At distances other than a page's, which processors take for the same place.
    return Row(*np.empty((len(Row._fields), count + 24))[:, :count])


@jit.once
def dice_masks(loop: DiceLoop) -> Any:
    """The loop over masks on the CPU."""
    probability_of, terms_of, factors_of, slopes_of = loop.probability, loop.terms, loop.factors, loop.slopes
    accurate_of, accurate_slopes_of = loop.accurate, loop.accurate_slopes

    @functools.partial(jit.helper, name=loop.name)
    def fill_probabilities(x, t, p, p_low, missed, missed_low):
        for i in range(x.size):
            (p[i], p_low[i]), (missed[i], missed_low[i]) = probability_of(x[i], t[i])

    @functools.partial(jit.helper, name=loop.name)
    def fill_accurately(x, t, p, p_low, missed, missed_low):
        for i in range(x.size):
            (p[i], p_low[i]), _, (missed[i], missed_low[i]) = accurate_of(x[i], t[i])

    @functools.partial(jit.helper, name=loop.name)
    def fill_slopes(x, t, factors, first, second, slopes, target_slopes):
        all_settled = True
        for i in range(x.size):
            slope, error, target_slope, target_error = slopes_of(x[i], t[i], *factors)
            slopes[i], target_slopes[i] = slope, target_slope
            all_settled &= is_settled(slope, error, first) & is_settled(target_slope, target_error, second)
        return all_settled

    @functools.partial(jit.helper, name=loop.name)
    def settle(x, t, factors, sums, cotangent, first, second, slopes, target_slopes):
        bottom, _ = terms_of(limbs_pair(sums[0]), limbs_pair(sums[2]), limbs_pair(sums[1]))
        missed = limbs_pair(sums[1])
        for i in range(x.size):
            slope, error, target_slope, target_error = slopes_of(x[i], t[i], *factors)
            of_element = is_settled(slope, error, first)
            of_target = is_settled(target_slope, target_error, second)
            slopes[i], target_slopes[i] = slope, target_slope
            if not (of_element and of_target):
                pairs = accurate_slopes_of(x[i], t[i], bottom, missed, cotangent)
                slopes[i] = slope if of_element else settled(pairs[0], first)
                target_slopes[i] = target_slope if of_target else settled(pairs[1], second)

    @functools.partial(jit.helper, name=loop.name)
    def add_up(row, sums):
        """The sums of p, of what is missed and of the targets; what is not finite."""
        sums[:] = 0
        special = add_exactly(row.p, sums[0])
        special += add_exactly(row.missed, sums[1])
        add_exactly(row.p_low, sums[0])
        add_exactly(row.missed_low, sums[1])
        copy(row.t, row.p)
        return special + add_exactly(row.p, sums[2])

    def masks(inputs, targets, cotangents, gradient, target_gradient, losses, row, first, last):
        """Masks first ... last: their dice losses, and the gradients that are wanted."""
        sums, count = np.empty((3, LIMBS), np.int64), row.x.size
        for n in range(first, last):
            load(inputs, n * count, row.x)
            load(targets, n * count, row.t)
            fill_probabilities(row.x, row.t, row.p, row.p_low, row.missed, row.missed_low)
            special = add_up(row, sums)
            bottom, loss = terms_of(limbs_pair(sums[0]), limbs_pair(sums[2]), limbs_pair(sums[1]))
            losses[n] = rounded(loss) + special
            if not (gradient.wanted or target_gradient.wanted):
                continue
            given = cotangents[n if cotangents.shape[0] > 1 else 0]
            cotangent = given[0] + special, given[1]
            factors = factors_of(bottom, loss, cotangent)
            precisions, results = (gradient.precision, target_gradient.precision), (row.p, row.missed)
            if not fill_slopes(row.x, row.t, factors, *precisions, *results):
                fill_accurately(row.x, row.t, row.p, row.p_low, row.missed, row.missed_low)
                add_up(row, sums)
                settle(row.x, row.t, factors, sums, cotangent, *precisions, *results)
            if gradient.wanted:
                save(row.p, gradient.rows, n * count)
            if target_gradient.wanted:
                save(row.missed, target_gradient.rows, n * count)

    return jit.kernel(masks, loop.name)
