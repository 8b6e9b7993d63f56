"""Masks against target masks: dice and focal loss, with the gradient of both. See losses/dice.py, losses/mask_focal.py.

A thread works on one mask at a time. Dice's gradient needs sums over the whole mask, so what it multiplies is kept from
the first pass over the pixels for the second.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.resample import Axis, narrow_plane, resampled_line, spread_line, widen_plane
from refloss.kernels.rows import load, save
from refloss.numerics.bits import fma
from refloss.numerics.exponential import logistic
from refloss.numerics.pairs import add, divide, multiply, negate, pair, rounded
from refloss.numerics.sums import LIMBS, add_exactly, grid_total, limbs_pair, unit_sum

ALPHA = 0.25


class Task(NamedTuple):
    """Masks of height × width, P pairs of one with a target [P, H, W] of a larger size."""

    rows: np.ndarray  # [P] planes
    targets: np.ndarray  # [P, H, W] uint8 or float64
    target_totals: np.ndarray  # [P] sums of the targets
    vertical: Axis
    horizontal: Axis
    height: int
    width: int
    of_focal: float  # cotangent of the sum of a mask's focal losses
    of_dice: float  # cotangent of a mask's dice loss


class Scratch(NamedTuple):
    """One thread's buffers."""

    line: np.ndarray  # [w]
    wide: np.ndarray  # [h, W]
    pixels: np.ndarray  # [4, W]
    slopes: np.ndarray  # [H, W] derivative of the focal loss
    flatness: np.ndarray  # [H, W] p·(1 − p)


@jit.scalar
def dice_terms(total, target_total, missed):
    """D and S_m/D as pairs; see losses/dice.py."""
    bottom = add(add(total, target_total), pair(1.0))
    return bottom, divide(missed, bottom)


@jit.scalar
def pixel(x, t):
    """Focal loss with γ = 2, its derivative, p·(1 − p), the missed probability, p."""
    u, inverse, small = logistic(x)
    above = x > 0.0
    near = 1.0 - t if above else t
    far = 1.0 - near
    loss = fma(near, abs(x), small[0] + small[1])
    missed = fma(u[0], far, near) * inverse
    flatness = u[0] * inverse * inverse
    scale = fma(2.0 * ALPHA - 1.0, t, 1.0 - ALPHA) * missed
    slope = scale * fma(missed * inverse, fma(u[0], far, -near), 2.0 * loss * (far - near) * flatness)
    return scale * missed * loss, -slope if above else slope, flatness, missed, inverse if above else u[0] * inverse


@jit.helper
def _pixels(x, targets, losses, slopes, flatness, missed, probability):
    for i in range(x.size):
        losses[i], slopes[i], flatness[i], missed[i], probability[i] = pixel(x[i], np.float64(targets[i]))


@jit.scalar
def pixel_slope(slope, flatness, t, of_focal, constant, factor):
    """The derivative of both losses."""
    return fma(of_focal, slope, flatness * fma(factor, t, constant))


@jit.helper
def _combine(slopes, flatness, targets, of_focal, constant, factor, row):
    for i in range(row.size):
        row[i] = pixel_slope(slopes[i], flatness[i], np.float64(targets[i]), of_focal, constant, factor)


@jit.helper
def mask_dice(total, target_total, missed, of_dice, special):
    """A mask's dice loss, and constant and factor of its derivative: p·(1 − p)·(factor·t + constant)."""
    bottom, loss = dice_terms(total, pair(target_total), missed)
    constant = rounded(divide(multiply(pair(of_dice), add(pair(1.0), negate(loss))), bottom)) + special
    return rounded(loss) + special, constant, rounded(divide(pair(-2.0 * of_dice), bottom))


