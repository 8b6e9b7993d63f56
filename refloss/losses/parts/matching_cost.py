"""What it costs to match a query of an image with one of its objects.

cost = w_class·class + w_bbox·|b − b'|₁ − w_giou·GIoU(b, b'), with the class cost of a query's logits x for class k

    softmax    −p_k, p = softmax(x)
    focal      f(x_k),    f(x) = α·(1 − p)^γ·(−log(p + ε)) − (1 − α)·p^γ·(−log(1 − p + ε)),    p = σ(x), ε = 10^-8
    label maps Σ_j m_j·f(x_j), where the map m of a class sums to 1

Plain float64: a cost decides between assignments, and near ties are what the margin is for. What is not finite is
replaced by a huge cost, so that it is chosen last. A cost has no gradient.

Counterparts: the Hungarian matchers of transformers' losses. Source: Carion et al., "End-to-End Object Detection with
Transformers", 2020; the focal cost: Zhu et al., "Deformable DETR", 2021.
"""

from __future__ import annotations

import numpy as np

from refloss import jit
from refloss.kernels.matching.loop import MatchingLoop
from refloss.losses.sigmoid_focal import log_probability, power
from refloss.numerics.bits import fma
from refloss.numerics.exponential import exp_of_negative, log_pair, logistic
from refloss.numerics.pairs import rounded

EPSILON = 1e-8


@jit.scalar
def _focal_cost(x, alpha, gamma):
    """f(x)."""
    u, inverse, small = logistic(x)
    above = x > 0.0
    p, q = (inverse if above else u[0] * inverse), (u[0] * inverse if above else inverse)
    log_p, log_q = log_probability(x, small), log_probability(-x, small)
    positive = alpha * power(log_q, gamma) * -rounded(log_pair(p + EPSILON, 0.0))
    negative = (1.0 - alpha) * power(log_p, gamma) * -rounded(log_pair(q + EPSILON, 0.0))
    return positive - negative if x == x else x


@jit.scalar
def _softmax_cost(x, lse):
    """−p."""
    difference = x - lse
    # A row without a softmax has no lse: exp_of_negative would make a number of NaN.
    probability, _ = exp_of_negative(difference)
    return -probability if difference == difference else difference


@jit.scalar
def _with_map(cost, focus, share):
    """cost + share·focus, for one class of a label map."""
    return fma(focus, share, cost)


@jit.scalar
def _lengths(a, a_size, b, b_size):
    """Lengths of the intersection and of what is around two intervals."""
    a_low, a_high, b_low, b_high = a - 0.5 * a_size, a + 0.5 * a_size, b - 0.5 * b_size, b + 0.5 * b_size
    low, least = (a_low, b_low) if a_low > b_low else (b_low, a_low)
    high, greatest = (a_high, b_high) if a_high < b_high else (b_high, a_high)
    return (high - low if high > low else 0.0), greatest - least


@jit.scalar
def _whole_cost(of_class, x, y, width, height, target, weights):
    """The cost of a box on top of that of its class; the target's four numbers are a tuple."""
    area = target[2] * target[3]
    distance = ((abs(x - target[0]) + abs(y - target[1])) + abs(width - target[2])) + abs(height - target[3])
    common_width, around_width = _lengths(x, width, target[0], target[2])
    common_height, around_height = _lengths(y, height, target[1], target[3])
    common, around = common_width * common_height, around_width * around_height
    union = fma(width, height, fma(-common_width, common_height, area))
    giou = common / union - (around - union) / around
    cost = fma(weights.of_giou, -giou, fma(weights.of_bbox, distance, weights.of_class * of_class))
    return cost if abs(cost) < np.inf else weights.largest


LOOP = MatchingLoop("matching", _softmax_cost, _focal_cost, _with_map, _whole_cost)
