"""Usual mistakes, said as other cases: what a wrong implementation computes is the right answer to an altered case."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss.cases.source import changed_cotangent
from refloss.golden.store import evaluate
from refloss.registry import FUNCTIONS
from refloss.specification import Elementwise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.cases.source import Case
    from refloss.result import LossResult
    from refloss.specification import Argument, Specification

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
                **{f"component.{name}": np.asarray(value) / self.over for name, value in result.components.items()},
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
    specification = specification_of(case)
    targets = {name: each for name, each in specification.arguments.items() if name in case.inputs and _is_target(each)}
    # Labels that may be left out take the place of others.
    targets = {name: each for name, each in targets.items() if each.optional} or targets
    if not targets or not _has_classes(case, next(iter(targets))):
        return None
    behind = [name for name, each in targets.items() if f"grad.{each.of}" == tensor]
    name = behind[0] if behind else next(iter(targets))
    target, values, shape = targets[name], case.inputs[name], case.inputs[targets[name].of].shape
    axis = specification.arguments[target.of].class_axis or 0
    classes = case.parameters.get("vocab_size") or case.parameters.get("num_labels") or shape[min(axis, len(shape) - 1)]
    values = values[..., target.shift :] if target.shift else values
    counts = values < classes if target.ignored is None else values != _ignore_index(case, target)
    return Labels(name, target.of, values, counts, classes)


def specification_of(case: Case) -> Specification:
    """The facts of a case's function."""
    return FUNCTIONS[case.function].specification


def _is_target(argument: Argument) -> bool:
    return argument.role in ("labels", "classes")


def _ignore_index(case: Case, target: Argument) -> Any:
    return case.parameters.get("ignore_index", target.ignored)


def _has_classes(case: Case, name: str) -> bool:
    asked = specification_of(case).has_classes
    return case.inputs[name].dtype.kind in "iu" if asked is None else asked(case)


class Divisor(NamedTuple):
    """What a sum is divided by, what it would be over everything, and the words for both."""

    right: float
    all: float
    what: str
    all_what: str


def divisor(case: Case, tensor: str | None = None) -> Divisor | None:
    """What the loss of a case is divided by if that is a count of its own making; None for sums and for detection."""
    mean = specification_of(case).mean
    if not specification_of(case).reduces:
        return None
    if mean == "labels":
        return _row_divisor(case, tensor)
    if mean == "sequences":
        return _sequence_divisor(case)
    if mean == "tokens":
        return _token_divisor(case)
    return None if mean in ("num_boxes", "objects") else _element_divisor(case)


def _token_divisor(case: Case) -> Divisor | None:
    """Tokens or sequences that count; None for sums, and where nothing counts."""
    name, items = case.parameters.get("aggregation", "token-mean"), case.parameters.get("num_items")
    right = float(items) if items is not None else specification_of(case).divisor(case)  # type: ignore[misc]
    if not right or not math.isfinite(right):
        return None
    shape = next(iter(case.inputs.values())).shape
    of_tokens = name in ("token-mean", "sum")
    what = "num_items" if items is not None else "the tokens that count" if of_tokens else "the sequences"
    all_what = "all tokens" if of_tokens else "all sequences"
    return Divisor(right, float(math.prod(shape) if of_tokens else shape[0]), what, all_what)


def _sequence_divisor(case: Case) -> Divisor | None:
    """Samples, or all of their labels; None where each loss is divided by its own."""
    reduction = case.parameters.get("reduction", specification_of(case).parameters["reduction"].values[0])
    if reduction not in ("mean_volume", "mean_batch"):
        return None
    counts = case.inputs["label_lengths"]
    ends = (float(max(counts.sum(), 1)), "the labels"), (float(counts.size), "the samples")
    (right, what), (other, all_what) = ends if reduction == "mean_volume" else ends[::-1]
    return Divisor(right, other, what, all_what)


def _row_divisor(case: Case, tensor: str | None) -> Divisor | None:
    if case.parameters.get("reduction", "mean") != "mean":
        return None
    row_labels = labels(case, tensor)
    if row_labels is None:
        return _element_divisor(case) if specification_of(case).has_classes else _probability_divisor(case)
    right, what = float(row_labels.counted), "the rows that count"
    if "weight" in case.inputs:
        weight = np.asarray(case.inputs["weight"], np.float64)
        right, what = math.fsum(weight[row_labels.values[row_labels.counts]].ravel()), "the sum of their weights"
    if "num_items_in_batch" in case.parameters:
        right, what = float(case.parameters["num_items_in_batch"]), "num_items_in_batch"
    return Divisor(right, float(row_labels.values.size), what, "all rows")


