"""Losses of similarities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.gauntlet.mistakes.mistake import TUTORIALS, Mistake, stepped

if TYPE_CHECKING:
    from refloss.cases.source import Case


def is_mean(case: Case) -> bool:
    return case.parameters.get("reduction", "mean") == "mean" and has_negatives(case)


def is_symmetric(case: Case) -> bool:
    return bool(case.parameters.get("symmetric", True)) and has_negatives(case)


def has_negatives(case: Case) -> bool:
    return len(next(iter(case.inputs.values()))) > 1


SIGMOIDS = ("sigmoid_contrastive",)
CONTRASTIVE_MISTAKES = [
    Mistake(
        "mean over all pairs",
        "google-research/big_vision#115",
        ("sigmoid_contrastive", "info_nce"),
        stepped(divisor=lambda self, x: x.size),
        "a mean over all elements instead of the pairs",
        is_mean,
        "where the reduction is mean",
    ),
    Mistake(
        "negatives times 0",
        TUTORIALS,
        SIGMOIDS,
        stepped(signs=lambda self, x: np.eye(len(x), dtype=x.dtype)),
        "negatives are multiplied by 0 instead of −1",
        has_negatives,
        "where there are negatives",
    ),
    Mistake(
        "rows alone",
        TUTORIALS,
        ("info_nce",),
        stepped(directions=lambda self, *, symmetric: (False,)),
        "columns are left out",
        is_symmetric,
        "where columns count as well",
    ),
    Mistake(
        "both directions are added up",
        TUTORIALS,
        ("info_nce",),
        stepped(share=lambda self, halves: 1),
        "rows and columns are added up, not averaged",
        is_symmetric,
        "where columns count as well",
    ),
]
