"""IoU loss of pairs of boxes; the derivation is in losses/parts/boxes.py."""

from __future__ import annotations

from functools import partial

from refloss.cases import boxes as cases
from refloss.error_model import boxes as boxes_error
from refloss.loss import loss
from refloss.losses.parts import box_pairs
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import REDUCTION, Parameter, Specification, boxes
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction


@loss(
    Specification(
        arguments={"boxes1": boxes(), "boxes2": boxes()},
        parameters={"box_format": Parameter(str, box_pairs.FORMATS), **REDUCTION},
        mean="rows",
        per="row",
        order=110,
        degree=0,
        follows="one minus torchvision.ops.box_iou",
        bounds=boxes_error.overlap,
        intermediates=("iou", "giou"),
        cases=partial(cases.overlaps, seed=33),
    )
)
def iou(
    boxes1: ArrayLike,
    boxes2: ArrayLike,
    *,
    box_format: box_pairs.BoxFormat = "xyxy",
    reduction: Reduction = "mean",
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """1 − IoU of corresponding boxes.

    IoU = I/U with I the area of the intersection and U that of the union.
    Gradient: losses/parts/boxes.py has it case by case. Held constant: nothing.

    Args:
        boxes1, boxes2: [..., 4] of one shape; any float dtype and layout.
        box_format: "xyxy" for corners (x₁, y₁, x₂, y₂), "cxcywh" for centre and size.
        reduction: "mean", "sum" or "none".
        grad: True, False, or the names of the inputs whose gradients to compute.
        grad_output, grad_dtype, backend: as in refloss.cross_entropy.

    Returns:
        loss, between 0 and 1 a pair. grads: "boxes1" and "boxes2". intermediates: "iou" and "giou" of each pair.

    Edges:
        At a tie between two coordinates half of the derivative, as torch gives it; boxes that only touch: the
        derivative as if they overlapped. Two boxes without area: NaN. No boxes: "mean" is NaN.

    Raises:
        ValueError: a shape or an option that does not fit. TypeError: a dtype that does not.
    """
    options = Options(grad_output, grad, grad_dtype, backend=backend)
    return box_pairs.pairwise_loss(
        "iou",
        boxes1,
        boxes2,
        options,
        box_format=box_format,
        reduction=reduction,
    )
