"""Judge what is in memory: arrays against refloss's result, a function against the built-in cases."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import refloss
from refloss import subnormals
from refloss.cases.source import DTYPES, Case
from refloss.error_model import COMPUTE_DTYPES
from refloss.files import nested
from refloss.golden.corpus import cases_of, dtype_of, matching
from refloss.golden.store import add, counted, evaluate
from refloss.registry import FUNCTIONS
from refloss.testing.judging.allowances import written_beside
from refloss.testing.judging.called import as_one, called, changed_since, joined, on_host
from refloss.testing.judging.diagnosing import diagnosed
from refloss.testing.judging.driver import Driver, named
from refloss.testing.judging.frameworks import Framework
from refloss.testing.judging.judge import question, question_of, told_parameters, told_shapes
from refloss.testing.judging.selection import Only, check_names, judged, listed, type_name
from refloss.testing.report.judgement import Judgement
from refloss.testing.report.plain import text
from refloss.testing.report.wording import plural
from refloss.testing.spacing import FLOATS
from refloss.testing.verdict import CaseVerdict

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
    """A case for a test, built-in or of golden_case: what to compute, and what to compare it with."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.id, self.function = case.id, case.function
        self.parameters: dict[str, Any] = copy.deepcopy(case.parameters)
        self.grad_output: Any = copy.deepcopy(case.grad_output)

    @functools.cached_property
    def inputs(self) -> dict[str, Any]:
        """The arrays, to do with as one likes: what they are compared with stays right."""
        return nested({name: value.copy() for name, value in self.case.inputs.items()})

    @functools.cached_property
    def result(self) -> LossResult:
        """The right answer."""
        return evaluate(self.case)

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
        return _assert_matches(self.case, self.result, named(loss, grads, components), compute_dtype)

    @subnormals.keeping
    def write(self, folder: str | Path, *, bounds: Iterable[str] = ()) -> None:
        """Add it to a folder of golden files, or make one of it; with bounds for candidates of some compute types."""
        check_names("compute_dtype", bounds, COMPUTE_DTYPES)
        add(Path(folder), self.case, self.result, written_beside(tuple(bounds), Path(folder)))

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
    return _assert_matches(case, as_one(result), candidate, compute_dtype)


