"""Divergences of a student's softmax from its teacher's: truth, limits, ties, classes without probability, bits."""

import functools
import math
from typing import Any

import gmpy2
import mpmath
import numpy as np
import pytest

import refloss
from refloss import parallel
from refloss.kernels.divergences import run
from tests.mpfr import distillation as truth
from tests.mpfr.rounding import reals
from tests.test_elementwise import DTYPES
from tests.test_mpfr_truth import in_mpmath

INFINITY, NAN = math.inf, math.nan
KINDS = ("forward_kl", "reverse_kl", "jsd", "tvd")
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 2.0},
    {"temperature": 0.7, "temperature_squared": True},
    {"beta": 0.1, "temperature": 3.0},
)
NAMES = ("student_logits", "teacher_logits")
FORMATS = {name: DTYPES.get(name, np.float64) for name in ("float32", "bfloat16", "float16", "float64")}


def value(x, y, *, divergence, beta=0.5, temperature=1.0, temperature_squared=False):
    """The definition, in mpmath."""
    s, t = (softmax([each / mpmath.mpf(temperature) for each in row]) for row in (x, y))
    beta = mpmath.mpf(beta)
    m = [beta * b + (1 - beta) * a for a, b in zip(s, t, strict=True)]
    of = {
        "forward_kl": lambda: kl(t, s),
        "reverse_kl": lambda: kl(s, t),
        "jsd": lambda: beta * kl(t, m) + (1 - beta) * kl(s, m),
        "tvd": lambda: mpmath.fsum(abs(a - b) for a, b in zip(s, t, strict=True)) / 2,
    }
    return of[divergence]() * (mpmath.mpf(temperature) ** 2 if temperature_squared else 1)


def softmax(z):
    terms = [mpmath.exp(each) for each in z]
    total = mpmath.fsum(terms)
    return [term / total for term in terms]


def kl(p, q):
    return mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def pairs(generator, rows=6, classes=7):
    return (generator.standard_normal((rows, classes)) * 2.0 for _ in NAMES)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_definition(kind, options):
    """Central differences in mpmath, of MPFR's derivatives and of refloss's."""
    generator = np.random.default_rng(5)
    x, y = pairs(generator, 2, 4)
    given = options | {"divergence": kind}
    upstream = np.array([1.5, -0.7])
    result = refloss.distillation(x, y, **given, reduction="none", grad_output=upstream)
    with mpmath.workprec(400), gmpy2.context(precision=truth.PRECISION):
        step = mpmath.mpf(2) ** -80
        for row in range(2):
            found = truth.of_row(reals(x[row]), reals(y[row]), given)
            exact = [[mpmath.mpf(float(each)) for each in array[row]] for array in (x, y)]
            expected = value(*exact, **given)
            assert abs(in_mpmath(found.loss) - expected) < abs(expected) * 2.0**-200
            assert abs(float(result.loss[row]) - expected) <= 2 * math.ulp(float(expected))
            for side, (name, slopes) in enumerate(zip(NAMES, (found.student, found.teacher), strict=True)):
                for c in range(4):
                    ends = []
                    for sign in (1, -1):
                        moved = [list(array) for array in exact]
                        moved[side][c] += sign * step
                        ends.append(value(*moved, **given))
                    slope = (ends[0] - ends[1]) / (2 * step)
                    assert abs(in_mpmath(slopes[c]) - slope) < 2.0**-120
                    assert abs(float(result.grads[name][row, c]) - upstream[row] * slope) < 2.0**-50


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_equal_or_moved_have_nothing(kind):
    generator = np.random.default_rng(6)
    y = np.round(generator.standard_normal((3, 9)) * 64) / 64
    y[0, 2] = -INFINITY
    for moved in (0.0, 2.5, -1000.0):
        result = refloss.distillation(y + moved, y, divergence=kind, temperature=0.7)
        assert result.loss == 0.0
        assert all(not result.grads[name].any() for name in NAMES)


