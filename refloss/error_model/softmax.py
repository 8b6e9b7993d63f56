"""How far an honest loss of rows of logits may be from the exact one: cross-entropy, and what adds to it.

Notation: a row x of C logits has the maximum m, distances a_j = m − x_j, Z = Σ e^(x_j − m) and ℓ_j = log p_j. Its
target mass is q_j = w_j·((1 − ε)·t_j + ε/C) with Q = Σ q_j; c is its cotangent over the normaliser. u is the unit
roundoff between operations, v inside them (roundoff). What is rounded: x − m, log Z and the log-sum-exp, each before it
is used.

An absolute error of a in a logarithm is a relative error of e^a − 1 in the number. So, with C + 4 for a sum of C terms,
an exponential and a logarithm, k roundings of a product (STEPS), and R more where R rows are added,

    |δℓ_j|   ≤ v·(a_j + Σ p_i·a_i + C + 4) + u·(1 + log Z + |ℓ_j|)
    |δlse|   ≤ v·(C + 4) + u·(Σ p_i·a_i + 3 + log Z + |lse|)
    |δp_j|   ≤ p_j·(e^|δℓ_j| − 1) + tiny
    |δL|     ≤ Σ |q_j|·(|δℓ_j| + ((k + R)·u + C·v)·|ℓ_j|), over the normaliser
    |δg_j|   ≤ |c|·(((k + R)·u + C·v)·(|q_j| + p_j·|Q|) + |Q|·(p_j·(e^|δℓ_j| − 1) + tiny))
    |δ∂t_j|  ≤ |c|·(1 − ε)·|w_j|·(|δℓ_j| + ((k + R)·u + C·v)·|ℓ_j|)

Logits that come from elsewhere have an error of their own, d_j in x_j: it adds d_j + Σ p_i·d_i to |δℓ_j|.

A loss that adds a function a of lse to its rows, with the derivative b, has

    |δL|     ≤ ... + |a'|·|δlse| + (k + R)·u·|a|
    |δg_j|   ≤ ... + |c|·(p_j·|b'|·|δlse| + |b|·((k + R)·u·p_j + p_j·(e^|δℓ_j| − 1) + tiny))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss.roundoff import STEPS, Roundoff, real

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.cases.source import Case
    from refloss.result import LossResult
    from refloss.specification import AddedTerms, Softmax

IGNORED = -100
_OPTIONS = ("ignore_index", "reduction", "label_smoothing")


class Rows(NamedTuple):
    """A cross-entropy in float64 with the classes on the last axis; R rows stand for any number of axes."""

    logits: np.ndarray  # [R, C]
    target: np.ndarray  # [R, C], t; 0 in ignored rows
    mass: np.ndarray  # [R, C], q
    kept_weight: np.ndarray  # [C], (1 − ε)·w
    normaliser: float
    reduced: bool  # whether the loss is one number
    cotangent: np.ndarray  # [R] or []
    added: Callable[[np.ndarray, np.ndarray], AddedTerms] | None = None  # of lse and of the sum of masses, [R, 1]


class _Softmax(NamedTuple):
    """What the bounds are made of; a masked class has distance and log-probability 0 here, for it has no error."""

    probability: np.ndarray  # [R, C]
    log_probability: np.ndarray  # [R, C], its magnitude
    distance: np.ndarray  # [R, C], a
    spread: np.ndarray  # [R, 1], Σ p·a
    log_total: np.ndarray  # [R, 1], log Z
    lse: np.ndarray  # [R, 1], its magnitude


def rows(
    logits: np.ndarray,
    target: np.ndarray,
    cotangent: Any,
    *,
    weight: np.ndarray | None = None,
    ignore_index: int = IGNORED,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    normaliser: float | None = None,
    added: Callable[[np.ndarray, np.ndarray], AddedTerms] | None = None,
) -> Rows:
    """What a call means; the target holds labels [R] or probabilities [R, C]."""
    logits, classes = real(logits), logits.shape[-1]
    weights = np.ones(classes) if weight is None else real(weight)
    is_labels = target.dtype.kind in "biu"
    one_hot = _one_hot(target, classes, ignore_index) if is_labels else real(target)
    counted = one_hot.any(axis=-1, keepdims=True) if is_labels else np.ones((*one_hot.shape[:-1], 1))
    if normaliser is None:
        count = (one_hot * weights).sum() if is_labels else counted.size
        normaliser = float(count) if reduction == "mean" else 1.0
    mass = weights * ((1 - label_smoothing) * one_hot + label_smoothing / max(classes, 1)) * counted
    kept = (1 - label_smoothing) * weights
    # What an ignored row holds concerns no other.
    sound = np.isfinite(logits).all(axis=-1, keepdims=True)
    logits = np.where(sound | (counted > 0), logits, 0.0)
    return Rows(logits, one_hot, mass, kept, normaliser, reduction != "none", np.abs(real(cotangent)), added)


def _one_hot(labels: np.ndarray, classes: int, ignore_index: int) -> np.ndarray:
    """Rows of the unit matrix, and of 0 where a label is ignored."""
    known = np.where(labels == ignore_index, -1, labels)
    return np.asarray(known[..., None] == np.arange(classes), np.float64)


def row_bounds(given: Rows, unit: Roundoff, logit_error: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Of loss, gradients and values on the way, with the classes on the last axis."""
    softmax, classes = _softmax(given.logits), given.logits.shape[-1]
    summed = given.mass[..., 0].size if given.reduced else 0
    relative = (STEPS + summed) * unit.between + classes * unit.inside
    # A count of rows is exact, sums of other weights are not.
    is_count = summed <= 1 / unit.between and bool(np.isin(given.mass, (0.0, 1.0)).all())
    of_gradient = relative - (summed * unit.between if is_count else 0.0)
    log_error = unit.inside * (softmax.distance + softmax.spread + classes + 4)
    log_error += unit.between * (1 + softmax.log_total + softmax.log_probability)
    shift = np.zeros(1)
    if logit_error is not None:
        shift = (softmax.probability * logit_error).sum(axis=-1, keepdims=True)
        log_error = log_error + logit_error + shift
    of_lse = unit.between * (softmax.spread + 3 + softmax.log_total + softmax.lse)
    of_lse = of_lse + unit.inside * (classes + 4) + shift
    row_error = log_error + relative * softmax.log_probability
    loss = (np.abs(given.mass) * row_error).sum(axis=-1)
    of_logits, of_target = _gradients(given, softmax, log_error, of_gradient, unit)
    if given.added is not None:
        added = given.added(softmax.lse, np.abs(given.mass).sum(axis=-1, keepdims=True))
        of_p = relative * softmax.probability + _of_probability(softmax, log_error, unit)
        loss += (added.slope * of_lse + relative * added.value)[..., 0]
        coefficient = np.abs(given.cotangent / given.normaliser)[..., None]
        of_logits += coefficient * (added.pushed_slope * of_lse * softmax.probability + added.pushed * of_p)
    return {
        "loss": np.divide(loss.sum(), abs(given.normaliser)) if given.reduced else loss,
        "grad.logits": of_logits,
        "grad.target": of_target,
        "intermediate.lse": of_lse[..., 0],
        "intermediate.nll": (np.abs(given.target) * row_error).sum(axis=-1),
        "intermediate.log_probabilities": log_error,
        "intermediate.probabilities": _of_probability(softmax, log_error, unit),
    }


