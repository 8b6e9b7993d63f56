"""The heads that match, on both sides: cases, arguments, what each side makes of them, and how far float32 may be off.

Notation of the bounds: u = 2^-24, k roundings of a product or quotient (STEPS), c the cotangent over num_boxes.

    boxes    transformers rounds corners: an error of u·(|c| + s/2) in each coordinate. What it does to L1, GIoU and its
             gradient is their derivative, taken here by differences of refloss's float64. Beside it k·u of the terms.
    focal    a·m^2·b with m = 1 − p_t an absolute error of k·u (1 − p_t is a difference), b of k·u·(1 + |x|). So with
             s = |p − t| and w = p·(1 − p), a difference too and off by k·u·p,
             |δℓ| ≤ a·(2m·δm·b + m²·δb),    |δ∂ℓ| ≤ a·(2m·δm·s + 2·δm·b·w + 2m·δb·w + 2m·b·k·u·p + k·u·(m²·s + 2m·b·w))
    softmax  conformance.error_model
    dice     sums of P pixels: (k + P)·u of Σp + Σt + 1, above and below the line
    masks    bilinear weights are off by (h + w)·u, so a pixel by δx = (h + w + k)·u·max |x| nearby; it moves p by
             w·δx, b by δx, m by w·δx. The gradient is gathered with the same weights.
"""

from __future__ import annotations

import copy
import functools
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional
from transformers.loss.loss_utils import LOSS_MAPPING

import refloss
from conformance import error_model
from conformance.call import Call, array
from conformance.cases import CROSS_ENTROPY, Array, Case
from conformance.error_model import STEPS, ulp
from conformance.heads import resampled
from conformance.reference import formula_precision
from refloss.files import nested
from refloss.golden import detection as golden
from refloss.golden.source import Case as GoldenCase

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from conformance.reference import Outcome

KEYS = {
    "ForObjectDetection": "object_detection",
    "ForSegmentation": "segmentation",
    "DeformableDetrForObjectDetection": "deformable_detr_object_detection",
    "ConditionalDetrForObjectDetection": "deformable_detr_object_detection",
    "DabDetrForObjectDetection": "deformable_detr_object_detection",
    "ConditionalDetrForSegmentation": "deformable_detr_segmentation",
    "GroundingDinoForObjectDetection": "grounding_dino_object_detection",
    "MMGroundingDinoForObjectDetection": "grounding_dino_object_detection",
    "RTDetrForObjectDetection": "rt_detr_object_detection",
    "RTDetrV2ForObjectDetection": "rt_detr_object_detection",
    "DFineForObjectDetection": "d_fine_object_detection",
    "Deimv2ForObjectDetection": "deimv2_object_detection",
    "LwDetrForObjectDetection": "lw_detr_object_detection",
    "RfDetrForObjectDetection": "lw_detr_object_detection",
}
INPUTS = (
    "logits",
    "pred_boxes",
    "pred_masks",
    "outputs_class",
    "outputs_coord",
    "encoder_logits",
    "encoder_pred_boxes",
    "enc_topk_logits",
    "enc_topk_bboxes",
    "predicted_corners",
    "initial_reference_points",
    "enc_outputs_class",
    "enc_outputs_coord",
)
U = 2.0**-24
# Roundings of coordinates between a box and its gradient.
BOX_STEPS = 16


class Run(NamedTuple):
    """A key, and keyword arguments as torch takes them."""

    key: str
    arguments: dict[str, Any]
    differentiable: tuple[str, ...]


def golden_cases() -> list[tuple[str, GoldenCase]]:
    """Every golden case of a head, for each of its keys; those of the 16-bit formats are float32's."""
    return [
        (key, case)
        for key, function in KEYS.items()
        for case in golden.BUILDERS[function]()
        if not case.id.endswith(("float16", "float64"))
    ]


def prepared(key: str, inputs: Mapping[str, Array], config: Mapping[str, Any], dtype: torch.dtype) -> Run:
    """Arguments for both sides; flat inputs are put together."""
    flat = {name: _tensor(value, dtype) for name, value in inputs.items()}
    arguments = nested(flat)
    if "label_maps" in arguments:
        arguments["label_maps"] = tuple(arguments["label_maps"])
    if "denoising_meta_values" in arguments:
        meta = arguments["denoising_meta_values"]
        meta |= {"dn_num_group": int(meta["dn_num_group"]), "dn_num_split": meta["dn_num_split"].tolist()}
    differentiable = tuple(name for name in INPUTS if name in arguments)
    for name in differentiable:
        arguments[name].requires_grad_()
    return Run(key, arguments | {"config": SimpleNamespace(**config)}, differentiable)


