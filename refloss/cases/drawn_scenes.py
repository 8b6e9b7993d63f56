"""What the heads that match may be given, drawn: predictions of layers and queries, and what images show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.cases.draws import Drawn
from refloss.cases.scenes import CONFIG, LAYERED_CONFIG

if TYPE_CHECKING:
    from refloss.cases.draws import Draws

_BINS = 4
_MOST_CLASSES = 4097  # of every query of every layer


class _Scene:
    """How many images, queries and objects of which classes there are."""

    def __init__(self, draws: Draws, *, text: bool = False) -> None:
        self.classes = draws.few_classes() if text else draws.classes(high=_MOST_CLASSES)
        self.images = draws.size(1, 2)
        self.queries = draws.size(1, draws.limits.max_rows)
        self.layers = draws.size(1, 3)
        self.labels: list[dict[str, np.ndarray]] = []
        for _ in range(self.images):
            count = draws.size(0, 3)
            labels = draws.integers((draws.uniform(count) * self.classes).astype(np.int64))
            self.labels.append({"class_labels": labels, "boxes": draws.boxes(count).astype(np.float32)})

    @property
    def counts(self) -> list[int]:
        """How many objects each image shows."""
        return [len(image["boxes"]) for image in self.labels]


def _parameters(draws: Draws, config: dict[str, Any], **choices: tuple[Any, ...]) -> dict[str, Any]:
    return {"config": config | draws.options(**choices)} | draws.options(num_boxes=(2.5, 0.25))


_COSTS = {"class_cost": (0.0, 2.0), "bbox_cost": (0.5,), "giou_cost": (0.0, 4.0)}


def detr(draws: Draws, *, extra: int = 0, masks: bool = False) -> Drawn:
    """Predictions of the last layer and of all of them; extra is the number of classes for no object."""
    scene = _Scene(draws)
    tensors = _predictions(draws, scene, scene.classes + extra)
    if masks:
        _show_masks(draws, scene.labels)
        shape = (scene.images, scene.queries, draws.size(1, 3), draws.size(1, 3))
        tensors["pred_masks"] = draws.logits(*shape)
    config = _detr_config(scene, tensors)
    return Drawn(tensors, _parameters(draws, config, focal_alpha=(0.25, -1.0, 0.75), **_COSTS))


def _predictions(draws: Draws, scene: _Scene, classes: int) -> dict[str, Any]:
    shape = (scene.images, scene.queries)
    tensors: dict[str, Any] = {
        "logits": draws.logits(*shape, classes),
        "labels": scene.labels,
        "pred_boxes": draws.cast(draws.boxes(*shape)),
    }
    if draws.maybe():
        tensors["outputs_class"] = draws.logits(scene.layers, *shape, classes)
        tensors["outputs_coord"] = draws.cast(draws.boxes(scene.layers, *shape))
    return tensors


def _detr_config(scene: _Scene, tensors: dict[str, Any]) -> dict[str, Any]:
    layered = "outputs_class" in tensors
    return CONFIG | {"num_labels": scene.classes, "auxiliary_loss": layered, "decoder_layers": scene.layers}


def grounding_dino(draws: Draws) -> Drawn:
    """The classes of an image are rows of tokens; every image has as many."""
    scene, tokens = _Scene(draws, text=True), draws.classes(2, _MOST_CLASSES)
    tensors = _predictions(draws, scene, tokens)
    maps = [np.round(draws.uniform(scene.classes, tokens)).astype(np.float32) for _ in scene.labels]
    for label_map in maps:
        label_map[:, 0] = 1.0
    text_mask = np.ones((scene.images, 1, tokens), bool)
    if draws.maybe():
        text_mask[..., -1] = False
    tensors |= {"label_maps": maps, "text_mask": text_mask}
    two_stage = draws.maybe()
    if two_stage:
        shape = (scene.images, draws.size(1, draws.limits.max_rows))
        tensors["encoder_logits"] = draws.logits(*shape, tokens)
        tensors["encoder_pred_boxes"] = draws.cast(draws.boxes(*shape))
    config = _detr_config(scene, tensors) | {"two_stage": two_stage}
    return Drawn(tensors, _parameters(draws, config, focal_alpha=(0.25, -1.0), **_COSTS))


def lw_detr(draws: Draws) -> Drawn:
    """Queries in groups, and the encoder's proposals."""
    scene = _Scene(draws)
    tensors = _predictions(draws, scene, scene.classes)
    shape = (scene.images, draws.size(1, draws.limits.max_rows))
    tensors["enc_outputs_class"] = draws.logits(*shape, scene.classes)
    tensors["enc_outputs_coord"] = draws.cast(draws.boxes(*shape))
    config = _detr_config(scene, tensors) | {"group_detr": 1, "class_loss_coefficient": 1.5}
    return Drawn(tensors, _parameters(draws, config, group_detr=(2, 3), focal_alpha=(0.25, 0.75), **_COSTS))


def rf_detr(draws: Draws) -> Drawn:
    """The same with masks of all layers, and points that somebody gives, or a seed."""
    inputs, parameters = lw_detr(draws)[:2]
    _show_masks(draws, inputs["labels"])
    size = (draws.size(1, 3), draws.size(1, 3))
    names = {"logits": "pred_masks", "outputs_class": "outputs_masks", "enc_outputs_class": "enc_outputs_masks"}
    for name, masks in names.items():
        if name in inputs:
            inputs[masks] = draws.logits(*inputs[name].shape[:-1], *size)
    layers = len(inputs["outputs_class"]) + 1 if "outputs_class" in inputs else 2
    pairs = max(1, sum(len(image["boxes"]) for image in inputs["labels"])) * 3
    inputs |= _points(draws, layers, pairs, 3 * max(size))
    config = parameters["config"] | {"mask_point_sample_ratio": 16}
    config |= {"mask_class_loss_coefficient": 5.0, "mask_dice_loss_coefficient": 2.0}
    return Drawn(inputs, {**parameters, "config": config, **draws.options(seed=(1, 12))})


