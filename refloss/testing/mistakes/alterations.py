"""Usual mistakes, said as other cases: what a wrong implementation computes is the right answer to an altered case."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss.golden.store import evaluate
from refloss.registry import FUNCTIONS

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from refloss.result import LossResult

# Label argument, logits argument, default of ignore_index, the classes' axis.
_LABELS = {
    "cross_entropy": ("target", "logits", -100, 1),
    "nll": ("target", "input", -100, 1),
    "causal_lm": ("labels", "logits", -100, -1),
    "masked_lm": ("labels", "logits", -100, -1),
    "token_classification": ("labels", "logits", -100, -1),
    "sequence_classification": ("labels", "pooled_logits", -100, -1),
    "semantic_segmentation": ("labels", "logits", 255, 1),
}
_SIGMOIDS = {"bce_with_logits": "logits", "sigmoid_focal": "inputs", "varifocal": "inputs", "dice": "inputs"}
_STRUCTURE = {"config", "vocab_size", "num_labels", "problem_type", "reduction"}  # nothing is right without them
_PAIRS = {"iou", "giou"}  # their last axis is a box
_BY_WEIGHT = {"mse", "l1"}  # their mean divides by the sum of weights
NO_LABEL = -100  # an ignore_index that no label here has after every row counts


class Labels(NamedTuple):
    """Which rows of some logits count; shifted labels as they are used."""

    name: str
    logits: str
    values: np.ndarray
    counts: np.ndarray
    classes: int

    @property
    def counted(self) -> int:
        """How many rows count."""
        return int(np.count_nonzero(self.counts))


class Altered(NamedTuple):
    """Another case, and what its loss is still to be divided by."""

    case: Case
    over: float = 1.0

    def answer(self) -> tuple[LossResult, dict[str, np.ndarray]]:
        """Its result, and the same by the names that tensors of candidates have."""
        with np.errstate(all="ignore"):
            result = evaluate(self.case)
            tensors = {
                "loss": np.asarray(result.loss) / self.over,
                **{f"component.{name}": np.asarray(value) for name, value in result.components.items()},
                **{f"grad.{name}": value for name, value in result.grads.items()},
            }
        return result, tensors


def altered(case: Case, inputs: dict[str, Any] | None = None, grad_output: Any = None, **parameters: Any) -> Case:
    """A case with other arguments; None takes a parameter away."""
    kept = {name: value for name, value in (case.parameters | parameters).items() if value is not None}
    cotangent = case.grad_output if grad_output is None else grad_output
    return case._replace(inputs=case.inputs | (inputs or {}), parameters=kept, grad_output=cotangent)


def labels(case: Case, tensor: str | None = None) -> Labels | None:
    """The labels behind a tensor of a case, or behind its loss; None for a function or a case without."""
    if case.function == "question_answering":
        side = "end" if tensor == "grad.end_logits" else "start"
        values, classes = case.inputs[f"{side}_positions"], case.inputs[f"{side}_logits"].shape[-1]
        return Labels(f"{side}_positions", f"{side}_logits", values, values < classes, classes)
    if case.function not in _LABELS or not _has_classes(case):
        return None
    name, logits, ignored, axis = _LABELS[case.function]
    values, shape = case.inputs[name], case.inputs[logits].shape
    classes = shape[min(axis, len(shape) - 1)] if case.function != "causal_lm" else shape[-1]
    classes = case.parameters.get("vocab_size") or case.parameters.get("num_labels") or classes
    if case.function == "causal_lm" and "shift_labels" in case.inputs:
        name, values = "shift_labels", case.inputs["shift_labels"]
    elif case.function == "causal_lm":
        values = values[..., 1:]
    return Labels(name, logits, values, values != case.parameters.get("ignore_index", ignored), classes)


def _has_classes(case: Case) -> bool:
    values = case.inputs[_LABELS[case.function][0]]
    if case.function != "sequence_classification":
        return values.dtype.kind in "iu"
    if "problem_type" in case.parameters:
        return bool(case.parameters["problem_type"] == "single_label_classification")
    count = case.parameters.get("num_labels", case.inputs["pooled_logits"].shape[-1])
    return count != 1 and values.dtype in (np.int64, np.int32)


class Divisor(NamedTuple):
    """What a sum is divided by, what it would be over everything, and the words for both."""

    right: float
    all: float
    what: str
    all_what: str


def divisor(case: Case, tensor: str | None = None) -> Divisor | None:
    """What the loss of a case is divided by if that is a count of its own making; None for sums and for detection."""
    if case.function in _LABELS or case.function == "question_answering":
        return _row_divisor(case, tensor)
    if "num_boxes" in FUNCTIONS[case.function].parameters or "config" in FUNCTIONS[case.function].parameters:
        return None
    return _element_divisor(case)


def _row_divisor(case: Case, tensor: str | None) -> Divisor | None:
    if case.parameters.get("reduction", "mean") != "mean":
        return None
    row_labels = labels(case, tensor)
    if row_labels is None:
        return _element_divisor(case) if case.function == "sequence_classification" else _probability_divisor(case)
    right, what = float(row_labels.counted), "the rows that count"
    if "weight" in case.inputs:
        weight = np.asarray(case.inputs["weight"], np.float64)
        right, what = math.fsum(weight[row_labels.values[row_labels.counts]].ravel()), "the sum of their weights"
    if "num_items_in_batch" in case.parameters:
        right, what = float(case.parameters["num_items_in_batch"]), "num_items_in_batch"
    return Divisor(right, float(row_labels.values.size), what, "all rows")


def _probability_divisor(case: Case) -> Divisor:
    logits = case.inputs["logits"]
    rows = logits.size // max(logits.shape[min(1, logits.ndim - 1)], 1)
    return Divisor(float(rows), float(rows), "the rows", "all rows")


def _element_divisor(case: Case) -> Divisor | None:
    reduction = case.parameters.get("reduction", "mean")
    shape = case.inputs[FUNCTIONS[case.function].differentiable[0]].shape
    if case.function in _PAIRS:
        shape = shape[:-1]
    size, batch = float(math.prod(shape)), float(shape[0] if shape else 1)
    if reduction == "batchmean":
        return Divisor(batch, size, "the batch size", "all elements")
    if reduction != "mean":
        return None
    if case.function in _BY_WEIGHT and "weight" in case.inputs:
        total = math.fsum(np.broadcast_to(case.inputs["weight"], shape).astype(np.float64).ravel())
        return Divisor(total, size, "the sum of weights", "all elements")
    return Divisor(size, batch, "the elements", "the rows")


def divided_by(case: Case, count: float) -> Altered:
    """A mean whose sum is divided by another count."""
    if "num_items_in_batch" in FUNCTIONS[case.function].parameters and _takes_items(case):
        return Altered(altered(case, num_items_in_batch=count))
    if case.function == "sequence_classification":
        right = divisor(case)
        assert right is not None
        factor = right.right / count
        return Altered(altered(case, grad_output=case.grad_output * factor), 1.0 / factor)
    return Altered(altered(case, grad_output=np.asarray(case.grad_output) / count, reduction="sum"), count)


def _takes_items(case: Case) -> bool:
    return case.function != "sequence_classification" or _has_classes(case)


def over_everything(case: Case, tensor: str | None = None) -> Altered | None:
    """The mean over all rows instead of those that count; box losses over all queries instead of the objects."""
    accepted = FUNCTIONS[case.function].parameters
    if "num_boxes" in accepted:
        rows = case.inputs.get("inputs", case.inputs.get("logits"))
        assert rows is not None
        count = math.prod(rows.shape[:-1]) if "config" in accepted else rows.shape[0]
        return Altered(altered(case, num_boxes=float(count)))
    count = divisor(case, tensor)
    return None if count is None or count.right == count.all else divided_by(case, count.all)


def leaking(case: Case, tensor: str | None = None, *, counted: bool = False) -> Altered | None:
    """Ignored rows as if they were not; the mean's count has them too if they are counted. None without such rows."""
    if "text_mask" in case.inputs:
        mask = case.inputs["text_mask"]
        return None if mask.all() else Altered(altered(case, {"text_mask": np.ones_like(mask)}))
    row_labels = labels(case, tensor)
    if row_labels is None or row_labels.counts.all():
        return None
    full = _with_every_row(case, row_labels)
    right = divisor(case, tensor)
    if counted or right is None or right.right == 0.0:
        return Altered(full)
    return divided_by(full, right.right)


