"""What the losses of corresponding boxes share: arguments checked, reductions, gradients for either side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from refloss import arrays
from refloss.kernels.boxes.run import compare
from refloss.losses.parts.boxes import LOOP
from refloss.losses.parts.elementwise import REDUCTIONS
from refloss.numerics.exact import exact, quotient_pair, total
from refloss.result import Intermediates, LossResult

if TYPE_CHECKING:
    from refloss.kernels.boxes.loop import Distances
    from refloss.options import Options

BoxFormat = Literal["xyxy", "cxcywh"]
FORMATS = get_args(BoxFormat)
NAMES = ("boxes1", "boxes2")


def pairwise_loss(
    kind: str, boxes1: Any, boxes2: Any, options: Options, *, box_format: str, reduction: str
) -> LossResult:
    """1 − IoU ("iou") or 1 − GIoU ("giou") of corresponding boxes."""
    arrays.choice(reduction, "reduction", REDUCTIONS)
    arrays.choice(box_format, "box_format", FORMATS)
    inputs = {name: _boxes(value, name) for name, value in zip(NAMES, (boxes1, boxes2), strict=True)}
    first, second = inputs.values()
    arrays.check_shape(second, first.shape, "boxes2", "the shape of boxes1")
    shape = first.shape[:-1]
    count = int(np.prod(shape))
    divisor = float(count if reduction == "mean" else 1)
    cotangent = options.cotangent(shape if reduction == "none" else ())
    coefficients = np.zeros((cotangent.size, 3, 2))
    of_kind = coefficients[:, 1 if kind == "iou" else 2]
    of_kind[:, 0] = cotangent.reshape(-1)
    if reduction == "mean":
        of_kind[0] = quotient_pair(exact(cotangent.item()), exact(divisor))
    wanted = options.wanted(NAMES)

    def compared(name: str, other: str) -> tuple[np.ndarray | None, Distances]:
        boxes = inputs[name]
        gradient = options.buffer(boxes, name, wanted=name in wanted)
        others = np.ascontiguousarray(inputs[other], np.float64).reshape(-1, 4)
        arguments = (LOOP, boxes, gradient, np.arange(count), others, coefficients)
        return gradient, compare(*arguments, centered=box_format == "cxcywh", backend=options.backend)

    grads, distances = {}, None
    for name, other in (NAMES, NAMES[::-1]):
        if name == "boxes1" or name in wanted:
            gradient, of_name = compared(name, other)
            distances = distances or of_name
            grads |= {} if gradient is None else {name: gradient}
    assert distances is not None
    losses = (distances.iou_loss if kind == "iou" else distances.giou_loss).reshape(shape)
    return LossResult(
        loss=losses if reduction == "none" else total(losses, divisor),
        grads=grads,
        intermediates=Intermediates({"iou": distances.iou.reshape(shape), "giou": distances.giou.reshape(shape)}),
    )


def _boxes(value: Any, name: str) -> np.ndarray:
    array = arrays.float_array(value, name)
    if array.ndim < 1 or array.shape[-1] != 4:
        raise ValueError(f"{name} has shape {array.shape}; expected [..., 4]")
    return array
