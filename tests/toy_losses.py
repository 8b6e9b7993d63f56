"""Two losses of a user's own, each in one place: log cosh of corresponding elements, and a z-loss of rows of logits.

Whatever refloss does for its own losses it does for them; see test_toy_losses.py and CONTRIBUTING.md.
"""

from __future__ import annotations

import math

import numpy as np

from refloss import arrays, jit
from refloss.kernels.elementwise.loop import Loop
from refloss.kernels.softmax.loop import SoftmaxLoop
from refloss.loss import loss
from refloss.losses.parts import elementwise
from refloss.losses.parts.softmax import REDUCTIONS, factor_of_each_class, softmax_rows
from refloss.numerics.exponential import exp, log1p
from refloss.numerics.pairs import add, multiply, negate, pair, two_sum
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import (
    IGNORE_INDEX,
    REDUCTION,
    AddedTerms,
    Elementwise,
    Magnitudes,
    Parameter,
    Softmax,
    class_weight,
    labels,
    softmax_logits,
    values,
)
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction

LN_2 = math.log(2.0)


@jit.scalar
def _log_cosh(x, t, factor, parameters):
    """|d| + log1p(e^(−2|d|)) − ln 2 with d = x − t; its derivative is tanh d."""
    difference = x - t
    distance = abs(difference)
    rest = exp(-2.0 * distance)
    slope = (1.0 - rest) / (1.0 + rest)
    slope = slope if difference > 0.0 else -slope
    return two_sum(distance, log1p(rest) - LN_2), pair(slope), pair(-slope)


LOG_COSH = Loop("log_cosh", _log_cosh)


def _magnitudes(x, t, case, unit):
    distance = np.abs(x - t)
    return Magnitudes(distance + LN_2, np.ones_like(distance), np.ones_like(distance))


@loss(
    Elementwise(
        arguments={"input": values(), "target": values()},
        parameters=REDUCTION,
        follows="log cosh of Keras",
        magnitudes=_magnitudes,
    )
)
def log_cosh(
    input: ArrayLike,  # noqa: A002
    target: ArrayLike,
    *,
    reduction: Reduction = "mean",
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Log cosh of the difference: half its square near 0, its magnitude less ln 2 far away."""
    arrays.choice(reduction, "reduction", elementwise.REDUCTIONS)
    return elementwise.loss_of_elements(
        LOG_COSH,
        {"input": arrays.float_array(input, "input"), "target": arrays.float_array(target, "target")},
        Options(grad_output, grad, grad_dtype, out, backend),
        reduction=reduction,
    )


@jit.scalar
def _with_squared_lse(split, mass, parameters):
    """w·(−log p_y + λ·lse²); p_j is pushed by w·(1 + 2λ·lse), and pulled up at the label by the rest of w."""
    lse = add(pair(split.maximum), split.log_total)
    drift = multiply(pair(2.0 * parameters[0]), multiply(mass, lse))
    loss = add(multiply(mass, split.nll), multiply(pair(0.5), multiply(drift, lse)))
    return loss, add(mass, drift), add(multiply(mass, split.rest), negate(multiply(drift, split.share)))


Z_LOSS = SoftmaxLoop("z_loss", _with_squared_lse)


def _added(lse, mass, parameters):
    factor = mass * parameters.get("z_weight", 1e-4)
    return AddedTerms(factor * lse**2, 2 * factor * lse, 2 * factor * lse, 2 * factor)


@loss(
    Softmax(
        arguments={"logits": softmax_logits(1), "target": labels("logits"), "weight": class_weight()},
        parameters=REDUCTION | IGNORE_INDEX | {"z_weight": Parameter(float, (1e-4, 0.5))},
        mean="labels",
        per="row",
        padded=(0,),
        follows="cross-entropy and the z-loss of PaLM",
        added=_added,
    )
)
def z_loss(
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    z_weight: float = 1e-4,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Cross-entropy of labels, and λ times the squared log-sum-exp."""
    x, targets = arrays.float_array(logits, "logits"), arrays.integer_array(target, "target")
    class_axis = 1 if x.ndim > 1 else 0
    arrays.check_labels(targets, x.shape[class_axis], ignore_index, "target")
    return softmax_rows(
        Z_LOSS,
        x,
        targets,
        Options(grad_output, grad, grad_dtype, out, backend),
        parameters=(arrays.number(z_weight, "z_weight"),),
        class_axis=class_axis,
        weight=factor_of_each_class(weight, x.shape[class_axis]),
        ignore_index=arrays.label(ignore_index, "ignore_index"),
        reduction=arrays.choice(reduction, "reduction", REDUCTIONS),
    )
