"""A judgement as plain text, for the message of an exception."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refloss.messages import printable
from refloss.testing.report.wording import diagnoses, failures, fault, likely, short, summary

if TYPE_CHECKING:
    from refloss.testing.verdict import CaseVerdict, Judgement, TensorVerdict

_MOST = 10
_HEADINGS = ("tensor", "ulp", "error ÷ bound", "what is wrong, and where most")


def text(judgement: Judgement) -> str:
    """How many cases pass, and for the first that fail all of their tensors."""
    failing = [case for case in judgement.judged if not case.passed]
    lines = [summary(judgement) if judgement.judged else f"nothing was judged: {summary(judgement)}"]
    if len(failing) > 1:  # of one case the table says as much
        lines += diagnoses(judgement)
    for case in failing[:_MOST]:
        lines += ["", printable(case.id), *(f"  {line}" for line in _lines(case))]
    if len(failing) > _MOST:
        lines += ["", "and " + ", ".join(printable(case.id) for case in failing[_MOST:])]
    absent = [f"{printable(case.id)}: {printable(case.message)}" for case in judgement.cases if case.passed is None]
    return "\n".join([*lines, *([] if judgement.judged else absent[:_MOST])])


def _lines(case: CaseVerdict) -> list[str]:
    if not case.tensors:
        return failures(case)
    rows = [_HEADINGS, *map(_row, case.tensors)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}" for row in rows]


def _row(tensor: TensorVerdict) -> tuple[str, str, str, str]:
    told = "passes" if tensor.passed else "; ".join(part for part in (fault(tensor), likely(tensor)) if part)
    return printable(tensor.name), short(tensor.ulp), short(tensor.ratio), told
