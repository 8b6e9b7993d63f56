"""On W processes box losses of DETR's family are W times too large.

num_boxes is averaged by accelerate's reduce, whose default is the mean, and then divided by the number of processes
again. How large a box's loss is beside a class's depends on how many machines train.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from transformers.loss import loss_for_object_detection

import refloss
from conformance.detection import golden_run
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


class State:
    """One of two processes, as accelerate knows it."""

    _shared_state = frozenset({"of two processes"})
    num_processes = 2


def num_boxes_of_two_processes(own: int, other: int) -> float:
    """What ImageLoss divides by on a process that has so many objects beside another one's."""
    given: list[float] = []

    def get_loss(*arguments: Any) -> dict[str, Any]:
        given.append(arguments[-1])
        return {}

    matcher = loss_for_object_detection.HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    criterion = loss_for_object_detection.ImageLoss(matcher, 3, 0.1, ["boxes"])
    boxes = torch.full((1, own, 4), 0.3)
    patched = functools.partial(mock.patch.object, loss_for_object_detection, create=True)
    with (
        patched("is_accelerate_available", return_value=True),
        patched("PartialState", State),
        patched("reduce", lambda mine: (mine + other) / 2),
        mock.patch.object(loss_for_object_detection.ImageLoss, "get_loss", get_loss),
    ):
        labels = [{"class_labels": torch.zeros(own, dtype=torch.int64), "boxes": boxes[0]}]
        criterion({"logits": torch.zeros(1, own, 4), "pred_boxes": boxes}, labels)
    return float(given[0])


def reproduce() -> Iterator[Answer]:
    # Of 4 and 8 objects each process should divide by 6.
    run = golden_run("ForObjectDetection")
    ours = refloss.object_detection(**run.arguments, num_boxes=6).intermediates["num_boxes"]
    yield Answer("the divisor", num_boxes_of_two_processes(4, 8), 3.0, 6.0, ours)