def _tensor(value: Array, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.tensor(np.asarray(value, np.float64 if value.dtype.kind not in "biu" else value.dtype))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


@contextmanager
def double_precision() -> Iterator[None]:
    """transformers' formula in float64, where it makes tensors of its own too."""
    torch.set_default_dtype(torch.float64)
    try:
        with formula_precision():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


class Matched(NamedTuple):
    """What transformers matched in a layer: for each image its pairs and the costs that decided."""

    pairs: list[Any]
    costs: list[Array]


def run_transformers(run: Run, cotangents: Mapping[str, float] | float) -> tuple[Outcome, list[Matched]]:
    """Loss, components, gradients; and the matching of each layer in the order in which it was made."""
    solved: list[Any] = []

    def solve(costs: Any) -> Any:
        solved.append((linear_sum_assignment(costs), array(torch.as_tensor(costs))))
        return solved[-1][0]

    modules = ("for_object_detection", "deformable_detr", "grounding_dino", "rt_detr", "lw_detr")
    arguments = dict(run.arguments) | {"device": "cpu", "config": copy.copy(run.arguments["config"])}
    patches = {f"transformers.loss.loss_{module}.linear_sum_assignment": solve for module in modules}
    # DEIMv2 leaves the order of pairs that equally many layers made to a sort that is not stable.
    patches["torch.argsort"] = functools.partial(torch.argsort, stable=True)
    with _all_patched(patches):
        mapping: Mapping[str, Any] = LOSS_MAPPING
        loss, components, _ = mapping[run.key](**arguments)
    if isinstance(cotangents, float):
        target = loss * cotangents
    else:
        target = sum((components[name] * weight for name, weight in cotangents.items()), torch.zeros(()))
    inputs = [run.arguments[name] for name in run.differentiable]
    grads = torch.autograd.grad(target, inputs, allow_unused=True)
    outcome = {
        "loss": array(torch.as_tensor(loss)),
        **{f"component.{name}": array(value) for name, value in components.items()},
    }
    for name, value, grad in zip(run.differentiable, inputs, grads, strict=True):
        outcome[f"grad.{name}"] = array(torch.zeros_like(value) if grad is None else grad)
    images, groups = len(run.arguments["labels"]), getattr(run.arguments["config"], "group_detr", 1)
    layers = [solved[first : first + images * groups] for first in range(0, len(solved), images * groups)]
    return outcome, [_matched([layer[image::images] for image in range(images)]) for layer in layers]


def _matched(solved: list[list[Any]]) -> Matched:
    """The pairs and costs of each image, of all its groups of queries."""
    pairs, costs = [], []
    for groups in solved:
        offsets = np.cumsum([0, *(len(cost) for _, cost in groups)])
        queries = [query + offset for ((query, _), _), offset in zip(groups, offsets, strict=False)]
        pairs.append((np.concatenate(queries), np.concatenate([chosen for (_, chosen), _ in groups])))
        costs.append(np.concatenate([cost for _, cost in groups]))
    return Matched(pairs, costs)


@contextmanager
def _all_patched(values: Mapping[str, Any]) -> Iterator[None]:
    patches = [mock.patch(name, value) for name, value in values.items()]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def run_refloss(run: Run, cotangents: Any, assignment: Any = None) -> tuple[Outcome, refloss.LossResult]:
    """The same of refloss."""
    result = refloss.LOSS_MAPPING[run.key](**run.arguments, device="cpu", grad_output=cotangents, assignment=assignment)
    outcome = {
        "loss": np.asarray(result.loss),
        **{f"component.{name}": np.asarray(value) for name, value in result.components.items()},
        **{f"grad.{name}": value.astype(np.float64) for name, value in result.grads.items()},
    }
    return outcome, result


def matching_disagreements(result: refloss.LossResult, theirs: list[Matched], tolerance: float) -> list[str]:
    """Costs and assignments of all layers; IoU and GIoU of the pairs are checked by the components.

    transformers rounds 1 − p to float64 before it takes log(1 − p + 10^-8).
    """
    values, lines = result.intermediates, []
    of_logarithm = 0.0 if "lse" in values else 2.0**-53 / 1e-8
    suffixes = [name.removeprefix("cost_matrix") for name in values if name.startswith("cost_matrix")]
    for suffix, matched in zip(suffixes, theirs, strict=True):
        table = [(image, *map(int, pair)) for image, own in enumerate(matched.pairs) for pair in zip(*own, strict=True)]
        if [tuple(row) for row in values[f"assignment{suffix}"].tolist()] != table:
            lines.append(f"assignment{suffix} is {values[f'assignment{suffix}'].tolist()} instead of {table}")
        costs = np.concatenate(matched.costs, axis=1)
        found = values[f"cost_matrix{suffix}"][: len(costs)]
        if not np.allclose(found, costs, rtol=tolerance, atol=tolerance + of_logarithm):
            lines.append(f"cost_matrix{suffix} is off by {np.abs(found - costs).max()}")
    return lines


def layers_of(result: refloss.LossResult) -> Iterator[tuple[str, str, str, Any]]:
    """Suffix, the inputs of classes and boxes, and the index into them, in the order of matching."""
    suffixes = [name.removeprefix("assignment") for name in result.intermediates if name.startswith("assignment")]
    for suffix in suffixes:
        if suffix == "":
            yield suffix, "logits", "pred_boxes", ...
        elif suffix == "_enc":
            yield suffix, "encoder_logits", "encoder_pred_boxes", ...
        else:
            yield suffix, "outputs_class", "outputs_coord", int(suffix[1:])


def weights_of(run: Run) -> dict[str, float]:
    """The weights of components in the total."""
    config = run.arguments["config"]
    return {
        "loss_ce": 2.0 if "Dino" in run.key else 1.0,
        "loss_bbox": config.bbox_loss_coefficient,
        "loss_giou": config.giou_loss_coefficient,
        "loss_mask": getattr(config, "mask_loss_coefficient", 0.0),
        "loss_dice": getattr(config, "dice_loss_coefficient", 0.0),
        "cardinality_error": 0.0,
    }


def tolerances(run: Run, result: refloss.LossResult, cotangent: float) -> Outcome:
    """A bound for every element, for transformers in float32 with refloss's matching."""
    bounds: Outcome = {f"grad.{name}": np.zeros(run.arguments[name].shape) for name in run.differentiable}
    weights, total = weights_of(run), 0.0
    counted = run.arguments["config"].decoder_layers - 1
    for suffix, classes, boxes, index in layers_of(result):
        counts = suffix in ("", "_enc") or int(suffix[1:]) < counted
        layer = Layer(run, result, suffix, classes, boxes, index, cotangent if counts else 0.0)
        own = layer.bounds()
        for name in ("logits", "pred_boxes", "pred_masks"):
            source = {"logits": classes, "pred_boxes": boxes}.get(name, name)
            if name in own:
                bounds[f"grad.{source}"][index] += own[name]
        for name, weight in weights.items():
            if name in own:
                bounds[f"component.{name}{suffix}"] = np.asarray(own[name])
                total += counts * weight * own[name]
    size = sum(abs(result.components[name]) for name in result.components)
    return bounds | {"loss": np.asarray(total + STEPS * U * size)}


class Layer:
    """A layer's values in float64, and the bounds of its components and gradients."""

    def __init__(
        self,
        run: Run,
        result: refloss.LossResult,
        suffix: str,
        classes: str,
        boxes: str,
        index: Any,
        cotangent: float,
        weights: dict[str, float] | None = None,
    ) -> None:
        self.run, self.suffix, self.cotangent = run, suffix, cotangent
        self.logits, self.boxes = (array(run.arguments[name])[index] for name in (classes, boxes))
        self.table = result.intermediates[f"assignment{suffix}"]
        self.num_boxes = float(result.intermediates[f"num_boxes{suffix}"])
        self.weights = weights_of(run) if weights is None else weights

    def bounds(self) -> dict[str, Any]:
        """By the names of components and of a layer's inputs."""
        own = self._boxes() | {"cardinality_error": STEPS * U * self.boxes.shape[1]}
        own |= self._softmax() if self.run.key in ("ForObjectDetection", "ForSegmentation") else self._focal()
        if self.suffix == "" and "pred_masks" in self.run.arguments:
            own |= self._masks()
        return own

    def _targets(self, key: str) -> Array:
        values = [array(self.run.arguments["labels"][image][key])[chosen] for image, _, chosen in self.table]
        return np.array(values, float).reshape(len(values), *(() if key == "class_labels" else (4,)))

    def _boxes(self) -> dict[str, Any]:
        mine, others = self.boxes[self.table[:, 0], self.table[:, 1]], self._targets("boxes")
        of_l1, of_giou = (
            abs(self.cotangent) * self.weights[name] / self.num_boxes for name in ("loss_bbox", "loss_giou")
        )
        plain = _giou(mine, others)
        moved = np.zeros((2, *mine.shape))
        values = np.zeros(len(mine))
        for k in range(4):
            rounding = roundings(mine, others)[:, k]
            step = np.zeros(4)
            step[k] = 1e-7
            ends = _giou(mine + step, others), _giou(mine - step, others)
            slope = np.abs(ends[0].grads["boxes1"] - ends[1].grads["boxes1"]) / 2e-7
            # A kink nearby is no slope, but at most a jump to the other side.
            moved[0] += rounding[:, None] * slope
            values += rounding * np.abs(plain.grads["boxes1"][:, k])
        size = np.abs(plain.grads["boxes1"]) + 1 / np.minimum(mine[:, 2:], 1.0).prod(axis=1, keepdims=True)
        gradient = of_giou * (BOX_STEPS * moved[0] + BOX_STEPS * U * size) + STEPS * U * of_l1
        result = np.zeros(self.boxes.shape)
        result[self.table[:, 0], self.table[:, 1]] = gradient + ulp(gradient, torch.float32)
        terms = len(mine) * 4 + STEPS
        return {
            "pred_boxes": result,
            "loss_bbox": terms * U * (np.abs(mine) + np.abs(others)).sum() / self.num_boxes,
            "loss_giou": (BOX_STEPS * values.sum() + terms * U * 4 * len(mine)) / self.num_boxes,
        }

    def _meant(self, background: int) -> Array:
        classes = np.full(self.logits.shape[:2], background)
        classes[self.table[:, 0], self.table[:, 1]] = self._targets("class_labels")
        return classes

    def _softmax(self) -> dict[str, Any]:
        config = self.run.arguments["config"]
        inputs = {
            "logits": self.logits.transpose(0, 2, 1),
            "target": self._meant(config.num_labels),
            "weight": np.append(np.ones(config.num_labels), config.eos_coefficient),
        }
        call = Call(Case("classes", CROSS_ENTROPY, inputs, {}, self.cotangent), torch.float32)
        own = error_model.tolerances(call)
        return {"loss_ce": own["loss"], "logits": own["grad.logits"].transpose(0, 2, 1)}

    def _target_tokens(self) -> tuple[Array, Array]:
        """Targets and what counts, for every class or token."""
        arguments = self.run.arguments
        if "label_maps" not in arguments:
            classes = self._meant(self.logits.shape[2])
            return (classes[..., None] == np.arange(self.logits.shape[2])).astype(float), np.ones(self.logits.shape)
        joined = np.trunc(np.concatenate([array(own) for own in arguments["label_maps"]]))
        target = np.zeros(self.logits.shape)
        for (image, query, _), label in zip(self.table, self._targets("class_labels"), strict=True):
            target[image, query] = joined[int(label) + (len(arguments["label_maps"][image]) if image else 0)]
        return target, np.broadcast_to(array(arguments["text_mask"]), self.logits.shape).astype(float)

    def _focal(self) -> dict[str, Any]:
        target, counted = self._target_tokens()
        alpha = self.run.arguments["config"].focal_alpha
        x = np.where(counted > 0, self.logits, 0.0)
        value, slope, sizes = focal_bounds(x, target, alpha, 0.0)
        terms = STEPS + np.count_nonzero(counted)
        coefficient = abs(self.cotangent) * self.weights["loss_ce"] / self.num_boxes
        gradient = coefficient * slope * counted
        return {
            "loss_ce": ((value * counted).sum() + terms * U * (sizes * counted).sum()) / self.num_boxes,
            "logits": gradient + counted * ulp(gradient, torch.float32),
        }

    def _masks(self) -> dict[str, Any]:
        planes = self.run.arguments["pred_masks"].detach().double()[self.table[:, 0], self.table[:, 1]]
        masks = [array(own["masks"]) for own in self.run.arguments["labels"]]
        size = tuple(np.max([mask.shape[1:] for mask in masks], axis=0))
        if not len(planes):
            return {"loss_mask": 0.0, "loss_dice": 0.0}
        target = np.zeros((len(planes), *size))
        for p, (image, _, chosen) in enumerate(self.table):
            mask = masks[image][chosen]
            target[p, : mask.shape[0], : mask.shape[1]] = mask
        x = array(resampled(planes[:, None], size))[:, 0]
        nearby = array(resampled(functional.max_pool2d(planes.abs()[:, None], 3, 1, 1), size))[:, 0]
        moved = (sum(planes.shape[1:]) + STEPS) * U * nearby
        pixels = target[0].size
        value, slope, sizes = focal_bounds(x, target, 0.25, moved)
        p = 1 / (1 + np.exp(-x))
        flat = p * (1 - p)
        bottom = (p + target).sum(axis=(1, 2)) + 1
        off = (STEPS + pixels) * U + (flat * moved).sum(axis=(1, 2)) / bottom
        of_mask, of_dice = (
            abs(self.cotangent) * self.weights[name] / self.num_boxes for name in ("loss_mask", "loss_dice")
        )
        dice_slope = 4 * ((off[:, None, None] + STEPS * U) * flat + flat * moved) / bottom[:, None, None]
        per_pixel = of_mask * slope / pixels + of_dice * dice_slope
        leaf = planes.clone().requires_grad_()
        terms = torch.as_tensor(of_mask * 3 * flat / pixels + of_dice * 2 * flat / bottom[:, None, None])
        weights = (sum(planes.shape[1:]) + 4 * max(1.0, pixels / planes[0].numel())) * U
        (gathered,) = torch.autograd.grad(
            resampled(leaf[:, None], size)[:, 0], leaf, torch.as_tensor(per_pixel), retain_graph=True
        )
        (sums,) = torch.autograd.grad(resampled(leaf[:, None], size)[:, 0], leaf, terms)
        near = 9 * functional.avg_pool2d(sums[:, None], 3, 1, 1)[:, 0]
        gradient = np.zeros(self.run.arguments["pred_masks"].shape)
        own = array(gathered) + weights * array(near)
        gradient[self.table[:, 0], self.table[:, 1]] = own + ulp(own, torch.float32)
        return {
            "pred_masks": gradient,
            "loss_mask": (value.sum() + (STEPS + pixels) * U * sizes.sum()) / pixels / self.num_boxes,
            "loss_dice": (4 * off).sum() / self.num_boxes,
        }


def roundings(mine: Array, others: Array) -> Array:
    """What float32 makes of each coordinate when it computes corners."""
    sizes = np.abs(mine[:, :2]) + mine[:, 2:] / 2 + np.abs(others[:, :2]) + others[:, 2:]
    return U * np.tile(sizes, 2)


def _giou(mine: Array, others: Array) -> refloss.LossResult:
    return refloss.giou(mine, others, box_format="cxcywh", reduction="sum")


def focal_bounds(x: Array, t: Array, alpha: float, moved: Array | float) -> tuple[Array, Array, Array]:
    """Errors of elements and of their derivatives for logits that are off by moved, and the elements themselves."""
    p = 1 / (1 + np.exp(-x))
    flat, missed = p * (1 - p), p * (1 - t) + (1 - p) * t
    loss = t * np.logaddexp(0, -x) + (1 - t) * np.logaddexp(0, x)
    weight = np.ones(x.shape) if alpha < 0 else alpha * t + (1 - alpha) * (1 - t)
    missed_error, loss_error = STEPS * U + flat * moved, STEPS * U * (1 + np.abs(x)) + moved
    distance = np.abs(p - t)
    value = weight * (2 * missed * missed_error * loss + missed**2 * loss_error)
    slope = weight * (
        2 * missed * missed_error * distance
        + 2 * missed_error * loss * flat
        + 2 * missed * loss_error * flat
        + 2 * missed * loss * STEPS * U * p
        + (STEPS * U + moved) * (missed**2 * (distance + flat) + 2 * missed * loss * flat)
    )
    return value, slope, weight * missed**2 * loss
