"""Mistaken formulas of elements, by function."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from refloss.roundoff import real
from refloss.testing.mistakes.elements import (
    Elements,
    derivatives,
    logarithm,
    of_formula,
    sigmoid,
    size,
    softplus,
    tensors,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Tensors = dict[str, np.ndarray]
    Step = Callable[[Elements], Iterator[Tensors]]

_LIMITS = (15.0, 10.0, 16.0, 20.0, 30.0, 50.0, 60.0, 80.0, 88.0, 100.0, 5.0, 8.0)
_TINY = (1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 2.0**-126, 1e-30, 1e-20, 1e-16, 1e-15, 2.0**-23)
SURE = 17.4  # from here on σ(x) is 1 in float32
_OVERFLOWS = (88.722839, 88.0)


def _swapped_for(given: Elements) -> Iterator[Tensors]:
    if given.parameters.get("log_target"):
        yield of_formula(given, lambda x, u: np.exp(x) * (x - u))
        return
    for tiny in (0.0, *_TINY):
        yield of_formula(given, lambda x, t, tiny=tiny: np.exp(x) * (x - logarithm(t, tiny)))
        if not (given.t < 1e-5).any():
            return
    value, for_x, for_t = derivatives(lambda x, t: np.exp(x) * (x - logarithm(np.where(t.real == 0, 1, t))), given)
    none = given.t == 0
    yield tensors(given, *(np.where(none, 0.0, each) for each in (value, for_x, for_t)))


def _without_entropy(given: Elements) -> Iterator[Tensors]:
    if given.parameters.get("log_target"):
        yield of_formula(given, lambda x, u: -np.exp(u) * x)
        yield tensors(given, -np.exp(given.t) * given.x)
    else:
        yield of_formula(given, lambda x, t: -t * x)
        yield tensors(given, -given.t * given.x)


def _log_target_ignored(given: Elements) -> Iterator[Tensors]:
    if given.parameters.get("log_target"):
        yield of_formula(given, lambda x, t: t * (np.log(np.where(t.real < 0, np.nan, t)) - x))
        yield of_formula(given, lambda x, t: np.where(t.real > 0, t * (logarithm(np.where(t.real > 0, t, 1)) - x), 0))


def _mean_of_elements(given: Elements) -> Iterator[Tensors]:
    if given.reduction == "batchmean":
        value, for_x, for_t = derivatives(_kl_of(given), given)
        yield tensors(given, value, for_x, for_t, divisor=float(given.x.size))


def _kl_of(given: Elements) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    if given.parameters.get("log_target"):
        return lambda x, u: np.exp(u) * (u - x)
    return lambda x, t: np.where(t.real == 0, 0, t * logarithm(t)) - t * x


def _undefined_at_0(given: Elements) -> Iterator[Tensors]:
    if not given.parameters.get("log_target") and (given.t == 0).any():
        value = np.where(given.t == 0, np.nan, derivatives(_kl_of(given), given)[0])
        yield tensors(given, value)
        yield tensors(given, value, np.where(given.t == 0, np.nan, -given.t))
        yield tensors(given, None, np.where(given.t == 0, np.nan, -given.t))


def _clamped_target(given: Elements) -> Iterator[Tensors]:
    if given.parameters.get("log_target"):
        return
    for tiny in _TINY:
        if (given.t < tiny).any():
            yield of_formula(given, lambda x, t, tiny=tiny: t * (logarithm(t, tiny) - x))
            yield tensors(given, None, None, np.log(np.maximum(given.t, tiny)) + 1 - given.x)
            # The clamped target is used everywhere.
            yield of_formula(given, lambda x, t, tiny=tiny: np.where(t.real < tiny, tiny, t) * (logarithm(t, tiny) - x))
    for tiny in _TINY:
        yield of_formula(given, lambda x, t, tiny=tiny: t * (np.log(t + tiny) - x))


def _positive_weight(given: Elements) -> np.ndarray | None:
    weight = given.inputs.get("pos_weight")
    return None if weight is None else real(weight)


def _with_weight(weight: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda x, t: weight * t * softplus(-x) + (1 - t) * softplus(x)


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


def _logits_formula(given: Elements) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    if given.kind == "sigmoid_focal":
        return _focal(given)
    weight = _positive_weight(given)
    return _with_weight(np.ones(()) if weight is None else weight)


def _overflowing(given: Elements) -> Iterator[Tensors]:
    """log(1 + e^x), or e^x/(1 + e^x), in float32 or float16."""
    value, for_x, for_t = derivatives(_logits_formula(given), given)
    loose = {"bound.loss": tensors(given, 2.0**-22 * (1 + np.abs(given.x)))["loss"]}
    for least in _OVERFLOWS:
        for beyond in (given.x > least, given.x < -least, np.abs(given.x) > least):
            if beyond.any():
                infinite = np.where(beyond, np.inf, value)
                undefined = np.where(beyond, np.nan, for_x)
                for wrong in (infinite, np.where(beyond, np.nan, value)):
                    yield tensors(given, wrong) | loose
                    yield tensors(given, wrong, undefined) | loose
                    yield tensors(given, wrong, undefined, np.where(beyond, np.nan, for_t)) | loose
                    yield tensors(given, wrong, None, np.where(beyond, np.nan, for_t)) | loose
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
    """log p and log(1 − p) of a float32 p, where they are infinite or cut at −100."""
    with np.errstate(all="ignore"):
        p = (1 / (1 + np.exp(-given.x.astype(np.float32)))).astype(np.float64)
    weight = _positive_weight(given)
    factor = 1.0 if weight is None else weight
    _, for_x, _ = derivatives(_logits_formula(given), given)
    lost = np.abs(given.t / np.maximum(p, 2.0**-100)) + np.abs(1 - given.t) / np.maximum(1 - p, 2.0**-24)
    # Where p is 1 it is so in every order of operations.
    digits = np.where(given.x > SURE, 0.0, 2.0**-23 * np.abs(factor) * lost)
    loose = {"bound.loss": tensors(given, digits)["loss"]}
    for cut in (-100.0, -np.inf):
        value = -factor * given.t * np.maximum(np.log(p), cut) - (1 - given.t) * np.maximum(np.log(1 - p), cut)
        value = np.where(np.isnan(value), np.inf, value)
        yield tensors(given, value) | loose
        yield tensors(given, np.where(np.isinf(value), np.nan, value)) | loose
        yield tensors(given, value, np.where(np.isinf(value), np.nan, for_x)) | loose
    for tiny in (1e-12, 1e-8, 1e-7, 1e-6, 2.0**-126, 2.0**-23):
        positive, negative = np.log(np.maximum(p, tiny)), np.log(np.maximum(1 - p, tiny))
        yield tensors(given, -factor * given.t * positive - (1 - given.t) * negative) | loose
        positive, negative = np.log(p + tiny), np.log(1 - p + tiny)
        yield tensors(given, -factor * given.t * positive - (1 - given.t) * negative) | loose


def _not_clamped(given: Elements) -> Iterator[Tensors]:
    p, t = given.x, given.t
    positive, negative = np.log(p), np.log1p(-p)
    terms = np.where(t == 0, 0.0, t * positive) + np.where(t == 1, 0.0, (1 - t) * negative)
    for value in (-terms, -(t * positive + (1 - t) * negative)):
        yield tensors(given, value)
        yield tensors(given, value, (p - t) / (p * (1 - p)))
    yield tensors(given, None, (p - t) / (p * (1 - p)))


def _focal(
    given: Elements, alpha: Callable[[np.ndarray, float], np.ndarray] | None = None
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    balance, gamma = float(given.parameters.get("alpha", 0.25)), float(given.parameters.get("gamma", 2.0))

    def formula(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        cross = t * softplus(-x) + (1 - t) * softplus(x)
        missed = sigmoid(x) * (1 - t) + sigmoid(-x) * t
        power = np.exp(gamma * np.log(np.where(missed == 0, 1, missed))) * (1.0 if gamma == 0 else missed != 0)
        if alpha is not None:
            return alpha(t, balance) * power * cross
        weight = balance * t + (1 - balance) * (1 - t) if balance >= 0 else 1.0
        return weight * power * cross

    return formula


def _alpha(weight: Callable[[np.ndarray, float], np.ndarray]) -> Step:
    def step(given: Elements) -> Iterator[Tensors]:
        if float(given.parameters.get("alpha", 0.25)) >= 0:
            yield of_formula(given, _focal(given, weight))

    return step


def _factor_held(given: Elements) -> Iterator[Tensors]:
    balance, gamma = float(given.parameters.get("alpha", 0.25)), float(given.parameters.get("gamma", 2.0))
    if gamma == 0:
        return
    x, t = given.x.astype(complex), given.t.astype(complex)
    factor = (sigmoid(x) * (1 - t) + sigmoid(-x) * t).real ** gamma
    weight = (balance * given.t + (1 - balance) * (1 - given.t)) if balance >= 0 else np.ones(())
    _, for_x, for_t = derivatives(lambda x, t: t * softplus(-x) + (1 - t) * softplus(x), given)
    yield tensors(given, None, factor * weight * for_x)
    yield tensors(given, None, factor * weight * for_x, factor * weight * for_t)
    _, _, moving = derivatives(
        lambda x, t: (
            factor
            * (balance * t + (1 - balance) * (1 - t) if balance >= 0 else 1.0)
            * (t * softplus(-x) + (1 - t) * softplus(x))
        ),
        given,
    )
    yield tensors(given, None, factor * weight * for_x, moving)


def _missed_is_not_p(given: Elements) -> Iterator[Tensors]:
    """(1 − p)^γ, whatever the target."""
    balance, gamma = float(given.parameters.get("alpha", 0.25)), float(given.parameters.get("gamma", 2.0))

    def formula(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        weight = balance * t + (1 - balance) * (1 - t) if balance >= 0 else 1.0
        return weight * np.exp(-gamma * softplus(x)) * (t * softplus(-x) + (1 - t) * softplus(x))

    yield of_formula(given, formula)


def _missed_by_difference(given: Elements) -> Iterator[Tensors]:
    """1 − p_t in float32: it has no digits left, or is 0, where p_t is nearly 1."""
    balance, gamma = float(given.parameters.get("alpha", 0.25)), float(given.parameters.get("gamma", 2.0))
    x, t = given.x, given.t
    p = sigmoid(x.astype(complex)).real
    kept = (p * t + (1 - p) * (1 - t)).astype(np.float32).astype(np.float64)
    missed = 1 - kept
    cross = (t * softplus(-x.astype(complex)) + (1 - t) * softplus(x.astype(complex))).real
    weight = balance * t + (1 - balance) * (1 - t) if balance >= 0 else np.ones(())
    value, for_x, for_t = derivatives(_focal(given), given)
    lost = missed == 0
    if not lost.any():
        return
    # What is left of other elements has few digits.
    digits = 2.0**-22 / np.maximum(missed, 2.0**-24) * (1 + gamma)
    loose = {f"bound.{name}": digits * np.abs(wrong) for name, wrong in tensors(given, None, for_x).items()}
    wrong_value = np.where(lost, weight * cross * (missed**gamma), value)
    yield tensors(given, wrong_value, np.where(lost, 0.0, for_x)) | loose
    yield tensors(given, None, np.where(lost, 0.0, for_x)) | loose


def _infinite_power(given: Elements) -> Iterator[Tensors]:
    """0^(γ − 1)·0 for γ < 1, where float32 has lost 1 − p_t."""
    gamma = float(given.parameters.get("gamma", 2.0))
    if not 0 <= gamma < 1:
        return
    value, for_x, for_t = derivatives(_focal(given), given)
    x = given.x.astype(np.float32)
    with np.errstate(all="ignore"):
        p = 1 / (1 + np.exp(-x))
        t = given.t.astype(np.float32)
        kept = p * t + (1 - p) * (1 - t)
        differences = (1 - kept, p * (1 - t) + (1 - p) * t)
    distances = [np.where(given.t > 0.5, given.x, -given.x) > limit for limit in (16.63, 17.32, 36.7, 87.3, 103.9)]
    for lost in (*(each == 0 for each in differences), *distances):
        if lost.any():
            yield tensors(given, None, np.where(lost, np.nan, for_x))
            yield tensors(given, value, np.where(lost, np.nan, for_x), np.where(lost, np.nan, for_t))
            yield tensors(given, None, np.where(lost, np.nan, for_x), np.where(lost, np.nan, for_t))


def _huber_for_smooth(given: Elements) -> Iterator[Tensors]:
    beta = float(given.parameters.get("beta", 1.0))
    if beta not in (0.0, 1.0):
        yield of_formula(given, lambda x, t: _huber(x - t, beta))


def _smooth_for_huber(given: Elements) -> Iterator[Tensors]:
    delta = float(given.parameters.get("delta", 1.0))
    if delta != 1.0:
        yield of_formula(given, lambda x, t: _huber(x - t, delta) / delta)


def _huber(d: np.ndarray, delta: float) -> np.ndarray:
    return np.where(np.abs(d.real) <= delta, d * d / 2, delta * (size(d) - delta / 2))


def _beta_misplaced(given: Elements) -> Iterator[Tensors]:
    name = "beta" if given.kind == "smooth_l1" else "delta"
    b = float(given.parameters.get(name, 1.0))
    if b in (0.0, 1.0):
        return
    squares = (
        lambda d: d * d / (2 * b),
        lambda d: d * d / 2,
        lambda d: b * d * d / 2,
        lambda d: d * d / b,
        lambda d: d * d,
    )
    lines = (
        lambda d: size(d) - b / 2,
        lambda d: size(d) - 0.5,
        lambda d: b * (size(d) - b / 2),
        lambda d: b * (size(d) - 0.5),
        lambda d: b * size(d) - 0.5,
        lambda d: size(d) - 1 / (2 * b),
        lambda d: size(d) / b - b / 2,
        lambda d: b * size(d) - b / 2,
        lambda d: size(d) - b,
    )
    for at in (b, 1.0, 1 / b):
        for i, square in enumerate(squares):
            for j, line in enumerate(lines):
                # As it should be; as if the parameter were 1, which is another mistake.
                plain = (at == b and (i, j) in {(0, 0), (1, 2)}) or (at == 1.0 and (i, j) == (1, 1))
                if not plain:
                    yield of_formula(
                        given,
                        lambda x, t, at=at, square=square, line=line: np.where(
                            np.abs((x - t).real) < at, square(x - t), line(x - t)
                        ),
                    )


def _half_derivative(given: Elements) -> Iterator[Tensors]:
    d = given.x - given.t
    yield tensors(given, None, d, -d)
    yield tensors(given, None, d)


_ON_LOGITS: dict[str, Step] = {
    "softplus overflows: log(1 + e^x) without |x|": _overflowing,
    "logits are clamped": _clamped,
}
_CLAMPS: dict[str, Step] = {"β is in the wrong place": _beta_misplaced}
STEPS: dict[str, dict[str, Step]] = {
    "kl_div": {
        "KL divergence is reversed": _swapped_for,
        "the entropy of the target is left out": _without_entropy,
        "log_target is ignored": _log_target_ignored,
        "batchmean is a mean over elements": _mean_of_elements,
        "soft targets: t·log t is NaN where t is 0": _undefined_at_0,
        "soft targets: log of max(t, ε)": _clamped_target,
    },
    "bce_with_logits": _ON_LOGITS
    | {
        "pos_weight is on the negative side": _on_negatives,
        "pos_weight is along the wrong axis": _along_another_axis,
        "log σ(x) by the logarithm of a rounded sigmoid": _rounded_sigmoid,
    },
    "bce": {"the logarithm is not clamped at −100": _not_clamped},
    "sigmoid_focal": _ON_LOGITS
    | {
        "α is swapped": _alpha(lambda t, a: (1 - a) * t + a * (1 - t)),
        "α is on both sides": _alpha(lambda t, a: a + 0 * t),
        "α is only on positives": _alpha(lambda t, a: a * t + (1 - t)),
        "the focal factor is held constant": _factor_held,
        "the missed probability is (1 − p) whatever the target": _missed_is_not_p,
        "the missed probability is 1 − p": _missed_by_difference,
        "γ < 1: the power (1 − p_t)^(γ − 1) is infinite": _infinite_power,
    },
    "smooth_l1": {"Huber for smooth L1 (a factor of β)": _huber_for_smooth} | _CLAMPS,
    "huber": {"smooth L1 for Huber (a factor of β)": _smooth_for_huber} | _CLAMPS,
    "mse": {"the derivative lacks its factor 2": _half_derivative},
}
# Those of many variants.
VAGUE = (_beta_misplaced, _clamped, _rounded_sigmoid)
