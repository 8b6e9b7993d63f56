"""Negative log-likelihood of log-probabilities: ℓ = −w_y·x_y. Its derivative is −w_y at the label, 0 elsewhere.

Torch counterpart: torch.nn.functional.nll_loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refloss import arrays
from refloss.dispatch import launcher
from refloss.losses.cross_entropy import REDUCTIONS, class_weight
from refloss.placement import accepts_gpu_arrays
from refloss.result import LossResult


@accepts_gpu_arrays()
def nll(
    input: Any,  # noqa: A002
    target: Any,
    weight: Any = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    grad_output: Any = 1.0,
    grad: bool = True,
    grad_dtype: Any = None,
    out: np.ndarray | None = None,
    backend: str = "auto",
) -> LossResult:
    """Negative log-likelihood, as torch.nn.functional.nll_loss.

    ℓ_r = −w_y·x_r[y]; "mean" divides the sum by Σ w_y over the rows that count. With c = grad_output over that:
    ∂/∂x_r[y] = −c·w_y, 0 elsewhere. Held constant: weight.

    Args:
        input: log-probabilities [N, C, d1, ...] or [C]; any float dtype and layout.
        target: labels [N, d1, ...], or a scalar for [C]; any integer dtype.
        weight: [C], a factor for each class.
        ignore_index: rows with this label have loss 0 and gradient 0.
        reduction: "mean", "sum" or "none".
        grad_output, grad, grad_dtype, out, backend: as in refloss.cross_entropy.

    Returns:
        loss in nats. grads: "input".

    Edges:
        No row counts: "mean" is NaN, the gradient 0.

    Raises:
        ValueError: a shape, a label, an option or a buffer that does not fit. TypeError: a dtype that does not.
    """
    x = arrays.float_array(input, "input")
    if x.ndim == 0:
        raise ValueError("input has shape (); expected [C] or [N, C, ...]")
    class_axis = min(1, x.ndim - 1)
    arrays.choice(reduction, "reduction", REDUCTIONS)
    ignore_index = arrays.label(ignore_index, "ignore_index")
    row_shape = x.shape[:class_axis] + x.shape[class_axis + 1 :]
    labels = arrays.integer_array(target, "target")
    arrays.check_shape(labels, row_shape, "target", f"one label for each row of input {x.shape}")
    arrays.check_labels(labels, x.shape[class_axis], ignore_index, "target")
    factors = class_weight(weight, x.shape[class_axis])
    run = launcher(backend, "nll")
    cotangent = arrays.cotangent(grad_output, row_shape if reduction == "none" else ())
    wanted = bool(arrays.wanted_gradients(grad, ["input"]))
    gradient = arrays.gradient_buffer(x, grad_dtype, out, "input", labels, factors, wanted=wanted)
    loss = run.nll(run.Task(x, labels, class_axis, factors, ignore_index, reduction, cotangent, gradient))
    return LossResult(loss=loss, grads={} if gradient is None else {"input": gradient})
