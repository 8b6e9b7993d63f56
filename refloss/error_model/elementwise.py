"""How far honest losses of corresponding elements may be from the exact ones.

Notation as in softmax: u and v are unit roundoffs. N elements have weights w_i; c is the cotangent over the
normaliser D. Every number on the way is a sum of terms with an error of k·u of their magnitudes, where k counts
roundings (STEPS) and, for a sum of n numbers, n·v more. So with T the sum of a value's magnitudes and G that of a
derivative's,

    |δL|    ≤ (k·u + n·v)·Σ w_i·T_i / D
    |δg_i|  ≤ k·u·|c|·w_i·G_i, and n·v more where D = Σ w_i
    |δℓ_i|  ≤ (k·u + v)·w_i·T_i, and |δσ_i| ≤ k·u·σ_i for what is not summed
    |δ∂w_i| ≤ (k·u + n·v)·|c|·(T_i + T̄), with T̄ the mean where D = Σ w_i depends on weights, else 0

What the terms are is said in a loss's specification. Where they are larger than the result, an honest implementation
subtracts: log1p(−p) from log p, t from p, (1 − t)·x from log σ(x); there digits may be lost. 1 − p is off by u, which
is an absolute error of its logarithm, hence the 1 among the terms. A step across a kink changes no value by more: the
pieces meet there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.roundoff import STEPS, Roundoff, real

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from refloss.specification import Elementwise


def bounds(specification: Elementwise, case: Case, unit: Roundoff) -> dict[str, np.ndarray]:
    """Those of a loss whose terms its specification has."""
    names = specification.required[:2]
    x, t = (real(case.inputs[name]) for name in names)
    magnitudes = specification.magnitudes(x, t, case, unit)
    given = case.inputs.get("weight")
    weight = np.abs(np.ones(x.shape) if given is None else np.broadcast_to(real(given), x.shape))
    by_weight = given is not None and specification.mean == "weights"
    reduction = case.parameters.get("reduction", "mean")
    divisor = {
        "mean": np.asarray(weight.sum() if by_weight else x.size, dtype=float),
        "batchmean": np.asarray(x.shape[0] if x.ndim else 1, dtype=float),
    }.get(reduction, np.ones(()))
    coefficient = np.abs(real(case.grad_output)) / divisor
    value = weight * magnitudes.value / (1.0 if reduction == "none" else divisor)
    loss = value if reduction == "none" else value.sum()
    mean = loss if by_weight and reduction == "mean" else 0.0
    relative = STEPS * unit.between + x.size * unit.inside
    # A number of elements is exact, a sum of weights is not.
    of_gradient = STEPS * unit.between + (x.size * unit.inside if by_weight else 0.0)
    of_element = STEPS * unit.between + unit.inside
    return {
        "loss": relative * loss,
        f"grad.{names[0]}": of_gradient * coefficient * weight * magnitudes.first,
        f"grad.{names[1]}": of_gradient * coefficient * weight * magnitudes.target,
        "grad.weight": relative * coefficient * (magnitudes.value + mean),
        "intermediate.losses": of_element * weight * magnitudes.value,
        "intermediate.probabilities": of_element / (1 + np.exp(-x)),
    }
