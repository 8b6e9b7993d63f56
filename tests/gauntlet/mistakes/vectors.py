"""Mistakes with rows of vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.gauntlet.mistakes.mistake import TUTORIALS, Mistake, stepped

if TYPE_CHECKING:
    from refloss.cases.source import Case


def _has_more_behind(case: Case) -> bool:
    """Where a class is named behind a −1."""
    target = case.inputs["target"]
    return bool(np.any((np.cumsum(target < 0, axis=-1) > 0) & (target >= 0)))


VECTOR_MISTAKES = [
    Mistake(
        "the margin of vectors",
        TUTORIALS,
        ("cosine_embedding",),
        stepped(margin=lambda self, parameters: 0.0),
        "margin is ignored",
        lambda case: case.parameters.get("margin", 0.0) != 0.0,
        "where a margin is given",
    ),
    Mistake(
        "no swap",
        TUTORIALS,
        ("triplet_margin",),
        stepped(swap=lambda self, parameters: False),
        "swap is ignored",
        lambda case: bool(case.parameters.get("swap")),
        "where swap is given",
    ),
    Mistake(
        "a label set is read to its end",
        TUTORIALS,
        ("multilabel_margin",),
        stepped(counted=lambda self, target: target >= 0),
        "what follows a −1 counts as well",
        _has_more_behind,
        "where a class is named behind a −1",
    ),
    Mistake(
        "any target but 1 is −1",
        "ooples/AiDotNet.Tensors#271",
        ("cosine_embedding",),
        stepped(signs=lambda self, target: (target == 1, target != 1)),
        "targets that are neither 1 nor −1 are taken for −1",
        lambda case: bool((np.abs(case.inputs["target"]) != 1).any()),
        "where a target is neither",
    ),
    Mistake(
        "targets of 0 and 1",
        TUTORIALS,
        ("cosine_embedding",),
        stepped(signs=lambda self, target: (target == 1, target == 0)),
        "targets of −1 are taken for others",
        lambda case: bool((case.inputs["target"] == -1).any()),
        "where a target is −1",
    ),
]
