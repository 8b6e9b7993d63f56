"""What the losses of corresponding elements share: arguments checked, reductions, buffers."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss import arrays
from refloss.device import Resident, empty, host
from refloss.kernels.elementwise.loop import Apart, Loop, Task
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
    shared_loop: Loop | None = None,
    target_has_gradient: bool = True,
    factor_has_gradient: bool = True,
    reduction: str,
    divisor: float | None = None,
) -> LossResult:
    """Run a loss's loop over its inputs, named as its arguments are; divisor is that of "mean" or "batchmean".

    The third of three inputs is the factor, of whose gradient factor_loop knows. With a shared_loop they broadcast: it
    knows of input's gradient, which is minus target's.
    """
    own = _one_shape(inputs) if shared_loop is None else _own_shapes(inputs)
    shape = np.broadcast_shapes(*own.values()) if shared_loop is not None else next(iter(own.values()))
    input_name, target_name, *third = inputs
    cotangent = options.cotangent(shape if reduction == "none" else ())
    names = [input_name, *[target_name] * target_has_gradient, *third * factor_has_gradient]
    names += ["weight"] * (weight is not None and weight_has_gradient)
    wanted = options.wanted(names)
    # Numbers that elements share are few, and their gradients are summed by the host.
    inputs = {name: array if own[name] == shape else host(array) for name, array in inputs.items()}
    if own[input_name] != shape and isinstance(options.out, Resident):
        raise ValueError(f"out lives on a GPU; expected a NumPy array where {input_name} is broadcast")
    buffers = _buffers(inputs, weight, options, wanted)
    loops = dict.fromkeys(third, (factor_loop, 1))
    loops |= {name: (shared_loop, sign) for name, sign in ((input_name, 1), (target_name, -1)) if own[name] != shape}
    x, t, *others = (a if a.shape == shape else np.broadcast_to(a.reshape(own[n]), shape) for n, a in inputs.items())
    task = Task(
        loop=loop,
        parameters=parameters,
        input=x,
        target=t,
        weight=weight,
        factor=others[0] if others else factor,
        reduction=reduction,
        divisor=divisor,
        cotangent=cotangent.reshape(shape if cotangent.size == x.size and reduction == "none" else ()),
        input_gradient=None if input_name in loops else buffers[input_name],
        target_gradient=None if target_name in loops else buffers[target_name],
        weight_gradient=buffers["weight"],
        apart=_apart(loops, buffers, own),
    )
    intermediates = Intermediates()
    intermediates.later["losses"] = functools.partial(_losses, task, options.backend)
    grads = {name: buffer for name, buffer in buffers.items() if buffer is not None}
    return LossResult(loss=elementwise_loss(task, options.backend), grads=grads, intermediates=intermediates)


def _buffers(
    inputs: dict[str, np.ndarray], weight: np.ndarray | None, options: Options, wanted: set[str]
) -> dict[str, np.ndarray | None]:
    """Where gradients go; None where they are not wanted."""
    (name, x), *others = inputs.items()
    return {
        name: options.buffer(x, name, wanted=name in wanted),
        **{name: empty(a.shape, a.dtype, like=a) if name in wanted else None for name, a in others},
        "weight": np.empty(weight.shape, weight.dtype) if weight is not None and "weight" in wanted else None,
    }


def _losses(task: Task, backend: str) -> np.ndarray:
    """The loss of every element."""
    return np.asarray(elementwise_loss(task.without_gradients, backend))


def _apart(
    loops: dict[str, tuple[Loop | None, int]], buffers: dict[str, np.ndarray | None], own: dict[str, tuple[int, ...]]
) -> tuple[Apart, ...]:
    """The gradients that have passes of their own, of those that are wanted."""
    wanted = ((of_gradient, buffers[name], own[name], sign) for name, (of_gradient, sign) in loops.items())
    return tuple(
        Apart(of_gradient, buffer.reshape(shape), sign)
        for of_gradient, buffer, shape, sign in wanted
        if of_gradient is not None and buffer is not None
    )


def _one_shape(inputs: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    (first, x), *others = inputs.items()
    for name, array in others:
        arrays.check_shape(array, x.shape, name, f"the shape of {first}")
    return dict.fromkeys(inputs, x.shape)


def _own_shapes(inputs: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """The shapes, with as many axes as the elements have, of input and target, which broadcast, and of a factor."""
    (first, x), (second, t), (third, factor) = inputs.items()
    try:
        count = len(np.broadcast_shapes(x.shape, t.shape))
    except ValueError:
        raise ValueError(
            f"{second} has shape {t.shape}; expected one that broadcasts with {first}'s {x.shape}"
        ) from None
    own = {first: x.shape, second: t.shape, third: _shared_shape(factor, x.shape, third)}
    return {name: (1,) * (count - len(shape)) + shape for name, shape in own.items()}


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
