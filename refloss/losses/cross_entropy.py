"""Softmax cross-entropy.

For a row x of C logits, with lse = log Σ_j e^(x_j) and p_j = e^(x_j − lse), the loss is

    L = Σ_j q_j·(lse − x_j),    q_j = w_j·((1 − ε)·t_j + ε/C)

where t is the target distribution (one-hot for a label y), w the class weights and ε the label smoothing. For a label
without smoothing this is w_y·(lse − x_y).

Gradient. With Q = Σ_j q_j, ∂lse/∂x_j = p_j, and a cotangent c (the row's grad_output over the normaliser),

    ∂L/∂x_j = c·(Q·p_j − q_j),    ∂L/∂t_j = c·(1 − ε)·w_j·(lse − x_j)

Numerics. Three naive forms lose digits, and each has its remedy:

- lse − x_y for a confident row. It is log1p of the sum of the other terms relative to the label's (kernels.softmax).
- p_y − 1 for a confident row. It is minus the sum of the other probabilities.
- Q·p_j − q_j where both are close. q_j, Q·c/Z and the p of the largest class are pairs (which hold 1 − 10^-30 to 53
  bits of its distance from 1), so that the subtraction loses nothing.

The sum of a row's terms does not depend on their order, nor the sum over rows (numerics.sums).

Torch counterpart: torch.nn.functional.cross_entropy. Label smoothing: Szegedy et al., "Rethinking the Inception
Architecture for Computer Vision", 2016, section 7, with ε/C (not ε/(C − 1)) on every class.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from refloss import arrays
from refloss.device import host
from refloss.dispatch import launcher
from refloss.kernels.maps import exponentials
from refloss.placement import accepts_gpu_arrays
from refloss.result import Intermediates, LossResult

REDUCTIONS = ("mean", "sum", "none")


@accepts_gpu_arrays("logits", "out")
def cross_entropy(
    logits: Any,
    target: Any,
    weight: Any = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    grad_output: Any = 1.0,
    grad: bool = True,
    grad_dtype: Any = None,
    out: np.ndarray | None = None,
    backend: str = "auto",
) -> LossResult:
    """Cross-entropy of logits with class labels or class probabilities, as torch.nn.functional.cross_entropy.

    L = Σ_j q_j·(lse − x_j) for each row x, with q_j = w_j·((1 − ε)·t_j + ε/C); for a label, t is one-hot. "sum" adds
    the rows up, "mean" divides by Σ w_y over the rows that count (labels) or by the number of rows (probabilities).
    Gradient: ∂L/∂x_j = c·(Q·p_j − q_j) with Q = Σ q_j; ∂L/∂t_j = c·(1 − ε)·w_j·(lse − x_j). Held constant: nothing.

    Args:
        logits: [N, C, d1, ...] or [C]; any float dtype, any layout.
        target: labels [N, d1, ...] (or a scalar for [C]) of any integer dtype, or probabilities in the shape of logits.
        weight: [C], a factor for each class.
        ignore_index: rows with this label have loss 0 and gradient 0, whatever their logits; it may be a valid class.
        reduction: "mean", "sum" or "none".
        label_smoothing: ε in [0, 1].
        grad_output: the loss's cotangent; with "none" a number or an array of the loss's shape.
        grad: True, False, or the names of the inputs whose gradients to compute.
        grad_dtype: dtype of the gradient of logits instead of their own.
        out: an array of the shape of logits that receives their gradient; not overlapping them.
        backend: "auto", "cpu" or "cuda".

    Returns:
        loss in nats, float64. grads: "logits", and "target" for probabilities. intermediates, in the shape of the loss
        with "none": "lse" (of every row, ignored ones included) and "nll" (−log p_y, or −Σ t_j·log p_j, without weights
        or smoothing; 0 for ignored rows). In the shape of logits, computed from them when asked for:
        "log_probabilities" and "probabilities".

    Edges:
        No row counts, or their weights sum to 0: "mean" is NaN, the gradient 0 where ignored, else NaN. A logit of −inf
        is a class of probability 0; a target of 0 there does not hide it: 0·inf is NaN, as in torch. A row with NaN or
        +inf, or with nothing but −inf: NaN. An empty batch: "mean" NaN, "sum" 0.

    Raises:
        ValueError: a shape, a label, an option or a buffer that does not fit. TypeError: a dtype that does not.
    """
    x = arrays.float_array(logits, "logits")
    if x.ndim == 0:
        raise ValueError("logits has shape (); expected [C] or [N, C, ...]")
    class_axis = 1 if x.ndim > 1 else 0
    arrays.choice(reduction, "reduction", REDUCTIONS)
    smoothing = arrays.number(label_smoothing, "label_smoothing")
    if not 0.0 <= smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {smoothing}; expected a number in [0, 1]")
    ignore_index = arrays.label(ignore_index, "ignore_index")
    labels = arrays.as_array(target, "target")
    row_shape = x.shape[:class_axis] + x.shape[class_axis + 1 :]
    if labels.shape == x.shape:
        labels = _probabilities(labels, target, ignore_index)
    else:
        labels = arrays.integer_array(target, "target")
        arrays.check_shape(labels, row_shape, "target", f"one label for each row of logits {x.shape}, or its shape")
        arrays.check_labels(labels, x.shape[class_axis], ignore_index, "target")
    wanted = arrays.wanted_gradients(grad, ["logits", "target"] if arrays.is_float(labels) else ["logits"])
    if "logits" not in wanted:
        out = arrays.gradient_buffer(x, grad_dtype, out, "logits", wanted=False)
    result = rows_cross_entropy(
        x,
        labels,
        class_axis=class_axis,
        weight=class_weight(weight, x.shape[class_axis]),
        label_smoothing=smoothing,
        ignore_index=ignore_index,
        reduction=reduction,
        grad_output=grad_output,
        grad=bool(wanted),
        grad_dtype=grad_dtype,
        out=out,
        backend=backend,
    )
    for name in result.grads.keys() - wanted:
        del result.grads[name]
    return result


def rows_cross_entropy(
    logits: np.ndarray,
    target: np.ndarray,
    *,
    class_axis: int,
    weight: np.ndarray | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    divisor: float = 1.0,
    grad_output: Any = 1.0,
    grad: bool = True,
    grad_dtype: Any = None,
    out: np.ndarray | None = None,
    backend: str = "auto",
) -> LossResult:
    """Cross-entropy of checked arrays with the classes on any axis; a "sum" is divided by divisor."""
    run = launcher(backend, "cross_entropy")
    probabilities = arrays.is_float(target)
    row_shape = logits.shape[:class_axis] + logits.shape[class_axis + 1 :]
    loss_shape = row_shape if reduction == "none" else ()
    gradient = arrays.gradient_buffer(logits, grad_dtype, out, "logits", target, weight, wanted=grad)
    target_gradient = np.empty(target.shape, target.dtype) if grad and probabilities else None
    task = run.Task(
        logits=logits,
        target=target if probabilities else np.ascontiguousarray(target.reshape(-1), dtype=np.int64),
        class_axis=class_axis,
        weight=weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        reduction=reduction,
        divisor=divisor,
        cotangent=arrays.cotangent(grad_output, loss_shape),
        gradient=gradient,
        target_gradient=target_gradient,
    )
    answer = run.cross_entropy(task)
    grads = {"logits": gradient, "target": target_gradient}
    return LossResult(
        loss=answer.loss.reshape(row_shape) if reduction == "none" else answer.loss,
        grads={name: value for name, value in grads.items() if value is not None},
        intermediates=Intermediates(
            {"lse": answer.lse.reshape(row_shape), "nll": answer.nll.reshape(row_shape)},
            log_probabilities=functools.partial(log_probabilities, logits, class_axis, backend),
            probabilities=lambda: exponentials(log_probabilities(logits, class_axis, backend)),
        ),
    )


def log_probabilities(logits: np.ndarray, class_axis: int, backend: str = "auto") -> np.ndarray:
    """log softmax(x)_j = (x_j − max x) − log Σ e^(x_k − max x), float64: two terms of one sign, so none is lost."""
    x = np.moveaxis(np.asarray(host(logits), np.float64), class_axis, -1)
    largest = np.argmax(x, axis=-1)
    # The loss of the largest class is the second term.
    result = rows_cross_entropy(
        x, largest, class_axis=x.ndim - 1, ignore_index=-1, reduction="none", grad=False, backend=backend
    )
    with np.errstate(invalid="ignore", over="ignore"):
        below = x - np.take_along_axis(x, largest[..., None], -1)
    return np.moveaxis(below - np.asarray(result.loss)[..., None], -1, class_axis)


def _probabilities(array: np.ndarray, target: Any, ignore_index: int) -> np.ndarray:
    if array.dtype.kind in "iu" and not isinstance(target, list | tuple):
        raise TypeError(
            f"target has the shape of logits and dtype {array.dtype}; expected probabilities of a float dtype"
        )
    if ignore_index >= 0:
        raise ValueError(f"ignore_index is {ignore_index}; with class probabilities no row is ignored")
    return arrays.float_array(target, "target")


def class_weight(weight: Any, classes: int) -> np.ndarray | None:
    """An optional factor for each class, as float64."""
    if weight is None:
        return None
    array = arrays.float_array(weight, "weight")
    arrays.check_shape(array, (classes,), "weight", "one for each class")
    return np.ascontiguousarray(array, dtype=np.float64)
