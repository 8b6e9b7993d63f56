"""What can be read off a tensor: nothing in it, a constant factor, elements out of place, numbers that overflowed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refloss.testing.diagnosis import FACTOR, Cause, factor_words
from refloss.testing.mistakes import alterations
from refloss.testing.mistakes.factors import named_factors
from refloss.testing.mistakes.guess import COMMON, POSSIBLE, SELDOM, USUAL
from refloss.testing.mistakes.others import UNCLAMPED
from refloss.testing.mistakes.tensors import SAMPLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.testing.mistakes.tensors import Tensor
    from refloss.testing.verdict import Question

COMMON_FACTORS = {-1.0, 2.0, 0.5}
FLOAT16_MAX = 65504.0
LARGEST_EXPONENT, LARGEST_FLOAT16_EXPONENT = 88.72, 11.09  # of e^x in float32 and in float16
OVER_ALL_ROWS = "a mean over all rows instead of the rows that count"
ZERO = "zero everywhere"
NOTHING_COUNTS = "all labels ignored gives 0 instead of NaN"


def read(asked: Question, tensor: Tensor) -> Iterator[Cause]:
    """All that may be said of a tensor that fails, by itself."""
    if not tensor.got.any():
        undefined = bool(np.isnan(tensor.expected).all())
        yield Cause(NOTHING_COUNTS if undefined else ZERO, 0.7)
        # 0 over another count.
        yield from (Cause(mistake, SELDOM) for mistake in ("a sum for a mean", OVER_ALL_ROWS) if undefined)
        return
    yield from factors(asked, tensor)
    yield from _shifted(tensor)
    yield from _transposed(tensor)
    yield from _truncated(asked, tensor)
    yield from _no_objects(asked, tensor)
    yield from _overflow(asked, tensor)


class Factors(NamedTuple):
    """All by which the right tensor may be multiplied for this one to pass; how many elements say something of them."""

    low: float
    high: float
    known: int

    @property
    def is_vague(self) -> bool:
        """Whether a single number, or little more, is near a factor of some name soon."""
        return self.known < 3 and self.high - self.low > 1e-3 * abs(self.low + self.high) / 2


def factors(asked: Question, tensor: Tensor) -> Iterator[Cause]:
    """Off by a constant factor: those that have a name, or any other that enough elements agree on."""
    if tensor.got.size > SAMPLE and factors_that_fit(tensor.sample()) is None:
        return
    found = factors_that_fit(tensor)
    if found is None:
        return
    low, high, known = found
    middle = (low + high) / 2
    if low <= 1.0 <= high or high - low > 0.05 * abs(middle):
        return
    named = False
    for factor in named_factors(asked.case, tensor.name):
        if low <= factor.value <= high and (not found.is_vague or factor.value in COMMON_FACTORS or factor.is_certain):
            named = True
            words = f"{FACTOR} of {factor.value:.6g}, {factor.detail}"
            prior = factor.prior * (0.5 if found.is_vague and not factor.is_certain else 1.0)
            yield Cause(factor.mistake, prior, words)
    plain = any(low <= value <= high for value in COMMON_FACTORS)
    if (plain or known > 3) and abs(middle - 1.0) > 5e-3 and (not named or known > 3):
        words = factor_words(low, high)
        yield Cause(words, SELDOM, words, factors=(low, high))


def factors_that_fit(tensor: Tensor) -> Factors | None:
    """The interval of factors; None if there is none."""
    got, expected = tensor.got, tensor.expected
    # What is infinite because its type ends there is so for every larger factor.
    beyond = np.isinf(got) & np.isfinite(expected) & (expected != 0)
    if beyond.any() and not beyond.all():
        rest = factors_that_fit(tensor.part(~beyond))
        least = tensor.largest / np.abs(expected[beyond]).min()
        if rest is None or max(abs(rest.low), abs(rest.high)) < least * (1 - tensor.rounding):
            return None
        sign = np.sign(got[beyond]) == np.sign(expected[beyond] * rest.low)
        return rest if sign.all() else None
    finite = np.isfinite(expected)
    numbers = finite & (expected != 0)
    turned = np.isinf(expected) & (got == -expected)
    if not numbers.any() or not np.isfinite(got[finite]).all() or not (tensor.is_right() | turned)[~finite].all():
        return None
    clear = np.argmax(np.where(numbers, np.abs(expected) / tensor.allowed, -1.0))
    size = abs(float(got.flat[clear] / expected.flat[clear])) * (1 + tensor.rounding)
    allowed = 2 * size * tensor.allowed + tensor.smallest
    if size == 0.0 or np.any(np.abs(got) > allowed, where=finite & (expected == 0)):
        return None
    ends = np.stack([(got - allowed) / expected, (got + allowed) / expected])[:, numbers]
    low, high = float(ends.min(axis=0).max()), float(ends.max(axis=0).min())
    known = int(np.count_nonzero(np.abs(expected[numbers]) > 8 * tensor.allowed[numbers]))
    return Factors(low, high, known) if low <= high and not (turned.any() and high >= 0.0) else None


def _shifted(tensor: Tensor) -> Iterator[Cause]:
    """Moved along an axis; what came in at its end is not looked at."""
    for axis, length in enumerate(tensor.got.shape):
        if length < 2 or tensor.got.size - tensor.got.size // length < 2:
            continue
        early, late = (
            tuple(slice(*ends) if i == axis else slice(None) for i in range(tensor.got.ndim))
            for ends in ((None, -1), (1, None))
        )
        for here, there, step in ((early, late, -1), (late, early, 1)):
            if tensor.part(here).fits(tensor.expected[there], 2 * tensor.allowed[there]):
                yield Cause(f"shifted by one position ({step:+d}) along axis {axis}", USUAL)


def _transposed(tensor: Tensor) -> Iterator[Cause]:
    """Written with two axes exchanged, or read so; the shape is the right one."""
    shape = tensor.got.shape
    long = [axis for axis, length in enumerate(shape) if length > 1]
    for i, first in enumerate(long):
        for second in long[i + 1 :]:
            exchanged = list(shape)
            exchanged[first], exchanged[second] = shape[second], shape[first]
            written = tensor.expected.swapaxes(first, second), tensor.allowed.swapaxes(first, second)
            read = tensor.expected.reshape(exchanged), tensor.allowed.reshape(exchanged)
            if tensor.fits(written[0].reshape(shape), 2 * written[1].reshape(shape)) or tensor.fits(
                read[0].swapaxes(first, second), 2 * read[1].swapaxes(first, second)
            ):
                yield Cause(f"transposed: axes {first} and {second} are exchanged", USUAL)


def _truncated(asked: Question, tensor: Tensor) -> Iterator[Cause]:
    """A 16-bit gradient that is nearer to 0 than what is right, everywhere, by less than an ulp."""
    if tensor.name not in asked.exact:
        return
    right, got = tensor.expected, tensor.got
    numbers = np.isfinite(right) & (right != 0)
    if np.count_nonzero(numbers) < 8 or not np.isfinite(got[numbers]).all():
        return
    ulp = np.abs(right[numbers]) * tensor.rounding + tensor.smallest
    short = np.abs(right[numbers]) - np.sign(right[numbers]) * got[numbers]
    slack = 0.01 * ulp + 2 * tensor.bound[numbers]
    if (short >= -slack).all() and (short <= ulp + slack).all():
        yield Cause("rounded towards zero instead of to nearest", COMMON)


def _no_objects(asked: Question, tensor: Tensor) -> Iterator[Cause]:
    """A batch without objects, whose losses are divided by 0."""
    objects = [value for key, value in asked.case.inputs.items() if key.startswith("labels.") and key.endswith("boxes")]
    none = objects and not sum(len(boxes) for boxes in objects)
    wrong = ~tensor.is_right()
    if none and np.isfinite(tensor.expected).all() and not np.isfinite(tensor.got[wrong]).any():
        yield Cause(UNCLAMPED, COMMON)


def _overflow(asked: Question, tensor: Tensor) -> Iterator[Cause]:
    """All that is wrong is infinite, undefined or the largest float16."""
    wrong = ~tensor.is_right()
    got, expected = tensor.got[wrong], tensor.expected[wrong]
    clipped = np.abs(got) == FLOAT16_MAX
    if not np.all(clipped | (np.isfinite(expected) & ~np.isfinite(got))):
        return
    count = f"{got.size} of {wrong.size} elements"
    if clipped.any():
        yield Cause("float16 overflow", POSSIBLE, f"float16 overflow: {count} are clipped at 65504 or not finite")
        return
    inputs = [value for value in asked.case.inputs.values() if value.dtype.kind not in "biu"]
    narrow = any(value.dtype == np.float16 for value in inputs)
    names = alterations.logits(asked.case) + alterations.logits(asked.case, "sigmoid")
    logits = [np.abs(asked.case.inputs[name].astype(np.float64)) for name in names]
    largest = max((float(np.max(value, initial=0.0, where=np.isfinite(value))) for value in logits), default=0.0)
    softmax = bool(alterations.logits(asked.case))
    if largest > LARGEST_EXPONENT:
        how = " without subtracting the maximum" if softmax else ""
        words = f"overflow: {count} are not finite, as if e^{largest:.3g} were taken{how}"
        yield Cause("overflow: an exponential that is infinite", SELDOM, words)
    elif narrow:
        yield Cause("float16 overflow", SELDOM, f"float16 overflow: {count} are not finite")
