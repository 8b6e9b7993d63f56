"""Golden cases of losses of rows of classes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from refloss.cases.source import DTYPES, Case, Source


def cross_entropy(function: str) -> list[Case]:
    """Labels and distributions over the classes, of confident, masked, ignored and weighted rows."""

    def case(
        name: str, logits: np.ndarray, target: Any, *, grad_output: Any = 1.0, weight: Any = None, **parameters: Any
    ) -> Case:
        inputs = {"logits": logits, "target": np.asarray(target)}
        if weight is not None:
            inputs["weight"] = weight
        return Case(f"{function}-{name}", function, inputs, parameters, grad_output)

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
        if not any(word in case.id for word in ("probabilities", "smoothed", "masked", "offset", "confident"))
    ]
