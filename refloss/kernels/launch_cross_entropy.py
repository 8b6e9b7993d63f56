"""Cross-entropy on the CPU: from arrays to kernels and back."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refloss import parallel
from refloss.kernels.cross_entropy import Output, Scratch, Terms, label_rows, probability_rows
from refloss.kernels.cross_entropy_columns import COLUMNS, MAX_CLASSES, Lanes, label_columns, new_lanes
from refloss.kernels.rows import any_rows_of, rows_of, tile_buffer, tile_rows
from refloss.numerics.sums import MAX_TERMS, as_pair, exact_sum, rounded

if TYPE_CHECKING:
    from collections.abc import Callable

# Elements a thread takes at a time: some tenths of a millisecond of work, so that Python's part does not show.
BLOCK_ELEMENTS = 1 << 17


class Task(NamedTuple):
    """A cross-entropy as the losses state it.

    target holds labels [R], or class probabilities in the shape of logits; divisor is what a "sum" is divided by.
    """

    logits: np.ndarray
    target: np.ndarray
    class_axis: int
    weight: np.ndarray | None
    label_smoothing: float
    ignore_index: int
    reduction: str
    divisor: float
    cotangent: np.ndarray
    gradient: np.ndarray | None
    target_gradient: np.ndarray | None


class Answer(NamedTuple):
    """The reduced loss, and rows in the order of the labels."""

    loss: np.float64 | np.ndarray
    nll: np.ndarray
    lse: np.ndarray


def cross_entropy(task: Task) -> Answer:
    """Run a task; gradients are written into the task's buffers."""
    return evaluate(task, _run)


def evaluate(task: Task, run: Callable[[Task, Terms, Output, int], None]) -> Answer:
    """Run a task's rows, and what comes before and after them."""
    classes = task.logits.shape[task.class_axis]
    if classes > MAX_TERMS:
        raise ValueError(f"logits has {classes} classes; expected at most {MAX_TERMS}")
    count = math.prod(task.logits.shape[: task.class_axis]) * math.prod(task.logits.shape[task.class_axis + 1 :])
    output = Output(np.empty(count), np.empty(count), np.empty(count))
    normaliser = _normaliser(task, count)
    terms = _terms(task, classes, normaliser)
    run(task, terms, output, count)
    return Answer(_reduced(task, output.loss, normaliser), output.nll, output.lse)


def has_labels(task: Task) -> bool:
    """Whether the target of a task are labels, not probabilities."""
    return task.target.dtype.kind == "i"


def _normaliser(task: Task, count: int) -> Fraction | float:
    """What the sum of the rows' losses is divided by, exactly."""
    if task.reduction == "none":
        return Fraction(1)
    if task.reduction == "sum":
        return Fraction(task.divisor) if np.isfinite(task.divisor) else task.divisor
    if not has_labels(task):
        return Fraction(count)
    return label_normaliser(task.target, task.weight, task.ignore_index)


def label_normaliser(labels: np.ndarray, weight: np.ndarray | None, ignore_index: int) -> Fraction | float:
    """The number of labels that count, or the sum of their weights; NaN for 0, so that no gradient passes for right."""
    counted = labels[labels != ignore_index]
    total = Fraction(counted.size) if weight is None else exact_sum(weight[counted])
    return total if total != 0 else float("nan")


def _terms(task: Task, classes: int, normaliser: Fraction | float) -> Terms:
    weight = np.ones(classes) if task.weight is None else task.weight
    smoothing = Fraction(task.label_smoothing)
    # A label without smoothing asks for the weight of its own class only.
    needs_total = smoothing > 0 or not has_labels(task)
    return Terms(
        weight=weight,
        weight_total=as_pair(exact_sum(weight)) if needs_total else (0.0, 0.0),
        keep=as_pair(1 - smoothing),
        uniform=as_pair(smoothing / max(classes, 1)),
        smooth=task.label_smoothing > 0.0,
        weighted=task.weight is not None,
        cotangent=task.cotangent,
        normaliser=as_pair(normaliser),
        ignore_index=task.ignore_index,
    )


def _run(task: Task, terms: Terms, output: Output, count: int) -> None:
    in_columns = has_labels(task) and not terms.smooth and task.logits.shape[task.class_axis] <= MAX_CLASSES
    (_run_columns if in_columns else _run_rows)(task, terms, output, count)


def _run_rows(task: Task, terms: Terms, output: Output, count: int) -> None:
    logits = rows_of(task.logits, task.class_axis)
    # Without a gradient to write, a kernel still wants an argument of its type.
    gradient = logits if task.gradient is None else rows_of(task.gradient, task.class_axis)
    by_label = has_labels(task)
    arrays = [logits, gradient]
    if not by_label:
        target = rows_of(task.target, task.class_axis)
        arrays += [target, target if task.target_gradient is None else rows_of(task.target_gradient, task.class_axis)]
    tile = max(tile_rows(rows) for rows in arrays)

    def scratch() -> Scratch:
        tiles = [tile_buffer(rows, tile) for rows in arrays]
        row = np.empty(logits.classes)
        needs_products = terms.smooth or not by_label
        return Scratch(
            logits=tiles[0],
            gradient=tiles[1],
            target=tiles[-2],
            target_gradient=tiles[-1],
            exponentials=row,
            products=np.empty(logits.classes if needs_products else 0),
            mass=np.empty(0 if by_label else logits.classes),
        )

    def work(first: int, last: int, buffers: Scratch) -> None:
        with_gradient = task.gradient is not None
        if by_label:
            label_rows(logits, gradient, task.target, terms, output, buffers, first, last, tile, with_gradient)
        else:
            probability_rows(*arrays, terms, output, buffers, first, last, tile, with_gradient)

    block = max(1, BLOCK_ELEMENTS // max(1, logits.classes * tile)) * tile
    parallel.run_blocks(work, count, block, scratch)


def _run_columns(task: Task, terms: Terms, output: Output, count: int) -> None:
    logits = any_rows_of(task.logits, task.class_axis)
    gradient = logits if task.gradient is None else any_rows_of(task.gradient, task.class_axis)

    def work(first: int, last: int, lanes: Lanes) -> None:
        with_gradient = task.gradient is not None
        label_columns(logits, gradient, task.target, terms, output, lanes, first, last, with_gradient)

    block = max(1, BLOCK_ELEMENTS // (COLUMNS * max(1, logits.classes))) * COLUMNS
    parallel.run_blocks(work, count, block, lambda: new_lanes(logits.classes))


def _reduced(task: Task, rows: np.ndarray, normaliser: Fraction | float) -> np.float64 | np.ndarray:
    if task.reduction == "none":
        return rows
    return divided(exact_sum(rows), normaliser)


def total(rows: np.ndarray) -> np.float64:
    """The sum of the losses of rows, rounded once."""
    return np.float64(rounded(exact_sum(rows)))


def divided(total: Fraction | float, normaliser: Fraction | float) -> np.float64:
    """A quotient of exact numbers, rounded once; by the float rules where one is not finite or 0 divides."""
    if isinstance(total, Fraction) and isinstance(normaliser, Fraction) and normaliser != 0:
        return np.float64(rounded(total / normaliser))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.float64(np.float64(rounded(total)) / np.float64(rounded(normaliser)))
