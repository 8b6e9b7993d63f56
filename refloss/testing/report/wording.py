"""A judgement in words, the same in tables, files and reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refloss.messages import printable

if TYPE_CHECKING:
    from refloss.testing.diagnosis import Diagnosis
    from refloss.testing.verdict import CaseVerdict, Judgement, TensorVerdict


NOT_ANSWERED = "not answered: there is no file, NotImplementedError is raised, or a framework cannot hold the inputs"


def short(value: float | None) -> str:
    """A number whose size matters, not its digits."""
    return "" if value is None else f"{value:.2g}"


def plural(count: int, noun: str) -> str:
    """1 case, 2 cases."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def fault(tensor: TensorVerdict) -> str:
    """What is wrong with a tensor, without its name."""
    told = tensor.message.startswith(tensor.fault or "")
    return printable(tensor.message if told else f"{tensor.fault}: {tensor.message}")


def likely(tensor: TensorVerdict) -> str:
    """The mistake that explains it, if one does."""
    return f"likely: {printable(tensor.explanation)}" if tensor.explanation else ""


def failures(case: CaseVerdict) -> list[str]:
    """What is wrong with a case, a line each; never empty for one that fails."""
    lines = [printable(case.message)] if case.message else []
    for tensor in case.tensors:
        if tensor.passed is False:
            parts = (f"{printable(tensor.name)}: {fault(tensor)}", likely(tensor))
            lines.append("; ".join(part for part in parts if part))
    return lines or ["fails"]


def hardest(case: CaseVerdict) -> TensorVerdict | None:
    """The tensor with the largest error ÷ bound."""
    judged = [tensor for tensor in case.tensors if tensor.ratio is not None]
    return max(judged, key=lambda tensor: tensor.ratio or 0.0, default=None)


def summary(judgement: Judgement) -> str:
    """How many cases pass."""
    passed = sum(bool(case.passed) for case in judgement.judged)
    failed = len(judgement.judged) - passed
    absent = len(judgement.cases) - len(judgement.judged)
    parts = [f"{passed} of {plural(len(judgement.judged), 'case')} passed"]
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{absent} not answered"] if absent else []
    return ", ".join(parts)


def diagnoses(judgement: Judgement, function: str | None = None) -> list[str]:
    """What is wrong, a line for every mistake of a function; none where no mistake explains anything."""
    found = [each for each in judgement.diagnoses if function is None or each.function == function]
    return [_diagnosed(each) for each in found] if any(each.mistake for each in found) else []


def _diagnosed(diagnosis: Diagnosis) -> str:
    mistake = printable(diagnosis.mistake) if diagnosis.mistake else "no usual mistake explains"
    joint = ":" if diagnosis.mistake else ""
    told = f"{printable(diagnosis.function)}: {mistake}{joint} {explained(diagnosis)}"
    return f"{told} ({printable(diagnosis.detail)})" if diagnosis.detail else told


def explained(diagnosis: Diagnosis) -> str:
    """3 of 5 failing cases."""
    return f"{len(diagnosis.cases)} of {plural(diagnosis.failing, 'failing case')}"
