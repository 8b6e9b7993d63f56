"""The built-in cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np

from refloss.cases.source import DTYPES, Case, Source
from refloss.golden import detection

if TYPE_CHECKING:
    from collections.abc import Callable


def corpus(only: set[str] | None = None) -> list[Case]:
    """The cases of every function, or of some."""
    return [case for function, build in _BUILDERS.items() if only is None or function in only for case in build()]


def functions() -> list[str]:
    """The functions that have cases."""
    return list(_BUILDERS)


def _cross_entropy() -> list[Case]:
    def case(
        name: str, logits: np.ndarray, target: Any, *, grad_output: Any = 1.0, weight: Any = None, **parameters: Any
    ) -> Case:
        inputs = {"logits": logits, "target": np.asarray(target)}
        if weight is not None:
            inputs["weight"] = weight
        return Case(f"cross_entropy-{name}", "cross_entropy", inputs, parameters, grad_output)

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


def _language(function: str, seed: int) -> list[Case]:
    """The cases that causal and masked language modelling share."""

    def case(name: str, logits: np.ndarray, labels: np.ndarray, grad_output: float = 1.0, **parameters: Any) -> Case:
        return Case(f"{function}-{name}", function, {"logits": logits, "labels": labels}, parameters, grad_output)

    source = Source(seed)
    logits = source.normal(2, 9, 17) * 4.0
    labels = source.integers(17, 2, 9)
    single = logits.astype(np.float32)
    padded = labels.copy()
    padded[0, 6:] = -100
    padded[1, 2] = -100
    confident = single.copy()
    targets = np.roll(labels, -1, axis=1) if function == "causal_lm" else labels
    np.put_along_axis(confident, targets[..., None], np.float32(30.0), axis=-1)
    masked = single.copy()
    masked[..., 5] = -np.inf
    visible = np.where(padded == 5, 6, padded)
    poisoned = single.copy()
    poisoned[0, 7] = np.nan
    return [
        *(case(name, logits.astype(dtype), padded, grad_output=-0.625) for name, dtype in DTYPES.items()),
        case("num-items", single, padded, num_items_in_batch=40, grad_output=3.0),
        case("num-items-fraction", single, padded, num_items_in_batch=12.5, grad_output=-1.0),
        case("vocab-size", single, labels, vocab_size=17, grad_output=0.1),
        case("ignore-a-class", single, labels, ignore_index=int(labels[0, 3]), grad_output=2.0),
        case("ignore-index-0", single, labels, ignore_index=0, grad_output=-2.0),
        case("confident", confident, labels, grad_output=100.0),
        case("masked-classes", masked, visible, grad_output=1.5),
        case("all-ignored", single, np.full((2, 9), -100), grad_output=1.0),
        case("poisoned-ignored-row", poisoned, padded, grad_output=-4.0),
        case("flat-logits", single.reshape(18, 17), padded, grad_output=0.9),
        case("int32-labels", single, padded.astype(np.int32), grad_output=-0.2),
        case("large-cotangent", logits.astype(np.float16), padded, grad_output=65536.0),
    ]


def _causal_lm() -> list[Case]:
    source = Source(3)
    logits = (source.normal(2, 6, 13) * 4.0).astype(np.float32)
    labels, shifted = source.integers(13, 2, 6), source.integers(13, 2, 6)
    shifted[1, 3:] = -100
    inputs = {"logits": logits, "labels": labels, "shift_labels": shifted}
    return [
        *_language("causal_lm", 2),
        Case("causal_lm-shift-labels", "causal_lm", inputs, {"num_items_in_batch": 30}, -1.75),
        Case("causal_lm-one-token", "causal_lm", {"logits": logits[:, :1], "labels": labels[:, :1]}, {}, 1.0),
    ]


def _masked_lm() -> list[Case]:
    return _language("masked_lm", 4)


def _elements(function: str, seed: int, extra: Callable[[Pieces], list[Case]]) -> list[Case]:
    """The cases that every loss of corresponding elements has, and a function's own."""
    source = Source(seed)
    probabilities = function == "bce"
    x = source.uniform(4, 7) if probabilities else source.normal(4, 7) * 2.0
    uses_probabilities = function in ("bce", "bce_with_logits", "kl_div")
    t = source.uniform(4, 7) if uses_probabilities else source.normal(4, 7) * 2.0
    first = "logits" if function == "bce_with_logits" else "input"

    def case(
        name: str, *, values: np.ndarray = x, grad_output: Any = 1.0, dtype: Any = np.float32, **given: Any
    ) -> Case:
        arrays = {key: value for key, value in given.items() if isinstance(value, np.ndarray)}
        parameters = {key: value for key, value in given.items() if not isinstance(value, np.ndarray)}
        inputs = {first: values.astype(dtype), "target": arrays.pop("target", t).astype(dtype)}
        inputs |= {key: value.astype(np.float32) for key, value in arrays.items()}
        return Case(f"{function}-{name}", function, inputs, parameters, grad_output)

    weight = source.uniform(4, 7) * 2.0 + 0.25
    return [
        *(case(f"{name}-mean", dtype=dtype, grad_output=-0.75) for name, dtype in DTYPES.items()),
        case("sum", reduction="sum", grad_output=0.3),
        case("none", reduction="none", grad_output=source.normal(4, 7)),
        case("float64-none", dtype=np.float64, reduction="none", grad_output=source.normal(4, 7)),
        case("sum-large-cotangent", reduction="sum", grad_output=-1e6),
        case("one-element", values=x[:1, 0], target=t[:1, 0], grad_output=2.0),
        case("hit", values=t, grad_output=-1.5),
        *extra(Pieces(case, x, t, weight)),
    ]