def _probability_divisor(case: Case) -> Divisor:
    rows = case.inputs[specification_of(case).named("classes")[0]].size // max(_count_of_classes(case), 1)
    return Divisor(float(rows), float(rows), "the rows", "all rows")


def _count_of_classes(case: Case) -> int:
    """Among how many classes a row's target is; 0 where it has none."""
    specification = specification_of(case)
    arguments = specification.arguments
    of = {arguments[name].of for name in specification.named("labels", "classes")} & case.inputs.keys()
    for name in (*of, *specification.named("similarities")):
        shape, axis = case.inputs[name].shape, arguments[name].class_axis
        return int(shape[min(1 if axis is None else axis, len(shape) - 1)])
    return 0


def _element_divisor(case: Case) -> Divisor | None:
    reduction = case.parameters.get("reduction", "mean")
    specification = specification_of(case)
    if isinstance(specification, Elementwise):
        shape = specification.elements(case.inputs)
    else:
        shape = case.inputs[specification.differentiable[0]].shape
    if specification.named("boxes", "vectors"):
        shape = shape[:-1]
    size, batch = float(math.prod(shape)), float(shape[0] if shape else 1)
    if reduction == "batchmean":
        return Divisor(batch, size, "the batch size", "all elements")
    if reduction != "mean":
        return None
    if specification.named("similarities"):
        return Divisor(batch, size, "the pairs", "all elements")
    if specification.mean == "rows" and not specification.named("boxes", "vectors"):
        return Divisor(float(math.prod(shape[:-1])), size, "the rows", "all elements")
    if specification.mean == "weights" and "weight" in case.inputs:
        total = math.fsum(np.broadcast_to(case.inputs["weight"], shape).astype(np.float64).ravel())
        return Divisor(total, size, "the sum of weights", "all elements")
    return Divisor(size, batch, "the elements", "the rows")


def divided_by(case: Case, count: float) -> Altered:
    """A mean whose sum is divided by another count."""
    parameters = specification_of(case).parameters
    if "num_items_in_batch" in parameters and labels(case) is not None:
        return Altered(altered(case, num_items_in_batch=count))
    if "reduction" not in parameters:
        right = divisor(case)
        assert right is not None
        factor = right.right / count
        upstream = changed_cotangent(case.grad_output, lambda values: values * factor)
        return Altered(altered(case, grad_output=upstream), 1.0 / factor)
    return Altered(altered(case, grad_output=np.asarray(case.grad_output) / count, reduction="sum"), count)


def over_everything(case: Case, tensor: str | None = None) -> Altered | None:
    """The mean over all rows instead of those that count; box losses over all queries instead of the objects."""
    specification = specification_of(case)
    mean = specification.mean
    if mean in ("num_boxes", "objects"):
        rows = case.inputs[specification.named("logits", "boxes")[0]]
        count = math.prod(rows.shape[:-1]) if mean == "objects" else rows.shape[0]
        return Altered(altered(case, num_boxes=float(count)))
    count = divisor(case, tensor)
    return None if count is None or count.right == count.all else divided_by(case, count.all)


def leaking(case: Case, tensor: str | None = None, *, counted: bool = False) -> Altered | None:
    """Ignored rows as if they were not; the mean's count has them too if they are counted. None without such rows."""
    for name in {"mask", "text_mask"} & case.inputs.keys():
        mask = case.inputs[name]
        # Rows that do not count may name what is no class.
        named = {key: np.maximum(case.inputs[key], 0) for key in specification_of(case).named("indices")}
        return None if mask.all() else Altered(altered(case, named | {name: np.ones_like(mask)}))
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
    values, target = case.inputs[row_labels.name], specification_of(case).arguments[row_labels.name]
    if target.ignored is None:
        return altered(case, {row_labels.name: np.where(values < row_labels.classes, values, 0)})
    ignored = _ignore_index(case, target)
    known = ignored if 0 <= ignored < row_labels.classes else 0
    return altered(case, {row_labels.name: np.where(values == ignored, known, values)}, ignore_index=NO_LABEL)


