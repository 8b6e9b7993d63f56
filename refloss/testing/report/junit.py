"""A judgement as JUnit XML, which every CI system reads."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

from refloss.files import replacing
from refloss.messages import printable
from refloss.testing.judging.wording import failures

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from refloss.testing.verdict import CaseVerdict, Judgement


def write(path: Path, judgement: Judgement) -> None:
    """Write a suite for every function, with a test case for every case."""
    functions = dict.fromkeys(case.function for case in judgement.cases)
    root = ElementTree.Element("testsuites", {"name": "refloss", **_counts(judgement.cases)})
    for function in functions:
        cases = [case for case in judgement.cases if case.function == function]
        suite = ElementTree.SubElement(root, "testsuite", {"name": printable(function), **_counts(cases)})
        for case in cases:
            _add(suite, case)
    ElementTree.indent(root)
    with replacing(path) as part:
        ElementTree.ElementTree(root).write(part, encoding="utf-8", xml_declaration=True)


def _counts(cases: Iterable[CaseVerdict]) -> dict[str, str]:
    outcomes = [case.passed for case in cases]
    # What took time is the candidate, which ran elsewhere.
    numbers = {"tests": len(outcomes), "failures": outcomes.count(False), "errors": 0, "skipped": outcomes.count(None)}
    return {name: str(number) for name, number in numbers.items()} | {"time": "0"}


def _add(suite: ElementTree.Element, case: CaseVerdict) -> None:
    element = ElementTree.SubElement(
        suite, "testcase", name=printable(case.id), classname=printable(case.function), time="0"
    )
    if case.passed is None:
        ElementTree.SubElement(element, "skipped", message=printable(case.message))
    elif not case.passed:
        lines = failures(case)
        failure = ElementTree.SubElement(element, "failure", type="refloss", message=lines[0])
        failure.text = "\n".join(lines)
