"""Masks on a GPU: the passes of kernels.masks.loop over the pixels of many masks; several blocks take a part of each.

A mask's sums have to be known before its gradient, so what the gradient is made of is kept from one kernel to the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import cuda, int64

from refloss import jit
from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.accumulate import Totals, add_value, block_totals, exact, merge, new_state, new_totals
from refloss.kernels.gpu.block import block_sum
from refloss.kernels.gpu.jit import gpu_function, gpu_kernel
from refloss.kernels.gpu.runtime import LARGEST_BLOCK
from refloss.kernels.resample import gpu as resample
from refloss.kernels.rows import row_offset
from refloss.numerics.formats import read, store
from refloss.numerics.pairs import rounded
from refloss.numerics.sums import grid_counts, grid_total, limbs_pair

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.kernels.masks.loop import DiceLoop, MaskLoop, Masks
    from refloss.numerics.exact import Exact

_BLOCK = 256
# Pixels that a thread should at least have to work on.
_PIXELS = 16
_PIXELS_AT_A_TIME = 1 << 25


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


class MaskDice(NamedTuple):
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
    state, of_block = new_state(), block_totals()
    for i in range(_first(parts), values.shape[1], parts * cuda.blockDim.x):
        state = add_value(values[mask, i], state, of_block)
    merge(state, of_block, Totals(totals.limbs[mask], totals.special[mask]))


class MaskKernels(NamedTuple):
    """The kernels of a description."""

    compare_pixels: Any
    finish_masks: Any
    combine_pixels: Any


@jit.once
def _mask_kernels(loop: MaskLoop) -> MaskKernels:
    pixel, dice_of, slope_of = loop.pixel, loop.dice, loop.slope

    @gpu_kernel
    def compare_pixels(pixels, masks, sums, parts):
        """What each pixel yields, and the counts of the probabilities."""
        scratch = cuda.shared.array(LARGEST_BLOCK, int64)
        mask = cuda.blockIdx.x // parts
        coarse, fine = np.int64(0), np.int64(0)
        for i in range(_first(parts), masks.targets.shape[1], parts * cuda.blockDim.x):
            loss, slope, flatness, missed, share = pixel(pixels.slopes[mask, i], np.float64(masks.targets[mask, i]))
            pixels.losses[mask, i], pixels.slopes[mask, i] = loss, slope
            pixels.flatness[mask, i], pixels.missed[mask, i] = flatness, missed
            # NaN has no count on a grid, and the sum of what is missed knows of it.
            counts = grid_counts(share if share == share else 0.0)
            coarse += counts[0]
            fine += counts[1]
        coarse, fine = block_sum(coarse, scratch), block_sum(fine, scratch)
        if cuda.threadIdx.x == 0:
            cuda.atomic.add(sums.counts, (mask, 0), coarse)
            cuda.atomic.add(sums.counts, (mask, 1), fine)

    @gpu_kernel
    def finish_masks(masks, sums, dice):
        for mask in range(cuda.grid(1), masks.target_totals.size, cuda.gridsize(1)):
            share = grid_total(sums.counts[mask, 0], sums.counts[mask, 1], 0)
            missed, special = limbs_pair(sums.missed.limbs[mask]), _special(sums.missed.special[mask])
            loss, constant, factor = dice_of(share, masks.target_totals[mask], missed, masks.of_dice, special)
            dice.loss[mask], dice.constant[mask], dice.factor[mask] = loss, constant, factor

    @gpu_kernel
    def combine_pixels(pixels, masks, dice):
        """The derivative of both losses where the focal one's was."""
        size = masks.targets.shape[1]
        for index in range(cuda.grid(1), masks.targets.size, cuda.gridsize(1)):
            mask, i = index // size, index % size
            slope, target = pixels.slopes[mask, i], np.float64(masks.targets[mask, i])
            constant, factor = dice.constant[mask], dice.factor[mask]
            value = slope_of(slope, pixels.flatness[mask, i], target, masks.of_focal, constant, factor)
            pixels.slopes[mask, i] = value

    return MaskKernels(compare_pixels, finish_masks, combine_pixels)


