"""Cross-entropies whose probabilities are taken along another axis, or twice.

The gradient of a row is c·(Q·p − q), of masses q with the sum Q. The right answer where one class has all probability
tells c·q of the others, whatever weights, smoothing and normaliser a function has; two such answers tell all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.golden.store import evaluate
from refloss.testing.mistakes import alterations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.cases.source import Case

_IMPROBABLE = 1e4  # e^-10000 is 0 in every type


def softmax_mistakes(case: Case) -> Iterator[tuple[str, str, np.ndarray]]:
    """Words, the name of a tensor, and what it then is; none for a function without softmax."""
    axis = alterations.softmax_axis(case)
    for name in [] if axis is None else alterations.logits(case):
        assert axis is not None
        words = "double softmax: the derivative of the loss of probabilities"
        yield words, f"grad.{name}", _derivative_of_twice(case, name, axis)
        shape = case.inputs[name].shape
        for other in (other for other, length in enumerate(shape) if other != axis and min(length, shape[axis]) > 1):
            words = f"wrong axis: softmax along axis {other} instead of {axis}"
            yield from ((words, *tensor) for tensor in _along(case, name, axis, other))


def _derivative_of_twice(case: Case, name: str, axis: int) -> np.ndarray:
    twice = alterations.activated_twice(case)
    assert twice is not None
    outer, inner = twice.answer()[1][f"grad.{name}"], alterations.softmax(case.inputs[name], axis)
    terms = np.where(outer == 0, 0.0, inner * outer)  # an ignored row may hold anything
    return np.asarray(terms - np.where(outer == 0, 0.0, inner) * terms.sum(axis=axis, keepdims=True))


def _along(case: Case, name: str, axis: int, other: int) -> Iterator[tuple[str, np.ndarray]]:
    pulled, pushed = _masses(case, name, axis)
    probability = alterations.softmax(case.inputs[name], other)
    # By hand with the formula for the gradient, or as the derivative of the wrong loss.
    for coefficient in (pushed, pulled.sum(axis=other, keepdims=True)):
        yield f"grad.{name}", np.where(coefficient == 0, 0.0, coefficient * probability) - pulled
    upstream = np.asarray(case.grad_output)
    if upstream.ndim == 0 and upstream and case.function != "question_answering":
        yield "loss", np.asarray(np.where(pulled == 0, 0.0, -pulled * np.log(probability)).sum() / upstream)


def _masses(case: Case, name: str, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """c·q of every class, and c·Q of every row."""
    certain = np.full(case.inputs[name].shape, -_IMPROBABLE)
    first: np.ndarray = np.arange(certain.shape[axis]).reshape(-1, *(1,) * (certain.ndim - axis - 1)) == 0
    of_first, of_others = (
        evaluate(alterations.altered(case, {name: np.where(sure, 0.0, certain)})).grads[name]
        for sure in (first, np.roll(first, 1, axis=0))
    )
    pulled = -np.where(first, of_others, of_first)
    return pulled, np.where(first, of_first + pulled, 0.0).sum(axis=axis, keepdims=True)
