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
from refloss.kernels.rows import load, load_rows
from refloss.kernels.softmax import scan
from refloss.losses.sigmoid_focal import log_probability, power
from refloss.numerics.bits import fma
from refloss.numerics.exponential import exp_of_negative, log_pair, logistic
from refloss.numerics.formats import from_ordinal, infinity_bits, lowest_ordinal
from refloss.numerics.pairs import rounded

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


class Scratch(NamedTuple):
    """One thread's rows: a number for every query of a block."""

    logits: np.ndarray
    of_class: np.ndarray
    boxes: np.ndarray  # [4, Q]
    foci: np.ndarray  # [C, Q], for label maps; else empty


@jit.scalar
def focal_cost(x, alpha, gamma):
    """f(x)."""
    u, inverse, small = logistic(x)
    above = x > 0.0
    p, q = (inverse if above else u[0] * inverse), (u[0] * inverse if above else inverse)
    log_p, log_q = log_probability(x, small), log_probability(-x, small)
    positive = alpha * power(log_q, gamma) * -rounded(log_pair(p + EPSILON, 0.0))
    negative = (1.0 - alpha) * power(log_p, gamma) * -rounded(log_pair(q + EPSILON, 0.0))
    return positive - negative if x == x else x


@jit.scalar
def softmax_cost(x, lse):
    """−p."""
    difference = x - lse
    # A row without a softmax has no lse: exp_of_negative would make a number of NaN.
    probability, _ = exp_of_negative(difference)
    return -probability if difference == difference else difference


@jit.scalar
def with_map(cost, focus, share):
    """cost + share·focus, for one class of a label map."""
    return fma(focus, share, cost)


@jit.helper
def _focal_costs(logits, alpha, gamma, costs):
    for i in range(costs.size):
        costs[i] = focal_cost(logits[i], alpha, gamma)


@jit.helper
def _softmax_costs(logits, lse, costs):
    for i in range(costs.size):
        costs[i] = softmax_cost(logits[i], lse[i])


@jit.helper
def _map_costs(foci, label_map, costs):
    costs[:] = 0.0
    for c in range(label_map.size):
        if label_map[c] != 0.0:
            row = foci[c]
            for i in range(costs.size):
                costs[i] = with_map(costs[i], row[i], label_map[c])


@jit.scalar
def _lengths(a, a_size, b, b_size):
    """Lengths of the intersection and of what is around two intervals."""
    a_low, a_high, b_low, b_high = a - 0.5 * a_size, a + 0.5 * a_size, b - 0.5 * b_size, b + 0.5 * b_size
    low, least = (a_low, b_low) if a_low > b_low else (b_low, a_low)
    high, greatest = (a_high, b_high) if a_high < b_high else (b_high, a_high)
    return (high - low if high > low else 0.0), greatest - least


@jit.scalar
def whole_cost(of_class, x, y, width, height, target, weights):
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


@jit.helper
def box_of(boxes, n):
    """The four numbers of a box."""
    return boxes[n, 0], boxes[n, 1], boxes[n, 2], boxes[n, 3]


@jit.helper
def _add_box_costs(x, y, width, height, target, weights, costs):
    for i in range(costs.size):
        costs[i] = whole_cost(costs[i], x[i], y[i], width[i], height[i], target, weights)


@jit.helper
def _load_class(logits, first, label, values):
    """Logits of one class for the queries from first on; [B, Q] are the rows' axes."""
    load(logits, first, values, label * logits.class_stride)


