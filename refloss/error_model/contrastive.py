"""How far an honest InfoNCE may be off: half of what its rows' cross-entropies may be, and half of its columns'.

Notation as in softmax. Both halves of a gradient element are terms of its sum, so that their bounds are added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.error_model.bound import Bound
from refloss.error_model.softmax import Rows, row_bounds

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from refloss.result import LossResult
    from refloss.roundoff import Roundoff


def info_nce(case: Case, _: LossResult, unit: Roundoff) -> dict[str, Bound]:
    """Rows alone, or rows and columns."""
    values = case.inputs["similarity"]
    axes = (1, 0) if case.parameters.get("symmetric", True) else (1,)
    options = {name: case.parameters[name] for name in ("reduction", "label_smoothing") if name in case.parameters}
    halves = [
        row_bounds(Rows(values, np.arange(len(values)), case.grad_output, class_axis=axis, **options), unit)
        for axis in axes
    ]
    return {"loss": _mean(halves, "loss"), "grad.similarity": _mean(halves, "grad.logits")}


def _mean(halves: list[dict[str, Bound]], name: str) -> Bound:
    parts = [half[name] for half in halves]
    return Bound(parts[0].shape, lambda first, last: sum(part.part(first, last) for part in parts) / len(parts))
