"""What transducer heads share: lengths and labels, what the loss is divided by, and the way to the kernels."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from refloss import arrays
from refloss.cases.source import Case
from refloss.device import empty
from refloss.kernels.transducer.run import Task, transducer_losses
from refloss.numerics.exact import Exact, exact, exact_sum, quotient, quotient_pair
from refloss.options import Options
from refloss.result import Intermediates, LossResult
from refloss.specification import Argument, lengths, sequences

TransducerReduction = Literal["mean_volume", "mean_batch", "mean", "sum", "none"]
REDUCTIONS = get_args(TransducerReduction)


def what_is_written() -> dict[str, Argument]:
    """The arguments that say what is to be written, by name."""
    return {"labels": sequences("B U"), "logit_lengths": lengths("B"), "label_lengths": lengths("B")}


class Targets(NamedTuple):
    """Labels that are checked; those beyond a length are 0."""

    labels: np.ndarray  # [B, U] int64
    frames: np.ndarray  # [B] int64
    counts: np.ndarray  # [B] int64
    blank: int


class Arcs(NamedTuple):
    """Steps in frames of the arcs of blanks, 0 for none, and of labels; durations are their logits."""

    blanks: tuple[int, ...]
    labels: tuple[int, ...]
    sigma: float = 0.0
    durations: np.ndarray | None = None


def lattice_logits(logits: Any, name: str, last: str) -> np.ndarray:
    """Logits [B, T, U + 1, V]."""
    x = arrays.float_array(logits, name)
    if x.ndim != 4 or x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(f"{name} has shape {x.shape}; expected [B, T, U + 1, {last}]")
    return x


def _lengths(value: Any, batch: int, most: int, name: str) -> np.ndarray:
    lengths = arrays.index_array(value, name)
    arrays.check_shape(lengths, (batch,), name, "one for each sample")
    arrays.check_range(lengths, 0, most, name)
    return lengths


def checked_targets(
    logits: np.ndarray, labels: Any, logit_lengths: Any, label_lengths: Any, blank_token_id: Any
) -> Targets:
    """What is to be written; labels beyond a sample's length may be anything."""
    batch, times, width, classes = logits.shape
    given = arrays.integer_array(labels, "labels")
    arrays.check_shape(given, (batch, width - 1), "labels", "U of them for logits with U + 1 rows a frame")
    frames = _lengths(logit_lengths, batch, times, "logit_lengths")
    counts = _lengths(label_lengths, batch, width - 1, "label_lengths")
    known = np.where(np.arange(width - 1) < counts[:, None], given, given.dtype.type(0))
    arrays.check_range(known, 0, classes - 1, "labels")
    blank = arrays.integer(blank_token_id, "blank_token_id", low=0)
    if blank >= classes:
        raise ValueError(f"blank_token_id is {blank}; expected a class, less than {classes}")
    return Targets(np.ascontiguousarray(known, np.int64), frames, counts, blank)


def divisors(reduction: str, counts: np.ndarray) -> list[int]:
    """What each sample's loss is divided by; 0 if there are no samples."""
    size = counts.size
    if reduction == "mean_volume":
        return [max(int(counts.sum()), 1)] * size
    if reduction == "mean":
        return [size * max(int(count), 1) for count in counts]
    return [size if reduction == "mean_batch" else 1] * size


def divisor(case: Case) -> float | None:
    """What a case's mean divides a sum over samples by, or a sum of losses that are divided by their own lengths."""
    counts = case.inputs["label_lengths"]
    reduction = case.parameters.get("reduction", _default(case))
    return float(max(int(counts.sum()), 1) if reduction == "mean_volume" else counts.size)


def _default(case: Case) -> str:
    return "mean_volume" if "logits" in case.inputs else "mean"


def _reduced(losses: np.ndarray, counts: np.ndarray, reduction: str) -> np.float64:
    """The exact sum of quotients, rounded once."""
    if not losses.size and reduction != "sum":
        return np.float64(np.nan)
    over = np.array(divisors(reduction, counts), np.int64)
    parts: list[Exact] = []
    for each in np.unique(over).tolist():
        total = exact_sum(losses[over == each])
        parts.append(total / each)
    finite = all(isinstance(part, Fraction) for part in parts)
    return quotient(sum(parts, Fraction(0)) if finite else float(sum(map(float, parts))), Fraction(1))


def transducer(
    logits: np.ndarray, targets: Targets, arcs: Arcs, options: Options, *, reduction: str, names: tuple[str, ...]
) -> LossResult:
    """A transducer's loss of checked arrays; names are those of the inputs with gradients, the logits' first."""
    arrays.choice(reduction, "reduction", REDUCTIONS)
    batch = len(logits)
    cotangent = options.cotangent((batch,) if reduction == "none" else ())
    over = divisors(reduction, targets.counts)
    each = np.broadcast_to(cotangent, batch).tolist()
    pairs = [quotient_pair(exact(c), Fraction(count)) for c, count in zip(each, over, strict=True)]
    wanted = options.wanted(names)
    gradient = options.buffer(logits, names[0], wanted=names[0] in wanted)
    of_durations = None
    if wanted and gradient is None:
        gradient = empty(logits.shape, logits.dtype, like=logits)  # a kernel writes both gradients or none
    if wanted and arcs.durations is not None:
        of_durations = empty(arcs.durations.shape, arcs.durations.dtype, like=arcs.durations)
    losses = transducer_losses(
        Task(
            logits=logits,
            durations=arcs.durations,
            labels=targets.labels,
            frames=targets.frames,
            counts=targets.counts,
            blank=targets.blank,
            blank_steps=arcs.blanks,
            label_steps=arcs.labels,
            sigma=arcs.sigma,
            coefficients=np.array(pairs, np.float64).reshape(batch, 2),
            gradient=gradient,
            duration_gradient=of_durations,
        ),
        options.backend,
    )
    grads = dict(zip(names, (gradient, of_durations), strict=False))
    return LossResult(
        loss=losses.copy() if reduction == "none" else _reduced(losses, targets.counts, reduction),
        grads={name: value for name, value in grads.items() if name in wanted and value is not None},
        intermediates=Intermediates({"nll": losses}),
    )
