"""Negative log-likelihood of log-probabilities: ℓ = −w_y·x_y. Its derivative is −w_y at the label, 0 elsewhere.

Torch counterpart: torch.nn.functional.nll_loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refloss import arrays
from refloss.cases import rows as cases
from refloss.error_model import nll as nll_error
from refloss.kernels.nll.loop import Task
from refloss.kernels.nll.run import nll_loss
from refloss.loss import loss
from refloss.losses.parts.softmax import REDUCTIONS, factor_of_each_class
from refloss.options import Gradients, Options
from refloss.result import LossResult
from refloss.specification import (
    IGNORE_INDEX,
    REDUCTION,
    Specification,
    class_log_probabilities,
    class_weight,
    labels,
)


@loss(
    Specification(
        arguments={
            "input": class_log_probabilities(1),
            "target": labels("input"),
            "weight": class_weight(),
        },
        parameters=IGNORE_INDEX | REDUCTION,
        mean="labels",
        per="row",
        in_parts=True,
        padded=(0,),
        order=130,
        follows="torch.nn.functional.nll_loss",
        cases=cases.nll,
        bounds=nll_error.nll,
    )
)
def nll(
    input: Any,  # noqa: A002
    target: Any,
    weight: Any = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    grad_output: Any = 1.0,
    grad: Gradients = True,
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
    classes = arrays.integer_array(target, "target")
    arrays.check_shape(classes, row_shape, "target", f"one label for each row of input {x.shape}")
    arrays.check_labels(classes, x.shape[class_axis], ignore_index, "target")
    factors = factor_of_each_class(weight, x.shape[class_axis])
    options = Options(grad_output, grad, grad_dtype, out, backend)
    cotangent = options.cotangent(row_shape if reduction == "none" else ())
    gradient = options.buffer(x, "input", wanted="input" in options.wanted(("input",)))
    task = Task(x, classes, class_axis, factors, ignore_index, reduction, cotangent, gradient)
    return LossResult(loss=nll_loss(task, backend), grads={} if gradient is None else {"input": gradient})
