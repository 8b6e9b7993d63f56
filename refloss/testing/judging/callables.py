"""Judge what is in memory: arrays against refloss's result, a function against the built-in cases."""

from __future__ import annotations

import copy
import fnmatch
import functools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.cases.source import DTYPES, Case
from refloss.error_model import COMPUTE_DTYPES
from refloss.files import nested
from refloss.golden.corpus import cases_of
from refloss.golden.store import evaluate
from refloss.registry import FUNCTIONS
from refloss.testing.judging.called import called, changed_since, on_host
from refloss.testing.judging.diagnosing import diagnosed
from refloss.testing.judging.driver import COMPONENT, GRAD, Driver, Returned, named
from refloss.testing.judging.judge import judge, question, question_of
from refloss.testing.judging.plain import text
from refloss.testing.spacing import FLOATS
from refloss.testing.verdict import CaseVerdict, Judgement, Question

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.result import LossResult

# Called with every verdict that is reached here, before it is acted upon.
listeners: list[Callable[[CaseVerdict], None]] = []


class MismatchError(AssertionError):
    """A candidate that fails, with all that was found about it."""

    def __init__(self, judgement: Judgement) -> None:
        super().__init__(text(judgement))
        self.judgement = judgement

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.judgement,)


class GoldenCase:
    """A built-in case for a test: what to compute, and what to compare it with."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self.id, self.function = case.id, case.function
        # Whatever a test does to its arrays, what they are compared with stays right.
        self.inputs: dict[str, Any] = nested({name: value.copy() for name, value in case.inputs.items()})
        self.parameters: dict[str, Any] = copy.deepcopy(case.parameters)
        self.grad_output: Any = copy.copy(case.grad_output)

    @functools.cached_property
    def result(self) -> LossResult:
        """The right answer."""
        return evaluate(self._case)

    def assert_matches(
        self,
        *,
        loss: Any = None,
        grads: Mapping[str, Any] | None = None,
        components: Mapping[str, Any] | None = None,
        compute_dtype: str | None = None,
    ) -> CaseVerdict:
        """As refloss.testing.assert_matches, of this case's result."""
        __tracebackhide__ = True
        return _assert_matches(self._case, self.result, named(loss, grads, components), compute_dtype)

    def __repr__(self) -> str:
        return f"GoldenCase({self.id!r})"


def assert_matches(
    result: LossResult,
    *,
    loss: Any = None,
    grads: Mapping[str, Any] | None = None,
    components: Mapping[str, Any] | None = None,
    compute_dtype: str | None = None,
) -> CaseVerdict:
    """Raise AssertionError unless arrays of any framework are what refloss returned, within the error model.

    Args:
        result: what a function of refloss returned, whose inputs are as they were.
        loss, grads, components: the candidate's; only what is given is judged. A gradient has its input's dtype; of a
            loss pass the array, not the number that .item() makes of it, because its rounding depends on its dtype.
        compute_dtype: what the candidate computes in: "float32", "float64", "tf32", "float16" or "bfloat16"; float32 if
            not given, or float64 for inputs that are.

    Returns:
        What was found, when all of it passes.

    Raises:
        AssertionError: with a table of what is wrong, and the judgement as its attribute of that name.
        ValueError: a name that the result does not have; a result whose inputs have changed since.
    """
    __tracebackhide__ = True
    case = called(result)
    candidate = named(loss, grads, components)
    if changed_since(case, result):
        raise ValueError("the inputs have changed since refloss was called: give it copies of what is overwritten")
    return _assert_matches(case, result, candidate, compute_dtype)


def check(
    fn: Callable[..., Any],
    /,
    *,
    function: str | Iterable[str] | None = None,
    cases: str | Iterable[str | Case] | None = None,
    dtypes: str | Iterable[str] | None = None,
    to_native: Callable[[np.ndarray], Any] | None = None,
    from_native: Callable[[Any], Any] | None = None,
    compute_dtype: str | None = None,
    grads: Iterable[str] | None = None,
    components: Iterable[str] | None = None,
) -> Judgement:
    """Drive a function through the built-in cases, and raise AssertionError unless every one passes.

    Args:
        fn: called as fn(inputs, parameters, cotangent); returns (loss, grads) or (loss, grads, components), the latter
            two as mappings from refloss's names to arrays. inputs are arrays by name, in lists and mappings where
            refloss takes such; parameters are other arguments, as far as a case gives them; the cotangent is a number,
            or an array for a loss without reduction.
        function: the name of refloss's function, or several; all cases of it if none are given.
        cases: ids of cases or patterns such as "*-bfloat16", or cases of your own.
        dtypes: of the first input; all if not given.
        to_native: makes the framework's array of a NumPy array, such as jnp.asarray; NumPy arrays if not given. What
            it makes of an array is what is judged. A case whose float inputs it cannot keep in their dtype is not
            judged: JAX makes float32 of float64 unless told otherwise.
        from_native: makes a NumPy array of a framework's, or one that has DLPack or __array__; need not be given.
        compute_dtype: as in assert_matches.
        grads, components: names to judge; all if not given, components only if some are returned.

    Returns:
        What was found about every case.

    Raises:
        AssertionError: where a case fails, its function's exceptions included, or none could be judged.
        ValueError: names that do not exist.
    """
    __tracebackhide__ = True
    chosen = select(function, cases, dtypes)
    check_names("compute_dtype", _listed(compute_dtype), COMPUTE_DTYPES)
    judging = _Judge(Driver(fn, to_native, from_native), compute_dtype, {COMPONENT: components, GRAD: grads})
    by_id = {case.id: case for case in chosen}
    verdicts = [judging.verdict(case) for case in chosen]
    judgement = Judgement(diagnosed(verdicts, lambda name: question(by_id[name], compute_dtype)), compute_dtype)
    judging.check_seen()
    for verdict in judgement.judged:
        _tell(verdict)
    if not judgement.passed:
        raise MismatchError(judgement) from judging.error
    return judgement


