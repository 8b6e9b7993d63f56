"""How far honest heads that follow RT-DETR, and LW-DETR, may be from the exact ones, with the oracle's own matching.

Notation as in detection: e = k·u, p = σ(x), b = softplus(x), q the IoU and δq its error, from that of the corners.
Of a negative class, the weight w = α·p^γ is off by (γ + 2)·e of itself, b by e·(1 + |x|). Of a positive one,
with the target t and its error δt,

    b(x, t) by δt·|x| + e·(1 + |x|),    p − t by δt + e·(p + t)

LW-DETR takes log(1 − p), of which p leaves an error of e/(1 − p).

Edges: a target's mixture of bins is off by its distance's error over the bins' (which may move it to the next bin), a
softmax by e·(2 + |log p|) of each probability.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import refloss
from refloss.losses.parts.fine_grained import edge_offsets, mixtures, offsets
from refloss.roundoff import STEPS, Roundoff, real
from refloss.testing.error_model.boxes import pair_bounds
from refloss.testing.error_model.detection import Head, Layer, no_bounds, sum_error
from refloss.testing.error_model.focal import Elements, quality_elements

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.cases.source import Case
    from refloss.result import LossResult

TEMPERATURE = 5
CLAMPED = ("d_fine_object_detection", "deimv2_object_detection")
GROUPED = ("lw_detr_object_detection",)
COMPONENTS = {"d_fine_object_detection": "vfl", "deimv2_object_detection": "mal"}


class LayeredHead(Head):
    """The same for these heads: all but LW-DETR report components times their weights."""

    def _weights(self) -> dict[str, float]:
        if self.function in GROUPED:
            return {
                "loss_ce": self.read("class_loss_coefficient"),
                "loss_bbox": self.read("bbox_loss_coefficient"),
                "loss_giou": self.read("giou_loss_coefficient"),
                "cardinality_error": 0.0,
            }
        edges = ("fgl", "ddf") if self.function in CLAMPED else ()
        names = ("bbox", "giou", COMPONENTS.get(self.function, "vfl"), *edges)
        return {f"loss_{name}": self.read(f"weight_loss_{name}") for name in names}

    @property
    def component(self) -> str:
        """The component of classes."""
        return "loss_ce" if self.function in GROUPED else f"loss_{COMPONENTS.get(self.function, 'vfl')}"

    def is_counted(self, suffix: str) -> bool:
        """Whether a layer is part of the total."""
        return self.function not in GROUPED or super().is_counted(suffix)

    def cotangent(self, component: str, suffix: str) -> float:
        """The magnitude of a component's cotangent, before it is weighted."""
        cotangent = super().cotangent(component, suffix)
        is_weighted = isinstance(self.grad_output, Mapping) and self.function not in GROUPED
        return cotangent * abs(self.weights[component]) if is_weighted else cotangent

    def layers(self) -> Iterator[tuple[str, str, str, Any]]:
        """Suffix, the inputs of classes and boxes, and the index into them."""
        meta = self.inputs.get("denoising_meta_values")
        kept = self.function == "deimv2_object_detection" and not self.read("auxiliary_loss", False)
        known = 0 if meta is None or kept else int(meta["dn_num_split"][0])
        names = [name for name in self.result.intermediates if name.startswith("num_boxes") and "_union" not in name]
        proposals = f"_aux_{sum('_aux_' in name for name in names) - 1}"
        for suffix in (name.removeprefix("num_boxes") for name in names):
            kind, _, number = suffix.rpartition("_")
            if suffix == "":
                yield suffix, "logits", "pred_boxes", (slice(None), slice(known, None))
            elif suffix == "_enc":
                yield suffix, "enc_outputs_class", "enc_outputs_coord", ...
            elif kind == "":
                yield suffix, "outputs_class", "outputs_coord", int(number)
            elif suffix == proposals:
                yield suffix, "enc_topk_logits", "enc_topk_bboxes", ...
            else:
                queries = slice(None, known) if kind == "_dn" else slice(known, None)
                yield suffix, "outputs_class", "outputs_coord", (slice(None), int(number), queries)