class Pieces(NamedTuple):
    """What a function's own cases are made of."""

    case: Callable[..., Case]
    x: np.ndarray
    t: np.ndarray
    weight: np.ndarray


def _weighted(pieces: Pieces) -> list[Case]:
    weight = pieces.weight
    return [
        pieces.case("weighted", weight=weight, grad_output=1.25),
        pieces.case("weighted-sum", weight=weight, reduction="sum", grad_output=-1.25),
    ]


def _smooth_l1(pieces: Pieces) -> list[Case]:
    return [pieces.case(f"beta-{beta:g}", beta=beta, grad_output=1.25) for beta in (0.0, 0.25, 3.0)]


def _huber(pieces: Pieces) -> list[Case]:
    return [
        *_weighted(pieces),
        *(pieces.case(f"delta-{delta:g}", delta=delta, grad_output=-2.0) for delta in (0.25, 3.0)),
    ]


def _bce(pieces: Pieces) -> list[Case]:
    hard = np.round(pieces.t)
    return [
        pieces.case("weighted", weight=pieces.weight[0], grad_output=1.25),
        pieces.case("hard", target=hard, grad_output=-2.0),
        pieces.case("sure", values=hard, target=hard[::-1], reduction="none", grad_output=0.5),
    ]


def _bce_with_logits(pieces: Pieces) -> list[Case]:
    hard = np.round(pieces.t)
    return [
        pieces.case("weighted", weight=pieces.weight, grad_output=1.25),
        pieces.case("pos-weight", pos_weight=pieces.weight[0], grad_output=-1.25),
        pieces.case("weighted-pos-weight", weight=pieces.weight[:, :1], pos_weight=pieces.weight[0], grad_output=2.0),
        pieces.case("confident", values=pieces.x * 40.0, target=hard, grad_output=1e3),
        pieces.case("saturated", values=pieces.x * 500.0, target=hard, reduction="sum", grad_output=-1.0),
    ]


def _kl_div(pieces: Pieces) -> list[Case]:
    logs = -np.abs(pieces.x)
    return [
        pieces.case("batchmean", reduction="batchmean", grad_output=1.25),
        pieces.case("log-target", target=logs[::-1], log_target=True, grad_output=-1.25),
        pieces.case("log-target-none", target=logs[::-1], log_target=True, reduction="none", grad_output=pieces.t),
        pieces.case("close", values=logs, target=logs + 2.0**-12, log_target=True, reduction="sum", grad_output=3.0),
    ]


def _nll() -> list[Case]:
    return [
        Case(
            case.id.replace("cross_entropy", "nll"),
            "nll",
            {"input" if name == "logits" else name: value for name, value in case.inputs.items()},
            {name: value for name, value in case.parameters.items() if name != "label_smoothing"},
            case.grad_output,
        )
        for case in _cross_entropy()
        if not any(word in case.id for word in ("probabilities", "smoothed", "masked", "offset", "confident"))
    ]


def _token_classification() -> list[Case]:
    wanted = ("vocab-size", "int32-labels", "flat-logits")
    return [
        case._replace(
            parameters={"num_labels" if key == "vocab_size" else key: value for key, value in case.parameters.items()}
        )
        for case in _language("token_classification", 5)
        if not case.id.endswith(wanted[1:])
    ]


