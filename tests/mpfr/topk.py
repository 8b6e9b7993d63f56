"""Students against a teacher's most probable classes, and the rows on which a gradient or a loss is hard to round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gmpy2
import numpy as np

import refloss
from tests.mpfr.definitions import ONE, ZERO
from tests.mpfr.elements import COTANGENTS
from tests.mpfr.rounding import DTYPES, PRECISION, Comparison, Real, exact, real, reals
from tests.mpfr.rows import WIDE

TAILS = ("drop", "bucket", "renormalise")
_INFINITY = gmpy2.inf()
# What is smaller beside the terms that it is left of is 0.
_NOTHING = gmpy2.exp2(-PRECISION - 100)


class Taught(NamedTuple):
    """A call that is not reduced: logits [N, V], log-probabilities and classes [N, K], cotangents [N], options."""

    logits: np.ndarray
    log_probs: np.ndarray
    classes: np.ndarray
    cotangents: np.ndarray
    options: dict[str, Any]


class Row(NamedTuple):
    """Its loss, and the gradient of all classes."""

    loss: Real
    gradient: list[Real]


def _softmax(y: list[Real]) -> list[Real]:
    maximum = max(y)
    terms = [gmpy2.exp(value - maximum) for value in y]
    total = gmpy2.fsum(terms)
    return [term / total for term in terms]


def _log_of_share(y: list[Real], some: list[int]) -> Real:
    """The logarithm of what some classes have, also next to 1."""
    maximum, of_some = max(y), set(some)
    rest = [j for j in range(len(y)) if j not in of_some]
    inside, outside = (gmpy2.fsum([gmpy2.exp(y[j] - maximum) for j in part]) for part in (some, rest))
    return gmpy2.log(inside / (inside + outside)) if inside < outside else -gmpy2.log1p(outside / inside)


def _sum(terms: list[Real]) -> Real:
    """0 where nothing is left."""
    total = gmpy2.fsum(terms)
    return ZERO if abs(total) < _NOTHING * max((abs(term) for term in terms), default=ONE) else total


def _divergence(p: Real, log_p: Real, log_q: Real) -> Real:
    return p * (log_p - log_q) if log_q > -_INFINITY else _INFINITY


def of_row(y: list[Real], taught: dict[int, Real], tail: str) -> Row:
    """Of y = x/τ, whose gradient it is, and the log-probabilities of the classes that are named."""
    named, others = list(taught), [j for j in range(len(y)) if j not in taught]
    p = {j: gmpy2.exp(value) for j, value in taught.items()}
    if tail == "renormalise":
        values = [y[j] for j in named]
        u, v = (
            dict(zip(named, _softmax(values), strict=True)),
            dict(zip(named, _softmax(list(taught.values())), strict=True)),
        )
        lse_v = gmpy2.log(gmpy2.fsum(list(p.values())))
        lse_u = max(values) + gmpy2.log(gmpy2.fsum([gmpy2.exp(value - max(values)) for value in values]))
        # Of rounding errors alone there is no divergence.
        ratios = [_sum([taught[j], -lse_v, lse_u, -y[j]]) for j in named]
        loss = _sum([v[j] * ratio for j, ratio in zip(named, ratios, strict=True)])
        return Row(loss, [_sum([u[j], -v[j]]) if j in taught else ZERO for j in range(len(y))])
    q = _softmax(y)
    maximum = max(y)
    lse = maximum + gmpy2.log(gmpy2.fsum([gmpy2.exp(value - maximum) for value in y]))
    terms = [_divergence(p[j], taught[j], y[j] - lse) for j in named]
    inside = gmpy2.fsum(list(p.values()))
    outside = ONE - inside
    student = gmpy2.fsum([q[j] for j in others])
    if tail == "drop" or outside <= 0 or student == 0:
        return Row(gmpy2.fsum(terms), [_sum([inside * q[j], -p.get(j, ZERO)]) for j in range(len(y))])
    terms.append(outside * (gmpy2.log(outside) - _log_of_share(y, others)))
    slopes = [q[j] - p[j] if j in taught else q[j] * (student - outside) / student for j in range(len(y))]
    return Row(gmpy2.fsum(terms), slopes)


def truth(given: Taught) -> list[Row]:
    """The rows' losses and gradients, factors and cotangents included."""
    temperature = real(given.options.get("temperature", 1.0))
    factor = temperature * temperature if given.options.get("temperature_squared") else ONE
    found = []
    for x, log_probs, classes, cotangent in zip(*given[:4], strict=True):
        taught = {int(j): value for j, value in zip(classes, reals(log_probs), strict=True) if value > -_INFINITY}
        if not taught:
            found.append(Row(ZERO, [ZERO] * len(x)))
            continue
        row = of_row([value / temperature for value in reals(x)], taught, given.options["tail"])
        gradient = [real(cotangent) * factor / temperature * value for value in row.gradient]
        found.append(Row(factor * row.loss, gradient))
    return found


