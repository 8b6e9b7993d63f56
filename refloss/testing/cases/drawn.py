"""Hypothesis strategies: whatever a loss may be given, from plain to adversarial."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from refloss.cases.source import DTYPES, Case
from refloss.files import flattened
from refloss.registry import FUNCTIONS
from refloss.testing.cases import scenes
from refloss.testing.cases.draws import SHARES, Draws, Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hypothesis.strategies import DrawFn, SearchStrategy

_LAYOUTS = ("contiguous", "read-only", "transposed", "strided", "reversed")


class _Drawn(NamedTuple):
    """A case without its cotangent; loss_shape is that of a loss which is not reduced."""

    inputs: dict[str, Any]
    parameters: dict[str, Any]
    loss_shape: tuple[int, ...] = ()


def inputs(
    function: str,
    *,
    dtypes: Sequence[str] = tuple(DTYPES),
    max_rows: int = 6,
    max_classes: int = 6,
    extreme: bool = True,
) -> SearchStrategy[Case]:
    """Cases of a function of refloss.registry.FUNCTIONS, each of which it accepts.

    They vary in shape (empty batches included), dtype, memory layout, kind of values (ties, huge and tiny ones,
    offsets, confident rows, classes of −inf that no label asks for), ignored rows (some, all, with NaN and infinities
    in them), options and signed cotangents. Losses are finite but for means over nothing.

    Args:
        function: its name.
        dtypes: of inputs that have gradients.
        max_rows: an upper limit to the number of rows; heads that match have at most as many queries.
        max_classes: an upper limit to the number of classes, or of elements in a row.
        extreme: whether there are values whose losses overflow float32, or are lost in it, and NaN and infinities in
            rows that are ignored: refloss defines what comes of them, but few other implementations take them.
    """
    if function not in FUNCTIONS:
        raise ValueError(f"unknown function {function!r}; expected one of {', '.join(FUNCTIONS)}")
    unknown = [name for name in dtypes if name not in DTYPES]
    if unknown or not dtypes:
        raise ValueError(f"dtypes is {dtypes!r}; expected some of {', '.join(DTYPES)}")
    if min(max_rows, max_classes) < 1:
        raise ValueError(f"max_rows is {max_rows} and max_classes is {max_classes}; expected at least 1")
    return _cases(function, Limits(tuple(dtypes), max_rows, max_classes, extreme))


@st.composite
def _cases(draw: DrawFn, function: str, limits: Limits) -> Case:
    draws = Draws(draw, limits)
    drawn = _BUILDERS[function](draws)
    laid_out: dict[str, np.ndarray] = {}
    for name, value in drawn.inputs.items():
        layout = draws.one_of(*_LAYOUTS)
        laid_out |= {part: _laid_out(array, layout) for part, array in flattened(name, value).items()}
    grad_output = draws.cotangent(drawn.loss_shape if drawn.parameters.get("reduction") == "none" else ())
    return Case(f"{function}-drawn", function, laid_out, drawn.parameters, grad_output)


def _laid_out(array: np.ndarray, layout: str) -> np.ndarray:
    """The same values in another order of memory, or in memory that cannot be written to."""
    if layout == "strided" and array.ndim:
        wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    if layout == "reversed" and array.ndim:
        return array[..., ::-1].copy()[..., ::-1]
    result = np.array(array, order="F" if layout == "transposed" else "C")
    result.flags.writeable = layout != "read-only"
    return result


def _cross_entropy(draws: Draws) -> _Drawn:
    classes, rows = draws.classes(), draws.row_shape()
    shape = (*rows[:1], classes, *rows[1:])
    axis = min(1, len(shape) - 1)
    parameters = draws.options(reduction=("mean", "sum", "none"), label_smoothing=(0.0, 0.1, 1.0))
    logits = draws.logits(*shape, axis=axis)
    if draws.maybe():
        target = draws.probabilities(*shape)
    else:
        parameters |= draws.options(ignore_index=(-100, 0, 255))
        ignore_index = parameters.get("ignore_index", -100)
        target = draws.labels(rows, classes, ignore_index)
        sharp = parameters.get("label_smoothing", 0.0) == 0.0
        draws.adverse(logits, axis, target, target == ignore_index, masks=sharp)
    tensors = {"logits": logits, "target": target} | _class_weight(draws, classes)
    return _Drawn(tensors, parameters, rows)


def _class_weight(draws: Draws, classes: int) -> dict[str, np.ndarray]:
    if not draws.maybe():
        return {}
    weight = draws.weights(classes)
    weight[: draws.size(0, classes)] *= draws.one_of(1.0, 0.0)
    return {"weight": weight}


def _nll(draws: Draws) -> _Drawn:
    classes, rows = draws.classes(), draws.row_shape()
    shape = (*rows[:1], classes, *rows[1:])
    parameters = draws.options(reduction=("mean", "sum", "none"), ignore_index=(-100, 0, 255))
    target = draws.labels(rows, classes, parameters.get("ignore_index", -100))
    tensors = {"input": -np.abs(draws.logits(*shape)), "target": target} | _class_weight(draws, classes)
    return _Drawn(tensors, parameters, rows)


def _tokens(draws: Draws, size_name: str, *, shifted: bool = False) -> _Drawn:
    """A class, or a token, for each position of each sequence."""
    classes, rows = draws.classes(), draws.row_shape(1, 2)
    parameters = draws.options(num_items_in_batch=(1, 40, 12.5), ignore_index=(-100, 0, 255), **{size_name: (classes,)})
    ignore_index = parameters.get("ignore_index", -100)
    labels = draws.labels(rows, classes, ignore_index)
    tensors, asked = {"labels": labels}, labels
    if shifted and draws.maybe():
        asked = tensors["shift_labels"] = draws.labels(rows, classes, ignore_index)
    elif shifted:
        asked = np.full(rows, ignore_index, np.int64)
        asked[..., :-1] = labels[..., 1:]
    logits = draws.logits(*rows, classes)
    draws.adverse(logits, -1, asked, asked == ignore_index, masks=True)
    flat = draws.maybe()
    return _Drawn({"logits": logits.reshape(-1, classes) if flat else logits} | tensors, parameters)


def _sequence_classification(draws: Draws) -> _Drawn:
    kind = draws.one_of("single_label_classification", "multi_label_classification", "regression")
    rows, classes = draws.size(0, draws.limits.max_rows), draws.classes(1 if kind == "regression" else 2)
    parameters = draws.options(num_labels=(classes,), problem_type=(kind,))
    logits = draws.logits(rows, classes)
    if kind == "single_label_classification":
        parameters |= draws.options(num_items_in_batch=(1, 40, 12.5), ignore_index=(-100, 0, 255))
        ignore_index = parameters.get("ignore_index", -100)
        labels = draws.labels((rows,), classes, ignore_index)
        # Without a problem type it is these two dtypes that say what labels are.
        labels = labels if "problem_type" in parameters else labels.astype(draws.one_of(np.int64, np.int32))
        draws.adverse(logits, -1, labels, labels == ignore_index, masks=True)
    elif kind == "multi_label_classification":
        labels = draws.probabilities(rows, classes)
    else:
        labels = draws.logits(rows, classes)
        # Numbers of several labels are only taken for values where that is said.
        parameters |= {"problem_type": kind} if classes > 1 else {}
        labels = labels[:, 0] if classes == 1 and "problem_type" not in parameters else labels
    return _Drawn({"pooled_logits": logits, "labels": labels}, parameters)


def _question_answering(draws: Draws) -> _Drawn:
    rows, length = draws.size(0, draws.limits.max_rows), draws.classes()
    tensors: dict[str, np.ndarray] = {}
    for name in ("start", "end"):
        positions = (draws.uniform(rows) * length).astype(np.int64)
        beyond = draws.one_of(*SHARES.values())
        positions = np.where(draws.uniform(rows) < beyond, draws.one_of(length, length + 5, -3), positions)
        logits = draws.logits(rows, length)
        draws.adverse(logits, -1, np.clip(positions, 0, length), positions >= length, masks=True)
        positions = draws.integers(positions)
        tensors[f"{name}_logits"] = logits
        tensors[f"{name}_positions"] = positions[:, None] if draws.maybe() else positions
    return _Drawn(tensors, draws.options(num_items_in_batch=(1, 40, 12.5)))


def _semantic_segmentation(draws: Draws) -> _Drawn:
    images, classes = draws.size(0, 2), draws.classes()
    parameters = draws.options(
        ignore_index=(255, 0, -100), num_items_in_batch=(1, 40, 12.5), auxiliary_loss_weight=(0.4, 1.5, 0.0)
    )
    labels = draws.labels((images, draws.size(1, 5), draws.size(1, 5)), classes, parameters.get("ignore_index", 255))
    names = ("logits", "auxiliary_logits") if draws.maybe() else ("logits",)
    logits = {name: draws.logits(images, classes, draws.size(1, 3), draws.size(1, 3), axis=1) for name in names}
    return _Drawn(logits | {"labels": labels}, parameters)


def _elements(draws: Draws) -> tuple[int, ...]:
    """The shape of arrays of corresponding elements."""
    rows = draws.row_shape(0, 2)
    return (*rows, draws.classes()) if draws.maybe() else rows


def _weighted(draws: Draws, shape: tuple[int, ...], name: str = "weight", *, broadcast: bool = False) -> dict[str, Any]:
    if not draws.maybe():
        return {}
    # A weight of several axes less, or of sizes of 1, is broadcast.
    narrow = shape[draws.size(0, len(shape)) :] if broadcast else shape
    narrow = tuple(1 if broadcast and draws.maybe() else size for size in narrow)
    return {name: draws.weights(*narrow)}


_REDUCTION = ("mean", "sum", "none")


def _errors(draws: Draws, *, weighted: bool = False, **choices: tuple[Any, ...]) -> _Drawn:
    """Values and what they should have been, which some of them are."""
    shape = _elements(draws)
    x, t = draws.logits(*shape), draws.logits(*shape)
    t = np.where(draws.uniform(*shape) < draws.one_of(0.0, 0.5), x, t)
    weight = _weighted(draws, shape) if weighted else {}
    return _Drawn({"input": x, "target": t} | weight, draws.options(reduction=_REDUCTION, **choices), shape)


def _bce(draws: Draws) -> _Drawn:
    shape = _elements(draws)
    tensors = {"input": draws.probabilities(*shape), "target": draws.probabilities(*shape)}
    weight = _weighted(draws, shape, broadcast=True)
    return _Drawn(tensors | weight, draws.options(reduction=_REDUCTION), shape)


def _bce_with_logits(draws: Draws) -> _Drawn:
    shape = _elements(draws)
    tensors = {"logits": draws.logits(*shape), "target": draws.probabilities(*shape)}
    for name in ("weight", "pos_weight"):
        tensors |= _weighted(draws, shape, name, broadcast=True)
    return _Drawn(tensors, draws.options(reduction=_REDUCTION), shape)


def _kl_div(draws: Draws) -> _Drawn:
    shape = _elements(draws)
    parameters = draws.options(reduction=(*_REDUCTION, "batchmean"), log_target=(False, True))
    x = -np.abs(draws.logits(*shape))
    t = -np.abs(draws.logits(*shape)) if parameters.get("log_target") else draws.probabilities(*shape)
    return _Drawn({"input": x, "target": t}, parameters, shape)


def _sigmoid(draws: Draws, *, rows: int = 2, loss_axes: int | None = None, **choices: tuple[Any, ...]) -> _Drawn:
    """Logits of at least so many axes, and targets in [0, 1]."""
    shape = (*draws.row_shape(rows - 1, 2), draws.classes())
    tensors = {"inputs": draws.logits(*shape), "targets": draws.probabilities(*shape)}
    return _Drawn(tensors, draws.options(num_boxes=(1.0, 2.5), **choices), shape[:loss_axes])


def _pairs(draws: Draws) -> _Drawn:
    shape = draws.row_shape()
    parameters = draws.options(reduction=_REDUCTION, box_format=("xyxy", "cxcywh"))
    tensors = {name: draws.boxes(*shape) for name in ("boxes1", "boxes2")}
    if parameters.get("box_format") != "cxcywh":
        half = {name: boxes[..., 2:] / 2 for name, boxes in tensors.items()}
        tensors = {
            name: np.concatenate([boxes[..., :2] - half[name], boxes[..., :2] + half[name]], axis=-1)
            for name, boxes in tensors.items()
        }
    return _Drawn({name: draws.cast(boxes) for name, boxes in tensors.items()}, parameters, shape)


_ALPHA, _GAMMA = (0.25, 0.6, -1.0), (2.0, 0.0, 1.5)
_BUILDERS: dict[str, Callable[[Draws], _Drawn]] = {
    "mse": lambda draws: _errors(draws, weighted=True),
    "l1": lambda draws: _errors(draws, weighted=True),
    "smooth_l1": lambda draws: _errors(draws, beta=(1.0, 0.0, 0.25, 3.0)),
    "huber": lambda draws: _errors(draws, weighted=True, delta=(1.0, 0.25, 3.0)),
    "bce": _bce,
    "bce_with_logits": _bce_with_logits,
    "kl_div": _kl_div,
    "sigmoid_focal": lambda draws: _sigmoid(draws, reduction=_REDUCTION, alpha=_ALPHA, gamma=_GAMMA),
    "varifocal": lambda draws: _sigmoid(draws, reduction=_REDUCTION, alpha=_ALPHA[:2], gamma=_GAMMA),
    "dice": lambda draws: _sigmoid(draws, loss_axes=1, reduction=("sum", "none")),
    "iou": _pairs,
    "giou": _pairs,
    "nll": _nll,
    "cross_entropy": _cross_entropy,
    "causal_lm": lambda draws: _tokens(draws, "vocab_size", shifted=True),
    "masked_lm": lambda draws: _tokens(draws, "vocab_size"),
    "token_classification": lambda draws: _tokens(draws, "num_labels"),
    "sequence_classification": _sequence_classification,
    "question_answering": _question_answering,
    "semantic_segmentation": _semantic_segmentation,
    "object_detection": lambda draws: _Drawn(*scenes.detr(draws, extra=1)),
    "segmentation": lambda draws: _Drawn(*scenes.detr(draws, extra=1, masks=True)),
    "deformable_detr_object_detection": lambda draws: _Drawn(*scenes.detr(draws)),
    "deformable_detr_segmentation": lambda draws: _Drawn(*scenes.detr(draws, masks=True)),
    "grounding_dino_object_detection": lambda draws: _Drawn(*scenes.grounding_dino(draws)),
    "rt_detr_object_detection": lambda draws: _Drawn(*scenes.rt_detr(draws)),
    "d_fine_object_detection": lambda draws: _Drawn(*scenes.rt_detr(draws, corners=True)),
    "deimv2_object_detection": lambda draws: _Drawn(
        *scenes.rt_detr(draws, corners=True, use_dense_one_to_one=(True, False), mal_alpha=(None, 0.5))
    ),
    "lw_detr_object_detection": lambda draws: _Drawn(*scenes.lw_detr(draws)),
}
