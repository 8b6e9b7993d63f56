"""A candidate's tensors against the right ones, block by block, under the error model."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss import subnormals
from refloss.error_model import bounds
from refloss.golden.store import evaluate, expected_tensors
from refloss.registry import FUNCTIONS
from refloss.testing.judging.called import on_host
from refloss.testing.mistakes.explain import LARGEST, causes
from refloss.testing.mistakes.tensors import Tensor, tensor_of
from refloss.testing.spacing import FLOATS, Elements, elements, errors, spacing
from refloss.testing.spread import Gridding, Spreading, class_last
from refloss.testing.verdict import CaseVerdict, Question, TensorVerdict, explained

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from refloss.cases.source import Case
    from refloss.result import LossResult
    from refloss.testing.diagnosis import Cause
    from refloss.testing.spacing import Errors
    from refloss.testing.spread import Element

BLOCK = 2**16  # elements of a tensor that are looked at in one go
COARSE = 2.0**-20  # the epsilon above which a gradient is judged unrounded


def question(case: Case, compute_dtype: str | None = None, expected: Mapping[str, Any] | None = None) -> Question:
    """A case for a candidate that computes in a type, by default the case's own; expected as a golden file has it."""
    if expected is None or not _has_coarse(case):
        return question_of(case, evaluate(case), compute_dtype, expected)
    result = evaluate(_widened(case))
    return _question(case, result, compute_dtype, expected, result.grads)


def question_of(
    case: Case, result: LossResult, compute_dtype: str | None = None, expected: Mapping[str, Any] | None = None
) -> Question:
    """The same of a result that is there."""
    coarse = any(FLOATS[value.dtype].eps > COARSE for value in result.grads.values() if value.dtype in FLOATS)
    unrounded = evaluate(_widened(case)).grads if coarse else {}
    return _question(case, result, compute_dtype, expected, unrounded)


@subnormals.keeping
def _question(
    case: Case,
    result: LossResult,
    compute_dtype: str | None,
    expected: Mapping[str, Any] | None,
    unrounded: Mapping[str, Any],
) -> Question:
    tensors = expected_tensors(result) if expected is None else expected
    arrays = {name.removeprefix("expected."): on_host(value, name) for name, value in tensors.items()}
    exact = {f"grad.{name}": on_host(value, name) for name, value in unrounded.items()}
    kept = {name: value for name, value in exact.items() if name in arrays and _is_coarse(arrays[name])}
    compute_dtype = compute_dtype or default_compute_dtype(case)
    return Question(case, result, arrays, bounds(case, result, compute_dtype), compute_dtype, kept)


def _has_coarse(case: Case) -> bool:
    """Whether there may be gradients of 16 bits."""
    return any(_is_coarse(value) for value in case.inputs.values())


def _widened(case: Case) -> Case:
    """The same numbers, where they have 16 bits as float32: the gradients of all of them are then."""
    inputs = {name: value.astype(np.float32) if _is_coarse(value) else value for name, value in case.inputs.items()}
    return case._replace(inputs=inputs)


def _is_coarse(array: np.ndarray) -> bool:
    return bool(array.dtype in FLOATS and FLOATS[array.dtype].eps > COARSE)


def default_compute_dtype(case: Case) -> str:
    """float64 for cases whose inputs are, else float32."""
    floats = [value.dtype for value in case.inputs.values() if value.dtype in FLOATS]
    return "float64" if floats and floats[0] == np.float64 else "float32"


@subnormals.keeping
def judge(asked: Question, candidate: Mapping[str, Any]) -> CaseVerdict:
    """Every tensor that is asked for, and what came beside them."""
    start = time.perf_counter()
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
    case, passed = asked.case, all(tensor.passed is not False for tensor in tensors)
    found = _causes(asked, tensors, candidate)
    seconds = time.perf_counter() - start
    parameters, shapes = told_parameters(case), told_shapes(case)
    verdict = CaseVerdict(case.id, case.function, passed, tuple(tensors), "", parameters, shapes, seconds, found)
    return explained([verdict])[0]


def told_parameters(case: Case) -> dict[str, Any]:
    """A case's arguments that are no inputs, without arrays: a verdict may be kept for long."""
    return {name: _told(value) for name, value in (case.parameters | {"grad_output": case.grad_output}).items()}


