"""How far an honest loss of rows of logits may be from the exact one: cross-entropy, and what adds to it.

Notation: a row x of C logits has the maximum m, distances a_j = m − x_j, Z = Σ e^(x_j − m) and ℓ_j = log p_j. Its
target mass is q_j = w_j·((1 − ε)·t_j + ε/C) with Q = Σ q_j; c is its cotangent over the normaliser. u is the unit
roundoff between operations, v inside them, s(n) what a sum of n terms costs (roundoff). What is rounded: x − m, log Z
and the log-sum-exp, each before it is used.

An absolute error of a in a logarithm is a relative error of e^a − 1 in the number. So, with s(C) + 4·v for a sum of C
terms, an exponential and a logarithm, k roundings of a product (STEPS), and e = k·u + s(R) where R rows are added (R·C
terms where a target is a distribution),

    |δℓ_j|   ≤ v·(a_j + Σ p_i·a_i + 4) + s(C) + u·(1 + log Z + |ℓ_j|)
    |δlse|   ≤ 4·v + s(C) + u·(Σ p_i·a_i + 3 + log Z + |lse|)
    |δp_j|   ≤ p_j·(e^|δℓ_j| − 1) + tiny
    |δL|     ≤ Σ |q_j|·(|δℓ_j| + (e + s(C))·|ℓ_j|), over the normaliser
    |δg_j|   ≤ |c|·((e + s(C))·(|q_j| + p_j·|Q|) + |Q|·(p_j·(e^|δℓ_j| − 1) + tiny))
    |δ∂t_j|  ≤ |c|·(1 − ε)·|w_j|·(|δℓ_j| + (k·u + s(C))·|ℓ_j|)

where s(R) is in a gradient only if the normaliser is a sum of weights: a count is exact, or rounded once. Logits that
come from elsewhere have an error of their own, d_j in x_j: it adds d_j + Σ p_i·d_i to |δℓ_j|.

Of logits y that a chain has made of x, |δ∂L/∂x| ≤ |∂y/∂x|·|δg| + |g|·|δ∂y/∂x| (chain); |δy| is such a d.

A loss that adds a function a of lse to its rows, with the derivative b, has

    |δL|     ≤ ... + |a'|·|δlse| + e·|a|
    |δg_j|   ≤ ... + |c|·(p_j·|b'|·|δlse| + |b|·(e·p_j + p_j·(e^|δℓ_j| − 1) + tiny))

All of it is made of some numbers a row, m, log Z, Σ p·a, Q and Σ q·a, which one pass over the logits finds, and of the
logits themselves.

Numbers below tiny may be lost: p, a product of a target and a logarithm, c before it multiplies q, or, where a target
is a distribution, each of the C products c·q of a row before their sum multiplies p.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss.error_model.bound import BLOCK, Bound, blocks, part, whole, without_nan
from refloss.error_model.chain import chained, error_of_slope, error_of_value, is_chained, z_factor
from refloss.roundoff import STEPS, Roundoff, real
from refloss.specification import AddedTerms

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from refloss.cases.source import Case
    from refloss.result import LossResult
    from refloss.specification import Softmax

IGNORED = -100
OPTIONS = ("ignore_index", "reduction", "label_smoothing")


class _Totals(NamedTuple):
    """Of each row; a masked class has no error, and is in no sum."""

    maximum: np.ndarray  # m
    log_total: np.ndarray  # log Z
    spread: np.ndarray  # Σ p·a
    pushed: np.ndarray  # Σ |q|
    pulled: np.ndarray  # Σ |q|·a
    known: np.ndarray  # Σ |t|
    near: np.ndarray  # Σ |t|·a
    shift: np.ndarray  # Σ p·d
    moved: np.ndarray  # Σ |q|·d
    moved_near: np.ndarray  # Σ |t|·d

    @property
    def lse(self) -> np.ndarray:
        """The magnitude of log Σ e^x."""
        return np.asarray(np.abs(self.maximum + self.log_total))

    def at(self, rows: np.ndarray) -> _Totals:
        """Those of some rows."""
        return _Totals(*(values[rows] for values in self))


class _Elements(NamedTuple):
    """Of a part of the logits, and of the rows that they are in."""

    totals: _Totals
    probability: np.ndarray
    log_probability: np.ndarray  # its magnitude
    distance: np.ndarray  # a
    mass: np.ndarray  # |q|
    weight: np.ndarray | float  # |w|, of the class
    cotangent: np.ndarray  # of the row
    error: np.ndarray | float  # d


class Rows:
    """A cross-entropy of logits of any float type, with the classes on any axis.

    Args:
        logits: any number of axes of rows, and one of classes.
        target: labels of the shape of the rows, or probabilities of the shape of the logits.
        cotangent: one number, or one a row.
        class_axis: that of the classes.
        normaliser: what the losses' sum is divided by, if "mean" and its weights do not say it.
        added: added(lse, mass) is what every row has beside its masses' likelihood.
        error: how far each logit is off.
        summed: how many rows are added, if it is not those that are given.
        slope: the derivative of each logit for what gradients are of, and how far it is off.
    """

    def __init__(
        self,
        logits: np.ndarray,
        target: np.ndarray,
        cotangent: Any,
        *,
        class_axis: int = -1,
        weight: np.ndarray | None = None,
        ignore_index: int = IGNORED,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        normaliser: float | None = None,
        added: Callable[[np.ndarray, np.ndarray], AddedTerms] | None = None,
        error: np.ndarray | None = None,
        summed: int | None = None,
        slope: tuple[np.ndarray, float] | None = None,
    ) -> None:
        self.shape, self.axis = logits.shape, class_axis % logits.ndim
        self.logits, self.error, self.added, self.slope = logits, error, added, slope
        self.row_shape = self.shape[: self.axis] + self.shape[self.axis + 1 :]
        self.rows, self.classes = math.prod(self.row_shape), self.shape[self.axis]
        self.inner = math.prod(self.shape[self.axis + 1 :])
        self.cotangent = np.abs(real(cotangent))
        self.weight, self.smoothing = None if weight is None else np.abs(real(weight)), label_smoothing
        self.target = None if target.dtype.kind in "biu" else target
        # Of a distribution no row has one.
        self.labels = (
            np.where(target == ignore_index, -1, target).reshape(-1) if self.target is None else np.zeros(0, int)
        )
        self.reduced = reduction != "none"
        if normaliser is None:
            normaliser = self._count() if reduction == "mean" else 1.0
        self.normaliser = np.float64(normaliser)  # 0 where nothing counts
        self.summed = (self.rows if summed is None else summed) if self.reduced else 0
        self.at = functools.lru_cache(maxsize=1)(self._at)

    def _count(self) -> float:
        """What a mean divides by: the rows of distributions, or the weights of labels."""
        if self.target is not None:
            return float(self.rows)
        known = self.labels[self.labels >= 0]
        return float(known.size if self.weight is None else self.weight[known].sum())

    def _mass(self, target: Any, classes: Any, counted: Any) -> np.ndarray:
        """|q| of the targets of some classes, in rows that count."""
        mass = ((1 - self.smoothing) * target + self.smoothing / max(self.classes, 1)) * counted
        return np.asarray(np.abs(mass if self.weight is None else self.weight[classes] * mass))

    @functools.cached_property
    def totals(self) -> _Totals:
        """One pass over the logits, some rows at a time, or some classes of one."""
        found = np.zeros((len(_Totals._fields), self.rows))
        for first, last in blocks(self.rows, max(1, BLOCK // max(self.classes, 1))):
            found[:, first:last] = self._totals(first, last)
        return _Totals(*found)

    def _totals(self, first: int, last: int) -> np.ndarray:
        pieces = list(blocks(self.classes))
        read = functools.lru_cache(maxsize=1)(lambda *piece: self._read(self.logits, first, last, *piece))
        maximum = np.full((last - first, 1), -np.inf)
        for piece in pieces:
            maximum = np.maximum(maximum, read(*piece).max(axis=1, keepdims=True))
        sums = np.zeros((9, last - first))
        for piece in pieces:
            sums += self._sums(first, last, piece, maximum - read(*piece))
        sums[[1, 6]] /= sums[0]
        sums[0] = np.log(sums[0])
        return np.concatenate([maximum.T, sums])

    def _sums(self, first: int, last: int, piece: tuple[int, int], distance: np.ndarray) -> np.ndarray:
        """Over some classes of some rows: those of totals from log_total on, of which p is still to be divided by Z."""
        terms = np.exp(-distance)
        distance = np.where(np.isposinf(distance), 0.0, distance)
        classes = np.arange(*piece)
        target: Any
        counted: Any = 1.0
        if self.target is not None:
            target = self._read(self.target, first, last, *piece)
        else:
            labels = self.labels[first:last, None]
            target, counted = labels == classes, labels >= 0
        mass, known = self._mass(target, classes, counted), np.abs(target)
        rows = [terms, terms * distance, mass, mass * distance, known, known * distance]
        if self.error is not None:
            error = self._read(self.error, first, last, *piece)
            rows += [terms * error, mass * error, known * error]
        sums = np.zeros((9, last - first))
        for held, row in zip(sums, rows, strict=False):
            held[:] = row.sum(axis=1)
        return sums

    def _read(self, values: np.ndarray, first: int, last: int, *piece: int) -> np.ndarray:
        """Some classes of some rows, [rows, classes] in float64."""
        moved = np.moveaxis(values, self.axis, -1)
        rows: Any = (slice(first, last),)
        if moved.ndim != 2:
            rows = np.unravel_index(np.arange(first, last), self.row_shape) if self.row_shape else ()
        return real(moved[(*rows, slice(*piece))]).reshape(last - first, -1)

    def _places(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows and the classes of elements in C order."""
        outer, rest = np.divmod(np.arange(first, last), self.classes * self.inner)
        if self.inner == 1:
            return outer, rest
        classes, inner = np.divmod(rest, self.inner)
        return outer * self.inner + inner, classes

    def of_labels(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Of some rows with labels: the mass of the label, 0 where it is ignored, and its logit."""
        labels, rows = self.labels[first:last], np.arange(first, last)
        places = np.unravel_index(rows, self.row_shape) if self.row_shape else ()
        known = np.maximum(labels, 0)
        chosen = real(np.moveaxis(self.logits, self.axis, -1)[(*places, known)])
        return self._mass(1.0, known, labels >= 0), chosen

    def masses(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Of elements in C order: |q|, and the cotangent of the row."""
        rows, classes = self._places(first, last)
        cotangent = self.cotangent if self.cotangent.ndim == 0 else self.cotangent.reshape(-1)[rows]
        if self.target is not None:
            return self._mass(part(self.target, first, last), classes, 1.0), cotangent
        labels = self.labels[rows]
        return self._mass(labels == classes, classes, labels >= 0), cotangent

    def _at(self, first: int, last: int) -> _Elements:
        rows, classes = self._places(first, last)
        totals, logits = self.totals.at(rows), part(self.logits, first, last)
        masked = np.isneginf(logits)
        distance = np.where(masked, 0.0, totals.maximum - logits)
        log_probability = np.where(masked, 0.0, distance + totals.log_total)
        mass, cotangent = self.masses(first, last)
        return _Elements(
            totals,
            probability=np.where(masked, 0.0, np.exp(-log_probability)),
            log_probability=log_probability,
            distance=distance,
            mass=mass,
            weight=1.0 if self.weight is None else self.weight[classes],
            cotangent=cotangent,
            error=0.0 if self.error is None else part(self.error, first, last),
        )


class _RowBounds:
    """The bounds of a cross-entropy's tensors, of an implementation with some roundoffs."""

    def __init__(self, given: Rows, unit: Roundoff) -> None:
        self.given, self.unit = given, unit
        self.of_classes = unit.sum(given.classes)
        soft = given.target is not None
        added = unit.sum(given.summed * (given.classes if soft else 1))
        self.relative = STEPS * unit.between + added + self.of_classes
        # A count of rows is exact, or rounded once; sums of weights are not.
        is_count = soft or given.weight is None
        self.of_gradient = self.relative - (added if is_count else 0.0)
        # In how many products a row's target is, each of which may be lost.
        self.products = given.classes if soft or given.smoothing else 1

    def tensors(self) -> dict[str, Bound]:
        """By name, "grad.logits" and "grad.target" among them."""
        given, unit = self.given, self.unit
        rows, totals = given.row_shape, given.totals
        known = self._of_rows(totals.known, totals.near, totals.moved_near)
        limits = {"loss": self._loss(), "lse": self._of_lse(totals), "nll": known + self.products * unit.tiny}
        loss = limits.pop("loss")
        lost = unit.tiny * (1.0 + 2.0 * self.products * given.summed / abs(given.normaliser))
        return {
            "loss": whole(without_nan(loss).sum() / abs(given.normaliser), lost=lost)
            if given.reduced
            else whole(loss, rows, lost=2 * self.products * unit.tiny),
            "grad.logits": Bound(given.shape, self._of_logits),
            "grad.target": Bound(given.shape, self._of_target),
            **(self._parts(lost) if given.added is not None else {}),
            **{f"intermediate.{name}": whole(value, rows, lost=unit.tiny) for name, value in limits.items()},
            "intermediate.log_probabilities": Bound(given.shape, lambda *ends: self._of_log(given.at(*ends))),
            "intermediate.probabilities": Bound(given.shape, lambda *ends: self._of_p(given.at(*ends))),
        }

    def _parts(self, lost: Any) -> dict[str, Bound]:
        """Those of the two parts of a loss."""
        given, totals = self.given, self.given.totals
        of_rows = {
            "cross_entropy": self._of_rows(totals.pushed, totals.pulled, totals.moved),
            "z_loss": np.asarray(self._of_added()),
        }
        return {
            f"component.{name}": whole(without_nan(value).sum() / abs(given.normaliser), lost=lost)
            if given.reduced
            else whole(value, given.row_shape, lost=lost)
            for name, value in of_rows.items()
        }

    def _of_log(self, at: _Elements) -> np.ndarray:
        """|δℓ|."""
        unit, totals = self.unit, at.totals
        inside = unit.inside * (at.distance + totals.spread + 4) + self.of_classes
        between = unit.between * (1 + totals.log_total + at.log_probability)
        return np.asarray(inside + between + at.error + totals.shift)

    def _of_p(self, at: _Elements) -> np.ndarray:
        # A probability whose logarithm has an error above 1 is 0 in every type; the bound needs no larger exponent.
        return np.asarray(at.probability * np.expm1(np.minimum(self._of_log(at), 1.0)) + self.unit.tiny)

    def _of_lse(self, totals: _Totals) -> np.ndarray:
        """|δlse|."""
        between = self.unit.between * (totals.spread + 3 + totals.log_total + totals.lse)
        return np.asarray(between + 4 * self.unit.inside + self.of_classes + totals.shift)

    def _of_rows(self, mass: np.ndarray, pulled: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """Σ |q|·(|δℓ| + (e + s(C))·|ℓ|): both errors are linear in a, and so in Σ |q|·a."""
        unit, totals = self.unit, self.given.totals
        every = unit.inside * (totals.spread + 4) + self.of_classes + totals.shift
        every = every + unit.between * (1 + 2 * totals.log_total) + self.relative * totals.log_total
        each = (unit.inside + unit.between + self.relative) * pulled + moved
        return np.asarray(without_nan(mass * every) + each)

    def _added(self, totals: _Totals) -> AddedTerms | None:
        if self.given.added is None:
            return None
        # Rows that are ignored have nothing of it.
        counted = 1.0 if self.given.target is not None else totals.known > 0
        return AddedTerms(*(counted * term for term in self.given.added(totals.lse, totals.pushed)))

    def _loss(self) -> np.ndarray:
        """Of every row."""
        totals = self.given.totals
        return self._of_rows(totals.pushed, totals.pulled, totals.moved) + self._of_added()

    def _of_added(self) -> np.ndarray | float:
        """Of what every row has beside."""
        added = self._added(self.given.totals)
        if added is None:
            return 0.0
        return np.asarray(added.slope * self._of_lse(self.given.totals) + self.relative * added.value)

    def _of_logits(self, first: int, last: int) -> np.ndarray:
        given, at, unit = self.given, self.given.at(first, last), self.unit
        pushed, of_p = at.totals.pushed, self._of_p(at)
        coefficient = at.cotangent / abs(self.given.normaliser)
        bound = self.of_gradient * (at.mass + pushed * at.probability) + pushed * of_p
        added = self._added(at.totals)
        if added is not None:
            bound += added.pushed_slope * self._of_lse(at.totals) * at.probability
            bound += added.pushed * (self.relative * at.probability + of_p)
        lost = at.mass + (pushed + self.products) * at.probability
        # What smoothing gives may be a gradient of its own that is added.
        parts = 2.0 if self.given.smoothing else 1.0
        bound = coefficient * bound
        if given.slope is not None:
            slope, error = part(given.slope[0], first, last), given.slope[1]
            size = at.mass + (pushed + (0.0 if added is None else added.pushed)) * at.probability
            bound = np.abs(slope) * bound + error * (coefficient * size + bound)
            lost = lost * np.maximum(np.abs(slope), 1.0)
        return np.asarray(bound + unit.tiny * (parts + at.cotangent + lost))

    def _of_target(self, first: int, last: int) -> np.ndarray:
        at, unit = self.given.at(first, last), self.unit
        coefficient = at.cotangent / abs(self.given.normaliser) * abs(1 - self.given.smoothing) * at.weight
        bound = self._of_log(at) + self.of_gradient * at.log_probability
        return np.asarray(coefficient * bound + unit.tiny * (1.0 + at.cotangent + (1 + at.weight) * at.log_probability))


@np.errstate(all="ignore")
def row_bounds(given: Rows, unit: Roundoff) -> dict[str, Bound]:
    """Of loss, gradients and values on the way, in the layout of the logits."""
    return _RowBounds(given, unit).tensors()


def bounds(specification: Softmax, case: Case, unit: Roundoff) -> dict[str, Bound]:
    """Classes on axis 1, or on the only one."""
    logits_name, target_name = list(specification.arguments)[:2]
    logits, added = case.inputs[logits_name], specification.added
    chain, of_lse = of_chain(logits, case.parameters, unit)
    weights = [case.inputs[name] for name in specification.named("class weight") if name in case.inputs]
    options = {name: value for name, value in case.parameters.items() if name in OPTIONS}
    given = Rows(
        chain.pop("logits", logits),
        case.inputs[target_name],
        case.grad_output,
        class_axis=min(1, logits.ndim - 1),
        weight=weights[0] if weights else None,
        added=of_lse if added is None else lambda lse, mass: added(lse, mass, case.parameters),
        **options,
        **chain,
    )
    limits = row_bounds(given, unit)
    return limits | {f"grad.{logits_name}": limits["grad.logits"], f"grad.{target_name}": limits["grad.target"]}


def of_chain(
    logits: np.ndarray, parameters: Mapping[str, Any], unit: Roundoff
) -> tuple[dict[str, Any], Callable[[np.ndarray, np.ndarray], AddedTerms] | None]:
    """What rows have where their logits go through a chain, and what a z-loss adds to them."""
    found: dict[str, Any] = {}
    if is_chained(parameters):
        of = chained(logits, parameters)
        slope = np.broadcast_to(of.slope, logits.shape)
        error = error_of_value(of.value, parameters, unit)
        found = {"logits": of.value, "error": error, "slope": (slope, error_of_slope(of, unit))}
    factor = z_factor(parameters)
    return found, functools.partial(_squared_lse, factor) if factor else None


def _squared_lse(factor: float, lse: np.ndarray, _: np.ndarray) -> AddedTerms:
    """What factor·lse² adds, whatever the masses."""
    return AddedTerms(factor * lse**2, 2 * factor * lse, 2 * factor * lse, np.full_like(lse, 2 * factor))


def tokens(case: Case, result: LossResult, unit: Roundoff) -> dict[str, Bound]:
    """causal_lm, masked_lm and token_classification: classes on the last axis, labels perhaps shifted."""
    logits, options = case.inputs["logits"], case.parameters
    labels = np.asarray(result.intermediates.get("shift_labels", case.inputs["labels"]))
    classes = options.get("vocab_size") or options.get("num_labels") or logits.shape[-1]
    items = options.get("num_items_in_batch")
    rows = logits if logits.shape[-1] == classes else logits.reshape(-1, classes)
    chain, of_lse = of_chain(rows, options, unit)
    given = Rows(
        chain.pop("logits", rows),
        labels.reshape(-1) if logits.shape[-1] != classes else labels,
        case.grad_output,
        ignore_index=options.get("ignore_index", IGNORED),
        reduction="mean" if items is None else "sum",
        normaliser=None if items is None else float(items),
        added=of_lse,
        **chain,
    )
    of_classes = ("grad.logits", "intermediate.log_probabilities", "intermediate.probabilities")
    shapes = dict.fromkeys(of_classes, logits.shape)
    shapes |= {f"intermediate.{name}": np.shape(result.intermediates[name]) for name in ("lse", "nll")}
    limits = row_bounds(given, unit) | {"intermediate.shift_labels": whole(np.zeros(labels.shape))}
    return {name: value.reshaped(shapes[name]) if name in shapes else value for name, value in limits.items()}