def smoothed_over_others(case: Case) -> Altered | None:
    """Label smoothing that gives ε/(K − 1) to the other classes and nothing more to the label; None without any."""
    smoothing = case.parameters.get("label_smoothing", 0.0)
    classes = _count_of_classes(case)
    if not smoothing or classes < 2:
        return None
    # ε'/K = ε/(K − 1) on the others, and 1 − ε' + ε'/K = 1 − ε on the label.
    return Altered(altered(case, label_smoothing=min(smoothing * classes / (classes - 1), 1.0)))


def without_upstream(case: Case) -> Altered | None:
    """The gradient of ones; None where that is right."""
    # Components of a sum have weights of their own, which 1 for all of it leaves them.
    is_sum = isinstance(case.grad_output, Mapping) and specification_of(case).reduces
    ones = 1.0 if is_sum else changed_cotangent(case.grad_output, np.ones_like)
    return None if _is_same(ones, case.grad_output) else Altered(altered(case, grad_output=ones))


def _is_same(first: Any, second: Any) -> bool:
    """Whether two cotangents are equal."""
    if isinstance(first, Mapping):
        return all(np.array_equal(value, second[name]) for name, value in first.items())
    return bool(np.array_equal(first, second))


def first_upstream(case: Case) -> Altered | None:
    """The gradient of one number for all losses; None where they have no others."""
    given = case.grad_output
    if not np.size(given):
        return None
    first = changed_cotangent(given, lambda values: np.full_like(values, np.ravel(values)[0]))
    return None if _is_same(first, given) else Altered(altered(case, grad_output=first))


def without_reduction(case: Case, loss: np.ndarray) -> Altered | None:
    """The default reduction of a case that has another; where losses are not reduced, gradients of as many of them."""
    reduction = case.parameters.get("reduction")
    if reduction is None:
        return None
    reduced = altered(case, reduction=None)
    if reduction != "none":
        return Altered(reduced)
    count = float(loss.sum() / np.float64(evaluate(reduced._replace(grad_output=1.0)).loss))
    return Altered(altered(case, grad_output=case.grad_output / count)) if math.isfinite(count) and count else None


def activated_twice(case: Case) -> Altered | None:
    """Probabilities instead of logits; None where there are no logits, or where they are matched."""
    axis = softmax_axis(case)
    names = logits(case, "sigmoid") if axis is None else logits(case)
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


def logits(case: Case, activation: str = "softmax") -> list[str]:
    """The names of the logits that an activation is taken of."""
    arguments = specification_of(case).arguments.items()
    return [name for name, each in arguments if each.activation == activation and name in case.inputs]


def softmax_axis(case: Case) -> int | None:
    """The axis of the softmax, where there is one of the logits as they are."""
    specification, names = specification_of(case), logits(case)
    if not names or specification.arguments[names[0]].resampled:
        return None
    row_labels = labels(case)
    if row_labels is None and specification.has_classes is not None:
        return None
    values, axis = case.inputs[names[0]], specification.arguments[names[0]].class_axis or 0
    axis = min(axis, values.ndim - 1) if axis >= 0 else values.ndim - 1
    return axis if row_labels is None or row_labels.classes == values.shape[axis] else None


@np.errstate(all="ignore")
def softmax(values: np.ndarray, axis: int) -> np.ndarray:
    """In float64; where a maximum is not finite, NaN."""
    terms = np.exp(values.astype(np.float64) - values.max(axis=axis, keepdims=True, initial=-np.inf))
    return np.asarray(terms / terms.sum(axis=axis, keepdims=True))


def of_this_function(case: Case) -> list[tuple[str, Altered]]:
    """What is said of it, and the case with a mistake that only its function can have."""
    mistakes = specification_of(case).mistakes
    wrong = mistakes(case) if mistakes is not None else {}
    own = [(words, Altered(altered(case, inputs))) for words, inputs in (*wrong.items(), *_shifts(case))]
    upstream = specification_of(case).upstream_mistakes
    others = upstream(case) if upstream is not None else {}
    own += [(words, Altered(altered(case, grad_output=given))) for words, given in others.items()]
    parameters = specification_of(case).mistaken_parameters
    mistaken = parameters(case) if parameters is not None else {}
    return own + [(words, Altered(altered(case, **given))) for words, given in mistaken.items()]


