"""How far an honest transducer may be from the exact one: logarithms of probabilities, added up along a lattice.

A row's log-probabilities are off by |δℓ_k| as those of softmax are. A recursion of logarithms is off at a node by what
its predecessors and its arcs are off by, each weighed by its share w of the node's paths, and rounds its own value:

    |δ log α| ≤ Σ w·(|δ log α'| + |δℓ|) + u·|log α| + (n + 2)·v

for n arcs that come together; log β likewise. With E the sum of the errors of log α, log β and −log P, and u times
their magnitudes for adding them,

    |δ(m·p_k)| ≤ m·p_k·(e^(E + |δℓ_k|) − 1),    |δ arc| ≤ arc·(e^(E + |δℓ|) − 1)

and of the loss that of −log P. k·u for cotangent, divisor and what else multiplies; s(B) for the sum over samples.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refloss.error_model import softmax
from refloss.error_model.bound import Bound, whole, without_nan
from refloss.roundoff import STEPS, Roundoff, real, roundoff

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refloss.cases.source import Case
    from refloss.result import LossResult

# What is off by more is no number any more.
_MOST = 2.0


class _Arc(NamedTuple):
    """From every node: steps in frames and labels, and its logarithm and error [T, W]."""

    step: int
    writes: bool
    value: np.ndarray
    error: np.ndarray


class _Rows(NamedTuple):
    """Of rows of logits: log-probabilities, their errors, and probabilities."""

    log_p: np.ndarray
    error: np.ndarray


def _rows(logits: np.ndarray, unit: Roundoff) -> _Rows:
    """By the bounds of softmax; a class of −inf has no error."""
    given = softmax.Rows(logits, np.zeros(logits.shape[:-1], np.int64), 1.0, reduction="none")
    limits = softmax.row_bounds(given, unit)["intermediate.log_probabilities"]
    x = real(logits)
    maximum = np.where(np.isfinite(x), x, -np.inf).max(axis=-1, keepdims=True, initial=-np.inf)
    maximum = np.where(np.isfinite(maximum), maximum, 0.0)
    log_p = x - maximum - np.log(np.exp(x - maximum).sum(axis=-1, keepdims=True))
    return _Rows(log_p, np.where(np.isfinite(log_p), without_nan(np.asarray(limits)), 0.0))


def _combined(values: list[tuple[float, float]], unit: Roundoff) -> tuple[float, float]:
    """log Σ e^value of values with errors, and its error."""
    values = [each for each in values if each[0] > -math.inf]
    if not values:
        return -math.inf, 0.0
    largest = max(value for value, _ in values)
    shares = [math.exp(value - largest) for value, _ in values]
    total = largest + math.log(sum(shares))
    error = sum(share * own for share, (_, own) in zip(shares, values, strict=True)) / sum(shares)
    return total, error + unit.between * abs(total) + (len(values) + 2) * unit.inside


class _Lattice:
    """log α, log β and −log P of a sample, each with its error."""

    def __init__(self, arcs: Sequence[_Arc], frames: int, width: int, unit: Roundoff) -> None:
        self.arcs, self.frames, self.width = arcs, frames, width
        self.alpha, self.of_alpha = np.full((frames, width), -np.inf), np.zeros((frames, width))
        self.beta, self.of_beta = np.full((frames, width), -np.inf), np.zeros((frames, width))
        for t in range(frames):
            for u in range(width):
                self.alpha[t, u], self.of_alpha[t, u] = _combined(self._before(t, u), unit)
        for t in reversed(range(frames)):
            for u in reversed(range(width)):
                self.beta[t, u], self.of_beta[t, u] = _combined(self._behind(t, u), unit)
        end = _combined(self._before(frames, width - 1), unit)
        self.log_p = self.beta[0, 0] if frames else -math.inf
        self.error = max(end[1], self.of_beta[0, 0] if frames else 0.0)

    def _before(self, t: int, u: int) -> list[tuple[float, float]]:
        found = [(0.0, 0.0)] if t == u == 0 else []
        for arc in self.arcs:
            s, v = t - arc.step, u - arc.writes
            if s >= 0 and v >= 0 and not (t == self.frames and arc.writes):
                found.append((self.alpha[s, v] + arc.value[s, v], self.of_alpha[s, v] + arc.error[s, v]))
        return found

    def _behind(self, t: int, u: int) -> list[tuple[float, float]]:
        each = [self.after(arc, t, u) for arc in self.arcs]
        return [
            (arc.value[t, u] + value, arc.error[t, u] + own) for arc, (value, own) in zip(self.arcs, each, strict=True)
        ]

    def after(self, arc: _Arc, t: int, u: int) -> tuple[float, float]:
        """log β where an arc leads to, and its error."""
        s, v = t + arc.step, u + arc.writes
        if s < self.frames and v < self.width:
            return self.beta[s, v], self.of_beta[s, v]
        return (0.0 if s == self.frames and v == self.width - 1 and not arc.writes else -math.inf), 0.0

    def node(self, t: int, u: int, unit: Roundoff) -> tuple[float, float]:
        """log m, and its error without that of −log P's own addition."""
        value = self.alpha[t, u] + self.beta[t, u] - self.log_p
        return value, self.of_alpha[t, u] + self.of_beta[t, u] + self._sum_error(
            self.alpha[t, u], self.beta[t, u], unit
        )

    def arc(self, arc: _Arc, t: int, u: int, unit: Roundoff) -> tuple[float, float]:
        """The logarithm of the share of paths that take an arc, and its error."""
        after, own = self.after(arc, t, u)
        value = self.alpha[t, u] + arc.value[t, u] + after - self.log_p
        error = self.of_alpha[t, u] + own + arc.error[t, u]
        return value, error + self._sum_error(self.alpha[t, u], after, unit)

    def _sum_error(self, first: float, second: float, unit: Roundoff) -> float:
        finite = [abs(each) for each in (first, second, self.log_p) if math.isfinite(each)]
        return float(self.error + 2 * unit.between * sum(finite) + 4 * unit.inside)