def test_a_divergence_is_quadratic_next_to_the_teacher():
    """Where float64 has nothing left of it: 10⁻¹⁵ apart, and 10⁻¹⁶⁰ of rows next to 0."""
    y = np.array([1.0, 2.0, 3.0])
    for unit, size in ((2.0**-51, 1.0), (1e-160, 0.0)):
        x = size * y + unit * np.array([1.0, -1.0, 0.0])
        p = np.exp(size * y) / np.exp(size * y).sum()
        gap = x - size * y
        expected = 0.5 * ((p * gap**2).sum() - (p * gap).sum() ** 2)
        for kind, share in (("forward_kl", 1.0), ("reverse_kl", 1.0), ("jsd", 0.25)):
            loss = refloss.distillation(x, size * y, divergence=kind, grad=False).loss
            assert loss == pytest.approx(share * expected, rel=1e-6 if size else 1e-3)


def test_sure_rows_keep_what_is_left():
    """Both sure of one class: losses as small as the others' probabilities."""
    x, y = np.array([700.0, 1.0, 0.0]), np.array([700.0, 0.0, 0.0])
    for kind in KINDS:
        with gmpy2.context(precision=4000):
            expected = float(truth.of_row(reals(x), reals(y), {"divergence": kind}).loss)
        loss = float(refloss.distillation(x, y, divergence=kind).loss)
        assert 0.0 < loss < 1e-300
        assert abs(loss - expected) <= 2 * math.ulp(expected)


def test_ties_have_no_sign():
    """Rows whose classes change places have the same sum: what stays where it was is a tie."""
    x, y = np.array([0.3, 1.7, 5.1, -2.0]), np.array([1.7, 0.3, 5.1, -2.0])
    result = refloss.distillation(x, y, divergence="tvd")
    p = np.exp(x) / np.exp(x).sum()
    lean = 0.5 * (p[0] - p[1])  # −½·Σ s·g
    np.testing.assert_allclose(result.grads["student_logits"], p * (lean + np.array([-0.5, 0.5, 0, 0])), rtol=1e-14)
    assert not refloss.distillation(x, y).grads["student_logits"][2:].any()
    # The rest of two rows that are sure of different classes decides a sign 2⁻¹⁰⁰ away.
    x, y = np.array([0.0, 80.0, 2.0, 3.0]), np.array([80.0, 0.0, 2.0, 2.0])
    result = refloss.distillation(x, y, divergence="tvd")
    with gmpy2.context(precision=truth.PRECISION):
        expected = [float(slope) for slope in truth.of_row(reals(x), reals(y), {"divergence": "tvd"}).student]
    assert expected[2] != 0.0
    np.testing.assert_allclose(result.grads["student_logits"], expected, rtol=1e-15)


