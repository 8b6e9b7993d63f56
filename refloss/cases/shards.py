"""Cases of a vocabulary in parts: cuts of any width, labels at their edges, and rows that lie on one rank."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.cases.classes import WRAPS_TO_A_CLASS, WRAPS_TO_THE_DEFAULT, apart, improbable, one_of_many
from refloss.cases.draws import Drawn
from refloss.cases.formats import in_every_format, in_format
from refloss.cases.source import DTYPES, Case, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from refloss.cases.draws import Draws, Tried

_ALL = {"logit_scale": 0.625, "softcap": 4.0, "temperature": 0.7, "z_loss": 0.05}


def _case(
    function: str,
    name: str,
    logits: np.ndarray,
    target: Any,
    widths: Any = None,
    grad_output: Any = -1.25,
    **given: Any,
) -> Case:
    inputs = {"shards": logits, "target": np.asarray(target)}
    if widths is not None:
        inputs["widths"] = np.array(widths)
    return Case(f"{function}-{name}", function, inputs, given, grad_output)


def vocab_parallel_cross_entropy(function: str) -> list[Case]:
    """Ranks of a class each, of one class beside many, of none; smoothing in its variants, and every option at once."""
    case, source = partial(_case, function), Source(501)
    logits, labels = source.normal(7, 11) * 3.0, source.integers(11, 7)
    single = logits.astype(np.float32)
    # The first and the last class of ranks of 4, 1 and 6.
    labels[:6] = [0, 3, 4, 5, 10, 4]
    ignored = np.where([False, True, False, False, False, False, True], -100, labels)
    below = np.where(np.arange(7) == 1, WRAPS_TO_THE_DEFAULT, labels)
    cotangent, cut = source.normal(7), (4, 1, 6)
    sequences = source.normal(2, 3, 11).astype(np.float32)
    named = {"label_smoothing": 0.1, "label_smoothing_classes": "global"}
    return [
        *(case(name, logits.astype(dtype), ignored, cut, -0.75) for name, dtype in DTYPES.items()),
        case("one-rank", single, ignored, grad_output=0.5),
        case("a-class-each", single, labels, [1] * 11, 2.0),
        case("empty-ranks", single, labels, [0, 5, 0, 6, 0], 2.0, label_smoothing=0.1),
        case("sequences", sequences, labels[:6].reshape(2, 3), cut, reduction="sum"),
        case("none", single, ignored, cut, cotangent, reduction="none"),
        case("smoothed", single, ignored, cut, **named),
        case("smoothed-megatron", single, ignored, cut, label_smoothing_formula="megatron", label_smoothing=0.1),
        case("all-ignored", single, np.full(7, -100), cut, 1.0),
        case("ignore-index-below-0", single, below, cut, ignore_index=WRAPS_TO_THE_DEFAULT),
        *_of_rows(case, single, labels),
        *in_every_format(_of_options(case, logits, labels, cotangent)),
        *in_every_format(_unlike(case, logits, labels, cotangent)),
        *(
            in_format(case(f"classes-{own.classes}", *own, _thirds(own.classes)), name)
            for name, own in one_of_many(502)
        ),
    ]


def _thirds(classes: int) -> tuple[int, int, int]:
    return classes // 3, classes // 3, classes - 2 * (classes // 3)


def _of_rows(case: Callable[..., Case], single: np.ndarray, labels: np.ndarray) -> list[Case]:
    """Where a rank has all of the probability, nearly none of it, or no class that counts."""
    alone = single.copy()
    alone[:, 4] += 120.0
    steps = single + np.repeat(np.array([0.0, 100.0, 700.0], np.float32), (4, 1, 6))
    masked = single.copy()
    masked[:, :4] = -np.inf
    visible = np.where(labels < 4, labels + 4, labels)
    poisoned = single.copy()
    poisoned[1, 2], poisoned[2, 5] = np.nan, np.inf
    hidden = np.where((np.arange(7) == 1) | (np.arange(7) == 2), -100, labels)
    return [
        case("one-rank-has-it-all", alone, labels, (4, 1, 6), -3.0),
        case("ranks-far-apart", steps, labels, (4, 1, 6), 0.5),
        case("a-rank-is-masked", masked, visible, (4, 1, 6), 1.5),
        case("poisoned", poisoned, hidden, (4, 1, 6), 1.5),
        case("offset", single + np.float32(1e4), labels, (4, 1, 6), 2.0),
    ]


def _of_options(case: Callable[..., Case], logits: np.ndarray, labels: np.ndarray, cotangent: np.ndarray) -> list[Case]:
    """Every option at once, and a chain."""
    cut = (4, 1, 6)
    megatron = {"label_smoothing": 0.75, "label_smoothing_formula": "megatron"}
    return [
        case("options-mean", logits, labels, cut, -2.5, ignore_index=3, label_smoothing=0.3, **_ALL),
        case("options-megatron", logits, labels, cut, cotangent, reduction="none", ignore_index=3, **megatron),
        case("options-sum", logits, labels, cut, 1.75, reduction="sum", ignore_index=3, **megatron, **_ALL),
    ]


def _unlike(case: Callable[..., Case], logits: np.ndarray, labels: np.ndarray, cotangent: np.ndarray) -> list[Case]:
    """Labels of 64 bits, improbable ones, and rows of logits of unlike sizes."""
    wrapping, cut = np.where(labels == 3, WRAPS_TO_A_CLASS, labels), (4, 1, 6)
    return [
        case("ignore-index-of-64-bits", logits, wrapping, cut, -0.5, ignore_index=WRAPS_TO_A_CLASS),
        case("improbable", *improbable(), (1, 2), -3.0),
        case("apart", *apart(), cut, cotangent[:6], reduction="none"),
    ]


def draw(draws: Draws, specified: Mapping[str, Tried]) -> Drawn:
    """Rows of classes, cut anywhere."""
    classes, rows = draws.classes(), draws.row_shape(1, 2)
    parameters = draws.parameters(specified)
    if parameters.get("label_smoothing_formula") == "megatron" and classes < 2:
        del parameters["label_smoothing_formula"]
    ignore_index = int(parameters.get("ignore_index", -100))
    target = draws.labels(rows, classes, ignore_index)
    logits = draws.logits(*rows, classes)
    sharp = parameters.get("label_smoothing", 0.0) == 0.0
    draws.adverse(logits, -1, target, target == ignore_index, masks=sharp)
    inputs = {"shards": logits, "target": target}
    if not draws.limits.exact and draws.maybe():
        first = draws.size(0, classes)
        second = draws.size(0, classes - first)
        inputs["widths"] = draws.integers(np.array([first, second, classes - first - second]))
    return Drawn(inputs, parameters, rows)