def _sequence_classification() -> list[Case]:
    source = Source(6)
    logits = source.normal(5, 4) * 3.0
    single = logits.astype(np.float32)
    labels, values = source.integers(4, 5), source.normal(5, 4).astype(np.float32)
    several = source.integers(2, 5, 4).astype(np.float32)

    def case(name: str, logits: np.ndarray, labels: np.ndarray, grad_output: float = -1.5, **parameters: Any) -> Case:
        inputs = {"pooled_logits": logits, "labels": labels}
        return Case(f"sequence_classification-{name}", "sequence_classification", inputs, parameters, grad_output)

    return [
        *(case(f"{name}-one-label", logits.astype(dtype), labels) for name, dtype in DTYPES.items()),
        case("ignored", single, np.where(labels == 2, -100, labels), 2.0, num_labels=4),
        case("ignore-a-class", single, labels, 2.0, ignore_index=int(labels[0])),
        case("num-items", single, labels, 0.5, num_items_in_batch=11),
        case("several-labels", single, several, 3.0),
        case("several-labels-bfloat16", logits.astype(ml_dtypes.bfloat16), several, 3.0, num_labels=4),
        case("several-labels-stated", single, several.astype(np.int64), problem_type="multi_label_classification"),
        case("values", single, values, 0.25, problem_type="regression"),
        case("one-value", single[:, :1], values[:, 0]),
        case("one-value-float16", logits[:, :1].astype(np.float16), values[:, :1], 100.0, num_labels=1),
        case("one-value-of-one", single[:1, :1], values[:1, :1], 4.0),
        case("stated-one-label", single, labels, 1.0, problem_type="single_label_classification"),
    ]


def _question_answering() -> list[Case]:
    source = Source(7)
    start, end = source.normal(5, 9) * 4.0, source.normal(5, 9) * 4.0
    first, last = source.integers(9, 5), source.integers(9, 5)
    outside = np.array([0, 9, 14, -3, 5])

    def case(
        name: str, at: np.ndarray = first, dtype: Any = np.float32, grad_output: float = -1.5, **parameters: Any
    ) -> Case:
        inputs = {"start_logits": start.astype(dtype), "end_logits": end.astype(dtype)}
        inputs |= {"start_positions": at, "end_positions": last}
        return Case(f"question_answering-{name}", "question_answering", inputs, parameters, grad_output)

    return [
        *(case(name, dtype=dtype) for name, dtype in DTYPES.items()),
        *(case(f"{name}-outside", outside, dtype, 2.0) for name, dtype in DTYPES.items()),
        case("additional-axis", first[:, None], grad_output=0.5),
        case("num-items", outside, num_items_in_batch=8, grad_output=3.0),
        case("all-outside", np.full(5, 20), grad_output=1.0),
        case("int32-positions", first.astype(np.int32), grad_output=7.0),
    ]


def _semantic_segmentation() -> list[Case]:
    source = Source(8)
    logits, auxiliary = source.normal(2, 4, 3, 5) * 3.0, (source.normal(2, 4, 2, 2) * 3.0).astype(np.float32)
    labels = source.integers(4, 2, 7, 8)
    ignored = labels.copy()
    ignored[0, 2:4] = 255

    def case(
        name: str, at: np.ndarray = ignored, dtype: Any = np.float32, grad_output: float = -1.5, **given: Any
    ) -> Case:
        inputs = {"logits": logits.astype(dtype), "labels": at}
        if "auxiliary_logits" in given:
            inputs["auxiliary_logits"] = given.pop("auxiliary_logits")
        return Case(f"semantic_segmentation-{name}", "semantic_segmentation", inputs, given, grad_output)

    return [
        *(case(name, dtype=dtype) for name, dtype in DTYPES.items()),
        case("all-pixels", labels, grad_output=2.0),
        case("auxiliary", auxiliary_logits=auxiliary, grad_output=0.5),
        case("auxiliary-weight", auxiliary_logits=auxiliary, auxiliary_loss_weight=1.5),
        case("ignore-a-class", labels, ignore_index=2, grad_output=3.0),
        case("num-items", num_items_in_batch=200, grad_output=-4.0),
        case("same-size", labels[:, :3, :5], grad_output=1.0),
        case("smaller", labels[:, :2, :2], grad_output=2.5),
        case("all-ignored", np.full((2, 7, 8), 255), grad_output=1.0),
    ]


_BUILDERS: dict[str, Callable[[], list[Case]]] = {
    "mse": lambda: _elements("mse", 10, _weighted),
    "l1": lambda: _elements("l1", 11, _weighted),
    "smooth_l1": lambda: _elements("smooth_l1", 12, _smooth_l1),
    "huber": lambda: _elements("huber", 13, _huber),
    "bce": lambda: _elements("bce", 14, _bce),
    "bce_with_logits": lambda: _elements("bce_with_logits", 15, _bce_with_logits),
    "kl_div": lambda: _elements("kl_div", 16, _kl_div),
    "nll": _nll,
    **detection.BUILDERS,
    "cross_entropy": _cross_entropy,
    "causal_lm": _causal_lm,
    "masked_lm": _masked_lm,
    "token_classification": _token_classification,
    "sequence_classification": _sequence_classification,
    "question_answering": _question_answering,
    "semantic_segmentation": _semantic_segmentation,
}
