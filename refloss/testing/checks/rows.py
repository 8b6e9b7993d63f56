"""What must hold whatever lies beside a row: batches, chunks, shards, order, padding."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING

import numpy as np

from refloss.testing.checks.trials import (
    Answer,
    Trial,
    ViolationError,
    compare,
    divisor,
    element,
    gradients,
    joined,
    scaled,
)
from refloss.testing.judging.driver import GRAD

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.cases.source import Case

_ADDED = 2  # rows of padding
# What neighbours keep, so that as many of them count.
_KEPT = ("labels", "classes", "weight", "sequences", "lengths")


def permuted_rows(trial: Trial) -> bool:
    """The loss stays, gradients go with their rows."""
    if not trial.rows:
        return False
    change = functools.partial(np.flip, axis=0)
    after = trial.measure(trial.with_rows(change))
    _compare_rows(trial, trial.changed(change), after, "before and after rows change places")
    return True


def neighbours(trial: Trial) -> bool:
    """A row gets the same whatever its neighbours hold, as long as as many of them count."""
    if not trial.rows or trial.row_count < 2:
        return False
    # What counts goes with its row where there is no mean over it.
    kept_roles = _KEPT if trial.is_apart else (*_KEPT, "mask")
    held = [name for name in trial.rows if trial.arguments[name].role not in kept_roles]
    # In a mean over weights, their own gradients are of the whole.
    weights = {f"{GRAD}{name}" for name in trial.specification.named("weight")}
    kept = _of_rows(trial, trial.answer).keys() - (set() if trial.is_apart else weights)
    for row in (0, trial.row_count - 1):
        others = {}
        for name in held:
            values = trial.case.inputs[name]
            others[name] = np.roll(values, 1, axis=0)
            others[name][row] = values[row]
        after = trial.measure(trial.with_inputs(others))
        before, after = (
            {name: each.changed(_between(row, row + 1)) for name, each in answer.items() if name in kept}
            for answer in (trial.answer, after)
        )
        compare(before, after, f"of row {row} with other neighbours", bits=trial.bits and trial.is_apart)
    return True


def batch_is_loop(trial: Trial) -> bool:
    """Each row alone, weighed by its share of the mean, gives the batch."""
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
    _compare_rows(trial, joined(answers, is_reduced=trial.is_reduced), trial.answer, "row by row and as a batch")
    return True


def chunks(trial: Trial) -> bool:
    """Chunks of unequal sizes with one normaliser, or as sums, or row by row, give the whole."""
    case = trial.case
    words = case.parameters.get("reduction"), case.parameters.get("aggregation")
    is_sum = "sum" in words or not trial.specification.is_reduced(case.parameters)
    takes_items = trial.items in trial.function.parameters and not is_sum
    if not trial.rows or not (takes_items or is_sum):
        return False
    options = {}
    if takes_items and not trial.labels and trial.specification.mean != "tokens":
        return False
    if takes_items:
        items = case.parameters.get(trial.items, divisor(trial, case))
        if items is None:
            return False
        options = {trial.items: items}
    answers = [trial.measure(trial.with_rows(chunk, **options)) for chunk in _unequal(trial.row_count)]
    whole = "of micro-batches and of the whole"
    _compare_rows(trial, joined(answers, is_reduced=trial.is_reduced), trial.answer, whole)
    return True


def shards(trial: Trial) -> bool:
    """Shards of sequences, whose labels were shifted before they were cut, give the whole."""
    case, items = trial.case, trial.case.parameters.get("num_items_in_batch")
    if 1 not in trial.specification.padded or not trial.labels:
        return False
    items = divisor(trial, case) if items is None else items
    labels = {name: case.inputs[name] for name in trial.labels}
    for name, values in list(labels.items()):
        argument = trial.arguments[name]
        if argument.shift:
            moved = np.full_like(values, trial.ignore_index(name))
            moved[:, : -argument.shift] = values[:, argument.shift :]
            labels[_already_shifted(trial, argument.of)] = moved
    inputs = {name: case.inputs[name] for name in trial.rows} | labels
    answers = []
    for shard in _unequal(case.inputs[trial.labels[0]].shape[1]):
        cut = {name: np.moveaxis(shard(np.moveaxis(value, 1, 0)), 0, 1) for name, value in inputs.items()}
        answers.append(trial.measure(trial.with_inputs(cut, num_items_in_batch=items)))
    _compare_rows(trial, joined(answers, is_reduced=True, axis=1), trial.answer, "of shards and of the whole")
    return True


def padding(trial: Trial) -> bool:
    """Rows that are ignored, also at the end of each sequence, change nothing and get a gradient of 0."""
    if trial.specification.mean == "tokens":
        return _padding_by_mask(trial)
    axes = trial.specification.padded if trial.labels else ()
    for axis in axes:
        case = trial.with_rows(functools.partial(_with_more, axis=axis))
        for name in trial.labels:
            np.moveaxis(case.inputs[name], axis, 0)[-_ADDED:] = trial.ignore_index(name)
        before = trial.changed(functools.partial(_with_more, axis=axis, change=np.zeros_like))
        compare(before, trial.measure(case), "before and after rows that are ignored are added")
    return bool(axes)


def ignored_rows(trial: Trial) -> bool:
    """What a row that is ignored holds concerns no other, and its own gradient is exactly 0."""
    if trial.specification.mean == "tokens":
        return _ignored_by_mask(trial)
    ignoring = trial.ignoring
    if ignoring is None:
        return False
    others = {}
    for name in dict.fromkeys(trial.targets[label].of for label in trial.labels):
        others[name] = ignoring.case.inputs[name].copy()
        others[name][0] = np.where(np.isfinite(others[name][0]), -2.0 * others[name][0], 1.0)
    after = ignoring.measure(ignoring.with_inputs(others))
    for name in others:
        if f"{GRAD}{name}" in after and np.any(of_row := after[f"{GRAD}{name}"].value[0]):
            index = tuple(int(i) for i in np.unravel_index(int(np.argmax(np.abs(of_row))), of_row.shape))
            raise ViolationError(
                f"{element(f'{GRAD}{name}', (0, *index))} is {of_row[index]:.9g} in a row that is ignored"
            )
    compare(ignoring.answer, after, "before and after a row that is ignored holds other numbers")
    return True


def _of_tokens(trial: Trial) -> tuple[dict[str, np.ndarray], str, np.ndarray]:
    """The arrays that have a number for each token, and the mask with its name."""
    (name,), first = trial.specification.named("mask"), next(iter(trial.case.inputs.values()))
    held = {key: value for key, value in trial.case.inputs.items() if value.shape == first.shape and key != name}
    return held, name, trial.case.inputs.get(name, np.ones(first.shape, bool))


def _padding_by_mask(trial: Trial) -> bool:
    """The same of tokens that do not count at the end of each sequence."""
    held, name, mask = _of_tokens(trial)
    more = functools.partial(_with_more, axis=1)
    nothing = functools.partial(_with_more, axis=1, change=np.zeros_like)
    given = trial.case.grad_output
    case = trial.with_inputs({key: more(value) for key, value in held.items()} | {name: nothing(mask)})
    case = case._replace(grad_output=more(given) if np.ndim(given) else given)
    what = "before and after tokens that do not count are added"
    compare(trial.changed(nothing), trial.measure(case), what)
    return True


def _ignored_by_mask(trial: Trial) -> bool:
    """The same of a token that does not count."""
    held, name, mask = _of_tokens(trial)
    masked = np.array(mask, copy=True)
    masked[0, 0] = 0
    ignoring = trial.of(trial.with_inputs({name: masked}))
    others = {key: np.array(value, copy=True) for key, value in held.items()}
    for key, value in others.items():
        value[0, 0] = 1.0 - 2.0 * held[key][0, 0]
    after = ignoring.measure(ignoring.with_inputs(others))
    for key, measured in gradients(after).items():
        if measured.value[0, 0]:
            raise ViolationError(f"{element(key, (0, 0))} is {measured.value[0, 0]:.9g} of a token that does not count")
    compare(ignoring.answer, after, "before and after a token that does not count holds another number")
    return True


def renamed_ignore_index(trial: Trial) -> bool:
    """Another label for rows that do not count, below 0 or beyond 32 bits, changes nothing."""
    ignoring = trial.ignoring
    if ignoring is None or "ignore_index" not in trial.specification.parameters:
        return False
    for label in (-1, 2**32 + 1):  # of the latter, 32 bits are a class
        renamed = {}
        for name in trial.labels:
            labels = ignoring.case.inputs[name].astype(np.int64)
            renamed[name] = np.where(labels == ignoring.ignore_index(name), label, labels)
        case = ignoring.with_inputs(renamed, ignore_index=label)
        if trial.is_held(case):
            compare(ignoring.answer, trial.measure(case), f"before and after ignore_index is {label}")
    return True


def _compare_rows(trial: Trial, first: Answer, second: Answer, what: str) -> None:
    """By bits, if these are asked for, of all that is not added up over rows."""
    if trial.bits and trial.is_apart:
        compare(_of_rows(trial, first), _of_rows(trial, second), what, bits=True)
    compare(first, second, what)


def _of_rows(trial: Trial, answer: Answer) -> Answer:
    """What belongs to rows."""
    rows = {f"{GRAD}{name}" for name in trial.rows} | (set() if trial.is_reduced else {"loss"})
    return {name: each for name, each in answer.items() if name in rows}


def _already_shifted(trial: Trial, of: str) -> str:
    """The argument for labels of the same rows that are not shifted."""
    return next(
        name
        for name, each in trial.specification.arguments.items()
        if each.role == "labels" and each.of == of and not each.shift
    )


def _shares(trial: Trial, cases: list[Case]) -> list[float] | None:
    """What the loss of each part is multiplied by in that of the whole; None where that is no one number."""
    if trial.is_apart:
        return [1.0] * len(cases)
    counts = [divisor(trial, case) for case in cases]
    known = [count for count in counts if count is not None]
    return [count / sum(known) for count in known] if len(known) == len(counts) else None


def _unequal(count: int) -> list[Callable[[np.ndarray], np.ndarray]]:
    """Takes chunks of rows: one row, about half of the others, the rest."""
    ends = sorted({0, min(1, count), (count + 2) // 2, count})
    return [_between(first, last) for first, last in itertools.pairwise(ends)]


def _between(first: int, last: int) -> Callable[[np.ndarray], np.ndarray]:
    """Takes rows."""
    return lambda rows: rows[first:last]


def _with_more(rows: np.ndarray, axis: int, change: Callable[[np.ndarray], np.ndarray] = np.copy) -> np.ndarray:
    """Rows, and the first ones again, changed."""
    return np.concatenate([rows, change(np.take(rows, range(_ADDED), axis, mode="wrap"))], axis)
