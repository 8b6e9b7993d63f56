"""A mistake before the judge: which golden cases and which properties reject it, and what it is called."""

from __future__ import annotations

import contextlib
import functools
import re
from typing import TYPE_CHECKING, NamedTuple
from unittest import mock

from refloss.registry import FUNCTIONS
from refloss.testing.checks.metamorphic import PROPERTIES, check_properties
from refloss.testing.judging import judge as judge_module
from refloss.testing.judging.diagnosing import diagnosed
from refloss.testing.judging.driver import Driver
from refloss.testing.judging.judge import judge, question
from refloss.testing.verdict import Judgement
from tests.questions import questions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from refloss.cases.source import Case
    from refloss.testing.verdict import CaseVerdict, Question
    from tests.gauntlet.kernels import Kernel
    from tests.gauntlet.mistakes import Mistake

FEW = 2**13  # elements of a case that costs little


def given(mistake: Mistake, function: str) -> tuple[Question, ...]:
    """The golden cases of a function, or those that a mistake has of its own."""
    if mistake.cases is None:
        return questions(function)
    return tuple(question(case) for case in mistake.cases(function))


def asked(mistake: Mistake, function: str) -> tuple[Question, ...]:
    """The cases in which a mistake can show."""
    return tuple(each for each in given(mistake, function) if mistake.shows is None or mistake.shows(each.case))


def dtype_of(case: Case) -> str:
    """The dtype of a case's first input."""
    return str(case.inputs[FUNCTIONS[case.function].required[0]].dtype)


def verdict(kernel: Kernel, of: Question) -> CaseVerdict:
    """The judge's on what a kernel makes of a case."""
    driver = Driver(kernel, None, None)
    returned = driver.call(driver.native(of.case))
    tensors = {"loss": returned.loss, **returned.tensors}
    return judge(of, {name: driver.array(value, name) for name, value in tensors.items()})


def judgement(kernel: Kernel, cases: Iterable[Question]) -> Judgement:
    """The judge's on what a kernel makes of cases."""
    asked = {each.case.id: each for each in cases}
    return Judgement(diagnosed((verdict(kernel, each) for each in asked.values()), asked.__getitem__))


def first_name(found: Judgement) -> str | None:
    """What the judge says first."""
    return next((each.mistake for each in found.diagnoses if each.mistake), None)


def is_right(mistake: Mistake, name: str | None) -> bool:
    """Whether a name is the mistake's: its words, with numbers of a case or a place beside them."""
    beside = r"( \(.*| along .*| over .*| of .*)?"
    factor = r"(off by a constant factor of \S+, )?"
    return name is not None and re.fullmatch(factor + re.escape(mistake.judged) + beside, name) is not None


class Found(NamedTuple):
    """What became of a mistake in one function."""

    function: str
    failing: int
    cases: int
    dtypes: frozenset[str]  # in which some case rejects it
    first: str | None


def broken_properties(kernel: Kernel, function: str) -> tuple[str, ...]:
    """The properties that reject a kernel."""
    try:
        check_properties(kernel, function)
    except AssertionError as error:
        lines = re.findall(r"^  ([^:]+):", str(error), re.MULTILINE)
        return tuple(name for name in PROPERTIES if name in lines)
    return ()


def found(mistake: Mistake, function: str) -> Found:
    """What the golden cases of a function say of a mistake."""
    cases, kernel = given(mistake, function), mistake.kernel(function)
    with without_causes():
        failing = [each for each in cases if verdict(kernel, each).passed is False]
    dtypes = frozenset(dtype_of(each.case) for each in failing)
    return Found(function, len(failing), len(cases), dtypes, name_of(mistake, function))


@functools.cache
def name_of(mistake: Mistake, function: str, dtype: str | None = None) -> str | None:
    """What the judge says first of small cases, or of those of one dtype; of all where none of these fails."""
    cases, kernel = given(mistake, function), mistake.kernel(function)
    of_dtype = [each for each in few(cases) if dtype in (None, dtype_of(each.case))]
    return first_name(judgement(kernel, of_dtype)) or first_name(judgement(kernel, cases))


@contextlib.contextmanager
def without_causes() -> Iterator[None]:
    """Verdicts alone, which cost less."""
    with mock.patch.object(judge_module, "_causes", return_value=()):
        yield


def survives(mistake: Mistake, function: str) -> list[str]:
    """The dtypes in which no case rejects a mistake. Small cases come first: one that does is enough."""
    kernel, cases = mistake.kernel(function), sorted(asked(mistake, function), key=lambda each: size(each.case))
    left = list(mistake.dtypes)
    for each in cases:
        dtype = dtype_of(each.case)
        if dtype in left and verdict(kernel, each).passed is False:
            left.remove(dtype)
    return left


def few(cases: Iterable[Question]) -> list[Question]:
    """Those of few elements."""
    return [each for each in cases if size(each.case) <= FEW]


def size(case: Case) -> int:
    """How many elements a case has."""
    return sum(value.size for value in case.inputs.values())
