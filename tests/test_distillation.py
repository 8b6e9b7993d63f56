"""Rows that are pulled to a teacher's: what is left where both all but agree."""

import mpmath
import numpy as np
import pytest

from refloss.kernels.distillation import run
from refloss.kernels.distillation.loop import RowWeights
from refloss.losses.parts.distillation import LOOP, TEMPERATURE
from tests.test_elementwise import DTYPES
from tests.truth import correctly_rounded, pairs, ulp_errors

GENERATOR = np.random.default_rng(3)
ROWS, CLASSES = 12, 9
TEACHER = GENERATOR.standard_normal((ROWS, CLASSES)) * 3
COEFFICIENT = 1 / 3
# Less than this is nothing: mpmath's own errors.
NOTHING = mpmath.mpf(2) ** -250


def rows(kind):
    """A student's logits and its teacher's, float64."""
    student, teacher = TEACHER.copy(), TEACHER.copy()
    if kind == "shifted":
        teacher = np.round(8 * teacher) / 8
        student = teacher + 2.5
    elif kind == "nearly shifted":
        student += 1 / 3
    elif kind == "exchanged":
        student[:, :2] = teacher[:, 1::-1]
    elif kind == "one class":
        student, teacher = student[:, :1], teacher[:, 1:2]
    elif kind == "masked":
        student[:, 0] = teacher[:, 0] = -np.inf
        student += 1.0
    elif kind == "sure":
        teacher[:, 0] += 60.0
        student = teacher + 0.01 * TEACHER[::-1]
    elif kind != "same":
        student += float(kind) * TEACHER[::-1]
    return student, teacher


def softened(row):
    terms = [mpmath.exp(mpmath.mpf(float(value)) / int(TEMPERATURE)) for value in row]
    total = mpmath.fsum(terms)
    return [term / total for term in terms]


def distilled(student, teacher, dtype):
    """The divergence of each row, and the gradient."""
    gradient = np.zeros(student.shape, dtype)
    ones = np.ones(len(student))
    weights = RowWeights(ones, COEFFICIENT * ones, np.full(len(student), -1), np.empty((0, student.shape[1])))
    taught = run.teacher_of(LOOP, teacher, "cpu")
    return run.distillation(LOOP, student, gradient, taught, weights, "cpu"), gradient


@pytest.mark.parametrize(
    "kind",
    ["same", "shifted", "nearly shifted", "exchanged", "one class", "masked", "sure", "0.3", "1e-2", "1e-4", "1e-6"],
)
@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_gradients_are_correctly_rounded(dtype, kind):
    student, teacher = (each.astype(DTYPES.get(dtype, np.float64)) for each in rows(kind))
    values, gradient = distilled(student, teacher, student.dtype)
    with mpmath.workprec(400):
        for i in range(ROWS):
            of_student, of_teacher = softened(student[i]), softened(teacher[i])
            terms = zip(of_student, of_teacher, strict=True)
            divergence = mpmath.fsum(t * mpmath.log(t / s) for s, t in terms if t != 0)
            slopes = [mpmath.mpf(COEFFICIENT) * (s - t) for s, t in zip(of_student, of_teacher, strict=True)]
            slopes = [slope if abs(slope) > NOTHING else mpmath.mpf(0) for slope in slopes]
            if divergence < NOTHING:
                assert values[i] == 0.0
            else:
                assert ulp_errors(values[i], pairs(divergence), "float64") <= 8
            for got, slope, share in zip(gradient[i].astype(float), slopes, of_teacher, strict=True):
                assert slope != 0 or got == 0.0
                if dtype == "float64":
                    assert abs(mpmath.mpf(got) - slope) <= 8 * mpmath.ldexp(share + abs(slope), -53)
                else:
                    error = ulp_errors(got, pairs(slope), dtype)
                    assert correctly_rounded(error), (i, got, slope)


def test_a_row_that_is_written_twice_keeps_what_is_added():
    """The second class of an exchanged pair's neighbours has nothing of its own."""
    student, teacher = rows("exchanged")
    gradient, ones = np.zeros_like(student), np.ones(ROWS)
    added = np.arange(CLASSES, dtype=np.float64)[None]
    weights = RowWeights(ones, ones, np.zeros(ROWS, np.int64), added)
    run.distillation(LOOP, student, gradient, run.teacher_of(LOOP, teacher, "cpu"), weights, "cpu")
    np.testing.assert_array_equal(gradient[:, 2:], np.broadcast_to(added[:, 2:], (ROWS, CLASSES - 2)))
