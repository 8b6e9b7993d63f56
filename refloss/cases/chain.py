"""Golden cases of losses whose logits go through a chain, and that have a z-loss."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.cases import language, rows
from refloss.cases.formats import in_every_format, in_format
from refloss.cases.source import Case, Source

if TYPE_CHECKING:
    from collections.abc import Callable

ALL = {"logit_scale": 0.625, "softcap": 4.0, "temperature": 0.7, "z_loss": 0.05}


def cross_entropy(function: str) -> list[Case]:
    """Those of logits as they are, and of a chain: options at once, saturated, sure, and what cancels."""
    case = partial(rows.case_of, function)
    return [
        *rows.cross_entropy(function),
        *in_every_format([*_of_labels(case), *_of_distributions(case)]),
        *_of_one_option(case),
    ]


def _of_labels(case: Callable[..., Case]) -> list[Case]:
    source = Source(401)
    logits, labels = source.normal(6, 11) * 4.0, source.integers(11, 6)
    labels[0], labels[3] = 0, 3
    weight, cotangent = source.uniform(11) * 2.0 + 0.25, source.normal(6) * 2.0
    options = {"weight": weight, "label_smoothing": 0.3, "ignore_index": 3, **ALL}
    return [
        case("chain-options-mean", logits, labels, grad_output=-2.5, **options),
        case("chain-options-none", logits, labels, grad_output=cotangent, reduction="none", **options),
    ]


def _of_distributions(case: Callable[..., Case]) -> list[Case]:
    source = Source(402)
    logits, target = source.normal(5, 11) * 4.0, source.uniform(5, 11) * 0.5
    weight = source.uniform(11) * 2.0 + 0.25
    return [
        case("chain-probabilities", logits, target, grad_output=1.75, reduction="sum", weight=weight, **ALL),
    ]


def _of_one_option(case: Callable[..., Case]) -> list[Case]:
    """Where one of them is hard: tanh at its ends, rows that are sure, and a z-loss that cancels."""
    source = Source(403)
    logits, labels = source.normal(6, 13) * 3.0, source.integers(13, 6)
    # What is asked for is not capped: of its gradient 16 bits leave something.
    saturated = logits * 20.0
    asked = np.argmin(np.abs(saturated), axis=1)
    sure = logits.copy()
    sure[np.arange(6), labels] = 20.0 + 12.0 * np.arange(6)
    masked = logits.copy()
    masked[:, 2] = -np.inf
    cotangent = source.normal(6)
    in_float32 = [
        case("softcap", logits, labels, grad_output=-0.5, softcap=2.0),
        case("softcap-saturated", saturated, asked, grad_output=1e6, softcap=3.0, reduction="sum"),
        case("softcap-masked", masked, np.where(labels == 2, 3, labels), grad_output=3.0, softcap=5.0),
        case("temperature", logits, labels, grad_output=1.5, temperature=3.0),
        case("logit-scale", logits, labels, grad_output=-1.5, logit_scale=1.75),
        case("z-loss", logits, labels, grad_output=cotangent, reduction="none", z_loss=1e-4),
        case("z-loss-sure", sure, labels, grad_output=1e3, reduction="sum", z_loss=0.0625),
        case("z-loss-offset", logits - 1e3, labels, grad_output=0.75, z_loss=1e-3),
        case("z-loss-cancelling", *_cancelling(logits), grad_output=2.0, z_loss=0.25),
        case("z-loss-none-count", logits, np.full(6, -100), grad_output=2.0, z_loss=0.5),
    ]
    return [
        *(in_format(each, "float32") for each in in_float32),
        in_format(case("softcap-saturated", saturated, asked, grad_output=-1e4, softcap=3.0), "bfloat16"),
        in_format(case("z-loss-sure", sure, labels, reduction="sum", z_loss=0.5), "float64"),
    ]


def _exponentials(x: np.ndarray) -> np.ndarray:
    """e^x to some 2^-45, by sums, products and quotients alone: the same on every machine, and without a kernel."""
    s, series = x / 64.0, np.ones_like(x)
    for k in range(14, 0, -1):
        series = 1.0 + series * s / k
    for _ in range(6):
        series = series * series
    return series


def _cancelling(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Targets of which half the classes have (Q + 2ζ·lse)·p, with ζ = ¼: nearly nothing is left of their gradients."""
    single = logits.astype(np.float32)
    terms = _exponentials(single.astype(np.float64))
    total = np.zeros(len(terms))
    # One class after the other: the order in which NumPy adds is the machine's, and so is its logarithm.
    for column in terms.T:
        total += column
    lse = single.max(axis=1).astype(np.float64)
    for _ in range(60):
        lse += np.minimum(total * _exponentials(-lse) - 1.0, 1.0)
    p = terms / total[:, None]
    target = np.zeros_like(p)
    target[:, ::2] = (1.0 + 0.5 * lse[:, None]) * p[:, ::2]
    left = np.ones(len(p))
    for column in target.T:
        left -= column
    target[:, 1] = left
    return single, target


def causal_lm(function: str) -> list[Case]:
    """Those of logits as they are, and of a chain."""
    return [*language.causal_lm(function), *_of_tokens(function, 404)]


def masked_lm(function: str) -> list[Case]:
    """Those of logits as they are, and of a chain."""
    return [*language.masked_lm(function), *_of_tokens(function, 405)]


def _of_tokens(function: str, seed: int) -> list[Case]:
    source = Source(seed)
    logits, labels = source.normal(2, 7, 11) * 4.0, source.integers(11, 2, 7)
    labels[0, 5:] = 3

    def case(name: str, grad_output: float, **parameters: Any) -> Case:
        return Case(f"{function}-{name}", function, {"logits": logits, "labels": labels}, parameters, grad_output)

    return [
        *in_every_format([case("chain-options", -1.25, ignore_index=3, **ALL)]),
        in_format(case("chain-num-items", 3.0, num_items_in_batch=7.5, softcap=20.0, z_loss=1e-4), "float32"),
    ]
