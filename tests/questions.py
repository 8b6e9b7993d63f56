"""The built-in cases with their right answers and bounds, computed once."""

import functools

from refloss.golden.corpus import corpus
from refloss.testing.judging.judge import question
from refloss.testing.verdict import Question


@functools.cache
def questions(function: str) -> tuple[Question, ...]:
    """Those of a function."""
    return tuple(question(case) for case in corpus({function}))
