"""Losses of sequences that sum over alignments: their lengths, reductions and coefficients."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from refloss import arrays
from refloss.kernels.ctc.loop import Task
from refloss.kernels.ctc.run import ctc_loss
from refloss.numerics.exact import as_pair, exact, ratio, rounded
from refloss.options import Options
from refloss.result import Intermediates, LossResult

REDUCTIONS = ("mean", "sum", "none")


class Batch(NamedTuple):
    """Sequences and their labels: frame t of sequence n is row t·frame_stride + n·sequence_stride of the logits."""

    name: str  # of the logits
    logits: np.ndarray
    is_softmax: bool
    frame_stride: int
    sequence_stride: int
    targets: np.ndarray  # one sequence after the other, int64
    input_lengths: np.ndarray
    target_lengths: np.ndarray
    blank: int
    losses: tuple[int, ...]  # their shape


def lengths(value: Any, name: str, count: int, most: int) -> np.ndarray:
    """Lengths of sequences, each from 0 to the most that there is room for; a number is that of the only one."""
    array = arrays.integer_array(value, name)
    array = array.reshape(1) if array.ndim == 0 else array
    arrays.check_shape(array, (count,), name, "one for each sequence")
    arrays.check_range(array, 0, most, name)
    return np.ascontiguousarray(array, dtype=np.int64)


def blank_class(value: Any, name: str, classes: int) -> int:
    """The class that stands for no label."""
    blank = arrays.integer(value, name, low=0)
    if blank >= classes:
        raise ValueError(f"{name} is {blank}; expected a class, below {classes}")
    return blank


def loss_of_alignments(batch: Batch, options: Options, *, reduction: str, zero_infinity: bool) -> LossResult:
    """−log of the probability of all alignments; "mean" divides by the number of labels, then by that of sequences."""
    count = len(batch.input_lengths)
    cotangent = options.cotangent(batch.losses if reduction == "none" else ())
    gradient = options.buffer(batch.logits, batch.name, wanted=batch.name in options.wanted((batch.name,)))
    divisors = [int(max(length, 1)) * count if reduction == "mean" else 1 for length in batch.target_lengths]
    task = Task(
        batch.logits,
        (batch.frame_stride, batch.sequence_stride),
        batch.is_softmax,
        batch.targets,
        batch.input_lengths,
        batch.target_lengths,
        batch.blank,
        _coefficients(cotangent, divisors),
        zero_infinity,
        gradient,
    )
    pairs = ctc_loss(task, options.backend)
    nll = pairs[:, 0].reshape(batch.losses)
    return LossResult(
        loss=nll if reduction == "none" else _reduced(pairs, divisors, is_mean=reduction == "mean"),
        grads={} if gradient is None else {batch.name: gradient},
        intermediates=Intermediates({"nll": nll.copy()}),
    )


def _coefficients(cotangent: np.ndarray, divisors: list[int]) -> np.ndarray:
    """What each sequence's gradient is multiplied by, as pairs [N, 2]."""
    each = list(zip(np.broadcast_to(cotangent, len(divisors)).tolist(), divisors, strict=True))
    # Most sequences of a batch have the same one.
    known = {(c, divisor): as_pair(ratio(exact(c), Fraction(divisor))) for c, divisor in set(each)}
    return np.array([known[key] for key in each], np.float64).reshape(-1, 2)


def _reduced(pairs: np.ndarray, divisors: list[int], *, is_mean: bool) -> np.float64:
    """The sum of pairs [N, 2], each over its divisor, rounded once; the mean of none is NaN."""
    if is_mean and not divisors:
        return np.float64(np.nan)
    if not np.isfinite(pairs).all():
        return np.float64((pairs[:, 0] / divisors).sum())
    each = [Fraction(high) + Fraction(low) for high, low in pairs.tolist()]
    return np.float64(rounded(sum((nll / by for nll, by in zip(each, divisors, strict=True)), Fraction(0))))
