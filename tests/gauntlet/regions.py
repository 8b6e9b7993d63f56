"""Losses of masks and of pairs of boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tests.gauntlet.kernels import Kernel, sigmoid

if TYPE_CHECKING:
    from tests.gauntlet.kernels import Answer


class Dice(Kernel):
    """1 − (2·Σ p·t + 1)/(Σ p + Σ t + 1) of each mask, as what is missed over the sum: S/D."""

    def one(self) -> int:
        """What is added above and below the line."""
        return 1

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Over the elements of each mask: [N, 1]."""
        return self.sum(values, axis=1)[:, None]

    def together(self, losses: np.ndarray) -> np.ndarray:
        """The losses of all masks."""
        return self.sum(losses)

    def divisor(self, parameters: dict[str, Any]) -> float:
        """The number of boxes, where masks are added up."""
        return 1.0 if parameters.get("reduction") == "none" else float(parameters.get("num_boxes", 1.0))

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """No term of S is negative: a mask that fits loses no digit."""
        masks = self.widened(inputs["inputs"])
        x = np.ascontiguousarray(masks).reshape(len(masks), -1) if masks.size else masks.reshape(len(masks), 0)
        t = np.ascontiguousarray(inputs["targets"].astype(x.dtype)).reshape(x.shape)
        p, rest = sigmoid(x), sigmoid(-x)
        whole = self.sums(p) + self.sums(t) + self.one()
        losses = self.sums(p * (1 - t) + rest * t) / whole
        divisor = x.dtype.type(self.divisor(parameters))
        factor = self.upstream(cotangent, x).reshape(-1, 1) / divisor
        of_p, of_t = ((1 - losses - 2 * other) / whole for other in (t, p))
        loss = losses[:, 0] if parameters.get("reduction") == "none" else self.together(losses) / divisor
        grads = {"inputs": factor * of_p * p * rest, "targets": factor * of_t}
        return loss, {name: grads[name].reshape(masks.shape).astype(inputs[name].dtype) for name in grads}


class Side(NamedTuple):
    """Two intervals on an axis, and how their lengths change with the ends of the first: [..., 2] for both ends."""

    length: np.ndarray
    other: np.ndarray
    common: np.ndarray
    around: np.ndarray
    of_length: np.ndarray
    of_common: np.ndarray
    of_around: np.ndarray


def half_at_ties(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """1 where the first is larger, ½ at a tie."""
    return np.where(first == second, 0.5, first > second).astype(first.dtype)


class Iou(Kernel):
    """1 − IoU of pairs of boxes."""

    def corners(self, boxes: np.ndarray, parameters: dict[str, Any]) -> np.ndarray:
        """(x₁, y₁, x₂, y₂)."""
        if parameters.get("box_format", "xyxy") == "xyxy":
            return boxes
        half = boxes[..., 2:] / 2
        return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)

    def back(self, gradient: np.ndarray, parameters: dict[str, Any]) -> np.ndarray:
        """The gradient in the format of the boxes."""
        if parameters.get("box_format", "xyxy") == "xyxy":
            return gradient
        low, high = gradient[..., :2], gradient[..., 2:]
        return np.concatenate([low + high, (high - low) / 2], axis=-1)

    def overlap(self, length: np.ndarray) -> np.ndarray:
        """Nothing where boxes are apart."""
        return np.maximum(length, 0)

    def side(self, first: np.ndarray, second: np.ndarray, axis: int) -> Side:
        """The lengths of one axis."""
        low, high, other_low, other_high = (box[..., i] for box in (first, second) for i in (axis, axis + 2))
        common = np.minimum(high, other_high) - np.maximum(low, other_low)
        around = np.maximum(high, other_high) - np.minimum(low, other_low)
        ones = np.ones_like(low)
        within = np.stack([-half_at_ties(low, other_low), half_at_ties(other_high, high)], -1)
        beyond = np.stack([-half_at_ties(other_low, low), half_at_ties(high, other_high)], -1)
        kept = np.where((common < 0) & (self.overlap(common) == 0), 0, 1)[..., None]
        return Side(
            high - low,
            other_high - other_low,
            self.overlap(common),
            around,
            np.stack([-ones, ones], -1),
            within * kept,
            beyond,
        )

    def loss(self, x: Side, y: Side) -> np.ndarray:
        """1 − I/U."""
        common = x.common * y.common
        return 1 - common / (x.length * y.length + x.other * y.other - common)

    def slopes(self, x: Side, y: Side) -> np.ndarray:
        """The derivative in the ends of the first box on the axis x."""
        common = (x.common * y.common)[..., None]
        both = (x.length * y.length + x.other * y.other)[..., None]
        of_area, of_common = x.of_length * y.length[..., None], x.of_common * y.common[..., None]
        return np.asarray((common * of_area - both * of_common) / (both - common) ** 2)

    def derivative(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """The derivative in the corners of the first box."""
        x, y = (self.side(first, second, axis) for axis in (0, 1))
        of_x, of_y = self.slopes(x, y), self.slopes(y, x)
        return np.stack([of_x[..., 0], of_y[..., 0], of_x[..., 1], of_y[..., 1]], axis=-1)

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """Both boxes alike."""
        boxes = self.widened(inputs["boxes1"]), self.widened(inputs["boxes2"])
        first, second = (self.corners(each, parameters) for each in boxes)
        losses = self.loss(*(self.side(first, second, axis) for axis in (0, 1)))
        reduction = parameters.get("reduction", "mean")
        divisor = first.dtype.type(losses.size if reduction == "mean" else 1)
        factor = (self.upstream(cotangent, first) / divisor)[..., None]
        grads = {"boxes1": self.derivative(first, second), "boxes2": self.derivative(second, first)}
        loss = losses if reduction == "none" else self.sum(losses) / divisor
        return loss, {
            name: (factor * self.back(gradient, parameters)).astype(inputs[name].dtype)
            for name, gradient in grads.items()
        }


class Giou(Iou):
    """1 − GIoU: 2 − I/U − U/E."""

    def enclosing(self, x: Side, y: Side) -> np.ndarray:
        """The area of the smallest box around both."""
        return x.around * y.around

    def loss(self, x: Side, y: Side) -> np.ndarray:
        """What the box around both has beside the union is added."""
        union = x.length * y.length + x.other * y.other - x.common * y.common
        enclosing = self.enclosing(x, y)
        return np.asarray(super().loss(x, y) + (enclosing - union) / enclosing)

    def slopes(self, x: Side, y: Side) -> np.ndarray:
        """−d(U/E) beside the derivative of 1 − IoU."""
        union = (x.length * y.length + x.other * y.other - x.common * y.common)[..., None]
        enclosing = self.enclosing(x, y)[..., None]
        of_union = x.of_length * y.length[..., None] - x.of_common * y.common[..., None]
        of_enclosing = x.of_around * y.around[..., None]
        return np.asarray(super().slopes(x, y) - (of_union * enclosing - union * of_enclosing) / enclosing**2)
