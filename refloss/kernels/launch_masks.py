"""Masks on the CPU: from arrays to kernels and back."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from refloss import parallel
from refloss.kernels.launch_cross_entropy import divided
from refloss.kernels.masks import Scratch, Task, dice_masks, mask_pairs
from refloss.kernels.resample import axis
from refloss.kernels.rows import elements_of
from refloss.numerics.sums import LIMBS, UNITS, accumulated, exact_sum, rounded

__all__ = ["MaskLosses", "compare", "dice", "divided", "total"]


class MaskLosses(NamedTuple):
    """Of every pair: the exact sum of a mask's focal losses, NaN where undefined, and its dice loss."""

    focal: list[Fraction | float]
    dice: np.ndarray


def compare(
    planes: np.ndarray,
    gradient: np.ndarray | None,
    rows: np.ndarray,
    targets: np.ndarray,
    *,
    of_focal: float,
    of_dice: float,
) -> MaskLosses:
    """Planes rows [P] of [..., h, w], resampled, against targets [P, H, W]; the gradient of these planes is written."""
    task = new_task(planes, rows, targets, of_focal=of_focal, of_dice=of_dice)
    source = elements_of(planes)
    destination = source if gradient is None else elements_of(gradient)
    focal, dice = np.empty(len(rows)), np.empty(len(rows))
    limbs = np.zeros((len(rows), LIMBS), np.int64)

    def scratch() -> Scratch:
        return Scratch(
            line=np.empty(task.width),
            wide=np.empty((task.height, targets.shape[2])),
            pixels=np.empty((4, targets.shape[2])),
            slopes=np.empty(targets.shape[1:]),
            flatness=np.empty(targets.shape[1:]),
        )

    def work(first: int, last: int, buffers: Scratch) -> None:
        with_gradient = gradient is not None
        mask_pairs(source, destination, task, buffers, focal, dice, limbs, with_gradient, first, last)

    parallel.run_blocks(work, len(rows), 1, scratch)
    sums = [Fraction(accumulated(limbs[p]), UNITS) if focal[p] == 0.0 else focal[p] for p in range(len(rows))]
    return MaskLosses(sums, dice)


def new_task(planes: np.ndarray, rows: np.ndarray, targets: np.ndarray, *, of_focal: float, of_dice: float) -> Task:
    """What compare is asked for."""
    height, width = planes.shape[-2:]
    return Task(
        rows=rows,
        targets=targets,
        target_totals=_totals(targets),
        vertical=axis(height, targets.shape[1]),
        horizontal=axis(width, targets.shape[2]),
        height=height,
        width=width,
        of_focal=of_focal,
        of_dice=of_dice,
    )


def _totals(targets: np.ndarray) -> np.ndarray:
    """The sum of each target."""
    if targets.dtype == np.uint8:
        return np.asarray(targets.sum(axis=(1, 2), dtype=np.int64), np.float64)
    return np.array([rounded(exact_sum(target)) for target in targets], np.float64)


def dice(
    inputs: np.ndarray,
    targets: np.ndarray,
    cotangents: np.ndarray,
    gradient: np.ndarray | None,
    target_gradient: np.ndarray | None,
) -> np.ndarray:
    """[N] the dice loss of each mask of [N, ...]; gradients are written for cotangents [N] or [1]."""
    masks = len(inputs)
    losses = np.empty(masks)
    arrays = [inputs if buffer is None else buffer for buffer in (inputs, targets, gradient, target_gradient)]
    rows = [elements_of(array) for array in arrays]
    wanted = (gradient is not None, target_gradient is not None)
    count = inputs.size // max(masks, 1)

    def work(first: int, last: int, _: None) -> None:
        dice_masks(rows[0], rows[1], count, cotangents, rows[2], rows[3], wanted, losses, first, last)

    parallel.run_blocks(work, masks, 1, lambda: None)
    return losses


def total(losses: np.ndarray, divisor: float) -> np.float64:
    """The sum of losses over a divisor."""
    return divided(exact_sum(losses), Fraction(divisor))
