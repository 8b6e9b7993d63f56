"""A judgement as JUnit XML, which every CI system reads."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

from refloss.files import replacing
from refloss.messages import printable
from refloss.testing.report.wording import diagnoses, failures

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from refloss.testing.verdict import CaseVerdict, Judgement


def write(path: Path, judgement: Judgement) -> None:
    """Write a suite for every function, with a test case for every case."""
    functions = dict.fromkeys(case.function for case in judgement.cases)
    root = ElementTree.Element("testsuites", {"name": "refloss", **_counts(judgement.cases)})
    if judgement.seconds is not None:
        root.set("time", _seconds(judgement.seconds))
    for function in functions:
        cases = [case for case in judgement.cases if case.function == function]
        suite = ElementTree.SubElement(root, "testsuite", {"name": printable(function), **_counts(cases)})
        _add_properties(suite, judgement, function)
        for case in cases:
            _add(suite, case)
    ElementTree.indent(root)
    with replacing(path) as part:
        ElementTree.ElementTree(root).write(part, encoding="utf-8", xml_declaration=True)


def _counts(cases: Sequence[CaseVerdict]) -> dict[str, str]:
    outcomes = [case.passed for case in cases]
    numbers = {"tests": len(outcomes), "failures": outcomes.count(False), "errors": 0, "skipped": outcomes.count(None)}
    time = _seconds(sum(case.seconds or 0.0 for case in cases))
    return {name: str(number) for name, number in numbers.items()} | {"time": time}


def _seconds(value: float | None) -> str:
    return f"{value or 0.0:.6f}"


def _add_properties(suite: ElementTree.Element, judgement: Judgement, function: str) -> None:
    """What was judged, by what and with what, as far as it is known; what is wrong with this function."""
    facts = {
        **judgement.environment,
        "corpus": judgement.corpus or "",
        "subject": judgement.subject,
        "command": judgement.command,
        "compute_dtype": judgement.compute_dtype or "",
    }
    wrong = diagnoses(judgement, function)
    known = [(name, value) for name, value in facts.items() if value]
    if known or wrong:
        properties = ElementTree.SubElement(suite, "properties")
        for name, value in (*known, *(("diagnosis", line) for line in wrong)):
            ElementTree.SubElement(properties, "property", name=printable(name), value=printable(value))


def _add(suite: ElementTree.Element, case: CaseVerdict) -> None:
    element = ElementTree.SubElement(
        suite,
        "testcase",
        name=printable(case.id),
        classname=printable(case.function),
        time=_seconds(case.seconds),
    )
    if case.passed is None:
        ElementTree.SubElement(element, "skipped", message=printable(case.message))
    elif not case.passed:
        lines = failures(case)
        failure = ElementTree.SubElement(element, "failure", type="refloss", message=lines[0])
        failure.text = "\n".join(lines)
