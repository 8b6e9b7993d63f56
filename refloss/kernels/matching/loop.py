"""Costs of matching the queries of an image with its objects, counts of queries that see one, and margins.

The scalars of a cost are those of losses/parts/matching_cost.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import copy, load, load_rows
from refloss.kernels.softmax.split import scan
from refloss.numerics.formats import from_ordinal, infinity_bits, lowest_ordinal

SOFTMAX, FOCAL, LABEL_MAPS = 0, 1, 2


@dataclass(frozen=True)
class MatchingLoop(jit.Description):
    """The scalars of a cost.

    softmax(x, lse) and focal(x, α, γ) are class costs, with_map(cost, focal, share) adds a class of a label map, and
    whole(class cost, x, y, width, height, target, weights) is the cost of a query and an object.
    """

    softmax: Callable[..., Any]
    focal: Callable[..., Any]
    with_map: Callable[..., Any]
    whole: Callable[..., Any]


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


@jit.helper
def box_of(boxes, n):
    """The four numbers of a box."""
    return boxes[n, 0], boxes[n, 1], boxes[n, 2], boxes[n, 3]


@jit.helper
def _load_class(logits, first, label, values):
    """Logits of one class for the queries from first on; [B, Q] are the rows' axes."""
    load(logits, first, values, label * logits.class_stride)


@jit.once
def match_costs(loop: MatchingLoop) -> Any:
    """The kernel for costs on the CPU."""
    softmax, focal, with_map, whole = loop.softmax, loop.focal, loop.with_map, loop.whole

    @functools.partial(jit.helper, name=loop.name)
    def focal_costs(logits, alpha, gamma, costs):
        for i in range(costs.size):
            costs[i] = focal(logits[i], alpha, gamma)

    @functools.partial(jit.helper, name=loop.name)
    def softmax_costs(logits, lse, costs):
        for i in range(costs.size):
            costs[i] = softmax(logits[i], lse[i])

    @functools.partial(jit.helper, name=loop.name)
    def map_costs(foci, label_map, costs):
        costs[:] = 0.0
        for c in range(label_map.size):
            if label_map[c] != 0.0:
                row = foci[c]
                for i in range(costs.size):
                    costs[i] = with_map(costs[i], row[i], label_map[c])

    @functools.partial(jit.helper, name=loop.name)
    def add_box_costs(x, y, width, height, target, weights, costs):
        for i in range(costs.size):
            costs[i] = whole(costs[i], x[i], y[i], width[i], height[i], target, weights)

    def costs_of(logits, boxes, lse, objects, weights, queries, scratch, costs, first, last):
        """costs[n, q] of each object n for query q of its own image, for queries first ... last of all images."""
        start = first
        while start < last:
            image, query = start // queries, start % queries
            count = min(queries - query, last - start, scratch.logits.size)
            x, of_class = scratch.logits[:count], scratch.of_class[:count]
            if objects.offsets[image] < objects.offsets[image + 1]:
                for k in range(4):
                    load(boxes, start, scratch.boxes[k][:count], k * boxes.class_stride)
                if weights.kind == LABEL_MAPS:
                    for c in range(logits.classes):
                        _load_class(logits, start, c, x)
                        focal_costs(x, weights.alpha, weights.gamma, scratch.foci[c][:count])
            for n in range(objects.offsets[image], objects.offsets[image + 1]):
                if weights.kind == LABEL_MAPS:
                    map_costs(scratch.foci, objects.maps[n], of_class)
                else:
                    _load_class(logits, start, objects.labels[n], x)
                    if weights.kind == SOFTMAX:
                        softmax_costs(x, lse[start : start + count], of_class)
                    else:
                        focal_costs(x, weights.alpha, weights.gamma, of_class)
                b = scratch.boxes
                add_box_costs(b[0], b[1], b[2], b[3], box_of(objects.boxes, n), weights, of_class)
                copy(of_class, costs[n, query : query + count])
            start += count

    return jit.kernel(costs_of, loop.name)


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
def _fill_changes(costs, queries, objects, has_object, has_query, distance):
    """What each step costs; the last node is an unmatched query, or an unmatched object."""
    last = queries.size
    distance[:] = np.inf
    for i in range(last):
        for j in range(last):
            if i != j:
                distance[i, j] = _change(costs, queries, objects, i, j)
    for i in range(last):
        present = costs[queries[i], objects[i]]
        if costs.shape[0] > last:
            distance[last, i] = 0.0
            for q in range(costs.shape[0]):
                if not has_object[q]:
                    distance[i, last] = min(distance[i, last], costs[q, objects[i]] - present)
        elif costs.shape[1] > last:
            distance[i, last] = -present
            for n in range(costs.shape[1]):
                if not has_query[n]:
                    distance[last, i] = min(distance[last, i], costs[queries[i], n])


@jit.kernel
def next_best(costs, queries, objects, has_object, has_query, distance):
    """How much worse the next best assignment of an image is than the best, which matches queries[i] with objects[i].

    Another assignment is a cycle of objects that hand on their queries. The cheapest cycle is the shortest path from a
    node to itself (Floyd and Warshall).
    """
    _fill_changes(costs, queries, objects, has_object, has_query, distance)
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
