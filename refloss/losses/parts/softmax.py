"""What the losses of a row's softmax share: buffers, intermediates, class weights."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss import arrays
from refloss.device import empty, host
from refloss.kernels.maps import exponentials
from refloss.kernels.softmax.loop import SoftmaxLoop, Task
from refloss.kernels.softmax.run import softmax_loss
from refloss.options import Options
from refloss.result import Intermediates, LossResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.typing import Backend

REDUCTIONS = ("mean", "sum", "none")


class RowOptions(NamedTuple):
    """What rows and their target have beside arrays; a "sum" is divided by divisor."""

    class_axis: int
    weight: np.ndarray | None = None
    label_smoothing: float = 0.0
    ignore_index: int = -100
    reduction: str = "mean"
    divisor: float = 1.0

    def row_shape(self, logits: np.ndarray) -> tuple[int, ...]:
        """The shape of the rows."""
        return logits.shape[: self.class_axis] + logits.shape[self.class_axis + 1 :]

    def loss_shape(self, logits: np.ndarray) -> tuple[int, ...]:
        """The shape of the loss."""
        return self.row_shape(logits) if self.reduction == "none" else ()


def softmax_rows(
    loop: SoftmaxLoop,
    logits: np.ndarray,
    target: np.ndarray,
    options: Options,
    *,
    parameters: tuple[float, ...] = (),
    **of_rows: Any,
) -> LossResult:
    """A softmax loss of checked arrays with the classes on any axis; of_rows are those of RowOptions."""
    rows = RowOptions(**of_rows)
    task, wanted = task_of(loop, logits, target, options, options.cotangent(rows.loss_shape(logits)), rows, parameters)
    answer = softmax_loss(task, options.backend)
    log_p = functools.partial(_log_probabilities, loop, parameters, logits, rows.class_axis, options.backend)
    return result_of(task, wanted, answer.loss, answer.nll, answer.lse, log_p)


def task_of(
    loop: SoftmaxLoop,
    logits: np.ndarray,
    target: np.ndarray,
    options: Options,
    cotangent: np.ndarray,
    rows: RowOptions,
    parameters: tuple[float, ...] = (),
) -> tuple[Task, set[str]]:
    """What is to be computed, with buffers for gradients, and which of these are wanted."""
    probabilities = arrays.is_float(target)
    wanted = options.wanted(("logits", "target") if probabilities else ("logits",))
    gradient = options.buffer(logits, "logits", wanted="logits" in wanted)
    if wanted and gradient is None:
        gradient = empty(logits.shape, logits.dtype, like=logits)  # a kernel writes both gradients or none
    task = Task(
        loop=loop,
        parameters=parameters,
        logits=logits,
        target=target if probabilities else np.ascontiguousarray(target.reshape(-1), dtype=np.int64),
        cotangent=cotangent,
        gradient=gradient,
        target_gradient=np.empty(target.shape, target.dtype) if wanted and probabilities else None,
        class_axis=rows.class_axis,
        weight=rows.weight,
        label_smoothing=rows.label_smoothing,
        ignore_index=rows.ignore_index,
        reduction=rows.reduction,
        divisor=rows.divisor,
    )
    return task, wanted


def result_of(
    task: Task, wanted: set[str], loss: Any, nll: np.ndarray, lse: np.ndarray, log_p: Callable[[], np.ndarray]
) -> LossResult:
    """The result of a task whose kernel has run; log_p computes log-probabilities."""
    axis, shape = task.class_axis, task.logits.shape
    row_shape = shape[:axis] + shape[axis + 1 :]
    grads = {"logits": task.gradient, "target": task.target_gradient}
    return LossResult(
        loss=loss.reshape(row_shape) if task.reduction == "none" else loss,
        grads={name: value for name, value in grads.items() if value is not None and name in wanted},
        intermediates=Intermediates(
            {"lse": lse.reshape(row_shape), "nll": nll.reshape(row_shape)},
            log_probabilities=log_p,
            probabilities=lambda: exponentials(log_p()),
        ),
    )


def _log_probabilities(
    loop: SoftmaxLoop, parameters: tuple[float, ...], logits: np.ndarray, class_axis: int, backend: Backend
) -> np.ndarray:
    """log softmax(x)_j = (x_j − max x) − log Σ e^(x_k − max x), float64: two terms of one sign, so none is lost."""
    x = np.moveaxis(np.asarray(host(logits), np.float64), class_axis, -1)
    largest = np.argmax(x, axis=-1)
    result = softmax_rows(
        loop,
        x,
        largest,
        Options(grad=False, backend=backend),
        parameters=parameters,
        class_axis=x.ndim - 1,
        ignore_index=-1,
        reduction="none",
    )
    with np.errstate(invalid="ignore", over="ignore"):
        below = x - np.take_along_axis(x, largest[..., None], -1)
    return np.moveaxis(below - result.intermediates["nll"][..., None], -1, class_axis)


def factor_of_each_class(weight: Any, classes: int) -> np.ndarray | None:
    """An optional factor for each class, as float64."""
    if weight is None:
        return None
    array = arrays.float_array(weight, "weight")
    arrays.check_shape(array, (classes,), "weight", "one for each class")
    return np.ascontiguousarray(array, dtype=np.float64)
