"""How far an honest implementation in a given type may be from the exact answer.

Per element k·u·Σ|terms|: u is the unit roundoff of the type that is computed in, the terms are those that the element
is the sum of, and k counts roundings. It multiplies the oracle's own magnitudes, never the candidate's. Derivations are
in the modules, one a family, and what a loss adds to its family's is in its specification; docs/tolerances.md tells
what they come to.

What is smaller than the type holds well may be lost, and is then multiplied by what follows: a cotangent, where it was
lost before, and what the cotangent over the normaliser multiplies, where that quotient was. It is each element's own
cotangent: what a row is given allows nothing in another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.error_model import elementwise, softmax
from refloss.error_model.bound import Bound, whole
from refloss.registry import FUNCTIONS
from refloss.roundoff import COMPUTE_DTYPES, Roundoff, roundoff
from refloss.specification import Elementwise, Softmax

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from refloss.result import LossResult

__all__ = ["COMPUTE_DTYPES", "Bound", "bounds"]


@np.errstate(all="ignore")  # what is infinite or undefined has no bound, and is compared as it is
def bounds(
    case: Case,
    result: LossResult,
    compute_dtype: str,
    summation: str = "blocks",
    *,
    filtered: float = 0.0,
    parts: int = 1,
) -> Mapping[str, Bound]:
    """A bound for every element of every tensor of a case's right answer, without the rounding to the output's type.

    Args:
        case: the call.
        result: its right answer.
        compute_dtype: the type that an implementation computes in, one of COMPUTE_DTYPES.
        summation: "blocks" if its sums have chains of at most 2^12 additions, "any" if they may be one long chain.
        filtered: of linear_cross_entropy, the size below which Q·p − q may be left out of its products.
        parts: of a linear layer, how many parts of the rows have gradients of parameters that are added up in the
            parameters' own type.
    """
    unit = roundoff(compute_dtype, summation)._replace(filtered=filtered, parts=parts)
    limits = _limits(case, result, unit)
    given = case.grad_output
    cotangents = list(given.values()) if isinstance(given, Mapping) else [given]
    largest = max((float(np.abs(np.asarray(each, np.float64)).max(initial=0.0)) for each in cotangents), default=0.0)
    return {name: _bound(name, limit, unit, largest) for name, limit in limits.items()}


def _bound(name: str, limit: Any, unit: Roundoff, cotangent: float) -> Bound:
    """Of arrays, which know of nothing that may be lost, the bound with that."""
    if isinstance(limit, Bound):
        return limit
    return whole(limit, lost=unit.tiny * (1.0 + (cotangent if name.startswith("grad.") else 0.0)))


def _limits(case: Case, result: LossResult, unit: Roundoff) -> Mapping[str, Any]:
    """The bounds of a loss's own, or those of its family."""
    specification = FUNCTIONS[case.function].specification
    if specification.bounds is not None:
        return specification.bounds(case, result, unit)
    if isinstance(specification, Elementwise):
        return elementwise.bounds(specification, case, unit)
    if isinstance(specification, Softmax):
        return softmax.bounds(specification, case, unit)
    raise TypeError(f"the specification of {case.function} has no bounds, and is of no family that has some")
