"""The pytest plugin: built-in cases as a fixture, expected failures, a report of all that was judged.

pytest loads it wherever refloss is installed, so what is heavy is imported when a test asks for it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import pickle
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import refloss
from refloss.messages import did_you_mean
from refloss.testing.report.judgement import Judgement

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from refloss.cases.source import Case
    from refloss.testing.judging.callables import GoldenCase
    from refloss.testing.verdict import CaseVerdict

_FIXTURE = "refloss_case"
_CASES, _EXPECTED_FAILURES = "refloss_cases", "refloss_expected_failures"
_MARKERS = (
    f"{_CASES}(*names): give {_FIXTURE} the cases of these functions, or those whose ids match these patterns",
    f"{_EXPECTED_FAILURES}(file): cases that fail, one 'id reason' a line; the path is relative to the test's file",
)
_WORKER_KEY = "refloss_verdicts"


class _Expected(NamedTuple):
    """A line of a file of expected failures."""

    case: str
    reason: str
    location: str  # file and number of the line


class _Parameter(NamedTuple):
    """What the fixture is made of: a case, or what is wrong with a file of expected failures."""

    case: Case | None
    expected: _Expected | None = None
    fault: str = ""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options, and those that a project always wants as settings."""
    group = parser.getgroup("refloss", "losses judged by refloss")
    for name, what in (("functions", "functions"), ("dtypes", "dtypes of the first input")):
        text = f"give {_FIXTURE} only the cases of these {what}"
        group.addoption(f"--refloss-{name}", metavar="NAMES", help=f"{text}, separated by commas")
        parser.addini(f"refloss_{name}", text, type="args", default=[])
    group.addoption("--refloss-html", metavar="FILE", help="write a report of all that was judged")


def pytest_configure(config: pytest.Config) -> None:
    """Markers, and the recorder where there is to be a report."""
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)
    file = config.getoption("refloss_html")
    if file is None:
        return
    path = Path(file).absolute()
    if not path.parent.is_dir():
        raise pytest.UsageError(f"--refloss-html {file}: no such folder: {path.parent}")
    config.pluginmanager.register(_Recorder(path), "refloss-recorder")


def pytest_report_header(config: pytest.Config) -> str | None:
    """The versions, where an option asks for refloss."""
    return _versions() if _is_asked_for(config) else None


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> str | None:
    """The versions, where only a test does."""
    uses = any(_FIXTURE in getattr(item, "fixturenames", ()) for item in items)
    return _versions() if uses and not _is_asked_for(config) and config.option.verbose >= 0 else None


def _is_asked_for(config: pytest.Config) -> bool:
    return bool(_names(config, "functions") or _names(config, "dtypes") or config.getoption("refloss_html"))


def _versions() -> str:
    others = (f"{name} {importlib.metadata.version(name)}" for name in ("numba", "numpy"))
    return ", ".join((f"refloss {refloss.__version__}", *others))


