"""Mistakes that are known by the right answer to another case."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.cases.source import is_one_number
from refloss.error_model import bounds
from refloss.messages import EXPECTED_ERRORS
from refloss.roundoff import real
from refloss.testing.mistakes import alterations, row_labels
from refloss.testing.mistakes.alterations import Altered
from refloss.testing.mistakes.guess import COMMON, POSSIBLE, UPSTREAM, USUAL, Guess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.cases.source import Case
    from refloss.testing.verdict import Question

UNCLAMPED = "num_boxes is not at least 1"
ARGUMENT = 0.65  # ignored
ARGUMENTS = {
    "ignore_index is ignored": "ignore_index is taken to be its default",
    "auxiliary_logits is ignored": "the auxiliary loss is left out",
}


def guesses(asked: Question, only: set[str] | None = None, *, of_rows: bool = False) -> Iterator[Guess]:
    """Those of every function."""
    for mistake, prior, detail, other in _other_cases(asked, of_rows=of_rows):
        if only is None or mistake in only:
            yield from _answered(asked, mistake, prior, detail, other)
    if only is None or UNCLAMPED in only:
        yield from _unclamped(asked.case)


def _unclamped(case: Case) -> Iterator[Guess]:
    """Divided by less than 1: what is divided is told from the answers for 1 and 2."""
    boxes = float(case.parameters.get("num_boxes", 1.0))
    if not 0 < boxes < 1 or alterations.specification_of(case).mean != "objects":
        return
    one, two = (Altered(alterations.altered(case, num_boxes=count)).answer()[1] for count in (1.0, 2.0))
    share = {name: 2 * (real(value) - real(two[name])) for name, value in one.items()}
    yield Guess(UNCLAMPED, USUAL, {name: real(one[name]) + each * (1 / boxes - 1) for name, each in share.items()})


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

    # It may be the number of objects that is taken instead, or 1.
    certain = mistake != "num_boxes is ignored"
    yield Guess(mistake, prior, missing | wide, limits=limits, detail=detail, is_certain=certain)


def _other_cases(asked: Question, *, of_rows: bool) -> Iterator[tuple[str, float, str, Altered]]:
    case = asked.case
    guesses: list[tuple[str, float, str, Altered | None]] = [
        *((words, 0.9, "", other) for words, other in alterations.of_this_function(case)),
        *((_said(words), ARGUMENT, "", other) for words, other in alterations.arguments_ignored(case)),
        *((words, USUAL, "", other) for words, other in alterations.configured(case).items()),
        ("blank is ignored", ARGUMENT, "", alterations.first_blank(case)),
        ("divided by the sum of all target lengths", USUAL, "", alterations.over_all_labels(case)),
        ("sigma is twice as large", USUAL, "", alterations.sigma_twice(case)),
        ("reduction is ignored", POSSIBLE, "", alterations.without_reduction(case, real(asked.result.loss))),
    ]
    if not is_one_number(case.grad_output) or not 1e-3 < abs(float(case.grad_output)) < 1e3:
        guesses.append(("upstream gradient ignored", UPSTREAM, "", alterations.without_upstream(case)))
    if not of_rows:
        twice = alterations.activated_twice(case)
        guesses += [
            ("double softmax, or sigmoid: probabilities are taken as logits", USUAL, "", twice),
            (row_labels.FIRST_UPSTREAM, COMMON, "", alterations.first_upstream(case)),
            (row_labels.INCLUDED, COMMON, "", alterations.leaking(case)),
        ]
    if case.function == "question_answering":
        for side in alterations.sides(case):
            guesses.append((row_labels.INCLUDED, COMMON, "", alterations.leaking(case, side)))
            guesses.append((row_labels.COUNTED, COMMON, "", alterations.leaking(case, side, counted=True)))
    if "weight" in case.inputs and not of_rows and (count := alterations.divisor(case)) is not None:
        words = f"a mean over {count.all_what} instead of {count.what}"
        guesses.append((words, USUAL, "", alterations.over_everything(case)))
    if alterations.divisor(case) is None:
        right = "the number of objects" if alterations.specification_of(case).mean == "objects" else "num_boxes"
        words = f"divided by the number of queries or rows instead of {right}"
        guesses.append((words, POSSIBLE, "", alterations.over_everything(case)))
    yield from ((mistake, prior, detail, other) for mistake, prior, detail, other in guesses if other is not None)


def _said(words: str) -> str:
    return ARGUMENTS.get(words, words)
