"""Golden cases of heads that match: predictions for a few images, and what they show."""

from __future__ import annotations

from typing import Any

import numpy as np

from refloss.cases.boxes import boxes_of
from refloss.cases.formats import in_every_format
from refloss.cases.source import DTYPES, Case, Source
from refloss.files import flattened

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


# Of every entry another value than the usual one; those of costs are such that each decides some match.
_OPTIONS: dict[str, Any] = {
    "class_cost": 6.0,
    "bbox_cost": 1.0,
    "giou_cost": 0.5,
    "eos_coefficient": 0.375,
    "focal_alpha": 0.625,
    "decoder_layers": 2,
    "bbox_loss_coefficient": 1.75,
    "giou_loss_coefficient": 4.5,
    "mask_loss_coefficient": 2.25,
    "dice_loss_coefficient": 3.5,
}
_LAYERED_OPTIONS: dict[str, Any] = {
    "matcher_class_cost": 6.0,
    "matcher_bbox_cost": 1.0,
    "matcher_giou_cost": 0.5,
    "matcher_alpha": 0.75,
    "matcher_gamma": 1.0,
    "focal_loss_alpha": 0.375,
    "focal_loss_gamma": 1.5,
    "weight_loss_vfl": 2.5,
    "weight_loss_mal": 3.5,
    "weight_loss_bbox": 1.75,
    "weight_loss_giou": 4.5,
    "weight_loss_fgl": 0.75,
    "weight_loss_ddf": 0.625,
    "eos_coefficient": 0.375,
    "reg_scale": 6.0,
    "up": 1.5,
    "mal_alpha": 0.5,
    "use_dense_one_to_one": False,
}
_MANY_CLASSES = 1025  # more than a block
_SATURATED = 32.0  # what logits are multiplied by: probabilities are no float32 any more


