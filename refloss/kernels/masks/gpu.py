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
from refloss.kernels.masks.loop import DiceGradient
from refloss.kernels.masks.refine import accurate_element, is_finished, pixel_logit, sum_roundings, whole
from refloss.kernels.resample import gpu as resample
from refloss.kernels.resample.gpu import gathered
from refloss.kernels.resample.loop import scaled_total
from refloss.kernels.rows import row_offset
from refloss.numerics.formats import read, store
from refloss.numerics.pairs import rounded
from refloss.numerics.settled import PRECISIONS, UNWANTED, is_settled, settled
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
    missed: Any  # then what the derivative may be off by


class Sums(NamedTuple):
    """Of each mask."""

    counts: Any  # [P, 2] of its probabilities on both grids
    missed: Totals


class MaskDice(NamedTuple):
    """Of each mask, [P] float64: its dice loss, and constant and factor of its derivative."""

    loss: Any
    constant: Any
    factor: Any
    sums: Any  # [P, 4] D and Σ missed, pairs


class Again(NamedTuple):
    """What elements of a gradient are computed from again."""

    wide: Any  # [2, P, h, W] planes, resampled along their lines, pairs
    sums: Any  # [P, 4] D and Σ missed, pairs
    known: Any  # [P, 4] the same from accurate probabilities


class Shares(NamedTuple):
    """Of each pixel, [P, n] float64; 0 in masks of which nothing is computed again."""

    probability: Any
    probability_low: Any
    missed: Any
    missed_low: Any


class Elements(NamedTuple):
    """Of each element of N masks, [N, n] float64."""

    probability: Any
    probability_low: Any
    missed: Any
    missed_low: Any
    target: Any


# The sums that the fields of Elements are parts of: of p, of what is missed, of the targets.
_SUM_OF = (0, 0, 1, 1, 2)


class Dice(NamedTuple):
    """Of each mask, float64: its loss, what its gradient is made of, and whether that leaves some of it unsettled."""

    loss: Any  # [N]
    sums: Any  # [N, 4] D and Σ missed, pairs
    factors: Any  # [N, 4] from inexact sums, 1 − ℓ and c/D, pairs
    cotangent: Any  # [N, 2]
    unsettled: Any  # [N] int64


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


@gpu_function
def _gathered(handed, masks, mask, i, j):
    """An element of a gradient, and its bound, from what the pixels hand back to lines."""
    values, bounds = handed
    value = scaled_total(gathered(values[mask, i], masks.horizontal, j), masks.scale)
    return value, gathered(bounds[mask, i], masks.horizontal, j)


@gpu_function
def _store(planes, masks, mask, i, j, value):
    element = (masks.rows[mask] * masks.height + i) * masks.width + j
    store(planes.memory, row_offset(planes, element), value)


@gpu_kernel
def _narrow(handed, masks, all_settled, planes):
    """The gradients of planes, as float64 has them; no mask is known to have an element that is not settled."""
    height, width = masks.height, masks.width
    for index in range(cuda.grid(1), all_settled.size * height * width, cuda.gridsize(1)):
        j, i, mask = index % width, index // width % height, index // width // height
        _store(planes, masks, mask, i, j, _gathered(handed, masks, mask, i, j)[0])
        if i == 0 and j == 0:
            all_settled[mask] = 1


@gpu_kernel
def _finish_shares(totals, masks, known):
    """D and what is missed of each mask, pairs, from accurate probabilities."""
    share, missed = totals
    for mask in range(cuda.grid(1), masks.rows.size, cuda.gridsize(1)):
        target_total = masks.target_totals[mask, 0], masks.target_totals[mask, 1]
        known[mask, 0], known[mask, 1] = whole(limbs_pair(share.limbs[mask]), target_total)
        known[mask, 2], known[mask, 3] = limbs_pair(missed.limbs[mask])


class MaskKernels(NamedTuple):
    """The kernels of a description."""

    compare_pixels: Any
    finish_masks: Any
    combine_pixels: Any
    share_pixels: Any
    settle: Any


