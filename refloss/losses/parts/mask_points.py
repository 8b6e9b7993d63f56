"""Binary cross-entropy and dice loss of masks that are looked at in points, as in PointRend and Mask2Former.

With a mask's bilinear sample x at a point, p = σ(x), a target t in [0, 1] there, and P points,

    entropy ℓ = t·softplus(−x) + (1 − t)·softplus(x), its mean over the points;    ∂ℓ/∂x = p − t
    dice    1 − (2·Σ p·t + 1)/D with D = Σ p + Σ t + 1;    ∂/∂x = p·(1 − p)·(1 − ℓ − 2t)/D, as in losses/dice.py

Numerics. For x > 0, ℓ = (1 − t)·x + log(1 + u) and p − t = (1 − t) − u/(1 + u) with u = e^−|x|; for x < 0, ℓ =
t·|x| + log(1 + u) and p − t = u/(1 + u) − t. x and t are pairs, and so is everything that is made of them; exponentials
are good to some 2^-98.

The cost of matching a query with an object is the sum of both losses, each times its weight, at points that all masks
of a layer share; plain float64, as what else a cost is made of.

Counterparts: sigmoid_cross_entropy_loss, dice_loss and their pair_wise_ companions in transformers' Mask2Former and
RF-DETR. Source: Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", 2022, section 3.3.
"""

from __future__ import annotations

from refloss import jit
from refloss.kernels.points.loop import PointLoop
from refloss.losses.dice import slope_accurate, terms
from refloss.numerics.accurate import logistic_accurate
from refloss.numerics.exponential import logistic
from refloss.numerics.pairs import add, multiply, negate, pair, rounded


@jit.scalar
def _costs(x):
    """softplus(−x), softplus(x), σ(x)."""
    u, inverse, logarithm = logistic(x)
    above, small = x > 0.0, rounded(logarithm)
    p = inverse if above else u[0] * inverse
    positive, negative = (small if above else small - x), (small + x if above else small)
    known = x == x
    return positive if known else x, negative if known else x, p if known else x


@jit.helper
def _terms(x, t):
    """The loss, p, what is missed, p − t, the magnitude of its terms, and p·(1 − p)."""
    _, larger, smaller, small = logistic_accurate(x[0], x[1])
    above, rest = x[0] > 0.0, add(pair(1.0), negate(t))
    near, far = (rest, t) if above else (t, rest)
    loss = add(multiply(near, x if above else negate(x)), small)
    missed = add(multiply(larger, near), multiply(smaller, far))
    distance = add(near, negate(smaller))
    return (
        loss,
        larger if above else smaller,
        missed,
        distance if above else negate(distance),
        near[0] + smaller[0],
        multiply(larger, smaller),
    )


@jit.helper
def _slope(distance, size, flatness, t, bottom, missed, of_entropy, of_dice):
    """The derivative of both losses, a pair, and the magnitude of its terms."""
    slope = add(multiply(of_entropy, distance), multiply(flatness, slope_accurate(bottom, missed, t, of_dice)))
    terms_of_dice = abs(of_dice[0]) * flatness[0] * (1.0 + 2.0 * t[0]) / bottom[0]
    return slope, abs(of_entropy[0]) * size + terms_of_dice


LOOP = PointLoop("mask_points", _costs, _terms, terms, _slope)
