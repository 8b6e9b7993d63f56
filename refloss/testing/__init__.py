"""Judge any implementation of a loss: error model, mutants, comparison of folders, callables, metamorphic checks.

Rooms, each of which imports only from those before it, types included:

    spacing, spread    float types, and errors in their ulp; how those of a tensor are spread
    verdict            what is asked and what is found, as data
    mistakes           usual ones: as altered cases, as factors, as mutants; which of them explains a tensor, a function
    report             a judgement in words, on a terminal, as a page, as JUnit XML
    judging            tensors, functions, files against the right answers
    checks             what must hold without right answers
    strategies, plugin the faces to Hypothesis and to pytest

What is asked here of a loss, its cases and its bounds, is in its specification: refloss.cases, refloss.error_model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refloss.error_model import COMPUTE_DTYPES, bounds
    from refloss.testing import strategies
    from refloss.testing.checks.metamorphic import broken_properties, check_properties
    from refloss.testing.diagnosis import Diagnosis
    from refloss.testing.judging.callables import GoldenCase, MismatchError, assert_matches, check
    from refloss.testing.judging.compare import judge_folders
    from refloss.testing.judging.given import golden_case
    from refloss.testing.judging.judge import question
    from refloss.testing.report.judgement import Judgement
    from refloss.testing.verdict import CaseVerdict, Question, TensorVerdict

__all__ = [
    "COMPUTE_DTYPES",
    "CaseVerdict",
    "Diagnosis",
    "GoldenCase",
    "Judgement",
    "MismatchError",
    "Question",
    "TensorVerdict",
    "assert_matches",
    "bounds",
    "broken_properties",
    "check",
    "check_properties",
    "golden_case",
    "judge_folders",
    "question",
    "strategies",
]

# Where each name lives: most bring in Numba, and strategies Hypothesis, so each is imported when first used.
_HOMES = {
    "COMPUTE_DTYPES": "refloss.error_model",
    "CaseVerdict": "refloss.testing.verdict",
    "Diagnosis": "refloss.testing.diagnosis",
    "GoldenCase": "refloss.testing.judging.callables",
    "Judgement": "refloss.testing.report.judgement",
    "MismatchError": "refloss.testing.judging.callables",
    "Question": "refloss.testing.verdict",
    "TensorVerdict": "refloss.testing.verdict",
    "assert_matches": "refloss.testing.judging.callables",
    "bounds": "refloss.error_model",
    "broken_properties": "refloss.testing.checks.metamorphic",
    "check": "refloss.testing.judging.callables",
    "check_properties": "refloss.testing.checks.metamorphic",
    "golden_case": "refloss.testing.judging.given",
    "judge_folders": "refloss.testing.judging.compare",
    "question": "refloss.testing.judging.judge",
}


if not TYPE_CHECKING:  # for which it would stand for every name

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'refloss.testing' has no attribute {name!r}")
        if name not in _HOMES:
            return importlib.import_module(f"refloss.testing.{name}")
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