def _of_probability(softmax: _Softmax, log_error: np.ndarray, unit: Roundoff) -> np.ndarray:
    # A probability whose logarithm has an error above 1 is 0 in every type; the bound needs no larger exponent.
    return np.asarray(softmax.probability * np.expm1(np.minimum(log_error, 1.0)) + unit.tiny)


def _gradients(
    given: Rows, softmax: _Softmax, log_error: np.ndarray, relative: float, unit: Roundoff
) -> tuple[np.ndarray, np.ndarray]:
    """Of the gradients of logits and of a target."""
    coefficient = np.abs(given.cotangent / given.normaliser)[..., None]
    mass, kept_weight = np.abs(given.mass), np.abs(given.kept_weight)
    pushed = mass.sum(axis=-1, keepdims=True)
    of_probability = _of_probability(softmax, log_error, unit)
    logits = relative * (mass + pushed * softmax.probability) + pushed * of_probability
    target = kept_weight * (log_error + relative * softmax.log_probability)
    return coefficient * logits, coefficient * target


def _softmax(logits: np.ndarray) -> _Softmax:
    masked = np.isneginf(logits)
    maximum = logits.max(axis=-1, keepdims=True, initial=-np.inf)
    distance = np.where(masked, 0.0, maximum - logits)
    terms = np.where(masked, 0.0, np.exp(-distance))
    total = terms.sum(axis=-1, keepdims=True)
    probability = terms / total
    return _Softmax(
        probability=probability,
        log_probability=np.where(masked, 0.0, distance + np.log(total)),
        distance=distance,
        spread=(probability * distance).sum(axis=-1, keepdims=True),
        log_total=np.log(total),
        lse=np.abs(maximum + np.log(total)),
    )