class DiceKernels(NamedTuple):
    """The kernels of a description."""

    split_elements: Any
    finish: Any
    gradients: Any


@jit.once
def _dice_kernels(loop: DiceLoop) -> DiceKernels:
    probability_of, terms_of, slopes_of = loop.probability, loop.terms, loop.slopes

    @gpu_kernel
    def split_elements(inputs, targets, first, elements):
        """What the elements of masks first, first + 1, ... yield."""
        masks, size = elements.target.shape
        for index in range(cuda.grid(1), masks * size, cuda.gridsize(1)):
            offset, mask, i = first * size + index, index // size, index % size
            x = read(inputs.memory, row_offset(inputs, offset))
            t = read(targets.memory, row_offset(targets, offset))
            elements.probability[mask, i], elements.missed[mask, i] = probability_of(x, t)
            elements.target[mask, i] = t

    @gpu_kernel
    def finish(totals, cotangents, dice):
        for mask in range(cuda.grid(1), dice.loss.size, cuda.gridsize(1)):
            share, missed, target = totals
            whole = limbs_pair(share.limbs[mask]), limbs_pair(target.limbs[mask])
            bottom, loss = terms_of(whole[0], whole[1], limbs_pair(missed.limbs[mask]))
            special = _special(missed.special[mask])
            dice.loss[mask] = rounded(loss) + special
            dice.terms[mask, 0], dice.terms[mask, 1] = bottom
            dice.terms[mask, 2], dice.terms[mask, 3] = loss
            dice.cotangent[mask] = read(cotangents[0], mask) + special

    @gpu_kernel
    def gradients(inputs, targets, first, dice, size, gradient, target_gradient, wanted):
        """The gradients of masks first, first + 1, ..."""
        for index in range(cuda.grid(1), dice.loss.size * size, cuda.gridsize(1)):
            offset, mask = first * size + index, index // size
            x = read(inputs.memory, row_offset(inputs, offset))
            t = read(targets.memory, row_offset(targets, offset))
            bottom = dice.terms[mask, 0], dice.terms[mask, 1]
            loss = dice.terms[mask, 2], dice.terms[mask, 3]
            slope, target_slope = slopes_of(x, t, loss, bottom, dice.cotangent[mask])
            if wanted[0]:
                store(gradient.memory, row_offset(gradient, offset), slope)
            if wanted[1]:
                store(target_gradient.memory, row_offset(target_gradient, offset), target_slope)

    return DiceKernels(split_elements, finish, gradients)


def compare(
    loop: MaskLoop, planes: np.ndarray, gradient: np.ndarray | None, masks: Masks
) -> tuple[list[Exact], np.ndarray]:
    """The focal losses and the dice losses of pairs; the gradient of their planes is written."""
    written = None if gradient is None else runtime.Gradient(gradient, initial=True)
    focal: list[Exact] = []
    count, targets = len(masks.rows), masks.targets
    losses = np.empty(count)
    for part in _batches(count, targets[0].size if count else 0):
        of_part = masks._replace(rows=masks.rows[part], targets=targets[part], target_totals=masks.target_totals[part])
        focal += _compare(loop, planes, None if written is None else written.array, of_part, losses[part])
    if written is not None:
        written.finish()
    return focal, losses


