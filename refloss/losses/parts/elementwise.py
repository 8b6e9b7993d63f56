"""What the losses of corresponding elements share: arguments checked, reductions, buffers."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss import arrays
from refloss.device import empty
from refloss.kernels.elementwise.loop import Loop, Task
from refloss.kernels.elementwise.run import elementwise_loss
from refloss.result import Intermediates, LossResult

if TYPE_CHECKING:
    from refloss.options import Options

REDUCTIONS = ("mean", "sum", "none")


def loss_of_elements(
    loop: Loop,
    inputs: dict[str, np.ndarray],
    options: Options,
    *,
    parameters: tuple[float, ...] = (),
    weight: np.ndarray | None = None,
    weight_has_gradient: bool = False,
    factor: np.ndarray | None = None,
    factor_loop: Loop | None = None,
    factor_is_shared: bool = False,
    target_has_gradient: bool = True,
    factor_has_gradient: bool = True,
    reduction: str,
    divisor: float | None = None,
) -> LossResult:
    """Run a loss's loop over its inputs, named as its arguments are; divisor is that of "mean" or "batchmean".

    The third of three inputs is the factor, of whose gradient factor_loop knows; elements may share one of its own.
    """
    (input_name, x), (target_name, t), *third = inputs.items()
    for name, array in [*inputs.items()][1 : 2 if factor_is_shared else 3]:
        arrays.check_shape(array, x.shape, name, f"the shape of {input_name}")
    factor_name, factor = third[0] if third else ("", factor)
    shared = _shared_shape(factor, x.shape, factor_name) if factor_is_shared and factor is not None else x.shape
    factor = np.broadcast_to(factor.reshape(shared), x.shape) if factor_is_shared and factor is not None else factor
    cotangent = options.cotangent(x.shape if reduction == "none" else ())
    names = [input_name, *[target_name] * target_has_gradient, *[name for name, _ in third if factor_has_gradient]]
    names += ["weight"] * (weight is not None and weight_has_gradient)
    wanted = options.wanted(names)
    buffers = {
        input_name: options.buffer(x, input_name, wanted=input_name in wanted),
        **{name: empty(a.shape, a.dtype, like=a) if name in wanted else None for name, a in [*inputs.items()][1:]},
        "weight": np.empty(weight.shape, weight.dtype) if weight is not None and "weight" in wanted else None,
    }
    for_factor = buffers.get(factor_name)
    one_each = cotangent.size == x.size and reduction == "none"
    task = Task(
        loop=loop,
        parameters=parameters,
        input=x,
        target=t,
        weight=weight,
        factor=factor,
        reduction=reduction,
        divisor=divisor,
        cotangent=cotangent.reshape(x.shape if one_each else ()),
        input_gradient=buffers[input_name],
        target_gradient=buffers[target_name],
        weight_gradient=buffers["weight"],
        factor_loop=factor_loop,
        factor_gradient=for_factor.reshape(shared) if factor_is_shared and for_factor is not None else for_factor,
    )
    intermediates = Intermediates()
    intermediates.later["losses"] = functools.partial(_losses, task, options.backend)
    grads = {name: buffer for name, buffer in buffers.items() if buffer is not None}
    return LossResult(loss=elementwise_loss(task, options.backend), grads=grads, intermediates=intermediates)


def _losses(task: Task, backend: str) -> np.ndarray:
    """The loss of every element."""
    of_elements = task._replace(
        reduction="none", input_gradient=None, target_gradient=None, weight_gradient=None, factor_gradient=None
    )
    return np.asarray(elementwise_loss(of_elements, backend))


def _shared_shape(array: np.ndarray, shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The shape, with as many axes as the elements have, of an array of which several may share an element.

    As torch has it: one axis has size 1, or the last one is lacking; or there is none.
    """
    if array.shape == shape:
        return shape
    if array.ndim == 0:
        return (1,) * len(shape)
    if array.shape == shape[:-1]:
        return (*array.shape, 1)
    if array.ndim == len(shape) and [own for own, size in zip(array.shape, shape, strict=True) if own != size] == [1]:
        return array.shape
    raise ValueError(
        f"{name} has shape {array.shape}; expected {shape}, that with one axis of size 1 or without the last axis,"
        " or none"
    )


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
