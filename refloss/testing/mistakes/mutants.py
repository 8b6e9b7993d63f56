"""Wrong answers that every check has to reject: what proves that a bound has power.

A mutant takes a question and gives, for each tensor of its answer, a wrong one, or says why none can show there.
`mutated` gives those of all mutants: to the judge's tests, and to comparisons with other implementations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.roundoff import roundoff
from refloss.testing.mistakes import alterations
from refloss.testing.spacing import spacing

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.cases.source import Case
    from refloss.testing.mistakes.alterations import Altered
    from refloss.testing.verdict import Question

    Mutated = dict[str, np.ndarray | str]
    Mutant = Callable[[Question], Mutated]

# Why a mutant cannot show in a tensor. Each has to be true where it is given: the tests hold them to it.
ALL_ZERO = "the right values are all zero"
NOTHING_FINITE = "no right value is finite and not zero"
WITHIN_ROUNDING = "two honest answers may differ by as much in its type, or in the one that is computed in"
ROUNDED_AWAY = "the type that is computed in need not leave anything of it"
ONE_ROW = "there is only one row"
ROWS_ALIKE = "all rows are alike"
ONE_AXIS = "only one axis is longer than 1"
SYMMETRIC = "transposing changes nothing"
NOT_A_GRADIENT = "it does not depend on the upstream gradient"
UPSTREAM_IS_ONE = "the upstream gradient is 1"
NO_IGNORED_ROWS = "there are no ignored rows"
NOT_DIVIDED = "it is not divided by a count"
EVERYTHING_COUNTS = "everything counts alike"
NOT_SMOOTHED = "there is no label smoothing"


def _each(mutate: Callable[[np.ndarray, np.ndarray], np.ndarray | str]) -> Mutant:
    """A mutant that looks at the right values of a tensor, and at how far off they may be."""

    def mutant(asked: Question) -> Mutated:
        return {
            name: ROUNDED_AWAY if _is_rounded_away(asked, name) else mutate(right, np.asarray(asked.bounds[name]))
            for name, right in _answered(asked).items()
        }

    return mutant


def _zero(right: np.ndarray, _: np.ndarray) -> np.ndarray | str:
    return np.zeros_like(right) if np.any(right != 0) else ALL_ZERO


def _times(factor: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray | str]:
    def mutate(right: np.ndarray, _: np.ndarray) -> np.ndarray | str:
        return _as(right.astype(np.float64) * factor, right) if _has_numbers(right) else NOTHING_FINITE

    return mutate


def _one_per_cent_too_large(right: np.ndarray, _: np.ndarray) -> np.ndarray | str:
    if not _has_numbers(right):
        return NOTHING_FINITE
    wrong = _as(right.astype(np.float64) * 1.01, right)
    upwards, downwards = (np.nextafter(right, np.asarray(end, right.dtype)) for end in (np.inf, -np.inf))
    # The right value and an honest one may be neighbours.
    near = (wrong == right) | (wrong == upwards) | (wrong == downwards) | ~np.isfinite(right)
    return WITHIN_ROUNDING if near.all() else wrong


def _one_element_wrong(right: np.ndarray, bound: np.ndarray) -> np.ndarray | str:
    """An element in the middle, off by a tenth of the largest; where a confident one may be 0, another."""
    if not _has_numbers(right):
        return NOTHING_FINITE
    wrong = right.astype(np.float64)
    largest = np.abs(wrong[np.isfinite(wrong)]).max()
    known = np.flatnonzero(np.isfinite(wrong) & (bound < largest / 25))
    if not known.size:
        return WITHIN_ROUNDING
    wrong.flat[known[len(known) // 2]] += largest / 10
    return _as(wrong, right)


def _rows_shifted_by_one(right: np.ndarray, _: np.ndarray) -> np.ndarray | str:
    axis = max(right.ndim - 2, 0)
    if right.ndim == 0 or right.shape[axis] < 2:
        return ONE_ROW
    wrong = np.roll(right, 1, axis)
    return ROWS_ALIKE if _same(wrong, right) else wrong


def _transposed_axes(right: np.ndarray, _: np.ndarray) -> np.ndarray | str:
    long = [axis for axis, length in enumerate(right.shape) if length > 1]
    if len(long) < 2:
        return ONE_AXIS
    wrong = np.ascontiguousarray(right.swapaxes(long[-2], long[-1])).reshape(right.shape)
    return SYMMETRIC if _same(wrong, right) else wrong


def _upstream_ignored(asked: Question) -> Mutated:
    answers = _altered(asked, lambda case, _: alterations.without_upstream(case), UPSTREAM_IS_ONE, NOTHING_FINITE)
    return {name: wrong if name.startswith("grad.") else NOT_A_GRADIENT for name, wrong in answers.items()}


def _ignored_rows_leaking(asked: Question) -> Mutated:
    return _altered(asked, alterations.leaking, NO_IGNORED_ROWS, NO_IGNORED_ROWS)


def _mean_over_the_wrong_count(asked: Question) -> Mutated:
    divisor = alterations.divisor(asked.case)
    no_mistake = NOT_DIVIDED if divisor is None else EVERYTHING_COUNTS
    answers = _altered(asked, alterations.over_everything, no_mistake, NOT_DIVIDED)
    return {
        name: NOTHING_FINITE if isinstance(wrong, str) and not _has_numbers(asked.expected[name]) else wrong
        for name, wrong in answers.items()
    }


def _smoothing_over_the_other_classes(asked: Question) -> Mutated:
    answers = _altered(asked, lambda case, _: alterations.smoothed_over_others(case), NOT_SMOOTHED, NOTHING_FINITE)
    # No target is part of a z-loss.
    return {name: NOT_SMOOTHED if name == "component.z_loss" else wrong for name, wrong in answers.items()}


_FIFTH = "a fifth too large"
MUTANTS: dict[str, Mutant] = {
    "zero": _each(_zero),
    "negated": _each(_times(-1.0)),
    "doubled": _each(_times(2.0)),
    _FIFTH: _each(_times(1.2)),
    "1 % too large": _each(_one_per_cent_too_large),
    "one element wrong": _each(_one_element_wrong),
    "rows shifted by one": _each(_rows_shifted_by_one),
    "transposed axes": _each(_transposed_axes),
    "upstream gradient ignored": _upstream_ignored,
    "ignored rows leaking": _ignored_rows_leaking,
    "mean over the wrong count": _mean_over_the_wrong_count,
    "label smoothing ε/(K − 1)": _smoothing_over_the_other_classes,
}
# Those that may be small. Computed in 16 bits, what they change may be no more than what honest answers differ by;
# that all others always show, and a fifth of a gradient, is what keeps those bounds tight.
_MAY_BE_SMALL = (
    "1 % too large",
    _FIFTH,
    "ignored rows leaking",
    "mean over the wrong count",
    "label smoothing ε/(K − 1)",
)


def mutated(asked: Question) -> dict[str, Mutated]:
    """Every mutant's tensors by its name: wrong values, or the reason why none can show."""
    answers = {mutant: mutate(asked) for mutant, mutate in MUTANTS.items()}
    for mutant in _MAY_BE_SMALL if roundoff(asked.compute_dtype).between > 2.0**-12 else ():
        for name, wrong in answers[mutant].items():
            shows = isinstance(wrong, str) or (mutant == _FIFTH and name.startswith("grad."))
            if not shows and _is_small(asked, name, np.asarray(wrong, np.float64)):
                answers[mutant][name] = WITHIN_ROUNDING
    return answers


