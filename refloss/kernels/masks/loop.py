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
from refloss.kernels.rows import load, save
from refloss.numerics.pairs import rounded
from refloss.numerics.sums import LIMBS, add_exactly, grid_total, limbs_pair, unit_sum


@dataclass(frozen=True)
class DiceLoop(jit.Description):
    """A mask's scalars.

    probability(x, t) is p and what is missed; terms(Σ p, Σ t, Σ missed) are D and the loss, pairs; slopes(x, t, loss,
    D, cotangent) are the gradients of an element and of its target.
    """

    probability: Callable[..., Any]
    terms: Callable[..., Any]
    slopes: Callable[..., Any]


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


@jit.once
def dice_masks(loop: DiceLoop) -> Any:
    """The loop over masks on the CPU."""
    probability_of, terms_of, slopes_of = loop.probability, loop.terms, loop.slopes

    @functools.partial(jit.helper, name=loop.name)
    def fill_probabilities(x, t, p, missed):
        for i in range(x.size):
            p[i], missed[i] = probability_of(x[i], t[i])

    def masks(inputs, targets, count, cotangents, gradient, target_gradient, wanted, losses, first, last):
        """Masks first ... last of count elements each: their dice losses, and the gradients that are wanted."""
        x, t, p, missed = np.empty(count), np.empty(count), np.empty(count), np.empty(count)
        sums = np.empty((3, LIMBS), np.int64)
        for n in range(first, last):
            sums[:] = 0
            load(inputs, n * count, x)
            load(targets, n * count, t)
            fill_probabilities(x, t, p, missed)
            special = add_exactly(p, sums[0])
            special += add_exactly(missed, sums[1])
            missed[:] = t
            special += add_exactly(missed, sums[2])
            bottom, loss = terms_of(limbs_pair(sums[0]), limbs_pair(sums[2]), limbs_pair(sums[1]))
            losses[n] = rounded(loss) + special
            cotangent = cotangents[n if cotangents.size > 1 else 0] + special
            if not (wanted[0] or wanted[1]):
                continue
            for i in range(count):
                p[i], missed[i] = slopes_of(x[i], t[i], loss, bottom, cotangent)
            if wanted[0]:
                save(p, gradient, n * count)
            if wanted[1]:
                save(missed, target_gradient, n * count)

    return jit.kernel(masks, loop.name)
