"""Semantic segmentation: every pixel has a class, and logits come at a lower resolution."""

from __future__ import annotations

from typing import Any

import numpy as np

from refloss import arrays
from refloss.dispatch import launcher
from refloss.losses.cross_entropy import rows_cross_entropy
from refloss.result import LossResult


def semantic_segmentation(
    logits: Any,
    labels: Any,
    ignore_index: int = 255,
    num_items_in_batch: Any = None,
    auxiliary_logits: Any = None,
    auxiliary_loss_weight: float = 0.4,
    *,
    grad_output: Any = 1.0,
    grad: bool = True,
    grad_dtype: Any = None,
    backend: str = "auto",
    **ignored: Any,
) -> LossResult:
    """Cross-entropy of bilinearly upsampled logits, as transformers' ForSemanticSegmentationLoss.

    L = CE(U·x, y) + w·CE(U'·x', y) with U the bilinear resampling to the size of the labels (align_corners=False), x' the auxiliary
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
        ignored: other keywords are ignored, as transformers ignores them.

    Returns:
        loss in nats per pixel. grads: "logits", and "auxiliary_logits" where given. intermediates: "upsampled_logits"
        (float64), "lse" and "nll", and the same with the prefix "auxiliary_".

    Edges:
        As in refloss.cross_entropy. An ignored pixel hands nothing back.

    Raises:
        ValueError: a shape or a label that does not fit. TypeError: a dtype that does not.
    """
    ignore_index = arrays.integer(ignore_index, "ignore_index")
    classes = arrays.integer_array(labels, "labels")
    cotangent = arrays.number(grad_output, "grad_output")
    terms = [("", logits, 1.0)]
    if auxiliary_logits is not None:
        terms.append(("auxiliary_", auxiliary_logits, arrays.number(auxiliary_loss_weight, "auxiliary_loss_weight")))
    loss = np.float64(0.0)
    grads: dict[str, np.ndarray] = {}
    intermediates: dict[str, np.ndarray] = {}
    for prefix, values, weight in terms:
        name = f"{prefix}logits"
        x = arrays.float_array(values, name)
        _check(x, classes, name, ignore_index)
        upsampled = launcher(backend, "resample").resample(x, classes.shape[1:])
        part = rows_cross_entropy(
            upsampled,
            classes,
            class_axis=1,
            ignore_index=ignore_index,
            reduction="mean" if num_items_in_batch is None else "sum",
            divisor=1.0 if num_items_in_batch is None else arrays.number(num_items_in_batch, "num_items_in_batch"),
            grad_output=np.float64(weight) * np.float64(cotangent),
            grad=grad,
            backend=backend,
        )
        loss += weight * part.loss
        intermediates.update({f"{prefix}{key}": value for key, value in part.intermediates.items()})
        intermediates[f"{prefix}upsampled_logits"] = upsampled
        if grad:
            grads[name] = arrays.gradient_buffer(x, grad_dtype, None, name)
            launcher(backend, "resample").spread(part.grads["logits"], grads[name])
    return LossResult(loss=loss, grads=grads, intermediates=intermediates)


def _check(logits: np.ndarray, labels: np.ndarray, name: str, ignore_index: int) -> None:
    if logits.ndim != 4 or 0 in logits.shape[2:]:
        raise ValueError(f"{name} has shape {logits.shape}; expected [B, C, h, w]")
    if labels.ndim != 3 or labels.shape[0] != logits.shape[0]:
        raise ValueError(f"labels has shape {labels.shape}; expected [{logits.shape[0]}, H, W] to go with {name}")
    arrays.check_labels(labels, logits.shape[1], ignore_index, "labels")
