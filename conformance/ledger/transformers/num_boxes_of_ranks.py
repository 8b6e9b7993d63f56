"""On W processes box losses of DETR's family are W times too large.

num_boxes is averaged by accelerate's reduce, whose default is the mean, and then divided by the number of processes
again. How large a box's loss is beside a class's depends on how many machines train.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from transformers.loss import loss_for_object_detection

import refloss
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="many_machines",
    case="`num_boxes` on W ranks",
    theirs=(
        "transformers takes accelerate's `reduce`, whose default is the mean, and divides by W once more: box "
        "losses are W times too large, as long as there are W² objects"
    ),
    ours="not followed: `num_boxes` is what it is said to be",
    seen={"transformers": "5.24.0"},
)


def num_boxes_of_two_processes(own: int, other: int) -> float:
    """What ImageLoss divides by on a process that has so many objects beside another one's."""
    given: list[float] = []
    state = SimpleNamespace(_shared_state={"of": "two processes"}, num_processes=2)

    def get_loss(*arguments: Any) -> dict[str, Any]:
        given.append(arguments[-1])
        return {}

    matcher = loss_for_object_detection.HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    criterion = loss_for_object_detection.ImageLoss(matcher, 3, 0.1, ["boxes"])
    boxes = torch.full((1, own, 4), 0.3)
    outputs = {"logits": torch.zeros(1, own, 4), "pred_boxes": boxes}
    with (
        mock.patch.object(loss_for_object_detection, "is_accelerate_available", return_value=True),
        mock.patch.object(loss_for_object_detection, "PartialState", _states(state), create=True),
        mock.patch.object(loss_for_object_detection, "reduce", lambda mine: (mine + other) / 2, create=True),
        mock.patch.object(loss_for_object_detection.ImageLoss, "get_loss", get_loss),
    ):
        criterion(outputs, [{"class_labels": torch.zeros(own, dtype=torch.int64), "boxes": boxes[0]}])
    return float(given[0])


def _states(state: Any) -> Any:
    """A class whose instances are this one."""

    class State:
        _shared_state = state._shared_state

        def __new__(cls) -> Any:
            return state

    return State


def reproduce() -> Iterator[Answer]:
    # Of 4 and 8 objects each process should divide by 6.
    logits, boxes = np.zeros((1, 4, 4)), np.full((1, 4, 4), 0.3)
    labels = [{"class_labels": np.zeros(4, np.int64), "boxes": boxes[0]}]
    config = {
        "num_labels": 3,
        "class_cost": 1,
        "bbox_cost": 5,
        "giou_cost": 2,
        "eos_coefficient": 0.1,
        "bbox_loss_coefficient": 5,
        "giou_loss_coefficient": 2,
        "auxiliary_loss": False,
        "num_queries": 4,
    }
    ours = refloss.object_detection(logits, labels, boxes, config=config, num_boxes=6).intermediates["num_boxes"]
    yield Answer("the divisor", num_boxes_of_two_processes(4, 8), 3.0, 6.0, ours)
