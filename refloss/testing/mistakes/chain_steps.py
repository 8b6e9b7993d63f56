"""Mistaken steps of a logit chain and of a z-loss, simulated in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.error_model.chain import chained, is_chained, z_factor
from refloss.testing.mistakes import alterations
from refloss.testing.mistakes.guess import USUAL, Guess
from refloss.testing.mistakes.rows import views_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from refloss.cases.source import Case
    from refloss.testing.mistakes.rows import View
    from refloss.testing.verdict import Question

NO_SLOPE_OF_CAP = "the derivative of the softcap is forgotten"
CAP_LAST = "the softcap comes after the temperature"
NO_TEMPERATURE = "the temperature does not divide the gradient"
NO_SLOPE = "the z-loss has no gradient"
HALF_SLOPE = "the z-loss has half of its gradient"
WEIGHTED = "the z-loss is weighted by class"
ALL_ROWS = "the z-loss is of ignored rows as well"


def of_chains(asked: Question) -> Iterator[Guess]:
    """Those of a case that has a chain or a z-loss, of cross-entropy or of tokens."""
    parameters = asked.case.parameters
    if not is_chained(parameters) and not z_factor(parameters):
        return
    (view,) = views_of(asked.case, asked.result, ["logits"])
    if parameters.get("softcap") is not None:
        yield _guess(NO_SLOPE_OF_CAP, view, slope=_slope_without(parameters, "softcap"))
        yield from _cap_last(asked)
    if parameters.get("temperature", 1.0) != 1.0:
        yield _guess(NO_TEMPERATURE, view, slope=view.slope * parameters["temperature"])
    if z_factor(parameters):
        counted, pushed = view.counted.astype(float), view.pushed
        yield _guess(NO_SLOPE, view, of_slope=0.0)
        yield _guess(HALF_SLOPE, view, of_slope=0.5)
        if "weight" in asked.case.inputs:
            yield _guess(WEIGHTED, view, of_rows=pushed, of_slope=pushed[:, None])
            yield _guess(WEIGHTED, view, of_slope=pushed[:, None])
        if not counted.all() and not view.poisoned.any():
            yield _guess(ALL_ROWS, view, of_rows=np.ones(len(counted)), of_slope=1.0, everywhere=True)
            yield _guess(ALL_ROWS, view, of_rows=np.ones(len(counted)))


def _slope_without(parameters: Mapping[str, Any], name: str) -> float:
    kept = {key: value for key, value in parameters.items() if key != name}
    return float(chained(np.zeros(1), kept).slope)


def _cap_last(asked: Question) -> Iterator[Guess]:
    """c·tanh(z·s/τ/c): the same chain with another scale, and without a temperature."""
    parameters = asked.case.parameters
    temperature = parameters.get("temperature", 1.0)
    if temperature == 1.0:
        return
    scale = parameters.get("logit_scale", 1.0) / temperature
    other: Case = alterations.altered(asked.case, logit_scale=scale, temperature=None)
    (view,) = views_of(other, asked.result, ["logits"])
    yield _guess(CAP_LAST, view)


def _guess(
    mistake: str,
    view: View,
    *,
    slope: Any = None,
    of_rows: Any = None,
    of_slope: Any = 1.0,
    everywhere: bool = False,
) -> Guess:
    """The tensors of a view with other factors of the z-loss and of its gradient, or another slope of the chain."""
    factor, counted = z_factor(view.parameters), view.counted.astype(float)
    factors = counted if of_rows is None else of_rows
    beside = np.where(factors == 0, 0.0, factors * factor * view.lse[:, 0] ** 2) if factor else 0.0
    losses = (view.losses + beside) * view.share / view.normaliser
    pushed = 2 * factor * view.lse * view.p * of_slope if factor else 0.0
    slopes = view.slopes + (pushed if everywhere else np.where(view.counted[:, None], pushed, 0.0))
    gradient = view.back(np.where(slopes == 0, 0.0, view.coefficient * slopes))
    tensors = {
        "loss": losses.reshape(view.row_shape) if view.reduction == "none" else np.asarray(losses.sum()),
        view.tensor: gradient * (view.slope if slope is None else slope),
    }
    return Guess(mistake, USUAL, tensors)
