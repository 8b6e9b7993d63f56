"""Costs of matching on a GPU: a thread for each object and query of its image; margins are the CPU's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import cuda

from refloss import jit
from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.jit import gpu_function, gpu_kernel
from refloss.kernels.matching.loop import LABEL_MAPS, SOFTMAX, box_of, sees_object
from refloss.kernels.rows import row_offset
from refloss.numerics.formats import bounds, magnitude_at, ordinal_at, read, value_of

if TYPE_CHECKING:
    from refloss.kernels.matching.loop import MatchingLoop, Objects, Weights

_BLOCK = 256


class Queries(NamedTuple):
    """What a cost is made of beside logits and boxes of the queries."""

    images: np.ndarray  # [N] of each object
    lse: np.ndarray  # [B·Q]
    foci: runtime.Array  # [C, B·Q], for label maps; else empty


@jit.once
def fill_foci(loop: MatchingLoop) -> Any:
    """The kernel for f of every logit, class by class."""
    focal = loop.focal

    @gpu_kernel
    def fill(logits, weights, queries):
        foci = queries.foci
        count = foci.shape[1]
        for index in range(cuda.grid(1), foci.size, cuda.gridsize(1)):
            c = index // count
            offset = row_offset(logits, index - c * count) + c * logits.class_stride
            foci[c, index - c * count] = focal(read(logits.memory, offset), weights.alpha, weights.gamma)

    return fill


@jit.once
def match_costs(loop: MatchingLoop) -> Any:
    """The kernel for costs."""
    softmax, focal, with_map, whole = loop.softmax, loop.focal, loop.with_map, loop.whole

    @gpu_function
    def class_cost(logits, row, n, objects, weights, queries):
        """What the class of object n costs the query of a row."""
        if weights.kind == LABEL_MAPS:
            cost = 0.0
            for c in range(logits.classes):
                share = objects.maps[n, c]
                if share != 0.0:
                    cost = with_map(cost, queries.foci[c, row], share)
            return cost
        x = read(logits.memory, row_offset(logits, row) + objects.labels[n] * logits.class_stride)
        if weights.kind == SOFTMAX:
            return softmax(x, queries.lse[row])
        return focal(x, weights.alpha, weights.gamma)

    @gpu_kernel
    def costs_of(logits, boxes, objects, weights, queries, results):
        """costs[n, q], the first of the results, of each object n for query q of its own image."""
        costs, memory, step = results[0], boxes.memory, boxes.class_stride
        count = costs.shape[1]
        for index in range(cuda.grid(1), costs.size, cuda.gridsize(1)):
            n = index // count
            q = index - n * count
            row = queries.images[n] * count + q
            of_class = class_cost(logits, row, n, objects, weights, queries)
            start = row_offset(boxes, row)
            x, y = read(memory, start), read(memory, start + step)
            width, height = read(memory, start + 2 * step), read(memory, start + 3 * step)
            costs[n, q] = whole(of_class, x, y, width, height, box_of(objects.boxes, n), weights)

    return costs_of


@gpu_kernel
def count_objects(logits, of_softmax, results):
    """Whether a query sees an object; the first of the results."""
    counted, memory, stride = results[0], logits.memory, logits.class_stride
    lowest, infinity = bounds(memory)
    for index in range(cuda.grid(1), counted.size, cuda.gridsize(1)):
        start, highest, undefined = row_offset(logits, index), lowest, False
        for c in range(logits.classes - 1 if of_softmax else logits.classes):
            here = ordinal_at(memory, start + c * stride)
            highest = here if here > highest else highest
            undefined = undefined or magnitude_at(memory, start + c * stride) > infinity
        last = read(memory, start + (logits.classes - 1) * stride)
        counted[index] = sees_object(value_of(highest, memory), undefined, last, of_softmax)


def costs(
    loop: MatchingLoop, logits: np.ndarray, boxes: np.ndarray, lse: np.ndarray, objects: Objects, weights: Weights
) -> np.ndarray:
    """[Q, N] for logits [B, Q, C] and boxes [B, Q, 4]: each object against the queries of its own image."""
    results = runtime.Array((len(objects.labels), logits.shape[1]), np.float64)
    images = np.repeat(np.arange(len(logits)), np.diff(objects.offsets))
    with_maps = weights.kind == LABEL_MAPS and len(images) > 0
    foci = runtime.Array((logits.shape[2] if with_maps else 0, lse.size), np.float64)
    queries = Queries(images, lse, foci)
    rows, box_rows = runtime.rows_on_device(logits, 2), runtime.rows_on_device(boxes, 2)
    count = len(images) * logits.shape[1]
    if with_maps:
        runtime.launch(fill_foci(loop), runtime.grid(logits.size, _BLOCK), _BLOCK, rows, weights, queries)
    blocks = runtime.grid(count, _BLOCK)
    runtime.launch(match_costs(loop), blocks, _BLOCK, rows, box_rows, objects, weights, queries, (results,))
    return results.download().T


def counts(logits: np.ndarray, *, of_softmax: bool) -> np.ndarray:
    """[B] how many queries of logits [B, Q, C] see an object."""
    shape = logits.shape[:2]
    results, rows = runtime.Array(shape[0] * shape[1], np.bool_), runtime.rows_on_device(logits, 2)
    runtime.launch(count_objects, runtime.grid(shape[0] * shape[1], _BLOCK), _BLOCK, rows, of_softmax, (results,))
    return np.asarray(np.count_nonzero(results.download().reshape(shape), axis=1))
