"""Mistakes with a linear layer whose outputs are logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from refloss.testing.mistakes import linear_steps, row_labels
from tests.gauntlet.honest import LINEAR
from tests.gauntlet.mistakes.mistake import TUTORIALS, Mistake, has, stepped
from tests.gauntlet.rows import CrossEntropy

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from tests.gauntlet.rows import Rows

FILTER = 2.0**-12  # what CCE's filter_eps is for bfloat16 unless it is given
PARTS = 64


def several_cotangents(case: Case) -> bool:
    """Whether rows have cotangents of their own that differ."""
    given = case.grad_output if isinstance(case.grad_output, dict) else {"": case.grad_output}
    return any(np.ndim(value) and len(np.unique(value)) > 1 for value in given.values())


def first_of_all(self: Any, cotangents: np.ndarray) -> np.ndarray:
    return np.full_like(cotangents, cotangents.flat[0]) if cotangents.size else cotangents


def without_small(self: CrossEntropy, rows: Rows, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The loss is right; products that would add little are left out."""
    slopes = CrossEntropy.derivative(self, rows, p, q)
    return np.where(np.abs(slopes) < FILTER, 0, slopes)


def in_bfloat16(self: Any, total: np.ndarray, part: np.ndarray) -> np.ndarray:
    return (total + part).astype(ml_dtypes.bfloat16).astype(total.dtype)


def in_parts(self: Any, rows: int) -> int:
    return -(-rows // PARTS)


def own_mean(self: Any, whole: Any, own: Any, parts: int) -> Any:
    """Of parts without a row that counts nothing is left to be divided."""
    return (own or own.dtype.type(1)) * parts if whole else whole


def is_mean(case: Case) -> bool:
    return case.parameters.get("reduction", "mean") == "mean"


LINEAR_MISTAKES = [
    Mistake(
        "weights transposed",
        TUTORIALS,
        LINEAR,
        stepped(layer_weight=lambda self, w: np.ascontiguousarray(w.reshape(w.shape[::-1]).T)),
        "weights are read transposed",
    ),
    Mistake(
        "shards of weights exchanged",
        TUTORIALS,
        LINEAR,
        stepped(layer_weight=lambda self, w: np.roll(w, len(w) // 2, axis=0)),
        "shards of the classes' weights are exchanged",
    ),
    Mistake(
        "bias forgotten",
        TUTORIALS,
        LINEAR,
        stepped(layer_bias=lambda self, b: np.zeros_like(b)),
        "the bias is forgotten in the logits",
        has("linear_bias"),
        "where there is a bias",
    ),
    Mistake(
        "the first row's upstream gradient for all",
        "linkedin/Liger-Kernel#968",
        LINEAR,
        stepped(each=first_of_all),
        row_labels.FIRST_UPSTREAM,
        several_cotangents,
        "where rows have upstream gradients of their own",
    ),
    Mistake(
        "small gradients filtered",
        "apple/ml-cross-entropy#14",
        ("linear_cross_entropy",),
        stepped(derivative=without_small),
        linear_steps.FILTERED,
    ),
    Mistake(
        "means of parts of a layer's rows",
        TUTORIALS,
        ("linear_cross_entropy",),
        stepped(rows_at_once=lambda self, rows: -(-rows // 3), of_part=own_mean),
        "a mean of the means of chunks",
        is_mean,
        "where losses are averaged",
    ),
    Mistake(
        "gradients of parameters in bfloat16",
        "linkedin/Liger-Kernel#1391",
        LINEAR,
        stepped(rows_at_once=in_parts, added=in_bfloat16),
        linear_steps.IN_16_BITS,
    ),
]
