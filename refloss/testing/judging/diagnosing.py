"""One diagnosis of all cases of a function."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from refloss.messages import EXPECTED_ERRORS
from refloss.testing.mistakes.refute import refuted
from refloss.testing.verdict import explained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from refloss.testing.verdict import CaseVerdict, Question

MOST = 16  # passing cases of a function that are asked whether a mistake would show in them
RIVALS = 6  # mistakes that are told apart by them
LARGEST = 2**18  # elements of such a case


def diagnosed(cases: Iterable[CaseVerdict], ask: Callable[[str], Question]) -> tuple[CaseVerdict, ...]:
    """Verdicts on cases with the mistakes that explain most of them; ask gives the question of a case by its id.

    Where several mistakes explain as many cases, those that would show in a case that passes are put behind.
    """
    every = tuple(cases)
    functions = dict.fromkeys(case.function for case in every if case.causes)
    found: dict[str, tuple[str, ...]] = {}
    for function in functions:
        passing = [case for case in every if case.function == function and case.passed]
        wanted = _rivals([case for case in every if case.function == function and case.causes])
        for case in passing[:MOST] if wanted else ():
            try:
                asked = ask(case.id)
            except EXPECTED_ERRORS:
                continue
            if sum(value.size for value in asked.case.inputs.values()) <= LARGEST:
                found[case.id] = refuted(asked, wanted)
    return explained(replace(case, refuted=found[case.id]) if case.id in found else case for case in every)


def _rivals(failing: list[CaseVerdict]) -> dict[str, set[str]]:
    """Mistakes that explain about as many cases as any other, with the tensors that they explain; none if it is one."""
    counts = Counter(cause.mistake for case in failing for cause in case.causes)
    most = max(counts.values(), default=0)
    names = [mistake for mistake, count in counts.most_common(RIVALS) if 2 * count >= most]
    if len(names) < 2:
        return {}
    tensors: dict[str, set[str]] = {name: set() for name in names}
    for case in failing:
        for cause in case.causes:
            if cause.mistake in tensors:
                tensors[cause.mistake] |= set(cause.tensors)
    return tensors
