"""A candidate's tensors against the right ones, element by element, under the error model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refloss import subnormals
from refloss.error_model import bounds
from refloss.golden.store import evaluate, expected_tensors
from refloss.testing.judging.called import on_host
from refloss.testing.mistakes.explain import explain
from refloss.testing.spacing import FLOATS, errors, spacing
from refloss.testing.verdict import CaseVerdict, Question, TensorVerdict, Values, Worst

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refloss.cases.source import Case
    from refloss.result import LossResult


def question(case: Case, compute_dtype: str | None = None, expected: Mapping[str, Any] | None = None) -> Question:
    """A case for a candidate that computes in a type, by default the case's own; expected as a golden file has it."""
    return question_of(case, evaluate(case), compute_dtype, expected)


@subnormals.keeping
def question_of(
    case: Case, result: LossResult, compute_dtype: str | None = None, expected: Mapping[str, Any] | None = None
) -> Question:
    """The same of a result that is there."""
    tensors = expected_tensors(result) if expected is None else expected
    arrays = {name.removeprefix("expected."): on_host(value, name) for name, value in tensors.items()}
    compute_dtype = compute_dtype or default_compute_dtype(case)
    return Question(case, result, arrays, bounds(case, result, compute_dtype), compute_dtype)


def default_compute_dtype(case: Case) -> str:
    """float64 for cases whose inputs are, else float32."""
    floats = [value.dtype for value in case.inputs.values() if value.dtype in FLOATS]
    return "float64" if floats and floats[0] == np.float64 else "float32"


@subnormals.keeping
def judge(asked: Question, candidate: Mapping[str, Any]) -> CaseVerdict:
    """Every tensor that is asked for, and what came beside them."""
    tensors = [
        _judge_tensor(asked, name, candidate.get(name))
        for name in asked.expected
        if name in candidate or not name.startswith("intermediate.")
    ]
    known = ", ".join(name for name in asked.expected if not name.startswith("intermediate."))
    tensors += [
        TensorVerdict(name, passed=False, fault="extra", message=f"not a tensor of this case, which has {known}")
        for name in candidate
        if name not in asked.expected
    ]
    passed = all(tensor.passed is not False for tensor in tensors)
    return CaseVerdict(asked.case.id, asked.case.function, passed, tuple(tensors))


def _judge_tensor(asked: Question, name: str, candidate: Any) -> TensorVerdict:
    expected = asked.expected[name]
    if candidate is None:
        return TensorVerdict(name, passed=False, fault="missing", message="the candidate does not have it")
    got = np.asarray(candidate)
    if got.shape != expected.shape:
        message = f"shape {list(got.shape)} instead of {list(expected.shape)}"
        explanation = "transposed" if sorted(got.shape) == sorted(expected.shape) and got.ndim > 1 else None
        return TensorVerdict(name, passed=False, fault="shape", message=message, explanation=explanation)
    wanted = _types(asked, name)
    if wanted and got.dtype not in wanted:
        message = f"dtype {got.dtype} instead of {' or '.join(str(kind) for kind in wanted)}"
        return TensorVerdict(name, passed=False, fault="dtype", message=message)
    if name not in asked.bounds or not wanted:
        return TensorVerdict(name, passed=None, message="not judged: it has no error model")
    return _judge_values(asked, name, got)


def _types(asked: Question, name: str) -> tuple[Any, ...]:
    """The types that a tensor may have: a gradient its input's, a loss any that is no coarser than an input."""
    expected = asked.expected[name]
    if expected.dtype not in FLOATS:
        return ()
    if name.startswith("grad."):
        return (expected.dtype,)
    inputs = [value.dtype for value in asked.case.inputs.values() if value.dtype in FLOATS]
    coarsest = max((FLOATS[kind].eps for kind in inputs), default=FLOATS[np.dtype(np.float32)].eps)
    coarsest = max(coarsest, FLOATS[np.dtype(np.float32)].eps)
    return tuple(kind for kind in FLOATS if FLOATS[kind].eps <= coarsest)


def _judge_values(asked: Question, name: str, got: np.ndarray) -> TensorVerdict:
    expected = asked.expected[name]
    right, values_got = expected.astype(np.float64), got.astype(np.float64)
    bound = np.broadcast_to(asked.bounds[name], right.shape)
    size = np.abs(np.where(np.isfinite(right), right, 0.0))
    # The candidate rounds once to its type, and what is expected was rounded once to its own.
    allowed = bound + (spacing(size + bound, got.dtype) + spacing(size, expected.dtype)) / 2
    steps = spacing(size, got.dtype)
    values = Values(values_got, right, allowed, steps)
    off = errors(values)
    worst, largest, most = None, 0.0, 0.0
    if right.size:
        index = tuple(int(i) for i in np.unravel_index(int(np.argmax(off.ratio)), right.shape))
        worst = Worst(index, float(values_got[index]), float(right[index]), float(allowed[index]))
        largest, most = float(off.ratio[index]), float(off.error.max())
    if largest <= 1.0:
        return TensorVerdict(name, passed=True, worst=worst, ulp=most, ratio=largest, values=values)
    assert worst is not None
    wrong = np.isfinite(right) & ~np.isfinite(values_got)
    fault = "not finite" if wrong.any() else "too far off"
    message = _where(worst)
    if right.ndim:
        message = f"{int(np.count_nonzero(off.ratio > 1.0))} of {right.size} elements, the worst {message}"
    verdict = TensorVerdict(name, False, fault, message, worst, most, largest, values=values)
    return TensorVerdict(name, False, fault, message, worst, most, largest, explain(asked, verdict), values=values)


def _where(worst: Worst) -> str:
    where = f"at {list(worst.index)}: " if worst.index else ""
    return f"{where}{worst.got:.9g} instead of {worst.expected:.9g} ± {worst.allowed:.2g}"
