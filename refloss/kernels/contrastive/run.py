"""Losses of pairs: from a matrix to loops and back, and which device they run on."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from refloss import parallel
from refloss.dispatch import runs_on_gpu
from refloss.kernels.contrastive.loop import (
    LINES,
    Accurate,
    Sides,
    Smoothing,
    Upstream,
    Written,
    accurate_parts,
    mark_crowds,
    pair_rows,
    split_accurately,
    split_rows,
)
from refloss.kernels.rows import any_rows_of, tile_rows
from refloss.numerics.exact import as_pair
from refloss.numerics.memory import as_writable

if TYPE_CHECKING:
    from refloss.kernels.rows import AnyRows

# Elements a thread takes at a time.
BLOCK_ELEMENTS = 1 << 17


def pair_losses(
    similarity: np.ndarray,
    gradient: np.ndarray | None,
    *,
    label_smoothing: float,
    cotangent: np.ndarray,
    divisor: int,
    backend: str,
) -> np.ndarray:
    """The loss of every pair of a square matrix; the gradient of their sum over a divisor is written."""
    count = len(similarity)
    sides = _new_sides(count)
    upstream = Upstream(as_writable(cotangent), as_pair(Fraction(2 * divisor)))
    smoothing = _smoothing(label_smoothing, count)
    losses = np.zeros((2, count))
    if runs_on_gpu(backend):
        from refloss.kernels.contrastive import gpu

        gpu.run(similarity, gradient, sides, losses, upstream, smoothing)
    else:
        _run(similarity, gradient, sides, losses, upstream, smoothing)
    return np.asarray(0.5 * losses[0])


def _new_sides(count: int) -> Sides:
    lines = [np.empty((LINES, count)) for _ in range(4)]
    return Sides(*lines, *(np.zeros(count, np.int64) for _ in range(3)))


def _smoothing(label_smoothing: float, count: int) -> Smoothing:
    share = Fraction(label_smoothing)
    uniform = share / max(count, 1)
    keep, label, others = 1 - share, 1 - share + uniform, share - uniform
    return Smoothing(as_pair(keep), as_pair(uniform), as_pair(label), as_pair(others), label_smoothing > 0.0)


def _run(
    similarity: np.ndarray,
    gradient: np.ndarray | None,
    sides: Sides,
    losses: np.ndarray,
    upstream: Upstream,
    smoothing: Smoothing,
) -> None:
    rows, columns = any_rows_of(similarity, 1), any_rows_of(similarity, 0)
    headroom = float(2.0 ** (52 - ml_dtypes.finfo(similarity.dtype).nmant))
    for lines, side in ((rows, sides.rows), (columns, sides.columns)):
        _split(lines, Written(side, losses), smoothing, headroom)
    if gradient is None:
        return
    destination, block = any_rows_of(gradient, 1), max(1, BLOCK_ELEMENTS // max(len(similarity), 1))

    def pairs(again: bool) -> None:
        def work(first: int, last: int, _: None) -> None:
            pair_rows(rows, destination, sides, upstream, smoothing, again, first, last)

        parallel.run_blocks(work, len(similarity), block, lambda: None)

    pairs(False)
    if not mark_crowds(sides):
        return
    for lines, accurate in zip((rows, columns), accurate_parts(sides), strict=True):
        _split_accurately(lines, accurate, block)
    pairs(True)


def _split(rows: AnyRows, written: Written, smoothing: Smoothing, headroom: float) -> None:
    step = tile_rows(rows)

    def work(first: int, last: int, _: None) -> None:
        split_rows(rows, written, smoothing, headroom, first, last, step)

    block = max(1, BLOCK_ELEMENTS // max(rows.classes * step, 1)) * step
    parallel.run_blocks(work, rows.classes, block, lambda: None)


def _split_accurately(rows: AnyRows, written: Accurate, block: int) -> None:
    def work(first: int, last: int, _: None) -> None:
        split_accurately(rows, written, first, last)

    parallel.run_blocks(work, rows.classes, block, lambda: None)
