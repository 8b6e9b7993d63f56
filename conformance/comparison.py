"""What every case goes through: the formula in float64, torch as it is shipped, and wrong gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from conformance.call import Call
from conformance.cases import Divergence
from conformance.reference import disagreements, formula_precision, run_refloss, run_torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.cases import Array, Case
    from conformance.reference import Outcome

    Tolerances = Callable[[Call], Outcome]

FORMULA_TOLERANCE = 1e-12  # of the tensor's largest element

MUTANTS: dict[str, Callable[[Array, Array], Array]] = {
    "zero": lambda gradient, _: np.zeros_like(gradient),
    "negated": lambda gradient, _: -gradient,
    "doubled": lambda gradient, _: 2 * gradient,
    "a fifth too large": lambda gradient, _: 1.2 * gradient,
    "shifted by a class": lambda gradient, _: np.roll(gradient, 1),
    "blind to grad_output": lambda _, gradient_of_ones: gradient_of_ones,
}


def scale(values: Array) -> float:
    """The largest magnitude of a tensor that is a number."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def identifier(value: Case | Divergence | torch.dtype) -> str:
    """A parameter's part of a test's id."""
    if isinstance(value, Divergence):
        return f"{value.case.id}-{value.tensor}"
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value.id


def assert_formula(case: Case) -> None:
    """Both sides in float64."""
    with formula_precision():
        call = Call(case, torch.float64)
        expected = run_torch(call)
    tolerance = {name: np.asarray(FORMULA_TOLERANCE * scale(values)) for name, values in expected.items()}
    lines = disagreements(run_refloss(call), expected, tolerance)
    assert not lines, "\n".join(lines)


def assert_as_shipped(case: Case, dtype: torch.dtype, tolerances: Tolerances) -> None:
    """Both sides in a dtype that people train in."""
    call = Call(case, dtype)
    lines = disagreements(run_torch(call), run_refloss(call), tolerances(call))
    assert not lines, "\n".join(lines)


def assert_wrong_gradients_fail(case: Case, dtype: torch.dtype, tolerances: Tolerances) -> None:
    """The same comparison rejects each mutant of each gradient; one element alone has nowhere to shift to."""
    call = Call(case, dtype)
    expected, right, tolerance = run_torch(call), run_refloss(call), tolerances(call)
    of_ones = run_refloss(call, grad_output=1.0)
    for gradient in (name for name in right if name.startswith("grad.")):
        for mutant, mutate in MUTANTS.items():
            if mutant == "shifted by a class" and right[gradient].size == 1:
                continue
            wrong = {**right, gradient: mutate(right[gradient], of_ones[gradient])}
            assert disagreements(wrong, expected, tolerance), f"{mutant} {gradient} passes"


def assert_divergence(divergence: Divergence) -> None:
    """Both sides have, in float64, what the table says that they have."""
    call = Call(divergence.case, torch.float64)
    theirs, ours = (run(call)[divergence.tensor][divergence.element] for run in (run_torch, run_refloss))
    np.testing.assert_array_equal(theirs, divergence.theirs)
    np.testing.assert_allclose(ours, divergence.ours, rtol=1e-15)
