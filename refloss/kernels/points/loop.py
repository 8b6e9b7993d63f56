"""Masks at points: bilinear samples, what they cost a matching, their losses, and the adjoint of sampling.

Along an axis of n pixels a point p in [0, 1] lies at s = p·n − 1/2, between pixels i = ⌊s⌋ and i + 1, with weights
1 − λ and λ = s − i. Outside the plane there is nothing: a point within half a pixel of its border has a share of 0.
A sample is the sum over four pixels of the product of their weights and their values, a pair; a pixel with the weight
0 is multiplied by it all the same, so that it makes NaN of a sample where it is not finite.

The adjoint hands what a sample's cotangent is back to the four pixels with the same weights. Several points may lie
between the same pixels. They come in one order, that of their cells and in a cell of their coordinates, whatever the
caller's: a pixel's sum, a pair, does not depend on it, and is rounded once. What is below the errors of pairs is 0.

Points are few: their losses are pairs throughout. The scalars are those of losses/parts/mask_points.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import load, save_pairs
from refloss.numerics.bits import fma
from refloss.numerics.pairs import add, fast_two_sum, multiply, negate, pair
from refloss.numerics.sums import LIMBS, add_exactly, limbs_pair

# What is left of terms that cancel, beside them: exponentials are good to some 2^-98, logits to 2^-100 of their terms.
NOTHING = 2.0**-88


@dataclass(frozen=True)
class PointLoop(jit.Description):
    """The scalars of a point.

    costs(x) are −log p, −log(1 − p) and p for a rounded logit. Of pairs: terms(x, t) are the loss, p, what is missed,
    p − t, the magnitude of its terms, and p·(1 − p); dice(Σ p, Σ t, Σ missed) are D and the dice loss of a mask;
    slope(p − t, magnitude, p·(1 − p), t, D, Σ missed, c, c') is the derivative of both losses for their cotangents, and
    the magnitude of its terms.
    """

    costs: Callable[..., Any]
    terms: Callable[..., Any]
    dice: Callable[..., Any]
    slope: Callable[..., Any]


class Planes(NamedTuple):
    """Some planes of [..., h, w], and the set of points that each is looked at in."""

    values: np.ndarray
    rows: np.ndarray  # [R]
    sets: np.ndarray  # [R]


class Places(NamedTuple):
    """Where points lie among the pixels of a plane: above and to the left the pixel, and how far from it."""

    first: np.ndarray  # [S, P, 2] int64: y and x, −1 before the first pixel
    far: np.ndarray  # [S, P, 2, 2]: λ of either, pairs

    def nearest(self) -> np.ndarray:
        """[S, P, 2] the pixel that is nearest, of two the one with the even number."""
        high, low = self.far[..., 0] - 0.5, self.far[..., 1]
        beyond = (high > 0.0) | ((high == 0.0) & (low > 0.0))
        between = (high == 0.0) & (low == 0.0)
        return np.asarray(self.first + (beyond | (between & (self.first % 2 == 1))))

    def sorted(self, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """[S, P] the order of the points of each set: by cells, and there by coordinates."""
        cells = self.cells(size)
        return np.lexsort((points[..., 0], points[..., 1], cells), axis=-1)

    def cells(self, size: tuple[int, int]) -> np.ndarray:
        """[S, P] the number of the square between pixels that a point lies in."""
        return np.asarray((self.first[..., 0] + 1) * (size[1] + 1) + self.first[..., 1] + 1)

    def taken(self, order: np.ndarray) -> Places:
        """The places of each set in an order."""
        first = np.take_along_axis(self.first, order[..., None], 1)
        return Places(first, np.take_along_axis(self.far, order[..., None, None], 1))


def _two_sum(a: np.ndarray, b: Any) -> tuple[np.ndarray, np.ndarray]:
    """a + b without error."""
    high = a + b
    seen = high - a
    return high, (a - (high - seen)) + (b - seen)


def locate(points: np.ndarray, size: tuple[int, int]) -> Places:
    """Where points [S, P, 2], x and y in [0, 1], lie in a plane of height × width; without rounding."""
    across = points[..., ::-1].astype(np.float64, order="C")
    # Of 29 bits and of 24: products with a size have none to round.
    upper = across.astype(np.float32).astype(np.float64)
    count = np.array(size, np.float64)
    high, rest = _two_sum(upper * count, -0.5)
    high, low = _two_sum(high, rest + (across - upper) * count)
    first = np.floor(high)
    first -= (first == high) & (low < 0.0)
    high, rest = _two_sum(high, -first)
    high, low = _two_sum(high, rest + low)
    return Places(first.astype(np.int64), np.stack([high, low], axis=-1))


@jit.helper
def corner_weight(places, s, k, corner):
    """The weight of one of four pixels around a point, a pair; corners are numbered line by line."""
    weight = pair(1.0)
    for axis in range(2):
        far = places.far[s, k, axis, 0], places.far[s, k, axis, 1]
        second = (corner >> (1 - axis)) & 1 == 1
        weight = multiply(weight, far if second else add(pair(1.0), negate(far)))
    return weight


@jit.scalar
def with_pixel(total, weight, value):
    """A sample, a pair, with what a pixel adds to it."""
    return add(total, multiply(weight, pair(value)))


@jit.kernel
def sample_planes(planes, rows, sets, places, height, width, high, low, first, last):
    """high, low [R, P]: samples of planes rows[r] of height × width at sets of places, for r from first to last."""
    plane = np.empty(height * width)
    for r in range(first, last):
        load(planes, rows[r] * plane.size, plane)
        s = sets[r]
        for k in range(high.shape[1]):
            total = pair(0.0)
            for corner in range(4):
                y, x = places.first[s, k, 0] + (corner >> 1), places.first[s, k, 1] + (corner & 1)
                if y >= 0 and y < height and x >= 0 and x < width:
                    total = with_pixel(total, corner_weight(places, s, k, corner), plane[y * width + x])
            high[r, k], low[r, k] = total


class CostWeights(NamedTuple):
    """What the two costs of masks are multiplied by."""

    of_entropy: float
    of_dice: float


@jit.once
def point_costs(loop: PointLoop) -> Any:
    """The kernel for costs."""
    costs_at = loop.costs

    @functools.partial(jit.helper, name=loop.name)
    def add_point(positive, negative, p, targets, entropy, both):
        for n in range(targets.size):
            entropy[n] = fma(positive, targets[n], fma(negative, 1.0 - targets[n], entropy[n]))
            both[n] = fma(p, targets[n], both[n])

    def costs_of(samples, targets, totals, weights, costs, first, last):
        """costs[q, n] of samples [Q, P] of predictions and targets [P, N], whose sums are totals."""
        entropy, both = np.empty(totals.size), np.empty(totals.size)
        points = max(1, samples.shape[1])
        for q in range(first, last):
            entropy[:] = 0.0
            both[:] = 0.0
            total = 0.0
            for k in range(samples.shape[1]):
                positive, negative, p = costs_at(samples[q, k])
                add_point(positive, negative, p, targets[k], entropy, both)
                total += p
            for n in range(totals.size):
                of_dice = 1.0 - (2.0 * both[n] + 1.0) / (total + totals[n] + 1.0)
                costs[q, n] = fma(weights.of_entropy, entropy[n] / points, weights.of_dice * of_dice)

    return jit.kernel(costs_of, loop.name)


class Slopes(NamedTuple):
    """Of each point the derivative of the losses for its logit, a pair, and the magnitude of its terms."""

    high: np.ndarray  # [M, P]
    low: np.ndarray
    size: np.ndarray


class Samples(NamedTuple):
    """Logits and targets at points [M, P], pairs, and sums of the latter [M, 2], pairs."""

    logits: np.ndarray
    logits_low: np.ndarray
    targets: np.ndarray
    targets_low: np.ndarray
    totals: np.ndarray


class Cotangents(NamedTuple):
    """Of a point's cross-entropy, and of a mask's dice loss, pairs."""

    of_entropy: tuple[float, float]
    of_dice: tuple[float, float]


class Scratch(NamedTuple):
    """One thread's rows: of each point what its scalar says, pairs but for a magnitude."""

    loss: np.ndarray
    loss_low: np.ndarray
    p: np.ndarray
    p_low: np.ndarray
    missed: np.ndarray
    missed_low: np.ndarray
    distance: np.ndarray
    distance_low: np.ndarray
    size: np.ndarray
    flatness: np.ndarray
    flatness_low: np.ndarray


def new_scratch(points: int) -> Scratch:
    """Buffers for so many points."""
    return Scratch(*np.empty((len(Scratch._fields), points)))


@jit.once
def point_losses(loop: PointLoop) -> Any:
    """The loop over masks."""
    terms_of, dice_of, slope_of = loop.terms, loop.dice, loop.slope

    @functools.partial(jit.helper, name=loop.name)
    def fill_terms(samples, m, row):
        for k in range(row.p.size):
            x, t = (samples.logits[m, k], samples.logits_low[m, k]), (samples.targets[m, k], samples.targets_low[m, k])
            loss, p, missed, distance, row.size[k], flatness = terms_of(x, t)
            row.loss[k], row.loss_low[k] = loss
            row.p[k], row.p_low[k] = p
            row.missed[k], row.missed_low[k] = missed
            row.distance[k], row.distance_low[k] = distance
            row.flatness[k], row.flatness_low[k] = flatness

    @functools.partial(jit.helper, name=loop.name)
    def fill_slopes(samples, m, row, bottom, missed, cotangents, slopes):
        for k in range(slopes.high.shape[1]):
            distance, flatness = (row.distance[k], row.distance_low[k]), (row.flatness[k], row.flatness_low[k])
            t = samples.targets[m, k], samples.targets_low[m, k]
            of_entropy, of_dice = cotangents.of_entropy, cotangents.of_dice
            slope, size = slope_of(distance, row.size[k], flatness, t, bottom, missed, of_entropy, of_dice)
            slopes.high[m, k], slopes.low[m, k] = slope
            slopes.size[m, k] = size

    def losses(samples, cotangents, slopes, limbs, special, dice, row, first, last):
        """Of masks first ... last the sum of cross-entropies in limbs, or special, the dice loss, and slopes."""
        sums = np.empty((2, LIMBS), np.int64)
        for m in range(first, last):
            sums[:] = 0
            fill_terms(samples, m, row)
            special[m] = add_exactly(row.loss, limbs[m]) + add_exactly(row.loss_low, limbs[m])
            undefined = add_exactly(row.p, sums[0]) + add_exactly(row.p_low, sums[0])
            undefined += add_exactly(row.missed, sums[1]) + add_exactly(row.missed_low, sums[1])
            missed = limbs_pair(sums[1])
            bottom, loss = dice_of(limbs_pair(sums[0]), (samples.totals[m, 0], samples.totals[m, 1]), missed)
            dice[m] = loss[0] + undefined
            fill_slopes(samples, m, row, (bottom[0] + undefined, bottom[1]), missed, cotangents, slopes)

    return jit.kernel(losses, loop.name)


@jit.scalar
def with_share(total, size, slopes, m, k, weight):
    """A pixel's sum, a pair, and the magnitude of its terms, with what a point hands back."""
    share = multiply(weight, (slopes.high[m, k], slopes.low[m, k]))
    return add(total, share), size + weight[0] * slopes.size[m, k]


@jit.scalar
def told(total, size):
    """A sum of which something is left, a normalised pair."""
    lost = abs(total[0]) < NOTHING * size
    high, low = fast_two_sum(0.0 if lost else total[0], 0.0 if lost else total[1])
    return high, low if abs(high) < np.inf else 0.0


@jit.kernel
def spread_points(slopes, places, rows, height, width, gradient, first, last):
    """The gradients of planes rows[m] of height × width: what points hand back, whose places are sorted by cells."""
    high, low, size = np.empty(height * width), np.empty(height * width), np.empty(height * width)
    for m in range(first, last):
        high[:] = 0.0
        low[:] = 0.0
        size[:] = 0.0
        for k in range(slopes.high.shape[1]):
            for corner in range(4):
                y, x = places.first[m, k, 0] + (corner >> 1), places.first[m, k, 1] + (corner & 1)
                if y >= 0 and y < height and x >= 0 and x < width:
                    i = y * width + x
                    weight = corner_weight(places, m, k, corner)
                    total, size[i] = with_share((high[i], low[i]), size[i], slopes, m, k, weight)
                    high[i], low[i] = total
        for i in range(high.size):
            high[i], low[i] = told((high[i], low[i]), size[i])
        save_pairs(high, low, gradient, rows[m] * high.size)
