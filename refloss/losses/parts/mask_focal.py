"""Focal and dice loss of resampled masks, pixel by pixel.

With p = σ(x), a target t in [0, 1], α = 1/4, γ = 2 and the missed probability m = p·(1 − t) + (1 − p)·t,

    focal   ℓ = a·m²·b,    a = α·t + (1 − α)·(1 − t),    b = t·softplus(−x) + (1 − t)·softplus(x)
            ∂ℓ/∂x = a·(m²·(p − t) + 2·m·b·(1 − 2t)·p·(1 − p))
    dice    that of losses/dice.py for the whole mask: ∂ℓ/∂x = p·(1 − p)·(factor·t + constant),
            factor = −2c/D, constant = c·(1 − ℓ)/D for its cotangent c

Numerics. For x > 0, b = (1 − t)·x + log(1 + u) with u = e^−|x|, and m = (u·t + 1 − t)/(1 + u); for x < 0 the same with
t and 1 − t exchanged and the derivative negated. Both are sums of what is not negative.

Counterparts: sigmoid_focal_loss and dice_loss of transformers' loss_for_object_detection, on masks that were upsampled
bilinearly (kernels.resample).
"""

from __future__ import annotations

from refloss import jit
from refloss.kernels.masks.loop import MaskLoop
from refloss.losses.dice import terms
from refloss.numerics.bits import fma
from refloss.numerics.exponential import logistic
from refloss.numerics.pairs import add, divide, multiply, negate, pair, rounded

ALPHA = 0.25


@jit.scalar
def _pixel(x, t):
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
