"""How far honest heads of classification may be from the exact ones: sums of the losses that they are made of.

Bounds are computed by parts where the losses' are. Those of a segmentation's logits are whole arrays: they are gathered
from pixels, of which there are many more; what is as large as an image's pixels and classes is held for one at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.error_model import elementwise, softmax
from refloss.error_model.resampling import adjoint_error, pixel_error, resampled
from refloss.losses.bce_with_logits import bce_with_logits
from refloss.losses.mse import mse
from refloss.registry import FUNCTIONS
from refloss.roundoff import Roundoff, real
from refloss.specification import Elementwise

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refloss.cases.source import Case
    from refloss.error_model.bound import Bound
    from refloss.result import LossResult


def sequence_classification(case: Case, result: LossResult, unit: Roundoff) -> dict[str, Bound]:
    """Mean squared error, binary cross-entropy or cross-entropy."""
    logits, labels = case.inputs["pooled_logits"], case.inputs["labels"]
    if "lse" in result.intermediates:
        limits = softmax.tokens(case._replace(inputs={"logits": logits, "labels": labels}), result, unit)
        return limits | {"grad.pooled_logits": limits["grad.logits"]}
    loss = bce_with_logits if "probabilities" in result.intermediates else mse
    specification = FUNCTIONS[loss.__name__].specification
    assert isinstance(specification, Elementwise)
    name, target = specification.required
    pair = {name: logits.reshape(-1), target: np.asarray(labels).reshape(-1)}
    limits = elementwise.bounds(specification, case._replace(inputs=pair, parameters={}), unit)
    shape = result.intermediates["losses"].shape
    per_element = {key: value.reshaped(shape) for key, value in limits.items() if key.startswith("intermediate.")}
    return {"loss": limits["loss"], "grad.pooled_logits": limits[f"grad.{name}"].reshaped(logits.shape), **per_element}


def question_answering(case: Case, result: LossResult, unit: Roundoff) -> dict[str, Any]:
    """The mean of two cross-entropies over positions."""
    limits: dict[str, Any] = {}
    losses = []
    for side in ("start", "end"):
        logits = case.inputs[f"{side}_logits"]
        items = case.parameters.get("num_items_in_batch")
        given = softmax.Rows(
            logits,
            np.asarray(result.intermediates[f"{side}_positions"]),
            real(case.grad_output) / 2,
            ignore_index=logits.shape[1],
            reduction="mean" if items is None else "sum",
            normaliser=None if items is None else float(items),
        )
        part = softmax.row_bounds(given, unit)
        losses.append(np.asarray(part["loss"]) / 2)
        limits[f"grad.{side}_logits"] = part["grad.logits"]
        limits |= _intermediates(part, f"{side}_")
    return limits | {"loss": sum(losses)}


def _intermediates(part: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Those of a part, as the head calls them."""
    return {name.replace(".", f".{prefix}", 1): bound for name, bound in part.items() if "intermediate." in name}


def semantic_segmentation(case: Case, _: LossResult, unit: Roundoff) -> dict[str, Any]:
    """Cross-entropies of resampled logits."""
    weights = {"": 1.0}
    if "auxiliary_logits" in case.inputs:
        weights["auxiliary_"] = case.parameters.get("auxiliary_loss_weight", 0.4)
    limits: dict[str, Any] = {}
    losses = []
    for prefix, weight in weights.items():
        part = _resampled_rows(case, f"{prefix}logits", weight, unit)
        losses.append(abs(weight) * part["loss"])
        limits[f"grad.{prefix}logits"] = part["grad.logits"]
        limits |= _intermediates(part, prefix)
    return limits | {"loss": sum(losses)}


def _resampled_rows(case: Case, name: str, weight: float, unit: Roundoff) -> dict[str, Any]:
    """One image after the other: what is as large as its pixels' logits is kept for no other."""
    logits, labels = case.inputs[name], case.inputs["labels"]
    ignored, items = case.parameters.get("ignore_index", 255), case.parameters.get("num_items_in_batch")
    divisor = float(np.count_nonzero(labels != ignored)) if items is None else float(items)
    images = [
        _resampled_image(
            real(logits[i]), labels[i], weight * real(case.grad_output), ignored, divisor, labels.size, unit
        )
        for i in range(len(logits))
    ]
    joined = {key: np.stack([image[key] for image in images]) for key in images[0]} if images else {}
    return joined | {"loss": joined["loss"].sum()}


def _resampled_image(
    planes: np.ndarray,
    labels: np.ndarray,
    cotangent: np.ndarray,
    ignored: int,
    divisor: float,
    summed: int,
    unit: Roundoff,
) -> dict[str, np.ndarray]:
    size = labels.shape
    upsampled = resampled(planes, size)
    # Pixels are stored in the type that is computed in.
    stored = unit.between * np.where(np.isfinite(upsampled), np.abs(upsampled), 0.0)
    error = pixel_error(planes, size, unit) + stored
    given = softmax.Rows(
        upsampled,
        labels,
        cotangent,
        class_axis=0,
        ignore_index=ignored,
        normaliser=divisor,
        error=error,
        summed=summed,
    )
    part = {key: np.asarray(bound) for key, bound in softmax.row_bounds(given, unit).items()}
    totals = given.totals
    mass = given.masses(0, upsampled.size)[0].reshape(upsampled.shape)
    lse = (totals.maximum + totals.log_total).reshape(size)
    pushed = totals.pushed.reshape(size)
    terms = np.where(pushed == 0, 0.0, np.exp(upsampled - lse) * pushed + mass) * given.cotangent / abs(divisor)
    return {
        "loss": part["loss"],
        "grad.logits": adjoint_error(part["grad.logits"], terms, planes.shape[-2:], unit),
        "intermediate.lse": part["intermediate.lse"],
        "intermediate.nll": part["intermediate.nll"],
        "intermediate.upsampled_logits": error,
    }
