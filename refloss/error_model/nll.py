"""How far an honest negative log-likelihood may be from the exact one: a sum of R products of k roundings each.

    |δL| ≤ ((k + R)·u + N·v)·Σ w_y·|ℓ_y| / D,    |δg_j| ≤ ((k + R)·u + N·v)·|c|·w_y for the label, 0 for the others

with N log-probabilities ℓ in all; notation as in softmax.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.roundoff import STEPS, Roundoff, real

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from refloss.result import LossResult


def nll(case: Case, _: LossResult, unit: Roundoff) -> dict[str, np.ndarray]:
    """Minus the weighted log-probabilities of labels."""
    x, labels = real(case.inputs["input"]), case.inputs["target"]
    class_axis = min(1, x.ndim - 1)
    rows = np.moveaxis(x, class_axis, -1)
    given = case.inputs.get("weight")
    counted = np.where(labels == case.parameters.get("ignore_index", -100), -1, labels)
    weight = np.ones(rows.shape[-1]) if given is None else np.abs(real(given))
    mass = (counted[..., None] == np.arange(rows.shape[-1])) * weight
    reduction = case.parameters.get("reduction", "mean")
    divisor = mass.sum() if reduction == "mean" else np.ones(())
    value = np.where(mass == 0, 0.0, mass * np.abs(rows)).sum(axis=-1) / divisor
    coefficient = np.abs(real(case.grad_output)) / divisor
    relative = (STEPS + (1 if reduction == "none" else value.size)) * unit.between + x.size * unit.inside
    return {
        "loss": relative * (value if reduction == "none" else value.sum()),
        "grad.input": relative * np.moveaxis(coefficient[..., None] * mass, -1, class_axis),
    }
