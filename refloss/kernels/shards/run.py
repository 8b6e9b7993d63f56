"""Ranks that have a part of the classes each: from arrays to loops and back. On the CPU: what is big is the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss import parallel
from refloss.kernels.rows import any_rows_of
from refloss.kernels.shards.loop import Common, Own, common_rows, rank_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refloss.kernels.logits.chain import Chain

_BLOCK_ELEMENTS = 1 << 14


class RankSums(NamedTuple):
    """What ranks compute: float64 [ranks, rows], and [rows] of all ranks together."""

    maximum: np.ndarray
    label: np.ndarray
    logits: np.ndarray
    common: Common


def sums_of_ranks(shards: Sequence[np.ndarray], labels: np.ndarray, chain: Chain) -> RankSums:
    """Of the logits of each rank, classes last, and the labels [rows] among all classes, −1 for none."""
    count, ranks = labels.size, len(shards)
    own = Own(*(np.empty((ranks, count)) for _ in Own._fields))
    start = 0
    for rank, shard in enumerate(shards):
        rows = any_rows_of(shard, shard.ndim - 1)
        local = labels - start
        local = np.where((local >= 0) & (local < rows.classes) & (labels >= 0), local, -1)

        def work(first: int, last: int, _: None, given: Any = (rows, rank, local)) -> None:
            rank_rows(*given, chain, own, first, last)

        parallel.run_blocks(work, count, max(1, _BLOCK_ELEMENTS // max(1, rows.classes)), lambda: None)
        start += rows.classes
    common = Common(np.empty(count), np.empty((ranks, count)), np.empty(count))
    common_rows(own, common)
    maximum = np.where(np.isnan(own.maximum), np.nan, own.maximum + own.maximum_low)
    return RankSums(maximum, own.label, own.logits, common)


def smoothing_of_all(label_smoothing: float, formula: str, classes: int) -> float:
    """ε of (1 − ε)·onehot + ε/K: as it is, or α·K/(K − 1), in float64 as Megatron computes it."""
    if formula == "torch" or label_smoothing == 0.0:
        return label_smoothing
    return label_smoothing * classes / (classes - 1)
