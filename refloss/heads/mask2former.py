"""Universal segmentation as in Mask2Former and EoMT: classes, and masks that are looked at in points."""

from __future__ import annotations

from functools import partial
from typing import Any

from refloss import arrays
from refloss.cases import drawn_scenes, scenes
from refloss.configuration import read
from refloss.detection import detr, engine, point_terms, terms
from refloss.detection.bounds import head_bounds
from refloss.detection.engine import Head, Layer, Options
from refloss.detection.inputs import Inputs, required
from refloss.detection.matching import Matcher
from refloss.detection.point_terms import Kind
from refloss.detection.points import Given, Plan, Points
from refloss.detection.specification import POINTS, mistaken_points
from refloss.detection.targets import read_masks
from refloss.kernels.points.loop import CostWeights
from refloss.loss import loss
from refloss.result import LossResult
from refloss.specification import Argument, MatchingHead, Parameter, Part, configured
from refloss.typing import ArrayLike, Assignment, Backend, Configuration, Cotangents, DTypeLike, Gradients, Scalar

KIND = Kind("loss_mask", "loss_dice", bilinear=True, padded=True)
_WEIGHTS = {"loss_cross_entropy": "class_weight", "loss_mask": "mask_weight", "loss_dice": "dice_weight"}
_OF_POINTS = ("train_num_points", "oversample_ratio", "importance_sample_ratio")
_CLASSES, _MASKS = "auxiliary_class_queries_logits", "auxiliary_masks_queries_logits"


def _arguments() -> dict[str, Argument]:
    masks = Argument("masks", differentiable=True, batched=False, shape="B Q h w")
    classes = Argument("logits", differentiable=True, class_axis=-1, batched=False, shape="B Q K+1")
    mask_labels, class_labels = [Part("n H W", ("bool", "integer", "float"))], [Part("n", ("integer",))]
    points = POINTS | {"matcher_points": "D B U 2"}
    return {
        "masks_queries_logits": masks,
        "class_queries_logits": classes,
        "mask_labels": Argument("masks", nested=True, batched=False, parts=mask_labels),
        "class_labels": Argument("objects", nested=True, batched=False, parts=class_labels),
        _MASKS: Argument("masks", differentiable=True, optional=True, batched=False, shape="L B Q h w"),
        _CLASSES: Argument(
            "logits", differentiable=True, optional=True, class_axis=-1, batched=False, shape="L B Q K+1"
        ),
        **{name: Argument("points", optional=True, batched=False, shape=shape) for name, shape in points.items()},
    }


