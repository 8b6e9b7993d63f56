"""How far honest heads of classification may be from the exact ones: sums of the losses that they are made of."""

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
    from refloss.cases.source import Case
    from refloss.result import LossResult


def sequence_classification(case: Case, result: LossResult, unit: Roundoff) -> dict[str, np.ndarray]:
    """Mean squared error, binary cross-entropy or cross-entropy."""
    logits, labels = case.inputs["pooled_logits"], case.inputs["labels"]
    if "lse" in result.intermediates:
        limits = softmax.tokens(case._replace(inputs={"logits": logits, "labels": labels}), result, unit)
        return limits | {"grad.pooled_logits": limits["grad.logits"]}
    loss = bce_with_logits if "probabilities" in result.intermediates else mse
    specification = FUNCTIONS[loss.__name__].specification
    assert isinstance(specification, Elementwise)
    name, target = specification.required
    pair = {name: logits.reshape(-1), target: real(labels).reshape(-1)}
    limits = elementwise.bounds(specification, case._replace(inputs=pair, parameters={}), unit)
    shape = result.intermediates["losses"].shape
    per_element = {key: value.reshape(shape) for key, value in limits.items() if key.startswith("intermediate.")}
    return {"loss": limits["loss"], "grad.pooled_logits": limits[f"grad.{name}"].reshape(logits.shape), **per_element}


def question_answering(case: Case, result: LossResult, unit: Roundoff) -> dict[str, np.ndarray]:
    """The mean of two cross-entropies over positions."""
    limits: dict[str, np.ndarray] = {"loss": np.zeros(())}
    for side in ("start", "end"):
        logits = case.inputs[f"{side}_logits"]
        items = case.parameters.get("num_items_in_batch")
        given = softmax.rows(
            logits,
            result.intermediates[f"{side}_positions"],
            real(case.grad_output) / 2,
            ignore_index=logits.shape[1],
            reduction="mean" if items is None else "sum",
            normaliser=None if items is None else float(items),
        )
        part = softmax.row_bounds(given, unit)
        limits["loss"] = limits["loss"] + part["loss"] / 2
        limits[f"grad.{side}_logits"] = part["grad.logits"]
        limits |= _intermediates(part, f"{side}_")
    return limits


def _intermediates(part: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Those of a part, as the head calls them."""
    return {name.replace(".", f".{prefix}", 1): bound for name, bound in part.items() if "intermediate." in name}


def semantic_segmentation(case: Case, _: LossResult, unit: Roundoff) -> dict[str, np.ndarray]:
    """Cross-entropies of resampled logits."""
    weights = {"": 1.0}
    if "auxiliary_logits" in case.inputs:
        weights["auxiliary_"] = case.parameters.get("auxiliary_loss_weight", 0.4)
    limits: dict[str, np.ndarray] = {"loss": np.zeros(())}
    for prefix, weight in weights.items():
        part = _resampled_rows(case, f"{prefix}logits", weight, unit)
        limits["loss"] = limits["loss"] + abs(weight) * part["loss"]
        limits[f"grad.{prefix}logits"] = part["grad.logits"]
        limits |= _intermediates(part, prefix)
    return limits


def _resampled_rows(case: Case, name: str, weight: float, unit: Roundoff) -> dict[str, Any]:
    planes, labels = real(case.inputs[name]), case.inputs["labels"]
    size, items = labels.shape[-2:], case.parameters.get("num_items_in_batch")
    error, upsampled = pixel_error(planes, size, unit), resampled(planes, size)
    # Pixels are stored in the type that is computed in.
    error = error + unit.between * np.abs(upsampled)
    given = softmax.rows(
        np.moveaxis(upsampled, 1, -1),
        labels,
        weight * real(case.grad_output),
        ignore_index=case.parameters.get("ignore_index", 255),
        reduction="mean" if items is None else "sum",
        normaliser=None if items is None else float(items),
    )
    part = softmax.row_bounds(given, unit, np.moveaxis(error, 1, -1))
    probability = np.exp(given.logits - np.logaddexp.reduce(given.logits, axis=-1, keepdims=True))
    terms = (
        (probability * given.mass.sum(axis=-1, keepdims=True) + given.mass) * given.cotangent / abs(given.normaliser)
    )
    errors, magnitudes = (np.moveaxis(values, -1, 1) for values in (part["grad.logits"], terms))
    return {
        "loss": part["loss"],
        "grad.logits": adjoint_error(errors, magnitudes, planes.shape[-2:], unit),
        "intermediate.lse": part["intermediate.lse"],
        "intermediate.nll": part["intermediate.nll"],
        "intermediate.upsampled_logits": error,
    }
