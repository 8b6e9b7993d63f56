"""Flow matching with self-distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gauntlet.mistakes.mistake import Mistake, has, stepped

if TYPE_CHECKING:
    from refloss.cases.source import Case

_FUNCTIONS = ("pocket_tts",)


def without_eos_weight(self: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    return (
        {"lsd_diagonal_weight": 0.75, "lsd_distill_probability": 0.25, "training": True}
        | parameters
        | {"eos_loss_weight": 0.1}
    )


def weighs_ends(case: Case) -> bool:
    """Whether the end of speech has another weight than it has where nobody says so."""
    return has("eos_loss_weight")(case) and case.parameters["eos_loss_weight"] != 0.1


FLOW_MISTAKES = [
    Mistake(
        "eos_loss_weight of a head",
        "huggingface/transformers#38559",
        _FUNCTIONS,
        stepped(options=without_eos_weight),
        "eos_loss_weight is ignored",
        weighs_ends,
        "where eos_loss_weight is not 0.1",
    ),
    Mistake(
        "upstream of a flow ignored",
        "pytorch/pytorch#11750",
        _FUNCTIONS,
        stepped(upstream=lambda self, cotangent, like: np.ones((), like.dtype)),
        "upstream gradient ignored",
        lambda case: case.grad_output != 1,
        "where grad_output is not 1",
    ),
]
