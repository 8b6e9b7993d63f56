"""Mean cross-entropy, value and gradient, as each library does it best."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np

import refloss

if TYPE_CHECKING:
    import torch

Call = Callable[[], tuple[Any, Any]]


class Competitor(NamedTuple):
    """A way to compute a loss. prepare(logits, labels) returns the call to be measured: () -> (loss, gradient)."""

    prepare: Callable[[np.ndarray, np.ndarray], Call]
    compiles_each_shape: bool = False


def _refloss(logits: np.ndarray, labels: np.ndarray, out: np.ndarray | None = None) -> Call:
    def call() -> tuple[Any, Any]:
        result = refloss.cross_entropy(logits, labels, out=out)
        return result.loss, result.grads["logits"]

    return call


def _refloss_out(logits: np.ndarray, labels: np.ndarray) -> Call:
    # Written to, unlike np.zeros_like, so that its pages exist before the call.
    return _refloss(logits, labels, out=np.full_like(logits, 0))


def torch_tensor(array: np.ndarray) -> torch.Tensor:
    """An array as a tensor of the same memory, bfloat16 too."""
    import torch

    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _torch(logits: np.ndarray, labels: np.ndarray, compiled: bool = False) -> Call:
    import torch

    x = torch_tensor(logits).requires_grad_()
    y = torch_tensor(labels)
    loss_function: Callable[..., torch.Tensor] = torch.nn.functional.cross_entropy
    if compiled:
        # Otherwise a second shape makes it switch to code for any shape, which is slower.
        loss_function = torch.compile(loss_function, dynamic=False)

    def call() -> tuple[Any, Any]:
        loss = loss_function(x, y)
        # The backward pass without an x.grad that would have to be cleared or added to.
        (gradient,) = torch.autograd.grad(loss, x)
        return loss.detach(), gradient

    return call


def _torch_compiled(logits: np.ndarray, labels: np.ndarray) -> Call:
    return _torch(logits, labels, compiled=True)


def _jax(logits: np.ndarray, labels: np.ndarray) -> Call:
    import jax
    import optax

    def loss(x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()  # type: ignore[no-any-return]

    function = jax.jit(jax.value_and_grad(loss))
    x, y = jax.numpy.asarray(logits), jax.numpy.asarray(labels, dtype=np.int32)

    def call() -> tuple[Any, Any]:
        value, gradient = function(x, y)
        return value.block_until_ready(), gradient.block_until_ready()

    return call


REFLOSS, REFLOSS_OUT = "refloss", "refloss, out="
TORCH, TORCH_COMPILED, JAX = "torch eager", "torch.compile", "JAX jit"

COMPETITORS = {
    REFLOSS: Competitor(_refloss),
    REFLOSS_OUT: Competitor(_refloss_out),
    TORCH: Competitor(_torch),
    TORCH_COMPILED: Competitor(_torch_compiled, compiles_each_shape=True),
    JAX: Competitor(_jax, compiles_each_shape=True),
}
