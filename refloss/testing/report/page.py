"""A judgement as one HTML file that needs nothing else: charts, the worst elements, what explains them."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections import Counter
from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import Environment, StrictUndefined

import refloss
from refloss.files import replacing
from refloss.messages import printable
from refloss.testing.judging.wording import fault, plural, short, summary
from refloss.testing.report import charts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from markupsafe import Markup

    from refloss.testing.spread import Element
    from refloss.testing.verdict import CaseVerdict, Judgement, TensorVerdict

_WORST = 10
_MANY = 30  # failing cases that are too many to be unfolded


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


class Group(NamedTuple):
    """The cases of a function."""

    function: str
    cases: Sequence[Case]


def write(path: Path, judgement: Judgement, subject: str = "") -> None:
    """Write the page; subject says in a few words what was judged against what."""
    page = render(judgement, subject)
    with replacing(path) as part:
        part.write_text(page, encoding="utf-8", newline="\n")


def render(judgement: Judgement, subject: str = "") -> str:
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
        subject=printable(subject),
        version=refloss.__version__,
        summary=summary(judgement),
        hardest=_hardest(cases),
        tensors=sum(len(case.tensors) for case in cases),
        mistakes=_mistakes(failing),
        overview=charts.overview(_dots(cases)) if cases else "",
        definitions=charts.definitions(),
        spark_ticks=charts.SPARK_AXIS.ticks(6),
        failing=_groups(failing),
        passing=_groups(passing),
        absent=[case for case in judgement.cases if case.passed is None],
        unfold=len(failing) <= _MANY,
    )


def _environment() -> Environment:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        printable=printable,
        short=short,
        digits=lambda value: f"{value:.9g}",
        sha256=lambda text: base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode(),
    )
    environment.globals.update(plural=plural)
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
    return Case(
        anchor, case, [_tensor(case, tensor, anchors.new(case.id, printable(tensor.name))) for tensor in verdicts]
    )


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


def _mistakes(failing: Sequence[Case]) -> list[tuple[str, bool, list[Tensor]]]:
    """What is wrong, the most frequent first: an explanation (and True), or a fault that has none."""
    wrong: dict[tuple[str, bool], list[Tensor]] = {}
    for case in failing:
        for tensor in case.tensors:
            if tensor.verdict.passed is False:
                explanation = tensor.verdict.explanation
                key = (printable(explanation or tensor.verdict.fault or "fails"), explanation is not None)
                wrong.setdefault(key, []).append(tensor)
    return sorted(
        ((name, explained, tensors) for (name, explained), tensors in wrong.items()), key=lambda entry: -len(entry[2])
    )


def _hardest(cases: Sequence[Case]) -> Tensor | None:
    tensors = [tensor for case in cases for tensor in case.tensors if tensor.verdict.ratio is not None]
    return max(tensors, key=lambda tensor: tensor.verdict.ratio or 0.0, default=None)
