"""Checks of a function that need no right answers: what must hold between its results, or of one of them.

Two results of an honest function may each be off by its bound in the error model, so that they differ by at most the
sum of both. Inputs are chosen such that what is done to them is exact. A bound is scaled to what the function itself
returns: one that is wrong by a factor is wrong, but not in any of these properties.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.cases.draws import Limits
from refloss.cases.source import DTYPES, changed_cotangent
from refloss.error_model import COMPUTE_DTYPES
from refloss.golden.corpus import cases_of
from refloss.golden.drawn import seeded
from refloss.registry import FUNCTIONS
from refloss.specification import MatchingHead
from refloss.testing.checks import classes, elements, experts, pairs, rows
from refloss.testing.checks.trials import (
    Trial,
    ViolationError,
    added,
    compare,
    element,
    finite,
    gradients,
)
from refloss.testing.judging.driver import GRAD, Driver
from refloss.testing.judging.selection import type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from refloss.cases.source import Case

_ROWS, _CLASSES = 4, 5
# How many classes, or elements of a row, further cases have, one a seed: none but one, and more than a block.
_OTHER_CLASSES = {"small": (1025, 2, 1), "blocks": (1025, 4097)}
_LATE = 16.0  # a logit that is larger than most
SIZES = tuple(_OTHER_CLASSES)


def check_properties(
    fn: Callable[..., Any],
    /,
    function: str,
    *,
    to_native: Callable[[np.ndarray], Any] | None = None,
    from_native: Callable[[Any], Any] | None = None,
    seeds: Iterable[int] = range(3),
    compute_dtype: str = "float32",
    sizes: str = "small",
    bits: bool = False,
) -> list[str]:
    """Raise AssertionError unless a function has the properties that its kind of loss has.

    They are those of PROPERTIES, as far as they apply: a loss without classes cannot have them permuted.

    Args:
        fn: called as fn(inputs, parameters, grad_output); returns (loss, grads), as for refloss.testing.check. It may
            raise NotImplementedError for parameters or inputs that it does not have.
        function: the name of refloss's function.
        to_native: makes the framework's array of a NumPy array; NumPy arrays if not given.
        from_native: makes a NumPy array of a framework's; need not be given for one that has DLPack or __array__.
        seeds: of inputs.
        compute_dtype: what fn computes in, which is also the type of inputs (float32 for "tf32").
        sizes: "small" has few classes, and one case of 1025; in "blocks" all cases have 1025 or 4097.
        bits: whether a row has to get the same bits wherever it stands, whatever stands beside it and however a batch
            or a sequence is cut; else the same within rounding. Losses that are added up, and means over rows that
            count, whose normaliser changes, need not.

    Returns:
        The properties that were found to hold.

    Raises:
        AssertionError: that names each property which does not hold, with the numbers that show it.
        ValueError: an unknown function or type; nothing that fn implements.
    """
    held, broken = _examined(
        fn, function, to_native, from_native, seeds=seeds, compute_dtype=compute_dtype, sizes=sizes, bits=bits
    )
    if broken:
        lines = [f"  {name}: {message}" for name, message in broken.items()]
        raise AssertionError(
            "\n".join([f"{function} lacks {len(broken)} of the properties that it should have", *lines])
        )
    if not held:
        raise ValueError(f"nothing to check: fn implements none of the cases of {function}")
    return held


def broken_properties(
    fn: Callable[..., Any],
    /,
    function: str,
    *,
    to_native: Callable[[np.ndarray], Any] | None = None,
    from_native: Callable[[Any], Any] | None = None,
    seeds: Iterable[int] = range(3),
    compute_dtype: str = "float32",
    sizes: str = "small",
    bits: bool = False,
) -> dict[str, str]:
    """The properties that check_properties would say a function lacks, each with the numbers that show it."""
    return _examined(
        fn, function, to_native, from_native, seeds=seeds, compute_dtype=compute_dtype, sizes=sizes, bits=bits
    )[1]


def _examined(
    fn: Callable[..., Any],
    function: str,
    to_native: Callable[[np.ndarray], Any] | None,
    from_native: Callable[[Any], Any] | None,
    *,
    seeds: Iterable[int],
    compute_dtype: str,
    sizes: str,
    bits: bool,
) -> tuple[list[str], dict[str, str]]:
    """The properties that were found to hold, and those that do not with what shows it, in their order."""
    compute_dtype = type_name(compute_dtype) or "None"
    for what, given, known in (
        ("function", function, FUNCTIONS),
        ("compute_dtype", compute_dtype, COMPUTE_DTYPES),
        ("sizes", sizes, SIZES),
    ):
        if given not in known:
            raise ValueError(f"unknown {what} {given!r}; expected one of {', '.join(known)}")
    driver = Driver(fn, to_native, from_native)
    held: set[str] = set()
    broken: dict[str, str] = {}
    for seed in seeds:
        for case in _cases(function, compute_dtype, seed, sizes):
            _check_case(Trial(driver, compute_dtype, case, bits=bits), held, broken)
    in_order = [name for name in PROPERTIES if name in held and name not in broken]
    return in_order, {name: broken[name] for name in PROPERTIES if name in broken}


def _check_case(trial: Trial, held: set[str], broken: dict[str, str]) -> None:
    for name, check in PROPERTIES.items():
        if name in broken and name != _WELL_FORMED:
            continue
        try:
            if check(trial):
                held.add(name)
        except NotImplementedError:
            if name == _WELL_FORMED:
                return
        except ViolationError as violation:
            broken.setdefault(name, f"{violation} ({trial.case.id})")
            if name == _WELL_FORMED:
                return  # of what is no number, nothing else can be said


def _well_formed(trial: Trial) -> bool:
    finite(trial.answer)
    return True


def _inputs_unchanged(trial: Trial) -> bool:
    native = trial.driver.native(trial.case)
    before = trial.driver.held(native)
    trial.call(native)
    after = trial.driver.held(native)
    pairs = [(name, value, after.inputs[name]) for name, value in before.inputs.items()]
    for name, value, other in (*pairs, ("upstream gradient", _flat(before.grad_output), _flat(after.grad_output))):
        if np.asarray(value).tobytes() != np.asarray(other).tobytes():
            raise ViolationError(f"{name} is not what it was before the call")
    return True


def _flat(cotangent: Any) -> np.ndarray:
    """A cotangent, or those of a mapping, as one array."""
    given = cotangent.values() if isinstance(cotangent, Mapping) else [cotangent]
    return np.concatenate([np.ravel(each) for each in given])


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
    first = trial.case.grad_output

    def other(values: Any) -> Any:
        return -4.0 * (values[::-1] if np.ndim(values) else values)

    second, both = (
        trial.measure(trial.case._replace(grad_output=changed_cotangent(first, change)))
        for change in (other, lambda values: values + other(values))
    )
    compare({"loss": trial.answer["loss"]}, {"loss": second["loss"]}, "for two upstream gradients")
    summed = added([gradients(trial.answer), gradients(second)])
    compare(summed, gradients(both), "the sum of two upstream gradients' and their sum's")
    return _each_row_has_its_own(trial, first) if np.ndim(first) else True


def _each_row_has_its_own(trial: Trial, cotangents: np.ndarray) -> bool:
    """A cotangent of 0 leaves no gradient in its row, and all others as they are."""

    def cut(values: np.ndarray) -> np.ndarray:
        rows = values.copy()
        rows[::2] = 0.0
        return rows

    names = [f"{GRAD}{name}" for name in trial.rows if f"{GRAD}{name}" in trial.answer]
    after = trial.measure(trial.case._replace(grad_output=cut(cotangents)))
    before = {name: trial.answer[name].changed(cut) for name in names}
    compare(before, after, "where every other row has an upstream gradient of 0")
    return True


_WELL_FORMED = "well formed"
PROPERTIES: dict[str, Callable[[Trial], bool]] = {
    _WELL_FORMED: _well_formed,
    "inputs unchanged": _inputs_unchanged,
    "repeated runs equal": _repeated,
    "losses not negative": _not_negative,
    "linear in the upstream gradient": _linear,
    "shift": classes.shift,
    "rows of the gradient sum to 0": classes.rows_sum,
    "permuted classes": classes.permuted_classes,
    "masked classes": classes.masked_classes,
    "classes cut elsewhere": classes.cut_elsewhere,
    "equal steps": classes.equal_steps,
    "linear in the target": classes.linear_in_the_target,
    "linear in the input": elements.linear_in_the_input,
    "equal factors": elements.logarithms,
    "sure and wrong": elements.sure_and_wrong,
    "symmetric": elements.symmetric,
    "moved": elements.moved,
    "scaled": elements.scaled_values,
    "permuted elements": elements.permuted_elements,
    "permuted pairs": pairs.permuted_pairs,
    "transposed": pairs.transposed,
    "permuted tokens": experts.permuted_tokens,
    "permuted experts": experts.permuted_experts,
    "masked tokens": experts.masked_tokens,
    "permuted rows": rows.permuted_rows,
    "neighbours": rows.neighbours,
    "batch = loop": rows.batch_is_loop,
    "micro-batch = whole": rows.chunks,
    "shards = whole": rows.shards,
    "padding": rows.padding,
    "ignored rows": rows.ignored_rows,
    "renamed ignore_index": rows.renamed_ignore_index,
}


def _cases(function: str, compute_dtype: str, seed: int, sizes: str) -> Iterator[Case]:
    """The cases of a seed, with inputs of the type that is computed in; for heads that match a built-in one."""
    dtype = compute_dtype if compute_dtype in DTYPES else "float32"
    known, others = FUNCTIONS[function], _OTHER_CLASSES[sizes]
    if isinstance(known.specification, MatchingHead):
        built_in = [case for case in cases_of(function) if case.inputs[known.required[0]].dtype == DTYPES[dtype]]
        yield built_in[seed % len(built_in)]
        return
    other = others[seed % len(others)]
    limits = Limits((dtype,), max_rows=_ROWS, max_classes=_CLASSES, extreme=False, exact=True)
    of_other_size = map(_with_late_maximum, seeded(known, limits._replace(max_classes=other), seed))
    if sizes == "blocks":
        yield from of_other_size
        return
    yield from seeded(known, limits, seed)
    plainest = next(of_other_size)
    yield plainest._replace(id=f"{plainest.id}-of-{other}")


def _with_late_maximum(case: Case) -> Case:
    """The case with a first row whose last class, beyond all blocks but one, is the most probable."""
    inputs = dict(case.inputs)
    for name, argument in FUNCTIONS[case.function].specification.arguments.items():
        axis = argument.class_axis
        if argument.activation == "softmax" and axis is not None and name in inputs and inputs[name].ndim > 1:
            inputs[name] = inputs[name].copy()
            np.moveaxis(inputs[name], axis, -1)[0, ..., -1] = _LATE
    return case._replace(inputs=inputs)


def _bytes(values: np.ndarray) -> np.ndarray:
    """Those of each element."""
    return np.frombuffer(values.tobytes(), np.uint8).reshape(-1, values.itemsize)
