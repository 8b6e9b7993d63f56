"""Costs of matching: from arrays to kernels and back, and which device they run on."""

from __future__ import annotations

import itertools

import numpy as np

from refloss import parallel
from refloss.dispatch import runs_on_gpu
from refloss.kernels.matching.loop import (
    LABEL_MAPS,
    MatchingLoop,
    Objects,
    Scratch,
    Weights,
    count_objects,
    match_costs,
    next_best,
)
from refloss.kernels.rows import any_rows_of

BLOCK_QUERIES = 256
# Blocks that a thread takes at a time.
CALL_BLOCKS = 32
# Rows of a count that are looked at together: few enough for the nearest caches.
COUNT_QUERIES = 32


def objects_of(
    offsets: np.ndarray, labels: np.ndarray, boxes: np.ndarray, label_maps: tuple[np.ndarray, ...] = ()
) -> Objects:
    """The objects of all images as a kernel reads them; label maps, one an image, are scaled to sum to 1."""
    maps = np.empty((0, 0))
    if label_maps:
        parts = zip(label_maps, itertools.pairwise(offsets), strict=True)
        maps = np.concatenate([of_image[labels[first:last]] for of_image, (first, last) in parts]).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            maps = maps / maps.sum(axis=1, keepdims=True)
    return Objects(offsets, labels, boxes, maps)


def margin(costs: np.ndarray, queries: np.ndarray, objects: np.ndarray) -> float:
    """How much worse the next best assignment of an image is than this one, the best."""
    has_object, has_query = np.zeros(costs.shape[0], np.bool_), np.zeros(costs.shape[1], np.bool_)
    has_object[queries] = True
    has_query[objects] = True
    distance = np.empty((len(queries) + 1, len(queries) + 1))
    return float(next_best(np.ascontiguousarray(costs), queries, objects, has_object, has_query, distance))


def costs(
    loop: MatchingLoop,
    logits: np.ndarray,
    boxes: np.ndarray,
    lse: np.ndarray,
    objects: Objects,
    weights: Weights,
    backend: str,
) -> np.ndarray:
    """[Q, N] for logits [B, Q, C] and boxes [B, Q, 4]: each object against the queries of its own image."""
    if runs_on_gpu(backend):
        from refloss.kernels.matching import gpu

        return gpu.costs(loop, logits, boxes, lse, objects, weights)
    queries, classes = logits.shape[1:]
    result = np.empty((len(objects.labels), queries))
    rows, box_rows = any_rows_of(logits, 2), any_rows_of(boxes, 2)
    block, kernel = min(BLOCK_QUERIES, max(queries, 1)), match_costs(loop)

    def scratch() -> Scratch:
        foci = np.empty((classes if weights.kind == LABEL_MAPS else 0, block))
        return Scratch(np.empty(block), np.empty(block), np.empty((4, block)), foci)

    def work(first: int, last: int, buffers: Scratch) -> None:
        kernel(rows, box_rows, lse, objects, weights, queries, buffers, result, first, last)

    if result.size:
        parallel.run_blocks(work, lse.size, CALL_BLOCKS * block, scratch)
    return result.T


def counts(logits: np.ndarray, *, of_softmax: bool, backend: str) -> np.ndarray:
    """[B] how many queries of logits [B, Q, C] see an object."""
    if runs_on_gpu(backend):
        from refloss.kernels.matching import gpu

        return gpu.counts(logits, of_softmax=of_softmax)
    counted = np.empty(logits.shape[:2], np.bool_)
    rows = any_rows_of(logits, 2)

    flat = counted.reshape(-1)

    def work(first: int, last: int, block: np.ndarray) -> None:
        count_objects(rows, of_softmax, flat, block, first, last)

    parallel.run_blocks(
        work, counted.size, CALL_BLOCKS * BLOCK_QUERIES, lambda: np.empty(COUNT_QUERIES * logits.shape[2])
    )
    return np.asarray(np.count_nonzero(counted, axis=1))
