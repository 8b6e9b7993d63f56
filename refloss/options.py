"""The keywords that every loss takes, as one object that is handed on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from refloss import arrays

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from refloss.typing import Backend, Cotangents, DTypeLike, Gradients


class Options(NamedTuple):
    """A cotangent, which gradients are wanted in which dtype and where, and the device that computes.

    out is for the gradient of a loss's first differentiable input, grad_dtype for its dtype.
    """

    grad_output: Cotangents = 1.0
    grad: Gradients = True
    grad_dtype: DTypeLike | None = None
    out: np.ndarray | None = None
    backend: Backend = "auto"

    def wanted(self, names: Sequence[str]) -> set[str]:
        """The inputs, of those that have gradients, whose gradients are computed."""
        return arrays.wanted_gradients(self.grad, names)

    def cotangent(self, shape: tuple[int, ...]) -> np.ndarray:
        """grad_output as float64: one element, or one for each element of a loss of a shape."""
        return arrays.cotangent(self.grad_output, shape)

    def buffer(self, like: np.ndarray, name: str, *, wanted: bool) -> np.ndarray | None:
        """Where the first gradient goes: a fresh array or the caller's own; None if it is not wanted."""
        return arrays.gradient_buffer(like, self.grad_dtype, self.out, name, wanted=wanted)

    def of_part(self, grad_output: Cotangents, *, grad: Gradients, out: np.ndarray | None = None) -> Options:
        """The same for a loss that another one is made of, with a cotangent of its own."""
        return self._replace(grad_output=grad_output, grad=grad, out=out)
