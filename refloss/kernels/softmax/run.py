"""Softmax losses: from arrays to kernels and back, and which device they run on."""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from refloss import parallel
from refloss.dispatch import runs_on_gpu
from refloss.kernels.rows import any_rows_of, rows_of, tile_buffer, tile_rows
from refloss.kernels.softmax.columns import COLUMNS, MAX_CLASSES, Lanes, label_columns, lanes_of_thread
from refloss.kernels.softmax.loop import (
    NO_PARAMETERS,
    Answer,
    Output,
    Scratch,
    SoftScratch,
    Task,
    Terms,
    label_rows,
    probability_rows,
    smoothed_rows,
)
from refloss.kernels.softmax.refine import APART, PAGE
from refloss.numerics.exact import Exact, as_pair, exact, exact_sum
from refloss.numerics.memory import as_writable
from refloss.numerics.ranges import near_one
from refloss.numerics.shares import divided, divisor, label_normaliser
from refloss.numerics.sums import MAX_TERMS

if TYPE_CHECKING:
    from collections.abc import Callable

# Elements a thread takes at a time: some tenths of a millisecond of work, so that Python's part does not show.
BLOCK_ELEMENTS = 1 << 17
# More of them, because a block's first row is not fetched in advance, if they leave enough blocks to share.
LARGEST_BLOCK_ELEMENTS = 1 << 19
BLOCKS = 64
Pair = tuple[float, float]


def softmax_loss(task: Task, backend: str) -> Answer:
    """Run a task; gradients are written into the task's buffers."""
    classes = task.logits.shape[task.class_axis]
    if classes > MAX_TERMS:
        raise ValueError(f"logits has {classes} classes; expected at most {MAX_TERMS}")
    count = rows_of_task(task)
    output = Output(np.empty(count), np.empty(count), np.empty(count))
    task, terms, normaliser, exponent = prepared(task, count)
    _device(backend)(task, terms, output, count)
    if task.reduction == "none":
        return Answer(np.ldexp(output.loss, exponent) if exponent else output.loss, output.nll, output.lse)
    return Answer(divided(exact_sum(output.loss), normaliser), output.nll, output.lse)


def rows_of_task(task: Task) -> int:
    """How many rows a task has."""
    return math.prod(task.logits.shape[: task.class_axis]) * math.prod(task.logits.shape[task.class_axis + 1 :])


def prepared(task: Task, count: int) -> tuple[Task, Terms, Exact, int]:
    """A task, what is the same for all of its rows, and what divides their sum, all over 2^exponent."""
    normaliser, exponent = _normaliser(task, count), 0
    if task.weight is not None:
        weight, normaliser, exponent = near_one(task.weight, normaliser)
        task = task._replace(weight=weight)
    return task, _terms(task, task.logits.shape[task.class_axis], normaliser), normaliser, exponent


def _device(backend: str) -> Callable[[Task, Terms, Output, int], None]:
    if runs_on_gpu(backend):
        from refloss.kernels.softmax import gpu

        return gpu.run
    return _run


def _normaliser(task: Task, count: int) -> Exact:
    """What the sum of the rows' losses is divided by, exactly."""
    if task.reduction == "mean" and task.has_labels:
        return label_normaliser(task.target, task.weight, task.ignore_index)
    if task.reduction == "mean":
        return divisor(lambda: Fraction(count), is_mean=True)
    return divisor(lambda: exact(task.divisor) if task.reduction == "sum" else Fraction(1), is_mean=False)


def _terms(task: Task, classes: int, normaliser: Exact) -> Terms:
    weight = np.ones(classes) if task.weight is None else task.weight
    keep, uniform = _shares(task.label_smoothing, classes)
    # A label without smoothing asks for the weight of its own class only.
    needs_total = task.label_smoothing > 0.0 or not task.has_labels
    return Terms(
        parameters=task.parameters or NO_PARAMETERS,
        weight=as_writable(weight),
        weight_total=as_pair(exact_sum(weight)) if needs_total else (0.0, 0.0),
        keep=keep,
        uniform=uniform,
        smooth=task.label_smoothing > 0.0,
        weighted=task.weight is not None,
        cotangent=as_writable(task.cotangent),
        normaliser=as_pair(normaliser),
        ignore_index=task.ignore_index,
    )