def _with_every_row(case: Case, row_labels: Labels) -> Case:
    """Ignored rows get the class that they have, or else the first."""
    values = case.inputs[row_labels.name]
    if case.function == "question_answering":
        return altered(case, {row_labels.name: np.where(values < row_labels.classes, values, 0)})
    ignored = case.parameters.get("ignore_index", _LABELS[case.function][2])
    known = ignored if 0 <= ignored < row_labels.classes else 0
    return altered(case, {row_labels.name: np.where(values == ignored, known, values)}, ignore_index=NO_LABEL)


def smoothed_over_others(case: Case) -> Altered | None:
    """Label smoothing that gives ε/(K − 1) to the other classes and nothing more to the label; None without any."""
    smoothing = case.parameters.get("label_smoothing", 0.0)
    logits = case.inputs.get("logits")
    if not smoothing or logits is None:
        return None
    classes = logits.shape[min(1, logits.ndim - 1)]
    if classes < 2:
        return None
    # ε'/K = ε/(K − 1) on the others, and 1 − ε' + ε'/K = 1 − ε on the label.
    return Altered(altered(case, label_smoothing=min(smoothing * classes / (classes - 1), 1.0)))


def without_upstream(case: Case) -> Altered | None:
    """The gradient of ones; None where that is right."""
    return None if np.all(np.asarray(case.grad_output) == 1.0) else Altered(altered(case, grad_output=1.0))


