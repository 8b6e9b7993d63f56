"""Golden cases of losses of rows of classes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from refloss.cases.classes import WRAPS_TO_A_CLASS, WRAPS_TO_THE_DEFAULT, apart, improbable, many
from refloss.cases.formats import in_every_format, in_format
from refloss.cases.source import DTYPES, Case, Source

if TYPE_CHECKING:
    from collections.abc import Callable


def cross_entropy(function: str) -> list[Case]:
    """Labels and distributions over the classes, of confident, masked, ignored and weighted rows."""
    case = partial(case_of, function)
    source = Source(1)
    logits = source.normal(7, 11) * 3.0
    labels = source.integers(11, 7)
    single = logits.astype(np.float32)
    ignored = np.where([False, True, False, False, True, False, False], -100, labels)
    weight = (source.uniform(11) * 2.0 + 0.25).astype(np.float32)
    image = (source.normal(2, 5, 3, 4) * 4.0).astype(np.float32)
    image_labels = source.integers(5, 2, 3, 4)
    image_labels[0, 1] = 255
    probabilities = source.probabilities(7, 11).astype(np.float32)
    confident = single.copy()
    confident[np.arange(7), labels] = 20.0 + 10.0 * np.arange(7, dtype=np.float32)
    masked = single.copy()
    masked[:, 3] = -np.inf
    visible = np.where(labels == 3, 4, labels)
    cotangent = source.normal(7)
    everything = {"weight": weight, "label_smoothing": 0.1, "grad_output": -2.5}
    return [
        *(case(f"{name}-mean", logits.astype(dtype), ignored, grad_output=-0.75) for name, dtype in DTYPES.items()),
        case("sum", single, labels, reduction="sum", grad_output=0.3),
        case("none", single, ignored, reduction="none", grad_output=cotangent),
        case("weighted", single, ignored, weight=weight, grad_output=1.5),
        case("smoothed", single, ignored, label_smoothing=0.2, grad_output=-1.25),
        case("weighted-smoothed", single, ignored, **everything),
        case("weighted-smoothed-none", single, ignored, reduction="none", **everything | {"grad_output": cotangent}),
        case("trailing-axes", image, image_labels, ignore_index=255, grad_output=12.0),
        case("one-row", single[0], labels[0], grad_output=-1.0),
        case("probabilities", single, probabilities, grad_output=0.7),
        case("probabilities-weighted-smoothed", single, probabilities, **everything),
        case("probabilities-bfloat16", logits.astype(ml_dtypes.bfloat16), probabilities.astype(ml_dtypes.bfloat16)),
        case("confident", confident, labels, reduction="sum", grad_output=1e3),
        case("masked-classes", masked, visible, grad_output=-3.0),
        case("offset", (logits + 1e4).astype(np.float32), labels, grad_output=2.0),
        case("all-ignored", single, np.full(7, -100), grad_output=1.0),
        case("ignore-a-class", single, labels, ignore_index=int(labels[2]), grad_output=-0.5),
        *in_every_format([*_of_labels(case), *_of_distributions(case)]),
        *_of_sizes(case),
    ]


def case_of(
    function: str,
    name: str,
    logits: np.ndarray,
    target: Any,
    *,
    grad_output: Any = 1.0,
    weight: Any = None,
    **parameters: Any,
) -> Case:
    """A case of a function that takes the arguments of cross-entropy."""
    inputs = {"logits": logits, "target": np.asarray(target)}
    if weight is not None:
        inputs["weight"] = weight
    return Case(f"{function}-{name}", function, inputs, parameters, grad_output)


def _of_labels(case: Callable[..., Case]) -> list[Case]:
    """Every option at once, and labels at which softmax kernels break."""
    source = Source(101)
    logits, labels = source.normal(6, 11) * 3.0, source.integers(11, 6)
    labels[0], labels[3], labels[4] = 0, 3, 7
    weight, cotangent = source.uniform(11) * 2.0 + 0.25, source.normal(6) * 2.0
    options = {"weight": weight, "label_smoothing": 0.3, "ignore_index": 3}
    wrapping = np.where(labels == 3, WRAPS_TO_A_CLASS, labels)
    far = apart()
    return [
        case("options-mean", logits, labels, grad_output=-2.5, **options),
        case("options-sum", logits, labels, grad_output=1.75, reduction="sum", **options),
        case("options-none", logits, labels, grad_output=cotangent, reduction="none", **options),
        case("ignore-index-of-64-bits", logits, wrapping, grad_output=-0.5, ignore_index=WRAPS_TO_A_CLASS),
        case("nothing-counts", logits, np.full(6, 3), grad_output=2.0, ignore_index=3),
        case("improbable", *improbable(), grad_output=-3.0),
        case("apart", *far, grad_output=cotangent, reduction="none"),
    ]


def _of_distributions(case: Callable[..., Case]) -> list[Case]:
    """Every option at once, and targets of 0, of 1, next to 0, and that do not sum to 1."""
    source = Source(102)
    logits, target = source.normal(5, 11) * 3.0, source.uniform(5, 11) * 0.5
    weight, cotangent = source.uniform(11) * 2.0 + 0.25, source.normal(5) * 2.0
    hard = np.round(source.uniform(5, 11)) * np.where(source.uniform(5, 11) < 0.25, 2.0**-100, 1.0)
    improbable = logits - np.where(source.uniform(5, 11) < 0.5, 120.0, 0.0)
    options = {"weight": weight, "label_smoothing": 0.3}
    half = np.array([[0.0, 1.0]]), np.array([[0.25, 0.25]])
    return [
        case("probabilities-options-mean", logits, target, grad_output=-2.5, **options),
        case("probabilities-options-sum", logits, target, grad_output=1.75, reduction="sum", **options),
        case("probabilities-options-none", logits, target, grad_output=cotangent, reduction="none", **options),
        case("probabilities-hard", improbable, hard, grad_output=cotangent, reduction="none"),
        case("probabilities-of-a-half", *half),
    ]


def _of_sizes(case: Callable[..., Case]) -> list[Case]:
    """Many classes, many rows, labels of many bits; and a class of −inf that a target of 0 does not hide."""
    source = Source(103)
    rows, classes = source.uniform(70000, 2) * 8.0 - 8.0, source.integers(2, 70000).astype(np.int32)
    labels = np.array([3, WRAPS_TO_THE_DEFAULT, 0, 9])
    logits, target = source.normal(4, 11) * 3.0, source.uniform(4, 11)
    masked = logits.copy()
    masked[1, 4], target[1, 4] = -np.inf, 0.0
    wide, soft = source.normal(3, 4097) * 4.0, source.uniform(3, 4097) * 2.0**-11
    in_float32 = [
        case("rows-70000", rows, classes, grad_output=7e4),
        case("ignore-index-below-0", logits, labels, grad_output=-0.5, ignore_index=WRAPS_TO_THE_DEFAULT),
        case("probabilities-masked", masked, target, grad_output=source.normal(4), reduction="none"),
        case("probabilities-classes-4097", wide, soft, grad_output=-1.25),
    ]
    return [
        *(in_format(each, "float32") for each in in_float32),
        *(in_format(case(f"classes-{own.classes}", *own, grad_output=-1.25), name) for name, own in many(104)),
    ]


def nll(function: str) -> list[Case]:
    """Those of cross-entropy that log-probabilities of any kind have."""
    return [
        Case(
            case.id.replace("cross_entropy", function),
            function,
            {"input" if name == "logits" else name: value for name, value in case.inputs.items()},
            {name: value for name, value in case.parameters.items() if name != "label_smoothing"},
            case.grad_output,
        )
        for case in cross_entropy("cross_entropy")
        if not any(word in case.id for word in ("probabilities", "smoothed", "masked", "offset", "confident", "apart"))
    ]
