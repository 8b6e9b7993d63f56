"""Judge any implementation of a loss: error model, mutants, comparison of folders, callables, metamorphic checks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refloss.testing import strategies
    from refloss.testing.callables import GoldenCase, MismatchError, assert_matches, check
    from refloss.testing.compare import judge_folders
    from refloss.testing.error_model import COMPUTE_DTYPES, bounds
    from refloss.testing.judge import Question, question
    from refloss.testing.metamorphic import check_properties
    from refloss.testing.verdict import CaseVerdict, Judgement, TensorVerdict

__all__ = [
    "COMPUTE_DTYPES",
    "CaseVerdict",
    "GoldenCase",
    "Judgement",
    "MismatchError",
    "Question",
    "TensorVerdict",
    "assert_matches",
    "bounds",
    "check",
    "check_properties",
    "judge_folders",
    "question",
    "strategies",
]

# Where each name lives: most bring in Numba, and strategies Hypothesis, so each is imported when first used.
_HOMES = {
    "COMPUTE_DTYPES": "error_model",
    "CaseVerdict": "verdict",
    "GoldenCase": "callables",
    "Judgement": "verdict",
    "MismatchError": "callables",
    "Question": "judge",
    "TensorVerdict": "verdict",
    "assert_matches": "callables",
    "bounds": "error_model",
    "check": "callables",
    "check_properties": "metamorphic",
    "judge_folders": "compare",
    "question": "judge",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'refloss.testing' has no attribute {name!r}")
    if name not in _HOMES:
        return importlib.import_module(f"refloss.testing.{name}")
    value = getattr(importlib.import_module(f"refloss.testing.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
