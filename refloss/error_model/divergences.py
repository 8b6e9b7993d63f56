"""How far honest divergences of two softmaxes may be from the exact ones.

Notation as in log_probs: u and v are unit roundoffs, s(n) what a sum of n terms costs (roundoff), e = k·u + s(C). Of
either row ℓ_j = |log p_j| is off by

    |δℓ_j|  ≤ v·(a_j + Σ p_i·a_i + 4) + s(C) + u·(1 + log Z + ℓ_j) + d_j + Σ p_i·d_i,    f_j = e^|δℓ_j| − 1

where a logit over the temperature is off by d_j (chain). Say p·log(p/q) for a term of a divergence, b for what its
logarithm is off by: of log s and log t the sum of both, of log m the mean of f, weighted by β·t and (1 − β)·s. Then

    |δ term|  ≤ p·(f·|log(p/q)| + b + k·u·(ℓ_p + ℓ_q))
    |δD|      ≤ Σ |δ term| + s(C)·Σ p·|log(p/q)|
    |δ slope| ≤ p·((f + e)·(|log(p/q)| + 1 + D) + b + k·u·(ℓ_p + ℓ_q) + |δD|)

whose 1 is that of a derivative that has not been simplified; of s − t it is s·f + t·f' + e·(s + t). A sign in tvd may
be another one where |s − t| is not above what it is off by. p may be lost where it is below tiny, and is multiplied by
what follows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refloss.error_model.bound import BLOCK, Bound, blocks, part, whole, without_nan
from refloss.error_model.chain import error_of_value
from refloss.roundoff import STEPS, Roundoff, real

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from refloss.result import LossResult

SIDES = ("student_logits", "teacher_logits")


class _Side(NamedTuple):
    """Of either array, for some rows [R, V]."""

    p: np.ndarray
    surprise: np.ndarray  # ℓ
    off: np.ndarray  # |δℓ|
    relative: np.ndarray  # f


class _Term(NamedTuple):
    """Of p·log(p/q)."""

    logarithm: np.ndarray  # its magnitude
    off: np.ndarray  # of a term, over p
    total: np.ndarray  # Σ p·log(p/q), [R, 1]
    total_off: np.ndarray


class _Found(NamedTuple):
    """Of some rows."""

    loss: np.ndarray  # [R]
    loss_off: np.ndarray  # [R]
    slopes: tuple[np.ndarray, np.ndarray]  # [R, V] of what either gradient is off by


class DivergenceBounds:
    """The bounds of a case, of an implementation with some roundoffs."""

    def __init__(self, case: Case, unit: Roundoff) -> None:
        self.unit, self.parameters = unit, case.parameters
        self.arrays = [case.inputs[name] for name in SIDES]
        self.shape, self.row_shape = self.arrays[0].shape, self.arrays[0].shape[:-1]
        self.rows, self.classes = math.prod(self.row_shape), self.shape[-1]
        counts = case.inputs.get("mask")
        self.counts = np.ones(self.rows, bool) if counts is None else np.asarray(counts, bool).reshape(-1)
        self.kind, self.beta = case.parameters.get("divergence", "forward_kl"), case.parameters.get("beta", 0.5)
        self.reduction = case.parameters.get("reduction", "mean")
        self.temperature = float(case.parameters.get("temperature", 1.0))
        self.factor = self.temperature**2 if case.parameters.get("temperature_squared") else 1.0
        self.count = max(float(self.counts.sum()), 1.0) if self.reduction == "mean" else 1.0
        upstream = np.abs(real(case.grad_output)).reshape(-1)
        self.upstream = np.broadcast_to(upstream, (self.rows,)) * self.factor / self.temperature / self.count
        self.relative = STEPS * unit.between + unit.sum(self.classes)

    def _side(self, values: np.ndarray) -> _Side:
        """Of logits [R, V]."""
        unit = self.unit
        z = values / self.temperature
        masked = np.isneginf(z)
        moved = error_of_value(z, {"temperature": self.temperature}, unit)
        distance = np.where(masked, 0.0, z.max(axis=1, initial=-np.inf, keepdims=True) - z)
        terms = np.where(masked, 0.0, np.exp(-distance))
        total = terms.sum(axis=1, keepdims=True)
        p, log_total = terms / total, np.log(total)
        spread, shift = ((p * each).sum(axis=1, keepdims=True) for each in (distance, moved))
        surprise = np.where(masked, 0.0, distance + log_total)
        off = unit.inside * (distance + spread + 4) + unit.sum(self.classes)
        off = np.where(masked, 0.0, off + unit.between * (1 + log_total + surprise) + moved + shift)
        growth = np.minimum(np.expm1(np.minimum(off, 1.0)), 1.0 / np.maximum(p, unit.tiny))
        return _Side(p, surprise, off, growth)

    def _term(self, side: _Side, ratio: np.ndarray, off: np.ndarray, surprise: np.ndarray) -> _Term:
        """Of a log(p/q) that is off by so much, and log q."""
        unit, there = self.unit, side.p > 0.0
        logarithm = np.where(there, np.abs(ratio), 0.0)
        each = np.where(there, off + unit.few * (side.surprise + surprise), 0.0)
        own = side.p * (side.relative * logarithm + each) + unit.tiny * (1.0 + logarithm + each)
        total = np.abs((side.p * np.where(there, ratio, 0.0)).sum(axis=1, keepdims=True))
        summed = unit.sum(self.classes) * (side.p * logarithm).sum(axis=1, keepdims=True)
        return _Term(logarithm, each, total, own.sum(axis=1, keepdims=True) + summed)

    def _slope(self, side: _Side, term: _Term) -> np.ndarray:
        """Of p·(log(p/q) − Σ p·log(p/q))."""
        size = term.logarithm + 1.0 + term.total
        steep = (side.relative + self.relative) * size + term.off + term.total_off
        return np.asarray(side.p * steep + self.unit.tiny * (1.0 + size))

    def _difference(self, s: _Side, t: _Side) -> np.ndarray:
        """Of s − t."""
        return np.asarray(s.p * s.relative + t.p * t.relative + self.relative * (s.p + t.p) + self.unit.tiny)

    def _of_rows(self, first: int, last: int) -> _Found:
        values = (part(array, first * self.classes, last * self.classes) for array in self.arrays)
        s, t = (self._side(each.reshape(last - first, self.classes)) for each in values)
        if self.kind == "tvd":
            return self._variation(s, t)
        if self.kind == "jsd":
            return self._mixture(s, t)
        ratio = np.where(s.p > 0.0, -s.surprise, -np.inf) - np.where(t.p > 0.0, -t.surprise, -np.inf)
        own, other = (t, s) if self.kind == "forward_kl" else (s, t)
        term = self._term(own, ratio, s.off + t.off, other.surprise)
        slopes = self._slope(own, term), self._difference(s, t)
        return _Found(term.total[:, 0], term.total_off[:, 0], slopes[::-1] if own is t else slopes)

    def _mixture(self, s: _Side, t: _Side) -> _Found:
        shares = 1.0 - self.beta, self.beta
        mixed = shares[0] * s.p + shares[1] * t.p
        surprise = np.where(mixed > 0.0, -np.log(np.maximum(mixed, 2.0**-1074)), 0.0)
        own = (shares[0] * s.p * s.relative + shares[1] * t.p * t.relative + self.unit.tiny) / np.maximum(
            mixed, self.unit.tiny
        )
        own = own + self.unit.few * (1.0 + surprise)
        terms = [self._term(side, np.log(side.p) - np.log(mixed), side.off + own, surprise) for side in (s, t)]
        both = list(zip(shares, (s, t), terms, strict=True))
        loss = sum(share * term.total[:, 0] for share, _, term in both)
        off = sum(share * term.total_off[:, 0] for share, _, term in both)
        # The slope of one of both has a part of either term, which m holds.
        slopes = [share * self._slope(side, term) for share, side, term in both]
        return _Found(np.asarray(loss), np.asarray(off), (slopes[0], slopes[1]))

    def _variation(self, s: _Side, t: _Side) -> _Found:
        off = self._difference(s, t)
        gap = np.abs(s.p - t.p)
        total = 0.5 * gap.sum(axis=1)
        total_off = 0.5 * off.sum(axis=1) + self.unit.sum(self.classes) * total
        unsure = gap <= off

        def slope(side: _Side) -> np.ndarray:
            lost = (side.p * unsure).sum(axis=1, keepdims=True)
            return np.asarray(side.p * (side.relative + self.relative + unsure + lost) + self.unit.tiny)

        return _Found(total, total_off, (slope(s), slope(t)))

    def loss(self) -> Bound:
        """Of the loss."""
        size, off = np.zeros(self.rows), np.zeros(self.rows)
        with np.errstate(all="ignore"):
            for first, last in blocks(self.rows, max(1, BLOCK // max(self.classes, 1))):
                found = self._of_rows(first, last)
                size[first:last], off[first:last] = found.loss, found.loss_off
        size, off = (np.where(self.counts, without_nan(each), 0.0) * self.factor for each in (size, off))
        off = off + self.unit.few * size
        if self.reduction == "none":
            return whole(off.reshape(self.row_shape), lost=self.unit.tiny)
        return whole((off.sum() + self.unit.sum(self.rows) * size.sum()) / self.count, lost=self.unit.tiny)

    def slope(self, side: int) -> Bound:
        """Of a gradient."""

        def of_part(first: int, last: int) -> np.ndarray:
            start, stop = first // self.classes, -(-last // self.classes)
            found = self._of_rows(start, stop).slopes[side]
            found = np.where(self.counts[start:stop, None], self.upstream[start:stop, None] * found, 0.0)
            return np.asarray(found.reshape(-1)[first - start * self.classes : last - start * self.classes])

        return Bound(self.shape, of_part)


def distillation(case: Case, _: LossResult, unit: Roundoff) -> dict[str, Bound]:
    """The loss, and both gradients."""
    bounds = DivergenceBounds(case, unit)
    return {"loss": bounds.loss(), **{f"grad.{name}": bounds.slope(side) for side, name in enumerate(SIDES)}}