def told_shapes(case: Case) -> dict[str, str]:
    """The types and shapes of a case's inputs."""
    return {name: _told(value) for name, value in case.inputs.items()}


def _told(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, Mapping) and all(isinstance(key, str | int) for key in value):
        return {key: _told(part) for key, part in value.items()}
    return [_told(part) for part in value] if isinstance(value, list | tuple) else type(value).__name__


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


def blocks(asked: Question, name: str, got: np.ndarray) -> Iterator[Elements]:
    """The elements of a tensor that came, beside the right ones, in C order."""
    expected, bound = asked.expected[name], asked.bounds[name]
    exact = asked.exact.get(name)
    for first in range(0, expected.size, BLOCK):
        last = min(first + BLOCK, expected.size)
        right = _part(expected, first, last)
        if exact is not None and exact.shape == expected.shape:
            right = _unrounded(right, _part(exact, first, last))
        yield elements(_part(got, first, last), right, bound.part(first, last))


def _part(array: np.ndarray, first: int, last: int) -> np.ndarray:
    return array.reshape(-1)[first:last] if array.flags.c_contiguous else np.asarray(array.flat[first:last])


def _unrounded(rounded: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Right values before they were rounded, unless another version of refloss rounded others."""
    near, values = rounded.astype(np.float32), exact.astype(np.float32)
    with np.errstate(invalid="ignore"):
        same = np.abs(near - values) <= spacing(np.abs(near).astype(np.float64), rounded.dtype)
    return np.where(same, values, near)


def _judge_values(asked: Question, name: str, got: np.ndarray) -> TensorVerdict:
    spreading, finite, off = Spreading(got.shape), True, None
    for given in blocks(asked, name, got):
        off = errors(given)
        spreading.add(given, off)
        finite = finite and not np.any(np.isfinite(given.right) & ~np.isfinite(given.got))
    spread = spreading.spread()
    worst = spread.worst[0] if spread.worst else None
    ratio = 0.0 if worst is None else worst.ratio
    verdict = functools.partial(TensorVerdict, name, worst=worst, ulp=spreading.ulp, ratio=ratio)
    if worst is None or ratio <= 1.0:
        return verdict(passed=True, spread=spread)
    message = _where(worst)
    if got.ndim:
        message = f"{spread.above} of {spread.size} elements, the worst {message}"
    fault = "too far off" if finite else "not finite"
    # Of several blocks, errors are computed again: nothing as large as the tensor is kept.
    every = [off] if off and got.size <= BLOCK else map(errors, blocks(asked, name, got))
    return verdict(passed=False, fault=fault, message=message, spread=spreading.spread(_grid(asked, got.shape, every)))


def _causes(asked: Question, tensors: list[TensorVerdict], candidate: Mapping[str, Any]) -> tuple[Cause, ...]:
    """The mistakes that explain what is too far off."""
    judged = [tensor for tensor in tensors if tensor.worst is not None]
    failing = tuple(tensor.name for tensor in judged if not tensor.passed)
    if not failing:
        return ()
    arrays = {tensor.name: np.asarray(candidate[tensor.name]) for tensor in judged}
    return causes(asked, {name: _tensor(asked, name, got) for name, got in arrays.items()}, failing)


def _tensor(asked: Question, name: str, got: np.ndarray) -> Tensor:
    """What mistakes are tried on: of many elements some, in one row."""
    every, step = blocks(asked, name, got), max(got.size // LARGEST, 1)
    parts = zip(*([part[::step].copy() for part in block] for block in every), strict=True)
    shape = got.shape if step == 1 else (-1,)
    return tensor_of(name, Elements(*(np.concatenate(part).reshape(shape) for part in parts)), got.dtype)


def _grid(asked: Question, shape: tuple[int, ...], every: Iterable[Errors]) -> Any:
    specification = FUNCTIONS[asked.case.function].specification
    first = specification.arguments[specification.differentiable[0]]
    gridding = Gridding(shape, class_last(shape, first.class_axis))
    for off in every:
        gridding.add(off.ratio)
    return gridding.grid()


def _where(worst: Element) -> str:
    where = f"at {list(worst.index)}: " if worst.index else ""
    return f"{where}{worst.got:.9g} instead of {worst.expected:.9g} ± {worst.allowed:.2g}"
