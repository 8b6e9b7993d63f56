"""Mistaken formulas of the sigmoid focal loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.testing.mistakes.elements import Elements, derivatives, of_formula, sigmoid, softplus, tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refloss.testing.mistakes.elements import Formula, Step, Tensors


def focal(
    given: Elements,
    alpha: Callable[[np.ndarray, float], np.ndarray] | None = None,
    plus: Callable[[np.ndarray], np.ndarray] = softplus,
) -> Formula:
    """The right formula, or one with another weight, or another log(1 + e^x)."""
    balance, gamma = float(given.parameters.get("alpha", 0.25)), float(given.parameters.get("gamma", 2.0))

    def formula(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        cross = t * plus(-x) + (1 - t) * plus(x)
        missed = sigmoid(x) * (1 - t) + sigmoid(-x) * t
        power = np.exp(gamma * np.log(np.where(missed == 0, 1, missed))) * (1.0 if gamma == 0 else missed != 0)
        if alpha is not None:
            return np.asarray(alpha(t, balance) * power * cross)
        weight = balance * t + (1 - balance) * (1 - t) if balance >= 0 else 1.0
        return np.asarray(weight * power * cross)

    return formula


def varifocal(given: Elements, plus: Callable[[np.ndarray], np.ndarray] = softplus) -> Formula:
    """The right formula, or one with another log(1 + e^x); weights are held constant."""
    balance, gamma = float(given.parameters.get("alpha", 0.75)), float(given.parameters.get("gamma", 2.0))
    weight = np.where(given.t > 0, given.t, balance * np.exp(-gamma * softplus(-given.x.astype(complex)).real))
    return lambda x, t: weight * (t * plus(-x) + (1 - t) * plus(x))


def _alpha(weight: Callable[[np.ndarray, float], np.ndarray]) -> Step:
    def step(given: Elements) -> Iterator[Tensors]:
        if float(given.parameters.get("alpha", 0.25)) >= 0:
            yield of_formula(given, focal(given, weight))

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
        return np.asarray(weight * np.exp(-gamma * softplus(x)) * (t * softplus(-x) + (1 - t) * softplus(x)))

    yield of_formula(given, formula)


def infinite_power(given: Elements) -> Iterator[Tensors]:
    """0^(γ − 1)·0 for γ < 1, where float32 has lost 1 − p_t."""
    gamma = float(given.parameters.get("gamma", 2.0))
    if not 0 <= gamma < 1:
        return
    value, for_x, for_t = derivatives(focal(given), given)
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


STEPS: dict[str, Step] = {
    "α is swapped": _alpha(lambda t, a: (1 - a) * t + a * (1 - t)),
    "α is on both sides": _alpha(lambda t, a: a + 0 * t),
    "α is only on positives": _alpha(lambda t, a: a * t + (1 - t)),
    "the focal factor is held constant": _factor_held,
    "the missed probability is (1 − p) whatever the target": _missed_is_not_p,
    "γ < 1: the power (1 − p_t)^(γ − 1) is infinite": infinite_power,
}