def check(
    fn: Callable[..., Any],
    /,
    *,
    function: str | Iterable[str] | None = None,
    cases: str | GoldenCase | Iterable[str | Case | GoldenCase] | None = None,
    dtypes: str | Iterable[str] | None = None,
    to_native: Callable[[np.ndarray], Any] | None = None,
    from_native: Callable[[Any], Any] | None = None,
    compute_dtype: str | None = None,
    grads: Iterable[str] | None = None,
    components: Iterable[str] | None = None,
) -> Judgement:
    """Drive a function through the built-in cases, and raise AssertionError unless every one passes.

    Args:
        fn: called as fn(inputs, parameters, grad_output); returns (loss, grads) or (loss, grads, components), the
            latter two as mappings from refloss's names to arrays. inputs are arrays by name, in lists and mappings
            where refloss takes such; parameters are other arguments, as far as a case gives them; grad_output, the
            upstream gradient, is a number, or an array for a loss without reduction. It may raise NotImplementedError
            for what it does not have: such a case is not judged.
        function: the name of refloss's function, or several; all cases of it if none are given.
        cases: ids of cases or patterns such as "*-bfloat16", or cases of your own: see golden_case.
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
    judging = Judging(fn, Framework(to_native), from_native, compute_dtype, Only(grads, components))
    judgement = judging.judgement(chosen)
    for verdict in judgement.judged:
        _tell(verdict)
    if not judgement.passed:
        raise MismatchError(judgement) from judging.error
    return judgement


def select(
    function: str | Iterable[str] | None = None,
    cases: str | GoldenCase | Iterable[str | Case | GoldenCase] | None = None,
    dtypes: str | Iterable[str] | None = None,
) -> list[Case]:
    """Built-in cases of functions, with ids that match patterns, whose first input has one of some dtypes."""
    wanted, kinds = listed(function), listed(dtypes)
    patterns: list[Any] = [cases] if isinstance(cases, str | Case | GoldenCase) else list(cases or [])
    patterns = [each.case if isinstance(each, GoldenCase) else each for each in patterns]
    check_names("function", wanted, FUNCTIONS)
    check_names("dtype", kinds, list(DTYPES))
    if not wanted and not patterns:
        raise TypeError("neither function nor cases is given")
    given = [each for each in patterns if isinstance(each, Case)]
    globs = [each for each in patterns if not isinstance(each, Case)]
    known = [case for name in wanted or FUNCTIONS for case in _built_in(name)] if globs or not patterns else []
    ids = matching(globs, [case.id for case in known])
    chosen = [case for case in known if case.id in ids]
    return [case for case in (*chosen, *given) if not kinds or dtype_of(case) in kinds]


@functools.cache
def _built_in(function: str) -> list[Case]:
    return cases_of(function)


def _assert_matches(
    case: Case, result: LossResult, candidate: Mapping[str, Any], compute_dtype: str | None
) -> CaseVerdict:
    __tracebackhide__ = True
    if not candidate:
        raise TypeError("nothing to judge: give loss, grads or components")
    compute_dtype = type_name(compute_dtype)
    asked = question_of(case, result, compute_dtype)
    check_names("tensor", candidate, [name for name in asked.expected if "intermediate" not in name])
    arrays = {name: None if value is None else on_host(joined(value, name), name) for name, value in candidate.items()}
    verdict = judged(asked, arrays)
    if verdict.passed is None:
        raise ValueError(f"{', '.join(candidate)}: not judged, for there is no error model")
    _tell(verdict)
    if not verdict.passed:
        raise MismatchError(Judgement.of((verdict,), compute_dtype, subject=verdict.id))
    return verdict


def _tell(verdict: CaseVerdict) -> None:
    for listener in listeners:
        listener(verdict)


class Judging:
    """Judges a function case by case; error is the first exception that it raised."""

    def __init__(
        self,
        function: Callable[..., Any],
        framework: Framework,
        from_native: Callable[[Any], Any] | None = None,
        compute_dtype: str | None = None,
        only: Only | None = None,
    ) -> None:
        compute_dtype = type_name(compute_dtype)
        check_names("compute_dtype", listed(compute_dtype), COMPUTE_DTYPES)
        self._subject = getattr(function, "__qualname__", type(function).__name__)
        self._driver = Driver(function, framework.to_native, from_native)
        self._around = framework.around
        self._compute_dtype = compute_dtype
        self._only = only or Only(None, None)
        self.error: Exception | SystemExit | None = None

    def judgement(self, cases: Iterable[Case], report: Callable[[int, int], None] | None = None) -> Judgement:
        """The verdicts on some cases; names of gradients and components that none of them has are an error."""
        start, chosen, verdicts = time.perf_counter(), list(cases), []
        for case in counted(chosen, report):
            before = time.perf_counter()
            verdicts.append(replace(self._verdict(case), seconds=time.perf_counter() - before))
        self._only.check()
        seconds = time.perf_counter() - start
        by_id = {case.id: case for case in chosen}
        found = diagnosed(verdicts, lambda name: question(by_id[name], self._compute_dtype))
        return Judgement.of(
            found, self._compute_dtype, subject=self._subject, corpus=_corpus_of(chosen), seconds=seconds
        )

    def _verdict(self, case: Case) -> CaseVerdict:
        """The verdict on a case; an exception is a case that fails, unless it says that this is not there."""
        try:
            with self._around(case):
                return self._answered(case)
        except (Exception, SystemExit) as error:  # a function that ends the process has judged nothing
            self.error = self.error or error
            return self._without_values(case, False, f"{type(error).__name__}: {error}")

    def _answered(self, case: Case) -> CaseVerdict:
        native = self._driver.native(case)
        held = self._driver.held(native)
        if changes := _changes(case.inputs, held.inputs):
            return self._without_values(case, None, f"not judged: to_native makes {changes}")
        try:
            returned = self._driver.call(native)
        except NotImplementedError as error:
            return self._without_values(case, None, f"not answered: {str(error) or type(error).__name__}")
        asked = question(held, self._compute_dtype)
        tensors = {"loss": returned.loss, **returned.tensors}
        candidate = self._only.of(asked, tensors, has_components=returned.has_components)
        return judged(
            asked,
            {name: None if value is None else self._driver.array(value, name) for name, value in candidate.items()},
        )

    def _without_values(self, case: Case, passed: bool | None, message: str) -> CaseVerdict:
        return CaseVerdict(case.id, case.function, passed, (), message, told_parameters(case), told_shapes(case))


def _corpus_of(cases: Iterable[Case]) -> str:
    """Which cases these are, as far as it can be said."""
    own = [case for case in cases if not any(case is each for each in _built_in(case.function))]
    return f"built-in, refloss {refloss.__version__}" + (f", and {plural(len(own), 'other')}" if own else "")


def _changes(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> str:
    """Which floats have another dtype, and which integers other values."""
    return ", ".join(
        f"{after[name].dtype} of {name} ({value.dtype})"
        for name, value in before.items()
        if (value.dtype in FLOATS and after[name].dtype != value.dtype)
        or (value.dtype not in FLOATS and not np.array_equal(after[name], value))
    )
