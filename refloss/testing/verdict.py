"""What is asked of a candidate, and what is found about it: plain data, for tables, files and reports."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from refloss.testing.diagnosis import Cause, Diagnosis, Symptoms, diagnose

if TYPE_CHECKING:
    import numpy as np

    from refloss.cases.source import Case
    from refloss.error_model import Bound
    from refloss.result import LossResult
    from refloss.testing.spread import Element, Spread

# What can be wrong with a tensor. The last one is about its values, all others are told before values are looked at.
FAULTS = ("missing", "extra", "unreadable", "shape", "dtype", "not finite", "too far off")


class Question(NamedTuple):
    """A case with its right answer, and how far off each tensor of an honest candidate may be.

    exact holds the gradients whose type has 16 bits, in float32: what is judged is how far a candidate is from the
    right number, not from that number rounded.
    """

    case: Case
    result: LossResult
    expected: Mapping[str, np.ndarray]  # loss, component.<name>, grad.<name>, intermediate.<name>
    bounds: Mapping[str, Bound]
    compute_dtype: str
    exact: Mapping[str, np.ndarray] = MappingProxyType({})


@dataclass(frozen=True)
class TensorVerdict:
    """A tensor of a case: whether it passes (None where it is not judged), and by how much.

    worst is the element with the largest error ÷ bound, ratio that quotient, ulp the largest error of any element in
    ulp of the candidate's type.
    """

    name: str
    passed: bool | None
    fault: str | None = None  # one of FAULTS
    message: str = ""
    worst: Element | None = None
    ulp: float | None = None
    ratio: float | None = None
    explanation: str | None = None  # the usual mistake that fits
    spread: Spread | None = field(default=None, compare=False, repr=False)

    def as_json(self) -> dict[str, Any]:
        """For json.dumps; what JSON has no number for is a string."""
        worst = None
        if self.worst is not None:
            worst = {
                "index": list(self.worst.index),
                **{key: _number(getattr(self.worst, key)) for key in ("got", "expected", "allowed")},
            }
        return {
            "name": self.name,
            "passed": self.passed,
            "fault": self.fault,
            "message": self.message,
            "worst": worst,
            "ulp": _number(self.ulp),
            "error_over_bound": _number(self.ratio),
            "explanation": self.explanation,
            "elements": None if self.spread is None else self.spread.size,
            "above_bound": None if self.spread is None else self.spread.above,
        }


@dataclass(frozen=True)
class CaseVerdict:
    """A case: whether it passes, None where the candidate does not answer it.

    parameters and shapes are those of the case, seconds what judging it took, causes the mistakes that fit it, refuted
    those that do not though it passes: they would show.
    """

    id: str
    function: str
    passed: bool | None
    tensors: tuple[TensorVerdict, ...] = ()
    message: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict, compare=False)
    shapes: Mapping[str, str] = field(default_factory=dict, compare=False)  # float32 [2, 9, 17]
    seconds: float | None = field(default=None, compare=False)
    causes: tuple[Cause, ...] = ()
    refuted: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For json.dumps."""
        return {
            "id": self.id,
            "function": self.function,
            "passed": self.passed,
            "message": self.message,
            "tensors": [tensor.as_json() for tensor in self.tensors],
            "parameters": plain(self.parameters),
            "shapes": dict(self.shapes),
            "seconds": _number(self.seconds),
            "causes": [plain(cause._asdict()) for cause in self.causes],
        }


@dataclass(frozen=True)
class Judgement:
    """All cases, and the type that the candidate was taken to compute in (None: each case's default).

    subject says in a few words what was judged,
    corpus which cases it was judged by, command how it was asked for, seconds how long it took.
    """

    cases: tuple[CaseVerdict, ...]
    compute_dtype: str | None = None
    subject: str = field(default="", compare=False)
    corpus: str | None = field(default=None, compare=False)
    command: str = field(default="", compare=False)
    seconds: float | None = field(default=None, compare=False)
    environment: Mapping[str, str] = field(default_factory=dict, compare=False)  # versions, and the machine

    @property
    def judged(self) -> tuple[CaseVerdict, ...]:
        """The cases that the candidate answers."""
        return tuple(case for case in self.cases if case.passed is not None)

    @property
    def passed(self) -> bool:
        """Whether there is something to judge and all of it passes."""
        return bool(self.judged) and all(case.passed for case in self.judged)

    @cached_property
    def diagnoses(self) -> tuple[Diagnosis, ...]:
        """Of every function that fails, the fewest usual mistakes that explain it, that of most cases first."""
        functions = dict.fromkeys(case.function for case in self.judged if not case.passed)
        return tuple(found for function in functions for found in diagnose(function, _symptoms(function, self.judged)))

    @property
    def exit_status(self) -> int:
        """0 when every case that is answered passes, 1 when one fails, 2 when none is."""
        if not self.judged:
            return 2
        return 0 if self.passed else 1

    def as_json(self) -> dict[str, Any]:
        """For json.dumps."""
        return {
            "passed": self.passed,
            "compute_dtype": self.compute_dtype,
            "refloss": self.environment.get("refloss"),
            "corpus": self.corpus,
            "command": self.command,
            "seconds": _number(self.seconds),
            "environment": dict(self.environment),
            "diagnoses": [diagnosis._asdict() for diagnosis in self.diagnoses],
            "cases": [case.as_json() for case in self.cases],
        }


def explained(cases: Iterable[CaseVerdict]) -> tuple[CaseVerdict, ...]:
    """Verdicts whose tensors are explained by what explains most cases of their function."""
    every = tuple(cases)
    found = Judgement(every).diagnoses
    return tuple(_explained(case, found) if case.causes else case for case in every)


def _explained(case: CaseVerdict, diagnoses: Iterable[Diagnosis]) -> CaseVerdict:
    words: dict[str, str] = {}
    for found in diagnoses:
        if found.function == case.function and case.id in found.cases:
            for cause in case.causes:
                if cause.means(found.mistake):
                    words = dict.fromkeys(cause.tensors, cause.detail or cause.mistake) | words
    tensors = (replace(each, explanation=words.get(each.name, each.explanation)) for each in case.tensors)
    return replace(case, tensors=tuple(tensors))


def _symptoms(function: str, cases: Iterable[CaseVerdict]) -> list[Symptoms]:
    return [Symptoms(case.id, _failing(case), case.causes, case.refuted) for case in cases if case.function == function]


def _failing(case: CaseVerdict) -> tuple[str, ...]:
    """What is to be explained: what failed by its values, for only that can be a mistake of the maths; or else all."""
    if case.passed is not False:
        return ()
    wrong = [tensor for tensor in case.tensors if tensor.passed is False]
    by_value = [tensor.name for tensor in wrong if tensor.worst is not None]
    return tuple(by_value or [tensor.name for tensor in wrong] or [case.message])


def _number(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)


def plain(value: Any) -> Any:
    """Values for json.dumps; numbers that JSON does not have are words."""
    if isinstance(value, float):
        return _number(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else str(value)