def select(
    function: str | Iterable[str] | None = None,
    cases: str | Iterable[str | Case] | None = None,
    dtypes: str | Iterable[str] | None = None,
) -> list[Case]:
    """Built-in cases of functions, with ids that match patterns, whose first input has one of some dtypes."""
    wanted, kinds = _listed(function), _listed(dtypes)
    patterns: list[Any] = [cases] if isinstance(cases, str | Case) else list(cases or [])
    check_names("function", wanted, FUNCTIONS)
    check_names("dtype", kinds, list(DTYPES))
    if not wanted and not patterns:
        raise TypeError("neither function nor cases is given")
    given = [each for each in patterns if isinstance(each, Case)]
    globs = [each for each in patterns if not isinstance(each, Case)]
    known = [case for name in wanted or FUNCTIONS for case in _built_in(name)] if globs or not patterns else []
    for glob in globs:
        if not any(fnmatch.fnmatchcase(case.id, glob) for case in known):
            raise ValueError(f"no case is called {glob}; there are {known[0].id}, {known[1].id} and others")
    matching = [case for case in known if not globs or any(fnmatch.fnmatchcase(case.id, glob) for glob in globs)]
    return [case for case in (*matching, *given) if not kinds or dtype_of(case) in kinds]


@functools.cache
def _built_in(function: str) -> list[Case]:
    return cases_of(function)


def dtype_of(case: Case) -> str:
    """The dtype of a case's first input."""
    return str(case.inputs[FUNCTIONS[case.function].required[0]].dtype)


def _listed(names: str | Iterable[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or [])


def check_names(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise unless all names are known."""
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"unknown {what} {', '.join(unknown)}; there are {', '.join(known)}")


def _assert_matches(
    case: Case, result: LossResult, candidate: Mapping[str, Any], compute_dtype: str | None
) -> CaseVerdict:
    __tracebackhide__ = True
    if not candidate:
        raise TypeError("nothing to judge: give loss, grads or components")
    asked = question_of(case, result, compute_dtype)
    check_names("tensor", candidate, [name for name in asked.expected if "intermediate" not in name])
    arrays = {name: None if value is None else on_host(value, name) for name, value in candidate.items()}
    verdict = _judged(asked, arrays)
    if verdict.passed is None:
        raise ValueError(f"{', '.join(candidate)}: not judged, for there is no error model")
    _tell(verdict)
    if not verdict.passed:
        raise MismatchError(Judgement((verdict,), compute_dtype))
    return verdict


def _judged(asked: Question, candidate: Mapping[str, np.ndarray | None]) -> CaseVerdict:
    """A verdict on what is given, and only that; None is what an array that is not there looks like."""
    verdict = judge(asked, candidate)
    tensors = tuple(tensor for tensor in verdict.tensors if tensor.name in candidate)
    outcomes = [tensor.passed for tensor in tensors]
    passed = None if set(outcomes) == {None} else False not in outcomes
    return replace(verdict, tensors=tensors, passed=passed)


def _tell(verdict: CaseVerdict) -> None:
    for listener in listeners:
        listener(verdict)


class _Judge:
    """Judges a function case by case; error is the first exception that it raised."""

    def __init__(
        self, driver: Driver, compute_dtype: str | None, only: Mapping[str, str | Iterable[str] | None]
    ) -> None:
        self._driver = driver
        self._compute_dtype = compute_dtype
        self._only = {kind: None if names is None else _listed(names) for kind, names in only.items()}
        self._seen: set[str] = set()
        self.error: Exception | None = None

    def verdict(self, case: Case) -> CaseVerdict:
        """The verdict on a case; an exception is a case that fails."""
        try:
            native = self._driver.native(case)
            held = self._driver.held(native)
            if changes := _changes(case.inputs, held.inputs):
                return CaseVerdict(case.id, case.function, None, message=f"not judged: to_native makes {changes}")
            asked = question(held, self._compute_dtype)
            self._seen |= asked.expected.keys()
            candidate = self._candidate(asked, self._driver.call(native))
            return _judged(
                asked,
                {name: None if value is None else self._driver.array(value, name) for name, value in candidate.items()},
            )
        except Exception as error:
            self.error = self.error or error
            return CaseVerdict(case.id, case.function, False, message=f"{type(error).__name__}: {error}")

    def check_seen(self) -> None:
        """Raise unless everything that is asked for by name has been seen."""
        for kind, only in self._only.items():
            known = sorted(name.removeprefix(kind) for name in self._seen if name.startswith(kind))
            if self._seen and only:
                check_names(kind.rstrip("."), only, known)

    def _candidate(self, asked: Question, returned: Returned) -> dict[str, Any]:
        """What is to be judged by its name; None for what should have come."""
        candidate = {"loss": returned.loss}
        for kind, only in self._only.items():
            asks_for_none = kind == COMPONENT and not returned.has_components and only is None
            names = dict.fromkeys(name for name in (*asked.expected, *returned.tensors) if name.startswith(kind))
            candidate |= {
                name: returned.tensors.get(name)
                for name in names
                if not asks_for_none and (only is None or name.removeprefix(kind) in only)
            }
        return candidate


def _changes(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> str:
    """Which floats have another dtype; of integers only their values matter."""
    return ", ".join(
        f"{after[name].dtype} of {name} ({value.dtype})"
        for name, value in before.items()
        if value.dtype in FLOATS and after[name].dtype != value.dtype
    )