def activated_twice(case: Case) -> Altered | None:
    """Probabilities instead of logits; None where there are no logits, or where they are matched."""
    axis, sigmoid = softmax_axis(case), _SIGMOIDS.get(case.function)
    names = logits(case) if axis is not None else [] if sigmoid is None else [sigmoid]
    given = {}
    for name in names:
        values = case.inputs[name]
        probabilities = _sigmoid(values) if axis is None else softmax(values, axis)
        given[name] = probabilities.astype(wide_dtype(values))
    return Altered(altered(case, given)) if given else None


def wide_dtype(values: np.ndarray) -> type[np.floating]:
    """Of values that a candidate has for itself, those of a 16-bit type among them."""
    return np.float64 if values.dtype == np.float64 else np.float32


@np.errstate(over="ignore")
def _sigmoid(values: np.ndarray) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-values.astype(np.float64))))


def logits(case: Case) -> list[str]:
    """The names of the logits that a softmax is taken of."""
    return ["start_logits", "end_logits"] if case.function == "question_answering" else [_LABELS[case.function][1]]


def softmax_axis(case: Case) -> int | None:
    """The axis of the softmax, where there is one of the logits as they are."""
    if case.function == "question_answering":
        return 1
    if case.function in {"nll", "semantic_segmentation"} or case.function not in _LABELS:
        return None
    if case.function == "sequence_classification" and not _has_classes(case):
        return None
    values, row_labels = case.inputs[_LABELS[case.function][1]], labels(case)
    axis = min(1, values.ndim - 1) if case.function == "cross_entropy" else values.ndim - 1
    return axis if row_labels is None or row_labels.classes == values.shape[axis] else None


@np.errstate(all="ignore")
def softmax(values: np.ndarray, axis: int) -> np.ndarray:
    """In float64; where a maximum is not finite, NaN."""
    terms = np.exp(values.astype(np.float64) - values.max(axis=axis, keepdims=True, initial=-np.inf))
    return np.asarray(terms / terms.sum(axis=axis, keepdims=True))


def shifted_labels(case: Case) -> dict[str, Altered]:
    """What is said of it, and the case with tokens that are shifted too little, too far or around."""
    if case.function == "causal_lm" and "shift_labels" not in case.inputs:
        tokens = case.inputs["labels"]
        ignored = case.parameters.get("ignore_index", NO_LABEL)
        twice = np.full_like(tokens, ignored)
        twice[..., :-2] = tokens[..., 2:]
        wrong = {
            "labels are not shifted": tokens,
            "labels are shifted by one position too many": twice,
            "labels are rolled, so that the last position predicts the first token": np.roll(tokens, -1, -1),
        }
        return {words: Altered(altered(case, {"shift_labels": values})) for words, values in wrong.items()}
    name = {"causal_lm": "shift_labels", "masked_lm": "labels", "token_classification": "labels"}.get(case.function)
    if name is None:
        return {}
    tokens = np.full_like(case.inputs[name], case.parameters.get("ignore_index", NO_LABEL))
    tokens[..., :-1] = case.inputs[name][..., 1:]
    return {"labels are shifted by one position": Altered(altered(case, {name: tokens}))}


def arguments_ignored(case: Case) -> dict[str, Altered]:
    """What is said of it, and the case without one of its optional arguments."""
    optional = [name for name in FUNCTIONS[case.function].optional if name in case.inputs]
    without = {
        name: case._replace(inputs={key: value for key, value in case.inputs.items() if key != name})
        for name in optional
    }
    without |= {name: altered(case, **{name: None}) for name in case.parameters if name not in _STRUCTURE}
    if "num_boxes" in case.parameters or "config" in case.parameters:
        without["the number of boxes"] = altered(case, num_boxes=1.0)
    return {f"{name} is ignored": Altered(other) for name, other in without.items()}