@np.errstate(invalid="ignore")
def _is_small(asked: Question, name: str, wrong: np.ndarray) -> bool:
    """Whether an honest answer that is off to one side may look like a wrong one that is off to the other."""
    right, bound = asked.expected[name].astype(np.float64), np.asarray(asked.bounds[name])
    size = np.abs(np.where(np.isfinite(right), right, 0.0)) + bound
    allowed = 2 * (bound + spacing(size, asked.expected[name].dtype))
    return bool((_alike(wrong, right) | (np.abs(wrong - right) <= allowed)).all())


def _altered(asked: Question, alter: Callable[[Case, str], Altered | None], no_mistake: str, no_effect: str) -> Mutated:
    """The right answer to another case; which one depends on the tensor where two means share a loss."""
    tensors: Mutated = {}
    answers: dict[str, dict[str, np.ndarray] | None] = {}
    for name, right in _answered(asked).items():
        mean = name if name == "grad.end_logits" else ""
        if mean not in answers:
            other = alter(asked.case, mean)
            answers[mean] = None if other is None else other.answer()[1]
        answer = answers[mean]
        if answer is None:
            tensors[name] = no_mistake
            continue
        wrong = _as(answer[name], right)
        lost = _is_rounded_away(asked, name) and bool((np.abs(wrong) < asked.bounds[name]).all())
        tensors[name] = no_effect if _same(wrong, right) else ROUNDED_AWAY if lost else wrong
    return tensors


def _answered(asked: Question) -> dict[str, np.ndarray]:
    """The tensors that a candidate has to bring."""
    return {name: right for name, right in asked.expected.items() if not name.startswith("intermediate.")}


def _is_rounded_away(asked: Question, name: str) -> bool:
    """Whether an honest loss may be 0: 1e-12 is lost beside 30 in float32. Of gradients something is left."""
    right = asked.expected[name]
    return not name.startswith("grad.") and _has_numbers(right) and bool((np.abs(right) < asked.bounds[name]).all())


def _has_numbers(values: np.ndarray) -> bool:
    return bool((np.isfinite(values) & (values != 0)).any())


def _alike(wrong: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.asarray((wrong == right) | (np.isnan(wrong) & np.isnan(right)))


def _same(wrong: np.ndarray, right: np.ndarray) -> bool:
    return bool(_alike(wrong, right).all())


@np.errstate(over="ignore")
def _as(values: Any, right: np.ndarray) -> np.ndarray:
    return np.asarray(values).astype(right.dtype)