def test_classes_without_probability():
    uniform, fewer = np.zeros((1, 4)), np.array([[0.0, 0.0, -INFINITY, -INFINITY]])
    forward = refloss.distillation(uniform, fewer)
    assert forward.loss == np.log(2.0)
    assert np.array_equal(forward.grads["student_logits"], [[-0.25, -0.25, 0.25, 0.25]])
    assert not forward.grads["teacher_logits"].any()
    infinite = refloss.distillation(fewer, uniform, grad_output=2.0)
    assert infinite.loss == INFINITY
    assert np.array_equal(infinite.grads["student_logits"], [[0.5, 0.5, -0.5, -0.5]])
    wanted = [[-INFINITY, -INFINITY, NAN, NAN]]
    assert np.array_equal(infinite.grads["teacher_logits"], wanted, equal_nan=True)
    reverse = refloss.distillation(uniform, fewer, divergence="reverse_kl", grad_output=2.0)
    assert (reverse.loss, infinite.loss) == (INFINITY, INFINITY)
    assert np.array_equal(reverse.grads["student_logits"], wanted, equal_nan=True)
    assert np.array_equal(reverse.grads["teacher_logits"], [[0.5, 0.5, -0.5, -0.5]])
    for kind in ("jsd", "tvd"):
        for both in ((uniform, fewer), (fewer, uniform)):
            result = refloss.distillation(*both, divergence=kind)
            assert np.isfinite(result.loss)
            assert all(np.isfinite(gradient).all() for gradient in result.grads.values())
    opposed = refloss.distillation([0.0, -INFINITY], [-INFINITY, 0.0], divergence="jsd", beta=0.25)
    assert float(opposed.loss) == pytest.approx(-0.25 * np.log(0.25) - 0.75 * np.log(0.75), rel=1e-15)
    # Finite, however improbable.
    assert refloss.distillation([0.0, 1000.0], [0.0, 0.0]).loss == 500.0 - np.log(2.0)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_do_not_count_are_not_read(kind):
    generator = np.random.default_rng(7)
    x, y = pairs(generator)
    mask = np.array([True, False, True, False, False, True])
    for reduction in ("mean", "sum", "none"):
        upstream = generator.standard_normal(6) if reduction == "none" else -1.5
        given = {"divergence": kind, "reduction": reduction}
        alone = refloss.distillation(
            x[mask], y[mask], **given, grad_output=upstream[mask] if reduction == "none" else upstream
        )
        for poison in (NAN, INFINITY, -INFINITY):
            x[1], y[3], x[4], y[4] = poison, poison, poison, poison
            result = refloss.distillation(x, y, **given, mask=mask, grad_output=upstream)
            assert np.array_equal(result.loss[mask] if reduction == "none" else result.loss, alone.loss)
            for name in NAMES:
                assert np.array_equal(result.grads[name][mask], alone.grads[name])
                assert not result.grads[name][~mask].any()
    assert not result.loss[~mask].any()
    for bad in (x, y):
        read = refloss.distillation(*((bad, y[::-1].copy()) if bad is x else (x[:1].repeat(6, 0), bad)), **given)
        assert np.isnan(read.loss).any()


def test_empty():
    nothing = refloss.distillation(np.zeros((2, 3)), np.ones((2, 3)), mask=[False, False])
    assert np.isnan(nothing.loss)
    assert not any(gradient.any() for gradient in nothing.grads.values())
    assert np.isnan(refloss.distillation(np.zeros((0, 3)), np.zeros((0, 3))).loss)
    assert refloss.distillation(np.zeros((0, 3)), np.zeros((0, 3)), reduction="sum").loss == 0.0
    none = refloss.distillation(np.zeros((2, 0)), np.zeros((2, 0)), reduction="none")
    assert np.array_equal(none.loss, [0.0, 0.0])
    assert none.grads["teacher_logits"].shape == (2, 0)
    one = refloss.distillation(np.zeros(4), np.arange(4.0), reduction="none")
    assert np.shape(one.loss) == ()
    undefined = refloss.distillation([[NAN, 0.0], [INFINITY, 0.0], [-INFINITY] * 2], np.zeros((3, 2)), reduction="none")
    assert np.isnan(undefined.loss).all()
    assert all(np.isnan(gradient).all() for gradient in undefined.grads.values())


def test_formats_are_mixed_and_gradients_chosen():
    generator = np.random.default_rng(8)
    x, y = pairs(generator)
    for name, dtype in FORMATS.items():
        result = refloss.distillation(x.astype(np.float32), y.astype(dtype), grad_dtype=dtype)
        assert {gradient.dtype for gradient in result.grads.values()} == {np.dtype(dtype)}, name
    assert set(refloss.distillation(x, y, grad="teacher_logits").grads) == {"teacher_logits"}
    assert refloss.distillation(x, y, grad=False).grads == {}
    out = np.empty_like(x)
    assert refloss.distillation(x, y, out=out, grad="student_logits").grads["student_logits"] is out


def bits(result):
    return [np.asarray(result.loss).tobytes(), *(gradient.tobytes() for gradient in result.grads.values())]


