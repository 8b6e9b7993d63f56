"""Mistaken formulas of losses of an input and a sign."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from refloss.testing.mistakes.elements import Elements, derivatives, of_formula, softplus, tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.testing.mistakes.elements import Formula, Step, Tensors


def _soft_margin(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    return softplus(-x * t)


def _hinge(given: Elements) -> Formula:
    margin = given.parameters.get("margin", 1.0)

    def formula(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        lacking = np.where(x.real <= margin, margin - x, 0)
        return np.asarray(np.where(t.real != -1, x, 0) + np.where(t.real != 1, lacking, 0))

    return formula


def _formula(given: Elements) -> Formula:
    return _soft_margin if given.kind == "soft_margin" else _hinge(given)


def _flipped(given: Elements) -> Iterator[Tensors]:
    formula = _formula(given)
    yield of_formula(given, lambda x, t: formula(x, -t))


def _one_term(given: Elements) -> Iterator[Tensors]:
    formula = _formula(given)
    for sign in (np.where(given.t == 1, 1.0, -1.0), np.where(given.t == -1, -1.0, 1.0), np.sign(given.t)):
        if not (sign == given.t).all():
            value, for_x, _ = derivatives(formula, replace(given, t=sign))
            yield tensors(given, value, for_x)


def _not_cut(given: Elements) -> Iterator[Tensors]:
    margin = given.parameters.get("margin", 1.0)
    yield of_formula(given, lambda x, t: np.where(t.real != -1, x, 0) + np.where(t.real != 1, margin - x, 0))


def _overflowing(given: Elements) -> Iterator[Tensors]:
    """log(1 + e^−yx) as it is written, and e^−yx/(1 + e^−yx)."""
    _, for_x, _ = derivatives(_soft_margin, given)
    power = np.exp((-given.x * given.t).astype(given.type))
    undefined = np.where(np.isinf(power), np.nan, for_x)
    few = {"bound.loss": tensors(given, 4 * float(np.finfo(given.type).eps) * np.ones(given.x.shape))["loss"]}
    for value, loose in ((np.log1p(power), {}), (np.log(1 + power), few)):
        yield tensors(given, value.astype(np.float64), undefined) | loose
        yield tensors(given, value.astype(np.float64)) | loose


_FLIPPED: dict[str, Step] = {"the sign of the target is flipped": _flipped}
OF_SOFT_MARGIN: dict[str, Step] = _FLIPPED | {"softplus overflows: log(1 + e^x) without |x|": _overflowing}
OF_HINGE: dict[str, Step] = _FLIPPED | {
    "a target that is no sign has one term alone": _one_term,
    "the hinge is not cut off at 0": _not_cut,
}
