"""Mistakes that are known by the right answer to another case."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.error_model import bounds
from refloss.messages import EXPECTED_ERRORS
from refloss.testing.mistakes import alterations
from refloss.testing.mistakes.guess import COMMON, POSSIBLE, UPSTREAM, USUAL, Guess
from refloss.testing.mistakes.softmax import softmax_mistakes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.cases.source import Case
    from refloss.testing.mistakes.alterations import Altered
    from refloss.testing.verdict import Question

ARGUMENTS = {
    "ignore_index is ignored": "ignore_index is taken to be its default",
    "auxiliary_logits is ignored": "the auxiliary loss is left out",
}
WHOLE = "ignored rows are included, in the count as well"


def guesses(asked: Question, only: set[str] | None = None) -> Iterator[Guess]:
    """Those of every function."""
    for mistake, prior, detail, other in _other_cases(asked.case):
        if only is None or mistake in only:
            yield from _answered(asked, mistake, prior, detail, other)
    yield from (guess for guess in _of_softmax(asked, only) if only is None or guess.mistake in only)


def _answered(asked: Question, mistake: str, prior: float, detail: str, other: Altered) -> Iterator[Guess]:
    """The answer to another case, if it has one; what it has no gradient for has none."""
    try:
        result, tensors = other.answer()
    except (*EXPECTED_ERRORS, LookupError, AssertionError):
        return
    missing = {
        name: np.zeros(right.shape)
        for name, right in asked.expected.items()
        if name.startswith("grad.") and name not in tensors
    }
    wide: dict[str, Any] = {name: np.asarray(value, np.float64) for name, value in tensors.items()}

    def limits() -> dict[str, Any]:
        known = bounds(other.case, result, asked.compute_dtype)
        scaled = {name: np.asarray(value) / (other.over if name == "loss" else 1.0) for name, value in known.items()}
        return scaled | dict.fromkeys(missing, 0.0)

    yield Guess(mistake, prior, missing | wide, limits=limits, detail=detail)


def _other_cases(case: Case) -> Iterator[tuple[str, float, str, Altered]]:
    upstream = alterations.without_upstream(case)
    guesses: list[tuple[str, float, str, Altered | None]] = [
        ("upstream gradient ignored", UPSTREAM, _upstream(case), upstream),
        *((words, 0.9, "", other) for words, other in alterations.of_this_function(case).items()),
        (
            "label smoothing gives the other classes ε/(K − 1) instead of ε/K",
            USUAL,
            "",
            alterations.smoothed_over_others(case),
        ),
        *(
            (ARGUMENTS.get(words, words), USUAL, "", other)
            for words, other in alterations.arguments_ignored(case).items()
        ),
        *((words, USUAL, "", other) for words, other in alterations.configured(case).items()),
        (
            "double softmax, or sigmoid: probabilities are taken as logits",
            USUAL,
            "",
            alterations.activated_twice(case),
        ),
    ]
    for side in alterations.sides(case):
        counted = alterations.leaking(case, side, counted=True)
        guesses += [
            ("ignored rows are included", COMMON, "", alterations.leaking(case, side)),
            (WHOLE, COMMON, "", counted),
            (*_wrong_count(case, side), alterations.over_everything(case, side)),
        ]
    yield from ((mistake, prior, detail, other) for mistake, prior, detail, other in guesses if other is not None)


def _upstream(case: Case) -> str:
    c = np.asarray(case.grad_output)
    return "" if c.ndim else f"upstream gradient ({float(c):g}) ignored"


def _wrong_count(case: Case, side: str) -> tuple[str, float, str]:
    divisor = alterations.divisor(case, side)
    if divisor is not None:
        name = f"a mean over {divisor.all_what} instead of {divisor.what}"
        return (
            name,
            USUAL,
            f"a mean over {divisor.all_what} ({divisor.all:g}) instead of {divisor.what} ({divisor.right:g})",
        )
    right = "the number of objects" if alterations.specification_of(case).mean == "objects" else "num_boxes"
    return f"divided by the number of queries or rows instead of {right}", POSSIBLE, ""


def _of_softmax(asked: Question, only: set[str] | None) -> Iterator[Guess]:
    """Probabilities that are taken along another axis, or twice; by hand, or derived."""
    if only is not None and not any(name.startswith(("double softmax", "wrong axis")) for name in only):
        return
    try:
        found = list(softmax_mistakes(asked.case))
    except (*EXPECTED_ERRORS, LookupError, AssertionError):
        return
    losses = {words: (name, values) for words, name, values in found if name == "loss"}
    for words, name, values in found:
        tensors = {name: values}
        if words in losses and name != "loss":
            tensors["loss"] = losses[words][1]
        # Their terms are those of the right ones, elsewhere: as large, up to the logarithms' errors.
        limits = {key: 4 * np.asarray(asked.bounds[key]).max(initial=0.0) for key in tensors}
        yield Guess(words, USUAL, tensors, limits)
        if len(tensors) > 1:
            yield Guess(words, USUAL, {name: values}, limits)
