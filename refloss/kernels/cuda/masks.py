"""Masks on a GPU: the passes of kernels.masks over the pixels of many masks; several blocks take a part of each.

A mask's sums have to be known before its gradient, so what the gradient is made of is kept from one kernel to the next.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import cuda, int64

from refloss.kernels import launch_masks as host
from refloss.kernels.cuda import resample, runtime
from refloss.kernels.cuda.accumulate import Totals, add_value, block_totals, exact, merge, new_state, new_totals
from refloss.kernels.cuda.block import block_sum
from refloss.kernels.cuda.gpu_jit import gpu_function, gpu_kernel
from refloss.kernels.cuda.runtime import LARGEST_BLOCK
from refloss.kernels.launch_masks import MaskLosses, divided, total
from refloss.kernels.masks import Task, dice_slopes, dice_terms, mask_dice, pixel, pixel_slope, probability
from refloss.kernels.rows import row_offset
from refloss.numerics.formats import read, store
from refloss.numerics.pairs import rounded
from refloss.numerics.sums import grid_counts, grid_total, limbs_pair

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MaskLosses", "compare", "dice", "divided", "total"]

_BLOCK = 256
# Pixels that a thread should at least have to work on.
_PIXELS = 16
# Pixels of as many masks as are on the GPU at a time.
_ROOM = 1 << 25


class Pixels(NamedTuple):
    """Of each pixel of P masks, [P, n] float64."""

    slopes: Any  # first the logits, then the derivative of the focal loss, then of both
    flatness: Any  # p·(1 − p)
    losses: Any
    missed: Any


class Sums(NamedTuple):
    """Of each mask."""

    counts: Any  # [P, 2] of its probabilities on both grids
    missed: Totals


class Found(NamedTuple):
    """Of each mask, [P] float64: its dice loss, and constant and factor of its derivative."""

    loss: Any
    constant: Any
    factor: Any


class Elements(NamedTuple):
    """Of each element of N masks, [N, n] float64."""

    probability: Any
    missed: Any
    target: Any


class Dice(NamedTuple):
    """Of each mask, float64: what its gradient is made of."""

    loss: Any  # [N]
    terms: Any  # [N, 4] D and S/D as pairs
    cotangent: Any  # [N]


@gpu_function
def _special(counts):
    """The sum of what was not finite, from how often +inf, −inf and NaN were added."""
    if counts[2] > 0 or (counts[0] > 0 and counts[1] > 0):
        return np.nan
    if counts[0] > 0:
        return np.inf
    return -np.inf if counts[1] > 0 else 0.0


@gpu_function
def _first(parts):
    """The first element of a mask that a thread takes, where parts blocks take a mask."""
    return cuda.blockIdx.x % parts * cuda.blockDim.x + cuda.threadIdx.x


@gpu_kernel
def _add_masks(masks, totals, parts):
    """The exact sums of the rows of values [P, n]."""
    (values,) = masks
    mask = cuda.blockIdx.x // parts
    state, own = new_state(), block_totals()
    for i in range(_first(parts), values.shape[1], parts * cuda.blockDim.x):
        state = add_value(values[mask, i], state, own)
    merge(state, own, Totals(totals.limbs[mask], totals.special[mask]))


@gpu_kernel
def _compare_pixels(pixels, task, sums, parts):
    """What each pixel yields, and the counts of the probabilities."""
    room = cuda.shared.array(LARGEST_BLOCK, int64)
    mask = cuda.blockIdx.x // parts
    coarse, fine = np.int64(0), np.int64(0)
    for i in range(_first(parts), task.targets.shape[1], parts * cuda.blockDim.x):
        loss, slope, flatness, missed, share = pixel(pixels.slopes[mask, i], np.float64(task.targets[mask, i]))
        pixels.losses[mask, i], pixels.slopes[mask, i] = loss, slope
        pixels.flatness[mask, i], pixels.missed[mask, i] = flatness, missed
        # NaN has no place on a grid, and the sum of what is missed knows of it.
        counts = grid_counts(share if share == share else 0.0)
        coarse += counts[0]
        fine += counts[1]
    coarse, fine = block_sum(coarse, room), block_sum(fine, room)
    if cuda.threadIdx.x == 0:
        cuda.atomic.add(sums.counts, (mask, 0), coarse)
        cuda.atomic.add(sums.counts, (mask, 1), fine)


@gpu_kernel
def _finish_masks(task, sums, found):
    for mask in range(cuda.grid(1), task.target_totals.size, cuda.gridsize(1)):
        share = grid_total(sums.counts[mask, 0], sums.counts[mask, 1], 0)
        missed, special = limbs_pair(sums.missed.limbs[mask]), _special(sums.missed.special[mask])
        loss, constant, factor = mask_dice(share, task.target_totals[mask], missed, task.of_dice, special)
        found.loss[mask], found.constant[mask], found.factor[mask] = loss, constant, factor


@gpu_kernel
def _combine_pixels(pixels, task, found):
    """The derivative of both losses in the place of the focal one's."""
    size = task.targets.shape[1]
    for index in range(cuda.grid(1), task.targets.size, cuda.gridsize(1)):
        mask, i = index // size, index % size
        slope, target = pixels.slopes[mask, i], np.float64(task.targets[mask, i])
        constant, factor = found.constant[mask], found.factor[mask]
        value = pixel_slope(slope, pixels.flatness[mask, i], target, task.of_focal, constant, factor)
        pixels.slopes[mask, i] = value


