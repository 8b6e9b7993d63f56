"""Cases for metamorphic checks, and how the arguments of each function lie, which says what may be done to them.

Logits are multiples of a power of two and not large, so that a shift of them is exact in every type.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss.cases.source import DTYPES, Case, Source
from refloss.golden.corpus import corpus
from refloss.registry import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# What logits are multiples of: sums with SHIFTS have no more digits than each type holds.
_GRIDS = {"float64": 2.0**-20, "float32": 2.0**-10, "float16": 2.0**-3, "bfloat16": 1.0}
SHIFTS = (128.0, -128.0, 64.0, -32.0)
_IGNORED = -100


class Form(NamedTuple):
    """How a function's arguments lie.

    rows: arguments whose first axis is that of the batch, as it is for their gradients.
    classes: arguments with an axis of classes, and which it is.
    labels: arguments that hold indices into that axis.
    softmax: those of classes which a softmax runs over.
    padded: axes along which ignored rows may be added; ignored is the label that marks them by default, None for one
        more than there are classes.
    counted: what "mean" divides the sum over rows by.
    positive: whether no loss is negative.
    """

    cases: Callable[[_Maker], list[Case]]
    rows: tuple[str, ...] = ()
    classes: Mapping[str, int] = {}
    labels: tuple[str, ...] = ()
    softmax: tuple[str, ...] = ()
    padded: tuple[int, ...] = ()
    ignored: int | None = _IGNORED
    counted: Callable[[Case], float] | None = None
    positive: bool = True

    def ignore_index(self, case: Case) -> int:
        """The label of rows that do not count."""
        if self.ignored is None:
            return int(case.inputs[self.softmax[0]].shape[-1])
        return int(case.parameters.get("ignore_index", self.ignored))


def cases(function: str, compute_dtype: str, seed: int) -> list[Case]:
    """The cases of a seed, with inputs of the type that is computed in."""
    dtype = compute_dtype if compute_dtype in DTYPES else "float32"
    return FORMS[function].cases(_Maker(function, dtype, seed))


class _Maker:
    """Values of a dtype, and cases of them."""

    def __init__(self, function: str, dtype: str, seed: int) -> None:
        self.function, self.seed = function, seed
        self.dtype, self._grid = DTYPES[dtype], _GRIDS[dtype]
        self.source = Source(1000 + seed)

    def logits(self, *shape: int) -> np.ndarray:
        """Values up to 8."""
        values = np.round(3.0 * self.source.normal(*shape) / self._grid) * self._grid
        return np.clip(values, -8.0, 8.0).astype(self.dtype)

    def labels(self, classes: int, *shape: int, ignored: Any = None) -> np.ndarray:
        """Classes, of which some rows are ignored by a label, at least the first and never the last."""
        labels = self.source.integers(classes, *shape)
        if ignored is None:
            return labels
        marked = self.source.uniform(*shape) < 0.25
        marked.flat[0], marked.flat[-1] = True, False
        return np.where(marked, ignored, labels)

    def parts(self, number: int, low: int, high: int, *shape: int) -> np.ndarray:
        """Multiples of 1/number, from low to high of them."""
        return ((low + self.source.integers(high + 1 - low, *shape)) / number).astype(self.dtype)

    def weights(self, *shape: int) -> np.ndarray:
        """Positive values."""
        return self.parts(4, 1, 8, *shape)

    def probabilities(self, *shape: int) -> np.ndarray:
        """Values between 0 and 1."""
        return self.parts(16, 1, 15, *shape)

    def cotangents(self, *shape: int) -> np.ndarray:
        """Signed values, none of them 0."""
        signs = 2.0 * self.source.integers(2, *shape) - 1.0
        return signs * self.parts(4, 1, 8, *shape).astype(np.float64)

    def case(self, name: str, inputs: dict[str, np.ndarray], grad_output: Any = -1.5, **parameters: Any) -> Case:
        """A case whose id has the seed."""
        return Case(f"{self.function}-{name}-{self.seed}", self.function, inputs, parameters, grad_output)


def _cross_entropy(make: _Maker) -> list[Case]:
    logits, labels = make.logits(6, 5), make.labels(5, 6, ignored=_IGNORED)
    given, weighted = {"logits": logits, "target": labels}, {"weight": make.weights(5)}
    image = {"logits": make.logits(3, 4, 2), "target": make.labels(4, 3, 2)}
    confident = logits.copy()
    confident[np.arange(6), np.maximum(labels, 0)] = 64.0
    return [
        make.case("mean", given),
        make.case("confident", given | {"logits": confident}),
        make.case("sum-weighted", given | weighted, reduction="sum"),
        make.case("weighted", given | weighted),
        make.case("smoothed-none", given, make.cotangents(6), reduction="none", label_smoothing=0.125),
        make.case("weighted-smoothed", given | weighted, label_smoothing=0.125),
        make.case("trailing-axis", image),
        make.case("ignore-a-class", given | {"target": make.labels(5, 6)}, ignore_index=2, reduction="sum"),
        make.case("probabilities", given | {"target": make.probabilities(6, 5)}),
    ]


def _nll(make: _Maker) -> list[Case]:
    given = {"input": -np.abs(make.logits(6, 5)), "target": make.labels(5, 6, ignored=_IGNORED)}
    return [
        make.case("mean", given),
        make.case("weighted", given | {"weight": make.weights(5)}),
        make.case("sum", given, reduction="sum"),
        make.case("none", given, make.cotangents(6), reduction="none"),
    ]


def _tokens(make: _Maker) -> list[Case]:
    logits, labels = make.logits(4, 3, 7), make.labels(7, 4, 3, ignored=_IGNORED)
    confident = logits.copy()
    targets = np.roll(labels, -1, axis=1) if make.function == "causal_lm" else labels
    np.put_along_axis(confident, np.maximum(targets, 0)[..., None], np.asarray(64.0, make.dtype), axis=-1)
    given = {"logits": logits, "labels": labels}
    return [
        make.case("mean", given),
        make.case("confident", given | {"logits": confident}),
        make.case("num-items", given, num_items_in_batch=16),
        make.case("ignore-index", given | {"labels": np.where(labels < 0, 3, labels)}, ignore_index=3),
    ]


def _sequence_classification(make: _Maker) -> list[Case]:
    given = {"pooled_logits": make.logits(6, 4), "labels": make.labels(4, 6, ignored=_IGNORED)}
    return [make.case("mean", given), make.case("num-items", given, num_items_in_batch=8)]


def _question_answering(make: _Maker) -> list[Case]:
    start = make.labels(6, 5, ignored=6)
    end = np.where(start == 6, 6, make.labels(6, 5))
    given = {"start_logits": make.logits(5, 6), "end_logits": make.logits(5, 6)}
    given |= {"start_positions": start, "end_positions": end}
    return [make.case("mean", given), make.case("num-items", given, num_items_in_batch=8)]


def _semantic_segmentation(make: _Maker) -> list[Case]:
    labels = make.labels(4, 3, 5, 4, ignored=255)
    given = {"logits": make.logits(3, 4, 2, 3), "labels": labels}
    more = {"auxiliary_logits": make.logits(3, 4, 2, 2)}
    return [
        make.case("mean", given),
        make.case("auxiliary", given | more),
        make.case("num-items", given, num_items_in_batch=64),
    ]


def _reductions(make: _Maker, inputs: dict[str, np.ndarray], shape: tuple[int, ...], **parameters: Any) -> list[Case]:
    return [
        make.case("default", inputs, **parameters),
        make.case("sum", inputs, reduction="sum", **parameters),
        make.case("none", inputs, make.cotangents(*shape), reduction="none", **parameters),
    ]


def _errors(make: _Maker) -> list[Case]:
    given = {"input": make.logits(4, 5), "target": make.logits(4, 5)}
    weighted = given | {"weight": make.weights(4, 5)}
    of_weight = (
        [make.case("weighted", weighted, reduction="sum")] if "weight" in FUNCTIONS[make.function].optional else []
    )
    return [*_reductions(make, given, (4, 5)), *of_weight]


def _binary(make: _Maker) -> list[Case]:
    first, values = (
        ("logits", make.logits(4, 5)) if make.function == "bce_with_logits" else ("input", make.probabilities(4, 5))
    )
    given = {first: values, "target": make.probabilities(4, 5)}
    return [*_reductions(make, given, (4, 5)), make.case("weighted", given | {"weight": make.weights(4, 5)})]


def _kl_div(make: _Maker) -> list[Case]:
    given = {"input": -np.abs(make.logits(4, 5)), "target": make.probabilities(4, 5)}
    return [*_reductions(make, given, (4, 5)), make.case("batchmean", given, reduction="batchmean")]


def _sigmoid(make: _Maker) -> list[Case]:
    given = {"inputs": make.logits(4, 5), "targets": make.probabilities(4, 5)}
    return _reductions(make, given, (4,) if make.function == "dice" else (4, 5), num_boxes=2.0)


def _pairs(make: _Maker) -> list[Case]:
    boxes = {}
    for name in ("boxes1", "boxes2"):
        low = make.parts(32, 0, 16, 6, 2)
        boxes[name] = np.concatenate([low, low + make.parts(32, 1, 16, 6, 2)], axis=1)
    return _reductions(make, boxes, (6,))


@functools.cache
def _built_in(function: str, dtype: Any) -> list[Case]:
    first = FUNCTIONS[function].required[0]
    return [case for case in corpus({function}) if case.inputs[first].dtype == dtype]


def _heads(make: _Maker) -> list[Case]:
    """One of the built-in cases."""
    known = _built_in(make.function, make.dtype)
    return [known[make.seed % len(known)]]


def _labelled(case: Case, name: str, ignored: int) -> float:
    return float(np.count_nonzero(case.inputs[name] != case.parameters.get("ignore_index", ignored)))


def _weighed(case: Case) -> float:
    """Σ of the weights of the labels that count, or the number of rows for probabilities."""
    target = case.inputs["target"]
    if target.dtype.kind not in "iu":
        return float(len(target))
    counted = target[target != case.parameters.get("ignore_index", _IGNORED)]
    weight = case.inputs.get("weight")
    return float(counted.size if weight is None else weight.astype(np.float64)[counted].sum())


def _tokens_counted(case: Case) -> float:
    ignore_index = case.parameters.get("ignore_index", _IGNORED)
    labels = case.inputs["labels"]
    return float(np.count_nonzero((labels[:, 1:] if case.function == "causal_lm" else labels) != ignore_index))


def _size(case: Case) -> float:
    """How many losses there are; or how many rows."""
    first = next(iter(case.inputs.values()))
    whole = case.parameters.get("reduction") == "batchmean" or case.function in ("iou", "giou")
    return float(len(first) if whole else first.size)


def _answers_counted(case: Case) -> float:
    return float(np.count_nonzero(case.inputs["start_positions"] < case.inputs["start_logits"].shape[1]))


_ELEMENTS = Form(_errors, rows=("input", "target", "weight"), counted=_size)
_LOGITS = Form(_sigmoid, rows=("inputs", "targets"))
_LABELLED = ("logits", "labels")
_TOKENS = Form(_tokens, _LABELLED, {"logits": -1}, ("labels",), ("logits",), padded=(0, 1), counted=_tokens_counted)

FORMS: dict[str, Form] = {
    **dict.fromkeys(("mse", "l1", "smooth_l1", "huber"), _ELEMENTS),
    "bce": _ELEMENTS._replace(cases=_binary),
    "bce_with_logits": _ELEMENTS._replace(cases=_binary, rows=("logits", "target", "weight")),
    "kl_div": _ELEMENTS._replace(cases=_kl_div, positive=False),
    **dict.fromkeys(("sigmoid_focal", "varifocal", "dice"), _LOGITS),
    **dict.fromkeys(("iou", "giou"), Form(_pairs, rows=("boxes1", "boxes2"), counted=_size)),
    "nll": Form(_nll, ("input", "target"), {"input": 1, "weight": 0}, ("target",), padded=(0,), counted=_weighed),
    "cross_entropy": Form(
        _cross_entropy,
        ("logits", "target"),
        {"logits": 1, "weight": 0},
        ("target",),
        ("logits",),
        padded=(0,),
        counted=_weighed,
    ),
    **dict.fromkeys(("causal_lm", "masked_lm", "token_classification"), _TOKENS),
    "sequence_classification": Form(
        _sequence_classification,
        ("pooled_logits", "labels"),
        {"pooled_logits": 1},
        ("labels",),
        ("pooled_logits",),
        padded=(0,),
        counted=lambda case: _labelled(case, "labels", _IGNORED),
    ),
    "question_answering": Form(
        _question_answering,
        ("start_logits", "end_logits", "start_positions", "end_positions"),
        {"start_logits": 1, "end_logits": 1},
        ("start_positions", "end_positions"),
        ("start_logits", "end_logits"),
        padded=(0,),
        ignored=None,
        counted=_answers_counted,
    ),
    "semantic_segmentation": Form(
        _semantic_segmentation,
        (*_LABELLED, "auxiliary_logits"),
        {"logits": 1, "auxiliary_logits": 1},
        ("labels",),
        ("logits", "auxiliary_logits"),
        padded=(0,),
        ignored=255,
        counted=lambda case: _labelled(case, "labels", 255),
    ),
    **{name: Form(_heads) for name, function in FUNCTIONS.items() if function.nested},
}
