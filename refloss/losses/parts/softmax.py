"""What the losses of a row's softmax share: buffers, intermediates, class weights."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from refloss import arrays
from refloss.device import empty, host
from refloss.kernels.maps import exponentials
from refloss.kernels.softmax.loop import SoftmaxLoop, Task
from refloss.kernels.softmax.run import softmax_loss
from refloss.options import Options
from refloss.result import Intermediates, LossResult

REDUCTIONS = ("mean", "sum", "none")


def softmax_rows(
    loop: SoftmaxLoop,
    logits: np.ndarray,
    target: np.ndarray,
    options: Options,
    *,
    parameters: tuple[float, ...] = (),
    class_axis: int,
    weight: np.ndarray | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    divisor: float = 1.0,
) -> LossResult:
    """A softmax loss of checked arrays with the classes on any axis; a "sum" is divided by divisor."""
    probabilities = arrays.is_float(target)
    row_shape = logits.shape[:class_axis] + logits.shape[class_axis + 1 :]
    wanted = options.wanted(("logits", "target") if probabilities else ("logits",))
    gradient = options.buffer(logits, "logits", wanted="logits" in wanted)
    if wanted and gradient is None:
        gradient = empty(logits.shape, logits.dtype, like=logits)  # a kernel writes both gradients or none
    target_gradient = np.empty(target.shape, target.dtype) if wanted and probabilities else None
    task = Task(
        loop=loop,
        parameters=parameters,
        logits=logits,
        target=target if probabilities else np.ascontiguousarray(target.reshape(-1), dtype=np.int64),
        class_axis=class_axis,
        weight=weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        reduction=reduction,
        divisor=divisor,
        cotangent=options.cotangent(row_shape if reduction == "none" else ()),
        gradient=gradient,
        target_gradient=target_gradient,
    )
    answer = softmax_loss(task, options.backend)
    grads = {"logits": gradient, "target": target_gradient}
    log_p = functools.partial(_log_probabilities, loop, parameters, logits, class_axis, options.backend)
    return LossResult(
        loss=answer.loss.reshape(row_shape) if reduction == "none" else answer.loss,
        grads={name: value for name, value in grads.items() if value is not None and name in wanted},
        intermediates=Intermediates(
            {"lse": answer.lse.reshape(row_shape), "nll": answer.nll.reshape(row_shape)},
            log_probabilities=log_p,
            probabilities=lambda: exponentials(log_p()),
        ),
    )


def _log_probabilities(
    loop: SoftmaxLoop, parameters: tuple[float, ...], logits: np.ndarray, class_axis: int, backend: str
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
