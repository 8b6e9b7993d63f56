"""The mistakes of docs/gauntlet.md: honest kernels pass, every mistake is rejected and named, and the page is true."""

import re

import pytest

from refloss.cases.source import DTYPES
from refloss.testing import check_properties
from refloss.testing.checks.metamorphic import PROPERTIES
from tests.gauntlet import table
from tests.gauntlet.honest import HONEST
from tests.gauntlet.mistakes import MISTAKES
from tests.gauntlet.mistakes.mistake import TUTORIALS
from tests.gauntlet.survey import (
    asked,
    first_name,
    given,
    is_right,
    judgement,
    name_of,
    survives,
    verdict,
    without_causes,
)
from tests.questions import questions

BY_NAME = {mistake.name: mistake for mistake in MISTAKES}
GOLDEN = [mistake for mistake in MISTAKES if mistake.cases is None]
SAMPLE = MISTAKES[::12]  # of those whose rows are computed again every time
NINE_IN_TEN = 0.9


def by_name(mistakes):
    return pytest.mark.parametrize("mistake", mistakes, ids=lambda mistake: mistake.name)


@pytest.mark.parametrize("function", HONEST)
def test_honest_kernels_pass(function):
    kernel = HONEST[function](function)
    found = [verdict(kernel, each) for each in questions(function)]
    assert [(case.id, case.message) for case in found if not case.passed] == []
    check_properties(kernel, function, seeds=range(1))


def test_there_are_as_many_mistakes_as_the_page_promises():
    assert len(BY_NAME) == len(MISTAKES) >= 60
    numbered = [mistake for mistake in MISTAKES if re.fullmatch(r"[\w.-]+(/[\w.-]+)?#\d+", mistake.report)]
    assert len(numbered) >= 45
    assert {mistake.report for mistake in MISTAKES if mistake not in numbered} <= {TUTORIALS}
    assert all(
        mistake.why for mistake in MISTAKES if mistake.shows or mistake.cases or len(mistake.dtypes) < len(DTYPES)
    )


@pytest.fixture
def _without_explanations():
    with without_causes():
        yield


@pytest.mark.usefixtures("_without_explanations")
@by_name(GOLDEN)
def test_every_function_and_dtype_rejects_it(mistake):
    survivors = {function: survives(mistake, function) for function in mistake.functions}
    assert {function: dtypes for function, dtypes in survivors.items() if dtypes} == {}


@pytest.mark.usefixtures("_without_explanations")
@by_name([mistake for mistake in GOLDEN if mistake.shows])
def test_it_shows_only_where_it_is_said_to(mistake):
    function = mistake.functions[0]
    kernel, elsewhere = mistake.kernel(function), {each.case.id for each in questions(function)}
    elsewhere -= {each.case.id for each in asked(mistake, function)}
    wrong = [
        each.case.id for each in questions(function) if each.case.id in elsewhere and not verdict(kernel, each).passed
    ]
    assert wrong == []


@pytest.mark.slow
@by_name([mistake for mistake in MISTAKES if mistake.cases])
def test_long_sums_reject_it(mistake):
    for function in mistake.functions:
        assert survives(mistake, function) == []
        assert is_right(mistake, first_name(judgement(mistake.kernel(function), given(mistake, function))))


def test_nine_in_ten_have_their_name_first():
    """Of each in one of its functions, computed in one of its dtypes, as a kernel that somebody brings may be."""
    names = {}
    for i, mistake in enumerate(GOLDEN):
        function, dtype = (of[i % len(of)] for of in (mistake.functions, mistake.dtypes))
        names[mistake.name] = name_of(mistake, function, dtype)
    wrong = {name: first for name, first in names.items() if not is_right(BY_NAME[name], first)}
    assert len(wrong) <= (1 - NINE_IN_TEN) * len(names), wrong


def test_the_page_has_every_mistake():
    rows = table.rows_of(table.PAGE.read_text(encoding="utf-8"))
    assert [row[:3] for row in rows] == [table.fixed(mistake) for mistake in MISTAKES]
    assert table.PAGE.read_text(encoding="utf-8") == table.page(rows)
    for row in rows:
        assert {*row.properties.split(", ")} <= {*PROPERTIES, table.NOTHING}, row


@by_name([*SAMPLE, *(pytest.param(mistake, marks=pytest.mark.slow) for mistake in MISTAKES if mistake not in SAMPLE)])
def test_a_row_of_the_page_is_true(mistake):
    rows = {row.name: row for row in table.rows_of(table.PAGE.read_text(encoding="utf-8"))}
    assert rows[mistake.name] == table.row(mistake), "python -m tests.gauntlet.table writes it anew"
