"""Golden and drawn cases of losses that sum over alignments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.cases.draws import Drawn, Draws
from refloss.cases.formats import in_every_format
from refloss.cases.source import DTYPES, Case, Source

if TYPE_CHECKING:
    from collections.abc import Callable

_Call = tuple[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any], Any]
_LARGEST = 1e6  # of logits that are drawn: what is far above it counts as infinite
_MARGIN = 8.0  # of sure frames: float32 still has some digits of what is left


def ctc(function: str) -> list[Case]:
    """Log-probabilities [T, N, C]; targets in rows, but for those that stand one after the other."""

    def case(call: _Call) -> Case:
        name, logits, targets, frames, labels, parameters, grad_output = call
        inputs = {
            "log_probs": np.ascontiguousarray(_log_probabilities(logits).transpose(1, 0, 2)).astype(logits.dtype),
            "targets": targets,
            "input_lengths": frames,
            "target_lengths": labels,
        }
        return Case(f"{function}-{name}", function, inputs, parameters, grad_output)

    plain = [case(call) for call in _calls("blank")]
    one = next(each for each in plain if each.id.endswith("-sum"))
    lengths = one.inputs["target_lengths"]
    flat = np.concatenate([row[:n] for row, n in zip(one.inputs["targets"], lengths, strict=True)])
    single = {
        "log_probs": one.inputs["log_probs"][:, 0],
        "targets": one.inputs["targets"][0, : lengths[0]],
        "input_lengths": one.inputs["input_lengths"][0],
        "target_lengths": lengths[0],
    }
    return [
        *plain,
        one._replace(id=f"{function}-one-after-the-other", inputs=one.inputs | {"targets": flat}),
        one._replace(id=f"{function}-one-sequence", inputs={name: np.asarray(value) for name, value in single.items()}),
        _with_blanks(case),
    ]


def _with_blanks(case: Callable[[_Call], Case]) -> Case:
    """Blanks among the labels: states of their own."""
    source = Source(205)
    logits = (2.0 * source.normal(2, 9, 5)).astype(np.float32)
    targets = np.array([[1, 0, 1], [0, 0, 2]])
    return case(("blank-in-target", logits, targets, np.array([9, 8]), np.array([3, 3]), {"reduction": "sum"}, -0.5))


def ctc_of_logits(function: str) -> list[Case]:
    """Logits [B, T, V]; what is behind a target is filled up."""

    def case(call: _Call) -> Case:
        name, logits, targets, frames, labels, parameters, grad_output = call
        blank = parameters.get("blank_token_id", 0)
        filling = parameters.get("ignore_index", -100) if "filled-with-blank" not in name else blank
        counts = np.arange(targets.shape[1]) < labels[:, None]
        inputs = {"logits": logits, "labels": np.where(counts, targets, filling), "logit_lengths": frames}
        return Case(f"{function}-{name}", function, inputs, {"blank_token_id": blank, **parameters}, grad_output)

    calls = _calls("blank_token_id")
    _, logits, targets, frames, labels, *_ = calls[0]
    options = {"ignore_index": 3, "reduction": "sum"}
    scattered = in_every_format(
        [
            case(("ignore-index", np.asarray(logits, np.float64), targets % 3 + 4, frames, labels, options, 0.7)),
            case(("filled-with-blank", np.asarray(logits, np.float64), targets, frames, labels, {}, -1.3)),
        ]
    )
    return [*(case(call) for call in calls), *scattered]


def _calls(blank: str) -> list[_Call]:
    """What both have: logits [N, T, C], targets [N, U], lengths, parameters and a cotangent."""
    source = Source(201)
    logits, targets = 2.0 * source.normal(4, 12, 7), 1 + source.integers(6, 4, 4)
    targets[0] = [3, 3, 1, 3]
    frames, labels = np.array([12, 10, 7, 11]), np.array([4, 3, 2, 0])
    poisoned = logits.copy()
    poisoned[1, 10:], poisoned[2, 7:] = np.nan, np.inf
    masked = logits.copy()
    masked[:, :, 6] = -np.inf
    masked[:, 2::4, 3] = -np.inf
    visible = np.where(targets == 6, 2, targets)
    sure = logits * 0.25
    sure[:, np.arange(12), [0, 1, 1, 0, 2, 0, 0, 2, 3, 3, 0, 0]] += _MARGIN
    said = np.array([[1, 2, 2, 3]] * 4)
    few, cotangent = np.array([4, 2, 7, 11]), source.normal(4)
    whole = np.array([12, 12, 12, 12])
    every: list[_Call] = [
        ("options-infeasible", logits, targets, few, labels, {"zero_infinity": True, "reduction": "sum"}, 1.75),
        ("options-blank", logits, targets % 5, frames, labels, {blank: 5}, -2.5),
        ("options-none", logits, targets, frames, labels, {"reduction": "none"}, cotangent),
    ]
    return [
        *((name, logits.astype(dtype), targets, frames, labels, {}, -0.75) for name, dtype in DTYPES.items()),
        ("sum", logits.astype(np.float32), targets, frames, labels, {"reduction": "sum"}, 0.3),
        *((_suffixed(*call, dtype)) for call in every for dtype in DTYPES),
        ("poisoned-padding", poisoned.astype(np.float32), targets, frames, labels, {}, 2.0),
        ("masked-classes", masked.astype(np.float32), visible, frames, labels, {"reduction": "sum"}, -3.0),
        ("sure", sure.astype(np.float32), said, whole, np.array([4, 4, 4, 4]), {"reduction": "none"}, cotangent),
        ("infeasible", logits.astype(np.float32), targets, few, labels, {"reduction": "none"}, cotangent),
        ("no-frames", logits.astype(np.float32), targets, np.array([0, 10, 7, 0]), np.array([0, 3, 2, 0]), {}, -1.0),
        ("int32", logits.astype(np.float32), targets.astype(np.int32), frames.astype(np.int32), labels, {}, 1.5),
        _many(),
    ]


def _suffixed(
    name: str,
    logits: np.ndarray,
    targets: np.ndarray,
    frames: np.ndarray,
    labels: np.ndarray,
    parameters: dict[str, Any],
    grad_output: Any,
    dtype: str,
) -> _Call:
    suffix = "" if dtype == "float32" else f"-{dtype}"
    return f"{name}{suffix}", logits.astype(DTYPES[dtype]), targets, frames, labels, parameters, grad_output


def _many() -> _Call:
    """More frames than a block has, more classes than a lane, and labels that come again."""
    source = Source(203)
    logits, targets = (2.0 * source.normal(2, 90, 131)).astype(np.float32), 1 + source.integers(9, 2, 30)
    return "long", logits, targets, np.array([90, 77]), np.array([30, 21]), {"reduction": "sum"}, 0.25


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Logits less the largest of a frame and a half: roughly those of probabilities, without taking an exponential."""
    values = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray(values - values.max(axis=-1, keepdims=True) - 0.5)


