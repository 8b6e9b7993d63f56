"""Divergences of two softmaxes, and the rows on which they, or a gradient, are hard to round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gmpy2
import numpy as np

import refloss
from tests.mpfr.definitions import ZERO, sign
from tests.mpfr.elements import COTANGENTS
from tests.mpfr.rounding import DTYPES, Comparison, Real, exact, real, reals

# Products of two probabilities of e^−150 are left of 1.
PRECISION = 1200
# Less than this share of what it is left of is an error of MPFR.
NOTHING = gmpy2.mpfr(2) ** -(PRECISION - 100)
WIDE = 3000


class Pair(NamedTuple):
    """A call: logits [N, V] of both, a cotangent for each row, and options."""

    student: np.ndarray
    teacher: np.ndarray
    cotangents: np.ndarray
    options: dict[str, Any]


class Truth(NamedTuple):
    """Of a row: its loss, and the slopes of both, without cotangents."""

    loss: Real
    student: list[Real]
    teacher: list[Real]


def _softmax(logits: list[Real]) -> list[Real]:
    largest = max(logits)
    terms = [gmpy2.exp(value - largest) for value in logits]
    total = gmpy2.fsum(terms)
    return [term / total for term in terms]


def less(a: Real, b: Real) -> Real:
    """a − b, 0 where only errors are left."""
    difference = a - b
    return ZERO if abs(difference) <= NOTHING * max(abs(a), abs(b)) else difference


def _kl(p: list[Real], q: list[Real]) -> tuple[Real, list[Real]]:
    """Σ p·log(p/q), and p·(log(p/q) − that)."""
    logs = [gmpy2.log(a / b) if a > 0 else ZERO for a, b in zip(p, q, strict=True)]
    logs = [ZERO if abs(value) < NOTHING else value for value in logs]
    total = gmpy2.fsum([a * value for a, value in zip(p, logs, strict=True)])
    total = ZERO if abs(total) < NOTHING else total
    if gmpy2.is_infinite(total):
        return total, [
            -total if a > 0 and gmpy2.is_finite(value) else gmpy2.nan() for a, value in zip(p, logs, strict=True)
        ]
    return total, [a * less(value, total) if a > 0 else ZERO for a, value in zip(p, logs, strict=True)]


def _variation(p: list[Real], signs: list[Real]) -> list[Real]:
    """p·(g − Σ p·g)/2 from the masses of either sign, of which 1 − Σ p·g is made without a difference."""
    mass = {side: gmpy2.fsum([a for a, g in zip(p, signs, strict=True) if g == side]) for side in (-1, 0, 1)}
    level = {1: 2 * mass[-1] + mass[0], -1: -2 * mass[1] - mass[0], 0: less(mass[-1], mass[1])}
    return [a * level[int(g)] / 2 for a, g in zip(p, signs, strict=True)]


def of_row(x: list[Real], y: list[Real], options: dict[str, Any]) -> Truth:
    """Of logits, which need not be float64 numbers."""
    temperature = real(options.get("temperature", 1.0))
    s, t = _softmax([value / temperature for value in x]), _softmax([value / temperature for value in y])
    gaps, kind = [less(a, b) for a, b in zip(s, t, strict=True)], options.get("divergence", "forward_kl")
    if kind == "forward_kl":
        loss, of_teacher = _kl(t, s)
        of_student = gaps
    elif kind == "reverse_kl":
        loss, of_student = _kl(s, t)
        of_teacher = [-gap for gap in gaps]
    elif kind == "jsd":
        beta = real(options.get("beta", 0.5))
        m = [beta * b + (1 - beta) * a for a, b in zip(s, t, strict=True)]
        (first, of_student), (second, of_teacher) = _kl(s, m), _kl(t, m)
        loss = (1 - beta) * first + beta * second
        of_student, of_teacher = [(1 - beta) * value for value in of_student], [beta * value for value in of_teacher]
    else:
        signs = [sign(gap) for gap in gaps]
        loss = gmpy2.fsum([abs(gap) for gap in gaps]) / 2
        of_student, of_teacher = _variation(s, signs), _variation(t, [-g for g in signs])
    factor = temperature**2 if options.get("temperature_squared") else gmpy2.mpfr(1)
    steep = factor / temperature
    return Truth(loss * factor, [steep * value for value in of_student], [steep * value for value in of_teacher])


def compare(given: Pair) -> Iterator[Comparison]:
    """refloss's gradients in every format, and the losses."""
    with gmpy2.context(precision=PRECISION):
        rows = [of_row(reals(x), reals(y), given.options) for x, y in zip(given.student, given.teacher, strict=True)]
        upstream = reals(given.cotangents)
        slopes = {
            name: [a * value for a, row in zip(upstream, rows, strict=True) for value in getattr(row, name)]
            for name in ("student", "teacher")
        }

        def describe(index: int) -> str:
            row, place = divmod(index, given.student.shape[1])
            shown = given.student[row, :8].tolist(), given.teacher[row, :8].tolist()
            return f"{given.student.dtype} row {row}, {place}: {shown}, {given.cotangents[row]}, {given.options}"

        for name, dtype in DTYPES.items():
            for side, slope in slopes.items():
                x, y = (array.astype(np.float64) for array in (given.student, given.teacher))
                # Values are kept; the gradient of the teacher has its own format, the student's may be asked for.
                teacher = y.astype(dtype) if np.array_equal(y.astype(dtype).astype(np.float64), y) else None
                if side == "teacher" and teacher is None:
                    continue
                result = refloss.distillation(
                    x,
                    y if teacher is None else teacher,
                    **given.options,
                    reduction="none",
                    grad_output=given.cotangents,
                    grad_dtype=dtype,
                )
                got = result.grads[f"{side}_logits"]
                yield Comparison(f"{side}_logits", name, got, exact(slope, got.shape), describe)
        got = np.asarray(result.loss)
        losses = exact([row.loss for row in rows], got.shape)
        yield Comparison("loss", "float64", got, losses, lambda row: describe(row * given.student.shape[1]))


