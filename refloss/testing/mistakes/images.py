"""Mistakes of images, masks and boxes: how pixels are resampled, what dice divides, what boxes overlap in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.error_model.resampling import resampled
from refloss.roundoff import real
from refloss.testing.mistakes.guess import POSSIBLE, USUAL, Guess
from refloss.testing.mistakes.rows import View, Wrong, combined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refloss.cases.source import Case

_STEP = 1e-200


def _corners(size: int, resized: int) -> np.ndarray:
    """[resized, size] weights of a bilinear resampling that puts corners on corners."""
    at = np.arange(resized) * ((size - 1) / (resized - 1) if resized > 1 else 0.0)
    return np.maximum(0.0, 1 - np.abs(at[:, None] - np.arange(size)))


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
    from dataclasses import replace

    planes = real(case.inputs[view.tensor.removeprefix("grad.")])
    size = case.inputs["labels"].shape[-2:]
    down, across = (matrix(*pair) for pair in zip(planes.shape[-2:], size, strict=True))
    pixels = down @ planes @ across.T
    moved = np.moveaxis(pixels, 1, -1)

    def back(gradient: np.ndarray) -> np.ndarray:
        return np.asarray(down.T @ np.moveaxis(gradient.reshape(moved.shape), -1, 1) @ across)

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
    case: Case, x: np.ndarray, t: np.ndarray, added: tuple[float, float], *, whole: bool
) -> dict[str, np.ndarray]:
    p = 1 / (1 + np.exp(-x))
    axes = (0, 1) if whole else (1,)
    top = 2 * (p * t).sum(axis=axes, keepdims=True) + added[0]
    bottom = p.sum(axis=axes, keepdims=True) + t.sum(axis=axes, keepdims=True) + added[1]
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


def of_boxes(case: Case) -> Iterator[Guess]:
    """Pairs of boxes whose areas are confused, or whose overlap is not cut at 0."""
    if case.function not in ("iou", "giou"):
        return
    for mistake, formula in (
        ("the enclosing box is taken for the union", lambda i, u, e, w: 1 - i / e),
        ("the enclosing box is taken for the union", lambda i, u, e, w: 1 - i / u + (e - u) / u),
        ("the enclosing box is taken for the union", lambda i, u, e, w: 1 - i / e + (e - u) / e),
        ("the union is taken for the enclosing box", lambda i, u, e, w: 1 - i / u),
        ("GIoU for IoU", lambda i, u, e, w: 1 - i / u + (e - u) / e),
        (
            "boxes are not clamped",
            lambda i, u, e, w: 1 - w / (u + i - w) + (0 if case.function == "iou" else (e - (u + i - w)) / e),
        ),
        (
            "the intersection is counted twice in the union",
            lambda i, u, e, w: 1 - i / (u + i) + (0 if case.function == "iou" else (e - u - i) / e),
        ),
    ):
        if (case.function == "iou") == (mistake in ("GIoU for IoU",)) or mistake not in ("GIoU for IoU",):
            tensors = _pairs(case, formula)
            if tensors:
                yield Guess(mistake, POSSIBLE, tensors)


def _pairs(case: Case, formula: Callable[..., np.ndarray]) -> dict[str, np.ndarray]:
    boxes = [real(case.inputs[name]).astype(complex) for name in ("boxes1", "boxes2")]
    is_centre = case.parameters.get("box_format", "xyxy") == "cxcywh"
    reduction = case.parameters.get("reduction", "mean")
    rows = boxes[0][..., 0].size
    divisor = rows if reduction == "mean" else 1
    c = real(case.grad_output) / max(divisor, 1)

    def losses(*moved: np.ndarray) -> np.ndarray:
        return formula(*_areas(*(_as_corners(box) if is_centre else box for box in moved)))

    value = losses(*boxes).real
    tensors = {"loss": value if reduction == "none" else np.asarray(value.sum() / divisor)}
    for side in (0, 1):
        gradient = np.zeros(boxes[side].shape)
        for k in range(4):
            moved = [box.copy() for box in boxes]
            moved[side][..., k] += _STEP * 1j
            gradient[..., k] = c * losses(*moved).imag / _STEP
        tensors[f"grad.boxes{side + 1}"] = gradient
    return tensors


def _as_corners(box: np.ndarray) -> np.ndarray:
    half = box[..., 2:] / 2
    return np.concatenate([box[..., :2] - half, box[..., :2] + half], axis=-1)


def _areas(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
    """Intersection, union, enclosing box, and the intersection without a cut at 0."""
    low = np.where(a[..., :2].real > b[..., :2].real, a[..., :2], b[..., :2])
    high = np.where(a[..., 2:].real < b[..., 2:].real, a[..., 2:], b[..., 2:])
    outer_low = np.where(a[..., :2].real < b[..., :2].real, a[..., :2], b[..., :2])
    outer_high = np.where(a[..., 2:].real > b[..., 2:].real, a[..., 2:], b[..., 2:])
    raw = (high - low).prod(axis=-1)
    inside = np.where(high.real - low.real > 0, high - low, 0).prod(axis=-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(axis=-1) for box in (a, b)]
    return inside, areas[0] + areas[1] - inside, (outer_high - outer_low).prod(axis=-1), raw


def left_out(case: Case, every: list[View]) -> Iterator[Guess]:
    """The auxiliary loss, whose weight may be taken to be 1."""
    if case.function == "semantic_segmentation" and len(every) > 1:
        main = combined(every[:1], [Wrong()])
        yield Guess(
            "the auxiliary loss is left out",
            USUAL,
            main | {every[1].tensor: np.zeros(case.inputs["auxiliary_logits"].shape)},
        )


__all__ = ["left_out", "of_boxes", "of_dice", "resampled", "resamplings"]
