"""The built-in cases of boxes, masks and the heads that match."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.cases.source import DTYPES, Case, Source
from refloss.files import flattened

if TYPE_CHECKING:
    from collections.abc import Callable

_CLASSES, _QUERIES, _LAYERS = 5, 6, 3
CONFIG: dict[str, Any] = {
    "num_labels": _CLASSES,
    "class_cost": 1.0,
    "bbox_cost": 5.0,
    "giou_cost": 2.0,
    "eos_coefficient": 0.125,
    "focal_alpha": 0.25,
    "auxiliary_loss": False,
    "two_stage": False,
    "decoder_layers": _LAYERS,
    "bbox_loss_coefficient": 5.0,
    "giou_loss_coefficient": 2.0,
    "mask_loss_coefficient": 1.0,
    "dice_loss_coefficient": 1.5,
}

LAYERED_CONFIG: dict[str, Any] = {
    "num_labels": _CLASSES,
    "matcher_class_cost": 2.0,
    "matcher_bbox_cost": 5.0,
    "matcher_giou_cost": 2.0,
    "matcher_alpha": 0.25,
    "matcher_gamma": 2.0,
    "use_focal_loss": True,
    "auxiliary_loss": True,
    "focal_loss_alpha": 0.75,
    "focal_loss_gamma": 2.0,
    "weight_loss_vfl": 1.0,
    "weight_loss_mal": 1.0,
    "weight_loss_bbox": 5.0,
    "weight_loss_giou": 2.0,
    "weight_loss_fgl": 0.15,
    "weight_loss_ddf": 1.5,
    "eos_coefficient": 1e-4,
    "max_num_bins": 8,
    "reg_scale": 4.0,
    "up": 0.5,
    "mal_alpha": None,
    "use_dense_one_to_one": True,
}


def _boxes(source: Source, *shape: int) -> np.ndarray:
    """Centres and sizes; coordinates of some 20 bits, so that every format but the 16-bit ones holds them."""
    centers, sizes = source.uniform(*shape, 2), 0.05 + 0.5 * source.uniform(*shape, 2)
    rounded: np.ndarray = np.concatenate([centers, sizes], axis=-1).astype(np.float32).astype(np.float64)
    return rounded


def _corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], axis=-1)


def overlap_cases(function: str, seed: int) -> list[Case]:
    """Pairs of boxes: in general, and where they touch, nest, coincide, are far apart or have no area."""
    source = Source(seed)
    first, second = _boxes(source, 7), _boxes(source, 7)
    unit = np.array([[0.0, 0.0, 1.0, 1.0]])
    special = {
        "identical": unit,
        "touching": np.array([[1.0, 0.0, 2.0, 1.0]]),
        "touching-corner": np.array([[1.0, 1.0, 2.0, 2.0]]),
        "inside": np.array([[0.25, 0.25, 0.5, 0.75]]),
        "apart": np.array([[3.0, 4.0, 5.0, 5.5]]),
        "no-area": np.array([[0.5, 0.5, 0.5, 0.75]]),
    }
    cotangent = source.normal(7)

    def case(name: str, a: np.ndarray, b: np.ndarray, grad_output: Any = -1.5, **parameters: Any) -> Case:
        return Case(f"{function}-{name}", function, {"boxes1": a, "boxes2": b}, parameters, grad_output)

    return [
        *(case(name, _corners(first).astype(dtype), _corners(second).astype(dtype)) for name, dtype in DTYPES.items()),
        case("centers", first.astype(np.float32), second.astype(np.float32), box_format="cxcywh"),
        case("sum", first, second, 2.0, box_format="cxcywh", reduction="sum"),
        case("none", first, second, cotangent, box_format="cxcywh", reduction="none"),
        *(case(name, unit, other, 0.75) for name, other in special.items()),
    ]


def focal_cases() -> list[Case]:
    """Sigmoid focal loss."""
    source = Source(31)
    logits = source.normal(4, 7) * 4.0
    hard, soft = (source.uniform(4, 7) < 0.3).astype(np.float32), source.uniform(4, 7).astype(np.float32)
    cotangent = source.normal(4, 7)

    def case(
        name: str, targets: np.ndarray = hard, dtype: Any = np.float32, grad_output: Any = -2.0, **parameters: Any
    ) -> Case:
        inputs = {"inputs": logits.astype(dtype), "targets": targets}
        return Case(f"sigmoid_focal-{name}", "sigmoid_focal", inputs, parameters, grad_output)

    return [
        *(case(name, dtype=dtype) for name, dtype in DTYPES.items()),
        case("sum", reduction="sum", num_boxes=3.0),
        case("none", reduction="none", grad_output=cotangent),
        case("soft", soft, num_boxes=2.0),
        case("soft-gamma", soft, gamma=1.5, alpha=0.6, reduction="sum"),
        case("no-alpha", alpha=-1.0),
        case("no-gamma", gamma=0.0, grad_output=0.5),
    ]


def dice_cases() -> list[Case]:
    """Dice loss."""
    source = Source(32)
    logits = source.normal(3, 5, 6) * 4.0
    hard, soft = (source.uniform(3, 5, 6) < 0.4).astype(np.float32), source.uniform(3, 5, 6).astype(np.float32)

    def case(
        name: str, targets: np.ndarray = hard, dtype: Any = np.float32, grad_output: Any = -2.0, **parameters: Any
    ) -> Case:
        inputs = {"inputs": logits.astype(dtype), "targets": targets}
        return Case(f"dice-{name}", "dice", inputs, parameters, grad_output)

    confident = np.where(hard > 0, 60.0, -60.0).astype(np.float32)
    return [
        *(case(name, dtype=dtype) for name, dtype in DTYPES.items()),
        case("boxes", num_boxes=4.0),
        case("none", reduction="none", grad_output=source.normal(3)),
        case("soft", soft, grad_output=0.5),
        case("empty-target", np.zeros_like(hard)),
        case("full-target", np.ones_like(hard)),
        Case("dice-confident", "dice", {"inputs": confident, "targets": hard}, {}, 1e6),
    ]


class _Scene:
    """Predictions for three images, and what they show."""

    def __init__(self, seed: int, classes: int, counts: tuple[int, ...] = (3, 0, 2)) -> None:
        source = Source(seed)
        images = len(counts)
        self.logits = source.normal(_LAYERS, images, _QUERIES, classes) * 2.0
        self.boxes = _boxes(source, _LAYERS, images, _QUERIES)
        self.masks = source.normal(images, _QUERIES, 4, 5) * 3.0
        self.labels: list[dict[str, np.ndarray]] = [
            {
                "class_labels": source.integers(_CLASSES, count),
                "boxes": _boxes(source, count).astype(np.float32),
                "masks": source.uniform(count, 9 + i, 11 - i) < 0.4,
            }
            for i, count in enumerate(counts)
        ]
        self.maps = [(source.uniform(_CLASSES, classes) < 0.4).astype(np.float32) for _ in counts]
        for own in self.maps:
            own[:, 0] = 1.0
        self.text_mask = np.ones((images, 1, classes), bool)
        self.text_mask[:, :, -1] = False

    def inputs(self, dtype: Any, *, masks: bool, text: bool, layers: bool, encoder: bool) -> dict[str, np.ndarray]:
        """The arguments by name; lists are taken apart."""
        keys = ("class_labels", "boxes", *(("masks",) if masks else ()))
        arguments: dict[str, Any] = {
            "logits": self.logits[-1].astype(dtype),
            "labels": [{key: image[key] for key in keys} for image in self.labels],
            "pred_boxes": self.boxes[-1].astype(dtype),
        }
        if masks:
            arguments["pred_masks"] = self.masks.astype(dtype)
        if layers:
            arguments |= {"outputs_class": self.logits.astype(dtype), "outputs_coord": self.boxes.astype(dtype)}
        if text:
            arguments |= {"label_maps": self.maps, "text_mask": self.text_mask}
        if encoder:
            encoded = {"encoder_logits": self.logits[0] * 0.5, "encoder_pred_boxes": self.boxes[1]}
            arguments |= {name: value.astype(dtype) for name, value in encoded.items()}
        return {key: part for name, value in arguments.items() for key, part in flattened(name, value).items()}


def head_cases(function: str, seed: int, classes: int, *, masks: bool = False, text: bool = False) -> list[Case]:
    """The cases of a head that matches."""
    scene = _Scene(seed, classes)

    def case(
        name: str,
        shown: _Scene = scene,
        dtype: Any = np.float32,
        grad_output: float = -1.5,
        *,
        layers: bool = False,
        encoder: bool = False,
        num_boxes: float | None = None,
        **config: Any,
    ) -> Case:
        inputs = shown.inputs(dtype, masks=masks, text=text, layers=layers, encoder=encoder)
        parameters: dict[str, Any] = {"config": CONFIG | {"auxiliary_loss": layers, "two_stage": encoder} | config}
        if num_boxes is not None:
            parameters["num_boxes"] = num_boxes
        return Case(f"{function}-{name}", function, inputs, parameters, grad_output)

    perfect = _Scene(seed + 1, classes)
    for image, own in enumerate(perfect.labels):
        perfect.boxes[-1, image, : len(own["boxes"])] = own["boxes"]
    cases = [
        *(case(name, dtype=dtype) for name, dtype in DTYPES.items()),
        case("layers", layers=True, grad_output=0.75),
        case("fewer-weights", layers=True, decoder_layers=2),
        case("no-objects", _Scene(seed + 2, classes, (0, 0))),
        case("more-objects-than-queries", _Scene(seed + 3, classes, (8, 1))),
        case("perfect-boxes", perfect, grad_output=2.0),
        case("num-boxes", num_boxes=2.5),
        case("num-boxes-clamped", num_boxes=0.25),
        case("costs", class_cost=2.0, bbox_cost=0.5, giou_cost=4.0, layers=True),
    ]
    return [*cases, case("encoder", layers=True, encoder=True)] if text else cases


def varifocal_cases() -> list[Case]:
    """Varifocal loss."""
    source = Source(35)
    logits = source.normal(4, 7) * 4.0
    meant = source.uniform(4, 7) < 0.4
    targets = (source.uniform(4, 7) * meant).astype(np.float32)

    def case(
        name: str,
        dtype: Any = np.float32,
        grad_output: Any = -2.0,
        x: np.ndarray = logits,
        t: np.ndarray = targets,
        **parameters: Any,
    ) -> Case:
        inputs = {"inputs": x.astype(dtype), "targets": t.astype(np.float32)}
        return Case(f"varifocal-{name}", "varifocal", inputs, parameters, grad_output)

    return [
        *(case(name, dtype) for name, dtype in DTYPES.items()),
        case("sum", reduction="sum", num_boxes=3.0),
        case("none", reduction="none", grad_output=source.normal(4, 7)),
        case("other-focus", alpha=0.25, gamma=1.5, grad_output=0.5),
        case("no-focus", alpha=1.0, gamma=0.0),
        case("nothing-meant", t=np.zeros((4, 7)), grad_output=0.25),
        case("perfect-boxes", t=meant, grad_output=-0.75),
        # The gradient where a class has learnt its quality is what float32 cannot tell from 0.
        case("learnt", x=np.where(meant, np.log(targets / (1.0 - targets) + ~meant), logits), grad_output=1e3),
        case("confident", x=logits * 25.0, grad_output=1e3),
        case("trailing-axes", x=logits.reshape(2, 2, 7), t=targets.reshape(2, 2, 7)),
    ]


class _Layers:
    """Predictions of all layers for some images, the first queries for denoising, and what the images show."""

    groups, known = 2, 12

    def __init__(self, seed: int, counts: tuple[int, ...] = (3, 0, 2)) -> None:
        source, images = Source(seed), len(counts)
        shape = (images, _LAYERS, self.known + _QUERIES)
        bins = LAYERED_CONFIG["max_num_bins"] + 1
        self.logits = source.normal(*shape, _CLASSES) * 2.0
        self.boxes = _boxes(source, *shape)
        self.corners = source.normal(*shape, 4 * bins)
        self.references = _boxes(source, *shape)
        self.proposals = source.normal(images, _QUERIES, _CLASSES), _boxes(source, images, _QUERIES)
        self.labels = [
            {"class_labels": source.integers(_CLASSES, count), "boxes": _boxes(source, count).astype(np.float32)}
            for count in counts
        ]
        step = self.known // self.groups
        self.meta = {
            "dn_positive_idx": [
                np.concatenate([step * group + np.arange(count) for group in range(self.groups)]) for count in counts
            ],
            "dn_num_group": np.array(self.groups),
            "dn_num_split": np.array([self.known, _QUERIES]),
        }

    def inputs(self, dtype: Any, *, layers: bool, noise: bool, corners: bool) -> dict[str, np.ndarray]:
        """The arguments by name; lists are taken apart."""
        own = slice(0 if noise else self.known, None)
        arguments: dict[str, Any] = {
            "logits": self.logits[:, -1, own],
            "pred_boxes": self.boxes[:, -1, own],
        }
        if layers:
            arguments |= {"outputs_class": self.logits[:, :, own], "outputs_coord": self.boxes[:, :, own]}
            arguments |= dict(zip(("enc_topk_logits", "enc_topk_bboxes"), self.proposals, strict=True))
        if layers and corners:
            arguments["predicted_corners"] = self.corners[:, :, own]
            arguments["initial_reference_points"] = self.references[:, :, own]
        arguments = {name: value.astype(dtype) for name, value in arguments.items()}
        arguments["labels"] = self.labels
        if noise:
            arguments["denoising_meta_values"] = self.meta
        return {key: part for name, value in arguments.items() for key, part in flattened(name, value).items()}


def layered_cases(function: str, seed: int, *, corners: bool = False) -> list[Case]:
    """The cases of a head that follows RT-DETR."""
    scene = _Layers(seed)

    def case(
        name: str,
        shown: _Layers = scene,
        dtype: Any = np.float32,
        grad_output: float = -1.5,
        *,
        layers: bool = True,
        noise: bool = True,
        num_boxes: float | None = None,
        **config: Any,
    ) -> Case:
        inputs = shown.inputs(dtype, layers=layers, noise=noise, corners=corners)
        parameters: dict[str, Any] = {"config": LAYERED_CONFIG | {"auxiliary_loss": layers} | config}
        if num_boxes is not None:
            parameters["num_boxes"] = num_boxes
        return Case(f"{function}-{name}", function, inputs, parameters, grad_output)

    outside = _Layers(seed + 1)
    outside.boxes[..., 0] += 0.6
    outside.boxes[..., 1] -= 0.6
    taught = _Layers(seed + 2)
    taught.corners[:, 0] = taught.corners[:, -1] + 1e-3 * taught.corners[:, 0]
    taught.corners[:, 1] = taught.corners[:, -1]
    own = [
        case("outside", outside, grad_output=0.75),
        case("nearly-taught", taught, noise=False),
        case("wide-bins", up=4.0, reg_scale=8.0, noise=False),
    ]
    return [
        *(case(name, dtype=dtype) for name, dtype in DTYPES.items()),
        case("last-layer", layers=False, noise=False),
        case("last-layer-denoising", layers=False),
        case("no-denoising", noise=False, grad_output=0.75),
        case("no-objects", _Layers(seed + 3, (0, 0))),
        case("more-objects-than-queries", _Layers(seed + 4, (8, 1)), noise=False),
        case("softmax-costs", noise=False, use_focal_loss=False),
        case("num-boxes", num_boxes=2.5),
        case("other-focus", noise=False, focal_loss_alpha=0.25, focal_loss_gamma=1.5, mal_alpha=0.5),
        *(own if corners else []),
        *([case("one-to-one", use_dense_one_to_one=False)] if function.startswith("deim") else []),
    ]


def grouped_cases(function: str, seed: int) -> list[Case]:
    """The cases of a head whose queries are matched in groups."""
    scene = _Scene(seed, _CLASSES)

    def case(
        name: str,
        shown: _Scene = scene,
        dtype: Any = np.float32,
        grad_output: float = -1.5,
        *,
        layers: bool = True,
        num_boxes: float | None = None,
        **config: Any,
    ) -> Case:
        inputs = shown.inputs(dtype, masks=False, text=False, layers=layers, encoder=False)
        inputs["enc_outputs_class"] = (shown.logits[0] * 0.5).astype(dtype)
        inputs["enc_outputs_coord"] = shown.boxes[1].astype(dtype)
        own = {"auxiliary_loss": layers, "group_detr": 2, "class_loss_coefficient": 1.5} | config
        parameters: dict[str, Any] = {"config": CONFIG | own}
        if num_boxes is not None:
            parameters["num_boxes"] = num_boxes
        return Case(f"{function}-{name}", function, inputs, parameters, grad_output)

    return [
        *(case(name, dtype=dtype) for name, dtype in DTYPES.items()),
        case("last-layer", layers=False),
        case("one-group", group_detr=1, grad_output=0.75),
        case("groups-with-a-rest", group_detr=4),
        case("fewer-weights", decoder_layers=2),
        case("no-objects", _Scene(seed + 2, _CLASSES, (0, 0))),
        case("more-objects-than-queries", _Scene(seed + 3, _CLASSES, (4, 1))),
        case("num-boxes", num_boxes=2.5),
        case("other-focus", focal_alpha=0.75),
    ]


BUILDERS: dict[str, Callable[[], list[Case]]] = {
    "sigmoid_focal": focal_cases,
    "dice": dice_cases,
    "iou": lambda: overlap_cases("iou", 33),
    "giou": lambda: overlap_cases("giou", 34),
    "object_detection": lambda: head_cases("object_detection", 40, _CLASSES + 1),
    "segmentation": lambda: head_cases("segmentation", 50, _CLASSES + 1, masks=True),
    "deformable_detr_object_detection": lambda: head_cases("deformable_detr_object_detection", 60, _CLASSES),
    "deformable_detr_segmentation": lambda: head_cases("deformable_detr_segmentation", 70, _CLASSES, masks=True),
    "grounding_dino_object_detection": lambda: head_cases("grounding_dino_object_detection", 80, 8, text=True),
    "varifocal": varifocal_cases,
    "rt_detr_object_detection": lambda: layered_cases("rt_detr_object_detection", 90),
    "d_fine_object_detection": lambda: layered_cases("d_fine_object_detection", 100, corners=True),
    "deimv2_object_detection": lambda: layered_cases("deimv2_object_detection", 110, corners=True),
    "lw_detr_object_detection": lambda: grouped_cases("lw_detr_object_detection", 120),
}