def mask2former(draws: Draws) -> Drawn:
    """Classes and masks of the last layer and of others, and points that somebody gives, or a seed."""
    scene = _Scene(draws)
    _show_masks(draws, scene.labels)
    shape, size = (scene.images, scene.queries), (draws.size(1, 3), draws.size(1, 3))
    inputs: dict[str, Any] = {
        "masks_queries_logits": draws.logits(*shape, *size),
        "class_queries_logits": draws.logits(*shape, scene.classes + 1),
        "mask_labels": [image["masks"] for image in scene.labels],
        "class_labels": [image["class_labels"] for image in scene.labels],
    }
    layers = draws.size(0, 2)
    if layers:
        inputs["auxiliary_masks_queries_logits"] = draws.logits(layers, *shape, *size)
        inputs["auxiliary_class_queries_logits"] = draws.logits(layers, *shape, scene.classes + 1)
    given = _points(draws, layers + 1, max(1, sum(scene.counts)), 6)
    if "matcher_points" in given:
        sets = np.broadcast_to(
            given["matcher_points"][:, None], (layers + 1, scene.images, *given["matcher_points"].shape[1:])
        )
        given["matcher_points"] = sets.copy()
    config = {"num_labels": scene.classes, "no_object_weight": 0.125, "class_weight": 2.0, "mask_weight": 5.0}
    config |= {"dice_weight": 5.0, "train_num_points": 2, "oversample_ratio": 3.0, "importance_sample_ratio": 0.75}
    choices = {"class_weight": (0.5,), "mask_weight": (0.0, 1.5), "dice_weight": (0.0, 2.5)}
    return Drawn(inputs | given, _parameters(draws, config, **choices) | draws.options(seed=(1, 12)))


def _points(draws: Draws, layers: int, pairs: int, candidates: int) -> dict[str, np.ndarray]:
    """Some of the arguments for points, which all formats have."""

    def points(*shape: int) -> np.ndarray:
        return (np.round(draws.uniform(*shape, 2) * 256) / 256).astype(np.float32)

    kind = draws.one_of("seed", "final", "candidates")
    if kind == "seed":
        return {}
    given = {"matcher_points": points(layers, draws.size(1, 4))}
    if kind == "final":
        return given | {"points": points(layers, pairs, draws.size(1, 4))}
    # Masks of up to three lines have as many points, of which one is random.
    return given | {
        "candidate_points": points(layers, pairs, candidates),
        "random_points": points(layers, pairs, 1),
    }


def _show_masks(draws: Draws, labels: list[dict[str, np.ndarray]]) -> None:
    """Add a mask to every object."""
    for image in labels:
        of_image = draws.uniform(len(image["boxes"]), draws.side(4), draws.side(4))
        image["masks"] = of_image.astype(np.float32) if draws.maybe() else of_image < 0.5


def rt_detr(draws: Draws, *, corners: bool = False, union: bool = False) -> Drawn:
    """Layers, the encoder's proposals, and queries for denoising before the others."""
    scene, layered = _Scene(draws), draws.maybe()
    proposals = scene.queries
    tensors = _denoising(draws, scene) if draws.maybe() else {}
    shape = (scene.images, scene.queries)
    tensors |= {
        "logits": draws.logits(*shape, scene.classes),
        "labels": scene.labels,
        "pred_boxes": draws.cast(draws.boxes(*shape)),
    }
    of_layers = (scene.images, scene.layers, scene.queries)
    if layered:
        tensors["outputs_class"] = draws.logits(*of_layers, scene.classes)
        tensors["outputs_coord"] = draws.cast(draws.boxes(*of_layers))
        tensors["enc_topk_logits"] = draws.logits(scene.images, proposals, scene.classes)
        tensors["enc_topk_bboxes"] = draws.cast(draws.boxes(scene.images, proposals))
    if layered and corners:
        tensors["predicted_corners"] = draws.logits(*of_layers, 4 * (_BINS + 1))
        tensors["initial_reference_points"] = draws.cast(draws.boxes(*of_layers))
    config = LAYERED_CONFIG | {"num_labels": scene.classes, "auxiliary_loss": layered, "max_num_bins": _BINS}
    choices: dict[str, tuple[Any, ...]] = (
        {"use_dense_one_to_one": (True, False), "mal_alpha": (None, 0.5)} if union else {}
    )
    costs = {f"matcher_{name}": values for name, values in _COSTS.items()}
    choices |= {"use_focal_loss": (True, False), "focal_loss_gamma": (2.0, 1.5)} | costs
    return Drawn(tensors, _parameters(draws, config, **choices))


def _denoising(draws: Draws, scene: _Scene) -> dict[str, Any]:
    """Groups of queries that know their objects, added to the scene's."""
    groups, step = draws.size(1, 2), max(1, *scene.counts)
    known = groups * step
    positive = [np.concatenate([step * group + np.arange(count) for group in range(groups)]) for count in scene.counts]
    split = np.array([known, scene.queries])
    scene.queries += known
    meta = {"dn_positive_idx": positive, "dn_num_group": np.array(groups), "dn_num_split": split}
    return {"denoising_meta_values": meta}
