"""Costs of matching on the CPU: from arrays to kernels and back."""

from __future__ import annotations

import numpy as np

from refloss import parallel
from refloss.kernels.matching import Objects, Weights, count_objects, match_costs
from refloss.kernels.rows import any_rows_of

BLOCK_QUERIES = 256


def costs(logits: np.ndarray, boxes: np.ndarray, lse: np.ndarray, objects: Objects, weights: Weights) -> np.ndarray:
    """[Q, N] for logits [B, Q, C] and boxes [B, Q, 4]: each object against the queries of its own image."""
    result = np.empty((logits.shape[1], len(objects.labels)))
    rows, box_rows = any_rows_of(logits, 2), any_rows_of(boxes, 2)

    def work(first: int, last: int, _: None) -> None:
        match_costs(rows, box_rows, lse, objects, weights, logits.shape[1], result, first, last)

    parallel.run_blocks(work, lse.size, BLOCK_QUERIES, lambda: None)
    return result


def counts(logits: np.ndarray, *, of_softmax: bool) -> np.ndarray:
    """[B] how many queries of logits [B, Q, C] see an object."""
    counted = np.empty(logits.shape[:2], np.bool_)
    rows = any_rows_of(logits, 2)

    def work(first: int, last: int, _: None) -> None:
        count_objects(rows, of_softmax, counted.reshape(-1), first, last)

    parallel.run_blocks(work, counted.size, BLOCK_QUERIES, lambda: None)
    return np.count_nonzero(counted, axis=1)
