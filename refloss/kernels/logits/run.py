"""Rows whose logits go through a chain: from arrays to kernels and back, and which device they run on."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refloss import parallel
from refloss.dispatch import runs_on_gpu
from refloss.kernels.logits.chain import Chain
from refloss.kernels.logits.loop import (
    GRADIENT,
    LINES,
    LOG_PROBABILITIES,
    LOSS,
    ChainTerms,
    Output,
    Scratch,
    chained_rows,
)
from refloss.kernels.rows import any_rows_of, tile_rows
from refloss.kernels.softmax.run import prepared, rows_of_task
from refloss.numerics.exact import exact_sum
from refloss.numerics.memory import as_writable
from refloss.numerics.shares import divided, label_divisor
from refloss.numerics.sums import MAX_TERMS

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.kernels.softmax.loop import Task, Terms
    from refloss.numerics.exact import Exact

# Elements a thread takes at a time.
_BLOCK_ELEMENTS = 1 << 14
_NO_LABELS = np.zeros(0, np.int64)


class ChainTask(NamedTuple):
    """A cross-entropy of logits that go through a chain, and ζ·lse² beside it; task has all else."""

    task: Task
    chain: Chain
    z_loss: float
    z_cotangent: np.ndarray

    @property
    def wanted(self) -> int:
        """What rows are to yield beside their loss."""
        return LOSS if self.task.gradient is None else GRADIENT


class ChainAnswer(NamedTuple):
    """The reduced loss and its two parts, and rows in the order of the labels."""

    loss: np.float64 | np.ndarray
    cross_entropy: np.float64 | np.ndarray
    z_loss: np.float64 | np.ndarray
    nll: np.ndarray
    lse: np.ndarray


def chained_loss(given: ChainTask, backend: str) -> ChainAnswer:
    """Run a task; gradients are written into its buffers."""
    classes = given.task.logits.shape[given.task.class_axis]
    if classes > MAX_TERMS:
        raise ValueError(f"logits has {classes} classes; expected at most {MAX_TERMS}")
    count = rows_of_task(given.task)
    output = Output(*(np.empty(count) for _ in Output._fields))
    task, terms, normaliser, exponent = prepared(given.task, count)
    chained = chain_terms(given, exponent)
    _device(backend)(task, terms, chained, output, count, given.wanted)
    return answer_of(given, output, normaliser, exponent)


def chain_terms(given: ChainTask, exponent: int) -> ChainTerms:
    """What is the same for every row of a task whose weights are over 2^exponent, and so is ζ: squares have none."""
    return ChainTerms(given.chain, (float(np.ldexp(given.z_loss, -exponent)), 0.0), as_writable(given.z_cotangent))


def answer_of(given: ChainTask, output: Output, normaliser: Exact, exponent: int) -> ChainAnswer:
    """What comes of the rows of a task whose weights are over 2^exponent."""
    if given.task.reduction == "none":
        losses = [np.ldexp(each, exponent) if exponent else each for each in output[:3]]
        return ChainAnswer(losses[0], losses[1], losses[2], output.nll, output.lse)
    parts = output.cross_entropy, output.z_loss
    whole = exact_sum(np.concatenate(parts) if given.z_loss else output.loss)
    loss, cross_entropy = divided(whole, normaliser), divided(exact_sum(parts[0]), normaliser, "cross_entropy")
    z_loss = divided(exact_sum(parts[1]), _divisor_of_squares(given.task, normaliser), "z_loss")
    return ChainAnswer(loss, cross_entropy, z_loss, output.nll, output.lse)


def _divisor_of_squares(task: Task, normaliser: Exact) -> Exact:
    """What divides squares: where weights sum to 0, that 0, as in torch's formula, and not the NaN of a likelihood."""
    if task.reduction != "mean" or not task.has_labels or isinstance(normaliser, Fraction):
        return normaliser
    return label_divisor(task.target, task.weight, task.ignore_index)


def log_probabilities(given: ChainTask, backend: str) -> np.ndarray:
    """log p of every class, float64, in the shape of the logits."""
    count = rows_of_task(given.task)
    result = np.empty(given.task.logits.shape)
    labels = np.zeros(count, np.int64)
    task = given.task._replace(target=labels, gradient=result, weight=None, label_smoothing=0.0, ignore_index=-1)
    task, terms, _, _ = prepared(task, count)
    chained = ChainTerms(given.chain, (0.0, 0.0), np.ones(1))
    output = Output(*(np.empty(count) for _ in Output._fields))
    _device(backend)(task, terms, chained, output, count, LOG_PROBABILITIES)
    return result


def _device(backend: str) -> Callable[[Task, Terms, ChainTerms, Output, int, int], None]:
    if runs_on_gpu(backend):
        from refloss.kernels.logits import gpu

        return gpu.run
    return _run


def _run(task: Task, terms: Terms, chained: ChainTerms, output: Output, count: int, wanted: int) -> None:
    logits = any_rows_of(task.logits, task.class_axis)
    gradient = logits if task.gradient is None else any_rows_of(task.gradient, task.class_axis)
    target, target_gradient = logits, logits
    if not task.has_labels:
        target = any_rows_of(task.target, task.class_axis)
        target_gradient = target if task.target_gradient is None else any_rows_of(task.target_gradient, task.class_axis)
    arrays = (logits, gradient, target, target_gradient)
    labels = as_writable(task.target) if task.has_labels else _NO_LABELS
    tile = max(map(tile_rows, arrays))

    def scratch() -> Scratch:
        tiles = np.empty((4, tile, logits.classes))
        return Scratch(*tiles, np.empty((LINES, logits.classes)))

    def work(first: int, last: int, buffers: Scratch) -> None:
        chained_rows(arrays, labels, terms, chained, output, buffers, first, last, tile, task.has_labels, wanted)

    block = max(1, _BLOCK_ELEMENTS // max(1, logits.classes * tile)) * tile
    parallel.run_blocks(work, count, block, scratch)