def compare(given: Taught) -> Iterator[Comparison]:
    """refloss's gradients in every format, and the losses of rows."""

    def describe(index: int) -> str:
        row = index // given.logits.shape[1] if given.logits.ndim > 1 else index
        return f"row {row}: {[part[row].tolist() for part in given[:4]]}, {given.options}"

    # What cancels is 2^-150 of what it is left of.
    with gmpy2.context(precision=2 * PRECISION):
        rows = truth(given)
        for name, dtype in DTYPES.items():
            result = refloss.topk_distillation(
                given.logits,
                given.log_probs,
                given.classes,
                **given.options,
                reduction="none",
                grad_output=given.cotangents,
                grad_dtype=dtype,
            )
            got = result.grads["student_logits"]
            true = exact([value for row in rows for value in row.gradient], got.shape)
            yield Comparison("student_logits", name, got, true, describe)
        got = np.asarray(result.loss)
        losses = exact([row.loss for row in rows], got.shape)
        yield Comparison("loss", "float64", got, losses, lambda row: describe(row * given.logits.shape[1]))


Draw = Callable[[np.random.Generator, int], Iterator[Taught]]


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Of rows, in float64."""
    below = x - x.max(axis=1, keepdims=True)
    return np.asarray(below - np.log(np.exp(below).sum(axis=1, keepdims=True)))


def most_probable(log_probs: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities and classes [N, K] of the first ones."""
    classes = np.argsort(-log_probs, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(log_probs, classes, axis=1), classes


def _calls(
    generator: np.random.Generator,
    x: np.ndarray,
    teacher: np.ndarray,
    count: int,
    dtype: Any = np.float32,
    **options: Any,
) -> Iterator[Taught]:
    """A teacher's logits as log-probabilities of a format, with every tail."""
    log_probs, classes = most_probable(log_softmax(teacher.astype(np.float64)), count)
    for tail in TAILS:
        cotangents = generator.choice([1.0, *COTANGENTS], len(x))
        yield Taught(x, log_probs.astype(dtype), classes.copy(), cotangents, {"tail": tail, **options})


def ordinary(generator: np.random.Generator, size: int) -> Iterator[Taught]:
    """Teachers and students that differ, and every option."""
    for count, classes in ((1, 2), (3, 7), (5, 40), (8, 8)):
        rows = size // 12 // classes + 1
        x, teacher = ((generator.standard_normal((rows, classes)) * 3).astype(np.float32) for _ in range(2))
        options = {} if count == 3 else {"temperature": 0.7, "temperature_squared": count > 3}
        yield from _calls(generator, x, teacher, count, **options)


def alike(generator: np.random.Generator, size: int) -> Iterator[Taught]:
    """Students next to their teachers, from 2^-2 to what float32 and its own roundings leave."""
    for apart, count, classes in ((2.0**-2, 3, 9), (2.0**-12, 5, 30), (2.0**-20, 7, 7), (0.0, 4, 20), (0.0, 12, 12)):
        rows = size // 15 // classes + 1
        teacher = (generator.standard_normal((rows, classes)) * 2).astype(np.float32)
        x = (teacher + apart * generator.standard_normal(teacher.shape)).astype(np.float32)
        yield from _calls(generator, x, teacher, count)


def sure(generator: np.random.Generator, size: int) -> Iterator[Taught]:
    """One class has nearly all of the probability: of the teacher, of the student, of both; named or not."""
    for count, classes in ((1, 6), (3, 6), (6, 6)):
        for of_teacher, of_student in ((20.0, 20.0), (60.0, 60.0), (0.0, 90.0), (90.0, 0.0), (5.0, 30.0)):
            rows = size // 45 // classes + 1
            teacher, x = (generator.standard_normal((rows, classes)) for _ in range(2))
            teacher[:, 2] += of_teacher
            x[np.arange(rows), np.where(np.arange(rows) % 3, 2, 4)] += of_student
            yield from _calls(
                generator,
                x.astype(np.float32),
                teacher,
                count,
                dtype=(np.float32, np.float64)[int(generator.integers(2))],
            )


def equal(generator: np.random.Generator, size: int) -> Iterator[Taught]:
    """Logits and log-probabilities of which many are equal, so that differences are 0 or next to nothing."""
    for count, classes in ((2, 5), (4, 9), (6, 6)):
        rows = size // 9 // classes + 1
        teacher = np.round(generator.standard_normal((rows, classes)))
        x = teacher + np.round(generator.standard_normal((rows, 1)) * 4)
        x[::3] = np.round(generator.standard_normal(x[::3].shape))
        x[1::3, -1] -= 60.0
        yield from _calls(generator, x.astype(np.float32), teacher, count)


def masked(generator: np.random.Generator, size: int) -> Iterator[Taught]:
    """Logits of −inf, named or not, places that name nothing, and certain teachers."""
    for count, classes in ((1, 5), (4, 9), (5, 5)):
        rows = size // 9 // classes + 1
        teacher, x = ((generator.standard_normal((rows, classes)) * 2).astype(np.float32) for _ in range(2))
        x[generator.random(x.shape) < 0.15] = -np.inf
        x[:, 1] = 0.25
        for given in _calls(generator, x, teacher, count):
            given.log_probs[::4, 0] = 0.0
            given.log_probs[generator.random(given.log_probs.shape) < 0.2] = -np.inf
            given.classes[np.isneginf(given.log_probs)] = -1
            # Of renormalise nothing is left where no named class has a probability.
            named = np.take_along_axis(x, np.maximum(given.classes, 0), axis=1)
            some = (np.isfinite(named) & (given.classes >= 0)).any(axis=1) | (given.classes < 0).all(axis=1)
            given.classes[~some] = -1
            given.log_probs[~some] = -np.inf
            yield given


def far(generator: np.random.Generator, size: int) -> Iterator[Taught]:
    """Classes that float64 has no probability for: beside the named ones, or they themselves."""
    rows = size // 6 // 6 + 1
    for offset in (-760.0, 760.0):
        x = generator.standard_normal((rows, 6)).astype(np.float32)
        x[:, :2] += np.float32(offset)
        teacher = generator.standard_normal((rows, 6))
        teacher[:, :2] -= 4.0
        yield from _calls(generator, x, teacher, 4)


def wide(generator: np.random.Generator, size: int) -> Iterator[Taught]:
    """Vocabularies."""
    rows = max(1, size // 3 // WIDE)
    teacher = (generator.standard_normal((rows, WIDE)) * 3).astype(np.float32)
    x = (teacher + 0.1 * generator.standard_normal(teacher.shape)).astype(np.float32)
    yield from _calls(generator, x, teacher, 64)


def own(generator: np.random.Generator, size: int) -> Iterator[Taught]:
    """A student's own log-probabilities, rounded to float64."""
    rows = size // 6 // 9 + 1
    x = (generator.standard_normal((rows, 9)) * 2).astype(np.float32)
    for count in (4, 9):
        yield from _calls(generator, x, x, count, dtype=np.float64)


KINDS: dict[str, Draw] = {
    "ordinary": ordinary,
    "alike": alike,
    "sure": sure,
    "equal": equal,
    "masked": masked,
    "far": far,
    "wide": wide,
}
"""Kinds whose losses are within 2 ulp; of a student's own log-probabilities too little is left for that."""
