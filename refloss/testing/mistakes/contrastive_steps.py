"""Mistaken formulas of losses of similarities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.roundoff import real
from refloss.testing.mistakes.guess import COMMON, USUAL, Guess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.cases.source import Case


def of_pairs(case: Case) -> Iterator[Guess]:
    """Those of a case's function; none where it has no similarities."""
    if case.function == "sigmoid_contrastive":
        yield from _of_sigmoids(case)
    if case.function == "info_nce":
        yield from _of_softmaxes(case)


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


def _of_softmaxes(case: Case) -> Iterator[Guess]:
    x = real(case.inputs["similarity"])
    if case.parameters.get("symmetric", True):
        rows, columns = _half(case, x), {name: value.T for name, value in _half(case, x.T).items()}
        yield Guess("columns are left out", USUAL, rows)
        yield Guess("rows are left out", USUAL, columns)
        yield Guess("rows and columns are added up, not averaged", COMMON, _sum(rows, columns))
    smoothing = case.parameters.get("label_smoothing", 0.0)
    if smoothing and len(x) > 1:
        count = x.shape[1]
        # The smoothing's share goes to the others alone.
        wrong = _both(case, x, smoothing * count / (count - 1))
        yield Guess("the smoothing leaves out the label", USUAL, wrong)


def _sum(rows: dict[str, np.ndarray], columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value + columns[name] for name, value in rows.items()}


def _both(case: Case, x: np.ndarray, smoothing: float) -> dict[str, np.ndarray]:
    rows = _half(case, x, smoothing)
    if not case.parameters.get("symmetric", True):
        return rows
    columns = {name: value.T for name, value in _half(case, x.T, smoothing).items()}
    return {name: value / 2 for name, value in _sum(rows, columns).items()}


def _half(case: Case, x: np.ndarray, smoothing: float | None = None) -> dict[str, np.ndarray]:
    """The tensors of the cross-entropy of rows alone."""
    reduction = case.parameters.get("reduction", "mean")
    share = case.parameters.get("label_smoothing", 0.0) if smoothing is None else smoothing
    distance = x - x.max(axis=1, keepdims=True)
    log_p = distance - np.log(np.exp(distance).sum(axis=1, keepdims=True))
    q = (1.0 - share) * np.eye(*x.shape) + share / x.shape[1]
    losses = np.where(q == 0.0, 0.0, -q * log_p).sum(axis=1)
    divisor = len(x) if reduction == "mean" else 1
    upstream = real(case.grad_output) / divisor
    return {
        "loss": losses if reduction == "none" else np.asarray(losses.sum() / divisor),
        "grad.similarity": (upstream[:, None] if upstream.ndim else upstream) * (np.exp(log_p) - q),
    }
