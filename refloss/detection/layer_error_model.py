"""How far honest layers of heads that follow DETR may be from the exact ones, with the oracle's own matching.

Notation: e = k·u, c the cotangent over num_boxes; boxes, focal losses, masks and cross-entropies are in the modules of
those names. L1 distances are differences, off by u of the coordinates. A mask's pixels come from elsewhere, so their
logits have an error of their own; its gradient is gathered with the weights that they were made with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.configuration import read
from refloss.detection.point_error_model import mask_bounds
from refloss.error_model import softmax
from refloss.error_model.boxes import OF_LOSS, pair_bounds
from refloss.error_model.focal import Dice, Elements, focal_elements
from refloss.error_model.resampling import adjoint_error, pixel_error, resampled
from refloss.files import nested
from refloss.registry import FUNCTIONS
from refloss.roundoff import STEPS, Roundoff, real
from refloss.specification import MatchingHead

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from refloss.result import LossResult, MatchedLayer


class Head:
    """A case of a head: its arguments, its configuration and its specification."""

    def __init__(self, case: Case, result: LossResult, unit: Roundoff) -> None:
        specification = FUNCTIONS[case.function].specification
        assert isinstance(specification, MatchingHead)
        self.specification, self.result, self.unit = specification, result, unit
        self.inputs = nested(case.inputs)
        self.config = case.parameters["config"]
        self.grad_output = case.grad_output

    def read(self, name: str, default: Any = 0.0) -> Any:
        """A value of the configuration."""
        return read(self.config, name, default=default)

    def masks(self) -> list[np.ndarray]:
        """What the objects of each image look like."""
        images = len(self.inputs["labels" if "labels" in self.inputs else "mask_labels"])
        return [self.shown(image, "masks") for image in range(images)]

    def shown(self, image: int, key: str) -> np.ndarray:
        """What an image's objects are, which may be a list of its own."""
        if "labels" in self.inputs:
            return real(self.inputs["labels"][image][key])
        return real(self.inputs["mask_labels" if key == "masks" else key][image])

    def cotangent(self, component: str, layer: MatchedLayer) -> float:
        """The magnitude of the cotangent of a component, before it is divided by num_boxes."""
        weight = abs(layer.weights[component])
        if isinstance(self.grad_output, Mapping):
            given = abs(float(self.grad_output.get(component + layer.suffix, 0.0)))
            return given * weight if layer.is_weighted else given
        return abs(float(self.grad_output)) * weight


