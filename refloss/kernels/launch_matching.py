"""Costs of matching on the CPU: from arrays to kernels and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss import parallel
from refloss.kernels.matching import (
    FOCAL,
    LABEL_MAPS,
    SOFTMAX,
    Objects,
    Scratch,
    Weights,
    count_objects,
    match_costs,
    next_best,
)
from refloss.kernels.rows import any_rows_of

if TYPE_CHECKING:
    from refloss.detection.matching import Matcher
    from refloss.detection.targets import Targets

BLOCK_QUERIES = 256
# Blocks that a thread takes at a time.
CALL_BLOCKS = 8
# Rows of a count that are looked at together: few enough for the nearest caches.
COUNT_QUERIES = 32
_KINDS = {"softmax": SOFTMAX, "focal": FOCAL, "label_maps": LABEL_MAPS}


def objects(targets: Targets, matcher: Matcher) -> Objects:
    """The objects as a kernel reads them; label maps are scaled to sum to 1."""
    maps = np.empty((0, 0))
    if matcher.maps:
        parts = zip(matcher.maps, targets.offsets, targets.offsets[1:], strict=False)
        maps = np.concatenate([own[targets.labels[first:last]] for own, first, last in parts]).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            maps = maps / maps.sum(axis=1, keepdims=True)
    return Objects(targets.offsets, targets.labels, targets.boxes, maps)


def weights(matcher: Matcher, largest: float) -> Weights:
    """What a cost is made of, as a kernel reads it; the largest stands for what is not finite."""
    of_class, of_bbox, of_giou = matcher.of_class, matcher.of_bbox, matcher.of_giou
    return Weights(_KINDS[matcher.kind], of_class, of_bbox, of_giou, matcher.alpha, matcher.gamma, largest)


def margin(costs: np.ndarray, queries: np.ndarray, objects: np.ndarray) -> float:
    """How much worse the next best assignment of an image is than this one, the best."""
    taken, matched = np.zeros(costs.shape[0], np.bool_), np.zeros(costs.shape[1], np.bool_)
    taken[queries] = True
    matched[objects] = True
    room = np.empty((len(queries) + 1, len(queries) + 1))
    return float(next_best(np.ascontiguousarray(costs), queries, objects, taken, matched, room))


def costs(logits: np.ndarray, boxes: np.ndarray, lse: np.ndarray, objects: Objects, weights: Weights) -> np.ndarray:
    """[Q, N] for logits [B, Q, C] and boxes [B, Q, 4]: each object against the queries of its own image."""
    queries, classes = logits.shape[1:]
    result = np.empty((len(objects.labels), queries))
    rows, box_rows = any_rows_of(logits, 2), any_rows_of(boxes, 2)
    block = min(BLOCK_QUERIES, max(queries, 1))

    def scratch() -> Scratch:
        foci = np.empty((classes if weights.kind == LABEL_MAPS else 0, block))
        return Scratch(np.empty(block), np.empty(block), np.empty((4, block)), foci)

    def work(first: int, last: int, buffers: Scratch) -> None:
        match_costs(rows, box_rows, lse, objects, weights, queries, buffers, result, first, last)

    if result.size:
        parallel.run_blocks(work, lse.size, CALL_BLOCKS * block, scratch)
    return result.T


def counts(logits: np.ndarray, *, of_softmax: bool) -> np.ndarray:
    """[B] how many queries of logits [B, Q, C] see an object."""
    counted = np.empty(logits.shape[:2], np.bool_)
    rows = any_rows_of(logits, 2)

    flat = counted.reshape(-1)

    def work(first: int, last: int, block: np.ndarray) -> None:
        count_objects(rows, of_softmax, flat, block, first, last)

    parallel.run_blocks(
        work, counted.size, CALL_BLOCKS * BLOCK_QUERIES, lambda: np.empty(COUNT_QUERIES * logits.shape[2])
    )
    return np.asarray(np.count_nonzero(counted, axis=1))