def _compare(
    loop: MaskLoop, planes: np.ndarray, gradient: np.ndarray | None, masks: Masks, losses: np.ndarray
) -> list[Exact]:
    """Some pairs: their focal losses; into losses the dice losses."""
    kernels, shape = _mask_kernels(loop), masks.targets.shape
    count, size = shape[0], shape[1] * shape[2]
    resized = resample.new_planes(shape)
    resample.resample_planes(planes, masks.rows, resized)
    pixels = Pixels(resized.reshape(count, size), *(_scratch(count, size) for _ in Pixels._fields[1:]))
    focal = new_totals(count)
    # A mask with an undefined loss has neither of the two.
    sums = Sums(runtime.Array.of(np.zeros((count, 2), np.int64)), Totals(new_totals(count).limbs, focal.special))
    dice = MaskDice(*(runtime.Array(count, np.float64) for _ in MaskDice._fields))
    uploaded = runtime.upload(masks._replace(targets=masks.targets.reshape(count, size)))
    parts = _parts(size)
    runtime.launch(kernels.compare_pixels, count * parts, _BLOCK, pixels, uploaded, sums, parts)
    runtime.launch(_add_masks, count * parts, _BLOCK, (pixels.losses,), focal, parts)
    runtime.launch(_add_masks, count * parts, _BLOCK, (pixels.missed,), sums.missed, parts)
    runtime.launch(kernels.finish_masks, runtime.grid(count, _BLOCK), _BLOCK, uploaded, sums, dice)
    if gradient is not None:
        runtime.launch(kernels.combine_pixels, runtime.grid(count * size, _BLOCK), _BLOCK, pixels, uploaded, dice)
        resample.spread_planes(resized, masks.rows, gradient)
    dice.loss.download(losses)
    return [exact(*totals) for totals in zip(focal.limbs.download(), focal.special.download(), strict=True)]


def dice(
    loop: DiceLoop,
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
    arrays = [inputs, targets, *(inputs if buffer is None else buffer.array for buffer in written)]
    rows = [runtime.upload(runtime.rows_on_device(array, array.ndim)) for array in arrays]
    for part in _batches(masks, size):
        wanted = tuple(buffer is not None for buffer in written)
        losses[part] = _dice(_dice_kernels(loop), rows, part, size, each[part], wanted)
    for buffer in written:
        if buffer is not None:
            buffer.finish()
    return losses


def _dice(
    kernels: DiceKernels, rows: list[Any], part: slice, size: int, cotangents: np.ndarray, wanted: tuple[bool, ...]
) -> np.ndarray:
    """The losses of some masks, and the gradients that are wanted."""
    masks, parts = part.stop - part.start, _parts(size)
    elements = Elements(*(_scratch(masks, size) for _ in Elements._fields))
    special = new_totals(masks).special
    totals = [Totals(new_totals(masks).limbs, special) for _ in elements]
    shapes = Dice((masks,), (masks, 4), (masks,))
    of_masks = Dice(*(runtime.Array(shape, np.float64) for shape in shapes))
    blocks = runtime.grid(masks * size, _BLOCK)
    runtime.launch(kernels.split_elements, blocks, _BLOCK, *rows[:2], part.start, elements)
    for values, sums in zip(elements, totals, strict=True):
        runtime.launch(_add_masks, masks * parts, _BLOCK, (values,), sums, parts)
    runtime.launch(kernels.finish, runtime.grid(masks, _BLOCK), _BLOCK, tuple(totals), (cotangents,), of_masks)
    if any(wanted):
        runtime.launch(kernels.gradients, blocks, _BLOCK, *rows[:2], part.start, of_masks, size, *rows[2:], wanted)
    losses: np.ndarray = of_masks.loss.download()
    return losses


def _batches(masks: int, size: int) -> Iterator[slice]:
    """Masks of size pixels, as many at a time as _PIXELS_AT_A_TIME allows."""
    step = max(1, _PIXELS_AT_A_TIME // max(1, size))
    for first in range(0, masks, step):
        yield slice(first, min(first + step, masks))


def _parts(size: int) -> int:
    """How many blocks take a mask of a size."""
    return runtime.grid(-(-size // _PIXELS), _BLOCK)


def _scratch(masks: int, size: int) -> runtime.Array:
    return runtime.Array((masks, size), np.float64)