Draw = Callable[[np.random.Generator, int], Iterator[Pair]]
DIVERGENCES: tuple[dict[str, Any], ...] = (
    {"divergence": "forward_kl"},
    {"divergence": "reverse_kl", "temperature": 0.7},
    {"divergence": "jsd", "beta": 0.3},
    {"divergence": "tvd"},
    {"divergence": "forward_kl", "temperature": 3.0, "temperature_squared": True},
    {"divergence": "reverse_kl"},
    {"divergence": "jsd", "temperature": 2.0},
)


def _pairs(generator: np.random.Generator, student: np.ndarray, teacher: np.ndarray) -> Iterator[Pair]:
    """Rows dealt out among the divergences; the teacher in bfloat16's numbers, so that it has every format's."""
    share = len(student) // len(DIVERGENCES) + 1
    for k, options in enumerate(DIVERGENCES):
        x, y = (array[k * share : (k + 1) * share] for array in (student, teacher))
        if len(x):
            yield Pair(x, y, generator.choice([1.0, *COTANGENTS], len(x)), options)


def _teacher(generator: np.random.Generator, rows: int, classes: int, scale: float = 3.0) -> np.ndarray:
    return np.round(generator.standard_normal((rows, classes)) * scale * 8.0) / 8.0


def far(generator: np.random.Generator, size: int) -> Iterator[Pair]:
    """Rows that have nothing to do with each other."""
    for classes in (2, 5, 40):
        rows = size // 3 // classes + 1
        student = (generator.standard_normal((rows, classes)) * 3.0).astype(np.float32)
        yield from _pairs(generator, student, _teacher(generator, rows, classes))


def near(generator: np.random.Generator, size: int) -> Iterator[Pair]:
    """Students next to their teachers, by every order of magnitude, and with a constant added."""
    teacher = _teacher(generator, size // 20 + 1, 20)
    apart = 2.0 ** -generator.integers(1, 50, (len(teacher), 1)).astype(np.float64)
    student = teacher + apart * generator.standard_normal(teacher.shape) + generator.choice([0.0, 2.5], apart.shape)
    student[::9] = teacher[::9] + 0.5
    order = generator.permutation(len(teacher))
    yield from _pairs(generator, student[order], teacher[order])


def next_to(generator: np.random.Generator, size: int) -> Iterator[Pair]:
    """The same in float32, where most classes are equal."""
    teacher = _teacher(generator, size // 20 + 1, 20).astype(np.float32)
    student = np.where(generator.random(teacher.shape) < 0.2, np.nextafter(teacher, np.float32(9)), teacher)
    student[::5, :2] = teacher[::5, 1::-1]
    order = generator.permutation(len(teacher))
    yield from _pairs(generator, student[order], teacher[order])


def sure(generator: np.random.Generator, size: int) -> Iterator[Pair]:
    """Sure of the same class, of two of them, of another one; the rest is below every format's least number."""
    teacher = _teacher(generator, size // 12 + 1, 12)
    student = teacher + np.round(generator.standard_normal(teacher.shape) * 16.0) / 16.0
    kind = generator.integers(4, size=(len(teacher), 1))
    first, second = np.arange(12) == 0, np.arange(12) == 1
    height = generator.choice([8.0, 30.0, 80.0, 150.0], kind.shape)
    teacher += height * (first | (second & (kind == 1)))
    student += height * np.where(kind == 2, second, first | (second & (kind == 1)))
    student[:, 1], teacher[:, 1] = (np.where(kind[:, 0] == 1, array[:, 0], array[:, 1]) for array in (student, teacher))
    yield from _pairs(generator, student.astype(np.float32), teacher)


def masked(generator: np.random.Generator, size: int) -> Iterator[Pair]:
    """Classes of −inf in one, in the other, and in both; divergences that are infinite."""
    teacher = _teacher(generator, size // 15 + 1, 15)
    student = (teacher + generator.standard_normal(teacher.shape)).astype(np.float32)
    for array in (student, teacher):
        array[generator.random(array.shape) < generator.choice([0.0, 0.1, 0.5], (len(array), 1))] = -np.inf
    both = generator.random(teacher.shape) < 0.1
    student[both], teacher[both] = -np.inf, -np.inf
    student[:, 7], teacher[:, 7] = 0.5, 1.0
    yield from _pairs(generator, student, teacher)


def uniform(generator: np.random.Generator, size: int) -> Iterator[Pair]:
    """Rows of equal logits over some of the classes: slopes that are 0, or short numbers and ties."""
    rows = size // 8 + 1
    student, teacher = np.zeros((rows, 8), np.float32), np.zeros((rows, 8))
    for array in (student, teacher):
        array[np.arange(8) >= generator.choice([1, 2, 4, 8], (rows, 1))] = -np.inf
    yield from _pairs(generator, student, teacher)


def wide(generator: np.random.Generator, size: int) -> Iterator[Pair]:
    teacher = _teacher(generator, max(2, size // WIDE), WIDE)
    student = (teacher + generator.standard_normal(teacher.shape) * 0.5).astype(np.float32)
    for k, options in enumerate(DIVERGENCES[: len(teacher)]):
        yield Pair(student[k : k + 1], teacher[k : k + 1], np.array([1 / 3]), options)


KINDS: dict[str, Draw] = {
    "far": far,
    "near": near,
    "next to": next_to,
    "sure": sure,
    "masked": masked,
    "uniform": uniform,
    "wide": wide,
}
