"""A judgement as one HTML file that needs nothing else: charts, the worst elements, what explains them."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections import Counter
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, StrictUndefined

from refloss.files import replacing
from refloss.messages import printable
from refloss.testing.report import charts
from refloss.testing.report.wording import NOT_ANSWERED, explained, fault, plural, short, summary

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from markupsafe import Markup

    from refloss.testing.diagnosis import Diagnosis
    from refloss.testing.spread import Element
    from refloss.testing.verdict import CaseVerdict, Judgement, TensorVerdict

_MANY = 30  # failing cases that are too many to be unfolded
_MANY_ULP = 1000  # errors that pass and look as if they should not


class Tensor(NamedTuple):
    """A tensor as the page shows it; charts only where it has several values."""

    anchor: str
    verdict: TensorVerdict
    wrong: str
    elements: int
    above: int
    histogram: Markup | None = None  # of one that fails
    heat_map: Markup | None = None
    worst: Sequence[Element] = ()  # several, by error ÷ bound
    spark: Markup | None = None  # of one that does not


class Case(NamedTuple):
    """A case as the page shows it."""

    anchor: str
    verdict: CaseVerdict
    tensors: Sequence[Tensor]
    facts: Sequence[tuple[str, str]]  # its inputs' shapes, its parameters


class Group(NamedTuple):
    """The cases of a function."""

    function: str
    cases: Sequence[Case]


class Part(NamedTuple):
    """A mistake in one function: how many cases it explains, and which."""

    function: str
    told: str
    detail: str
    cases: Sequence[tuple[str, str]]  # anchor, id


class Mistake(NamedTuple):
    """A mistake in every function that makes it; None is what no mistake explains."""

    name: str | None
    explains: int  # cases
    parts: Sequence[Part]


def write(path: Path, judgement: Judgement) -> None:
    """Write the page."""
    page = render(judgement)
    with replacing(path) as part:
        part.write_text(page, encoding="utf-8", newline="\n")


def render(judgement: Judgement) -> str:
    """The page; the same judgement gives the same page."""
    anchors = _Anchors()
    cases = [_case(case, anchors) for case in judgement.judged]
    failing = [case for case in cases if not case.verdict.passed]
    passing = [case for case in cases if case.verdict.passed]
    template = _environment().from_string(
        resources.files("refloss.testing.report").joinpath("report.html").read_text(encoding="utf-8")
    )
    return template.render(
        judgement=judgement,
        origin=_origin(judgement),
        version=judgement.environment.get("refloss", ""),
        summary=summary(judgement),
        hardest=_hardest(cases),
        tensors=sum(len(case.tensors) for case in cases),
        mistakes=_mistakes(judgement.diagnoses, cases),
        overview=charts.overview(_dots(cases)) if cases else "",
        definitions=charts.definitions(),
        spark_ticks=charts.SPARK_AXIS.ticks(6),
        failing=_groups(failing),
        passing=_groups(passing),
        not_answered=NOT_ANSWERED,
        absent=[case for case in judgement.cases if case.passed is None],
        functions=sorted({case.function for case in judgement.cases}),
        unfold=len(failing) <= _MANY,
    )


def _origin(judgement: Judgement) -> list[tuple[str, str]]:
    """What was judged, by what and with what, as far as it is known."""
    known = {
        "command": judgement.command,
        "corpus": judgement.corpus or "",
        "time": "" if judgement.seconds is None else f"{judgement.seconds:.3g} s",
        **judgement.environment,
    }
    return [(name, printable(value)) for name, value in known.items() if value]


def _environment() -> Environment:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        printable=printable,
        short=short,
        digits=lambda value: f"{value:.9g}",
        sha256=lambda text: base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode(),
    )
    environment.globals.update(plural=plural, many_ulp=_MANY_ULP)
    return environment


class _Anchors:
    """Names within the page, each given once."""

    def __init__(self) -> None:
        self._uses: Counter[str] = Counter()

    def new(self, *parts: str) -> str:
        """A name like its parts."""
        name = "/".join(re.sub(r"[^A-Za-z0-9._-]+", "-", part) for part in parts)
        self._uses[name] += 1
        return name if self._uses[name] == 1 else self.new(*parts, str(self._uses[name]))


def _case(case: CaseVerdict, anchors: _Anchors) -> Case:
    anchor = anchors.new(case.id)
    # What fails comes first.
    verdicts = sorted(case.tensors, key=lambda tensor: tensor.passed is not False)
    facts = (*case.shapes.items(), *case.parameters.items())
    return Case(
        anchor,
        case,
        [_tensor(case, tensor, anchors.new(case.id, printable(tensor.name))) for tensor in verdicts],
        [(printable(name), printable(_told(value))) for name, value in facts],
    )


def _told(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _tensor(case: CaseVerdict, verdict: TensorVerdict, anchor: str) -> Tensor:
    wrong, spread = fault(verdict), verdict.spread
    if spread is None or spread.size == 0:
        return Tensor(anchor, verdict, wrong, 0, 0)
    if verdict.passed:
        return Tensor(anchor, verdict, wrong, spread.size, spread.above, spark=charts.spark(spread))
    worst = [element for element in spread.worst if element.ratio]
    if spread.size == 1 or spread.grid is None:
        return Tensor(anchor, verdict, wrong, spread.size, spread.above, worst=worst)
    heat_map = charts.heat_map(spread, charts.labels(case.function, verdict.name, spread.grid.order))
    return Tensor(anchor, verdict, wrong, spread.size, spread.above, charts.histogram(spread), heat_map, worst)


def _dots(cases: Sequence[Case]) -> list[charts.Dot]:
    dots = []
    for case in cases:
        if not case.tensors and not case.verdict.passed:
            dots.append(charts.Dot(case.verdict.function, case.anchor, case.verdict.id, None, passed=False))
        for tensor in case.tensors:
            if tensor.verdict.passed is None:
                continue
            ratio = tensor.verdict.ratio
            ratio = math.inf if ratio is not None and math.isnan(ratio) else ratio
            told = "no values" if ratio is None else f"error ÷ bound {short(ratio)}"
            label = f"{case.verdict.id}  {tensor.verdict.name}: {told}"
            dots.append(charts.Dot(case.verdict.function, tensor.anchor, label, ratio, tensor.verdict.passed))
    return dots


def _groups(cases: Sequence[Case]) -> list[Group]:
    functions = dict.fromkeys(case.verdict.function for case in cases)
    return [Group(function, [case for case in cases if case.verdict.function == function]) for function in functions]


def _mistakes(diagnoses: Sequence[Diagnosis], cases: Sequence[Case]) -> list[Mistake]:
    """Each mistake with the functions that make it, the one that explains most cases first."""
    by_id = {case.verdict.id: case for case in cases}
    found: dict[str | None, list[Part]] = {}
    for each in diagnoses:
        those = [by_id[name] for name in each.cases if name in by_id]
        detail = each.detail if each.mistake else _faults(those)
        places = [(case.anchor, printable(case.verdict.id)) for case in those]
        part = Part(printable(each.function), explained(each), printable(detail), places)
        found.setdefault(each.mistake, []).append(part)
    mistakes = [
        Mistake(None if name is None else printable(name), sum(len(part.cases) for part in parts), parts)
        for name, parts in found.items()
    ]
    return sorted(mistakes, key=lambda mistake: (mistake.name is None, -mistake.explains))


def _faults(cases: Sequence[Case]) -> str:
    """What is wrong with cases of which no more is known: not finite in 3, missing in 1."""
    counts: Counter[str] = Counter()
    for case in cases:
        wrong = {tensor.verdict.fault or "fails" for tensor in case.tensors if tensor.verdict.passed is False}
        counts.update(wrong or {"an error"})
    return ", ".join(f"{fault} in {count}" for fault, count in sorted(counts.items(), key=lambda each: -each[1]))


def _hardest(cases: Sequence[Case]) -> Tensor | None:
    tensors = [tensor for case in cases for tensor in case.tensors if tensor.verdict.ratio is not None]
    return max(tensors, key=lambda tensor: tensor.verdict.ratio or 0.0, default=None)