def _grown(value: float, error: float) -> float:
    """How far e^value is off."""
    return math.exp(min(value, 0.0)) * math.expm1(min(error, _MOST)) if value > -math.inf else 0.0


class _Sample(NamedTuple):
    """A sample's part of a case, without what is beyond its lengths."""

    place: int
    frames: int
    width: int
    labels: np.ndarray


def _samples(case: Case) -> list[_Sample]:
    inputs = case.inputs
    each = zip(inputs["logit_lengths"].tolist(), inputs["label_lengths"].tolist(), strict=True)
    return [_Sample(b, t, u + 1, inputs["labels"][b, :u].astype(np.int64)) for b, (t, u) in enumerate(each)]


def _token_arcs(rows: _Rows, sample: _Sample, blank: int, blank_step: int, label_step: int) -> list[_Arc]:
    """The blank and the label, without durations."""
    labels = np.append(sample.labels, 0)[None, :, None]
    value, error = (np.take_along_axis(each, np.broadcast_to(labels, (*each.shape[:2], 1)), 2)[..., 0] for each in rows)
    value = np.where(np.arange(sample.width) < sample.width - 1, value, -np.inf)
    return [
        _Arc(blank_step, False, rows.log_p[..., blank], rows.error[..., blank]),
        _Arc(label_step, True, value, error),
    ]


def _token_bound(
    lattice: _Lattice, arcs: Sequence[Sequence[_Arc]], rows: _Rows, sample: _Sample, blank: int, unit: Roundoff
) -> np.ndarray:
    """Of a sample's logits without its cotangent; arcs are those of the blank, and those of the label."""
    bound = np.zeros(rows.log_p.shape)
    relative = STEPS * unit.between
    for t, u in np.ndindex(sample.frames, sample.width):
        value, error = lattice.node(t, u, unit)
        if value == -math.inf:
            continue
        log_p, own = rows.log_p[t, u], np.minimum(rows.error[t, u] + error, _MOST)
        bound[t, u] = math.exp(min(value, 0.0)) * np.exp(log_p) * (np.expm1(own) + relative)
        for of, label in zip(arcs, (blank, int(sample.labels[u]) if u < sample.width - 1 else -1), strict=True):
            for arc in of if label >= 0 else ():
                share, off = lattice.arc(arc, t, u, unit)
                bound[t, u, label] += _grown(share, off) + relative * math.exp(min(share, 0.0))
    return bound


