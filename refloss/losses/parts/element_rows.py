"""Losses whose rows, along the last axis, are sums over elements or classes."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.device import empty
from refloss.kernels.elementwise.loop import Apart, Loop, Task
from refloss.kernels.elementwise.run import BLOCK_ELEMENTS, elementwise_loss
from refloss.kernels.row_sums import row_quotients
from refloss.losses.parts.elementwise import broadcast
from refloss.result import Intermediates, LossResult

if TYPE_CHECKING:
    from refloss.options import Options


def loss_of_rows(
    loop: Loop,
    inputs: dict[str, np.ndarray],
    options: Options,
    *,
    target_has_gradient: bool,
    weight: np.ndarray | None = None,
    weight_loop: Loop | None = None,
    width: int,
    reduction: str,
) -> LossResult:
    """A row's loss is the sum of the losses of its elements over a width; inputs are two, as a loop has them.

    A weight broadcasts to them; weight_loop knows of its gradient.
    """
    (name, x), (target_name, t) = inputs.items()
    rows = x.shape[:-1]
    spread = broadcast(weight, x.shape, "weight")
    has_weight = weight is not None and weight_loop is not None
    wanted = options.wanted([name, *[target_name] * target_has_gradient, *["weight"] * has_weight])
    buffers = {
        name: options.buffer(x, name, wanted=name in wanted),
        target_name: empty(t.shape, t.dtype, like=t) if target_name in wanted else None,
        "weight": np.empty(weight.shape, weight.dtype) if weight is not None and "weight" in wanted else None,
    }
    count = math.prod(rows)
    cotangent = options.cotangent(rows if reduction == "none" else ())
    of_rows = reduction == "none" and cotangent.size == count
    task = Task(
        loop=loop,
        parameters=(),
        input=x,
        target=t,
        weight=spread,
        factor=None,
        reduction="mean",
        # A sum of no rows is 0, also where a row has no elements to be the mean of.
        divisor=float(width * count if reduction == "mean" else width if count else 1),
        cotangent=np.broadcast_to(cotangent.reshape((*rows, 1)), x.shape) if of_rows else cotangent.reshape(()),
        input_gradient=buffers[name],
        target_gradient=buffers[target_name],
        weight_gradient=None,
        apart=_apart(weight_loop, buffers["weight"], x.ndim),
    )
    if reduction == "none":
        loss: np.float64 | np.ndarray = _row_losses(task, width, options.backend)
        if wanted:
            elementwise_loss(task, options.backend)
    else:
        loss = elementwise_loss(task, options.backend)
    return LossResult(
        loss=loss,
        grads={key: buffer for key, buffer in buffers.items() if buffer is not None},
        intermediates=Intermediates({}, losses=functools.partial(_losses, task, options.backend)),
    )


def _apart(loop: Loop | None, gradient: np.ndarray | None, axes: int) -> tuple[Apart, ...]:
    """A weight's gradient, if it is wanted."""
    if loop is None or gradient is None:
        return ()
    return (Apart(loop, gradient.reshape((1,) * (axes - gradient.ndim) + gradient.shape)),)


def _losses(task: Task, backend: str) -> np.ndarray:
    """The loss of every element, which nothing divides."""
    return np.asarray(elementwise_loss(task.without_gradients, backend))


def _row_losses(task: Task, width: int, backend: str) -> np.ndarray:
    """Of some rows at a time, so that the losses of elements take little memory."""
    shape = task.input.shape
    if len(shape) == 1:
        return _row_losses(_part(task, None), width, backend).reshape(())
    losses = np.empty(shape[:-1])
    step = max(1, BLOCK_ELEMENTS * shape[0] // max(task.input.size, 1))
    for first in range(0, shape[0], step):
        part = losses[first : first + step]
        values = _losses(_part(task, slice(first, first + step)), backend).reshape(part.size, shape[-1])
        part[:] = row_quotients(values, float(width)).reshape(part.shape)
    return losses


def _part(task: Task, index: Any) -> Task:
    """Some rows of a task; what is not divided has no cotangent."""
    weight = None if task.weight is None else task.weight[index]
    return task._replace(input=task.input[index], target=task.target[index], weight=weight, cotangent=np.ones(()))