class Layer:
    """A layer's values in float64, and the bounds of its components and gradients."""

    def __init__(self, head: Head, record: MatchedLayer) -> None:
        self.head, self.record, self.unit = head, record, head.unit
        self.off = STEPS * head.unit.between
        self.logits = self.input("logits")
        self.boxes = self.input("pred_boxes") if "pred_boxes" in record.inputs else np.empty(0)
        if head.specification.clamps:
            self.boxes = np.clip(self.boxes, 0, 1)
        self.table, self.num_boxes = record.pairs

    def input(self, name: str) -> np.ndarray:
        """The layer's part of an argument, by what it holds."""
        part: np.ndarray = real(self.head.inputs[self.record.inputs[name]])[self.record.index]
        return part

    def bounds(self) -> dict[str, Any]:
        """By the names of components and of a layer's inputs."""
        limits = self.of_classes()
        if "cardinality_error" in self.record.weights:
            limits["cardinality_error"] = self.off * self.boxes.shape[1]
        self.table, self.num_boxes = self.record.of_boxes
        if "pred_boxes" in self.record.inputs:
            limits |= self.of_boxes()
        if f"points{self.record.suffix}" in self.head.result.intermediates:
            limits |= mask_bounds(self)
        elif "pred_masks" in self.record.inputs:
            limits |= self._masks()
        return limits

    def of_classes(self) -> dict[str, Any]:
        """The loss of classes."""
        return self._softmax() if self.head.specification.classes == "cross-entropy" else self._focal()

    def coefficient(self, component: str) -> float:
        """A component's cotangent over num_boxes."""
        return self.head.cotangent(component, self.record) / self.num_boxes

    def matched_boxes(self) -> tuple[np.ndarray, np.ndarray]:
        """The boxes of every pair."""
        return self.boxes[self.table[:, 0], self.table[:, 1]], self.targets("boxes")

    def targets(self, key: str) -> np.ndarray:
        """What the object of every pair is."""
        values = [self.head.shown(image, key)[chosen] for image, _, chosen in self.table]
        return np.array(values, float).reshape(len(values), *(() if key == "class_labels" else (4,)))

    def target_classes(self, background: int) -> np.ndarray:
        """The class of every query."""
        classes = np.full(self.logits.shape[:2], background)
        classes[self.table[:, 0], self.table[:, 1]] = self.targets("class_labels")
        return classes

    def of_boxes(self) -> dict[str, Any]:
        """L1 and GIoU."""
        predicted, others = self.matched_boxes()
        value, slope = pair_bounds("giou", predicted, others, self.unit, centered=True)
        value = value + OF_LOSS * self.unit.between
        gradient = np.zeros(self.boxes.shape)
        pairs = (self.table[:, 0], self.table[:, 1])
        gradient[pairs] = self.coefficient("loss_giou") * slope + self.off * self.coefficient("loss_bbox")
        terms = STEPS * self.unit.between + self.unit.sum(4 * len(predicted))
        return {
            "pred_boxes": gradient,
            "loss_bbox": terms * (np.abs(predicted) + np.abs(others)).sum() / self.num_boxes,
            "loss_giou": (value.sum() + terms * 4 * len(predicted)) / self.num_boxes,
        }

    def elements(self, errors: Elements, component: str, counted: np.ndarray | float = 1.0) -> dict[str, Any]:
        """A component that is a sum over classes, of those that are counted."""
        count = np.count_nonzero(np.broadcast_to(counted, errors.size.shape))
        terms = STEPS * self.unit.between + self.unit.sum(int(count))
        return {
            component: ((errors.value * counted).sum() + terms * (errors.size * counted).sum()) / self.num_boxes,
            "logits": self.coefficient(component) * errors.slope * counted,
        }

    def _softmax(self) -> dict[str, Any]:
        count = self.logits.shape[-1] - 1
        component, key = ("loss_ce", "eos_coefficient")
        if component not in self.record.weights:
            component, key = "loss_cross_entropy", "no_object_weight"
        weight = np.append(np.ones(count), self.head.read(key))
        cotangent = self.head.cotangent(component, self.record)
        rows = softmax.Rows(self.logits, self.target_classes(count), cotangent, weight=weight)
        limits = softmax.row_bounds(rows, self.unit)
        return {component: np.asarray(limits["loss"]), "logits": np.asarray(limits["grad.logits"])}

    def _target_tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """Targets and what counts, for every class or token."""
        inputs = self.head.inputs
        if "label_maps" not in inputs:
            classes = self.target_classes(self.logits.shape[2])
            return (classes[..., None] == np.arange(self.logits.shape[2])).astype(float), np.ones(self.logits.shape)
        # Where an image's maps begin is wrong from the third image on, as it is in the head.
        joined = np.trunc(np.concatenate([real(of_image) for of_image in inputs["label_maps"]]))
        target = np.zeros(self.logits.shape)
        for (image, query, _), label in zip(self.table, self.targets("class_labels"), strict=True):
            target[image, query] = joined[int(label) + (len(inputs["label_maps"][image]) if image else 0)]
        return target, np.broadcast_to(real(inputs["text_mask"]), self.logits.shape)

    def _focal(self) -> dict[str, Any]:
        target, counted = self._target_tokens()
        x = np.where(counted > 0, self.logits, 0.0)
        errors = focal_elements(x, target, self.unit, alpha=self.head.read("focal_alpha", 0.25))
        return self.elements(errors, "loss_ce", counted)

    def _masks(self) -> dict[str, Any]:
        planes = real(self.head.inputs["pred_masks"])[self.table[:, 0], self.table[:, 1]]
        if not len(planes):
            return {"loss_mask": 0.0, "loss_dice": 0.0}
        target = self._target_masks(len(planes))
        size = target.shape[1:]
        pixels = target[0].size
        x, moved = resampled(planes, size), pixel_error(planes, size, self.unit)
        moved = moved + self.unit.between * np.abs(x)
        focal = focal_elements(x, target, self.unit, alpha=0.25, moved=moved)
        dice = Dice(x, target, self.unit, moved)
        errors = self.coefficient("loss_mask") * focal.slope / pixels
        errors += self.coefficient("loss_dice") * dice.slopes(0, x.size)[0].reshape(x.shape)
        p = 1 / (1 + np.exp(-x))
        bottom = (p + target).sum(axis=(1, 2), keepdims=True) + 1
        terms = (self.coefficient("loss_mask") * 3 / pixels + self.coefficient("loss_dice") * 2 / bottom) * p * (1 - p)
        gradient = np.zeros(self.head.inputs["pred_masks"].shape)
        gradient[self.table[:, 0], self.table[:, 1]] = adjoint_error(errors, terms, planes.shape[1:], self.unit)
        count = STEPS * self.unit.between + self.unit.sum(x.size)
        return {
            "pred_masks": gradient,
            "loss_mask": (focal.value.sum() + count * focal.size.sum()) / pixels / self.num_boxes,
            "loss_dice": dice.losses().sum() / self.num_boxes,
        }

    def _target_masks(self, count: int) -> np.ndarray:
        """The masks of all pairs, padded to one size."""
        masks = self.head.masks()
        target = np.zeros((count, *np.max([mask.shape[1:] for mask in masks], axis=0)))
        for p, (image, _, chosen) in enumerate(self.table):
            mask = masks[image][chosen]
            target[p, : mask.shape[0], : mask.shape[1]] = mask
        return target
