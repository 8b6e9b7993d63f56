"""The derivative of sigmoid_focal_loss in a label of 0 or 1 is not that of the function.

log(1 − p_t) is a logsumexp with the labels for factors, and JAX takes the derivative in a factor of 0 to be 0. It
matters to whoever learns or perturbs labels; a difference quotient of optax's own values finds the right one.
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
    case="`sigmoid_focal_loss`: the derivative in a label of exactly 0 or 1",
    theirs="the derivative in a factor of 0 of a logsumexp is taken to be 0",
    ours="not followed: the derivative",
    seen={"optax": "0.2.8"},
)


def reproduce() -> Iterator[Answer]:
    x, label = np.array([0.5], np.float32), np.ones(1, np.float32)
    theirs = jax.grad(lambda t: optax.losses.sigmoid_focal_loss(x, t, gamma=2.0).sum())(label)
    ours = refloss.sigmoid_focal(x, label, 1.0, alpha=-1, gamma=2.0, reduction="sum").grads["targets"]
    p = 1 / (1 + np.exp(-0.5))
    # Of (1 − p_t)²·ce, where ce' = −x and (1 − p_t)' = 1 − 2p; there it is 1 − p.
    recorded, exact = (2 * slope * (1 - p) * -np.log(p) - 0.5 * (1 - p) ** 2 for slope in (1 - p, 1 - 2 * p))
    yield Answer("the derivative", theirs, [recorded], [exact], ours, 1e-5, 1e-6)
