"""Mistakes of heads that match objects: refloss itself, called with what a mistaken head would have used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.registry import FUNCTIONS
from tests.gauntlet.kernels import Kernel

if TYPE_CHECKING:
    from tests.gauntlet.kernels import Answer


class Head(Kernel):
    """A head whose arguments pass through steps before refloss sees them."""

    def config(self, config: dict[str, Any]) -> dict[str, Any]:
        """The entries that are read."""
        return config

    def parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """All arguments that are no arrays."""
        return parameters | {"config": self.config(parameters["config"])}

    def inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """All arrays."""
        return inputs

    def upstream(self, cotangent: Any, like: np.ndarray) -> np.ndarray:
        """The gradient that comes from above."""
        return np.asarray(cotangent)

    def tensors(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """What refloss answers."""
        grad_output = float(self.upstream(cotangent, np.zeros(())))
        result = FUNCTIONS[self.function].call(**inputs, **parameters, grad_output=grad_output)
        return result.loss, dict(result.grads), dict(result.components)

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """The loss, the gradients of all predictions, and the components."""
        loss, grads, components = self.tensors(self.inputs(inputs), self.parameters(parameters), cotangent)
        left_out = {
            name: value for name, value in inputs.items() if name in self.differentiable() and name not in grads
        }
        return loss, grads | {name: np.zeros_like(value) for name, value in left_out.items()}, components

    def differentiable(self) -> list[str]:
        """The predictions."""
        return [*FUNCTIONS[self.function].differentiable]


class Unclamped(Head):
    """num_boxes may be less than 1. Two answers tell which part of each tensor is divided by it."""

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """T(n) = a + b/n, from T(1) and T(2)."""
        boxes = parameters.get("num_boxes", self.objects(inputs))
        if boxes >= 1 or boxes == 0:
            return super().answer(inputs, parameters, cotangent)
        one, two = (super(Unclamped, self).answer(inputs, parameters | {"num_boxes": n}, cotangent) for n in (1, 2))
        extended = [self.extended(first, second, boxes) for first, second in zip(one, two, strict=True)]
        return tuple(extended)

    def objects(self, inputs: dict[str, Any]) -> float:
        """How many there are, which is what boxes are divided by where nothing else is said."""
        return float(sum(len(shown["boxes"]) for shown in inputs["labels"]))

    def extended(self, one: Any, two: Any, boxes: float) -> Any:
        """The line through both, in the type that they have."""
        if isinstance(one, dict):
            return {name: self.extended(one[name], two[name], boxes) for name in one}
        first, second = np.asarray(one, np.float64), np.asarray(two, np.float64)
        share = 2 * (first - second)
        return (first - share + share / boxes).astype(np.asarray(one).dtype)