@gpu_kernel
def _split_elements(inputs, targets, first, elements):
    """What the elements of masks first, first + 1, ... yield."""
    masks, size = elements.target.shape
    for index in range(cuda.grid(1), masks * size, cuda.gridsize(1)):
        place, mask, i = first * size + index, index // size, index % size
        x = read(inputs.memory, row_offset(inputs, place))
        t = read(targets.memory, row_offset(targets, place))
        elements.probability[mask, i], elements.missed[mask, i] = probability(x, t)
        elements.target[mask, i] = t


@gpu_kernel
def _finish_dice(totals, cotangents, found):
    for mask in range(cuda.grid(1), found.loss.size, cuda.gridsize(1)):
        share, missed, target = totals
        whole = limbs_pair(share.limbs[mask]), limbs_pair(target.limbs[mask])
        bottom, loss = dice_terms(whole[0], whole[1], limbs_pair(missed.limbs[mask]))
        special = _special(missed.special[mask])
        found.loss[mask] = rounded(loss) + special
        found.terms[mask, 0], found.terms[mask, 1] = bottom
        found.terms[mask, 2], found.terms[mask, 3] = loss
        found.cotangent[mask] = read(cotangents[0], mask) + special


@gpu_kernel
def _dice_gradients(inputs, targets, first, found, size, gradient, target_gradient, wanted):
    """The gradients of masks first, first + 1, ..."""
    for index in range(cuda.grid(1), found.loss.size * size, cuda.gridsize(1)):
        place, mask = first * size + index, index // size
        x = read(inputs.memory, row_offset(inputs, place))
        t = read(targets.memory, row_offset(targets, place))
        bottom = found.terms[mask, 0], found.terms[mask, 1]
        loss = found.terms[mask, 2], found.terms[mask, 3]
        slope, target_slope = dice_slopes(x, t, loss, bottom, found.cotangent[mask])
        if wanted[0]:
            store(gradient.memory, row_offset(gradient, place), slope)
        if wanted[1]:
            store(target_gradient.memory, row_offset(target_gradient, place), target_slope)


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
    task = host.new_task(planes, rows, targets, of_focal=of_focal, of_dice=of_dice)
    written = None if gradient is None else runtime.Gradient(gradient, initial=True)
    focal: list[Fraction | float] = []
    losses = np.empty(len(rows))
    for part in _batches(len(rows), targets[0].size if len(targets) else 0):
        of_part = task._replace(rows=rows[part], targets=targets[part], target_totals=task.target_totals[part])
        focal += _compare(planes, None if written is None else written.array, of_part, losses[part])
    if written is not None:
        written.finish()
    return MaskLosses(focal, losses)


