"""Focal and dice loss of resampled masks, pixel by pixel.

With p = σ(x), a target t in [0, 1], α = 1/4, γ = 2 and the missed probability m = p·(1 − t) + (1 − p)·t,

    focal   ℓ = a·m²·b,    a = α·t + (1 − α)·(1 − t),    b = t·softplus(−x) + (1 − t)·softplus(x)
            ∂ℓ/∂x = a·(m²·(p − t) + 2·m·b·(1 − 2t)·p·(1 − p))
    dice    that of losses/dice.py for the whole mask: ∂ℓ/∂x = p·(1 − p)·(factor·t + constant),
            factor = −2c/D, constant = c·(1 − ℓ)/D for its cotangent c

Numerics. For x > 0, b = (1 − t)·x + log(1 + u) with u = e^−|x|, and m = (u·t + 1 − t)/(1 + u); for x < 0 the same with
t and 1 − t exchanged and the derivative negated. Both are sums of what is not negative, and pairs until the loss is
rounded.

What a pixel hands back is rounded to float64, with a bound of what it may be off by: where p·(1 − p) is small, mostly
what the rounding of x does to it, 4·|x| units of 2^-53, and |x| ≤ −log p·(1 − p). Where a sum of pixels' bounds leaves
the rounding of a gradient open, they are computed again in pairs (kernels.masks.refine).

Counterparts: sigmoid_focal_loss and dice_loss of transformers' loss_for_object_detection, on masks that were upsampled
bilinearly (kernels.resample).
"""

from __future__ import annotations

import numpy as np

from refloss import jit
from refloss.kernels.masks.loop import MaskLoop
from refloss.losses.dice import probability, slope_accurate, terms
from refloss.numerics.accurate import exp_accurate, logistic_accurate
from refloss.numerics.bits import float64_bits, float64_from_bits, fma
from refloss.numerics.exponential import UNDERFLOW, logistic
from refloss.numerics.pairs import (
    add,
    divide,
    fast_two_sum,
    multiply,
    negate,
    normalised,
    pair,
    product,
    rounded,
    two_product,
    two_sum,
)

ALPHA = 0.25
# 4·log 2 and a little more.
_REACH = 2.7726
# What float64 makes of numbers 0 ... 2^51 when it is added to them has them as its last bits.
_COUNTER = 2.0**52
_EXPONENT_OF_ONE = 1023


@jit.scalar
def _pixel(x, t):
    """Focal loss with γ = 2, its derivative, p·(1 − p), the missed probability, p."""
    u, inverse, small = logistic(x)
    above = x > 0.0
    p, lost = probability(x, t)
    rest, rest_low = two_sum(1.0, -t)
    near, near_low, far = (rest if above else t), (rest_low if above else 0.0), (t if above else rest)
    straight, straight_low = two_product(near, abs(x))
    loss, loss_low = two_sum(straight, small[0])
    loss_low += small[1] + fma(near_low, abs(x), straight_low)
    loss, loss_low = fast_two_sum(loss, loss_low if straight < np.inf else 0.0)
    weight = two_sum(1.0 - ALPHA, (2.0 * ALPHA - 1.0) * t)
    value = rounded(normalised(product(product(product(weight, lost), lost), (loss, loss_low))))
    missed, flatness = rounded(lost), u[0] * inverse * inverse
    scale = weight[0] * missed
    slope = scale * fma(missed * inverse, fma(u[0], far, -near), 2.0 * loss * (far - near) * flatness)
    return value, -slope if above else slope, flatness, missed, rounded(p)


@jit.helper
def _dice(total, target_total, missed, of_dice, special):
    """A mask's dice loss, and constant and factor of its derivative."""
    bottom, loss = terms(total, target_total, missed)
    constant = rounded(divide(multiply(of_dice, add(pair(1.0), negate(loss))), bottom)) + special
    return rounded(loss) + special, constant, rounded(divide((-2.0 * of_dice[0], -2.0 * of_dice[1]), bottom))


@jit.scalar
def _reach(flatness):
    """At least 4·|x|, up to 746, from p·(1 − p) ≤ e^−|x|."""
    exponent = float64_from_bits(float64_bits(_COUNTER) + (float64_bits(flatness) >> 52)) - _COUNTER
    return _REACH * (_EXPONENT_OF_ONE - exponent)


@jit.scalar
def _slope(slope, flatness, t, of_focal, constant, factor, roundings):
    """The derivative of both losses, and what it may be off by in units of 2^-53.

    The dice loss's is off by a share of |factor|/2, which is at least its constant. The focal loss's two terms have one
    sign for targets 0 and 1; for others, what cancels in it is below flatness·(6 + 2·|x|).
    """
    value = fma(of_focal, slope, flatness * fma(factor, t, constant))
    reach = _reach(flatness)
    cancelled = fma(0.5, reach, 6.0) if (t > 0.0) & (t < 1.0) else 0.0
    bound = fma(abs(of_focal), fma(flatness, cancelled, abs(slope)), flatness * abs(factor) * (t + 0.5))
    return value, bound * (roundings + reach)


@jit.scalar
def _share(x, t):
    """p and what is missed of a pixel, pairs, from its logit, a pair."""
    above, vanishes = x[0] > 0.0, abs(x[0]) >= -UNDERFLOW
    u = exp_accurate(UNDERFLOW if vanishes else -abs(x[0]), 0.0 if vanishes else (-x[1] if above else x[1]))
    u = (0.0 if vanishes else u[0]), (0.0 if vanishes else u[1])
    larger = divide(pair(1.0), add(pair(1.0), u))
    rest, rest_low = two_sum(1.0, -t)
    near = (rest if above else t), (rest_low if above else 0.0)
    far = (t if above else rest), (0.0 if above else rest_low)
    of_larger = multiply((1.0 if above else u[0], 0.0 if above else u[1]), larger)
    return of_larger, multiply(add(near, multiply(u, far)), larger)


@jit.helper
def _accurate_focal(x, t):
    """The derivative of the focal loss, a pair, the magnitude of its terms, and p·(1 − p), a pair."""
    u, larger, smaller, small = logistic_accurate(x[0], x[1])
    above = x[0] > 0.0
    positive, negative = pair(t), two_sum(1.0, -t)
    near, far = (negative, positive) if above else (positive, negative)
    missed, flatness = multiply(add(near, multiply(u, far)), larger), multiply(larger, smaller)
    scale = multiply(two_sum(1.0 - ALPHA, (2.0 * ALPHA - 1.0) * t), missed)
    loss = add(multiply(near, x if above else negate(x)), small)
    straight = multiply(multiply(missed, larger), add(multiply(u, far), negate(near)))
    bent = multiply(multiply(multiply(loss, pair(2.0)), add(far, negate(near))), flatness)
    slope = multiply(scale, add(straight, bent))
    magnitude = scale[0] * (missed[0] * missed[0] + abs(bent[0]))
    return negate(slope) if above else slope, magnitude, flatness


@jit.helper
def _accurate_slope(x, t, bottom, missed, of_focal, of_dice):
    """The derivative of both losses, a pair, and the magnitudes of the terms of either."""
    focal, magnitude, flatness = _accurate_focal(x, t)
    dice = multiply(flatness, slope_accurate(bottom, missed, pair(t), of_dice))
    of_terms = abs(of_dice[0]) * flatness[0] * (1.0 + 2.0 * t) / bottom[0]
    return add(multiply(of_focal, focal), dice), abs(of_focal[0]) * magnitude, of_terms


LOOP = MaskLoop("mask_focal", _pixel, _dice, _slope, _share, _accurate_slope)
