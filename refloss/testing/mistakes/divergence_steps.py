"""Mistaken formulas of the Kullback-Leibler divergence."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from refloss.testing.mistakes.elements import Elements, derivatives, logarithm, of_formula, tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.testing.mistakes.elements import Formula, Step, Tensors

_TINY = (1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 2.0**-126, 1e-30, 1e-20, 1e-16, 1e-15, 2.0**-23)


def _swapped_for(given: Elements) -> Iterator[Tensors]:
    if given.parameters.get("log_target"):
        yield of_formula(given, lambda x, u: np.exp(x) * (x - u))
        return
    for tiny in (0.0, *_TINY):
        yield of_formula(given, functools.partial(_swapped, tiny=tiny))
        if not (given.t < 1e-5).any():
            return
    value, for_x, for_t = derivatives(lambda x, t: np.exp(x) * (x - logarithm(np.where(t.real == 0, 1, t))), given)
    none = given.t == 0
    value, for_x, for_t = (np.where(none, 0.0, each) for each in (value, for_x, for_t))
    yield tensors(given, value, for_x, for_t)


def _swapped(x: np.ndarray, t: np.ndarray, tiny: float) -> np.ndarray:
    return np.asarray(np.exp(x) * (x - logarithm(t, tiny)))


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


def _kl_of(given: Elements) -> Formula:
    if given.parameters.get("log_target"):
        return lambda x, u: np.exp(u) * (u - x)
    return lambda x, t: np.where(t.real == 0, 0, t * logarithm(t)) - t * x


def _undefined_at_0(given: Elements) -> Iterator[Tensors]:
    if not given.parameters.get("log_target") and (given.t == 0).any():
        value = np.where(given.t == 0, np.nan, derivatives(_kl_of(given), given)[0])
        yield tensors(given, value)
        yield tensors(given, value, np.where(given.t == 0, np.nan, -given.t))
        yield tensors(given, None, np.where(given.t == 0, np.nan, -given.t))


def clamped_target(given: Elements) -> Iterator[Tensors]:
    """log max(t, ε), or log(t + ε)."""
    if given.parameters.get("log_target"):
        return
    for tiny in _TINY:
        if (given.t < tiny).any():
            yield of_formula(given, functools.partial(_clamped, tiny=tiny))
            yield tensors(given, None, None, np.log(np.maximum(given.t, tiny)) + 1 - given.x)
            # The clamped target is used everywhere.
            yield of_formula(given, functools.partial(_clamped_throughout, tiny=tiny))
    for tiny in _TINY:
        yield of_formula(given, functools.partial(_shifted, tiny=tiny))


def _clamped(x: np.ndarray, t: np.ndarray, tiny: float) -> np.ndarray:
    return np.asarray(t * (logarithm(t, tiny) - x))


def _clamped_throughout(x: np.ndarray, t: np.ndarray, tiny: float) -> np.ndarray:
    return np.asarray(np.where(t.real < tiny, tiny, t) * (logarithm(t, tiny) - x))


def _shifted(x: np.ndarray, t: np.ndarray, tiny: float) -> np.ndarray:
    return np.asarray(t * (np.log(t + tiny) - x))


STEPS: dict[str, Step] = {
    "KL divergence is reversed": _swapped_for,
    "the entropy of the target is left out": _without_entropy,
    "log_target is ignored": _log_target_ignored,
    "batchmean is a mean over elements": _mean_of_elements,
    "soft targets: t·log t is NaN where t is 0": _undefined_at_0,
    "soft targets: log of max(t, ε)": clamped_target,
}
