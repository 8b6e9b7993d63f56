"""Semantic segmentation: every pixel has a class, and logits come at a lower resolution."""

from __future__ import annotations

import dataclasses
import functools
from fractions import Fraction

import numpy as np

from refloss import arrays
from refloss.cases import language as cases
from refloss.heads.parts import error_model
from refloss.kernels.resample import run
from refloss.kernels.segmentation.run import segmentation_rows
from refloss.loss import loss
from refloss.numerics.exact import Exact, exact, exact_sum, ratio, rounded
from refloss.options import Options
from refloss.result import Intermediates, LossResult
from refloss.specification import ITEMS, Argument, Parameter, Specification
from refloss.specification import labels as pixel_labels
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Scalar

_LOGITS = Argument("logits", differentiable=True, class_axis=1, activation="softmax", resampled=True, shape="B C h w")


@loss(
    Specification(
        arguments={
            "logits": _LOGITS,
            "labels": dataclasses.replace(pixel_labels("logits", ignored=255), shape="B H W"),
            "auxiliary_logits": dataclasses.replace(_LOGITS, optional=True, shape="B C h' w'"),
        },
        parameters={
            "ignore_index": Parameter(int, (255, 0, -100)),
            **ITEMS,
            "auxiliary_loss_weight": Parameter(float, (0.4, 1.5, 0.0)),
        },
        mean="labels",
        divisor=cases.pixels_counted,
        padded=(0,),
        keys=("ForSemanticSegmentation",),
        order=290,
        follows="transformers' ForSemanticSegmentationLoss",
        cases=cases.semantic_segmentation,
        bounds=error_model.semantic_segmentation,
        draw=cases.draw_images,
        intermediates=tuple(
            f"{part}{name}" for part in ("", "auxiliary_") for name in ("lse", "nll", "upsampled_logits")
        ),
    )
)
def semantic_segmentation(
    logits: ArrayLike,
    labels: ArrayLike,
    ignore_index: int = 255,
    num_items_in_batch: Scalar | None = None,
    auxiliary_logits: ArrayLike | None = None,
    auxiliary_loss_weight: float = 0.4,
    *,
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Cross-entropy of bilinearly upsampled logits, as transformers' ForSemanticSegmentationLoss.

    L = CE(U·x, y) + w·CE(U'·x', y) with U the bilinear resampling to the size of the labels (align_corners=False), x'
    the auxiliary
    logits and w their weight; each CE is the mean over the pixels that are not ignore_index, or the sum over
    num_items_in_batch. Gradient: Uᵀ applied to that of the cross-entropy, the exact adjoint. Held constant: the numbers
    of pixels.

    Args:
        logits: [B, C, h, w]; any float dtype, any layout.
        labels: [B, H, W] classes.
        ignore_index: label of pixels that do not count.
        num_items_in_batch: number or array without axes that divides the sum, instead of the mean.
        auxiliary_logits: [B, C, h', w'], or None.
        auxiliary_loss_weight: w.
        grad_output, grad, grad_dtype, backend: as in refloss.cross_entropy.

    Returns:
        loss in nats per pixel. grads: "logits", and "auxiliary_logits" where given. intermediates: "lse" and "nll",
        "upsampled_logits" (float64, computed when asked for), and the same with the prefix "auxiliary_".

    Edges:
        As in refloss.cross_entropy. An ignored pixel hands nothing back. A logit whose weight for a pixel is 0
        has no part in it, be it NaN or infinite.

    Raises:
        ValueError: a shape or a label that does not fit. TypeError: a dtype that does not.
    """
    ignore_index = arrays.label(ignore_index, "ignore_index")
    classes = arrays.integer_array(labels, "labels")
    options = Options(grad_output, grad, grad_dtype, backend=backend)
    cotangent = exact(arrays.number(grad_output, "grad_output"))
    terms = [("", logits, 1.0)]
    weight = arrays.number(auxiliary_loss_weight, "auxiliary_loss_weight", finite=True)
    if auxiliary_logits is not None:
        terms.append(("auxiliary_", auxiliary_logits, weight))
    wanted = arrays.wanted_gradients(grad, [f"{prefix}logits" for prefix, _, _ in terms])
    inputs = [(prefix, arrays.float_array(values, f"{prefix}logits"), weight) for prefix, values, weight in terms]
    for prefix, x, _ in inputs:
        _check(x, classes, f"{prefix}logits", ignore_index)
    wanted = options.wanted([f"{prefix}logits" for prefix, _, _ in inputs])
    items = exact(float(np.count_nonzero(classes != ignore_index)))
    if num_items_in_batch is not None:
        items = exact(arrays.number(num_items_in_batch, "num_items_in_batch", low=0.0))
    losses: list[Exact] = []
    grads: dict[str, np.ndarray] = {}
    intermediates = Intermediates()
    for prefix, x, weight in inputs:
        name = f"{prefix}logits"
        gradient = options.buffer(x, name, wanted=name in wanted)
        of_pixel = _weighted(weight, cotangent, items)
        rows = segmentation_rows(x, classes, ignore_index, of_pixel, gradient, backend)._asdict()
        losses.append(_weighted(weight, exact_sum(rows["nll"]), items))
        intermediates.update({f"{prefix}{key}": value for key, value in rows.items()})
        intermediates.later[f"{prefix}upsampled_logits"] = functools.partial(_upsampled, x, classes.shape[1:], backend)
        if gradient is not None:
            grads[name] = gradient
    return LossResult(loss=np.float64(rounded(sum(losses))), grads=grads, intermediates=intermediates)


def _weighted(weight: float, value: Exact, items: Exact) -> Exact:
    """weight·value/items."""
    if isinstance(value, Fraction):
        return ratio(Fraction(weight) * value, items)
    with np.errstate(invalid="ignore"):
        return ratio(float(np.float64(weight) * value), items)


def _upsampled(x: np.ndarray, size: tuple[int, int], backend: str) -> np.ndarray:
    resized = np.empty((*x.shape[:2], *size))
    for i in range(x.shape[0]):
        run.resample(x[i], resized[i], backend)
    return resized


def _check(logits: np.ndarray, labels: np.ndarray, name: str, ignore_index: int) -> None:
    if logits.ndim != 4 or 0 in logits.shape[2:]:
        raise ValueError(f"{name} has shape {logits.shape}; expected [B, C, h, w]")
    if labels.ndim != 3 or labels.shape[0] != logits.shape[0]:
        raise ValueError(f"labels has shape {labels.shape}; expected [{logits.shape[0]}, H, W] to go with {name}")
    arrays.check_labels(labels, logits.shape[1], ignore_index, "labels")
