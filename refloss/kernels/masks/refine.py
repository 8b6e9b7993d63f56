"""Gradients of resampled masks whose rounding float64 cannot settle, again in pairs.

An element of a gradient is a sum over the pixels that it has a share in, of both signs. Where a bound of what these are
off by does not settle its rounding, they are worked on again, with logits that are pairs and exponentials that are good
to some 2^-98. Sums over the mask are those of float64 at first, and where that still leaves it open, of probabilities
that good. What is below the errors of pairs is 0.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss import jit
from refloss.kernels.resample.loop import between
from refloss.kernels.segmentation.refine import NOTHING, OF_LOGITS, weight_of
from refloss.numerics.exponential import UNDERFLOW
from refloss.numerics.pairs import add, multiply, pair
from refloss.numerics.settled import is_settled, settled

if TYPE_CHECKING:
    from refloss.kernels.masks.loop import MaskLoop

_UNIT = 2.0**-53


@jit.helper
def pixel_logit(high, low, masks, y, x):
    """A pixel's logit, a pair, from a plane that was resampled along its lines."""
    i, j = masks.vertical.first[y], masks.vertical.second[y]
    first, second = (high[i, x], low[i, x]), (high[j, x], low[j, x])
    return multiply(between(first, second, masks.vertical.near[y], masks.vertical.far[y]), masks.scale)


@jit.helper
def whole(total, target_total):
    """D = Σ p + Σ t + 1, a pair."""
    return add(add(total, (target_total[0], target_total[1])), pair(1.0))


@jit.scalar
def sum_roundings(bottom, masks):
    """How far a dice loss's derivative may be off in units of 2^-53 of its terms, with sums over p in float64.

    With r such units of D for Σ p and for what is missed, 4·r. Their terms are off by one unit and by the |x|·p·(1 − p)
    of a logit that is rounded, which is below 0.23 and sums up to no more than Σ p·(1 + log n).
    """
    pixels = masks.vertical.first.size * masks.horizontal.first.size
    return 4.0 * (2.0 + min(masks.spread, 0.23 * pixels / bottom))


@jit.scalar
def is_finished(value, bound, masks):
    """Whether an element is what float64 makes of it, from a sum of its pixels' bounds."""
    return is_settled(value, _UNIT * masks.scale[0] * bound, masks.precision)


@jit.once
def accurate_element(loop: MaskLoop) -> Any:
    """The function that computes an element again."""
    accurate_slope = loop.accurate_slope

    @functools.partial(jit.helper, name=loop.name)
    def element(high, low, targets, masks, sums, roundings, i, j):
        """Element (i, j), rounded to odd where it is no float64, and whether that is settled.

        From sums D and Σ missed, pairs, that are off by some roundings, or by none; targets are flat.
        """
        vertical, horizontal = masks.vertical, masks.horizontal
        bottom, missed = (sums[0], sums[1]), (sums[2], sums[3])
        total, of_focal, of_dice, size = pair(0.0), 0.0, 0.0, 0.0
        for y in range(vertical.starts[max(i - 1, 0)], vertical.starts[i + 1]):
            for x in range(horizontal.starts[max(j - 1, 0)], horizontal.starts[j + 1]):
                weight = weight_of(vertical, y, i) * weight_of(horizontal, x, j)
                if weight != 0.0:
                    logit = pixel_logit(high, low, masks, y, x)
                    target = np.float64(targets[y * horizontal.first.size + x])
                    slope, focal, dice = accurate_slope(logit, target, bottom, missed, masks.of_focal, masks.of_dice)
                    total = add(total, multiply(slope, pair(weight)))
                    of_focal += focal * weight
                    of_dice += dice * weight
                    size = max(size, min(abs(logit[0]), -UNDERFLOW))
        total = total if abs(total[0]) >= (NOTHING + OF_LOGITS * size) * (of_focal + of_dice) else pair(0.0)
        value = multiply(total, masks.scale)
        return settled(value, masks.precision), is_finished(value[0], roundings * of_dice, masks)

    return element
