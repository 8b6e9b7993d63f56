"""Softmax cross-entropy.

For a row x of C logits, with lse = log Σ_j e^(x_j) and p_j = e^(x_j − lse), the loss is

    L = Σ_j q_j·(lse − x_j),    q_j = w_j·((1 − ε)·t_j + ε/C)

where t is the target distribution (one-hot for a label y), w the class weights and ε the label smoothing. For a label
without smoothing this is w_y·(lse − x_y).

Gradient. With Q = Σ_j q_j, ∂lse/∂x_j = p_j, and a cotangent c (the row's grad_output over the normaliser),

    ∂L/∂x_j = c·(Q·p_j − q_j),    ∂L/∂t_j = c·(1 − ε)·w_j·(lse − x_j)

Numerics. Three naive forms lose digits, and each has its remedy:

- lse − x_y for a confident row. It is log1p of the sum of the other terms relative to the label's
  (kernels.softmax.split).
- p_y − 1 for a confident row. It is minus the sum of the other probabilities.
- Q·p_j − q_j where both are close. q_j, Q·c/Z and the p of the largest class are pairs (which hold 1 − 10^-30 to 53
  bits of its distance from 1), so that the subtraction loses nothing.

The sum of a row's terms does not depend on their order, nor the sum over rows (numerics.sums).

Logits may go through a chain before, and the squared log-sum-exp may be added for each row that counts:

    y = c·tanh(x·s/c)/τ,    L' = L(y) + ζ·lse(y)²
    ∂L'/∂x_j = c'·(Q·p_j − q_j + 2ζ·lse·p_j)·∂y_j/∂x_j,    ∂y/∂x = (s/τ)·(1 − tanh²(x·s/c))

with c' the row's cotangent over the normaliser. The square is not weighted by class, and divided as the loss is. All of
it is computed in pairs (kernels.logits): tanh's derivative where it is saturated is 4e/(1 + e)² with e = e^(−2|v|),
which is small but not 0, and what the two losses push a class by is added before the one rounding.

Torch counterpart: torch.nn.functional.cross_entropy. Label smoothing: Szegedy et al., "Rethinking the Inception
Architecture for Computer Vision", 2016, section 7, with ε/C (not ε/(C − 1)) on every class. Softcap: Gemma 2; z-loss:
Chowdhery et al., "PaLM", 2022, section 5.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refloss import arrays, jit
from refloss.cases import chain as chain_cases
from refloss.kernels.softmax.loop import SoftmaxLoop
from refloss.loss import loss
from refloss.losses.parts.chain import CHAIN_PARAMETERS, COMPONENTS, Z_LOSS, cross_entropy_rows, logit_options
from refloss.losses.parts.softmax import REDUCTIONS, factor_of_each_class
from refloss.numerics.pairs import multiply, scaled
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import (
    IGNORE_INDEX,
    REDUCTION,
    Parameter,
    Softmax,
    class_weight,
    classes,
    softmax_logits,
)
from refloss.typing import ArrayLike, Backend, Cotangents, DTypeLike, Gradients, Reduction


@jit.scalar
def _label(split, mass, parameters):
    """w·(lse − x_y), which is w·−log p_y; c·w·p_j for the other classes, −c·w·(1 − p_y) for the label."""
    return multiply(mass, split.nll), mass, scaled(mass, split.rest)


@jit.scalar
def _soft(split, mass, likelihood, parameters):
    """Σ q_j·(lse − x_j); c·(Q·p_j − q_j)."""
    return likelihood, mass


LOOP = SoftmaxLoop("cross_entropy", _label, _soft)


@loss(
    Softmax(
        arguments={"logits": softmax_logits(1), "target": classes("logits"), "weight": class_weight()},
        parameters=IGNORE_INDEX
        | REDUCTION
        | {"label_smoothing": Parameter(float, (0.0, 0.1, 1.0))}
        | CHAIN_PARAMETERS
        | Z_LOSS,
        mean="labels",
        per="row",
        in_parts=True,
        padded=(0,),
        order=140,
        follows="torch.nn.functional.cross_entropy",
        components=COMPONENTS,
        cases=chain_cases.cross_entropy,
    )
)
def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    z_loss: float = 0.0,
    grad_output: Cotangents = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Cross-entropy of logits with class labels or class probabilities, as torch.nn.functional.cross_entropy.

    L = Σ_j q_j·(lse − x_j) for each row x, with q_j = w_j·((1 − ε)·t_j + ε/C); for a label, t is one-hot. "sum" adds
    the rows up, "mean" divides by Σ w_y over the rows that count (labels) or by the number of rows (probabilities).
    Gradient: ∂L/∂x_j = c·(Q·p_j − q_j) with Q = Σ q_j; ∂L/∂t_j = c·(1 − ε)·w_j·(lse − x_j). Held constant: nothing.

    Logits may go through a chain before: x·logit_scale, then softcap·tanh(x/softcap), then over the temperature. With a
    z_loss ζ, ζ·lse² is added for each row that counts, not weighted by class and divided as the loss is; its gradient,
    2ζ·lse·p_j, is added before the one rounding. Where tanh is saturated its derivative is the exact one: not 0.

    Args:
        logits: [N, C, d1, ...] or [C]; any float dtype, any layout.
        target: labels [N, d1, ...] (or a scalar for [C]) of any integer dtype, or probabilities in the shape of logits.
        weight: [C], a factor for each class.
        ignore_index: rows with this label have loss 0 and gradient 0, whatever their logits; it may be a valid class.
        reduction: "mean", "sum" or "none".
        label_smoothing: ε in [0, 1].
        logit_scale: a factor of the logits.
        softcap: c > 0, or None for no cap.
        temperature: τ > 0.
        z_loss: ζ ≥ 0.
        grad_output: the upstream gradient; with "none" a number or an array of the loss's shape. With a z_loss also a
            mapping from components to theirs, 0 for those that it does not name.
        grad: True, False, or the names of the inputs whose gradients to compute.
        grad_dtype: dtype of the gradient of logits instead of their own.
        out: an array of the shape of logits that receives their gradient; not overlapping them.
        backend: "auto", "cpu" or "cuda".

    Returns:
        loss in nats, float64. grads: "logits", and "target" for probabilities. intermediates, in the shape of the loss
        with "none": "lse" (of every row, ignored ones included) and "nll" (−log p_y, or −Σ t_j·log p_j, without weights
        or smoothing; 0 for ignored rows). In the shape of logits, computed from them when asked for:
        "log_probabilities" and "probabilities". All of the logits that the softmax sees. components, with a z_loss:
        "cross_entropy" and "z_loss".

    Edges:
        No row counts, or their weights sum to 0: "mean" is NaN, the gradient 0 where ignored, else NaN. A logit of −inf
        is a class of probability 0; a target of 0 there does not hide it: 0·inf is NaN, as in torch. A row with NaN or
        +inf, or with nothing but −inf: NaN. An empty batch: "mean" NaN, "sum" 0. With a softcap a logit of ±inf is ±c,
        with a gradient of 0. What overflows float64 in the chain is infinite.

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
    labels = checked_target(target, x.shape, class_axis, ignore_index)
    return cross_entropy_rows(
        LOOP,
        x,
        labels,
        Options(grad_output, grad, grad_dtype, out, backend),
        logit_options(logit_scale, softcap, temperature, z_loss),
        class_axis=class_axis,
        weight=factor_of_each_class(weight, x.shape[class_axis]),
        label_smoothing=smoothing,
        ignore_index=ignore_index,
        reduction=reduction,
    )


def checked_target(
    target: Any, shape: tuple[int, ...], class_axis: int, ignore_index: int, of_name: str = "logits"
) -> np.ndarray:
    """Labels of rows of logits that have a shape, or probabilities of that shape."""
    labels = arrays.as_array(target, "target")
    if labels.shape == shape:
        return _probabilities(labels, target, ignore_index, of_name)
    labels = arrays.integer_array(target, "target")
    row_shape = shape[:class_axis] + shape[class_axis + 1 :]
    arrays.check_shape(labels, row_shape, "target", f"one label for each row of {of_name} {shape}, or its shape")
    arrays.check_labels(labels, shape[class_axis], ignore_index, "target")
    return labels


def _probabilities(array: np.ndarray, target: Any, ignore_index: int, of_name: str) -> np.ndarray:
    if array.dtype.kind in "iu" and not isinstance(target, list | tuple):
        raise TypeError(
            f"target has the shape of {of_name} and dtype {array.dtype}; expected probabilities of a float dtype"
        )
    if ignore_index >= 0:
        raise ValueError(f"ignore_index is {ignore_index}; with class probabilities no row is ignored")
    return arrays.float_array(target, "target")
