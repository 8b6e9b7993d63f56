"""Cases with their right answers and bounds, computed once."""

import functools

import numpy as np

from refloss.cases.source import Case
from refloss.golden.corpus import corpus
from refloss.testing.judging.judge import question
from refloss.testing.verdict import Question


@functools.cache
def questions(function: str) -> tuple[Question, ...]:
    """The built-in ones of a function."""
    return tuple(question(case) for case in corpus({function}))


class Remembered:
    """question, for whoever asks of many kernels what of one: the last answers are kept."""

    def __init__(self, many: int = 2000) -> None:
        self.many = many
        self.known: dict[tuple[object, ...], Question] = {}

    def __call__(self, case: Case, compute_dtype: str = "float32") -> Question:
        arrays = {**case.inputs, "cotangent": np.asarray(case.grad_output)}
        key = (
            *(case.id, case.function, repr(case.parameters), compute_dtype),
            *((name, value.dtype.name, value.shape, value.tobytes()) for name, value in arrays.items()),
        )
        if key not in self.known:
            if len(self.known) >= self.many:
                self.known.pop(next(iter(self.known)))
            self.known[key] = question(case, compute_dtype)
        return self.known[key]
