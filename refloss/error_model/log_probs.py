"""How far honest log-probabilities and entropies of rows may be from the exact ones.

Notation as in softmax: u and v are unit roundoffs, s(n) what a sum of n terms costs (roundoff), of a row a_j are the
distances from its largest z, log Z + a_j = −ℓ_j = −log p_j and H its entropy. Of K cotangents c_k those of class j have
the sum q_j of magnitudes and all of them Q; h is that of the entropy; y = dz/dx; e = k·u + s(C) + s(K).

A logit that goes through the chain is off by d_j = n·u·|z_j| (chain), and by nothing where there is no chain. So

    |δℓ_j|  ≤ v·(a_j + Σ p_i·a_i + 4) + s(C) + u·(1 + log Z + |ℓ_j|) + d_j + Σ p_i·d_i,    f_j = e^|δℓ_j| − 1
    |δH|    ≤ Σ p_j·(f_j·|ℓ_j| + |δℓ_j|) + e·H
    |δg_j|  ≤ |y|·(e·(q_j + p_j·Q) + Q·p_j·f_j + |h|·p_j·((f_j + e)·(|ℓ_j| + H) + |δℓ_j| + |δH|))
              + |δy|·(q_j + p_j·Q + |h|·p_j·(|ℓ_j| + H))

where |δy| is k·u·|y|, or with a cap k·u·|s/T|: 1 − tanh² is a difference. p may be lost where it is below tiny, and is
multiplied by what follows; so may each product.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss.error_model.bound import BLOCK, Bound, blocks, part, whole, without_nan
from refloss.error_model.chain import Chained, chained, error_of_slope, error_of_value, is_chained
from refloss.roundoff import STEPS, Roundoff, real

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from refloss.result import LossResult


# An exponent that no error of a logarithm needs to go beyond.
_MOST = 80.0


class _Totals(NamedTuple):
    """Of each row."""

    maximum: np.ndarray
    log_total: np.ndarray  # log Z
    spread: np.ndarray  # Σ p·a
    shift: np.ndarray  # Σ p·d
    entropy: np.ndarray
    entropy_off: np.ndarray  # |δH|
    lost: np.ndarray  # Σ |ℓ|, of what each lost p is multiplied by


class _Elements(NamedTuple):
    """Of a part of the logits."""

    rows: np.ndarray
    classes: np.ndarray
    probability: np.ndarray
    log_probability: np.ndarray  # its magnitude
    off: np.ndarray  # |δℓ|
    relative: np.ndarray  # f, of p


class RowBounds:
    """The bounds of rows of logits, of an implementation with some roundoffs.

    Args:
        logits: of the case.
        error: what they may be off by behind the chain, beside what the chain itself does; of their shape.
    """

    def __init__(self, case: Case, unit: Roundoff, logits: np.ndarray, error: np.ndarray | None = None) -> None:
        self.logits, self.unit = logits, unit
        self.error = None if error is None else error.reshape(-1)
        self.shape, self.row_shape = self.logits.shape, self.logits.shape[:-1]
        self.rows, self.classes = math.prod(self.row_shape), self.shape[-1]
        index = case.inputs["index"].astype(np.int64)
        self.index_shape = index.shape
        several = index.shape[-1] if index.ndim == self.logits.ndim else 1
        self.index = index.reshape(self.rows, several)
        counts = case.inputs.get("mask")
        self.counts = np.ones(self.rows, bool) if counts is None else np.asarray(counts, bool).reshape(-1)
        given = case.grad_output if isinstance(case.grad_output, dict) else {"log_probs": case.grad_output}
        self.cotangents = self._cotangent(given.get("log_probs", 0.0), self.index.shape)
        self.of_entropy = self._cotangent(given.get("entropy", 0.0), (self.rows,))
        self.parameters, self.is_chained = case.parameters, is_chained(case.parameters)
        self.relative = STEPS * unit.between + unit.sum(self.classes) + unit.sum(several)
        self.totals = self._totals()

    def _cotangent(self, given: Any, shape: tuple[int, ...]) -> np.ndarray:
        values = np.abs(real(given))
        return np.asarray(values.reshape(shape) if values.ndim else np.full(shape, values))

    def _totals(self) -> _Totals:
        found = np.zeros((len(_Totals._fields), self.rows))
        for first, last in blocks(self.rows, max(1, BLOCK // max(self.classes, 1))):
            within, shape = slice(first * self.classes, last * self.classes), (last - first, self.classes)
            z = chained(part(self.logits, within.start, within.stop), self.parameters).value
            found[:, first:last] = self._of_rows(z.reshape(shape), self._off(z, within).reshape(shape))
        return _Totals(*found)

    def _of_rows(self, z: np.ndarray, moved: np.ndarray) -> Any:
        maximum = z.max(axis=1, initial=-np.inf, keepdims=True)
        distance = np.where(np.isneginf(z), 0.0, maximum - z)
        terms = np.where(np.isneginf(z), 0.0, np.exp(-distance))
        total = terms.sum(axis=1, keepdims=True)
        p, log_total = terms / total, np.log(total)
        spread = (p * distance).sum(axis=1, keepdims=True)
        shift = (p * moved).sum(axis=1, keepdims=True)
        log_p = distance + log_total
        off = self._log_off(distance, spread, log_total, log_p, moved + shift)
        entropy = (p * log_p).sum(axis=1)
        lost = (log_p * ~np.isneginf(z)).sum(axis=1)
        entropy_off = (p * (self._growth(off, p) * log_p + off)).sum(axis=1) + self.relative * entropy
        entropy_off += self.unit.tiny * (1.0 + lost)
        rows = (maximum[:, 0], log_total[:, 0], spread[:, 0], shift[:, 0], entropy, entropy_off, lost)
        return np.array(rows)

    def _off(self, z: np.ndarray, places: Any) -> np.ndarray:
        """d of some z, which are at places among all of them."""
        own = error_of_value(z, self.parameters, self.unit)
        return own if self.error is None else own + self.error[places]

    def _log_off(self, distance: Any, spread: Any, log_total: Any, log_p: Any, moved: Any) -> np.ndarray:
        """|δℓ|."""
        unit = self.unit
        inside = unit.inside * (distance + spread + 4) + unit.sum(self.classes)
        return np.asarray(inside + unit.between * (1 + log_total + log_p) + moved)

    def _growth(self, off: np.ndarray, p: np.ndarray) -> np.ndarray:
        # Of logits as they are, a probability whose logarithm has an error above 1 is 0 in every type; none is above 1.
        most = _MOST if self.is_chained or self.error is not None else 1.0
        return np.asarray(np.minimum(np.expm1(np.minimum(off, most)), 1.0 / np.maximum(p, self.unit.tiny)))

    def _of_classes(self, rows: np.ndarray, classes: np.ndarray, of: Chained) -> _Elements:
        totals, z = self.totals, of.value
        masked = np.isneginf(z)
        distance = np.where(masked, 0.0, totals.maximum[rows] - z)
        log_total = totals.log_total[rows]
        log_p = np.where(masked, 0.0, distance + log_total)
        moved = self._off(z, rows * self.classes + classes) + totals.shift[rows]
        off = self._log_off(distance, totals.spread[rows], log_total, log_p, moved)
        p = np.where(masked, 0.0, np.exp(-log_p))
        return _Elements(rows, classes, p, log_p, off, self._growth(off, p))

    def log_probs(self) -> np.ndarray:
        """|δℓ| of the indices, 0 of rows that do not count."""
        rows = np.repeat(np.arange(self.rows), self.index.shape[1])
        known = np.where(self.counts[rows], self.index.reshape(-1), 0)
        chosen = real(self.logits.reshape(self.rows, self.classes)[rows, known])
        at = self._of_classes(rows, known, chained(chosen, self.parameters))
        return np.asarray(without_nan(np.where(self.counts[rows], at.off, 0.0)).reshape(self.index_shape))

    def entropy(self) -> np.ndarray:
        """|δH|, 0 of rows that do not count."""
        return np.asarray(without_nan(np.where(self.counts, self.totals.entropy_off, 0.0)).reshape(self.row_shape))

    def slope(self, first: int, last: int) -> np.ndarray:
        """|δg| of a part of the logits."""
        return self.slopes(first, last)[0]

    def slopes(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """|δg| of a part of the logits, and the sum of the magnitudes of the terms of g, without the chain's slope."""
        rows, classes = np.divmod(np.arange(first, last), max(self.classes, 1))
        x, tiny = part(self.logits, first, last), self.unit.tiny
        of = chained(x, self.parameters)
        at, steep = self._of_classes(rows, classes, of), np.abs(of.slope)
        steep_off = error_of_slope(of, self.unit) if self.is_chained else 0.0
        given, entropy = self.of_entropy[rows], self.totals.entropy[rows]
        own = (self.cotangents[rows] * (self.index[rows] == classes[:, None])).sum(axis=1)
        pushed, surprise = self.cotangents[rows].sum(axis=1), at.log_probability + entropy
        terms = own + at.probability * (pushed + given * surprise)
        off = self.relative * (own + at.probability * pushed) + pushed * at.probability * at.relative
        of_entropy = (at.relative + self.relative) * surprise + at.off + self.totals.entropy_off[rows]
        off = off + given * at.probability * of_entropy
        lost = tiny * (1.0 + own + (pushed + given * (1.0 + surprise)) * (1.0 + steep))
        counts = self.counts[rows]
        return np.where(counts, steep * off + steep_off * terms + lost, 0.0), np.where(counts, terms, 0.0)

    def outputs(self) -> dict[str, Bound]:
        """Of log-probabilities and entropies."""
        log_probs = whole(self.log_probs(), lost=self.unit.tiny)
        entropy = whole(self.entropy(), lost=self.unit.tiny)
        return {"loss": log_probs, "component.log_probs": log_probs, "component.entropy": entropy}


def selected_log_probs(case: Case, _: LossResult, unit: Roundoff) -> dict[str, Bound]:
    """Log-probabilities of indices and entropies of rows, and the gradient of the logits."""
    given = RowBounds(case, unit, case.inputs["logits"])
    return given.outputs() | {"grad.logits": Bound(given.shape, given.slope)}