@functools.lru_cache(maxsize=64)
def _shares(label_smoothing: float, classes: int) -> tuple[Pair, Pair]:
    """1 − ε and ε/C."""
    smoothing = Fraction(label_smoothing)
    return as_pair(1 - smoothing), as_pair(smoothing / max(classes, 1))


def _run(task: Task, terms: Terms, output: Output, count: int) -> None:
    if terms.smooth or not task.has_labels:
        _run_soft(task, terms, output, count)
    elif task.logits.shape[task.class_axis] <= MAX_CLASSES:
        _run_columns(task, terms, output, count)
    else:
        _run_rows(task, terms, output, count)


def _run_rows(task: Task, terms: Terms, output: Output, count: int) -> None:
    logits = rows_of(task.logits, task.class_axis)
    # Without a gradient to write, a kernel still wants an argument of its type.
    gradient = logits if task.gradient is None else rows_of(task.gradient, task.class_axis)
    tile = max(tile_rows(logits), tile_rows(gradient))
    kernel, headroom, with_gradient = label_rows(task.loop), _headroom(task), task.gradient is not None
    labels = as_writable(task.target)

    def scratch() -> Scratch:
        return Scratch(tile_buffer(logits, tile), tile_buffer(gradient, tile), np.empty(logits.classes))

    def work(first: int, last: int, buffers: Scratch) -> None:
        kernel(logits, gradient, labels, terms, output, buffers, first, last, tile, headroom, with_gradient)

    parallel.run_blocks(work, count, _block(count, logits.classes, tile), scratch)


def _run_soft(task: Task, terms: Terms, output: Output, count: int) -> None:
    """Rows of soft targets: class probabilities, or labels with smoothing."""
    logits = any_rows_of(task.logits, task.class_axis)
    gradient = logits if task.gradient is None else any_rows_of(task.gradient, task.class_axis)
    headroom, with_gradient = _headroom(task), task.gradient is not None
    arrays = [logits, gradient]
    if task.has_labels:
        kernel, arguments = smoothed_rows(task.loop), (*arrays, as_writable(task.target), terms, output)
    else:
        target = any_rows_of(task.target, task.class_axis)
        target_gradient = task.target_gradient
        arrays += [target, target if target_gradient is None else any_rows_of(target_gradient, task.class_axis)]
        kernel, arguments = probability_rows(task.loop), (tuple(arrays), terms, output)
    tile = max(map(tile_rows, arrays))

    def scratch() -> SoftScratch:
        width = (logits.classes // PAGE + 1) * PAGE + APART
        lines = np.empty((len(arrays) * tile + 4, width))
        tiles = [lines[k * tile : (k + 1) * tile] for k in range(len(arrays))]
        return SoftScratch(tiles[0], tiles[1], tiles[-2], tiles[-1], *(line[: logits.classes] for line in lines[-4:]))

    def work(first: int, last: int, buffers: SoftScratch) -> None:
        kernel(*arguments, buffers, first, last, tile, headroom, with_gradient)

    parallel.run_blocks(work, count, _block(count, logits.classes, tile), scratch)


def _headroom(task: Task) -> float:
    """2^(53 − p) for logits that have p bits."""
    return float(2.0 ** (52 - ml_dtypes.finfo(task.logits.dtype).nmant))


def _block(count: int, classes: int, tile: int) -> int:
    """How many rows a thread takes at a time."""
    elements = min(max(BLOCK_ELEMENTS, count * classes // BLOCKS), LARGEST_BLOCK_ELEMENTS)
    return max(1, elements // max(1, classes * tile)) * tile


def _run_columns(task: Task, terms: Terms, output: Output, count: int) -> None:
    logits = any_rows_of(task.logits, task.class_axis)
    gradient = logits if task.gradient is None else any_rows_of(task.gradient, task.class_axis)
    kernel, with_gradient = label_columns(task.loop), task.gradient is not None
    arguments = (tuple(logits), tuple(gradient)), as_writable(task.target), tuple(terms), tuple(output)

    def work(first: int, last: int, lanes: Lanes) -> None:
        kernel(*arguments, tuple(lanes), first, last, with_gradient)

    block = max(1, BLOCK_ELEMENTS // (COLUMNS * max(1, logits.classes))) * COLUMNS
    parallel.run_blocks(work, count, block, lambda: lanes_of_thread(logits.classes))
