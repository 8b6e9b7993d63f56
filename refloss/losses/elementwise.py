"""What the losses of corresponding elements share: arguments checked, reductions, buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refloss import arrays
from refloss.dispatch import launcher
from refloss.result import LossResult

if TYPE_CHECKING:
    from refloss.kernels.elementwise import Loops

REDUCTIONS = ("mean", "sum", "none")


def evaluate(
    loops: Loops,
    inputs: dict[str, np.ndarray],
    *,
    parameter: float = 0.0,
    weight: np.ndarray | None = None,
    weight_has_gradient: bool = False,
    factor: np.ndarray | None = None,
    reduction: str,
    divisor: int | None = None,
    grad_output: Any,
    grad: bool,
    grad_dtype: Any,
    out: np.ndarray | None,
    backend: str,
) -> LossResult:
    """Run a loss's loops over its two inputs, named as its arguments are; divisor is that of "mean" or "batchmean"."""
    (input_name, x), (target_name, t) = inputs.items()
    arrays.check_shape(t, x.shape, target_name, f"the shape of {input_name}")
    run = launcher(backend, "elementwise")
    cotangent = arrays.cotangent(grad_output, x.shape if reduction == "none" else ())
    grads: dict[str, np.ndarray] = {}
    gradient = arrays.gradient_buffer(x, grad_dtype, out, input_name, t, weight, factor, wanted=grad)
    if gradient is not None:
        grads[input_name] = gradient
        grads[target_name] = np.empty(t.shape, t.dtype)
        if weight is not None and weight_has_gradient:
            grads["weight"] = np.empty(weight.shape, weight.dtype)
    task = run.Task(
        loops=loops,
        parameter=parameter,
        input=x,
        target=t,
        weight=weight,
        factor=factor,
        reduction=reduction,
        divisor=divisor,
        cotangent=cotangent.reshape(x.shape)
        if cotangent.size == x.size and reduction == "none"
        else cotangent.reshape(()),
        input_gradient=grads.get(input_name),
        target_gradient=grads.get(target_name),
        weight_gradient=grads.get("weight"),
    )
    return LossResult(loss=run.elementwise(task), grads=grads)


def same_shape(value: Any, shape: tuple[int, ...], name: str, why: str) -> np.ndarray | None:
    """An optional float argument of a shape."""
    if value is None:
        return None
    array = arrays.float_array(value, name)
    arrays.check_shape(array, shape, name, why)
    return array


def broadcast(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray | None:
    """An optional float argument that broadcasts to a shape, without a copy."""
    if value is None:
        return None
    array = arrays.float_array(value, name)
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(f"{name} has shape {array.shape}; expected one that broadcasts to {shape}") from None
