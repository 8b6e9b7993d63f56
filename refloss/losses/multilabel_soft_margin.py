"""Multi-label soft margin loss: the mean over the classes of a row of binary cross-entropies.

    ℓ_r = −(1/C)·Σ_c w_c·(t_c·log σ(x_c) + (1 − t_c)·log σ(−x_c))

Each element is one of losses/bce_with_logits.py, whose derivatives it has, times w_c/C. The derivative in w_c is the
element over C, without its weight; a weight that several rows share has the sum of theirs, which is exact, and rounded
once.

Torch counterpart: torch.nn.functional.multilabel_soft_margin_loss, where C is the last axis. It is written in torch's
own operations there, so that a weight has a gradient, unlike that of bce_with_logits.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss import arrays
from refloss.cases import multilabel as cases
from refloss.error_model import element_rows as error_model
from refloss.error_model.bound import Aligned
from refloss.loss import loss
from refloss.losses.bce_with_logits import LOOP, LOOP_FOR_WEIGHT, magnitudes_of_logits
from refloss.losses.parts import elementwise
from refloss.losses.parts.element_rows import loss_of_rows
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import REDUCTION, Specification, probabilities, sigmoid_logits
from refloss.specification import weight as weights
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from refloss.roundoff import Roundoff

_SHAPE = "... C"


def _bounds(case: Case, _: LossResult, unit: Roundoff) -> dict[str, Any]:
    shape = case.inputs["input"].shape
    elements = Aligned(shape, {"weight": np.ones(()), **case.inputs})

    def terms(first: int, last: int) -> error_model.Terms:
        part = elements.part(first, last)
        found, weight = magnitudes_of_logits(part["input"], part["target"], case, unit), np.abs(part["weight"])
        slopes = {"input": weight * found.first, "target": weight * found.target, "weight": found.value}
        return error_model.Terms(weight * found.value, slopes)

    reduction = case.parameters.get("reduction", "mean")
    own = {name: case.inputs[name].shape if name in case.inputs else shape for name in ("input", "target", "weight")}
    return error_model.bounds(shape, terms, own, case.grad_output, unit, width=shape[-1], reduction=reduction)


@loss(
    Specification(
        arguments={
            "input": dataclasses.replace(sigmoid_logits(), shape=_SHAPE),
            "target": dataclasses.replace(probabilities(), shape=_SHAPE),
            "weight": weights(differentiable=True, broadcast=True),
        },
        parameters=REDUCTION,
        mean="rows",
        per="row",
        axes=1,
        order=63,
        identities=("mirrored", "linear in the target"),
        follows="torch.nn.functional.multilabel_soft_margin_loss",
        cases=cases.multilabel_soft_margin,
        draw=cases.draw_rows,
        bounds=_bounds,
        intermediates=("losses",),
    )
)
def multilabel_soft_margin(
    input: ArrayLike,  # noqa: A002
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    reduction: Reduction = "mean",
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Multi-label soft margin loss, as torch.nn.functional.multilabel_soft_margin_loss.

    ℓ_r = (1/C)·Σ_c w_rc·(t_rc·softplus(−x_rc) + (1 − t_rc)·softplus(x_rc)); "mean" divides their sum by the number of
    rows, "sum" by nothing more. With c_r = grad_output over that, and over C: ∂/∂x_rc = c_r·w_rc·(σ(x_rc) − t_rc),
    ∂/∂t_rc = −c_r·w_rc·x_rc, ∂/∂w_rc = c_r·(t_rc·softplus(−x_rc) + (1 − t_rc)·softplus(x_rc)). Held constant: nothing.

    Args:
        input, target: [..., C] of one shape, any float dtype and layout; targets are usually in [0, 1], and may be of
            an integer dtype: they have no gradient then.
        weight: broadcasts to the shape of input; usually [C].
        reduction: "mean", "sum" or "none", which gives ℓ [...].
        grad: True, False, or the names of the inputs whose gradients to compute.
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy; out is for input's gradient.

    Returns:
        loss in nats. grads: "input", "target" and, if there is one, "weight"; where it is broadcast, its gradient is
        the exact sum over the elements that share it, rounded once.
        intermediates: "losses" of the elements, times their weights, computed from the inputs when asked for.

    Edges:
        A logit of ±inf on the right side of a hard target is 0·inf = NaN, as in torch; its gradient is 0. No rows, or
        no classes: "mean" is NaN.

    Raises:
        ValueError: a shape, an option or a buffer that does not fit. TypeError: a dtype that does not.
    """
    arrays.choice(reduction, "reduction", elementwise.REDUCTIONS)
    x, (t, is_float) = arrays.float_array(input, "input"), arrays.target_array(target, "target")
    if x.ndim == 0:
        raise ValueError("input has shape (); expected [..., C]")
    arrays.check_shape(t, x.shape, "target", "the shape of input")
    return loss_of_rows(
        LOOP,
        {"input": x, "target": t},
        Options(grad_output, grad, grad_dtype, out, backend),
        target_has_gradient=is_float,
        weight=None if weight is None else arrays.float_array(weight, "weight"),
        weight_loop=LOOP_FOR_WEIGHT,
        width=x.shape[-1],
        reduction=reduction,
    )