@jit.once
def _mask_kernels(loop: MaskLoop) -> MaskKernels:
    pixel, dice_of, slope_of = loop.pixel, loop.dice, loop.slope
    share_of, element_of = loop.share, accurate_element(loop)

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
        for mask in range(cuda.grid(1), masks.rows.size, cuda.gridsize(1)):
            share = grid_total(sums.counts[mask, 0], sums.counts[mask, 1], 0)
            missed, special = limbs_pair(sums.missed.limbs[mask]), _special(sums.missed.special[mask])
            target_total = masks.target_totals[mask, 0], masks.target_totals[mask, 1]
            loss, constant, factor = dice_of(share, target_total, missed, masks.of_dice, special)
            dice.loss[mask], dice.constant[mask], dice.factor[mask] = loss, constant, factor
            dice.sums[mask, 0], dice.sums[mask, 1] = whole(share, target_total)
            dice.sums[mask, 2], dice.sums[mask, 3] = missed

    @gpu_kernel
    def combine_pixels(pixels, masks, dice):
        """The derivative of both losses where the focal one's was, and its bound where was what is missed."""
        size = masks.targets.shape[1]
        for index in range(cuda.grid(1), masks.targets.size, cuda.gridsize(1)):
            mask, i = index // size, index % size
            slope, target = pixels.slopes[mask, i], np.float64(masks.targets[mask, i])
            constant, factor = dice.constant[mask], dice.factor[mask]
            # Where a mask is not finite, its gradient is what it is.
            roundings = masks.roundings + sum_roundings(dice.sums[mask, 0], masks)
            roundings = roundings if abs(constant) < np.inf else np.inf
            factors = masks.of_focal[0], constant, factor, roundings
            value, bound = slope_of(slope, pixels.flatness[mask, i], target, *factors)
            pixels.slopes[mask, i], pixels.missed[mask, i] = value, bound

    @gpu_kernel
    def share_pixels(again, masks, all_settled, shares):
        """The probabilities, good to pairs, of masks with unsettled elements."""
        size, across = masks.targets.shape[1], masks.horizontal.first.size
        for index in range(cuda.grid(1), masks.targets.size, cuda.gridsize(1)):
            mask, i = index // size, index % size
            share, missed = (0.0, 0.0), (0.0, 0.0)
            if all_settled[mask] == 0:
                high, low = again.wide[0, mask], again.wide[1, mask]
                logit = pixel_logit(high, low, masks, i // across, i % across)
                share, missed = share_of(logit, np.float64(masks.targets[mask, i]))
            shares.probability[mask, i], shares.probability_low[mask, i] = share
            shares.missed[mask, i], shares.missed_low[mask, i] = missed

    @gpu_kernel
    def settle(again, handed, masks, all_settled, planes, accurately):
        """Elements that float64 leaves open, from its sums, or where those leave them open, from accurate ones."""
        height, width = masks.height, masks.width
        for index in range(cuda.grid(1), all_settled.size * height * width, cuda.gridsize(1)):
            j, i, mask = index % width, index // width % height, index // width // height
            if accurately and all_settled[mask] != 0:
                continue
            value, bound = _gathered(handed, masks, mask, i, j)
            if is_finished(value, bound, masks):
                continue
            high, low, targets = again.wide[0, mask], again.wide[1, mask], masks.targets[mask]
            roundings = sum_roundings(again.sums[mask, 0], masks)
            value, done = element_of(high, low, targets, masks, again.sums[mask], roundings, i, j)
            if not done and accurately:
                value, _ = element_of(high, low, targets, masks, again.known[mask], 0.0, i, j)
            elif not done:
                all_settled[mask] = 0
            _store(planes, masks, mask, i, j, value)

    return MaskKernels(compare_pixels, finish_masks, combine_pixels, share_pixels, settle)


class DiceKernels(NamedTuple):
    """The kernels of a description."""

    split_elements: Any
    finish: Any
    gradients: Any


@jit.once
def _dice_kernels(loop: DiceLoop) -> DiceKernels:
    probability_of, terms_of, factors_of, slopes_of = loop.probability, loop.terms, loop.factors, loop.slopes
    accurate_of, accurate_slopes_of = loop.accurate, loop.accurate_slopes

    @gpu_kernel
    def split_elements(inputs, targets, first, elements, accurately):
        """What the elements of masks first, first + 1, ... yield."""
        masks, size = elements.target.shape
        for index in range(cuda.grid(1), masks * size, cuda.gridsize(1)):
            offset, mask, i = first * size + index, index // size, index % size
            x = read(inputs.memory, row_offset(inputs, offset))
            t = read(targets.memory, row_offset(targets, offset))
            if accurately:
                p, _, missed = accurate_of(x, t)
            else:
                p, missed = probability_of(x, t)
            elements.probability[mask, i], elements.probability_low[mask, i] = p
            elements.missed[mask, i], elements.missed_low[mask, i] = missed
            elements.target[mask, i] = t

    @gpu_kernel
    def finish(totals, cotangents, dice, accurately):
        for mask in range(cuda.grid(1), dice.loss.size, cuda.gridsize(1)):
            share, missed, target = totals
            whole = limbs_pair(share.limbs[mask]), limbs_pair(target.limbs[mask])
            lost = limbs_pair(missed.limbs[mask])
            bottom, loss = terms_of(whole[0], whole[1], lost)
            dice.sums[mask, 0], dice.sums[mask, 1] = bottom
            dice.sums[mask, 2], dice.sums[mask, 3] = lost
            if accurately:
                continue
            special = _special(missed.special[mask])
            given = cotangents[mask if cotangents.shape[0] > 1 else 0]
            cotangent = given[0] + special, given[1]
            dice.loss[mask] = rounded(loss) + special
            dice.cotangent[mask, 0], dice.cotangent[mask, 1] = cotangent
            kept, by = factors_of(bottom, loss, cotangent)
            dice.factors[mask, 0], dice.factors[mask, 1] = kept
            dice.factors[mask, 2], dice.factors[mask, 3] = by
            dice.unsettled[mask] = 0

    @gpu_kernel
    def gradients(inputs, targets, first, dice, size, gradient, target_gradient, accurately):
        """The gradients of masks first, first + 1, ...: those that are settled, or those that are not."""
        for index in range(cuda.grid(1), dice.loss.size * size, cuda.gridsize(1)):
            offset, mask = first * size + index, index // size
            x = read(inputs.memory, row_offset(inputs, offset))
            t = read(targets.memory, row_offset(targets, offset))
            kept, by = (dice.factors[mask, 0], dice.factors[mask, 1]), (dice.factors[mask, 2], dice.factors[mask, 3])
            slope, error, target_slope, target_error = slopes_of(x, t, kept, by)
            of_element = is_settled(slope, error, gradient.precision)
            of_target = is_settled(target_slope, target_error, target_gradient.precision)
            if accurately and not (of_element and of_target):
                bottom, missed = (dice.sums[mask, 0], dice.sums[mask, 1]), (dice.sums[mask, 2], dice.sums[mask, 3])
                cotangent = dice.cotangent[mask, 0], dice.cotangent[mask, 1]
                pairs = accurate_slopes_of(x, t, bottom, missed, cotangent)
                slope = slope if of_element else settled(pairs[0], gradient.precision)
                target_slope = target_slope if of_target else settled(pairs[1], target_gradient.precision)
            elif not (of_element and of_target):
                dice.unsettled[mask] = 1
            if gradient.wanted:
                store(gradient.rows.memory, row_offset(gradient.rows, offset), slope)
            if target_gradient.wanted:
                store(target_gradient.rows.memory, row_offset(target_gradient.rows, offset), target_slope)

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
    resized, missed = resample.new_planes(shape), resample.new_planes(shape)
    wide = resample.resample_planes(planes, masks.rows, resized)
    pixels = Pixels(
        slopes=resized.reshape(count, size),
        flatness=_scratch(count, size),
        losses=_scratch(count, size),
        missed=missed.reshape(count, size),
    )
    focal = new_totals(count)
    # A mask with an undefined loss has neither of the two.
    sums = Sums(runtime.Array.of(np.zeros((count, 2), np.int64)), Totals(new_totals(count).limbs, focal.special))
    each = (runtime.Array(count, np.float64) for _ in MaskDice._fields[1:])
    dice = MaskDice(*each, runtime.Array((count, 4), np.float64))
    uploaded = runtime.upload(masks._replace(targets=masks.targets.reshape(count, size)))
    parts = _parts(size)
    runtime.launch(kernels.compare_pixels, count * parts, _BLOCK, pixels, uploaded, sums, parts)
    runtime.launch(_add_masks, count * parts, _BLOCK, (pixels.losses,), focal, parts)
    runtime.launch(_add_masks, count * parts, _BLOCK, (pixels.missed,), sums.missed, parts)
    runtime.launch(kernels.finish_masks, runtime.grid(count, _BLOCK), _BLOCK, uploaded, sums, dice)
    if gradient is not None:
        runtime.launch(kernels.combine_pixels, runtime.grid(count * size, _BLOCK), _BLOCK, pixels, uploaded, dice)
        back = resample.spread_lines(resized, masks.vertical), resample.spread_lines(missed, masks.vertical)
        again = Again(wide, dice.sums, runtime.Array((count, 4), np.float64))
        _write_gradient(kernels, again, back, uploaded, shape, gradient)
    dice.loss.download(losses)
    return [exact(*totals) for totals in zip(focal.limbs.download(), focal.special.download(), strict=True)]


def _write_gradient(
    kernels: MaskKernels,
    again: Again,
    handed: tuple[Any, Any],
    masks: Any,
    shape: tuple[int, ...],
    gradient: np.ndarray,
) -> None:
    """The gradients of some planes from what their pixels have handed back to lines."""
    count, size = shape[0], shape[1] * shape[2]
    all_settled = runtime.Array(count, np.int64)
    planes = runtime.rows_on_device(gradient, gradient.ndim)
    elements = runtime.grid(count * gradient.shape[-2] * gradient.shape[-1], _BLOCK)
    runtime.launch(_narrow, elements, _BLOCK, handed, masks, all_settled, planes)
    settling = again, handed, masks, all_settled, planes
    runtime.launch(kernels.settle, elements, _BLOCK, *settling, False)
    if all_settled.download().all():
        return
    parts, totals = _parts(size), (new_totals(count), new_totals(count))
    shares = Shares(*(_scratch(count, size) for _ in Shares._fields))
    runtime.launch(kernels.share_pixels, runtime.grid(count * size, _BLOCK), _BLOCK, again, masks, all_settled, shares)
    for values, total in zip(shares, (totals[0], totals[0], totals[1], totals[1]), strict=True):
        runtime.launch(_add_masks, count * parts, _BLOCK, (values,), total, parts)
    runtime.launch(_finish_shares, runtime.grid(count, _BLOCK), _BLOCK, totals, masks, again.known)
    runtime.launch(kernels.settle, elements, _BLOCK, *settling, True)


def dice(
    loop: DiceLoop,
    inputs: np.ndarray,
    targets: np.ndarray,
    cotangents: np.ndarray,
    gradient: np.ndarray | None,
    target_gradient: np.ndarray | None,
) -> np.ndarray:
    """[N] the dice loss of each mask of [N, ...]; gradients are written for cotangents [N, 2] or [1, 2], pairs."""
    masks = len(inputs)
    size = inputs.size // max(masks, 1)
    losses = np.empty(masks)
    each = np.broadcast_to(cotangents, (masks, 2))
    written = [None if buffer is None else runtime.Gradient(buffer) for buffer in (gradient, target_gradient)]
    rows = [runtime.upload(runtime.rows_on_device(array, array.ndim)) for array in (inputs, targets)]
    of_each = [
        runtime.upload(_gradient(like if buffer is None else buffer.array, wanted=buffer is not None))
        for like, buffer in zip((inputs, targets), written, strict=True)
    ]
    for part in _batches(masks, size):
        wanted = any(buffer is not None for buffer in written)
        losses[part] = _dice(_dice_kernels(loop), rows, part, size, each[part], of_each if wanted else [])
    for buffer in written:
        if buffer is not None:
            buffer.finish()
    return losses


def _gradient(array: np.ndarray, *, wanted: bool) -> DiceGradient:
    rows: Any = runtime.rows_on_device(array, array.ndim)
    return DiceGradient(rows, PRECISIONS[array.dtype] if wanted else UNWANTED, wanted)


def _dice(
    kernels: DiceKernels, rows: list[Any], part: slice, size: int, cotangents: np.ndarray, gradients: list[Any]
) -> np.ndarray:
    """The losses of some masks, and the gradients that are wanted."""
    masks = part.stop - part.start
    shapes = Dice((masks,), (masks, 4), (masks, 4), (masks, 2), (masks,))
    kinds = (np.float64,) * 4 + (np.int64,)
    of_masks = Dice(*(runtime.Array(shape, kind) for shape, kind in zip(shapes, kinds, strict=True)))
    for accurately in (False, True):
        _add_up(kernels, rows, part, size, cotangents, of_masks, accurately=accurately)
        if not gradients:
            break
        blocks = runtime.grid(masks * size, _BLOCK)
        arguments = (*rows, part.start, of_masks, size, *gradients, accurately)
        runtime.launch(kernels.gradients, blocks, _BLOCK, *arguments)
        if not of_masks.unsettled.download().any():
            break
    losses: np.ndarray = of_masks.loss.download()
    return losses


def _add_up(
    kernels: DiceKernels,
    rows: list[Any],
    part: slice,
    size: int,
    cotangents: np.ndarray,
    of_masks: Dice,
    *,
    accurately: bool,
) -> None:
    """The sums of some masks, and what their gradients are made of."""
    masks, parts = part.stop - part.start, _parts(size)
    elements = Elements(*(_scratch(masks, size) for _ in Elements._fields))
    special = new_totals(masks).special
    totals = tuple(Totals(new_totals(masks).limbs, special) for _ in range(max(_SUM_OF) + 1))
    blocks = runtime.grid(masks * size, _BLOCK)
    runtime.launch(kernels.split_elements, blocks, _BLOCK, *rows, part.start, elements, accurately)
    for values, number in zip(elements, _SUM_OF, strict=True):
        runtime.launch(_add_masks, masks * parts, _BLOCK, (values,), totals[number], parts)
    runtime.launch(kernels.finish, runtime.grid(masks, _BLOCK), _BLOCK, totals, cotangents, of_masks, accurately)


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
