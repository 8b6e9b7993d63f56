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
from refloss.kernels.resample.loop import Axis, narrow_plane, resampled_line, spread_line, widen_plane
from refloss.kernels.rows import AnyRows, load, save
from refloss.numerics.pairs import rounded
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
    slope(derivative, p·(1 − p), t, cotangent, constant, factor) is the derivative of both losses.
    """

    pixel: Callable[..., Any]
    dice: Callable[..., Any]
    slope: Callable[..., Any]


class Masks(NamedTuple):
    """Masks of height × width, P pairs of one with a target [P, H, W] of a larger size."""

    rows: np.ndarray  # [P] planes
    targets: np.ndarray  # [P, H, W] uint8 or float64
    target_totals: np.ndarray  # [P] sums of the targets
    vertical: Axis
    horizontal: Axis
    scale: tuple[float, float]  # the axes' inverse
    height: int
    width: int
    of_focal: float  # cotangent of the sum of a mask's focal losses
    of_dice: float  # cotangent of a mask's dice loss


class Scratch(NamedTuple):
    """One thread's buffers."""

    line: np.ndarray  # [w]
    wide: np.ndarray  # [2, h, W]
    pixels: np.ndarray  # [4, W]
    slopes: np.ndarray  # [H, W] derivative of the focal loss
    flatness: np.ndarray  # [H, W] p·(1 − p)


@jit.once
def mask_pairs(loop: MaskLoop) -> Any:
    """The loop over pairs of a mask and a target on the CPU."""
    pixel, dice_of, slope_of = loop.pixel, loop.dice, loop.slope

    @functools.partial(jit.helper, name=loop.name)
    def fill_pixels(x, targets, losses, slopes, flatness, missed, probability):
        for i in range(x.size):
            losses[i], slopes[i], flatness[i], missed[i], probability[i] = pixel(x[i], np.float64(targets[i]))

    @functools.partial(jit.helper, name=loop.name)
    def combine(slopes, flatness, targets, of_focal, constant, factor, row):
        for i in range(row.size):
            row[i] = slope_of(slopes[i], flatness[i], np.float64(targets[i]), of_focal, constant, factor)

    def pairs(planes, gradient, masks, scratch, focal, dice, limbs, with_gradient, first, last):
        """Masks rows[p], resampled, against targets[p]: focal losses into limbs, dice losses, and a gradient."""
        row, losses, missed, probability = scratch.pixels[0], scratch.pixels[1], scratch.pixels[2], scratch.pixels[3]
        sums = np.empty(LIMBS, np.int64)
        for p in range(first, last):
            sums[:] = 0
            widen_plane(planes, masks.rows[p], masks.horizontal, scratch.line, scratch.wide)
            special, coarse, fine = 0.0, 0, 0
            for y in range(masks.targets.shape[1]):
                resampled_line(scratch.wide, masks.vertical, y, masks.scale, row)
                target = masks.targets[p, y]
                fill_pixels(row, target, losses, scratch.slopes[y], scratch.flatness[y], missed, probability)
                special += add_exactly(losses, limbs[p])
                special += add_exactly(missed, sums)
                more_coarse, more_fine = unit_sum(probability)
                coarse += more_coarse
                fine += more_fine
            total = grid_total(coarse, fine, masks.targets[p].size)
            of_mask = dice_of(total, masks.target_totals[p], limbs_pair(sums), masks.of_dice, special)
            dice[p], constant, factor = of_mask
            focal[p] = special
            if not with_gradient:
                continue
            wide = scratch.wide[0]
            wide[:] = 0.0
            for y in range(masks.targets.shape[1]):
                target = masks.targets[p, y]
                combine(scratch.slopes[y], scratch.flatness[y], target, masks.of_focal, constant, factor, row)
                spread_line(row, masks.vertical, y, wide)
            narrow_plane(wide, masks.horizontal, masks.scale, scratch.line, gradient, masks.rows[p])

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
        row.p[:] = row.t
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