class LayeredLayer(Layer):
    """A layer's values in float64, and its bounds; boxes and edges may go by a matching of their own."""

    head: LayeredHead

    def __init__(self, head: LayeredHead, suffix: str, classes: str, boxes: str, index: Any) -> None:
        super().__init__(head, suffix, classes, boxes, index)
        self.index = index
        if head.function in CLAMPED:
            self.boxes = np.clip(self.boxes, 0, 1)

    def bounds(self) -> dict[str, Any]:
        """By the names of components and of a layer's inputs."""
        limits = self._classes()
        intermediates = self.head.result.intermediates
        if self.head.function in GROUPED:
            limits["cardinality_error"] = self.off * self.boxes.shape[1]
        if "assignment_union" in intermediates and not self.suffix.startswith("_dn"):
            self.table = intermediates["assignment_union"]
            self.num_boxes = float(intermediates["num_boxes_union"])
        limits |= self.of_boxes()
        return limits | (self._edges() if f"loss_fgl{self.suffix}" in self.head.result.components else {})

    def _qualities(self) -> tuple[np.ndarray, np.ndarray]:
        """IoU of the matched boxes, and its error."""
        predicted, others = self.matched()
        each = refloss.iou(predicted, others, box_format="cxcywh", reduction="none", grad=False)
        return 1 - np.asarray(each.loss), pair_bounds("iou", predicted, others, self.unit, centered=True)[0]

    def _classes(self) -> dict[str, Any]:
        x = self.logits
        positive = (self.target_classes(-1)[..., None] == np.arange(x.shape[2])).astype(bool)
        quality, error = np.zeros(x.shape), np.zeros(x.shape)
        pairs = (self.table[:, 0], self.table[:, 1], self.targets("class_labels").astype(int))
        quality[pairs], error[pairs] = self._qualities()
        if self.head.function in GROUPED:
            errors = self._iou_aware(x, positive, quality, error)
        elif self.head.function == "deimv2_object_detection":
            errors = self._matching_aware(x, positive, quality, error)
        else:
            options = {name: self.head.read(f"focal_loss_{name}") for name in ("alpha", "gamma")}
            errors = quality_elements(x, positive, quality, self.unit, **options, off=error)
        return self.elements(errors, self.head.component)

    def _matching_aware(self, x: np.ndarray, positive: np.ndarray, q: np.ndarray, dq: np.ndarray) -> Elements:
        """Errors of DEIMv2's elements: the target is q^γ, and weighs nothing."""
        gamma, alpha, e = self.head.read("focal_loss_gamma"), self.head.read("mal_alpha", None), self.off
        p, b = 1 / (1 + np.exp(-x)), np.logaddexp(0, x)
        weight, of_loss = (1.0 if alpha is None else alpha) * p**gamma, e * (1 + np.abs(x))
        t = q**gamma
        dt = np.abs((q + dq) ** gamma - np.maximum(q - dq, 0) ** gamma) + e * t
        return Elements(
            np.where(positive, dt * np.abs(x) + of_loss, weight * ((gamma + 2) * e * b + of_loss)),
            np.where(positive, dt + e * (p + t), (gamma + 4) * e * weight * p),
            np.where(positive, b - t * x, weight * b),
        )

    def _iou_aware(self, x: np.ndarray, positive: np.ndarray, q: np.ndarray, dq: np.ndarray) -> Elements:
        """The same of LW-DETR's."""
        alpha, e = self.head.read("focal_alpha"), self.off
        p, rest, b = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x)), np.logaddexp(0, x)
        absent = p**2 * (3 * b + 1 / rest) * e, p**2 * (8 * (2 * rest * b + p) + (2 * rest + 1) / rest) * e

        def weight(iou: np.ndarray) -> np.ndarray:
            return np.asarray(np.maximum(p**alpha * np.maximum(iou, 0) ** (1 - alpha), 0.01))

        w = weight(q)
        dw = weight(q + dq) - weight(q - dq) + e * w
        value = dw * np.abs(x) + e * (w * (1 + b) + (1 - w) * (1 + b) + w * np.abs(x) + (1 - w) / rest)
        slope = dw + 4 * e * (w * rest + (1 - w) * p)
        return Elements(
            np.where(positive, value, absent[0]),
            np.where(positive, slope, absent[1]),
            np.where(positive, b - w * x, p**2 * b),
        )

    def _edges(self) -> dict[str, Any]:
        bins = self.head.read("max_num_bins") + 1
        every = real(self.head.inputs["predicted_corners"])
        corners = every[self.index].reshape(*self.boxes.shape[:2], 4, bins)
        last = (slice(None), -1, self.index[2])
        fine, fine_slope = self._fine_grained(corners)
        distilled, slope = self._distilled(corners, every[last].reshape(corners.shape), last)
        slope[self.table[:, 0], self.table[:, 1]] += fine_slope
        return {"corners": slope.reshape(*corners.shape[:2], -1), "loss_fgl": fine, "loss_ddf": distilled}

    def _mixtures(self) -> tuple[np.ndarray, np.ndarray]:
        """The targets of the matched edges, and how far they are off."""
        e, reg_scale = self.off, self.head.read("reg_scale")
        references = real(self.head.inputs["initial_reference_points"])[self.index][self.table[:, 0], self.table[:, 1]]
        boxes, scale = self.targets("boxes"), abs(reg_scale)
        distances = edge_offsets(references, boxes, scale)
        values = offsets(self.head.read("max_num_bins"), self.head.read("up"), reg_scale)
        sizes = np.tile(references[:, 2:] / scale, 2)
        spread = np.tile(np.abs(references[:, :2]) + np.abs(boxes[:, :2]) + boxes[:, 2:], 2)
        error = e * (spread / sizes + np.abs(distances) + scale)
        near = np.clip((values <= distances[..., None]).sum(axis=-1) - 1, 0, len(values) - 2)
        gaps = values[near + 1] - values[near]
        off = 2 * (error + e * np.maximum(np.abs(values[near]), np.abs(values[near + 1]))) / gaps + e
        reached = np.abs(np.arange(len(values)) - near[..., None] - 0.5) < 2
        return mixtures(distances, values), off[..., None] * reached

    def _fine_grained(self, corners: np.ndarray) -> tuple[float, np.ndarray]:
        e, (target, moved) = self.off, self._mixtures()
        log_p = _log_softmax(corners[self.table[:, 0], self.table[:, 1]])
        p, (q, dq) = np.exp(log_p), (each[:, None, None] for each in self._qualities())
        of_p = e * p * (2 + np.abs(log_p))
        slope = dq * np.abs(p - target) + (q + dq) * (of_p + moved + e * (p + target))
        loss = (target * np.abs(log_p)).sum(axis=-1, keepdims=True)
        of_loss = ((moved + e * target) * (1 + np.abs(log_p))).sum(axis=-1, keepdims=True) + e
        value = dq * loss + (q + dq) * of_loss
        terms = STEPS * self.unit.between + loss.size * self.unit.inside
        return (value.sum() + terms * (q * loss).sum()) / self.num_boxes, self.coefficient("loss_fgl") * slope

    def _distilled(self, corners: np.ndarray, taught: np.ndarray, last: Any) -> tuple[float, np.ndarray]:
        if np.array_equal(corners, taught):
            return 0.0, np.zeros(corners.shape)
        e, (shares, errors) = self.off, self._shares(last)
        log_s, log_t = _log_softmax(corners / TEMPERATURE), _log_softmax(taught / TEMPERATURE)
        s, t = np.exp(log_s), np.exp(log_t)
        of_terms = e * (s * (2 + np.abs(log_s)) + t * (2 + np.abs(log_t)))
        slope = TEMPERATURE * (errors * np.abs(s - t) + (shares + errors) * of_terms)
        kl = (t * np.abs(log_t - log_s)).sum(axis=-1, keepdims=True)
        of_kl = e * (t * (1 + np.abs(log_t) + np.abs(log_s))).sum(axis=-1, keepdims=True)
        value = TEMPERATURE**2 * (errors * kl + (shares + errors) * of_kl)
        size = TEMPERATURE**2 * (shares * kl).sum()
        terms = STEPS * self.unit.between + kl.size * self.unit.inside
        return value.sum() + terms * size, self.head.cotangent("loss_ddf", self.suffix) * slope

    def _shares(self, last: Any) -> tuple[np.ndarray, np.ndarray]:
        """What weight a query's edges have in the distillation, and how far it is off."""
        teacher = real(self.head.inputs["outputs_class"])[last]
        shares = 1 / (1 + np.exp(-teacher.max(axis=-1)))
        matched = np.zeros(shares.shape, bool)
        pairs = (self.table[:, 0], self.table[:, 1])
        matched[pairs] = True
        errors = self.off * shares
        shares[pairs], errors[pairs] = self._qualities()
        numbers = np.array([matched.sum(), (~matched).sum()])
        roots = np.sqrt(numbers)
        of_matched, of_others = roots / roots.sum() / np.maximum(4 * numbers, 1)
        unit = np.where(matched, of_matched, of_others)[..., None, None]
        return shares[..., None, None] * unit, errors[..., None, None] * unit


def layered_bounds(case: Case, result: LossResult, unit: Roundoff) -> dict[str, np.ndarray]:
    """RT-DETR, D-FINE, DEIMv2 and LW-DETR."""
    head = LayeredHead(case, result, unit)
    limits = no_bounds(result)
    total, is_weighted = 0.0, case.function not in GROUPED
    for suffix, classes, boxes, index in head.layers():
        of_layer = LayeredLayer(head, suffix, classes, boxes, index).bounds()
        for name, source in (("logits", classes), ("pred_boxes", boxes), ("corners", "predicted_corners")):
            if name in of_layer:
                limits[f"grad.{source}"][index] += of_layer.pop(name)
        for name, bound in of_layer.items():
            total += head.is_counted(suffix) * head.weights[name] * bound
            limits[f"component.{name}{suffix}"] = np.asarray(bound * (head.weights[name] if is_weighted else 1.0))
    return limits | {"loss": np.asarray(total + sum_error(result, unit))}


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
