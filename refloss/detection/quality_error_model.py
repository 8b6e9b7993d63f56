"""How far honest layers of heads that follow RT-DETR, and of LW-DETR, may be from the exact ones.

Notation as in layer_error_model: e = k·u, p = σ(x), b = softplus(x), q the IoU and δq its error, from that of corners.
Of a negative class, the weight w = α·p^γ is off by (γ + 2)·e of itself, b by e·(1 + |x|). Of a positive one,
with the target t and its error δt,

    b(x, t) by δt·|x| + e·(1 + |x|),    p − t by δt + e·(p + t)

LW-DETR takes log(1 − p), of which p leaves an error of e/(1 − p).

Edges: a target's mixture of bins is off by its distance's error over the bins', or is that of other bins as far as it
reaches; the loss by as much of the difference of their logarithms, and by all of it at most. Logarithms of
probabilities are one function's, and rounded once. A divergence is Σ t·log t − Σ t·log s, with u of each of the terms;
it is small beside them, and their roundings are taken as independent (roundoff), for in 16 bits nothing of it would be
left otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refloss.detection.layer_error_model import Layer
from refloss.error_model.boxes import pair_bounds
from refloss.error_model.focal import Elements, quality_elements
from refloss.losses.iou import iou
from refloss.losses.parts.fine_grained import edge_offsets, mixtures, offsets
from refloss.roundoff import STEPS, independent, real

TEMPERATURE = 5


class QualityLayer(Layer):
    """A layer whose classes are taught how well their boxes fit, and whose edges may be distributions."""

    def bounds(self) -> dict[str, Any]:
        """By the names of components and of a layer's inputs."""
        limits = super().bounds()
        return limits | (self._edges() if "loss_fgl" in self.record.weights else {})

    def _qualities(self) -> tuple[np.ndarray, np.ndarray]:
        """IoU of the matched boxes, and its error."""
        predicted, others = self.matched_boxes()
        each = iou(predicted, others, box_format="cxcywh", reduction="none", grad=False)
        return 1 - np.asarray(each.loss), pair_bounds("iou", predicted, others, self.unit, centered=True)[0]

    def of_classes(self) -> dict[str, Any]:
        """The loss of classes."""
        x = self.logits
        positive = (self.target_classes(-1)[..., None] == np.arange(x.shape[2])).astype(bool)
        quality, error = np.zeros(x.shape), np.zeros(x.shape)
        pairs = (self.table[:, 0], self.table[:, 1], self.targets("class_labels").astype(int))
        quality[pairs], error[pairs] = self._qualities()
        kind = self.head.specification.classes
        if kind == "IoU-aware":
            return self.elements(self._iou_aware(x, positive, quality, error), "loss_ce")
        if kind == "matching-aware":
            return self.elements(self._matching_aware(x, positive, quality, error), "loss_mal")
        options = {name: self.head.read(f"focal_loss_{name}") for name in ("alpha", "gamma")}
        return self.elements(quality_elements(x, positive, quality, self.unit, **options, off=error), "loss_vfl")

    def _matching_aware(self, x: np.ndarray, positive: np.ndarray, q: np.ndarray, dq: np.ndarray) -> Elements:
        """Errors of DEIMv2's elements: the target is q^γ, and weighs nothing."""
        gamma, alpha = self.head.read("focal_loss_gamma"), self.head.read("mal_alpha", None)
        e, few = self.off, self.unit.few
        p, b = 1 / (1 + np.exp(-x)), np.logaddexp(0, x)
        weight, of_loss = (1.0 if alpha is None else alpha) * p**gamma, few * (1 + np.abs(x))
        t = q**gamma
        dt = np.abs((q + dq) ** gamma - np.maximum(q - dq, 0) ** gamma) + e * t
        return Elements(
            np.where(positive, dt * np.abs(x) + of_loss, weight * ((gamma + 2) * e * b + of_loss)),
            np.where(positive, dt + few * (p + t) + e * np.abs(p - t), (gamma + 4) * e * weight * p),
            np.where(positive, b - t * x, weight * b),
        )

    def _iou_aware(self, x: np.ndarray, positive: np.ndarray, q: np.ndarray, dq: np.ndarray) -> Elements:
        """The same of LW-DETR's."""
        alpha, e, few = self.head.read("focal_alpha"), self.off, self.unit.few
        p, rest, b = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x)), np.logaddexp(0, x)
        absent = (
            p**2 * (e * b + few * (2 * b + 1 / rest)),
            p**2 * (e * (2 * rest * b + p) + few * (4 * rest * b + p + (2 * rest + 1) / rest)),
        )

        def weight(iou: np.ndarray) -> np.ndarray:
            return np.asarray(np.maximum(p**alpha * np.maximum(iou, 0) ** (1 - alpha), 0.01))

        w = weight(q)
        dw = weight(q + dq) - weight(q - dq) + e * w
        value = dw * np.abs(x) + few * (1 + b + w * np.abs(x) + (1 - w) / rest)
        slope = dw + few * (2 * w * rest + 2 * (1 - w) * p + p + w) + e * np.abs(p - w)
        return Elements(
            np.where(positive, value, absent[0]),
            np.where(positive, slope, absent[1]),
            np.where(positive, b - w * x, p**2 * b),
        )

    def _edges(self) -> dict[str, Any]:
        bins = self.head.read("max_num_bins") + 1
        every = real(self.head.inputs["predicted_corners"])
        corners = every[self.record.index].reshape(*self.boxes.shape[:2], 4, bins)
        last = (slice(None), -1, self.record.index[2])
        fine, fine_slope = self._fine_grained(corners)
        distilled, slope = self._distilled(corners, every[last].reshape(corners.shape), last)
        slope[self.table[:, 0], self.table[:, 1]] += fine_slope
        return {"predicted_corners": slope.reshape(*corners.shape[:2], -1), "loss_fgl": fine, "loss_ddf": distilled}

    def _mixtures(self) -> tuple[np.ndarray, np.ndarray]:
        """The targets of the matched edges, and how far they are off: not at all where no error reaches."""
        few, reg_scale = self.unit.few, self.head.read("reg_scale")
        references = self.input("initial_reference_points")[self.table[:, 0], self.table[:, 1]]
        boxes, scale = self.targets("boxes"), abs(reg_scale)
        distances = edge_offsets(references, boxes, scale)
        values = offsets(self.head.read("max_num_bins"), self.head.read("up"), reg_scale)
        sizes = np.tile(references[:, 2:] / scale, 2)
        edges = np.abs(np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1))
        # Of the edge, of its difference with the reference, of the quotient and of its divisor, of what is subtracted.
        roundings = edges / sizes + 3 * np.abs(distances + scale / 2) + np.abs(distances)
        error = self.unit.between * roundings
        near = np.clip((values <= distances[..., None]).sum(axis=-1) - 1, 0, len(values) - 2)
        gaps = values[near + 1] - values[near]
        off = (error + few * np.maximum(np.abs(values[near]), np.abs(values[near + 1]))) / gaps + few
        reached = np.abs(np.arange(len(values)) - near[..., None] - 0.5) < 1 + off[..., None]
        return mixtures(distances, values), np.minimum(off, 1.0)[..., None] * reached

    def _fine_grained(self, corners: np.ndarray) -> tuple[float, np.ndarray]:
        e, (target, moved) = self.off, self._mixtures()
        log_p = np.abs(_log_softmax(corners[self.table[:, 0], self.table[:, 1]]))
        p, (q, dq) = np.exp(-log_p), (each[:, None, None] for each in self._qualities())
        of_log = self._of_log(log_p)
        slope = dq * np.abs(p - target) + (q + dq) * (p * of_log + moved + e * (p + target))
        loss = (target * log_p).sum(axis=-1, keepdims=True)
        # A mixture that is off is another mixture: what it loses on one bin it has on others.
        apart = np.where(moved > 0, np.abs(log_p - loss), 0.0)
        of_mixture = np.minimum((moved * apart).sum(axis=-1, keepdims=True), apart.max(axis=-1, keepdims=True))
        of_loss = of_mixture + (target * of_log).sum(axis=-1, keepdims=True)
        value = dq * loss + (q + dq) * of_loss
        terms = STEPS * self.unit.between + self.unit.sum(loss.size)
        return (value.sum() + terms * (q * loss).sum()) / self.num_boxes, self.coefficient("loss_fgl") * slope

    def _of_log(self, log_p: np.ndarray) -> np.ndarray:
        """How far logarithms of probabilities of bins are off: those of one function, rounded once."""
        return np.asarray(self.unit.inside * (4 + log_p.shape[-1] + 3 * log_p) + self.unit.between * log_p)

    def _distilled(self, corners: np.ndarray, taught: np.ndarray, last: Any) -> tuple[float, np.ndarray]:
        if np.array_equal(corners, taught):
            return 0.0, np.zeros(corners.shape)
        e, (shares, errors) = self.off, self._shares(last)
        log_s, log_t = (np.abs(_log_softmax(logits / TEMPERATURE)) for logits in (corners, taught))
        s, t = np.exp(-log_s), np.exp(-log_t)
        # Logits are divided first, and are then off by u of themselves.
        of_s, of_t = (
            self._of_log(log) + self.unit.between * np.abs(logits / TEMPERATURE)
            for log, logits in ((log_s, corners), (log_t, taught))
        )
        off = shares + errors
        of_terms = s * of_s + t * of_t + e * (s + t)
        slope = TEMPERATURE * (errors * np.abs(s - t) + off * of_terms)
        kl = (t * np.abs(log_t - log_s)).sum(axis=-1, keepdims=True)
        of_kl = independent(off * t * (of_s + of_t * np.abs(log_t - log_s) + self.unit.between * (log_t + log_s)))
        value = TEMPERATURE**2 * ((errors * kl).sum() + of_kl)
        size = TEMPERATURE**2 * (shares * kl).sum()
        terms = STEPS * self.unit.between + self.unit.sum(kl.size)
        return value + terms * size, self.head.cotangent("loss_ddf", self.record) * slope

    def _shares(self, last: Any) -> tuple[np.ndarray, np.ndarray]:
        """What weight a query's edges have in the distillation, and how far it is off."""
        teacher = real(self.head.inputs["outputs_class"])[last]
        shares = 1 / (1 + np.exp(-teacher.max(axis=-1)))
        is_matched = np.zeros(shares.shape, bool)
        pairs = (self.table[:, 0], self.table[:, 1])
        is_matched[pairs] = True
        errors = self.off * shares
        shares[pairs], errors[pairs] = self._qualities()
        numbers = np.array([is_matched.sum(), (~is_matched).sum()])
        roots = np.sqrt(numbers)
        of_matched, of_others = roots / roots.sum() / np.maximum(4 * numbers, 1)
        unit = np.where(is_matched, of_matched, of_others)[..., None, None]
        return shares[..., None, None] * unit, errors[..., None, None] * unit


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
