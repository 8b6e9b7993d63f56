"""huber_loss loses digits of the gradients of small residuals.

It is ½q² + δ·(|d| − q) with q = min(|d|, δ), so that automatic differentiation adds δ to a small residual and takes
it off again: an error of δ·2^−24. Gradients near an optimum, a ten-thousandth of δ, are right to three digits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import numpy as np
import optax

import refloss
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="optax",
    case="`huber_loss`: the gradient of a small residual",
    theirs="q − δ + δ: an absolute error of δ·2^−24",
    ours="not followed: the residual",
    seen={"optax": "0.2.8"},
)


def reproduce() -> Iterator[Answer]:
    residual, zero = np.array([1e-10], np.float32), np.zeros(1, np.float32)
    theirs = jax.grad(lambda x: optax.losses.huber_loss(x, zero).sum())(residual)
    ours = refloss.huber(residual, zero, reduction="sum").grads["input"]
    yield Answer("the gradient of 1e-10", theirs, [0.0], residual, ours)
