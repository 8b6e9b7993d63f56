"""Masks: from arrays to loops and back, and which device they run on."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from refloss import parallel
from refloss.dispatch import runs_on_gpu
from refloss.kernels.masks.loop import (
    DiceGradient,
    DiceLoop,
    MaskLoop,
    Masks,
    Row,
    Scratch,
    Targets,
    dice_masks,
    mask_pairs,
    new_row,
    new_scratch,
)
from refloss.kernels.resample.loop import axis, inverse
from refloss.kernels.rows import elements_of
from refloss.numerics.exact import Exact, as_pair, exact_sum
from refloss.numerics.settled import PRECISIONS, UNWANTED
from refloss.numerics.sums import LIMBS, UNITS, accumulated

# Units of 2^-53 that a pixel's part of a gradient is off by, but for what grows with |x| and with the number of pixels.
_OF_PIXELS = 24


class MaskLosses(NamedTuple):
    """Of every pair: the exact sum of a mask's focal losses, NaN where undefined, and its dice loss."""

    focal: list[Exact]
    dice: np.ndarray


def compare(
    loop: MaskLoop,
    planes: np.ndarray,
    gradient: np.ndarray | None,
    rows: np.ndarray,
    targets: np.ndarray,
    *,
    of_focal: tuple[float, float],
    of_dice: tuple[float, float],
    backend: str,
) -> MaskLosses:
    """Planes rows [P] of [..., h, w], resampled, against targets [P, H, W]; the gradient of these planes is written."""
    height, width = planes.shape[-2:]
    vertical, horizontal = axis(height, targets.shape[1]), axis(width, targets.shape[2])
    masks = Masks(
        rows=rows,
        targets=targets,
        target_totals=_totals(targets),
        vertical=vertical,
        horizontal=horizontal,
        scale=inverse(vertical, horizontal),
        height=height,
        width=width,
        of_focal=of_focal,
        of_dice=of_dice,
        roundings=float(_OF_PIXELS + vertical.reach + horizontal.reach),
        # log 2 < 0.7. Not by the machine's logarithm: what is computed again must not depend on it.
        spread=1.0 + 0.7 * math.prod(targets.shape[1:]).bit_length(),
        precision=UNWANTED if gradient is None else PRECISIONS[gradient.dtype],
    )
    if runs_on_gpu(backend):
        from refloss.kernels.masks import gpu

        return MaskLosses(*gpu.compare(loop, planes, gradient, masks))
    return _compare(loop, planes, gradient, masks)


def _compare(loop: MaskLoop, planes: np.ndarray, gradient: np.ndarray | None, masks: Masks) -> MaskLosses:
    size = masks.targets.shape[1], masks.targets.shape[2]
    source = elements_of(planes)
    destination = source if gradient is None else elements_of(gradient)
    count, nothing = len(masks.rows), (0, *masks.targets.shape[1:])
    targets = Targets(np.empty(nothing, np.uint8), masks.targets)
    if masks.targets.dtype == np.uint8:
        targets = Targets(masks.targets, np.empty(nothing))
    masks = masks._replace(targets=targets)
    focal, dice = np.empty(count), np.empty(count)
    limbs = np.zeros((count, LIMBS), np.int64)
    kernel, with_gradient = mask_pairs(loop), gradient is not None

    def work(first: int, last: int, buffers: Scratch) -> None:
        kernel(source, destination, masks, buffers, focal, dice, limbs, with_gradient, first, last)

    parallel.run_blocks(work, count, 1, lambda: new_scratch(masks.height, masks.width, size))
    sums = [Fraction(accumulated(limbs[p]), UNITS) if focal[p] == 0.0 else focal[p] for p in range(count)]
    return MaskLosses(sums, dice)


def _totals(targets: np.ndarray) -> np.ndarray:
    """The sum of each target, a pair."""
    totals = np.zeros((len(targets), 2))
    if targets.dtype == np.uint8:
        totals[:, 0] = [np.count_nonzero(target) for target in targets]
    else:
        for p, target in enumerate(targets):
            totals[p] = as_pair(exact_sum(target))
    return totals


def dice(
    loop: DiceLoop,
    inputs: np.ndarray,
    targets: np.ndarray,
    cotangents: np.ndarray,
    gradient: np.ndarray | None,
    target_gradient: np.ndarray | None,
    backend: str,
) -> np.ndarray:
    """[N] the dice loss of each mask of [N, ...]; gradients are written for cotangents [N, 2] or [1, 2], pairs."""
    if runs_on_gpu(backend):
        from refloss.kernels.masks import gpu

        return gpu.dice(loop, inputs, targets, cotangents, gradient, target_gradient)
    masks = len(inputs)
    losses, count = np.empty(masks), inputs.size // max(masks, 1)
    of_inputs, of_targets = _gradient(gradient, inputs), _gradient(target_gradient, targets)
    kernel, rows = dice_masks(loop), (elements_of(inputs), elements_of(targets))

    def work(first: int, last: int, row: Row) -> None:
        kernel(*rows, cotangents, of_inputs, of_targets, losses, row, first, last)

    parallel.run_blocks(work, masks, 1, lambda: new_row(count))
    return losses


def _gradient(gradient: np.ndarray | None, like: np.ndarray) -> DiceGradient:
    """Where a gradient goes; without one, a kernel still wants an argument of its type, and nothing is unsettled."""
    wanted = like if gradient is None else gradient
    precision = PRECISIONS[wanted.dtype] if gradient is not None else UNWANTED
    return DiceGradient(elements_of(wanted), precision, gradient is not None)