def _names(config: pytest.Config, what: str) -> list[str]:
    """Names from an option, else from the setting."""
    option = config.getoption(f"refloss_{what}")
    given = config.getini(f"refloss_{what}") if option is None else [option]
    return [name.strip() for text in given for name in text.split(",") if name.strip()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for every case, and one for everything that is wrong with a file of expected failures."""
    marks = _marks(metafunc.definition)
    if fault := _fault_of_marks(metafunc.definition):
        raise pytest.Collector.CollectError(f"{metafunc.function.__name__}: {fault}")
    if _FIXTURE not in metafunc.fixturenames:
        if marks:
            name = metafunc.function.__name__
            raise pytest.Collector.CollectError(f"{name}: {marks[0].name} needs the fixture {_FIXTURE}")
        return
    files = [metafunc.definition.path.parent / mark.args[0] for mark in marks if mark.name == _EXPECTED_FAILURES]
    patterns = [name for mark in marks if mark.name == _CASES for name in mark.args]
    try:
        cases = _selected(metafunc.config, patterns)
    except ValueError as error:
        raise pytest.Collector.CollectError(str(error)) from error
    expected, faults = _expected_failures(files)
    parameters = [
        *(_parameter(case, expected.get(case.id)) for case in cases),
        *(pytest.param(_Parameter(None, fault=fault), id=location) for location, fault in faults.items()),
    ]
    metafunc.parametrize(_FIXTURE, parameters, indirect=True)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Refuse a mark on what pytest makes one test of: a method of unittest would pass without having seen a case."""
    report = yield
    for item in report.result if report.passed else ():
        marks = _marks(item) if isinstance(item, pytest.Item) and _FIXTURE not in _parameters(item) else []
        if marks:
            report.outcome, report.result = "failed", []
            report.longrepr = f"{item.name}: {marks[0].name} is for functions and plain classes, as {_FIXTURE} is"
            break
    return report


def _marks(node: pytest.Item) -> list[pytest.Mark]:
    return [mark for mark in node.iter_markers() if mark.name in {_CASES, _EXPECTED_FAILURES}]


def _fault_of_marks(node: pytest.Item) -> str:
    """What is wrong with a mark of ours, or with one that has nearly the name of one."""
    known = {_CASES, _EXPECTED_FAILURES}
    for mark in node.iter_markers():
        if mark.name.startswith("refloss") and mark.name not in known | _registered(node.config):
            question = did_you_mean(mark.name, known)
            return f"there is no mark {mark.name}; {question or f'there are {_CASES} and {_EXPECTED_FAILURES}'}"
        if mark.name in known and mark.kwargs:
            return f"{mark.name} has no {', '.join(mark.kwargs)}: give it names without keywords"
        if mark.name == _EXPECTED_FAILURES and len(mark.args) != 1:
            return f"{mark.name} takes one file; {len(mark.args)} are given"
    return ""


def _registered(config: pytest.Config) -> set[str]:
    """The names of all marks that there are, a project's own among them."""
    return {re.split(r"[:(]", line)[0].strip() for line in config.getini("markers")}


def _parameters(item: pytest.Item) -> dict[str, Any]:
    return getattr(getattr(item, "callspec", None), "params", {})


def _parameter(case: Case, expected: _Expected | None) -> Any:
    marks = (
        [] if expected is None else [pytest.mark.xfail(reason=f"{expected.reason} ({expected.location})", strict=True)]
    )
    return pytest.param(_Parameter(case, expected), id=case.id, marks=marks)


def _selected(config: pytest.Config, patterns: list[str]) -> list[Case]:
    from refloss.registry import FUNCTIONS
    from refloss.testing.judging.callables import select
    from refloss.testing.judging.selection import check_names

    wanted = _names(config, "functions")
    check_names("function", wanted, FUNCTIONS)
    globs = [f"{name}-*" if name in FUNCTIONS else name for name in patterns]
    cases = select(FUNCTIONS, globs, _names(config, "dtypes"))
    return [case for case in cases if not wanted or case.function in wanted]


def _expected_failures(files: list[Path]) -> tuple[dict[str, _Expected], dict[str, str]]:
    """The lines of files by case, and what is wrong with others by location."""
    expected: dict[str, _Expected] = {}
    faults = {}
    for path in files:
        if not path.is_file():
            faults[path.name] = f"{path}: no such file"
            continue
        for line in _lines(path):
            fault = _fault(line, expected)
            if fault:
                faults[line.location] = f"{line.location}: {fault}"
            else:
                expected[line.case] = line
    return expected, faults


def _lines(path: Path) -> Iterator[_Expected]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        case, _, reason = line.strip().partition(" ")
        if case and not case.startswith("#"):
            yield _Expected(case, reason.strip(), f"{path.name}:{number}")


def _fault(line: _Expected, known: dict[str, _Expected]) -> str:
    if line.case not in _known_ids():
        return f"there is no case {line.case}"
    if not line.reason:
        return f"{line.case} has no reason; expected 'id reason'"
    return f"{line.case} is in {known[line.case].location} already" if line.case in known else ""


@functools.cache
def _known_ids() -> frozenset[str]:
    from refloss.registry import FUNCTIONS
    from refloss.testing.judging.callables import select

    return frozenset(case.id for case in select(FUNCTIONS))


@pytest.fixture
def refloss_case(request: pytest.FixtureRequest) -> GoldenCase:
    """A built-in case: id, function, inputs, parameters, grad_output, result, assert_matches(loss=..., grads=...)."""
    given: _Parameter = request.param
    if given.case is None:
        pytest.fail(given.fault, pytrace=False)
    from refloss.testing.judging.callables import GoldenCase

    return GoldenCase(given.case)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say of an expected failure that passes where its line is, and of a fixture that is not there which was meant."""
    report = yield
    error = call.excinfo.value if call.excinfo else None
    if isinstance(error, pytest.FixtureLookupError) and str(error.argname).startswith("refloss"):
        question = did_you_mean(str(error.argname), [_FIXTURE])
        report.longrepr = f"there is no fixture {error.argname}; {question or f'there is {_FIXTURE}'}"
    given = _parameters(item).get(_FIXTURE)
    # A test that raises nothing and fails all the same is one that was expected to.
    if isinstance(given, _Parameter) and given.expected and report.failed and call.excinfo is None:
        report.longrepr = f"{given.expected.location} is stale: {given.expected.case} passes; remove the line"
    return report


class _Recorder:
    """Keeps every verdict of a run, and writes the report; with pytest-xdist it collects those of its workers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._verdicts: list[CaseVerdict] = []
        self._test = ""
        self._lost = False

    def pytest_sessionstart(self) -> None:
        from refloss.testing.judging import callables

        callables.listeners.append(self._record)

    def pytest_unconfigure(self) -> None:
        from refloss.testing.judging import callables

        if self._record in callables.listeners:
            callables.listeners.remove(self._record)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._test = item.nodeid
        return (yield)

    def _record(self, verdict: CaseVerdict) -> None:
        name = self._test if f"[{verdict.id}]" in self._test else f"{self._test} {verdict.id}"
        names = {each.id for each in self._verdicts}
        count = 2
        unique = name
        while unique in names:
            unique, count = f"{name} ({count})", count + 1
        self._verdicts.append(replace(verdict, id=unique))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        output = getattr(node, "workeroutput", {})
        self._lost = self._lost or _WORKER_KEY not in output
        self._verdicts += pickle.loads(output.get(_WORKER_KEY, pickle.dumps([])))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput[_WORKER_KEY] = pickle.dumps(self._verdicts)
        elif self._verdicts:
            seconds = sum(verdict.seconds or 0.0 for verdict in self._verdicts)
            command = shlex.join(["pytest", *map(str, session.config.invocation_params.args)])
            Judgement.of(self._verdicts, subject="pytest", command=command, seconds=seconds).html(self._path)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        count = len(self._verdicts)
        where = f"report of {count} verdict{'' if count == 1 else 's'} in {self._path}"
        terminalreporter.write_line(f"refloss: {where if count else 'nothing was judged, no report is written'}")
        if self._lost:
            terminalreporter.write_line("refloss: a worker crashed, and its verdicts are lost")
