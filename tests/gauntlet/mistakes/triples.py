"""Losses of three arrays of corresponding elements."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.roundoff import real
from tests.gauntlet.mistakes.mistake import TUTORIALS, Mistake, ignored, stepped

if TYPE_CHECKING:
    from refloss.cases.source import Case


def at_hinge(case: Case) -> bool:
    """Whether some pair is a margin apart, and has a cotangent and a target that are not 0."""
    x, z, y = (real(case.inputs[name]) for name in ("input1", "input2", "target"))
    hinge = case.parameters.get("margin", 0.0) - y * (x - z)
    return bool(((hinge == 0) & (real(case.grad_output) * y != 0)).any())


TRIPLE_MISTAKES = [
    ignored("margin", TUTORIALS, ("margin_ranking",)),
    Mistake(
        "no slope at the hinge",
        TUTORIALS,
        ("margin_ranking",),
        stepped(counts=lambda self, hinge: np.asarray(hinge > 0)),
        "the hinge has no slope where it is 0",
        at_hinge,
        "where a pair is a margin apart",
    ),
]
