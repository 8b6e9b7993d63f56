"""How far honest losses of a router may be from the exact ones.

Notation as in softmax: of a row of E logits a_e are the distances from its largest, ℓ_e = log p_e, k·u a few roundings,
s(n) what a sum of n terms costs. N rows count. What is chosen is exact: no type may choose another expert. So

    |δℓ_e| ≤ v·(a_e + Σ p·a + 4) + s(E) + u·(1 + log Z + |ℓ_e|),    d_e = e^|δℓ_e| − 1, of p_e
    |δlse| ≤ 4·v + s(E) + u·(Σ p·a + 3 + log Z + |lse|)

Of the z-loss, with K = 2·|c|/N, where p may be e^(z − lse) of an lse that is rounded, d'_e = e^(|δℓ_e| + |δlse|) − 1,

    |δL|   ≤ (1/N)·Σ (2·|lse|·|δlse| + |δlse|² + (k·u + s(N))·lse²)
    |δg_e| ≤ K·p_e·(|δlse| + (d'_e + k·u)·(|lse| + |δlse|))

and of the balance, with K = E·|c|/N, in which M = Σ f_j·p_j of the row, P_e = (1/N)·Σ p_e,

    |δP_e| ≤ (1/N)·Σ p_e·d_e + (k·u + s(N))·P_e
    |δL|   ≤ E·Σ f_e·(|δP_e| + (k·u + s(E))·P_e)
    |δg_e| ≤ K·p_e·((d_e + k·u)·(f_e + M) + Σ f_j·p_j·d_j + s(E)·M)

Numbers below tiny may be lost: p, and each product that it is in.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refloss.error_model.bound import Bound, part, whole, without_nan
from refloss.roundoff import STEPS, Roundoff, real

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.cases.source import Case
    from refloss.result import LossResult


class _Rows(NamedTuple):
    """Of some rows [R, E]; those that do not count are 0 everywhere."""

    p: np.ndarray
    off: np.ndarray  # |δℓ|
    lse: np.ndarray  # [R], its magnitude
    lse_off: np.ndarray  # [R]

    @property
    def relative(self) -> np.ndarray:
        """d, of p."""
        return _grown(self.off)


def _grown(off: np.ndarray) -> np.ndarray:
    # A probability whose logarithm has an error above 1 is 0 in every type.
    return np.asarray(np.expm1(np.minimum(off, 1.0)))


class _Given:
    """A case's rows, of an implementation with some roundoffs."""

    def __init__(self, case: Case, unit: Roundoff) -> None:
        self.logits, self.unit = case.inputs["router_logits"], unit
        self.shape, self.experts = self.logits.shape, self.logits.shape[-1]
        self.rows = math.prod(self.shape[:-1])
        mask = np.asarray(case.inputs.get("mask", np.ones(self.shape[:-1])), bool)
        self.counts = np.broadcast_to(mask.reshape(-1), (self.rows // max(mask.size, 1), mask.size)).reshape(-1)
        self.cotangent = float(np.abs(real(case.grad_output)))
        self.relative = STEPS * unit.between

    def of_rows(self, first: int, last: int) -> _Rows:
        """Rows first to last."""
        z = part(self.logits, first * self.experts, last * self.experts).reshape(-1, self.experts)
        counts, unit = self.counts[first:last, None], self.unit
        z = np.where(counts, z, 0.0)
        masked = np.isneginf(z)
        maximum = z.max(axis=1, initial=-np.inf, keepdims=True)
        distance = np.where(masked, 0.0, maximum - z)
        terms = np.where(masked, 0.0, np.exp(-distance))
        total = terms.sum(axis=1, keepdims=True)
        p, log_total = terms / total, np.log(total)
        spread = (p * distance).sum(axis=1, keepdims=True)
        summed = unit.sum(self.experts)
        off = unit.inside * (distance + spread + 4) + summed + unit.between * (1 + 2 * log_total + distance)
        lse = np.abs(maximum + log_total)
        lse_off = 4 * unit.inside + summed + unit.between * (spread + 3 + log_total + lse)
        p, off, lse, lse_off = (without_nan(np.where(counts, values, 0.0)) for values in (p, off, lse, lse_off))
        return _Rows(p, off, lse[:, 0], lse_off[:, 0])

    def bound(self, of_rows: Callable[[int, int], np.ndarray]) -> Bound:
        """Of the gradient, from what of_rows(first row, last row) says of whole rows."""

        def of_part(first: int, last: int) -> np.ndarray:
            row = first // self.experts
            values = of_rows(row, -(-last // self.experts)).reshape(-1)
            return np.asarray(values[first - row * self.experts : last - row * self.experts])

        return Bound(self.shape, of_part)


def router_z_loss(case: Case, _: LossResult, unit: Roundoff) -> dict[str, Bound]:
    """The loss, its gradient and lse."""
    given = _Given(case, unit)
    rows, count = given.of_rows(0, given.rows), max(int(given.counts.sum()), 1)
    added = given.relative + unit.sum(count)
    off = (2 * rows.lse + rows.lse_off) * rows.lse_off + added * rows.lse**2

    def slope(first: int, last: int) -> np.ndarray:
        at, factor = given.of_rows(first, last), 2 * given.cotangent / count
        lse, lse_off = at.lse[:, None], at.lse_off[:, None]
        off = at.p * (lse_off + (_grown(at.off + lse_off) + given.relative) * (lse + lse_off))
        return np.asarray(factor * off + unit.tiny * (1 + given.cotangent + (1 + factor) * (1 + lse)))

    return {
        "loss": whole(off.sum() / count, lost=unit.tiny * (1 + count)),
        "grad.router_logits": given.bound(slope),
        "intermediate.lse": whole(rows.lse_off, given.shape[:-1], lost=unit.tiny),
    }


class _Balanced(NamedTuple):
    """Rows that are balanced together."""

    first: int
    last: int
    rows: int  # that count
    f: np.ndarray  # [E]
    p: np.ndarray  # [E], P
    p_off: np.ndarray  # [E]


def moe_load_balancing(case: Case, result: LossResult, unit: Roundoff) -> dict[str, Bound]:
    """The loss, its gradient, f, P and which experts are chosen."""
    given = _Given(case, unit)
    pooled = bool(case.parameters.get("pool_layers", True))
    found = result.intermediates
    f = real(found["tokens_per_expert"]).reshape(-1, given.experts)
    groups = [_balanced(given, f, i) for i in range(len(f))]
    factor = given.experts * given.cotangent / len(groups)
    losses = np.array([_loss_off(given, group) for group in groups])

    def slope(first: int, last: int) -> np.ndarray:
        at = given.of_rows(first, last)
        size = max(given.rows // len(groups), 1)
        of_row = np.arange(first, last) // size
        frequency = without_nan(f)[of_row]
        counted = np.array([max(group.rows, 1) for group in groups])[of_row][:, None]
        mean = (frequency * at.p).sum(axis=1, keepdims=True)
        moved = (frequency * at.p * at.relative).sum(axis=1, keepdims=True) + unit.sum(given.experts) * mean
        off = at.p * ((at.relative + given.relative) * (frequency + mean) + moved)
        return np.asarray(factor / counted * off + unit.tiny * (1 + given.cotangent + (1 + factor) * (1 + frequency)))

    shape = () if pooled else (len(groups),)
    limits = {
        "loss": whole(losses.mean(), lost=unit.tiny * (1 + given.experts)),
        "grad.router_logits": given.bound(slope),
        "intermediate.tokens_per_expert": whole(given.relative * without_nan(f), (*shape, given.experts)),
        "intermediate.router_prob_per_expert": whole(
            np.array([group.p_off for group in groups]), (*shape, given.experts), lost=unit.tiny
        ),
        "intermediate.selected": whole(np.zeros(found["selected"].shape)),
    }
    return limits if pooled else limits | {"intermediate.layer_losses": whole(losses, lost=unit.tiny)}


def _balanced(given: _Given, f: np.ndarray, i: int) -> _Balanced:
    size = given.rows // len(f)
    first, last = i * size, (i + 1) * size
    rows, count = given.of_rows(first, last), int(given.counts[first:last].sum())
    p, moved = rows.p.sum(axis=0) / max(count, 1), (rows.p * rows.relative).sum(axis=0) / max(count, 1)
    off = moved + (given.relative + given.unit.sum(count)) * p
    return _Balanced(first, last, count, without_nan(f[i]), p, off)


def _loss_off(given: _Given, group: _Balanced) -> float:
    relative = given.relative + given.unit.sum(given.experts)
    return float(given.experts * (group.f * (group.p_off + relative * group.p)).sum())