@jit.kernel
def match_costs(logits, boxes, lse, objects, weights, queries, scratch, costs, first, last):
    """costs[n, q] of each object n for query q of its own image, for queries first ... last of all images."""
    start = first
    while start < last:
        image, query = start // queries, start % queries
        count = min(queries - query, last - start, scratch.logits.size)
        x, own = scratch.logits[:count], scratch.of_class[:count]
        if objects.offsets[image] < objects.offsets[image + 1]:
            for k in range(4):
                load(boxes, start, scratch.boxes[k][:count], k * boxes.class_stride)
            if weights.kind == LABEL_MAPS:
                for c in range(logits.classes):
                    _load_class(logits, start, c, x)
                    _focal_costs(x, weights.alpha, weights.gamma, scratch.foci[c][:count])
        for n in range(objects.offsets[image], objects.offsets[image + 1]):
            if weights.kind == LABEL_MAPS:
                _map_costs(scratch.foci, objects.maps[n], own)
            else:
                _load_class(logits, start, objects.labels[n], x)
                if weights.kind == SOFTMAX:
                    _softmax_costs(x, lse[start : start + count], own)
                else:
                    _focal_costs(x, weights.alpha, weights.gamma, own)
            _add_box_costs(
                scratch.boxes[0],
                scratch.boxes[1],
                scratch.boxes[2],
                scratch.boxes[3],
                box_of(objects.boxes, n),
                weights,
                own,
            )
            costs[n, query : query + count] = own
        start += count


@jit.scalar
def sees_object(best, undefined, last, of_softmax):
    """Whether a query sees an object, by its best class; undefined if that has NaN among the logits."""
    # A NaN is the largest of all for an argmax, and above no threshold.
    return (undefined or best >= last) if of_softmax else (not undefined and best > 0.0)


@jit.helper
def _highest(x):
    """The largest element, and whether one is NaN."""
    highest, largest = scan(x, lowest_ordinal(x), infinity_bits(x))
    return from_ordinal(highest, x), largest > infinity_bits(x)


@jit.kernel
def count_objects(logits, of_softmax, counted, block, first, last):
    """Whether a query sees an object: its best class is not the last one, or has a probability above 1/2."""
    size = logits.classes
    step = block.size // size
    for start in range(first, last, step):
        count = min(step, last - start)
        load_rows(logits, start, count, block)
        for k in range(count):
            x = block[k * size : (k + 1) * size]
            best, undefined = _highest(x[: size - 1] if of_softmax else x)
            counted[start + k] = sees_object(best, undefined, x[size - 1], of_softmax)


@jit.scalar
def _change(costs, queries, objects, i, j):
    """What it costs object i of the matching to take the query of object j instead of its own."""
    return costs[queries[j], objects[i]] - costs[queries[i], objects[i]]


@jit.helper
def _fill_changes(costs, queries, objects, is_taken, is_matched, distance):
    """What each step costs; the last node is a query that nobody had, or an object that had none."""
    last = queries.size
    distance[:] = np.inf
    for i in range(last):
        for j in range(last):
            if i != j:
                distance[i, j] = _change(costs, queries, objects, i, j)
    for i in range(last):
        own = costs[queries[i], objects[i]]
        if costs.shape[0] > last:
            distance[last, i] = 0.0
            for q in range(costs.shape[0]):
                if not is_taken[q]:
                    distance[i, last] = min(distance[i, last], costs[q, objects[i]] - own)
        elif costs.shape[1] > last:
            distance[i, last] = -own
            for n in range(costs.shape[1]):
                if not is_matched[n]:
                    distance[last, i] = min(distance[last, i], costs[queries[i], n])


@jit.kernel
def next_best(costs, queries, objects, is_taken, is_matched, distance):
    """How much worse the next best assignment of an image is than the best, which matches queries[i] with objects[i].

    Another assignment is a cycle of objects that hand on their queries. The cheapest cycle is the shortest path from a
    node to itself (Floyd and Warshall).
    """
    _fill_changes(costs, queries, objects, is_taken, is_matched, distance)
    nodes = queries.size + 1
    for k in range(nodes):
        for i in range(nodes):
            for j in range(nodes):
                through = distance[i, k] + distance[k, j]
                distance[i, j] = through if through < distance[i, j] else distance[i, j]
    best = np.inf
    for i in range(nodes):
        best = min(best, distance[i, i])
    return max(best, 0.0)