class _Reduction(NamedTuple):
    """What samples' losses are divided by, and their cotangents over that."""

    over: np.ndarray
    cotangents: np.ndarray
    summed: int


class _Passing(NamedTuple):
    """A sample's rows, the share of paths that pass each, its cotangent, and logarithms of softmaxes by argument."""

    place: tuple[int, slice, slice]
    share: np.ndarray
    cotangent: float
    log_p: dict[str, np.ndarray]


def _reduction(case: Case, default: str) -> _Reduction:
    counts = np.maximum(real(case.inputs["label_lengths"]), 0.0)
    reduction, batch = case.parameters.get("reduction", default), counts.size
    over = np.ones(batch)
    if reduction == "mean_volume":
        over = np.full(batch, max(counts.sum(), 1.0))
    elif reduction == "mean_batch":
        over = np.full(batch, float(batch))
    elif reduction == "mean":
        over = batch * np.maximum(counts, 1.0)
    return _Reduction(over, np.abs(real(case.grad_output)) / over, 0 if reduction == "none" else batch)


def _loss_bounds(errors: np.ndarray, sizes: np.ndarray, reduction: _Reduction, unit: Roundoff) -> dict[str, Bound]:
    """Of the loss, and of every sample's."""
    of_each = without_nan(errors)
    relative = STEPS * unit.between + unit.sum(reduction.summed)
    size = np.where(np.isfinite(sizes), np.abs(sizes), 0.0)
    each = (of_each + relative * size) / reduction.over
    loss = whole(each.sum(), lost=unit.tiny) if reduction.summed else whole(each, lost=unit.tiny)
    return {"loss": loss, "intermediate.nll": whole(of_each + unit.between * size, lost=unit.tiny)}


@np.errstate(all="ignore")
def rnnt(case: Case, result: LossResult, unit: Roundoff) -> dict[str, Bound]:
    """Rows of one softmax."""
    logits, blank = case.inputs["logits"], int(case.parameters["blank_token_id"])
    reduction = _reduction(case, "mean_volume")
    bound, errors = np.zeros(logits.shape), np.zeros(len(logits))
    for sample in _samples(case):
        rows, arcs, lattice = _lattice_of(case, sample, unit)
        errors[sample.place] = lattice.error
        own = _token_bound(lattice, arcs, rows["logits"], sample, blank, unit)
        cotangent = float(np.broadcast_to(reduction.cotangents, len(logits))[sample.place])
        lost = unit.tiny * (1.0 + cotangent)
        bound[sample.place, : sample.frames, : sample.width] = without_nan(cotangent * own) + lost
    sizes = np.asarray(result.intermediates["nll"])
    return _loss_bounds(errors, sizes, reduction, unit) | {"grad.logits": whole(bound)}


def _arcs_of_durations(
    rows: _Rows, of_durations: _Rows, sample: _Sample, blank: int, steps: list[int], sigma: float, unit: Roundoff
) -> list[list[_Arc]]:
    """Those of each duration: the blank's, if there is one, and the label's."""
    found = []
    for i, step in enumerate(steps):
        arcs = _token_arcs(rows, sample, blank, step, step)[0 if step else 1 :]
        more, own = of_durations.log_p[..., i], of_durations.error[..., i]
        size = np.where(np.isfinite(more), np.abs(more), 0.0) + abs(sigma)
        found.append(
            [
                arc._replace(value=arc.value + more - sigma, error=arc.error + own + 2 * unit.between * size)
                for arc in arcs
            ]
        )
    return found


