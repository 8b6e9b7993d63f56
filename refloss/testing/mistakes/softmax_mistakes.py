"""Gradients of cross-entropy whose probabilities are taken along another axis, or twice.

The gradient of a row is c·(Q·p − q), of masses q with the sum Q. The right answer where one class has all probability
tells c·q of the others, whatever weights, smoothing and normaliser a function has; two such answers tell all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss.golden.store import evaluate
from refloss.testing.mistakes import alterations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.golden.source import Case


IMPROBABLE = 1e4  # e^-10000 is 0 in every type


class Wrong(NamedTuple):
    """A wrong tensor, and the magnitude of the terms of its elements and of the right ones."""

    words: str
    name: str
    values: np.ndarray
    magnitude: np.ndarray
    right_magnitude: np.ndarray


class _Masses(NamedTuple):
    """A cross-entropy's gradient in parts, in the shape of the logits."""

    pulled: np.ndarray  # c·q
    pushed: np.ndarray  # c·Q
    probability: np.ndarray


def softmax_mistakes(case: Case) -> Iterator[Wrong]:
    """Every such mistake; none for a function without softmax."""
    axis = alterations.softmax_axis(case)
    for name in [] if axis is None else alterations.logits(case):
        assert axis is not None
        yield from _along_other_axes(case, name, axis)
        yield from _twice(case, name, axis)


def _masses(case: Case, name: str, axis: int) -> _Masses:
    logits = case.inputs[name]
    first, second = (
        evaluate(alterations.altered(case, {name: _certain(logits, axis, place)})).grads[name].astype(np.float64)
        for place in (0, 1)
    )
    index: Any = (*(slice(None),) * axis, slice(0, 1))
    pulled = -first
    pulled[index] = -second[index]
    pushed = np.broadcast_to(first[index] + pulled[index], logits.shape)
    return _Masses(pulled, pushed, alterations.softmax(logits, axis))


def _certain(logits: np.ndarray, axis: int, place: int) -> np.ndarray:
    """Logits of which one class takes all probability."""
    certain = np.full_like(logits, -IMPROBABLE, dtype=alterations.wide_dtype(logits))
    index: Any = (*(slice(None),) * axis, place)
    certain[index] = 0.0
    return certain


def _along_other_axes(case: Case, name: str, axis: int) -> Iterator[Wrong]:
    logits = case.inputs[name]
    others = [other for other, length in enumerate(logits.shape) if other != axis and length > 1]
    if not others or logits.shape[axis] < 2:
        return
    masses = _masses(case, name, axis)
    pulled, pushed = np.abs(masses.pulled), np.abs(masses.pushed)
    right = pulled + pushed * np.nan_to_num(masses.probability)
    for other in others:
        words = f"wrong axis: softmax along axis {other} instead of {axis}"
        probability = alterations.softmax(logits, other)
        # By hand with the formula for the gradient, or as the derivative of the wrong loss.
        for coefficient in (masses.pushed, masses.pulled.sum(axis=other, keepdims=True)):
            values = np.where(coefficient == 0, 0.0, coefficient * probability) - masses.pulled
            magnitude = pulled + np.abs(coefficient) * probability
            yield Wrong(words, f"grad.{name}", values, magnitude, right)
        upstream = np.asarray(case.grad_output)
        if upstream.ndim == 0 and upstream and case.function != "question_answering":
            terms = np.where(masses.pulled == 0, 0.0, -masses.pulled * np.log(probability))
            loss = np.asarray(terms.sum() / upstream)
            yield Wrong(words, "loss", loss, np.abs(terms).sum() / np.abs(upstream), _of_loss(masses, upstream))


def _of_loss(masses: _Masses, upstream: np.ndarray) -> np.ndarray:
    terms = np.where(masses.pulled == 0, 0.0, masses.pulled * np.log(masses.probability))
    return np.asarray(np.abs(terms).sum() / np.abs(upstream))


def _twice(case: Case, name: str, axis: int) -> Iterator[Wrong]:
    """The derivative of the loss of probabilities that are taken as logits."""
    inner = alterations.softmax(case.inputs[name], axis)
    other = alterations.activated_twice(case)
    assert other is not None
    outer = other.answer()[1][f"grad.{name}"]
    values = np.where(outer == 0, 0.0, inner * outer)
    values = values - inner * values.sum(axis=axis, keepdims=True)
    magnitude = inner * (np.abs(outer) + np.abs(inner * outer).sum(axis=axis, keepdims=True))
    yield Wrong(
        "double softmax: the derivative of the loss of probabilities",
        f"grad.{name}",
        np.where(np.isfinite(outer), values, 0.0),
        np.nan_to_num(magnitude),
        np.abs(outer),
    )
