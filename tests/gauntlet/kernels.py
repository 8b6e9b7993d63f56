"""What honest kernels of every family share. A kernel is written in steps, and a mistake replaces one of them.

Kernels are called as refloss.testing.check calls them. They are what an author writes who knows the formulas: 16-bit
inputs are widened to float32 once, everything is computed there (float64 in float64), and results are rounded once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    Answer = tuple[Any, ...]  # (loss, grads), and components where there are some


class Kernel:
    """An implementation of one of refloss's functions."""

    def __init__(self, function: str) -> None:
        self.function = function

    def __call__(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """The loss and the gradients."""
        with np.errstate(all="ignore"):
            return self.answer(inputs, parameters, cotangent)

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """What a family computes."""
        raise NotImplementedError

    def widened(self, values: np.ndarray) -> np.ndarray:
        """In the type that is computed in."""
        return values.astype(np.float64 if values.dtype == np.float64 else np.float32)

    def upstream(self, cotangent: Any, like: np.ndarray) -> np.ndarray:
        """The gradient that comes from above, a number or one for each loss."""
        return np.asarray(cotangent).astype(like.dtype)

    def sum(self, values: np.ndarray, axis: int | None = None) -> np.ndarray:
        """NumPy adds in blocks along axes that lie in memory one after the other, and the blocks pairwise."""
        return np.asarray(np.sum(values, axis=axis))

    def gathered(self, gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The sum over the elements that share a number."""
        kept = (1,) * (gradient.ndim - len(shape)) + shape
        for axis, size in enumerate(kept):
            if size != gradient.shape[axis]:
                gradient = np.expand_dims(self.sum(gradient, axis), axis)
        return gradient.reshape(shape)


def with_steps(kernel: type[Kernel], **steps: Callable[..., Any]) -> type[Kernel]:
    """A kernel with some of its steps replaced, each a function of the kernel and of what the step is given."""
    for step in steps:
        if not hasattr(kernel, step):
            raise AttributeError(f"{kernel.__name__} has no step {step}")
    return type(f"Mistaken{kernel.__name__}", (kernel,), steps)


def softplus(x: np.ndarray) -> np.ndarray:
    """log(1 + e^x), without overflow and with all digits of small values."""
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1/(1 + e^−x), without overflow."""
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1 / (1 + small), small / (1 + small)))
