"""Masks at points: from arrays to kernels and back, and which device samples and gathers.

What is computed of samples, a number for every point, is computed on the CPU, wherever the masks are.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from refloss import parallel
from refloss.dispatch import runs_on_gpu
from refloss.kernels.points.loop import (
    CostWeights,
    Cotangents,
    Places,
    Planes,
    PointLoop,
    Samples,
    Scratch,
    Slopes,
    locate,
    new_scratch,
    point_costs,
    point_losses,
    sample_planes,
    spread_points,
)
from refloss.kernels.rows import elements_of
from refloss.numerics.exact import Exact, as_pair, exact_sum
from refloss.numerics.sums import LIMBS, UNITS, accumulated

# Samples of queries that are worked on together: what lies in the nearer caches.
BLOCK_SAMPLES = 1 << 18


class PointLosses(NamedTuple):
    """Of every pair: the exact sum of its points' cross-entropies, NaN where undefined, and its dice loss."""

    entropy: list[Exact]
    dice: np.ndarray


def sample(planes: Planes, points: np.ndarray, backend: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """[2, R, P]: samples at points [S, P, 2], high and low parts; planes are padded with 0 to a size."""
    height, width = planes.values.shape[-2:]
    return _sampled(planes, locate(points, (height, width) if size is None else size), backend)


def _sampled(planes: Planes, places: Places, backend: str) -> np.ndarray:
    shape = (len(planes.rows), places.first.shape[1])
    if runs_on_gpu(backend):
        from refloss.kernels.points import gpu

        return gpu.sample(planes, places, shape)
    height, width = planes.values.shape[-2:]
    source, (high, low) = elements_of(planes.values), (samples := np.empty((2, *shape)))

    def work(first: int, last: int, _: None) -> None:
        sample_planes(source, planes.rows, planes.sets, places, height, width, high, low, first, last)

    if samples.size:
        parallel.run_blocks(work, len(planes.rows), 1, lambda: None)
    return samples


def costs(
    loop: PointLoop,
    planes: np.ndarray,
    rows: np.ndarray,
    points: np.ndarray,
    targets: np.ndarray,
    weights: CostWeights,
    backend: str,
) -> np.ndarray:
    """[R, N] what planes rows [R] of [..., h, w] cost with targets [N, P] at points [P, 2]."""
    result = np.zeros((len(rows), len(targets)))
    # In the order of the points, whatever the machine.
    totals = np.cumsum(targets, axis=1)[:, -1] if targets.size else np.zeros(len(targets))
    turned, kernel = np.ascontiguousarray(targets.T), point_costs(loop)
    places = locate(points[None], (planes.shape[-2], planes.shape[-1]))
    step = max(1, BLOCK_SAMPLES // max(1, len(points)))
    for start in range(0, len(rows) if targets.size else 0, step):
        some = rows[start : start + step]
        high, low = _sampled(Planes(planes, some, np.zeros_like(some)), places, backend)
        values, found = high + low, result[start : start + step]

        def work(first: int, last: int, _: None, values: np.ndarray = values, found: np.ndarray = found) -> None:
            kernel(values, turned, totals, weights, found, first, last)

        parallel.run_blocks(work, len(some), 8, lambda: None)
    return result


def compare(
    loop: PointLoop,
    planes: np.ndarray,
    gradient: np.ndarray | None,
    rows: np.ndarray,
    points: np.ndarray,
    targets: np.ndarray,
    cotangents: Cotangents,
    backend: str,
) -> PointLosses:
    """Planes rows [M] of [..., h, w] at points [M, P, 2] against targets [2, M, P]; their gradient is written."""
    size = (planes.shape[-2], planes.shape[-1])
    places = locate(points, size)
    order = places.sorted(points, size)
    places = places.taken(order)
    ordered = np.stack([np.take_along_axis(part, order, 1) for part in targets])
    logits = _sampled(Planes(planes, rows, np.arange(len(rows))), places, backend)
    totals = [as_pair(exact_sum(of_mask)) for of_mask in ordered.transpose(1, 0, 2)]
    samples = Samples(*logits, *ordered, np.array(totals).reshape(-1, 2))
    slopes = Slopes(*np.empty((3, *(order.shape if gradient is not None else (len(rows), 0)))))
    losses = _losses(loop, samples, cotangents, slopes)
    if gradient is not None:
        _spread(slopes, places, rows, gradient, backend)
    return losses


def _losses(loop: PointLoop, samples: Samples, cotangents: Cotangents, slopes: Slopes) -> PointLosses:
    masks, points = samples.logits.shape
    special, dice, limbs = np.empty(masks), np.empty(masks), np.zeros((masks, LIMBS), np.int64)
    kernel = point_losses(loop)

    def work(first: int, last: int, row: Scratch) -> None:
        kernel(samples, cotangents, slopes, limbs, special, dice, row, first, last)

    if masks:
        parallel.run_blocks(work, masks, 1, lambda: new_scratch(points))
    sums = [Fraction(accumulated(limbs[m]), UNITS) if special[m] == 0.0 else special[m] for m in range(masks)]
    return PointLosses(sums, dice)


def _spread(slopes: Slopes, places: Places, rows: np.ndarray, gradient: np.ndarray, backend: str) -> None:
    if runs_on_gpu(backend):
        from refloss.kernels.points import gpu

        gpu.spread(slopes, places, rows, gradient)
        return
    height, width = gradient.shape[-2:]
    destination = elements_of(gradient)

    def work(first: int, last: int, _: None) -> None:
        spread_points(slopes, places, rows, height, width, destination, first, last)

    if len(rows):
        parallel.run_blocks(work, len(rows), 1, lambda: None)
