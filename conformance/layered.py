"""How far transformers in float32 may be off in the heads that follow RT-DETR, and in LW-DETR.

Notation as in conformance.detection: e = k·u, p = σ(x), b = softplus(x), q the IoU and δq its error, from that of the
corners. Where a class is not meant, the weight w = α·p^γ is off by (γ + 2)·e of itself, b by e·(1 + |x|). Where it is
meant, with the target t and its error δt,

    b(x, t) by δt·|x| + e·(1 + |x|),    p − t by δt + e·(p + t)

LW-DETR takes log(1 − p), of which p leaves an error of e/(1 − p).

Edges: a target's mixture of bins is off by its distance's error over the bins' (which may move it to the next bin), a
softmax by e·(2 + |log p|) of each probability.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import refloss
from conformance.call import array
from conformance.detection import BOX_STEPS, Layer, U, roundings
from conformance.error_model import STEPS, ulp
from refloss.losses.fine_grained import edge_offsets, mixtures, offsets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conformance.cases import Array
    from conformance.detection import Run
    from conformance.reference import Outcome

E = STEPS * U
TEMPERATURE = 5
CLAMPED = ("DFineForObjectDetection", "Deimv2ForObjectDetection")
GROUPED = ("LwDetrForObjectDetection", "RfDetrForObjectDetection")
COMPONENTS = {"DFineForObjectDetection": "vfl", "Deimv2ForObjectDetection": "mal"}


def layers_of(run: Run, result: refloss.LossResult) -> Iterator[tuple[str, str, str, Any]]:
    """Suffix, the inputs of classes and boxes, and the index into them."""
    meta = run.arguments.get("denoising_meta_values")
    kept = run.key == "Deimv2ForObjectDetection" and not run.arguments["config"].auxiliary_loss
    known = 0 if meta is None or kept else meta["dn_num_split"][0]
    names = [name for name in result.intermediates if name.startswith("num_boxes") and not name.endswith("_union")]
    aux = sum("_aux_" in name for name in names)
    for name in names:
        suffix = name.removeprefix("num_boxes")
        kind, _, number = suffix.rpartition("_")
        if suffix == "":
            yield suffix, "logits", "pred_boxes", (slice(None), slice(known, None))
        elif suffix == "_enc":
            yield suffix, "enc_outputs_class", "enc_outputs_coord", ...
        elif kind == "":
            yield suffix, "outputs_class", "outputs_coord", int(number)
        elif kind == "_aux" and int(number) == aux - 1:
            yield suffix, "enc_topk_logits", "enc_topk_bboxes", ...
        else:
            own = slice(None, known) if kind == "_dn" else slice(known, None)
            yield suffix, "outputs_class", "outputs_coord", (slice(None), int(number), own)


def tolerances(run: Run, result: refloss.LossResult, cotangent: float) -> Outcome:
    """A bound for every element, for transformers in float32 with refloss's matching."""
    bounds: Outcome = {f"grad.{name}": np.zeros(run.arguments[name].shape) for name in run.differentiable}
    total, grouped = 0.0, run.key in GROUPED
    weights = _weights(run)
    for suffix, classes, boxes, index in layers_of(run, result):
        layer = _Layered(run, result, suffix, classes, boxes, index, cotangent)
        own = layer.bounds()
        for name, source in (("logits", classes), ("pred_boxes", boxes), ("corners", "predicted_corners")):
            if name in own:
                bounds[f"grad.{source}"][index] += own.pop(name)
        for name, bound in own.items():
            total += weights[name] * bound
            bounds[f"component.{name}{suffix}"] = np.asarray(bound * (1.0 if grouped else weights[name]))
    size = sum(abs(value) for value in result.components.values())
    return bounds | {"loss": np.asarray(total + E * size)}


def _weights(run: Run) -> dict[str, float]:
    config = run.arguments["config"]
    if run.key in GROUPED:
        return {
            "loss_ce": config.class_loss_coefficient,
            "loss_bbox": config.bbox_loss_coefficient,
            "loss_giou": config.giou_loss_coefficient,
            "cardinality_error": 0.0,
        }
    names = ("bbox", "giou", COMPONENTS.get(run.key, "vfl"), *(("fgl", "ddf") if run.key in CLAMPED else ()))
    return {f"loss_{name}": getattr(config, f"weight_loss_{name}") for name in names}