@jit.kernel
def mask_pairs(planes, gradient, task, scratch, focal, dice, limbs, with_gradient, first, last):
    """Masks rows[p], resampled, against targets[p]: focal losses into limbs, dice losses, and the planes' gradient."""
    row, losses, missed, probability = scratch.pixels[0], scratch.pixels[1], scratch.pixels[2], scratch.pixels[3]
    sums = np.empty(LIMBS, np.int64)
    for p in range(first, last):
        sums[:] = 0
        widen_plane(planes, task.rows[p], task.horizontal, scratch.line, scratch.wide)
        special, coarse, fine = 0.0, 0, 0
        for y in range(task.targets.shape[1]):
            resampled_line(scratch.wide, task.vertical, y, row)
            _pixels(row, task.targets[p, y], losses, scratch.slopes[y], scratch.flatness[y], missed, probability)
            special += add_exactly(losses, limbs[p])
            special += add_exactly(missed, sums)
            more_coarse, more_fine = unit_sum(probability)
            coarse += more_coarse
            fine += more_fine
        total = grid_total(coarse, fine, task.targets[p].size)
        loss, constant, factor = mask_dice(total, task.target_totals[p], limbs_pair(sums), task.of_dice, special)
        dice[p] = loss
        focal[p] = special
        if not with_gradient:
            continue
        scratch.wide[:] = 0.0
        for y in range(task.targets.shape[1]):
            _combine(scratch.slopes[y], scratch.flatness[y], task.targets[p, y], task.of_focal, constant, factor, row)
            spread_line(row, task.vertical, y, scratch.wide)
        narrow_plane(scratch.wide, task.horizontal, scratch.line, gradient, task.rows[p])


@jit.scalar
def probability(x, t):
    """p and what is missed of an element."""
    u, inverse, _ = logistic(x)
    above = x > 0.0
    missed = fma(1.0 - t if above else t, 1.0, u[0] * (t if above else 1.0 - t)) * inverse
    return inverse if above else u[0] * inverse, missed


@jit.helper
def _probabilities(x, t, p, missed):
    for i in range(x.size):
        p[i], missed[i] = probability(x[i], t[i])


@jit.helper
def _dice_slope(loss, bottom, minus, coefficient):
    """coefficient·(1 − loss − 2·minus)/bottom, a pair."""
    slope = add(add(pair(1.0), negate(loss)), (-2.0 * minus[0], -2.0 * minus[1]))
    return multiply(pair(coefficient), divide(slope, bottom))


@jit.scalar
def _probability_pair(x):
    """σ(x) and σ(−x) as pairs."""
    u, _, _ = logistic(x)
    bottom = add(pair(1.0), u)
    larger, smaller = divide(pair(1.0), bottom), divide(u, bottom)
    return (larger, smaller) if x > 0.0 else (smaller, larger)


@jit.helper
def dice_slopes(x, t, loss, bottom, cotangent):
    """The gradient of an element and of its target."""
    above, below = _probability_pair(x)
    slope = multiply(_dice_slope(loss, bottom, pair(t), cotangent), multiply(above, below))
    return rounded(slope), rounded(_dice_slope(loss, bottom, above, cotangent))


@jit.kernel
def dice_masks(inputs, targets, count, cotangents, gradient, target_gradient, wanted, losses, first, last):
    """Masks first ... last of count elements each: their dice losses, and the gradients that are wanted."""
    x, t, p, missed = np.empty(count), np.empty(count), np.empty(count), np.empty(count)
    sums = np.empty((3, LIMBS), np.int64)
    for n in range(first, last):
        sums[:] = 0
        load(inputs, n * count, x)
        load(targets, n * count, t)
        _probabilities(x, t, p, missed)
        special = add_exactly(p, sums[0])
        special += add_exactly(missed, sums[1])
        missed[:] = t
        special += add_exactly(missed, sums[2])
        bottom, loss = dice_terms(limbs_pair(sums[0]), limbs_pair(sums[2]), limbs_pair(sums[1]))
        losses[n] = rounded(loss) + special
        cotangent = cotangents[n if cotangents.size > 1 else 0] + special
        if not (wanted[0] or wanted[1]):
            continue
        for i in range(count):
            p[i], missed[i] = dice_slopes(x[i], t[i], loss, bottom, cotangent)
        if wanted[0]:
            save(p, gradient, n * count)
        if wanted[1]:
            save(missed, target_gradient, n * count)
