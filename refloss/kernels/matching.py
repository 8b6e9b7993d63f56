"""What it would cost to match each query of an image with each of its objects.

cost = w_class·class + w_bbox·|b − b'|₁ − w_giou·GIoU(b, b'), with the class cost of a query's logits x for class k

    softmax    −p_k, p = softmax(x)
    focal      f(x_k),    f(x) = α·(1 − p)^γ·(−log(p + ε)) − (1 − α)·p^γ·(−log(1 − p + ε)),    p = σ(x), ε = 10^-8
    label maps Σ_j m_j·f(x_j), where the map m of a class sums to 1

Plain float64: a cost decides between assignments, and near ties are what the margin is for. What is not finite is
replaced by a huge cost, so that it is chosen last.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import load_strided, row_offset
from refloss.numerics.bits import fma
from refloss.numerics.exponential import exp, log, logistic

SOFTMAX, FOCAL, LABEL_MAPS = 0, 1, 2
EPSILON = 1e-8


class Objects(NamedTuple):
    """The objects of all images, one image after the other: those of image b are offsets[b] ... offsets[b + 1]."""

    offsets: np.ndarray  # [B + 1]
    labels: np.ndarray  # [N] int64
    boxes: np.ndarray  # [N, 4] float64
    maps: np.ndarray  # [N, C] float64; empty unless they are needed


class Weights(NamedTuple):
    """What a cost is made of."""

    kind: int
    of_class: float
    of_bbox: float
    of_giou: float
    alpha: float
    gamma: float
    largest: float  # stands for what is not finite


@jit.scalar
def _power(base, exponent):
    return base * base if exponent == 2.0 else (exp(exponent * log(base)) if exponent != 0.0 else 1.0)


@jit.helper
def _focal_cost(x, alpha, gamma):
    u, inverse, _ = logistic(x)
    smaller = u[0] * inverse
    p, q = (inverse, smaller) if x > 0.0 else (smaller, inverse)
    positive = alpha * _power(q, gamma) * -log(p + EPSILON)
    negative = (1.0 - alpha) * _power(p, gamma) * -log(q + EPSILON)
    return positive - negative if x == x else x


@jit.helper
def _class_cost(x, lse, label, kind, alpha, gamma):
    return -exp(x[label] - lse) if kind == SOFTMAX else _focal_cost(x[label], alpha, gamma)


@jit.helper
def _map_cost(costs, label_map):
    total = 0.0
    for j in range(costs.size):
        if label_map[j] != 0.0:
            total = fma(costs[j], label_map[j], total)
    return total


@jit.scalar
def _lengths(a, a_size, b, b_size):
    """Lengths of the intersection and of what is around two intervals."""
    a_low, a_high, b_low, b_high = a - 0.5 * a_size, a + 0.5 * a_size, b - 0.5 * b_size, b + 0.5 * b_size
    common = min(a_high, b_high) - max(a_low, b_low)
    return (common if common > 0.0 else 0.0), max(a_high, b_high) - min(a_low, b_low)


@jit.helper
def _giou(a, b):
    common_width, around_width = _lengths(a[0], a[2], b[0], b[2])
    common_height, around_height = _lengths(a[1], a[3], b[1], b[3])
    common, around = common_width * common_height, around_width * around_height
    union = fma(a[2], a[3], fma(b[2], b[3], -common))
    return common / union - (around - union) / around


@jit.helper
def _distance(a, b):
    return ((abs(a[0] - b[0]) + abs(a[1] - b[1])) + abs(a[2] - b[2])) + abs(a[3] - b[3])


@jit.kernel
def match_costs(logits, boxes, lse, objects, weights, queries, costs, first, last):
    """costs[q, n] of each object n for query q of its own image, for queries first ... last of all images."""
    x, box, of_class = np.empty(logits.classes), np.empty(4), np.empty(logits.classes)
    for row in range(first, last):
        image, query = row // queries, row % queries
        start, stop = objects.offsets[image], objects.offsets[image + 1]
        if start == stop:
            continue
        load_strided(logits, row_offset(logits, row), logits.class_stride, x)
        load_strided(boxes, row_offset(boxes, row), boxes.class_stride, box)
        if weights.kind == LABEL_MAPS:
            for j in range(x.size):
                of_class[j] = _focal_cost(x[j], weights.alpha, weights.gamma)
        for n in range(start, stop):
            if weights.kind == LABEL_MAPS:
                class_cost = _map_cost(of_class, objects.maps[n])
            else:
                class_cost = _class_cost(x, lse[row], objects.labels[n], weights.kind, weights.alpha, weights.gamma)
            target = objects.boxes[n]
            cost = fma(weights.of_bbox, _distance(box, target), weights.of_class * class_cost)
            cost = fma(weights.of_giou, -_giou(box, target), cost)
            costs[query, n] = cost if abs(cost) < np.inf else weights.largest


@jit.kernel
def count_objects(logits, of_softmax, counted, first, last):
    """Whether a query sees an object: its best class is not the last one, or has a probability above 1/2."""
    x = np.empty(logits.classes)
    for row in range(first, last):
        load_strided(logits, row_offset(logits, row), logits.class_stride, x)
        best = -np.inf
        defined = True
        for j in range(x.size - 1 if of_softmax else x.size):
            defined &= x[j] == x[j]
            best = x[j] if x[j] > best else best
        # A NaN is the largest of all for an argmax, and above no threshold.
        if of_softmax:
            counted[row] = not defined or (best >= x[x.size - 1])
        else:
            counted[row] = defined and best > 0.0


@jit.scalar
def _change(costs, queries, objects, i, j):
    """What it costs object i of the matching to take the query of object j instead of its own."""
    return costs[queries[j], objects[i]] - costs[queries[i], objects[i]]


@jit.kernel
def next_best(costs, queries, objects, is_taken, is_matched, distance):
    """How much worse the next best assignment of an image is than the best, which matches queries[i] with objects[i].

    Another assignment is a cycle of objects that hand on their queries. It may pass through one more node, last: a
    query that nobody had, or an object that had none. The cheapest cycle is the shortest path from a node to itself.
    """
    last = queries.size
    distance[:] = np.inf
    for i in range(last):
        for j in range(last):
            if i != j:
                distance[i, j] = _change(costs, queries, objects, i, j)
        if costs.shape[0] > last:
            distance[last, i] = 0.0
            for q in range(costs.shape[0]):
                if not is_taken[q]:
                    distance[i, last] = min(distance[i, last], costs[q, objects[i]] - costs[queries[i], objects[i]])
        elif costs.shape[1] > last:
            distance[i, last] = -costs[queries[i], objects[i]]
            for n in range(costs.shape[1]):
                if not is_matched[n]:
                    distance[last, i] = min(distance[last, i], costs[queries[i], n])
    for k in range(last + 1):
        for i in range(last + 1):
            for j in range(last + 1):
                through = distance[i, k] + distance[k, j]
                distance[i, j] = through if through < distance[i, j] else distance[i, j]
    best = np.inf
    for i in range(last + 1):
        best = min(best, distance[i, i])
    return max(best, 0.0)
