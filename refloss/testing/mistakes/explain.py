"""Which of the usual mistakes explains a tensor that fails.

A mistake explains it if the tensor would pass were the mistake right: every element within its own allowance. Those
that can be read off the tensor come first, then those that need the right answer to another case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from refloss.error_model import bounds
from refloss.testing.mistakes import alterations
from refloss.testing.mistakes.factors import WRONG_SIGN, named_factors
from refloss.testing.mistakes.softmax import softmax_mistakes
from refloss.testing.spacing import elements

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.cases.source import Case
    from refloss.result import LossResult
    from refloss.testing.mistakes.alterations import Altered
    from refloss.testing.verdict import Question

LARGEST = 10**6  # input elements of a case for which other cases are computed
SAMPLE = 2**12
SLACK = 1.25  # what is compared was rounded once more than the judge's
COMMON_FACTORS = {-1.0, 2.0, 0.5}
FLOAT16_MAX = 65504.0
LARGEST_EXPONENT, LARGEST_FLOAT16_EXPONENT = 88.72, 11.09  # of e^x in float32 and in float16


class _Tensor(NamedTuple):
    """A tensor that fails."""

    name: str
    got: np.ndarray
    expected: np.ndarray
    allowed: np.ndarray
    rounding: float  # of a number to the tensor's type, relative
    smallest: float  # and absolute, where that is small

    def is_right(self) -> np.ndarray:
        """The elements that pass."""
        return _near(self.got, self.expected, self.allowed)

    def sample(self) -> _Tensor:
        """A few thousand elements: most mistakes that do not fit do not fit there."""
        return self._replace(got=_few(self.got), expected=_few(self.expected), allowed=_few(self.allowed))

    def fits(self, values: np.ndarray, bound: np.ndarray) -> bool:
        """Whether it would pass were these the right values, with a bound of their own, and whether they are others."""
        if self.got.size > SAMPLE and not self.sample().may_be(_few(values), _few(bound)):
            return False
        return self.may_be(values, bound) and not self._replace(got=self.expected).may_be(values, bound)

    def may_be(self, values: np.ndarray, bound: np.ndarray) -> bool:
        """Whether it would pass were these the right values, with a bound of their own."""
        size = np.abs(np.where(np.isfinite(values), values, 0.0))
        allowed = SLACK * bound + self.rounding * size + self.smallest
        return bool(_near(self.got, values, allowed).all())


class _Other(NamedTuple):
    """The right answer to another case, and how far off it may be."""

    tensors: dict[str, np.ndarray]
    bounds: dict[str, np.ndarray]


class _Others(NamedTuple):
    """Right answers to other cases, and the type that bounds are for."""

    compute_dtype: str
    answers: dict[str, _Other | None]


# Each tensor of a question asks for the same other answers; they go when its result goes.
_OTHERS: WeakKeyDictionary[LossResult, _Others] = WeakKeyDictionary()


@np.errstate(all="ignore")
def explain(asked: Question, name: str, got: np.ndarray) -> str | None:
    """The mistake under which a tensor would pass, if it is one of the usual ones."""
    if not got.size:
        return None
    given = elements(got, asked.expected[name], np.broadcast_to(np.asarray(asked.bounds[name]), got.shape))
    numbers = np.isfinite(given.right) & (given.right != 0)
    relative = given.ulp[numbers] / np.abs(given.right[numbers])
    tensor = _Tensor(
        name,
        given.got,
        given.right,
        given.allowed,
        # An ulp is between half and all of the type's epsilon; without a number, it is that of the coarsest type.
        2 * float(relative.min(initial=2.0**-8)),
        float(given.ulp.min()),
    )
    explanation = _is_zero(tensor) or _factor(asked, tensor, named=True) or _shifted(tensor) or _transposed(tensor)
    if explanation is None and sum(value.size for value in asked.case.inputs.values()) < LARGEST:
        explanation = _only_ignored_rows(asked, tensor) or _of_other_cases(asked, tensor) or _of_softmax(asked, tensor)
    return explanation or _factor(asked, tensor, named=False) or _overflow(asked, tensor)


def _few(values: np.ndarray) -> np.ndarray:
    return np.asarray(values.flat[:: max(values.size // SAMPLE, 1)])


def _near(got: np.ndarray, values: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    same = (got == values) | (np.isnan(got) & np.isnan(values))
    return np.asarray(same | (np.abs(got - values) <= allowed))


def _is_zero(tensor: _Tensor) -> str | None:
    return None if tensor.got.any() else "zero everywhere"


def _factor(asked: Question, tensor: _Tensor, *, named: bool) -> str | None:
    """Off by a constant factor: one that has a name, or any other that enough elements agree on."""
    if tensor.got.size > SAMPLE and _factors_that_fit(tensor.sample()) is None:
        return None
    interval = _factors_that_fit(tensor)
    if interval is None:
        return None
    low, high, known = interval
    middle = (low + high) / 2
    if low <= 1.0 <= high or high - low > 0.05 * abs(middle):
        return None
    # A single number is near a factor of some name soon.
    vague = known < 3 and high - low > 1e-3 * abs(middle)
    if not named:
        return f"off by a constant factor of {middle:.4g}" if known > 3 and abs(middle - 1.0) > 5e-3 else None
    names: dict[str, float] = {}
    for value, words in named_factors(asked.case, tensor.name):
        if low <= value <= high and (not vague or value in COMMON_FACTORS):
            names.setdefault(words, value)
    if not names:
        return None
    told = [words for words in names if words]
    # A factor without a source says nothing beside one with.
    told = [words for words in told if words != WRONG_SIGN] or told
    words = " or ".join(told[:3])
    return f"off by a constant factor of {next(iter(names.values())):.6g}{', ' if words else ''}{words}"


def _factors_that_fit(tensor: _Tensor) -> tuple[float, float, int] | None:
    """The interval of all factors under which the tensor would pass, and how many elements say something of them."""
    got, expected = tensor.got, tensor.expected
    finite = np.isfinite(expected)
    numbers = finite & (expected != 0)
    if not numbers.any() or not np.isfinite(got[finite]).all() or not tensor.is_right()[~finite].all():
        return None
    clear = np.argmax(np.where(numbers, np.abs(expected) / tensor.allowed, -1.0))
    size = abs(float(got.flat[clear] / expected.flat[clear]))
    allowed = 2 * size * tensor.allowed + tensor.smallest
    if size == 0.0 or np.any(np.abs(got) > allowed, where=finite & (expected == 0)):
        return None
    ends = np.stack([(got - allowed) / expected, (got + allowed) / expected])[:, numbers]
    low, high = float(ends.min(axis=0).max()), float(ends.max(axis=0).min())
    known = int(np.count_nonzero(np.abs(expected[numbers]) > 8 * tensor.allowed[numbers]))
    return (low, high, known) if low <= high else None


def _shifted(tensor: _Tensor) -> str | None:
    """Moved along an axis; what came in at its end is not looked at."""
    for axis, length in enumerate(tensor.got.shape):
        if length < 2 or tensor.got.size - tensor.got.size // length < 2:
            continue
        early, late = (
            tuple(slice(*ends) if i == axis else slice(None) for i in range(tensor.got.ndim))
            for ends in ((None, -1), (1, None))
        )
        for here, there, step in ((early, late, -1), (late, early, 1)):
            if _part(tensor, here).fits(tensor.expected[there], 2 * tensor.allowed[there]):
                return f"shifted by one position ({step:+d}) along axis {axis}"
    return None


def _part(tensor: _Tensor, index: tuple[slice, ...]) -> _Tensor:
    return tensor._replace(got=tensor.got[index], expected=tensor.expected[index], allowed=tensor.allowed[index])


def _transposed(tensor: _Tensor) -> str | None:
    """Written with two axes exchanged, or read so; the shape is the right one."""
    shape = tensor.got.shape
    long = [axis for axis, length in enumerate(shape) if length > 1]
    for i, first in enumerate(long):
        for second in long[i + 1 :]:
            exchanged = list(shape)
            exchanged[first], exchanged[second] = shape[second], shape[first]
            words = f"transposed: axes {first} and {second} are exchanged"
            written = tensor.expected.swapaxes(first, second), tensor.allowed.swapaxes(first, second)
            if tensor.fits(written[0].reshape(shape), 2 * written[1].reshape(shape)):
                return words
            read = tensor.expected.reshape(exchanged), tensor.allowed.reshape(exchanged)
            if tensor.fits(read[0].swapaxes(first, second), 2 * read[1].swapaxes(first, second)):
                return words
    return None


def _of_other_cases(asked: Question, tensor: _Tensor) -> str | None:
    """A mistake that is known by the right answer to another case."""
    for words, other in _other_cases(asked.case, _side(tensor.name)):
        answer = _other(asked, words, other)
        if answer is None or tensor.name not in answer.tensors or tensor.name not in answer.bounds:
            continue
        values = answer.tensors[tensor.name].astype(np.float64)
        if values.shape == tensor.got.shape and tensor.fits(values, answer.bounds[tensor.name]):
            return words
    return None


def _other_cases(case: Case, side: str) -> Iterator[tuple[str, Altered]]:
    guesses = {
        "upstream gradient ignored": alterations.without_upstream(case),
        **alterations.of_this_function(case),
        f"ignored rows are included{_of(side)}": alterations.leaking(case, side),
        f"ignored rows are included, in the count as well{_of(side)}": alterations.leaking(case, side, counted=True),
        f"{_wrong_count(case, side)}{_of(side)}": alterations.over_everything(case, side),
        "label smoothing gives the other classes ε/(K − 1) instead of ε/K": alterations.smoothed_over_others(case),
        **alterations.arguments_ignored(case),
        "double softmax, or sigmoid: probabilities are taken as logits": alterations.activated_twice(case),
    }
    yield from ((words, other) for words, other in guesses.items() if other is not None)


def _wrong_count(case: Case, side: str) -> str:
    divisor = alterations.divisor(case, side)
    if divisor is not None:
        return f"a mean over {divisor.all_what} ({divisor.all:g}) instead of {divisor.what} ({divisor.right:g})"
    right = "the number of objects" if alterations.specification_of(case).mean == "objects" else "num_boxes"
    return f"divided by the number of queries or rows instead of {right}"


def _side(name: str) -> str:
    """Question answering has two means; of every other function it does not matter which tensor is looked at."""
    return name if name == "grad.end_logits" else ""


def _of(side: str) -> str:
    return " of end positions" if side else ""


def _only_ignored_rows(asked: Question, tensor: _Tensor) -> str | None:
    """Whether all that is wrong is wrong where ignored rows are, whatever the class that they are taken to have."""
    other = alterations.leaking(asked.case, _side(tensor.name))
    answer = None if other is None else _other(asked, f"ignored rows are included{_of(_side(tensor.name))}", other)
    if answer is None or tensor.name not in answer.tensors or tensor.got.ndim == 0:
        return None
    ignored = (tensor.expected == 0) & (answer.tensors[tensor.name] != 0)
    if not ignored.any() or not tensor.got[ignored].any():
        return None
    rest = tensor._replace(
        got=tensor.got[~ignored], expected=tensor.expected[~ignored], allowed=tensor.allowed[~ignored]
    )
    if rest.is_right().all():
        return "ignored rows are included: their gradient is not 0"
    count, interval = alterations.divisor(asked.case, _side(tensor.name)), _factors_that_fit(rest)
    if count is not None and interval is not None and interval[0] <= count.right / count.all <= interval[1]:
        return "ignored rows are included, in the count as well"
    return None


def _other(asked: Question, key: str, other: Altered) -> _Other | None:
    """The answer to another case, None where it has none."""
    if asked.result not in _OTHERS:
        _OTHERS[asked.result] = _Others(asked.compute_dtype, {})
    compute_dtype, known = _OTHERS[asked.result]
    if key not in known:
        try:
            result, tensors = other.answer()
            limits = bounds(other.case, result, compute_dtype)
            scaled = {
                name: np.asarray(value) / (other.over if name == "loss" else 1.0) for name, value in limits.items()
            }
            known[key] = _Other(tensors, scaled)
        except (ArithmeticError, LookupError, TypeError, ValueError):
            known[key] = None
    return known[key]


def _of_softmax(asked: Question, tensor: _Tensor) -> str | None:
    """Probabilities that are taken along another axis, or twice."""
    try:
        guesses = list(softmax_mistakes(asked.case))
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return None
    # Their terms are those of the right ones, elsewhere: as large, up to the logarithms' errors.
    bound = 4 * np.asarray(asked.bounds[tensor.name]).max(initial=0.0)
    return next((words for words, name, values in guesses if name == tensor.name and tensor.fits(values, bound)), None)


def _largest(values: np.ndarray) -> float:
    return float(np.max(values, initial=0, where=np.isfinite(values)))


def _overflow(asked: Question, tensor: _Tensor) -> str | None:
    """All that is wrong is infinite, undefined or the largest float16."""
    wrong = ~tensor.is_right()
    got, expected = tensor.got[wrong], tensor.expected[wrong]
    clipped = np.abs(got) == FLOAT16_MAX
    if not np.all(clipped | (np.isfinite(expected) & ~np.isfinite(got))):
        return None
    count = f"{got.size} of {wrong.size} elements"
    if clipped.any():
        return f"float16 overflow: {count} are clipped at 65504 or not finite"
    inputs = [value for value in asked.case.inputs.values() if value.dtype.kind not in "biu"]
    largest = max((_largest(value) for value in inputs), default=0.0)
    if largest > LARGEST_EXPONENT:
        return f"overflow: {count} are not finite, as if e^{largest:.3g} were taken without subtracting the maximum"
    if largest > LARGEST_FLOAT16_EXPONENT or any(value.dtype == np.float16 for value in inputs):
        return f"float16 overflow: {count} are not finite"
    return None
