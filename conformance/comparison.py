"""What every case goes through: the formula in float64, torch as it is shipped, and wrong answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from conformance.call import Call
from conformance.error_model import question, tolerances
from conformance.reference import disagreements, formula_precision, outcome_of, run_refloss, run_torch
from refloss.testing.mistakes.mutants import WITHIN_ROUNDING, mutated

if TYPE_CHECKING:
    from conformance.cases import Array, Case
    from conformance.reference import Outcome
    from refloss.testing.verdict import Question

FORMULA_TOLERANCE = 1e-12  # of the tensor's largest element
# Types in which a percent may be a neighbour.
SHORT = ("bfloat16", "float16")


def scale(values: Array) -> float:
    """The largest magnitude of a tensor that is a number."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def identifier(value: Case | torch.dtype) -> str:
    """A parameter's part of a test's id."""
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value.id


def assert_formula(case: Case) -> None:
    """Both sides in float64."""
    with formula_precision():
        call = Call(case, torch.float64)
        expected = run_torch(call)
    tolerance = {name: np.asarray(FORMULA_TOLERANCE * scale(values)) for name, values in expected.items()}
    lines = disagreements(run_refloss(call), expected, tolerance)
    assert not lines, "\n".join(lines)


def assert_as_shipped(case: Case, dtype: torch.dtype, *, telling: bool = False) -> None:
    """Both sides in a dtype that people train in; where that tells something, the comparison rejects wrong answers."""
    call = Call(case, dtype)
    asked, expected = question(call), run_torch(call)
    allowed = tolerances(asked, call)
    lines = disagreements(expected, outcome_of(asked.result), allowed)
    assert not lines, "\n".join(lines)
    if telling:
        assert_mutants_fail(asked, expected, allowed)


def assert_mutants_fail(asked: Question, expected: Outcome, allowed: Outcome) -> None:
    """Each of the judge's mutants of the loss and of each gradient, unless it cannot show."""
    coarse = asked.compute_dtype in SHORT
    for mutant, answers in mutated(asked).items():
        for name, wrong in answers.items():
            if isinstance(wrong, str):
                short = coarse or asked.expected[name].dtype.name in SHORT
                assert wrong != WITHIN_ROUNDING or short, f"{mutant} {name}"
                continue
            tensor = {name: wrong.astype(np.float64)}
            # Of few rows alone, each computed in 16 bits, neighbours may be alike.
            alike = coarse and (mutant, name) == ("rows shifted by one", "loss")
            if alike and _is_between_honest(tensor[name], expected[name], allowed[name]):
                continue
            assert disagreements(tensor, {name: expected[name]}, allowed), f"{mutant} {name} passes"


def _is_between_honest(wrong: np.ndarray, right: np.ndarray, allowed: np.ndarray) -> bool:
    """Whether it is no farther off than two honest answers, off to either side, may be from each other."""
    with np.errstate(invalid="ignore"):
        return bool(np.all((wrong == right) | (np.abs(wrong - right) <= 2 * allowed)))