def sequence_labels(case: Case) -> list[np.ndarray]:
    """The labels of each sequence of a case that sums over alignments."""
    if case.function == "ctc":
        targets, lengths = case.inputs["targets"], np.reshape(case.inputs["target_lengths"], -1)
        ends = np.cumsum(lengths)
        rows = targets if targets.ndim == 2 else [targets[e - n : e] for e, n in zip(ends, lengths, strict=True)]
        return [row[:n] for row, n in zip(rows, lengths, strict=True)]
    ignored, blank = case.parameters.get("ignore_index", NO_LABEL), case.parameters["blank_token_id"]
    return [row[(row != ignored) & (row != blank)] for row in case.inputs["labels"]]


def over_all_labels(case: Case) -> Altered | None:
    """The mean of sequences over the labels of all of them; None where it has no other value."""
    if case.function not in ("ctc", "ctc_of_logits") or case.parameters.get("reduction", "mean") != "mean":
        return None
    counts = [max(len(labels), 1) for labels in sequence_labels(case)]
    return divided_by(case, float(sum(counts))) if len(set(counts)) > 1 else None


def first_blank(case: Case) -> Altered | None:
    """The first class for the blank; None where that is right."""
    is_another = case.function == "ctc_of_logits" and case.parameters["blank_token_id"] != 0
    return Altered(altered(case, blank_token_id=0)) if is_another else None


def sigma_twice(case: Case) -> Altered | None:
    """What every arc of a TDT costs, taken off its tokens and off its durations."""
    sigma = case.parameters.get("sigma", 0.0)
    return Altered(altered(case, sigma=2 * sigma)) if sigma else None


def _shifts(case: Case) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Labels that are shifted as if their sequences were one, or several."""
    shifted = [name for name, each in specification_of(case).arguments.items() if each.shift]
    if not shifted or "shift_labels" in case.inputs:
        return
    labels, ignored = case.inputs[shifted[0]], case.parameters.get("ignore_index", NO_LABEL)
    whole = _within(labels.reshape(1, -1), 1, ignored).reshape(labels.shape)
    yield "labels are shifted over the flattened batch", {"shift_labels": whole}
    for count in (2, 3, 4):
        if labels.shape[-1] >= 2 * count:
            words = "labels are shifted within each shard of a sequence"
            yield words, {"shift_labels": _within(labels, count, ignored)}


def _within(labels: np.ndarray, count: int, ignored: int) -> np.ndarray:
    moved = np.full_like(labels, ignored)
    for part in np.array_split(np.arange(labels.shape[-1]), count):
        moved[..., part[:-1]] = labels[..., part[1:]]
    return moved


def sides(case: Case) -> tuple[str, ...]:
    """Tensors whose means have counts of their own: question answering has two of them."""
    return ("", "grad.end_logits") if case.function == "question_answering" else ("",)


def configured(case: Case) -> dict[str, Altered]:
    """What is said of it, and the case without one of the numbers in its config."""
    config = case.parameters.get("config")
    if not isinstance(config, dict):
        return {}
    wrong: dict[str, Altered] = {}
    for name, value in config.items():
        if isinstance(value, bool) or not isinstance(value, float) or name in ("up", "reg_scale"):
            continue
        words = "eos coefficient ignored" if name == "eos_coefficient" else f"{name} in config is ignored"
        if value != 1.0:
            wrong[words] = Altered(altered(case, config=config | {name: 1.0}))
    if config.get("auxiliary_loss"):
        wrong["the auxiliary loss is left out"] = Altered(altered(case, config=config | {"auxiliary_loss": False}))
    names = [name for name in ("focal_alpha", "focal_loss_alpha") if config.get(name, -1.0) >= 0.0]
    swapped = {name: 1.0 - config[name] for name in names}
    if swapped:
        wrong["α is swapped"] = Altered(altered(case, config=config | swapped))
    return wrong


def arguments_ignored(case: Case) -> list[tuple[str, Altered]]:
    """What is said of it, and the case without one of its optional arguments."""
    parameters = specification_of(case).parameters
    optional = [name for name in specification_of(case).optional if name in case.inputs]
    without = [
        (name, case._replace(inputs={key: value for key, value in case.inputs.items() if key != name}))
        for name in optional
    ]
    without += [(name, altered(case, **{name: None})) for name in case.parameters if not parameters[name].structural]
    if "num_boxes" in case.parameters or specification_of(case).mean == "objects":
        without.append(("num_boxes", altered(case, num_boxes=1.0)))
    return [(f"{name} is ignored", Altered(other)) for name, other in without]
