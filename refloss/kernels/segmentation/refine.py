"""Gradients of segmentation whose rounding float64 cannot settle, again in pairs.

A sum over pixels is off by some units of 2^-53 of the sum of its terms' magnitudes. Where that does not settle its
rounding, the pixels that have a share in it are worked on again, with exponentials that are good to some 2^-98; what is
below the errors of pairs is 0.
"""

from __future__ import annotations

import numpy as np

from refloss import jit
from refloss.kernels.resample.loop import between
from refloss.numerics.accurate import exp_alone
from refloss.numerics.exponential import UNDERFLOW
from refloss.numerics.pairs import add, divide, multiply, negate, pair
from refloss.numerics.settled import is_settled, settled

# What is below the errors of pairs, relative to the terms' magnitudes: of exponentials and of logits near 1, and of
# logits of any size.
NOTHING = 2.0**-90
OF_LOGITS = 2.0**-102


@jit.scalar
def is_larger(high, low, than, than_low):
    """Whether a normalised pair is larger than another."""
    return (high > than) | ((high == than) & (low > than_low))


@jit.helper
def pixel_logit(pixels, c, y, x):
    """A pixel's logit, without the scale."""
    wide, vertical = pixels.wide, pixels.vertical
    i, j = vertical.first[y], vertical.second[y]
    first, second = (wide[0, i, c, x], wide[1, i, c, x]), (wide[0, j, c, x], wide[1, j, c, x])
    return between(first, second, vertical.near[y], vertical.far[y])


@jit.helper
def _exponential(logit, largest, scale):
    """e^((logit − largest)·scale), a pair."""
    distance = multiply(add(logit, negate(largest)), scale)
    if distance[0] == 0.0:
        return 1.0, 0.0
    return exp_alone(distance[0], distance[1]) if distance[0] > UNDERFLOW else pair(0.0)


@jit.helper
def _accurate_share(pixels, c, y, x):
    """What a pixel hands back to a class, a pair, and how large its largest logit is."""
    largest = pixel_logit(pixels, 0, y, x)
    for k in range(1, pixels.wide.shape[2]):
        logit = pixel_logit(pixels, k, y, x)
        if is_larger(logit[0], logit[1], largest[0], largest[1]):
            largest = logit
    own, others = pair(0.0), pair(0.0)
    for k in range(pixels.wide.shape[2]):
        term = _exponential(pixel_logit(pixels, k, y, x), largest, pixels.scale)
        if k == c:
            own = term
        else:
            others = add(others, term)
    share = divide(negate(others) if pixels.labels[y, x] == c else own, add(own, others))
    return share, abs(largest[0]) * pixels.scale[0]


@jit.scalar
def weight_of(axis, output, element):
    """The weight of an element for an output next to it."""
    return axis.near[output] if axis.first[output] == element else axis.far[output]


@jit.helper
def _accurate(pixels, c, i, j):
    """The sum of what pixels hand back to logit (i, j) of a class, a pair."""
    vertical, horizontal = pixels.vertical, pixels.horizontal
    total, magnitude, size = pair(0.0), 0.0, 0.0
    for y in range(vertical.starts[max(i - 1, 0)], vertical.starts[i + 1]):
        for x in range(horizontal.starts[max(j - 1, 0)], horizontal.starts[j + 1]):
            weight = weight_of(vertical, y, i) * weight_of(horizontal, x, j)
            if weight != 0.0 and pixels.labels[y, x] != pixels.ignore_index:
                share, largest = _accurate_share(pixels, c, y, x)
                total = add(total, multiply(share, pair(weight)))
                magnitude += abs(share[0]) * weight
                size = max(size, largest)
    return total if abs(total[0]) >= (NOTHING + OF_LOGITS * size) * magnitude else pair(0.0)


@jit.helper
def _subtracted(pixels, c, i, j):
    """Whether pixels next to logits (i, j) count, and a bound of what those of a class subtract from its gradient."""
    vertical, horizontal = pixels.vertical, pixels.horizontal
    counted, bound = False, 0.0
    for y in range(vertical.starts[max(i - 1, 0)], vertical.starts[i + 1]):
        for x in range(horizontal.starts[max(j - 1, 0)], horizontal.starts[j + 1]):
            weight, label = weight_of(vertical, y, i) * weight_of(horizontal, x, j), pixels.labels[y, x]
            if weight != 0.0 and label != pixels.ignore_index:
                counted = True
                if label == c:
                    # 1 − p is at most −log p.
                    bound += weight * min(pixels.nll[y, x], 1.0)
    return counted, bound


@jit.scalar
def _error(total, bound, rounding):
    """How far a gradient may be off, from the sum that it comes from and a bound of what cancelled in it."""
    return rounding.tolerance * (abs(total) + 2.0 * bound) * abs(rounding.coefficient[0])


@jit.scalar
def is_finished(value, total, bound, rounding):
    """Whether a gradient is what float64 makes of it."""
    finite = abs(rounding.coefficient[0]) < np.inf
    return finite & is_settled(value, _error(total, bound, rounding), rounding.precision)


@jit.helper
def finished(value, total, pixels, rounding, c, i, j):
    """A gradient that is not what float64 makes of it, its value; rounded to odd where it is no float64."""
    counted, bound = _subtracted(pixels, c, i, j)
    if not abs(rounding.coefficient[0]) < np.inf:
        # By the float rules infinity times what is handed back; but an ignored pixel hands nothing back.
        return value if counted else 0.0
    if is_settled(value, _error(total, bound, rounding), rounding.precision):
        return value
    return settled(multiply(_accurate(pixels, c, i, j), rounding.coefficient), rounding.precision)
