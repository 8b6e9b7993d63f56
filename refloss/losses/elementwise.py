"""What the losses of corresponding elements share: arguments checked, reductions, buffers."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import numpy as np

from refloss import arrays
from refloss.device import empty
from refloss.dispatch import launcher
from refloss.result import Intermediates, LossResult

REDUCTIONS = ("mean", "sum", "none")
Gradients = bool | str | Collection[str]


def evaluate(
    loop: Any,
    inputs: dict[str, np.ndarray],
    *,
    parameter: float = 0.0,
    weight: np.ndarray | None = None,
    weight_has_gradient: bool = False,
    factor: np.ndarray | None = None,
    reduction: str,
    divisor: float | None = None,
    grad_output: Any,
    grad: Gradients,
    grad_dtype: Any,
    out: np.ndarray | None,
    backend: str,
) -> LossResult:
    """Run a loss's loop over its two inputs, named as its arguments are; divisor is that of "mean" or "batchmean"."""
    (input_name, x), (target_name, t) = inputs.items()
    arrays.check_shape(t, x.shape, target_name, f"the shape of {input_name}")
    run = launcher(backend, "elementwise")
    cotangent = arrays.cotangent(grad_output, x.shape if reduction == "none" else ())
    names = [input_name, target_name] + ["weight"] * (weight is not None and weight_has_gradient)
    wanted = arrays.wanted_gradients(grad, names)
    buffers = {
        input_name: arrays.gradient_buffer(
            x, grad_dtype, out, input_name, t, weight, factor, wanted=input_name in wanted
        ),
        target_name: empty(t.shape, t.dtype, like=t) if target_name in wanted else None,
        "weight": np.empty(weight.shape, weight.dtype) if weight is not None and "weight" in wanted else None,
    }
    task = run.Task(
        loop=loop,
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
        input_gradient=buffers[input_name],
        target_gradient=buffers[target_name],
        weight_gradient=buffers["weight"],
    )
    intermediates = Intermediates()
    intermediates.later["losses"] = functools.partial(_losses, run, task)
    grads = {name: buffer for name, buffer in buffers.items() if buffer is not None}
    return LossResult(loss=run.elementwise(task), grads=grads, intermediates=intermediates)


def _losses(run: Any, task: Any) -> np.ndarray:
    """The loss of every element."""
    nothing = {"input_gradient": None, "target_gradient": None, "weight_gradient": None}
    losses: np.ndarray = run.elementwise(task._replace(reduction="none", **nothing))
    return losses


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
