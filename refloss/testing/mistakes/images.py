"""Mistakes of images and masks: how pixels are resampled, what dice divides."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from refloss.error_model.resampling import shared
from refloss.roundoff import real
from refloss.testing.mistakes.guess import USUAL, Guess
from refloss.testing.mistakes.outcome import Wrong, combined
from refloss.testing.mistakes.rows import View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refloss.cases.source import Case


def _corners(size: int, resized: int) -> np.ndarray:
    """[resized, size] weights of a bilinear resampling that puts corners on corners."""
    at = np.arange(resized) * ((size - 1) / (resized - 1) if resized > 1 else 0.0)
    return np.asarray(np.maximum(0.0, 1 - np.abs(at[:, None] - np.arange(size))))


def _nearest(size: int, resized: int) -> np.ndarray:
    return np.asarray(np.arange(resized)[:, None] * size // resized == np.arange(size), np.float64)


def _nearest_exact(size: int, resized: int) -> np.ndarray:
    at = np.floor((np.arange(resized) + 0.5) * size / resized).astype(int)
    return np.asarray(at[:, None] == np.arange(size), np.float64)


def resamplings(case: Case, every: list[View]) -> Iterator[Guess]:
    """Other ways from logits to pixels."""
    if case.function != "semantic_segmentation":
        return
    for mistake, matrix in (
        ("align_corners is on", _corners),
        ("nearest instead of bilinear", _nearest),
        ("nearest instead of bilinear", _nearest_exact),
    ):
        wrong = [_with_matrix(case, view, matrix) for view in every]
        tensors = combined(wrong, [Wrong()] * len(wrong))
        if all(np.array_equal(one.logits, other.logits) for one, other in zip(every, wrong, strict=True)):
            continue
        yield Guess(mistake, USUAL, tensors)


def _with_matrix(case: Case, view: View, matrix: Callable[[int, int], np.ndarray]) -> View:
    planes = real(case.inputs[view.tensor.removeprefix("grad.")])
    size = case.inputs["labels"].shape[-2:]
    down, across = (matrix(*pair) for pair in zip(planes.shape[-2:], size, strict=True))
    pixels = shared(down, planes, across.T)
    moved = np.moveaxis(pixels, 1, -1)

    def back(gradient: np.ndarray) -> np.ndarray:
        return shared(down.T, np.moveaxis(gradient.reshape(moved.shape), -1, 1), across)

    return replace(view, logits=moved.reshape(view.logits.shape), back=back)


def of_dice(case: Case) -> Iterator[Guess]:
    """1 − 2·Σ p·t/(Σ p + Σ t), and one quotient for all masks."""
    if case.function != "dice":
        return
    x, t = real(case.inputs["inputs"]), real(case.inputs["targets"])
    flat, targets = x.reshape(len(x), -1), t.reshape(len(x), -1)
    for mistake, added, whole in (
        ("dice lacks its + 1", (0.0, 0.0), False),
        ("dice lacks its + 1", (0.0, 1.0), False),
        ("dice lacks its + 1", (1.0, 0.0), False),
        ("dice lacks its + 1", (1e-6, 1e-6), False),
        ("dice sums over the batch", (1.0, 1.0), True),
    ):
        if not whole or len(x) > 1:
            yield Guess(mistake, USUAL, _dice(case, flat, targets, added, whole=whole))
    tensors = _dice(case, flat, targets, (1.0, 1.0), whole=True)
    yield Guess("dice sums over the batch", USUAL, {name: value * len(x) for name, value in tensors.items()})


def _dice(
    case: Case,
    x: np.ndarray,
    t: np.ndarray,
    added: tuple[float, float],
    *,
    whole: bool,
    left: np.ndarray | float = 1.0,
) -> dict[str, np.ndarray]:
    p = 1 / (1 + np.exp(-x))
    axes = (0, 1) if whole else (1,)
    top = 2 * (p * t * left).sum(axis=axes, keepdims=True) + added[0]
    bottom = ((p + t) * left).sum(axis=axes, keepdims=True) + added[1]
    ratio = top / bottom
    boxes = float(case.parameters.get("num_boxes", 1.0))
    none = case.parameters.get("reduction") == "none"
    divisor = 1.0 if none else boxes
    c = real(case.grad_output) / divisor
    c = c.reshape(-1, 1) if c.ndim else c
    losses = np.broadcast_to(1 - ratio[:, 0], (1,) if whole and not none else (len(x),))
    shape = case.inputs["inputs"].shape
    return {
        "loss": losses if none else np.asarray(losses.sum() / divisor),
        "grad.inputs": (c * (ratio - 2 * t) / bottom * p * (1 - p)).reshape(shape),
        "grad.targets": (c * (ratio - 2 * p) / bottom).reshape(shape),
    }


def dice_of_first(case: Case, size: int) -> Iterator[dict[str, np.ndarray]]:
    """Sums over the whole blocks of a mask, of so many elements; nothing where all are whole, or none is."""
    x, t = real(case.inputs["inputs"]), real(case.inputs["targets"])
    flat, targets = x.reshape(len(x), -1), t.reshape(len(x), -1)
    whole = flat.shape[1] // size * size
    if 0 < whole < flat.shape[1]:
        left = np.arange(flat.shape[1]) < whole
        wrong = _dice(case, flat, targets, (1.0, 1.0), whole=False, left=left)
        yield wrong
        # Or without a gradient there.
        kept = left.reshape(x.shape[1:])
        yield {name: np.where(kept, value, 0.0) if name != "loss" else value for name, value in wrong.items()}
