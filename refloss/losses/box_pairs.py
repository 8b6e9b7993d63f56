"""What the losses of corresponding boxes share: arguments checked, reductions, gradients for either side."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from refloss import arrays
from refloss.dispatch import launcher
from refloss.losses.elementwise import REDUCTIONS, Gradients
from refloss.result import Intermediates, LossResult

FORMATS = ("xyxy", "cxcywh")
NAMES = ("boxes1", "boxes2")


def evaluate(
    kind: str,
    boxes1: Any,
    boxes2: Any,
    *,
    box_format: str,
    reduction: str,
    grad_output: Any,
    grad: Gradients,
    grad_dtype: Any,
    backend: str,
) -> LossResult:
    """1 − IoU ("iou") or 1 − GIoU ("giou") of corresponding boxes."""
    arrays.choice(reduction, "reduction", REDUCTIONS)
    arrays.choice(box_format, "box_format", FORMATS)
    inputs = {name: _boxes(value, name) for name, value in zip(NAMES, (boxes1, boxes2), strict=True)}
    first, second = inputs.values()
    arrays.check_shape(second, first.shape, "boxes2", "the shape of boxes1")
    shape = first.shape[:-1]
    count = int(np.prod(shape))
    divisor = count if reduction == "mean" else 1
    cotangent = arrays.cotangent(grad_output, shape if reduction == "none" else ())
    coefficients = np.zeros((cotangent.size, 3))
    with np.errstate(divide="ignore", invalid="ignore"):
        coefficients[:, 1 if kind == "iou" else 2] = cotangent / np.float64(divisor)
    wanted = arrays.wanted_gradients(grad, NAMES)
    run, centered = launcher(backend, "boxes"), box_format == "cxcywh"
    grads, distances = {}, None
    for name, other in (("boxes2", "boxes1"), ("boxes1", "boxes2")):
        if name != "boxes1" and name not in wanted:
            continue
        own = inputs[name]
        gradient = arrays.gradient_buffer(own, grad_dtype, None, name, wanted=name in wanted)
        others = np.ascontiguousarray(inputs[other], np.float64).reshape(-1, 4)
        distances = run.compare(own, gradient, np.arange(count), others, coefficients, centered=centered)
        if gradient is not None:
            grads[name] = gradient
    assert distances is not None
    losses = (distances.iou_loss if kind == "iou" else distances.giou_loss).reshape(shape)
    return LossResult(
        loss=losses if reduction == "none" else run.divided(run.exact_sum(losses), Fraction(divisor)),
        grads={name: grads[name] for name in NAMES if name in grads},
        intermediates=Intermediates({"iou": distances.iou.reshape(shape), "giou": distances.giou.reshape(shape)}),
    )


def _boxes(value: Any, name: str) -> np.ndarray:
    array = arrays.float_array(value, name)
    if array.ndim < 1 or array.shape[-1] != 4:
        raise ValueError(f"{name} has shape {array.shape}; expected [..., 4]")
    return array
