"""Decoupled distillation: distributions of a layer are pulled to those of the last layer, its teacher.

For a row of logits x and the teacher's y, with a temperature T, s = softmax(x/T) and t = softmax(y/T),

    ℓ = w·T²·KL(t ‖ s) = w·T²·Σ_j t_j·(log t_j − log s_j),    ∂ℓ/∂x_j = w·T·(s_j − t_j)

where w is the IoU of a matched query's box, or else the teacher's highest probability of any class. Rows of matched
queries and of all others are averaged apart, and the averages weighted by the root of how many they are an image:

    L = (√n₊·mean₊ ℓ + √n₋·mean₋ ℓ)/(√n₊ + √n₋)

Held constant: the teacher, the weights w and the matching.

Numerics. A layer close to its teacher leaves little of t − s, and less of KL. With d_j = (x_j − y_j) − (x_r − y_r) for
the class r that the teacher is surest of, z_j = (d_j − Σ_k t_k·d_k)/T and φ(z) = e^z − 1 − z ≥ 0,

    KL = log(1 + Φ),    Φ = Σ_j t_j·φ(z_j),    s_j − t_j = t_j·(e^(z_j) − 1 − Φ)/(1 + Φ)

because Σ t_j·z_j = 0, so Σ t_j·e^(z_j) = 1 + Φ. All terms of Φ have one sign, and for |z| ≤ ln(2)/2 φ is z²·P(z) of the
exponential's own series (numerics.exponential), e^z − 1 is z + φ. Only where Φ leaves the range of float64 do the plain
formulas serve. A constant that is added to x changes no d, so that nothing is left of it. Where s_j − t_j crosses 0, a
row is computed again with exponentials in pairs.

Counterpart: the second half of DFineLoss.loss_local in transformers, T = 5. Source: Peng et al., "D-FINE", 2024; the
decoupling: Zheng et al., "Localization Distillation for Dense Object Detection", 2022.
"""

from __future__ import annotations

import numpy as np

from refloss import jit
from refloss.kernels.distillation.loop import DistillationLoop
from refloss.kernels.softmax.refine import NOTHING
from refloss.numerics.accurate import exp_alone
from refloss.numerics.bits import fma
from refloss.numerics.exponential import UNDERFLOW, excess, exp_of_negative, log, log1p
from refloss.numerics.pairs import add, divide, negate, pair, rounded, two_sum

TEMPERATURE = 5.0
_INVERSE = 1.0 / TEMPERATURE
# From here on the plain formulas: KL is above 460, far from cancelling, and 1/(1 + Φ) is still normal.
LARGEST = 1e200
# Rows with an element of which less than this share of its terms is left are computed again: errors of some 2^-51 of
# the terms leave 2^-34 of it.
CLOSE = 2.0**-17


@jit.scalar
def _larger(value, highest):
    """The larger of two, NaN if the first one is."""
    return value if value > highest or value != value else highest


@jit.scalar
def _over_temperature(high, low):
    """A pair over T as a pair, by a product and what it is off."""
    quotient = high * _INVERSE
    return quotient, (fma(-quotient, TEMPERATURE, high) + low) * _INVERSE


@jit.scalar
def _softened(value, highest):
    """e^((value − highest)/T)."""
    difference, lost = two_sum(value, -highest)
    high, low = _over_temperature(difference, lost)
    # exp_of_negative would make a number of NaN.
    return rounded(exp_of_negative(high, low)) if high == high else high


@jit.scalar
def _distance(x, y):
    """x − y as a pair; 0 for classes that both mask."""
    high, low = two_sum(x, -y)
    return 0.0 if x == y else high, 0.0 if x == y else low


@jit.scalar
def _with_mean(x, y, t, reference, mean, spread):
    """d, and the sums with t times it and t times its magnitude."""
    high, low = _distance(x, y)
    far = (high - reference[0]) + (low - reference[1])
    return far, fma(t, far, mean), fma(t, abs(far), spread)


@jit.scalar
def _with_excess(far, t, mean, total):
    """t·(e^z − 1), and the total with t·φ(z), z = (d − mean)/T."""
    growth, beyond = excess(rounded(_over_temperature(far - mean, 0.0)))
    return t * growth, fma(t, beyond, total)


@jit.scalar
def _divergence(total, spread):
    """KL(t ‖ s) from Φ, 1/(1 + Φ), and how small t·(e^z − 1) − t·Φ may be over t before too little of it is left."""
    return log1p(total), 1.0 / (1.0 + total), CLOSE * (spread / TEMPERATURE + total)


@jit.scalar
def _slope(growth, t, total, inverse, coefficient, limit):
    """coefficient·(s − t) from t·(e^z − 1), and whether too little is left of it."""
    difference = fma(-t, total, growth)
    return coefficient * (difference * inverse), abs(difference) < limit * t


@jit.helper
def _accurate_term(value, highest):
    """e^((value − highest)/T) to the accuracy of pairs."""
    high, low = two_sum(value, -highest)
    power = divide((high, low), pair(TEMPERATURE))
    return exp_alone(power[0], power[1]) if power[0] > UNDERFLOW else pair(0.0)


@jit.helper
def _highest(x):
    highest = -np.inf
    for c in range(x.size):
        highest = _larger(x[c], highest)
    return highest


@jit.helper
def _accurate_differences(x, y):
    """s − t of a row, in place of x; 0 where only the errors of pairs are left."""
    highest, best = _highest(x), _highest(y)
    total, below = pair(0.0), pair(0.0)
    for c in range(x.size):
        total = add(total, _accurate_term(x[c], highest))
        below = add(below, _accurate_term(y[c], best))
    for c in range(x.size):
        taught = divide(_accurate_term(y[c], best), below)
        difference = rounded(add(divide(_accurate_term(x[c], highest), total), negate(taught)))
        x[c] = difference if abs(difference) > NOTHING * taught[0] else 0.0


@jit.helper
def _plain_divergence(x, y, t):
    """KL(t ‖ s) of a row by its definition; x becomes s − t."""
    highest, best = _highest(x), _highest(y)
    total, below = 0.0, 0.0
    for c in range(x.size):
        total += _softened(x[c], highest)
        below += _softened(y[c], best)
    divergence = log(total) - log(below)
    for c in range(x.size):
        if t[c] != 0.0:
            divergence += t[c] * (((y[c] - best) - (x[c] - highest)) / TEMPERATURE)
        x[c] = _softened(x[c], highest) / total - t[c]
    return divergence


LOOP = DistillationLoop(
    "distillation",
    larger=_larger,
    soften=_softened,
    distance=_distance,
    with_mean=_with_mean,
    with_excess=_with_excess,
    divergence=_divergence,
    slope=_slope,
    accurate=_accurate_differences,
    plain=_plain_divergence,
    largest=LARGEST,
)
