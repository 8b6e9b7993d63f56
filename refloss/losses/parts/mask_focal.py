"""Focal and dice loss of resampled masks, pixel by pixel.

With p = σ(x), a target t in [0, 1], α = 1/4, γ = 2 and the missed probability m = p·(1 − t) + (1 − p)·t,

    focal   ℓ = a·m²·b,    a = α·t + (1 − α)·(1 − t),    b = t·softplus(−x) + (1 − t)·softplus(x)
            ∂ℓ/∂x = a·(m²·(p − t) + 2·m·b·(1 − 2t)·p·(1 − p))
    dice    that of losses/dice.py for the whole mask: ∂ℓ/∂x = p·(1 − p)·(factor·t + constant),
            factor = −2c/D, constant = c·(1 − ℓ)/D for its cotangent c

Numerics. For x > 0, b = (1 − t)·x + log(1 + u) with u = e^−|x|, and m = (u·t + 1 − t)/(1 + u); for x < 0 the same with
t and 1 − t exchanged and the derivative negated. Both are sums of what is not negative, and pairs until the loss is
rounded.

Counterparts: sigmoid_focal_loss and dice_loss of transformers' loss_for_object_detection, on masks that were upsampled
bilinearly (kernels.resample).
"""

from __future__ import annotations

import numpy as np

from refloss import jit
from refloss.kernels.masks.loop import MaskLoop
from refloss.losses.dice import probability, terms
from refloss.numerics.bits import fma
from refloss.numerics.exponential import logistic
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


@jit.scalar
def _pixel(x, t):
    """Focal loss with γ = 2, its derivative, p·(1 − p), the missed probability, p."""
    u, inverse, small = logistic(x)
    above = x > 0.0
    p, lost = probability(x, t)
    near, near_low = two_sum(1.0, -t if above else t - 1.0)
    far = 1.0 - near
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
    bottom, loss = terms(total, pair(target_total), missed)
    constant = rounded(divide(multiply(pair(of_dice), add(pair(1.0), negate(loss))), bottom)) + special
    return rounded(loss) + special, constant, rounded(divide(pair(-2.0 * of_dice), bottom))


@jit.scalar
def _slope(slope, flatness, t, of_focal, constant, factor):
    """The derivative of both losses."""
    return fma(of_focal, slope, flatness * fma(factor, t, constant))


LOOP = MaskLoop("mask_focal", _pixel, _dice, _slope)