def _drawn(draws: Draws, blank: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Logits [N, T, C], labels [N, U], lengths, and options; every target has an alignment."""
    count, classes = draws.rows(), draws.classes()
    most = draws.size(0, 3) if classes > 1 else 0
    frames = 2 * most + draws.size(1, 3)
    blank_class = draws.size(0, min(classes, 8) - 1)
    labels = (draws.uniform(count, most) * (classes - 1)).astype(np.int64)
    labels += labels >= blank_class
    of_targets = (draws.uniform(count) * (most + 1)).astype(np.int64)
    of_inputs = np.minimum(2 * of_targets + (draws.uniform(count) * 4).astype(np.int64), frames)
    logits = draws.logits(count, frames, classes) if count * frames else np.zeros((count, frames, classes), draws.dtype)
    logits = draws.cast(np.clip(logits.astype(np.float64), -_LARGEST, _LARGEST))
    if draws.limits.extreme and draws.maybe():
        logits[np.arange(frames) >= of_inputs[:, None]] = draws.one_of(np.nan, np.inf, -np.inf)
    return logits, labels, of_inputs, of_targets, {blank: blank_class}


def draw_log_probabilities(draws: Draws) -> Drawn:
    """Numbers up to 0 for ctc."""
    logits, labels, of_inputs, of_targets, options = _drawn(draws, "blank")
    parameters = draws.options(reduction=("mean", "sum", "none"), zero_infinity=(False, True)) | options
    inputs = {
        "log_probs": -np.abs(np.ascontiguousarray(logits.transpose(1, 0, 2))),
        "targets": draws.integers(labels),
        "input_lengths": of_inputs,
        "target_lengths": of_targets,
    }
    return Drawn(inputs, parameters, (len(labels),))


def draw_logits(draws: Draws) -> Drawn:
    """Any for ctc_of_logits."""
    logits, labels, of_inputs, of_targets, options = _drawn(draws, "blank_token_id")
    given = draws.options(reduction=("mean", "sum", "none"), zero_infinity=(False, True), ignore_index=(-100, -1))
    filling = given.get("ignore_index", -100)
    counts = np.arange(labels.shape[1]) < of_targets[:, None]
    inputs = {
        "logits": logits,
        "labels": draws.integers(np.where(counts, labels, filling)),
        "logit_lengths": of_inputs,
    }
    return Drawn(inputs, given | options, (len(labels),))


def wrong_lengths(case: Case) -> dict[str, dict[str, np.ndarray]]:
    """Every frame counts, whatever the lengths say."""
    frames = case.inputs["log_probs"].shape[0]
    return {"frames beyond input_lengths count": {"input_lengths": np.full_like(case.inputs["input_lengths"], frames)}}


def wrong_logit_lengths(case: Case) -> dict[str, dict[str, np.ndarray]]:
    """The same of logits."""
    frames = case.inputs["logits"].shape[1]
    return {"frames beyond logit_lengths count": {"logit_lengths": np.full_like(case.inputs["logit_lengths"], frames)}}