@loss(
    MatchingHead(
        arguments=_arguments(),
        parameters={
            **configured("num_labels", "no_object_weight", *_WEIGHTS.values(), *_OF_POINTS),
            "num_boxes": Parameter(float, (2.5, 0.25)),
            "seed": Parameter(int, (1, 12)),
        },
        classes="cross-entropy",
        components=tuple(_WEIGHTS),
        intermediates=(
            *("cost_matrix", "assignment", "margin", "num_boxes", "lse", "dice", "points", "matcher_points"),
        ),
        order=286,
        follows="transformers' Mask2FormerLoss, EomtLoss",
        cases=partial(scenes.mask_cases, seed=160, deciding=164),
        draw=drawn_scenes.mask2former,
        bounds=head_bounds,
        mistakes=mistaken_points,
    )
)
def mask2former(
    masks_queries_logits: ArrayLike,
    class_queries_logits: ArrayLike,
    mask_labels: ArrayLike,
    class_labels: ArrayLike,
    config: Configuration,
    auxiliary_masks_queries_logits: ArrayLike | None = None,
    auxiliary_class_queries_logits: ArrayLike | None = None,
    *,
    matcher_points: ArrayLike | None = None,
    candidate_points: ArrayLike | None = None,
    random_points: ArrayLike | None = None,
    points: ArrayLike | None = None,
    seed: int = 0,
    grad_output: Cotangents = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    assignment: Assignment | None = None,
    num_boxes: Scalar | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Classes and masks at points, as transformers' Mask2FormerLoss and EomtLoss.

    Each layer's queries are matched with the objects of their image; with x a mask's logits at points and t the
    target's values there, both sampled bilinearly (detection/points.py and kernels/points/loop.py say which points, and
    what lies between and beside pixels):

    - cost of the matching: class_weight times −p of the object's class, mask_weight times the mean of the binary
      cross-entropies of x and t, and dice_weight times the dice loss, at points that all masks of an image share
    - loss_cross_entropy: over the K classes and no object, whose weight is no_object_weight; the weighted mean
    - loss_mask: Σ over matched masks of the mean over their points of the binary cross-entropy of x and t / num_boxes
    - loss_dice: Σ over matched masks of 1 − (2·Σ p·t + 1)/(Σ p + Σ t + 1) with p = σ(x), over num_boxes

    weighted by class_weight, mask_weight and dice_weight. Of P = train_num_points points of a matched mask
    k = ⌊importance_sample_ratio·P⌋ are those of ⌊oversample_ratio·P⌋ candidates with the smallest |x|, the others
    random. For the losses, though not for the matching, targets are padded with 0 to the right and below to the
    largest of all images, and points are parts of that size. Gradients: see losses/parts/mask_points.py; handed back
    through the exact adjoint of sampling. Held constant: the matching, num_boxes, the points, and in the denominator of
    the class loss the weights.

    Args:
        masks_queries_logits, class_queries_logits: [B, Q, h, w] and [B, Q, K + 1] of the last layer; no object comes
            last.
        mask_labels: for each image [n, H, W], bool, integers or floats in [0, 1].
        class_labels: for each image [n].
        config: with num_labels, no_object_weight, class_weight, mask_weight, dice_weight, train_num_points,
            oversample_ratio and importance_sample_ratio.
        auxiliary_masks_queries_logits, auxiliary_class_queries_logits: [L, B, Q, h, w] and [L, B, Q, K + 1] of the
            layers before, whose components end in _0, _1, ...; or None.
        matcher_points: of every layer, the last one first, [B, P, 2]; an array, or a list.
        candidate_points, random_points: of every layer [N, C, 2] and [N, P − k, 2]; row k is that of the matched pair
            k, of which there are Σ min(n_i, Q).
        points: of every layer [N, P, 2], the points themselves; or None.
        seed: of the points that are not given.
        The others are as in refloss.object_detection.

    Returns:
        loss: the weighted sum over all layers. components: those above, for each layer, without their weights. grads of
        the arrays of logits. intermediates of each layer: "cost_matrix" [Q, N], "assignment" [M, 3] (image, query,
        object), "margin" [B], "lse" [B, Q], "dice" [M], "points" [M, P, 2], "matcher_points" and "num_boxes".

    Edges:
        Without objects the losses of masks are 0. A pixel that is not finite makes NaN of the samples next to it, and
        of the dice loss of its mask.

    Raises:
        ValueError: a shape, a label, a point or a configuration that does not fit. TypeError: a dtype that does not.
    """
    inputs, classes = Inputs(grad=grad, grad_dtype=grad_dtype), detr.class_count(config)
    detr.add_masks(inputs, "masks_queries_logits", masks_queries_logits, "B", "Q", shape={})
    images, queries, height, width = inputs.tensors["masks_queries_logits"].value.shape
    sizes = {"B": images, "Q": queries, "h": height, "w": width, "C": classes + 1}
    inputs.add("class_queries_logits", class_queries_logits, "B", "Q", "C", shape=sizes)
    layers = [inputs.layer("", "class_queries_logits", masks="masks_queries_logits")]
    layers += _auxiliary_layers(inputs, auxiliary_masks_queries_logits, auxiliary_class_queries_logits, sizes)
    weights = {component: detr.coefficient(config, name) for component, name in _WEIGHTS.items()}
    given = Given(matcher_points, candidate_points, random_points, points)
    drawn = Points([_plan(config, images) for _ in layers], seed, given)
    costs = CostWeights(weights["loss_mask"], weights["loss_dice"])
    if not any(weights.values()):
        raise ValueError(
            "config: class_weight, mask_weight and dice_weight are all 0; nothing would decide the matching"
        )
    head = Head(
        matcher=Matcher("softmax", weights["loss_cross_entropy"], 0.0, 0.0, more=True),
        terms=(terms.softmax_classes(classes, detr.coefficient(config, "no_object_weight"), "loss_cross_entropy"),),
        weights=weights,
    )
    layers = [point_terms.with_points(layer, number, drawn, KIND, costs) for number, layer in enumerate(layers)]
    targets = read_masks(mask_labels, class_labels, images, classes)
    return engine.run(head, layers, targets, inputs, Options(grad_output, assignment, num_boxes, backend))


def _auxiliary_layers(inputs: Inputs, masks: Any, classes: Any, sizes: dict[str, int]) -> list[Layer]:
    """The layers before the last, if there are any."""
    if masks is None and classes is None:
        return []
    required(masks, _MASKS, f"{_CLASSES} is given")
    required(classes, _CLASSES, f"{_MASKS} is given")
    count = len(inputs.add(_MASKS, masks, "L", "B", "Q", "h", "w", shape=sizes))
    inputs.add(_CLASSES, classes, "L", "B", "Q", "C", shape=sizes | {"L": count})
    return [inputs.layer(f"_{i}", _CLASSES, masks=_MASKS, index=i) for i in range(count)]


def _plan(config: Any, images: int) -> Plan:
    points = arrays.integer(read(config, "train_num_points"), "config.train_num_points", low=1)
    oversampled = detr.coefficient(config, "oversample_ratio", low=0.0)
    share = detr.coefficient(config, "importance_sample_ratio", low=0.0)
    uncertain, candidates = int(share * points), int(points * oversampled)
    if not uncertain <= min(points, candidates):
        raise ValueError(
            f"config.importance_sample_ratio is {share}: {uncertain} of {candidates} candidates for {points} points"
        )
    return Plan(points, candidates, uncertain, points - uncertain, images)
