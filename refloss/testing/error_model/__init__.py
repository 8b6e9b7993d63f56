"""How far an honest implementation in a given type may be from the exact answer.

Per element k·u·Σ|terms|: u is the unit roundoff of the type that is computed in, the terms are those that the element
is the sum of, and k counts roundings. It multiplies the oracle's own magnitudes, never the candidate's. Derivations are
in the modules, one a family; docs/tolerances.md tells what they come to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from refloss.roundoff import COMPUTE_DTYPES, Roundoff, roundoff
from refloss.testing.error_model import boxes, cross_entropy, detection, elementwise, focal, heads, layered

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.cases.source import Case
    from refloss.result import LossResult

__all__ = ["COMPUTE_DTYPES", "bounds"]

_MODELS: dict[str, Callable[[Case, LossResult, Roundoff], dict[str, np.ndarray]]] = {
    "cross_entropy": cross_entropy.cross_entropy,
    **dict.fromkeys(("causal_lm", "masked_lm", "token_classification"), cross_entropy.tokens),
    **dict.fromkeys(elementwise.MAGNITUDES, elementwise.elementwise),
    "nll": elementwise.nll,
    "sigmoid_focal": focal.sigmoid_focal,
    "varifocal": focal.varifocal,
    "dice": focal.dice,
    "iou": boxes.overlap,
    "giou": boxes.overlap,
    "sequence_classification": heads.sequence_classification,
    "question_answering": heads.question_answering,
    "semantic_segmentation": heads.semantic_segmentation,
    **dict.fromkeys(
        (
            "object_detection",
            "segmentation",
            "deformable_detr_object_detection",
            "deformable_detr_segmentation",
            "grounding_dino_object_detection",
        ),
        detection.head_bounds,
    ),
    **dict.fromkeys(
        (
            "rt_detr_object_detection",
            "d_fine_object_detection",
            "deimv2_object_detection",
            "lw_detr_object_detection",
        ),
        layered.layered_bounds,
    ),
}


@np.errstate(all="ignore")  # what is infinite or undefined has no bound, and is compared as it is
def bounds(case: Case, result: LossResult, compute_dtype: str) -> dict[str, np.ndarray]:
    """A bound for every element of every tensor of a case's right answer, without the rounding to the output's type."""
    unit = roundoff(compute_dtype)
    limits = _MODELS[case.function](case, result, unit)
    given = case.grad_output
    cotangents = np.asarray(list(given.values()) if isinstance(given, Mapping) else given, np.float64)
    # What is smaller than tiny may be lost, before the cotangent multiplies it or after.
    lost = unit.tiny * (1.0 + np.abs(cotangents).max(initial=0.0))
    # Infinitely many times nothing: an element without terms, where no label counts.
    return {
        name: np.nan_to_num(np.asarray(bound, np.float64), nan=0.0, posinf=np.inf) + lost
        for name, bound in limits.items()
    }