def _lattice_of(case: Case, sample: _Sample, unit: Roundoff) -> tuple[dict[str, _Rows], list[list[_Arc]], _Lattice]:
    """A sample's rows of logits, by argument, its arcs, the blank's and the label's or those of each duration."""
    inputs, blank = case.inputs, int(case.parameters["blank_token_id"])
    names: list[str] = [name for name in ("logits", "token_logits", "duration_logits") if name in inputs]
    rows = {name: _rows(inputs[name][sample.place, : sample.frames, : sample.width], unit) for name in names}
    if "durations" in inputs:
        steps, sigma = inputs["durations"].tolist(), case.parameters.get("sigma", 0.0)
        of_tokens, of_durations = rows.values()
        arcs = _arcs_of_durations(of_tokens, of_durations, sample, blank, steps, sigma, unit)
    else:
        arcs = [[arc] for arc in _token_arcs(rows["logits"], sample, blank, 1, 0)]
    lattice = _Lattice([arc for of in arcs for arc in of], sample.frames, sample.width, unit)
    return rows, arcs, lattice


@np.errstate(all="ignore")
def passings(case: Case) -> list[_Passing]:
    """How often the paths of each sample pass its nodes, in float64."""
    default = "mean" if "durations" in case.inputs else "mean_volume"
    over, found = _reduction(case, default).over, []
    for sample in _samples(case):
        rows, _, lattice = _lattice_of(case, sample, roundoff("float64"))
        cotangents = np.broadcast_to(real(case.grad_output) / over, over.shape)
        place = sample.place, slice(sample.frames), slice(sample.width)
        share = np.exp(np.minimum(lattice.alpha + lattice.beta - lattice.log_p, 0.0))
        log_p = {name: each.log_p for name, each in rows.items()}
        found.append(_Passing(place, share, float(cotangents[sample.place]), log_p))
    return found


def _duration_bound(lattice: _Lattice, arcs: list[list[_Arc]], rows: _Rows, unit: Roundoff) -> np.ndarray:
    """Of a sample's logits of durations, without its cotangent."""
    bound, relative = np.zeros(rows.log_p.shape), STEPS * unit.between
    for t, u in np.ndindex(*rows.log_p.shape[:2]):
        value, error = lattice.node(t, u, unit)
        if value == -math.inf:
            continue
        own = np.minimum(rows.error[t, u] + error, _MOST)
        bound[t, u] = math.exp(min(value, 0.0)) * np.exp(rows.log_p[t, u]) * (np.expm1(own) + relative)
        for i, of in enumerate(arcs):
            for arc in of:
                share, off = lattice.arc(arc, t, u, unit)
                bound[t, u, i] += _grown(share, off) + relative * math.exp(min(share, 0.0))
    return bound


@np.errstate(all="ignore")
def tdt(case: Case, result: LossResult, unit: Roundoff) -> dict[str, Bound]:
    """Rows of two softmaxes."""
    inputs, blank = case.inputs, int(case.parameters["blank_token_id"])
    names, reduction = ("token_logits", "duration_logits"), _reduction(case, "mean")
    bounds, errors = {name: np.zeros(inputs[name].shape) for name in names}, np.zeros(len(inputs["labels"]))
    for sample in _samples(case):
        place = sample.place, slice(sample.frames), slice(sample.width)
        rows, arcs, lattice = _lattice_of(case, sample, unit)
        errors[sample.place] = lattice.error
        every = lattice.arcs
        by_token = [[arc for arc in every if not arc.writes], [arc for arc in every if arc.writes]]
        own = (
            _token_bound(lattice, by_token, rows[names[0]], sample, blank, unit),
            _duration_bound(lattice, arcs, rows[names[1]], unit),
        )
        cotangent = float(np.broadcast_to(reduction.cotangents, errors.shape)[sample.place])
        for name, each in zip(names, own, strict=True):
            bounds[name][place] = without_nan(cotangent * each) + unit.tiny * (1.0 + cotangent)
    sizes = np.asarray(result.intermediates["nll"])
    limits = {f"grad.{name}": whole(bound) for name, bound in bounds.items()}
    return _loss_bounds(errors, sizes, reduction, unit) | limits
