"""The functional losses that a head of transformers is made of, as calls of their own.

A head of several cross-entropies has nothing of its own but weights, clamped positions and resampled logits: its
intermediates and its error model are those of its parts.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional

from conformance.call import Call, array
from conformance.cases import CROSS_ENTROPY, IGNORED, Case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SEQUENCE_CLASSIFICATION = (
    "ForSequenceClassification",
    "ForImageClassification",
    "ForVideoClassification",
    "ForAudioClassification",
)


class Part(NamedTuple):
    """One functional loss of a head."""

    call: Call
    scale: float  # its factor in the head's loss
    source: str  # the head's argument that its first argument comes from
    prefix: str = ""  # of its intermediates
    intermediates: Mapping[str, torch.Tensor] = {}  # what the head adds to them


def parts(call: Call) -> list[Part]:
    """The functional losses of a head."""
    return list(HEADS[call.case.loss](call))


def attributes(config: Any) -> Any:
    """A configuration as transformers reads it, copied."""
    return SimpleNamespace(**config) if isinstance(config, Mapping) else copy.deepcopy(config)


def problem_type(config: Any, labels: torch.Tensor) -> str:
    """The kind of sequence classification that a configuration asks for, or that transformers takes it to mean."""
    if config.problem_type is not None:
        return str(config.problem_type)
    if config.num_labels == 1:
        return "regression"
    is_class = labels.dtype in {torch.int64, torch.int32}
    return "single_label_classification" if is_class else "multi_label_classification"


def _part_call(call: Call, loss: str, inputs: Mapping[str, torch.Tensor], scale: float, **options: Any) -> Call:
    values = {name: array(value) for name, value in inputs.items()}
    return Call(Case(call.case.id, loss, values, options, scale * array(call.cotangent)), call.compute_dtype)


def _cross_entropy(call: Call, logits: torch.Tensor, labels: torch.Tensor, scale: float, ignore_index: int) -> Call:
    reduction = "mean" if call.arguments.get("num_items_in_batch") is None else "sum"
    inputs = {"logits": logits, "target": labels}
    return _part_call(call, CROSS_ENTROPY, inputs, scale, ignore_index=ignore_index, reduction=reduction)


def _over_items(call: Call) -> float:
    items = call.arguments.get("num_items_in_batch")
    return 1.0 if items is None else 1.0 / float(items)


def _sequence(call: Call) -> Iterator[Part]:
    config = attributes(call.arguments["config"])
    logits, labels = call.arguments["pooled_logits"], call.arguments["labels"]
    kind = problem_type(config, labels)
    if kind == "single_label_classification":
        scale = _over_items(call)
        rows = logits.view(-1, config.num_labels)
        ignore_index = call.arguments.get("ignore_index", IGNORED)
        yield Part(_cross_entropy(call, rows, labels.view(-1), scale, ignore_index), scale, "pooled_logits")
    elif kind == "regression":
        inputs = {"input": logits, "target": labels}
        if config.num_labels == 1:
            inputs = {name: value.squeeze() for name, value in inputs.items()}
        yield Part(_part_call(call, "mse", inputs, 1.0), 1.0, "pooled_logits")
    else:
        inputs = {"logits": logits, "target": labels}
        yield Part(_part_call(call, "bce_with_logits", inputs, 1.0), 1.0, "pooled_logits")


def _question_answering(call: Call) -> Iterator[Part]:
    scale = 0.5 * _over_items(call)
    for side in ("start", "end"):
        logits, positions = call.arguments[f"{side}_logits"], call.arguments[f"{side}_positions"]
        outside = logits.shape[1]
        clamped = positions.reshape(logits.shape[0]).clamp(0, outside)
        rows = _cross_entropy(call, logits, clamped, scale, outside)
        yield Part(rows, scale, f"{side}_logits", f"{side}_", {"positions": clamped})


def _segmentation(call: Call) -> Iterator[Part]:
    labels = call.arguments["labels"]
    weights = {"": 1.0}
    if call.arguments.get("auxiliary_logits") is not None:
        weights["auxiliary_"] = call.arguments.get("auxiliary_loss_weight", 0.4)
    for prefix, weight in weights.items():
        upsampled = resampled(call.arguments[f"{prefix}logits"], labels.shape[-2:])
        scale = weight * _over_items(call)
        rows = _cross_entropy(call, upsampled, labels, scale, call.arguments.get("ignore_index", 255))
        yield Part(rows, scale, f"{prefix}logits", prefix, {"upsampled_logits": upsampled})


def resampled(images: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Images in another size, as torch interpolates them."""
    return functional.interpolate(images, size=size, mode="bilinear", align_corners=False)


HEADS: dict[str, Callable[[Call], Iterator[Part]]] = {
    **dict.fromkeys(SEQUENCE_CLASSIFICATION, _sequence),
    "ForQuestionAnswering": _question_answering,
    "ForSemanticSegmentation": _segmentation,
}
