"""Dice loss of masks.

With p = σ(x), a target t in [0, 1] and sums over all elements of a mask,

    ℓ = 1 − (2·Σ p·t + 1)/D = S/D,    D = Σ p + Σ t + 1,    S = Σ p·(1 − t) + (1 − p)·t
    ∂ℓ/∂p_i = (1 − ℓ − 2·t_i)/D,    ∂p_i/∂x_i = p_i·(1 − p_i),    ∂ℓ/∂t_i = (1 − ℓ − 2·p_i)/D

S, what is missed, has no negative term, so that a mask that fits loses no digit; 1 − (2·Σ p·t + 1)/D would.

transformers counterpart: loss_for_object_detection.dice_loss. Source: Milletari et al., "V-Net", 2016, equation 6, with
1 added above and below the line as in DETR, and without the squares.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refloss import arrays
from refloss.dispatch import launcher
from refloss.losses.elementwise import Gradients
from refloss.placement import accepts_gpu_arrays
from refloss.result import Intermediates, LossResult

REDUCTIONS = ("sum", "none")


@accepts_gpu_arrays()
def dice(
    inputs: Any,
    targets: Any,
    num_boxes: float = 1.0,
    *,
    reduction: str = "sum",
    grad_output: Any = 1.0,
    grad: Gradients = True,
    grad_dtype: Any = None,
    out: np.ndarray | None = None,
    backend: str = "auto",
) -> LossResult:
    """Dice loss of mask logits, as transformers' dice_loss.

    ℓ_n = 1 − (2·Σ p·t + 1)/(Σ p + Σ t + 1) with p = σ(x) for each mask n; the sum over masks / num_boxes. Gradient with
    D = Σ p + Σ t + 1: ∂ℓ/∂x = (1 − ℓ − 2t)·p·(1 − p)/D; ∂ℓ/∂t = (1 − ℓ − 2p)/D. Held constant: num_boxes.

    Args:
        inputs: [N, ...] logits; any float dtype and layout.
        targets: of the same shape, in [0, 1]; any float dtype.
        num_boxes: what the sum is divided by.
        reduction: "sum", or "none" for the loss of each mask, not divided.
        grad: True, False, or the names of the inputs whose gradients to compute.
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy; out is for the gradient of inputs.

    Returns:
        loss between 0 and 1 a mask. grads: "inputs" and "targets". intermediates: "losses" [N].

    Edges:
        A mask without elements has loss 0, and so has the sum over no masks. A logit of NaN: NaN for its mask.

    Raises:
        ValueError: a shape, a range or an option that does not fit. TypeError: a dtype that does not.
    """
    arrays.choice(reduction, "reduction", REDUCTIONS)
    x, t = arrays.float_array(inputs, "inputs"), arrays.float_array(targets, "targets")
    if x.ndim < 1:
        raise ValueError(f"inputs has shape {x.shape}; expected [N, ...]")
    arrays.check_shape(t, x.shape, "targets", "the shape of inputs")
    arrays.check_range(t, 0.0, 1.0, "targets")
    divisor = arrays.number(num_boxes, "num_boxes", finite=True, low=0.0)
    divisor = divisor if reduction == "sum" else 1.0
    cotangent = arrays.cotangent(grad_output, x.shape[:1] if reduction == "none" else ())
    wanted = arrays.wanted_gradients(grad, ["inputs", "targets"])
    gradient = arrays.gradient_buffer(x, grad_dtype, out, "inputs", t, wanted="inputs" in wanted)
    target_gradient = np.empty(t.shape, t.dtype) if "targets" in wanted else None
    run = launcher(backend, "masks")
    with np.errstate(divide="ignore", invalid="ignore"):
        losses = run.dice(x, t, cotangent / divisor, gradient, target_gradient)
    grads = {"inputs": gradient, "targets": target_gradient}
    return LossResult(
        loss=losses if reduction == "none" else run.total(losses, divisor),
        grads={name: value for name, value in grads.items() if value is not None},
        intermediates=Intermediates({"losses": losses}),
    )
