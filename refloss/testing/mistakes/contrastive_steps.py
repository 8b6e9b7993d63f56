"""Mistaken formulas of losses of similarities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.roundoff import real
from refloss.testing.mistakes.guess import USUAL, Guess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.cases.source import Case


def of_pairs(case: Case) -> Iterator[Guess]:
    """Those of a case's function; none where it has no similarities."""
    if case.function == "sigmoid_contrastive":
        yield from _of_sigmoids(case)


def _of_sigmoids(case: Case) -> Iterator[Guess]:
    x = real(case.inputs["logits"])
    eye = np.eye(len(x))
    for mistake, sign in (
        ("negatives are multiplied by 0 instead of −1", eye),
        ("negatives are taken for positives", np.ones_like(eye)),
        ("positives and negatives are exchanged", 1.0 - 2.0 * eye),
    ):
        yield Guess(mistake, USUAL, _sigmoids(case, x, sign))
    for mistake, mask in (("positives alone count", eye), ("negatives alone count", 1.0 - eye)):
        yield Guess(mistake, USUAL, _sigmoids(case, x, 2.0 * eye - 1.0, mask))


def _sigmoids(case: Case, x: np.ndarray, sign: np.ndarray, mask: np.ndarray | float = 1.0) -> dict[str, np.ndarray]:
    """The tensors of −Σ mask·log σ(sign·x), row by row."""
    reduction, z = case.parameters.get("reduction", "mean"), sign * x
    losses = (mask * np.logaddexp(0.0, -z)).sum(axis=1)
    divisor = len(x) if reduction == "mean" else 1
    upstream = real(case.grad_output) / divisor
    slope = -mask * sign * np.exp(-np.logaddexp(0.0, z))
    return {
        "loss": losses if reduction == "none" else np.asarray(losses.sum() / divisor),
        "grad.logits": (upstream[:, None] if upstream.ndim else upstream) * slope,
    }
