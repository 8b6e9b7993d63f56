"""How far an honest distillation from a teacher's K most probable classes may be off.

Notation as in log_probs: |δℓ_j| of log q_j, e what products and sums cost. A loss is −Σ m_k·log q_k and a number of the
teacher, so that its gradient is that of log-probabilities with the cotangents −c·m_k, c that of the row over what the
sum is divided by; m are p, or p/P, and q is the softmax of the K logits where these are renormalised. Masses are off as
well, by a relative ρ_k of exponentials:

    |δL|   ≤ Σ m_k·(|δℓ_k| + |δ log m_k|) + Σ (ρ_k + e)·m_k·(|log m_k| + |log q_k|)
    |δg_j| ≤ |c|·(ρ_j·m_j + q_j·Σ ρ_k·m_k)

A bucket has R = 1 − Σ p_k, which is off by d = Σ (ρ_k + s(K) + 2u)·p_k + u·R, however little of it is left. Its T is
taken for a sum over the others, not for 1 − Q. With the shares w_j = q_j/T of classes that are not named

    |δL|   ≤ d·(1 + |log max(R, d)| + |log T|) + R·(|δ log T| + 2u·(|log R| + |log T|)),  |δ log T| ≤ Σ w_j·|δℓ_j| + ...
    |δg_j| ≤ |c|·(d·(q_j + w_j) + R·(q_j·(f_j + f + e) + w_j·(f_j' + e)))

with f = e^|δ log T| − 1 and f_j' = e^(|δℓ_j| + |δ log T|) − 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss.cases.source import Case
from refloss.error_model.bound import BLOCK, Bound, blocks, part, whole, without_nan
from refloss.error_model.chain import chained
from refloss.error_model.log_probs import RowBounds
from refloss.roundoff import STEPS, Roundoff, real

if TYPE_CHECKING:
    from refloss.result import LossResult


class _Taught(NamedTuple):
    """A case as rows [R, ...]; what names no class has the class 0 and a mass of 0."""

    logits: np.ndarray  # [R, V]
    classes: np.ndarray  # [R, K]
    named: np.ndarray  # [R, K]
    log_masses: np.ndarray  # [R, K]
    masses: np.ndarray  # [R, K]
    counts: np.ndarray  # [R]
    factor: float  # of losses, and of gradients
    coefficients: np.ndarray  # [R], of gradients


class _Bucket(NamedTuple):
    """Of rows [R]; 0 where there is none."""

    mass: np.ndarray  # R
    off: np.ndarray  # |δR|
    log_outside: np.ndarray  # log T
    log_off: np.ndarray  # |δ log T|
    exists: np.ndarray


def _log_sum(values: np.ndarray) -> np.ndarray:
    """log Σ e^x of rows, −inf of nothing."""
    maximum = values.max(axis=1, initial=-np.inf)
    maximum = np.where(np.isneginf(maximum), 0.0, maximum)
    return np.asarray(maximum + np.log(np.exp(values - maximum[:, None]).sum(axis=1)))


def _taught(case: Case) -> _Taught:
    logits = case.inputs["student_logits"]
    rows, classes = int(np.prod(logits.shape[:-1], dtype=np.int64)), logits.shape[-1]
    log_probs = real(case.inputs["teacher_log_probs"])
    log_probs = log_probs.reshape(rows, log_probs.shape[-1])
    counts = np.asarray(case.inputs.get("mask", np.ones(rows)), bool).reshape(-1)
    named = counts[:, None] & ~np.isneginf(log_probs)
    log_masses = np.where(named, log_probs, -np.inf)
    if case.parameters.get("tail") == "renormalise":
        log_masses = log_masses - np.where(named.any(axis=1), _log_sum(log_masses), 0.0)[:, None]
    temperature, reduction = float(case.parameters.get("temperature", 1.0)), case.parameters.get("reduction", "mean")
    factor = temperature**2 if case.parameters.get("temperature_squared") else 1.0
    factor /= max(int(np.count_nonzero(counts)), 1) if reduction == "mean" else 1
    return _Taught(
        logits.reshape(rows, classes),
        np.where(named, case.inputs["teacher_ids"].reshape(named.shape).astype(np.int64), 0),
        named,
        log_masses,
        np.where(named, np.exp(log_masses), 0.0),
        counts & named.any(axis=1),
        factor,
        factor * np.broadcast_to(np.abs(real(case.grad_output)).reshape(-1), (rows,)),
    )


class _Rows(RowBounds):
    """Bounds of rows whose named classes have cotangents; classes are those that the softmax is of."""

    def __init__(self, given: _Taught, logits: np.ndarray, index: np.ndarray, case: Case, unit: Roundoff) -> None:
        options = {name: case.parameters[name] for name in ("temperature",) if name in case.parameters}
        inputs = {"logits": logits, "index": index, "mask": given.counts}
        cotangents = given.coefficients[:, None] * given.masses
        super().__init__(Case("", "", inputs, options, cotangents), unit, logits)
        self.given, self.steep = given, 1.0 / float(options.get("temperature", 1.0))
        distance = np.where(given.named, np.abs(given.log_masses), 0.0)
        self.of_masses = unit.inside * (distance + 4) + unit.between * (1 + distance) + unit.sum(given.masses.shape[1])

    def elements(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, Any]:
        """Rows and classes of some elements, and what log_probs knows of these."""
        rows, classes = np.divmod(np.arange(first, last), max(self.classes, 1))
        x = part(self.logits, first, last)
        return rows, classes, self._of_classes(rows, classes, chained(x, self.parameters))

    def hits(self, rows: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Which places of their rows name some classes."""
        return np.asarray(self.given.named[rows] & (self.index[rows] == classes[:, None]))

    def gradient(self, first: int, last: int) -> np.ndarray:
        """|δg| of some elements, bucket aside."""
        rows, classes, at = self.elements(first, last)
        lost = self.cotangents * self.of_masses
        own = (lost[rows] * self.hits(rows, classes)).sum(axis=1)
        tiny = self.unit.tiny * self.given.coefficients[rows] * (1 + self.index.shape[1] * at.probability)
        beside = self.steep * (own + at.probability * lost.sum(axis=1)[rows] + tiny)
        return np.asarray(self.slope(first, last) + np.where(self.counts[rows], beside, 0.0))

    def named_losses(self) -> tuple[np.ndarray, np.ndarray]:
        """|δL| of rows, bucket aside, and the magnitudes of the terms of L."""
        rows = np.repeat(np.arange(self.rows), self.index.shape[1])
        chosen = real(self.logits[rows, self.index.reshape(-1)])
        at = self._of_classes(rows, self.index.reshape(-1), chained(chosen, self.parameters))
        shape, given = self.index.shape, self.given
        size = np.where(given.named, np.abs(given.log_masses), 0.0) + at.log_probability.reshape(shape)
        off = given.masses * at.off.reshape(shape) + (self.of_masses + self.relative) * given.masses * (size + 1)
        lost = self.unit.tiny * (given.named * (1 + size)).sum(axis=1)
        return off.sum(axis=1) + lost, (given.masses * size).sum(axis=1)

    def bucket(self) -> _Bucket:
        """What is to be known of the bucket."""
        given, unit = self.given, self.unit
        inside = given.masses.sum(axis=1)
        mass = np.maximum(1.0 - inside, 0.0)
        off = (given.masses * self.of_masses).sum(axis=1) + (unit.sum(self.index.shape[1]) + 2 * unit.between) * inside
        log_outside, log_off = np.zeros(self.rows), np.zeros(self.rows)
        for first, last in blocks(self.rows, max(1, BLOCK // max(self.classes, 1))):
            rows, classes, at = self.elements(first * self.classes, last * self.classes)
            others = (at.probability > 0) | (at.log_probability > 0)
            others &= ~self.hits(rows, classes).any(axis=1)
            shape = (last - first, self.classes)
            log_q = np.where(others, -at.log_probability, -np.inf).reshape(shape)
            log_outside[first:last] = _log_sum(log_q)
            shares = np.where(others.reshape(shape), np.exp(log_q - log_outside[first:last, None]), 0.0)
            log_off[first:last] = (shares * at.off.reshape(shape)).sum(axis=1)
        exists = ~np.isneginf(log_outside)
        log_outside = np.where(exists, log_outside, 0.0)
        log_off += unit.between * (1 + np.abs(log_outside)) + unit.sum(self.classes)
        return _Bucket(mass * exists, (off + unit.between * mass) * exists, log_outside, log_off, exists)

    def of_bucket(self, bucket: _Bucket, first: int, last: int) -> np.ndarray:
        """|δg| that the bucket adds."""
        rows, classes, at = self.elements(first, last)
        others = ~self.hits(rows, classes).any(axis=1) & (at.log_probability + at.probability > 0)
        share = np.where(others, np.exp(-at.log_probability - bucket.log_outside[rows]), 0.0)
        share_off = np.expm1(np.minimum(at.off + bucket.log_off[rows], 1.0)) + self.relative
        q, mass = at.probability, bucket.mass[rows]
        # What all shares are off by comes back with their sum.
        of_sum = at.relative + self.relative + np.expm1(np.minimum(bucket.log_off[rows], 1.0))
        off = bucket.off[rows] * (q + share) + mass * (q * of_sum + share * share_off)
        lost = self.unit.tiny * (1 + mass)
        return np.where(self.counts[rows], self.given.coefficients[rows] * self.steep * (off + lost), 0.0)


def _losses_of_bucket(bucket: _Bucket, unit: Roundoff) -> tuple[np.ndarray, np.ndarray]:
    """|δL| of rows, and the magnitudes of the terms of L."""
    log_mass = np.abs(np.log(np.maximum(np.maximum(bucket.mass, bucket.off), unit.tiny)))
    size = log_mass + np.abs(bucket.log_outside)
    off = bucket.off * (1 + size) + bucket.mass * (bucket.log_off + STEPS * unit.between * size)
    return np.where(bucket.exists, off + unit.tiny * size, 0.0), np.where(bucket.exists, bucket.mass * size, 0.0)


def _named_rows(given: _Taught, case: Case, unit: Roundoff) -> tuple[_Rows, Any]:
    """Rows whose softmax is of the named classes alone, and how their elements' bounds are those of all classes."""
    logits = np.take_along_axis(given.logits, given.classes, axis=1)
    logits = np.where(given.named, logits, np.asarray(-np.inf, logits.dtype))
    places = np.broadcast_to(np.arange(logits.shape[1]), logits.shape)
    rows = _Rows(given, logits, places, case, unit)
    of_places = np.asarray(Bound(logits.shape, rows.gradient))
    classes = given.logits.shape[1]

    def gradient(first: int, last: int) -> np.ndarray:
        index, wanted = np.divmod(np.arange(first, last), max(classes, 1))
        hits = given.named[index] & (given.classes[index] == wanted[:, None])
        return np.asarray((of_places[index] * hits).sum(axis=1))

    return rows, gradient


@np.errstate(all="ignore")
def topk_distillation(case: Case, _: LossResult, unit: Roundoff) -> dict[str, Bound]:
    """The loss, and the gradient of the student's logits."""
    given, tail, shape = _taught(case), case.parameters.get("tail", "drop"), case.inputs["student_logits"].shape
    gradient: Any
    if tail == "renormalise":
        rows, gradient = _named_rows(given, case, unit)
        off, terms = rows.named_losses()
    else:
        rows = _Rows(given, given.logits, given.classes, case, unit)
        gradient = rows.gradient
        off, terms = rows.named_losses()
    if tail == "bucket":
        bucket = rows.bucket()
        of_bucket, more = _losses_of_bucket(bucket, unit)
        off, terms = off + of_bucket, terms + more

        def gradient(first: int, last: int) -> np.ndarray:
            return np.asarray(rows.gradient(first, last) + rows.of_bucket(bucket, first, last))

    off, terms = (without_nan(np.where(given.counts, each, 0.0)) * given.factor for each in (off, terms))
    relative = STEPS * unit.between
    if case.parameters.get("reduction") == "none":
        loss = whole((off + relative * terms).reshape(shape[:-1]), lost=unit.tiny)
    else:
        loss = whole(off.sum() + (relative + unit.sum(len(off))) * terms.sum(), lost=unit.tiny)
    return {"loss": loss, "grad.student_logits": Bound(shape, gradient)}
