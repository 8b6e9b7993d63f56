"""How far an honest implementation in a given type may be from the exact answer.

Per element k·u·Σ|terms|: u is the unit roundoff of the type that is computed in, the terms are those that the element
is the sum of, and k counts roundings. It multiplies the oracle's own magnitudes, never the candidate's. Derivations are
in the modules, one a family, and what a loss adds to its family's is in its specification; docs/tolerances.md tells
what they come to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from refloss.error_model import elementwise, softmax
from refloss.registry import FUNCTIONS
from refloss.roundoff import COMPUTE_DTYPES, Roundoff, roundoff
from refloss.specification import Elementwise, Softmax

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from refloss.result import LossResult

__all__ = ["COMPUTE_DTYPES", "bounds"]


@np.errstate(all="ignore")  # what is infinite or undefined has no bound, and is compared as it is
def bounds(case: Case, result: LossResult, compute_dtype: str) -> dict[str, np.ndarray]:
    """A bound for every element of every tensor of a case's right answer, without the rounding to the output's type."""
    unit = roundoff(compute_dtype)
    limits = _limits(case, result, unit)
    given = case.grad_output
    cotangents = np.asarray(list(given.values()) if isinstance(given, Mapping) else given, np.float64)
    # What is smaller than tiny may be lost, before the cotangent multiplies it or after.
    lost = unit.tiny * (1.0 + np.abs(cotangents).max(initial=0.0))
    # Infinitely many times nothing: an element without terms, where no label counts.
    return {
        name: np.nan_to_num(np.asarray(bound, np.float64), nan=0.0, posinf=np.inf) + lost
        for name, bound in limits.items()
    }


def _limits(case: Case, result: LossResult, unit: Roundoff) -> dict[str, np.ndarray]:
    """The bounds of a loss's own, or those of its family."""
    specification = FUNCTIONS[case.function].specification
    if specification.bounds is not None:
        return specification.bounds(case, result, unit)
    if isinstance(specification, Elementwise):
        return elementwise.bounds(specification, case, unit)
    if isinstance(specification, Softmax):
        return softmax.bounds(specification, case, unit)
    raise TypeError(f"the specification of {case.function} has no bounds, and is of no family that has some")