class _Layered(Layer):
    """A layer's values in float64, and its bounds; boxes and edges may go by a matching of their own."""

    def __init__(
        self, run: Run, result: refloss.LossResult, suffix: str, classes: str, boxes: str, index: Any, cotangent: float
    ) -> None:
        counted = (
            run.key not in GROUPED
            or suffix in ("", "_enc")
            or int(suffix[1:]) < run.arguments["config"].decoder_layers - 1
        )
        cotangent = cotangent if counted else 0.0
        super().__init__(run, result, suffix, classes, boxes, index, cotangent, _weights(run))
        self.result, self.index = result, index
        self.config = run.arguments["config"]
        if run.key in CLAMPED:
            self.boxes = np.clip(self.boxes, 0, 1)

    def bounds(self) -> dict[str, Any]:
        """By the names of components and of a layer's inputs."""
        own = self._classes()
        if self.run.key in GROUPED:
            own["cardinality_error"] = E * self.boxes.shape[1]
        if "assignment_union" in self.result.intermediates and not self.suffix.startswith("_dn"):
            self.table = self.result.intermediates["assignment_union"]
            self.num_boxes = float(self.result.intermediates["num_boxes_union"])
        own |= self._boxes()
        return own | (self._edges() if f"loss_fgl{self.suffix}" in self.result.components else {})

    def _qualities(self) -> tuple[Array, Array]:
        """IoU of the matched boxes, and its error."""
        mine, others = self.boxes[self.table[:, 0], self.table[:, 1]], self._targets("boxes")
        each = refloss.iou(mine, others, box_format="cxcywh", reduction="none")
        slopes = np.abs(each.grads["boxes1"])
        error = BOX_STEPS * ((roundings(mine, others) * slopes).sum(axis=1) + U)
        return 1 - np.asarray(each.loss), error

    def _classes(self) -> dict[str, Any]:
        x = self.logits
        meant = (self._meant(-1)[..., None] == np.arange(x.shape[2])).astype(bool)
        quality, error = np.zeros(x.shape), np.zeros(x.shape)
        places = (self.table[:, 0], self.table[:, 1], self._targets("class_labels").astype(int))
        quality[places], error[places] = self._qualities()
        bounds = self._iou_aware if self.run.key in GROUPED else self._focal_like
        value, slope, size = bounds(x, meant, quality, error)
        component = "loss_ce" if self.run.key in GROUPED else f"loss_{COMPONENTS.get(self.run.key, 'vfl')}"
        coefficient = abs(self.cotangent) * self.weights[component] / self.num_boxes
        return {
            "logits": coefficient * slope + ulp(coefficient * slope, torch.float32),
            component: (value.sum() + (x.size + STEPS) * U * size.sum()) / self.num_boxes,
        }

    def _focal_like(self, x: Array, meant: Array, q: Array, dq: Array) -> tuple[Array, Array, Array]:
        """Errors of varifocal and matching-aware elements and of their derivatives, and the elements."""
        gamma = self.config.focal_loss_gamma
        aware = self.run.key == "Deimv2ForObjectDetection"
        alpha = self.config.mal_alpha if aware else self.config.focal_loss_alpha
        p, b = 1 / (1 + np.exp(-x)), np.logaddexp(0, x)
        weight = (1.0 if alpha is None else alpha) * p**gamma
        of_loss = E * (1 + np.abs(x))
        absent = weight * ((gamma + 2) * E * b + of_loss), (gamma + 4) * E * weight * p
        t = q**gamma if aware else q
        dt = np.abs((q + dq) ** gamma - np.maximum(q - dq, 0) ** gamma) + E * t if aware else dq
        factor, of_factor = (1.0, 0.0) if aware else (q, dq)
        loss = b - t * x
        value = of_factor * (loss + dt * np.abs(x)) + factor * (dt * np.abs(x) + of_loss)
        slope = of_factor * (np.abs(p - t) + dt) + factor * (dt + E * (p + t))
        return (
            np.where(meant, value, absent[0]),
            np.where(meant, slope, absent[1]),
            np.where(meant, factor * loss, weight * b),
        )

    def _iou_aware(self, x: Array, meant: Array, q: Array, dq: Array) -> tuple[Array, Array, Array]:
        """The same of LW-DETR's."""
        alpha = self.config.focal_alpha
        p, rest, b = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x)), np.logaddexp(0, x)
        absent = p**2 * (3 * b + 1 / rest) * E, p**2 * (8 * (2 * rest * b + p) + (2 * rest + 1) / rest) * E

        def weight(iou: Array) -> Array:
            return np.asarray(np.maximum(p**alpha * np.maximum(iou, 0) ** (1 - alpha), 0.01))

        w = weight(q)
        dw = weight(q + dq) - weight(q - dq) + E * w
        value = dw * np.abs(x) + E * (w * (1 + b) + (1 - w) * (1 + b) + w * np.abs(x) + (1 - w) / rest)
        slope = dw + 4 * E * (w * rest + (1 - w) * p)
        return (
            np.where(meant, value, absent[0]),
            np.where(meant, slope, absent[1]),
            np.where(meant, b - w * x, p**2 * b),
        )

    def _edges(self) -> dict[str, Any]:
        bins = self.config.max_num_bins + 1
        every = array(self.run.arguments["predicted_corners"])
        corners = every[self.index].reshape(*self.boxes.shape[:2], 4, bins)
        last = (slice(None), -1, self.index[2])
        fine, fine_slope = self._fine_grained(corners)
        distilled, slope = self._distilled(corners, every[last].reshape(corners.shape), last)
        slope[self.table[:, 0], self.table[:, 1]] += fine_slope
        slope = slope.reshape(*corners.shape[:2], -1)
        return {"corners": slope + ulp(slope, torch.float32), "loss_fgl": fine, "loss_ddf": distilled}

    def _fine_grained(self, corners: Array) -> tuple[float, Array]:
        places = (self.table[:, 0], self.table[:, 1])
        references = array(self.run.arguments["initial_reference_points"])[self.index][places]
        boxes, scale = self._targets("boxes"), abs(self.config.reg_scale)
        distances = edge_offsets(references, boxes, scale)
        values = offsets(self.config.max_num_bins, self.config.up, self.config.reg_scale)
        target = mixtures(distances, values)
        sizes = np.tile(references[:, 2:] / scale, 2)
        spread = np.tile(np.abs(references[:, :2]) + np.abs(boxes[:, :2]) + boxes[:, 2:], 2)
        error = E * (spread / sizes + np.abs(distances) + scale)
        near = np.clip((values <= distances[..., None]).sum(axis=-1) - 1, 0, len(values) - 2)
        gaps = values[near + 1] - values[near]
        off = 2 * (error + E * np.maximum(np.abs(values[near]), np.abs(values[near + 1]))) / gaps + E
        reached = np.abs(np.arange(len(values)) - near[..., None] - 0.5) < 2
        moved = off[..., None] * reached
        log_p = _log_softmax(corners[places])
        p, (q, dq) = np.exp(log_p), (each[:, None, None] for each in self._qualities())
        of_p = E * p * (2 + np.abs(log_p))
        slope = dq * np.abs(p - target) + (q + dq) * (of_p + moved + E * (p + target))
        loss = (target * np.abs(log_p)).sum(axis=-1, keepdims=True)
        of_loss = ((moved + E * target) * (1 + np.abs(log_p))).sum(axis=-1, keepdims=True) + E
        value = dq * loss + (q + dq) * of_loss
        coefficient = abs(self.cotangent) * self.weights["loss_fgl"] / self.num_boxes
        terms = loss.size + STEPS
        return (value.sum() + terms * U * (q * loss).sum()) / self.num_boxes, coefficient * slope

    def _distilled(self, corners: Array, taught: Array, last: Any) -> tuple[float, Array]:
        if np.array_equal(corners, taught):
            return 0.0, np.zeros(corners.shape)
        teacher = array(self.run.arguments["outputs_class"])[last]
        shares = 1 / (1 + np.exp(-teacher.max(axis=-1)))
        matched = np.zeros(shares.shape, bool)
        places = (self.table[:, 0], self.table[:, 1])
        matched[places] = True
        errors = E * shares
        shares[places], errors[places] = self._qualities()
        numbers = np.array([matched.sum(), (~matched).sum()])
        roots = np.sqrt(numbers)
        of_matched, of_others = roots / roots.sum() / np.maximum(4 * numbers, 1)
        unit = np.where(matched, of_matched, of_others)[..., None, None]
        shares, errors = (each[..., None, None] * unit for each in (shares, errors))
        log_s, log_t = _log_softmax(corners / TEMPERATURE), _log_softmax(taught / TEMPERATURE)
        s, t = np.exp(log_s), np.exp(log_t)
        of_terms = E * (s * (2 + np.abs(log_s)) + t * (2 + np.abs(log_t)))
        slope = TEMPERATURE * (errors * np.abs(s - t) + (shares + errors) * of_terms)
        kl = (t * np.abs(log_t - log_s)).sum(axis=-1, keepdims=True)
        of_kl = E * (t * (1 + np.abs(log_t) + np.abs(log_s))).sum(axis=-1, keepdims=True)
        value = TEMPERATURE**2 * (errors * kl + (shares + errors) * of_kl)
        size = TEMPERATURE**2 * (shares * kl).sum()
        coefficient = abs(self.cotangent) * self.weights["loss_ddf"]
        return value.sum() + (kl.size + STEPS) * U * size, coefficient * slope


def _log_softmax(x: Array) -> Array:
    shifted = x - x.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