class _Scene:
    """Predictions for three images, and what they show: some of the last classes of so many, and masks.

    The heights and widths are those of predicted masks and of the first image's objects.
    """

    def __init__(
        self,
        seed: int,
        classes: int,
        counts: tuple[int, ...] = (3, 0, 2),
        sides: tuple[tuple[int, int], tuple[int, int]] = ((4, 5), (9, 11)),
        first_label: int = 0,
    ) -> None:
        source, (height, width) = Source(seed), sides[1]
        images = len(counts)
        self.logits = source.normal(_LAYERS, images, _QUERIES, classes) * 2.0
        self.boxes = boxes_of(source, _LAYERS, images, _QUERIES)
        self.masks = source.normal(images, _QUERIES, *sides[0]) * 3.0
        self.labels: list[dict[str, np.ndarray]] = [
            {
                "class_labels": first_label + source.integers(_CLASSES, count),
                "boxes": boxes_of(source, count).astype(np.float32),
                "masks": source.uniform(count, height + i, width - i) < 0.4,
            }
            for i, count in enumerate(counts)
        ]
        self.maps = [(source.uniform(_CLASSES, classes) < 0.4).astype(np.float32) for _ in counts]
        for label_map in self.maps:
            label_map[:, 0] = 1.0
        self.text_mask = np.ones((images, 1, classes), bool)
        self.text_mask[:, :, -1 if classes < _MANY_CLASSES else -classes // 4 :] = False

    def saturated(self) -> _Scene:
        """The same, of logits that are far from 0."""
        self.logits, self.masks = self.logits * _SATURATED, self.masks * _SATURATED
        return self

    def with_sure_masks(self) -> _Scene:
        """The same, of masks whose logits are far from 0."""
        self.masks = self.masks * _SATURATED
        return self

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


def detr_cases(
    function: str,
    *,
    seed: int,
    classes: int = _CLASSES,
    masks: bool = False,
    text: bool = False,
    deciding: int | None = None,
) -> list[Case]:
    """Cases of a head that follows DETR; classes are those of its logits.

    deciding is the seed of a scene in which each cost decides some match, in every format.
    """
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
    for image, shown in enumerate(perfect.labels):
        perfect.boxes[-1, image, : len(shown["boxes"])] = shown["boxes"]
    cases = [
        *(case(name, dtype=dtype) for name, dtype in DTYPES.items()),
        case("layers", layers=True, grad_output=0.75),
        case("fewer-weights", layers=True, decoder_layers=2),
        case("no-objects", _Scene(seed + 2, classes, (0, 0))),
        case("more-objects-than-queries", _Scene(seed + 3, classes, (8, 1))),
        case("perfect-boxes", perfect, grad_output=2.0),
        case("num-boxes", num_boxes=2.5),
        case("num-boxes-clamped", num_boxes=0.25),
        *(case(f"num-boxes-clamped-{name}", dtype=DTYPES[name], num_boxes=0.25) for name in [*DTYPES][1:]),
        case("costs", class_cost=2.0, bbox_cost=0.5, giou_cost=4.0, layers=True),
    ]
    if text:
        cases.append(case("encoder", layers=True, encoder=True))
    options = case(
        "options",
        _Scene(seed + 4 if deciding is None else deciding, classes),
        np.float64,
        layers=True,
        encoder=text,
        num_boxes=2.5,
        **_OPTIONS,
    )
    saturated = case("saturated", _Scene(seed + 5, classes).saturated(), np.float64)
    first = 0 if text else _MANY_CLASSES - classes
    many = _Scene(seed + 6, _MANY_CLASSES, (3, 1), first_label=first)
    cases += in_every_format([options, saturated])
    cases.append(case(f"classes-{_MANY_CLASSES}", many, grad_output=2.5, num_labels=_CLASSES + first))
    if masks:
        tiles = _Scene(seed + 7, classes, (3, 1), ((17, 33), (67, 131)))
        cases.append(case("tiles", tiles, grad_output=20.0))
    return cases


class _Layers:
    """Predictions of all layers for some images, the first queries for denoising, and what the images show."""

    groups, known = 2, 12

    def __init__(self, seed: int, counts: tuple[int, ...] = (3, 0, 2), classes: int = _CLASSES) -> None:
        source, images = Source(seed), len(counts)
        shape = (images, _LAYERS, self.known + _QUERIES)
        bins = LAYERED_CONFIG["max_num_bins"] + 1
        self.logits = source.normal(*shape, classes) * 2.0
        self.boxes = boxes_of(source, *shape)
        self.corners = source.normal(*shape, 4 * bins)
        self.references = boxes_of(source, *shape)
        self.proposals = source.normal(images, _QUERIES, classes), boxes_of(source, images, _QUERIES)
        self.labels = [
            {
                "class_labels": classes - _CLASSES + source.integers(_CLASSES, count),
                "boxes": boxes_of(source, count).astype(np.float32),
            }
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

    def saturated(self) -> _Layers:
        """The same, of logits that are far from 0."""
        self.logits = self.logits * _SATURATED
        return self

    def inputs(self, dtype: Any, *, layers: bool, noise: bool, corners: bool) -> dict[str, np.ndarray]:
        """The arguments by name; lists are taken apart."""
        queries = slice(0 if noise else self.known, None)
        arguments: dict[str, Any] = {
            "logits": self.logits[:, -1, queries],
            "pred_boxes": self.boxes[:, -1, queries],
        }
        if layers:
            arguments |= {"outputs_class": self.logits[:, :, queries], "outputs_coord": self.boxes[:, :, queries]}
            arguments |= dict(zip(("enc_topk_logits", "enc_topk_bboxes"), self.proposals, strict=True))
        if layers and corners:
            arguments["predicted_corners"] = self.corners[:, :, queries]
            arguments["initial_reference_points"] = self.references[:, :, queries]
        arguments = {name: value.astype(dtype) for name, value in arguments.items()}
        arguments["labels"] = self.labels
        if noise:
            arguments["denoising_meta_values"] = self.meta
        return {key: part for name, value in arguments.items() for key, part in flattened(name, value).items()}


def layered_cases(function: str, *, seed: int, deciding: int, corners: bool = False, union: bool = False) -> list[Case]:
    """Cases of a head that follows RT-DETR; with a union of layers' matchings if it has one.

    deciding is the seed of a scene in which each cost, and each of its parameters, decides some match.
    """
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
    of_corners = [
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
        *(of_corners if corners else []),
        *([case("one-to-one", use_dense_one_to_one=False)] if union else []),
        *in_every_format(
            [
                case("options", _Layers(deciding), np.float64, num_boxes=2.5, **_LAYERED_OPTIONS),
                case("saturated", _Layers(seed + 6).saturated(), np.float64, layers=False, noise=False),
            ]
        ),
        case(
            f"classes-{_MANY_CLASSES}",
            _Layers(seed + 7, (3, 1), _MANY_CLASSES),
            grad_output=2.5,
            layers=False,
            noise=False,
            num_labels=_MANY_CLASSES,
        ),
    ]


# Of masks at points; and other values than the usual ones.
_POINT_CONFIG: dict[str, Any] = {
    "mask_class_loss_coefficient": 5.0,
    "mask_dice_loss_coefficient": 2.0,
    "mask_point_sample_ratio": 2,
}
_POINT_OPTIONS: dict[str, Any] = {
    "mask_class_loss_coefficient": 3.5,
    "mask_dice_loss_coefficient": 9.0,
    "mask_point_sample_ratio": 3,
}
_PAIRS = 12  # at most


def short_points(source: Source, *shape: int) -> np.ndarray:
    """Points [..., 2] whose places among pixels no type rounds."""
    return (np.round(source.uniform(*shape, 2) * 1024) / 1024).astype(np.float32)


def _points(seed: int, layers: int, kind: str) -> dict[str, np.ndarray]:
    """Points of every layer for masks of 4 × 5 pixels: those that are looked at, or what they are chosen from."""
    source = Source(seed)
    given = {"matcher_points": short_points(source, layers, 7)}
    if kind == "final":
        return given | {"points": short_points(source, layers, _PAIRS, 9)}
    candidates, random = short_points(source, layers, _PAIRS, 21), short_points(source, layers, _PAIRS, 3)
    return given | {"candidate_points": candidates, "random_points": random}


_MASK_CONFIG: dict[str, Any] = {
    "num_labels": _CLASSES,
    "no_object_weight": 0.125,
    "class_weight": 2.0,
    "mask_weight": 5.0,
    "dice_weight": 4.0,
    "train_num_points": 10,
    "oversample_ratio": 3.0,
    "importance_sample_ratio": 0.75,
}
_MASK_OPTIONS: dict[str, Any] = {
    "no_object_weight": 0.375,
    "class_weight": 9.0,
    "mask_weight": 1.5,
    "dice_weight": 2.5,
    "train_num_points": 13,
    "oversample_ratio": 2.0,
    "importance_sample_ratio": 0.5,
}


def mask_cases(function: str, *, seed: int, deciding: int) -> list[Case]:
    """Cases of a head that predicts classes and masks alone.

    deciding is the seed of a scene in which each cost decides some match, in every format.
    """
    scene = _Scene(seed, _CLASSES + 1)

    def case(
        name: str,
        shown: _Scene = scene,
        dtype: Any = np.float32,
        grad_output: float = -1.5,
        *,
        layers: bool = True,
        num_boxes: float | None = None,
        points: str = "final",
        **config: Any,
    ) -> Case:
        inputs = {"masks_queries_logits": shown.masks, "class_queries_logits": shown.logits[-1]}
        if layers:
            shape = (_LAYERS - 1, *shown.masks.shape)
            inputs["auxiliary_masks_queries_logits"] = Source(seed + 10).normal(*shape) * 3.0
            inputs["auxiliary_class_queries_logits"] = shown.logits[:-1]
        inputs = {key: value.astype(dtype) for key, value in inputs.items()}
        for i, image in enumerate(shown.labels):
            inputs |= {f"mask_labels.{i}": image["masks"], f"class_labels.{i}": image["class_labels"]}
        if points != "seed":
            given = _points(seed + 11, _LAYERS if layers else 1, points)
            images = len(shown.labels)
            inputs |= given | {"matcher_points": short_points(Source(seed + 12), _LAYERS if layers else 1, images, 7)}
        parameters: dict[str, Any] = {"config": _MASK_CONFIG | config}
        parameters |= {"seed": 12} if points == "seed" else {}
        parameters |= {} if num_boxes is None else {"num_boxes": num_boxes}
        return Case(f"{function}-{name}", function, inputs, parameters, grad_output)

    soft = _Scene(seed + 1, _CLASSES + 1)
    for k, image in enumerate(soft.labels):
        image["masks"] = Source(seed + 13 + k).uniform(*image["masks"].shape).astype(np.float32)
    weights = {name: _MASK_OPTIONS[name] for name in ("no_object_weight", "class_weight", "mask_weight", "dice_weight")}
    options = case("options", _Scene(deciding, _CLASSES + 1), np.float64, num_boxes=2.5, points="candidates", **weights)
    return [
        *(case(name, dtype=dtype) for name, dtype in DTYPES.items()),
        case("last-layer", layers=False),
        case("soft-masks", soft, grad_output=0.75),
        case("no-objects", _Scene(seed + 2, _CLASSES + 1, (0, 0))),
        case("more-objects-than-queries", _Scene(seed + 3, _CLASSES + 1, (8, 1))),
        case("num-boxes", num_boxes=2.5),
        case("candidates", points="candidates", layers=False),
        case("sure-masks", _Scene(seed + 5, _CLASSES + 1).with_sure_masks(), layers=False),
        *in_every_format([options, case("seed", dtype=np.float64, points="seed", layers=False, **_MASK_OPTIONS)]),
    ]


def grouped_cases(function: str, *, seed: int, masks: bool = False, deciding: int | None = None) -> list[Case]:
    """The cases of a head whose queries are matched in groups; with masks at points if it has them.

    deciding is the seed of a scene in which each cost decides some match, in every format.
    """
    scene = _Scene(seed, _CLASSES)

    def case(
        name: str,
        shown: _Scene = scene,
        dtype: Any = np.float32,
        grad_output: float = -1.5,
        *,
        layers: bool = True,
        num_boxes: float | None = None,
        points: str = "final",
        **config: Any,
    ) -> Case:
        inputs = shown.inputs(dtype, masks=masks, text=False, layers=layers, encoder=False)
        inputs["enc_outputs_class"] = (shown.logits[0] * 0.5).astype(dtype)
        inputs["enc_outputs_coord"] = shown.boxes[1].astype(dtype)
        common = {"auxiliary_loss": layers, "group_detr": 2, "class_loss_coefficient": 1.5}
        if masks:
            of_layers = Source(seed + 10).normal(_LAYERS, *shown.masks.shape) * 3.0
            if layers:
                inputs["outputs_masks"] = of_layers.astype(dtype)
            inputs["enc_outputs_masks"] = (of_layers[0] * 0.5).astype(dtype)
            inputs |= {} if points == "seed" else _points(seed + 11, _LAYERS + 1 if layers else 2, points)
            common |= _POINT_CONFIG
        parameters: dict[str, Any] = {"config": CONFIG | common | config}
        if num_boxes is not None:
            parameters["num_boxes"] = num_boxes
        if points == "seed":
            parameters["seed"] = 12
        return Case(f"{function}-{name}", function, inputs, parameters, grad_output)

    options = dict(num_boxes=2.5, class_loss_coefficient=2.5, group_detr=3, **_OPTIONS)
    with_points = [
        case("candidates", points="candidates"),
        *in_every_format([case("seed", dtype=np.float64, points="seed", layers=False, **_POINT_OPTIONS)]),
        case("sure-masks", _Scene(seed + 5, _CLASSES).with_sure_masks(), layers=False),
    ]
    if masks:
        options |= {**_POINT_OPTIONS, "points": "candidates", "mask_point_sample_ratio": 2}
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
        *(with_points if masks else []),
        *in_every_format(
            [case("options", _Scene(seed + 4 if deciding is None else deciding, _CLASSES), np.float64, **options)]
        ),
        case(
            f"classes-{_MANY_CLASSES}",
            _Scene(seed + 6, _MANY_CLASSES, (3, 1), first_label=_MANY_CLASSES - _CLASSES),
            grad_output=2.5,
            layers=False,
            num_labels=_MANY_CLASSES,
        ),
    ]
