"""Mistaken formulas of elements, by function."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from refloss.roundoff import real
from refloss.testing.mistakes import (
    distance_steps,
    divergence_steps,
    focal_steps,
    margin_steps,
    preference_steps,
    triple_steps,
)
from refloss.testing.mistakes.elements import Elements, derivatives, of_formula, softplus, tensors
from refloss.testing.mistakes.focal_steps import focal, varifocal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refloss.testing.mistakes.elements import Formula, Step, Tensors

_LIMITS = (15.0, 10.0, 16.0, 20.0, 30.0, 50.0, 60.0, 80.0, 88.0, 100.0, 5.0, 8.0)


def _positive_weight(given: Elements) -> np.ndarray | None:
    weight = given.inputs.get("pos_weight")
    return None if weight is None else real(weight)


def _with_weight(weight: np.ndarray, plus: Callable[[np.ndarray], np.ndarray] = softplus) -> Formula:
    return lambda x, t: weight * t * plus(-x) + (1 - t) * plus(x)


def _on_negatives(given: Elements) -> Iterator[Tensors]:
    weight = _positive_weight(given)
    if weight is not None:
        yield of_formula(given, lambda x, t: t * softplus(-x) + weight * (1 - t) * softplus(x))
        yield of_formula(given, lambda x, t: weight * (t * softplus(-x) + (1 - t) * softplus(x)))


def _along_another_axis(given: Elements) -> Iterator[Tensors]:
    weight = _positive_weight(given)
    if weight is None or given.x.ndim < 2 or weight.size == 1:
        return
    full, shape = np.broadcast_to(weight, given.x.shape), given.x.shape
    flat = weight.reshape(-1)
    for axis in range(len(shape)):
        along = np.resize(flat, shape[axis]).reshape(*(-1 if i == axis else 1 for i in range(len(shape))))
        if not (np.broadcast_to(along, shape) == full).all():
            yield of_formula(given, _with_weight(np.broadcast_to(along, shape)))
    if shape[-1] == shape[-2]:
        yield of_formula(given, _with_weight(full.swapaxes(-1, -2)))


def _logits_formula(given: Elements, plus: Callable[[np.ndarray], np.ndarray] = softplus) -> Formula:
    if given.kind == "sigmoid_focal":
        return focal(given, plus=plus)
    if given.kind == "varifocal":
        return varifocal(given, plus)
    weight = _positive_weight(given)
    return _with_weight(np.ones(()) if weight is None else weight, plus)


def _overflowing(given: Elements) -> Iterator[Tensors]:
    """log(1 + e^x) as it is written, on either side of 0 or on both, and e^x/(1 + e^x)."""
    held = np.finfo(given.type)

    def plus(x: np.ndarray) -> np.ndarray:
        return np.asarray(np.log(1 + np.exp(x.real.astype(given.type))).astype(np.float64))

    value, for_x, for_t = derivatives(_logits_formula(given), given)
    written = _logits_formula(given, plus)(given.x.astype(complex), given.t.astype(complex)).real
    loose = {"bound.loss": tensors(given, 4 * float(held.eps) * (1 + np.abs(given.x)))["loss"]}
    least = float(np.log(held.max))
    for where in (np.abs(given.x) >= 0, given.x > 0, given.x < 0):
        beyond = where & (np.abs(given.x) > least)
        wrong = np.where(where, written, value)
        if (wrong == value).all():
            continue
        undefined, undefined_t = np.where(beyond, np.nan, for_x), np.where(beyond, np.nan, for_t)
        yield tensors(given, wrong) | loose
        if beyond.any():
            yield tensors(given, wrong, undefined) | loose
            yield tensors(given, wrong, undefined, undefined_t) | loose
            yield tensors(given, wrong, None, undefined_t) | loose
            yield tensors(given, None, undefined)


def _clamped(given: Elements) -> Iterator[Tensors]:
    formula = _logits_formula(given)
    for limit in _LIMITS:
        beyond = np.abs(given.x) > limit
        if not beyond.any():
            continue

        def clamped(x: np.ndarray, t: np.ndarray, limit: float = limit) -> np.ndarray:
            return formula(np.where(np.abs(x.real) > limit, limit * np.sign(x.real), x), t)

        value, for_x, for_t = derivatives(clamped, given)
        moved = derivatives(formula, replace(given, x=np.clip(given.x, -limit, limit)))
        yield tensors(given, value, for_x, for_t)
        yield tensors(given, *moved)
        yield tensors(given, value)


def _rounded_sigmoid(given: Elements) -> Iterator[Tensors]:
    """log p and log(1 − p) of a rounded p, where they are infinite or cut at −100."""
    x = given.x.astype(given.type)
    with np.errstate(all="ignore"):
        for p in (1 / (1 + np.exp(-x)), np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))):
            yield from _of_probability(given, p.astype(np.float64))


def _of_probability(given: Elements, p: np.ndarray) -> Iterator[Tensors]:
    held, weight = np.finfo(given.type), _positive_weight(given)
    factor = 1.0 if weight is None else weight
    _, for_x, _ = derivatives(_logits_formula(given), given)
    # Where p is 1 it is so in every order of operations.
    below = np.abs(factor) * (held.eps + held.smallest_subnormal / np.maximum(p, held.smallest_subnormal))
    above = np.where(p == 1, 0.0, held.eps / np.maximum(1 - p, held.eps / 2))
    digits = tensors(given, np.abs(given.t) * below + np.abs(1 - given.t) * above, None, below + above)
    loose = {f"bound.{name}": np.abs(value) for name, value in digits.items()}
    logarithms = [(np.maximum(np.log(p), cut), np.maximum(np.log(1 - p), cut)) for cut in (-np.inf, -100.0)]
    for tiny in (1e-12, 1e-8, 1e-7, 1e-6, 2.0**-126, 2.0**-23):
        logarithms.append((np.log(np.maximum(p, tiny)), np.log(np.maximum(1 - p, tiny))))
        logarithms.append((np.log(p + tiny), np.log(1 - p + tiny)))
    for positive, negative in logarithms[:2]:
        ones, zeros = factor * np.abs(positive), np.abs(negative)
        tight = tensors(given, given.t * ones + (1 - given.t) * zeros, None, ones + zeros)
        close = {f"bound.{name}": 4 * held.eps * np.nan_to_num(np.abs(value)) for name, value in tight.items()}
        yield tensors(given, None, None, negative - factor * positive) | close
        value = -factor * given.t * positive - (1 - given.t) * negative
        yield tensors(given, value, None, negative - factor * positive) | close
    for positive, negative in logarithms:
        value = -factor * given.t * positive - (1 - given.t) * negative
        yield tensors(given, value, None, negative - factor * positive) | loose
        yield tensors(given, value) | loose
        if not np.isfinite(value).all():
            yield tensors(given, value, np.where(np.isfinite(value), for_x, np.nan)) | loose


def _not_clamped(given: Elements) -> Iterator[Tensors]:
    p, t = given.x, given.t
    positive, negative = np.log(p), np.log1p(-p)
    terms = np.where(t == 0, 0.0, t * positive) + np.where(t == 1, 0.0, (1 - t) * negative)
    for value in (-terms, -(t * positive + (1 - t) * negative)):
        yield tensors(given, value)
        yield tensors(given, value, (p - t) / (p * (1 - p)))
    yield tensors(given, None, (p - t) / (p * (1 - p)))


_ON_LOGITS: dict[str, Step] = {
    "softplus overflows: log(1 + e^x) without |x|": _overflowing,
    "logits are clamped": _clamped,
}
STEPS: dict[str, dict[str, Step]] = {
    "kl_div": divergence_steps.STEPS,
    "bce_with_logits": _ON_LOGITS
    | {
        "pos_weight is on the negative side": _on_negatives,
        "pos_weight is along the wrong axis": _along_another_axis,
        "log σ(x) by the logarithm of a rounded sigmoid": _rounded_sigmoid,
    },
    "bce": {"the logarithm is not clamped at −100": _not_clamped},
    "poisson_nll": triple_steps.OF_COUNTS,
    "gaussian_nll": triple_steps.OF_VARIANCES,
    "margin_ranking": triple_steps.OF_RANKS,
    "preference_loss": preference_steps.OF_PAIRS,
    "kto": preference_steps.OF_SEQUENCES,
    "sigmoid_focal": _ON_LOGITS | focal_steps.STEPS,
    "varifocal": _ON_LOGITS,
    "soft_margin": margin_steps.OF_SOFT_MARGIN,
    "hinge_embedding": margin_steps.OF_HINGE,
    "smooth_l1": distance_steps.OF_SMOOTH_L1,
    "huber": distance_steps.OF_HUBER,
    "mse": distance_steps.OF_SQUARES,
}
# Those of many variants.
VAGUE = (distance_steps.beta_misplaced, _clamped, _rounded_sigmoid)
# What shows with some of their numbers alone: a case that does not show it says nothing against them.
OF_SOME_NUMBER = (*VAGUE, divergence_steps.clamped_target, focal_steps.infinite_power)