@pytest.mark.parametrize("kind", KINDS)
def test_neither_threads_blocks_order_nor_layout_show(kind, monkeypatch):
    generator = np.random.default_rng(9)
    x, y = pairs(generator, 12, 257)
    x[:, 3], y[:, 4], x[4] = y[:, 3], -30.0, y[4] + 1e-9 * generator.standard_normal(257)
    call = functools.partial(refloss.distillation, divergence=kind, temperature=0.7, grad_output=1 / 3)
    expected = bits(call(x, y))
    for block, threads in ((1, 1), (257, 3), (1 << 20, 2)):
        monkeypatch.setattr(run, "BLOCK_ELEMENTS", block)
        limit = parallel.get_num_threads()
        parallel.set_num_threads(threads)
        try:
            assert bits(call(x, y)) == expected
        finally:
            parallel.set_num_threads(limit)
    assert bits(call(np.asfortranarray(x), y[::-1][::-1])) == expected
    order = generator.permutation(257)
    moved = call(x[:, order], y[:, order])
    back = np.argsort(order)
    assert bits(moved)[:1] == expected[:1]
    assert [g[:, back].tobytes() for g in moved.grads.values()] == expected[1:]
    more = [np.concatenate([array, np.full((12, 5), -INFINITY)], 1) for array in (x, y)]
    wider = call(*more)
    assert [g[:, :257].tobytes() for g in wider.grads.values()] == expected[1:]
    assert not any(g[:, 257:].any() for g in wider.grads.values())


@pytest.mark.parametrize("kind", KINDS)
def test_quick_rows_have_the_bits_of_pairs(kind):
    """Gradients of float64 are made of pairs alone; those of narrow formats are what these are rounded to."""
    generator = np.random.default_rng(10)
    far = generator.standard_normal((24, 300)) * np.repeat([0.1, 1.0, 5.0, 40.0], 6)[:, None]
    apart = np.tile([1e-7, 1e-3, 0.1, 1.0, 5.0, 30.0], 4)[:, None]
    near = far + apart * generator.standard_normal(far.shape)
    near[::5, ::7] = far[::5, ::7]
    upstream = generator.standard_normal(24)
    for options in OPTIONS:
        call = functools.partial(
            refloss.distillation, **options, divergence=kind, reduction="none", grad_output=upstream
        )
        for name in ("float32", "float16"):
            x, y = far.astype(FORMATS[name]), near.astype(FORMATS[name])
            narrow, wide = call(x, y), call(x.astype(np.float64), y.astype(np.float64))
            assert np.array_equal(narrow.loss, wide.loss)
            for side in NAMES:
                assert np.array_equal(narrow.grads[side], wide.grads[side].astype(FORMATS[name]))


BAD = [
    ({"beta": 0.0}, ValueError, "beta is 0.0; .*'forward_kl' and 'reverse_kl'"),
    ({"beta": 1.0}, ValueError, "beta is 1.0; .*'forward_kl' and 'reverse_kl'"),
    ({"beta": NAN}, ValueError, "beta is nan"),
    ({"divergence": "kl"}, ValueError, "divergence is 'kl'; expected one of 'forward_kl'"),
    ({"temperature": 0.0}, ValueError, "temperature is 0.0; expected a finite positive number"),
    ({"temperature_squared": 2}, TypeError, "temperature_squared is 2"),
    ({"mask": [True]}, ValueError, r"mask has shape \(1,\); expected \(2,\), one for each row of student_logits"),
    ({"mask": [0, 2]}, ValueError, "mask has other numbers than 0 and 1"),
    ({"teacher_logits": np.zeros((2, 4))}, ValueError, r"teacher_logits has shape \(2, 4\); expected \(2, 5\)"),
    ({"student_logits": np.zeros(())}, ValueError, r"student_logits has shape \(\); expected \[\.\.\., V\]"),
    ({"reduction": "batchmean"}, ValueError, "reduction is 'batchmean'"),
    ({"grad": "logits"}, ValueError, "grad is 'logits'; expected one of 'student_logits', 'teacher_logits'"),
]


@pytest.mark.parametrize(("given", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_input(given, error, message):
    arguments = {"student_logits": np.zeros((2, 5)), "teacher_logits": np.zeros((2, 5)), "divergence": "jsd", **given}
    with pytest.raises(error, match=message):
        refloss.distillation(**arguments)