def _compare(planes: np.ndarray, gradient: np.ndarray | None, task: Task, losses: np.ndarray) -> list[Fraction | float]:
    """Some pairs: their focal losses; into losses the dice losses."""
    shape = task.targets.shape
    masks, size = shape[0], shape[1] * shape[2]
    resized = resample.new_planes(shape)
    resample.resample_planes(planes, task.rows, resized)
    pixels = Pixels(resized.reshape(masks, size), *(_room(masks, size) for _ in Pixels._fields[1:]))
    focal = new_totals(masks)
    # A mask with an undefined loss has neither of the two.
    sums = Sums(runtime.Array.of(np.zeros((masks, 2), np.int64)), Totals(new_totals(masks).limbs, focal.special))
    found = Found(*(runtime.Array(masks, np.float64) for _ in Found._fields))
    uploaded = runtime.upload(task._replace(targets=task.targets.reshape(masks, size)))
    parts = _parts(size)
    runtime.launch(_compare_pixels, masks * parts, _BLOCK, pixels, uploaded, sums, parts)
    runtime.launch(_add_masks, masks * parts, _BLOCK, (pixels.losses,), focal, parts)
    runtime.launch(_add_masks, masks * parts, _BLOCK, (pixels.missed,), sums.missed, parts)
    runtime.launch(_finish_masks, runtime.grid(masks, _BLOCK), _BLOCK, uploaded, sums, found)
    if gradient is not None:
        runtime.launch(_combine_pixels, runtime.grid(masks * size, _BLOCK), _BLOCK, pixels, uploaded, found)
        resample.spread_planes(resized, task.rows, gradient)
    found.loss.download(losses)
    return [exact(*totals) for totals in zip(focal.limbs.download(), focal.special.download(), strict=True)]


def dice(
    inputs: np.ndarray,
    targets: np.ndarray,
    cotangents: np.ndarray,
    gradient: np.ndarray | None,
    target_gradient: np.ndarray | None,
) -> np.ndarray:
    """[N] the dice loss of each mask of [N, ...]; gradients are written for cotangents [N] or [1]."""
    masks = len(inputs)
    size = inputs.size // max(masks, 1)
    losses = np.empty(masks)
    each = np.broadcast_to(cotangents, masks)
    written = [None if buffer is None else runtime.Gradient(buffer) for buffer in (gradient, target_gradient)]
    arrays = [inputs, targets, *(inputs if own is None else own.array for own in written)]
    rows = [runtime.upload(runtime.rows_on_device(array, array.ndim)) for array in arrays]
    for part in _batches(masks, size):
        losses[part] = _dice(rows, part, size, each[part], tuple(own is not None for own in written))
    for own in written:
        if own is not None:
            own.finish()
    return losses


def _dice(rows: list[Any], part: slice, size: int, cotangents: np.ndarray, wanted: tuple[bool, ...]) -> np.ndarray:
    """The losses of some masks, and the gradients that are wanted."""
    masks, parts = part.stop - part.start, _parts(size)
    elements = Elements(*(_room(masks, size) for _ in Elements._fields))
    special = new_totals(masks).special
    totals = [Totals(new_totals(masks).limbs, special) for _ in elements]
    shapes = Dice((masks,), (masks, 4), (masks,))
    found = Dice(*(runtime.Array(shape, np.float64) for shape in shapes))
    blocks = runtime.grid(masks * size, _BLOCK)
    runtime.launch(_split_elements, blocks, _BLOCK, *rows[:2], part.start, elements)
    for values, own in zip(elements, totals, strict=True):
        runtime.launch(_add_masks, masks * parts, _BLOCK, (values,), own, parts)
    runtime.launch(_finish_dice, runtime.grid(masks, _BLOCK), _BLOCK, tuple(totals), (cotangents,), found)
    if any(wanted):
        runtime.launch(_dice_gradients, blocks, _BLOCK, *rows[:2], part.start, found, size, *rows[2:], wanted)
    losses: np.ndarray = found.loss.download()
    return losses


def _batches(masks: int, size: int) -> Iterator[slice]:
    """Masks of size pixels, as many at a time as there is room for."""
    step = max(1, _ROOM // max(1, size))
    for first in range(0, masks, step):
        yield slice(first, min(first + step, masks))


def _parts(size: int) -> int:
    """How many blocks take a mask of a size."""
    return runtime.grid(-(-size // _PIXELS), _BLOCK)


def _room(masks: int, size: int) -> runtime.Array:
    return runtime.Array((masks, size), np.float64)
