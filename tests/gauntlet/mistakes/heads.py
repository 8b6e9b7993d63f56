"""Heads that match objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gauntlet.honest import DETR, FOCAL, LAYERED
from tests.gauntlet.mistakes.mistake import Mistake, has, stepped
from tests.gauntlet.wrapped import Head, Unclamped

if TYPE_CHECKING:
    from refloss.cases.source import Case


def entry(name: str, value: Any, report: str, functions: tuple[str, ...], words: str = "") -> Mistake:
    """An entry of the configuration that is not read: another value has its place."""
    words = words or f"{name} in config is ignored"
    kernel = stepped(Head, config=lambda self, config: config | {name: value})
    return Mistake(
        words,
        report,
        functions,
        kernel,
        words,
        lambda case: case.parameters["config"].get(name, value) != value,
        f"where {name} is not {value}",
    )


def swapped_alpha(self: Any, config: dict[str, Any]) -> dict[str, Any]:
    return config | {
        name: 1 - config[name] for name in ("focal_alpha", "focal_loss_alpha") if config.get(name, -1) >= 0
    }


def without_number(self: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name != "num_boxes"}


def has_layers(case: Case) -> bool:
    """Whether layers beside the last have a loss."""
    return "outputs_class" in case.inputs and bool(case.parameters["config"].get("auxiliary_loss"))


HEAD_MISTAKES = [
    entry("eos_coefficient", 1.0, "facebookresearch/detr#356", DETR, "eos coefficient ignored"),
    entry("bbox_loss_coefficient", 1.0, "huggingface/transformers#38559", (*DETR, *FOCAL)),
    entry("giou_loss_coefficient", 1.0, "huggingface/transformers#38559", (*DETR, *FOCAL)),
    entry("weight_loss_bbox", 1.0, "huggingface/transformers#38559", LAYERED),
    entry("class_cost", 1.0, "huggingface/transformers#38559", (*DETR, *FOCAL)),
    Mistake(
        "no auxiliary loss of layers",
        "huggingface/transformers#26087",
        DETR,
        stepped(Head, config=lambda self, config: config | {"auxiliary_loss": False}),
        "the auxiliary loss is left out",
        has_layers,
        "where other layers have a loss",
    ),
    Mistake(
        "α of a head swapped",
        "unsky/focal-loss#9",
        (*FOCAL, "rt_detr_object_detection"),
        stepped(Head, config=swapped_alpha),
        "α is swapped",
    ),
    Mistake(
        "num_boxes of a head",
        "facebookresearch/detr#267",
        (*DETR, *FOCAL, *LAYERED),
        stepped(Head, parameters=without_number),
        "num_boxes is ignored",
        has("num_boxes"),
        "where num_boxes is given",
    ),
    Mistake(
        "num_boxes below 1",
        "facebookresearch/detr#299",
        DETR,
        Unclamped,
        "num_boxes is not at least 1",
        lambda case: case.parameters.get("num_boxes", 1.0) < 1,
        "where num_boxes is below 1",
    ),
    Mistake(
        "upstream of a head ignored",
        "pytorch/pytorch#11750",
        (*DETR, *FOCAL, *LAYERED),
        stepped(Head, upstream=lambda self, cotangent, like: np.ones(())),
        "upstream gradient ignored",
    ),
]
