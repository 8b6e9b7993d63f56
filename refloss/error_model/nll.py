"""How far an honest negative log-likelihood may be from the exact one: a sum of R products of k roundings each.

    |δL| ≤ (k·u + s(R))·Σ w_y·|ℓ_y| / D,    |δg_j| ≤ (k·u + s(R))·|c|·w_y for the label, 0 for the others

with R rows; notation as in softmax. A count D is exact, or rounded once: then a gradient's bound has no s(R).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.error_model.bound import Bound, total, whole
from refloss.error_model.softmax import Rows
from refloss.roundoff import STEPS, Roundoff

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from refloss.result import LossResult


def nll(case: Case, _: LossResult, unit: Roundoff) -> dict[str, Bound]:
    """Minus the weighted log-probabilities of labels."""
    x, labels, reduction = case.inputs["input"], case.inputs["target"], case.parameters.get("reduction", "mean")
    rows = Rows(
        x,
        labels,
        case.grad_output,
        class_axis=min(1, x.ndim - 1),
        weight=case.inputs.get("weight"),
        ignore_index=case.parameters.get("ignore_index", -100),
        reduction=reduction,
    )
    added = unit.sum(rows.summed)
    of_gradient = STEPS * unit.between + (added if rows.weight is not None else 0.0)

    def value(first: int, last: int) -> np.ndarray:
        mass, at_label = rows.of_labels(first, last)
        return np.where(mass == 0, 0.0, mass * np.abs(at_label))

    def slope(first: int, last: int) -> np.ndarray:
        mass, cotangent = rows.masses(first, last)
        lost = unit.tiny * (1.0 + cotangent + mass)
        return np.where(mass == 0, 0.0, of_gradient * cotangent / rows.normaliser * mass + lost)

    relative = STEPS * unit.between + added
    loss = Bound(rows.row_shape, lambda first, last: relative * value(first, last) + unit.tiny)
    if rows.reduced:
        lost = unit.tiny * (1.0 + rows.rows / rows.normaliser)
        loss = whole(relative * total(rows.rows, value) / rows.normaliser, lost=lost)
    return {"loss": loss, "grad.input": Bound(rows.shape, slope)}
