"""Checks of a function that need no right answers: what must hold between its results, or of one of them.

Two results of an honest function may each be off by its bound in the error model, so that they differ by at most the
sum of both. Inputs are chosen such that what is done to them is exact.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.cases.draws import Limits
from refloss.cases.source import DTYPES
from refloss.error_model import COMPUTE_DTYPES
from refloss.golden.corpus import cases_of
from refloss.golden.drawn import seeded
from refloss.registry import FUNCTIONS
from refloss.specification import MatchingHead
from refloss.testing.checks.trials import (
    Trial,
    ViolationError,
    added,
    compare,
    divisor,
    element,
    gradients,
    joined,
    scaled,
)
from refloss.testing.judging.driver import Driver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from refloss.cases.source import Case

_ADDED = 2  # rows of padding
_SHIFTS = (
    128.0,
    -128.0,
    64.0,
    -32.0,
)  # exact in every type, as the logits of the cases are multiples of a power of two


def check_properties(
    fn: Callable[..., Any],
    /,
    function: str,
    *,
    to_native: Callable[[np.ndarray], Any] | None = None,
    from_native: Callable[[Any], Any] | None = None,
    seeds: Iterable[int] = range(3),
    compute_dtype: str = "float32",
) -> list[str]:
    """Raise AssertionError unless a function has the properties that its kind of loss has.

    They are those of PROPERTIES, as far as they apply: a loss without classes cannot have them permuted.

    Args:
        fn: called as fn(inputs, parameters, cotangent); returns (loss, grads), as for refloss.testing.check. It may
            raise NotImplementedError for parameters or inputs that it does not have.
        function: the name of refloss's function.
        to_native: makes the framework's array of a NumPy array; NumPy arrays if not given.
        from_native: makes a NumPy array of a framework's; need not be given for one that has DLPack or __array__.
        seeds: of inputs.
        compute_dtype: what fn computes in, which is also the type of inputs (float32 for "tf32").

    Returns:
        The properties that were found to hold.

    Raises:
        AssertionError: that names each property which does not hold, with the numbers that show it.
        ValueError: an unknown function or type; nothing that fn implements.
    """
    for what, given, known in (("function", function, FUNCTIONS), ("compute_dtype", compute_dtype, COMPUTE_DTYPES)):
        if given not in known:
            raise ValueError(f"unknown {what} {given!r}; expected one of {', '.join(known)}")
    driver = Driver(fn, to_native, from_native)
    held: set[str] = set()
    broken: dict[str, str] = {}
    for seed in seeds:
        for case in _cases(function, compute_dtype, seed):
            _check_case(Trial(driver, compute_dtype, case), held, broken)
    if broken:
        lines = [f"  {name}: {broken[name]}" for name in PROPERTIES if name in broken]
        raise AssertionError(
            "\n".join([f"{function} lacks {len(broken)} of the properties that it should have", *lines])
        )
    if not held:
        raise ValueError(f"nothing to check: fn implements none of the cases of {function}")
    return [name for name in PROPERTIES if name in held]


def _check_case(trial: Trial, held: set[str], broken: dict[str, str]) -> None:
    for name, check in PROPERTIES.items():
        if name in broken:
            continue
        try:
            if check(trial):
                held.add(name)
        except NotImplementedError:
            continue
        except ViolationError as violation:
            broken[name] = f"{violation} ({trial.case.id})"


def _inputs_unchanged(trial: Trial) -> bool:
    native = trial.driver.native(trial.case)
    before = trial.driver.held(native)
    trial.call(native)
    after = trial.driver.held(native)
    pairs = [(name, value, after.inputs[name]) for name, value in before.inputs.items()]
    for name, value, other in (*pairs, ("cotangent", before.grad_output, after.grad_output)):
        if np.asarray(value).tobytes() != np.asarray(other).tobytes():
            raise ViolationError(f"{name} is not what it was before the call")
    return True


def _repeated(trial: Trial) -> bool:
    first, second = (trial.call(trial.driver.native(trial.case)) for _ in range(2))
    for name, value in first.items():
        again = second[name]
        if (value.shape, value.dtype) != (again.shape, again.dtype):
            raise ViolationError(f"{name} has another shape or dtype in a second run")
        different = (_bytes(value) != _bytes(again)).any(axis=1)
        if different.any():
            index = tuple(int(i) for i in np.unravel_index(int(np.argmax(different)), value.shape))
            pair = " and ".join(f"{float(each[index]):.17g}" for each in (value, again))
            raise ViolationError(f"{element(name, index)} is {pair} in two runs")
    return True


def _not_negative(trial: Trial) -> bool:
    if not trial.specification.positive:
        return False
    loss, allowed = trial.answer["loss"]
    if not np.all(loss >= -allowed):
        worst = float(loss.min())
        raise ViolationError(f"a loss is {worst:.9g}; −log p and distances are at least 0")
    return True


def _linear(trial: Trial) -> bool:
    first = np.asarray(trial.case.grad_output)
    other = -4.0 * (first[::-1] if first.ndim else first)
    second, both = (
        trial.measure(trial.case._replace(grad_output=cotangent if first.ndim else float(cotangent)))
        for cotangent in (other, first + other)
    )
    compare({"loss": trial.answer["loss"]}, {"loss": second["loss"]}, "for two cotangents")
    summed = added([gradients(trial.answer), gradients(second)])
    compare(summed, gradients(both), "the sum of two cotangents' and their sum's")
    return True


def _shift(trial: Trial) -> bool:
    if not trial.softmax:
        return False
    shifted = {}
    for name, axis in trial.softmax.items():
        rows = np.moveaxis(trial.case.inputs[name], axis, -1)
        shifts = np.resize(np.array(_SHIFTS, rows.dtype), rows.shape[:-1])
        shifted[name] = np.moveaxis(rows + shifts[..., None], -1, axis)
    after = trial.measure(trial.with_inputs(shifted))
    compare(trial.answer, after, "before and after a constant is added to the logits of a row")
    return True


def _rows_sum(trial: Trial) -> bool:
    names = [f"grad.{name}" for name in trial.softmax if f"grad.{name}" in trial.answer]
    for name in names:
        axis = trial.softmax[name.removeprefix("grad.")]
        sums = trial.answer[name].changed(functools.partial(np.sum, axis=axis))
        compare({name: sums}, {name: sums.changed(np.zeros_like)}, "the sum over a row's classes and 0")
    return bool(names)


def _permuted_rows(trial: Trial) -> bool:
    if not trial.rows:
        return False
    change = functools.partial(np.take, indices=_order(trial.row_count), axis=0)
    after = trial.measure(trial.with_rows(change))
    compare(trial.changed(change), after, "before and after rows change places")
    return True


def _permuted_classes(trial: Trial) -> bool:
    case = trial.case
    if not trial.classes:
        return False
    name, axis = next(iter(trial.classes.items()))
    order = _order(case.inputs[name].shape[axis])
    labels_of = np.argsort(order)

    def renamed(labels: np.ndarray) -> np.ndarray:
        within = (labels >= 0) & (labels < len(order))
        return np.where(within, labels_of[np.where(within, labels, 0)], labels)

    moved = {name: renamed(case.inputs[name]) for name in trial.labels}
    before = dict(trial.answer)
    for name, axis in trial.classes.items():
        move = functools.partial(np.take, indices=order, axis=axis)
        moved[name] = move(case.inputs[name])
        if f"grad.{name}" in before:
            before[f"grad.{name}"] = before[f"grad.{name}"].changed(move)
    options = {key: int(renamed(np.array(value))) for key, value in case.parameters.items() if key == "ignore_index"}
    after = trial.measure(trial.with_inputs(moved, **options))
    compare(before, after, "before and after classes change places")
    return True


def _batch_is_loop(trial: Trial) -> bool:
    if not trial.rows:
        return False
    singles = [_between(i, i + 1) for i in range(trial.row_count)]
    cases = [trial.with_rows(single) for single in singles]
    shares = _shares(trial, cases)
    if shares is None:
        return False
    # A mean over nothing is no number; its share of the whole is 0, and so are its gradients.
    answers = [
        scaled(trial.measure(case), share)
        if share
        else {name: each.changed(single).changed(np.zeros_like) for name, each in gradients(trial.answer).items()}
        for case, single, share in zip(cases, singles, shares, strict=True)
    ]
    compare(joined(answers, is_reduced=trial.is_reduced), trial.answer, "row by row and as a batch")
    return True


def _micro_batches(trial: Trial) -> bool:
    case = trial.case
    takes_items = "num_items_in_batch" in FUNCTIONS[case.function].parameters
    if not trial.rows or (not takes_items and case.parameters.get("reduction") != "sum"):
        return False
    options = {}
    if takes_items and not trial.labels:
        return False
    if takes_items:
        items = case.parameters.get("num_items_in_batch", divisor(trial, case))
        if items is None:
            return False
        options = {"num_items_in_batch": items}
    cut = trial.row_count // 2
    halves = (_between(0, cut), _between(cut, trial.row_count))
    answers = [trial.measure(trial.with_rows(half, **options)) for half in halves]
    compare(joined(answers, is_reduced=True), trial.answer, "of two micro-batches and of the whole")
    return True


def _padding(trial: Trial) -> bool:
    axes = trial.specification.padded if trial.labels else ()
    for axis in axes:
        case = trial.with_rows(functools.partial(_with_more, axis=axis))
        for name in trial.labels:
            np.moveaxis(case.inputs[name], axis, 0)[-_ADDED:] = trial.ignore_index(name)
        before = trial.changed(functools.partial(_with_more, axis=axis, change=np.zeros_like))
        compare(before, trial.measure(case), "before and after rows that are ignored are added")
    return bool(axes)


PROPERTIES: dict[str, Callable[[Trial], bool]] = {
    "inputs unchanged": _inputs_unchanged,
    "repeated runs equal": _repeated,
    "losses not negative": _not_negative,
    "linear in the cotangent": _linear,
    "shift": _shift,
    "rows of the gradient sum to 0": _rows_sum,
    "permuted rows": _permuted_rows,
    "permuted classes": _permuted_classes,
    "batch = loop": _batch_is_loop,
    "micro-batch = whole": _micro_batches,
    "padding": _padding,
}


def _shares(trial: Trial, cases: list[Case]) -> list[float] | None:
    """What the loss of each part is multiplied by in that of the whole; None where that is no one number."""
    parameters = trial.case.parameters
    is_mean = parameters.get("reduction", "mean") in ("mean", "batchmean") and "num_items_in_batch" not in parameters
    if not is_mean or trial.specification.mean == "num_boxes":
        return [1.0] * len(cases)
    counts = [divisor(trial, case) for case in cases]
    known = [count for count in counts if count is not None]
    return [count / sum(known) for count in known] if len(known) == len(counts) else None


def _cases(function: str, compute_dtype: str, seed: int) -> Iterable[Case]:
    """The cases of a seed, with inputs of the type that is computed in; for heads that match a built-in one."""
    dtype = compute_dtype if compute_dtype in DTYPES else "float32"
    known = FUNCTIONS[function]
    if not isinstance(known.specification, MatchingHead):
        return seeded(known, Limits((dtype,), max_rows=4, max_classes=5, extreme=False, exact=True), seed)
    built_in = [case for case in cases_of(function) if case.inputs[known.required[0]].dtype == DTYPES[dtype]]
    return [built_in[seed % len(built_in)]]


def _bytes(values: np.ndarray) -> np.ndarray:
    """Those of each element."""
    return np.frombuffer(values.tobytes(), np.uint8).reshape(-1, values.itemsize)


def _between(first: int, last: int) -> Callable[[np.ndarray], np.ndarray]:
    """Takes rows."""
    return lambda rows: rows[first:last]


def _with_more(rows: np.ndarray, axis: int, change: Callable[[np.ndarray], np.ndarray] = np.copy) -> np.ndarray:
    """Rows, and the first ones again, changed."""
    return np.concatenate([rows, change(np.take(rows, range(_ADDED), axis, mode="wrap"))], axis)


def _order(count: int) -> np.ndarray:
    """Another order of so many things, in which the first and the last are elsewhere."""
    return np.arange(count)[::-1]