def bounds(specification: Softmax, case: Case, unit: Roundoff) -> dict[str, np.ndarray]:
    """Classes on axis 1, or on the only one."""
    logits_name, target_name = list(specification.arguments)[:2]
    logits, target = case.inputs[logits_name], case.inputs[target_name]
    class_axis = min(1, logits.ndim - 1)
    if target.dtype.kind not in "biu":
        target = np.moveaxis(target, class_axis, -1)
    weights = [case.inputs[name] for name in specification.named("class weight") if name in case.inputs]
    options = {name: value for name, value in case.parameters.items() if name in _OPTIONS}
    added = specification.added
    given = rows(
        np.moveaxis(logits, class_axis, -1),
        target,
        case.grad_output,
        weight=weights[0] if weights else None,
        added=None if added is None else lambda lse, mass: added(lse, mass, case.parameters),
        **options,
    )
    limits = row_bounds(given, unit)
    per_row = ("loss", "intermediate.lse", "intermediate.nll")
    limits = {name: value if name in per_row else np.moveaxis(value, -1, class_axis) for name, value in limits.items()}
    return limits | {f"grad.{logits_name}": limits["grad.logits"], f"grad.{target_name}": limits["grad.target"]}


def tokens(case: Case, result: LossResult, unit: Roundoff) -> dict[str, np.ndarray]:
    """causal_lm, masked_lm and token_classification: classes on the last axis, labels perhaps shifted."""
    logits, options = case.inputs["logits"], case.parameters
    labels = np.asarray(result.intermediates.get("shift_labels", case.inputs["labels"]))
    classes = options.get("vocab_size") or options.get("num_labels") or logits.shape[-1]
    items = options.get("num_items_in_batch")
    given = rows(
        logits.reshape(-1, classes),
        labels.reshape(-1),
        case.grad_output,
        ignore_index=options.get("ignore_index", IGNORED),
        reduction="mean" if items is None else "sum",
        normaliser=None if items is None else float(items),
    )
    of_classes = ("grad.logits", "intermediate.log_probabilities", "intermediate.probabilities")
    shapes = dict.fromkeys(of_classes, logits.shape)
    shapes |= {f"intermediate.{name}": np.shape(result.intermediates[name]) for name in ("lse", "nll")}
    limits = row_bounds(given, unit) | {"intermediate.shift_labels": np.zeros(labels.shape)}
    return {name: value.reshape(shapes[name]) if name in shapes else value for name, value in limits.items()}
