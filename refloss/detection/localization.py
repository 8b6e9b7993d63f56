"""The terms of edges that are distributions over bins: fine_grained.py and distillation.py of losses/parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from refloss.detection.engine import Outcome, Scene, Tensor, Term
from refloss.detection.terms import mean, overlaps
from refloss.kernels.distillation import run
from refloss.kernels.distillation.loop import RowWeights
from refloss.kernels.distillation.loop import Teacher as TeacherRows
from refloss.losses import cross_entropy
from refloss.losses.parts.distillation import LOOP, TEMPERATURE
from refloss.losses.parts.fine_grained import edge_offsets, mixtures, offsets
from refloss.losses.parts.softmax import softmax_rows
from refloss.numerics.exact import Exact, exact, quotient, total
from refloss.options import Options
from refloss.result import Intermediates

EDGES = 4


class Bins(NamedTuple):
    """How an edge's offset from its reference is divided."""

    last: int
    up: float
    reg_scale: float


class Teacher(NamedTuple):
    """The last layer, as the others look at it."""

    corners: np.ndarray  # [B, Q, 4, bins + 1]
    rows: TeacherRows
    highest: np.ndarray  # [B, Q] its highest probability of a class


def by_edge(corners: Tensor) -> Tensor:
    """Corners [B, Q, 4·(bins + 1)] as [B, Q, 4, bins + 1], without a copy."""
    images, queries, size = corners.value.shape
    shape = (images, queries, EDGES, size // EDGES)
    return Tensor(corners.value.reshape(shape), None if corners.gradient is None else corners.gradient.reshape(shape))


def teacher(corners: np.ndarray, logits: np.ndarray, backend: str) -> Teacher:
    """What the last layer teaches."""
    edges = by_edge(Tensor(corners, None)).value
    return Teacher(edges, run.teacher_of(LOOP, edges, backend), run.highest(logits, backend))


def local(bins: Bins, teacher: Teacher) -> Term:
    """Fine-grained localisation, a sum over num_boxes, and distillation; gradients of a layer's corners."""

    def compute(scene: Scene, cotangents: Mapping[str, Exact]) -> Outcome:
        wanted = any(cotangent != 0.0 for cotangent in cotangents.values())
        corners = by_edge(scene.layer.tensors["predicted_corners"].wanted(wanted))
        fine, fine_gradient = _fine_grained(scene, corners, bins, cotangents["loss_fgl"])
        distilled = _distillation(scene, corners, teacher, fine_gradient, cotangents["loss_ddf"])
        return Outcome({"loss_fgl": fine, "loss_ddf": distilled}, Intermediates())

    return Term(("loss_fgl", "loss_ddf"), compute, of_union=True)


def _fine_grained(scene: Scene, corners: Tensor, bins: Bins, cotangent: Exact) -> tuple[np.float64, np.ndarray]:
    """The loss, and the gradient of the matched queries' edges [M·4, bins + 1]."""
    matched_queries = (scene.matching.image, scene.matching.query)
    references = scene.layer.tensors["initial_reference_points"].value[matched_queries].astype(np.float64)
    distances = edge_offsets(references, scene.targets.boxes[scene.objects], bins.reg_scale)
    target = mixtures(distances, offsets(*bins)).reshape(-1, bins.last + 1)
    weights = np.repeat(overlaps(scene).iou, EDGES)
    logits = corners.value[matched_queries].reshape(target.shape).astype(np.float64)
    # A bin of probability 0 that is not asked for costs nothing: 0·inf would be NaN.
    logits[np.isneginf(logits) & (target == 0.0)] = np.finfo(np.float64).min
    options = Options(
        weights * quotient(cotangent, exact(scene.num_boxes)),
        grad=[] if corners.gradient is None else "logits",
        backend=scene.backend,
    )
    result = softmax_rows(cross_entropy.LOOP, logits, target, options, class_axis=1, reduction="none")
    gradient = result.grads.get("logits", np.empty((0, bins.last + 1)))
    return mean(weights * np.asarray(result.loss), scene), gradient


def _distillation(scene: Scene, corners: Tensor, teacher: Teacher, others: np.ndarray, cotangent: Exact) -> np.float64:
    """The loss; its gradient and the other term's are written."""
    matched_queries = (scene.matching.image, scene.matching.query)
    shares = _shares(teacher.highest.shape, matched_queries)
    shares[matched_queries] *= overlaps(scene).iou
    is_matched = np.zeros(shares.shape, np.bool_)
    is_matched[matched_queries] = True
    np.multiply(shares, teacher.highest, out=shares, where=~is_matched)
    # transformers: a layer that is its own teacher has nothing to learn.
    if np.array_equal(corners.value, teacher.corners):
        shares[:] = 0.0
    at = np.full((*shares.shape, EDGES), -1)
    at[matched_queries] = np.arange(len(scene.matching.query) * EDGES).reshape(-1, EDGES)
    weights = np.repeat(shares * TEMPERATURE**2, EDGES)
    coefficients = np.repeat(shares * (TEMPERATURE * cotangent), EDGES)
    if corners.gradient is None or not len(others):
        at[:] = -1
    of_rows = RowWeights(weights, coefficients, at.reshape(-1), others)
    return total(run.distillation(LOOP, *corners, teacher.rows, of_rows, scene.backend))


def _shares(shape: tuple[int, ...], matched_queries: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """[B, Q] what an edge of each query counts: both kinds are averaged, and weighted by roots of their numbers."""
    matched_count, query_count = len(matched_queries[0]), shape[0] * shape[1]
    numbers = np.array([query_count - matched_count, matched_count]) * EDGES
    roots = np.sqrt(numbers * (1.0 / max(shape[0], 1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        of_others, of_matched = np.where(numbers > 0, roots / roots.sum() / numbers, 0.0)
    shares = np.full(shape, of_others)
    shares[matched_queries] = of_matched
    return shares
