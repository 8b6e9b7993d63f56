"""optax's losses that outside_users.py does not judge, against refloss: in float32, as JAX computes.

A function is called as its documentation has it, and its gradient is JAX's; what differs is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import refloss

if TYPE_CHECKING:
    from collections.abc import Callable

TOLERANCE = 4e-6  # of the largest element


def random_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(24).standard_normal(shape).astype(np.float32)


def assert_agree(loss: Callable[..., Any], argument: np.ndarray, value: Any, gradient: np.ndarray) -> None:
    """A loss of elements or rows, and the gradient of its mean."""
    theirs, slope = jax.value_and_grad(lambda x: loss(x).mean())(jnp.asarray(argument))
    np.testing.assert_allclose(theirs, value, rtol=TOLERANCE)
    np.testing.assert_allclose(slope, gradient, rtol=0, atol=TOLERANCE * np.abs(gradient).max())


def ctc_arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Logits of batches, labels with a repetition, and lengths of both."""
    labels = np.array([[1, 1, 2], [3, 2, 4], [2, 0, 0]])
    return random_of(3, 8, 5), labels, np.array([8, 6, 7]), np.array([3, 3, 1])


def paddings(lengths: np.ndarray, width: int) -> np.ndarray:
    """1 for what does not count."""
    return (np.arange(width) >= lengths[:, None]).astype(np.float32)


def filled(labels: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Rows of labels as refloss has them."""
    return np.where(paddings(lengths, labels.shape[1]) > 0, -100, labels)


def test_ctc() -> None:
    logits, labels, frames, lengths = ctc_arrays()

    def loss(given: jax.Array) -> jax.Array:
        losses: jax.Array = optax.losses.ctc_loss(given, paddings(frames, 8), labels, paddings(lengths, 3))
        return losses

    ours = refloss.ctc_of_logits(logits, filled(labels, lengths), frames, 0, reduction="sum", grad_output=1 / 3)
    assert_agree(loss, logits, ours.loss / 3, ours.grads["logits"])


def test_divergence_of_ctc_without_a_path() -> None:
    """Three labels in two frames: optax has 1e5 for what is infinite."""
    logits, labels, _, lengths = ctc_arrays()
    frames = np.array([2, 6, 7])
    theirs = optax.losses.ctc_loss(logits, paddings(frames, 8), labels, paddings(lengths, 3))
    ours = np.asarray(refloss.ctc_of_logits(logits, filled(labels, lengths), frames, 0, reduction="none").loss)
    np.testing.assert_allclose(theirs[1:], ours[1:], rtol=TOLERANCE)
    assert 9e4 < theirs[0] < 1.1e5
    assert np.isposinf(ours[0])


def test_smoothed_labels() -> None:
    logits, target = random_of(4, 7), np.array([3, 0, 6, 2])
    smoothed = optax.losses.smooth_labels(jax.nn.one_hot(target, 7), 0.1)
    ours = refloss.cross_entropy(logits, target, label_smoothing=0.1)
    for loss in (optax.losses.softmax_cross_entropy, optax.losses.safe_softmax_cross_entropy):
        assert_agree(lambda given, loss=loss: loss(given, smoothed), logits, ours.loss, ours.grads["logits"])


def test_a_class_of_probability_0_and_logit_minus_infinity() -> None:
    """softmax_cross_entropy has NaN, as torch and refloss do; safe_softmax_cross_entropy leaves the class out."""
    logits, target = np.array([[0.5, 1.0, -np.inf]], np.float32), np.array([[0.25, 0.75, 0.0]], np.float32)
    assert np.isnan(optax.losses.softmax_cross_entropy(logits, target)).all()
    assert np.isnan(refloss.cross_entropy(logits, target).loss)
    rest = refloss.cross_entropy(logits[:, :2], target[:, :2]).loss
    np.testing.assert_allclose(optax.losses.safe_softmax_cross_entropy(logits, target)[0], rest, rtol=TOLERANCE)


def test_cosine_distance() -> None:
    first, second = random_of(2, 5, 6)
    ours = refloss.cosine_embedding(first, second, np.ones(5, np.int64))
    assert_agree(lambda given: optax.losses.cosine_distance(given, second), first, ours.loss, ours.grads["input1"])


def test_hinge_of_two_classes() -> None:
    """Of more classes it takes the largest violation, where multi_margin takes the sum of all."""
    logits, target = random_of(6, 2), np.array([1, 0, 0, 1, 1, 0])
    ours = refloss.multi_margin(logits, target)
    # multi_margin divides by the number of classes.
    assert_agree(
        lambda given: optax.losses.multiclass_hinge_loss(given, target) / 2, logits, ours.loss, ours.grads["input"]
    )


def test_divergence_of_triplets() -> None:
    """optax adds eps to the sum of squares, torch and refloss to each difference: 1e-3 and 1e-6 for equal vectors."""
    anchor, positive, negative = random_of(3, 5, 6)
    ours = refloss.triplet_margin(anchor, positive, negative, eps=0.0)
    assert_agree(
        lambda given: optax.losses.triplet_margin_loss(given, positive, negative, eps=0.0),
        anchor,
        ours.loss,
        ours.grads["anchor"],
    )
    same = optax.losses.triplet_margin_loss(anchor, anchor, anchor + 1.0)
    apart = np.sqrt(6.0)
    np.testing.assert_allclose(same, np.maximum(1e-3 - apart + 1.0, 0.0), rtol=1e-5)
    near = optax.losses.triplet_margin_loss(anchor, anchor, anchor + 0.1)
    tensors = torch.tensor(anchor), torch.tensor(anchor + np.float32(0.1))
    of_torch = torch.nn.functional.triplet_margin_loss(tensors[0], *tensors, reduction="none")
    exact = refloss.triplet_margin(anchor, anchor, anchor + np.float32(0.1), reduction="none").loss
    np.testing.assert_allclose(of_torch, exact, rtol=1e-6)
    assert (near - exact > 9e-4).all()
