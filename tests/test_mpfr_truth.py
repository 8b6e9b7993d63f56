"""The definitions of tests/mpfr against mpmath, their judge against rational arithmetic, and refloss against them."""

import math
from fractions import Fraction

import gmpy2
import mpmath
import numpy as np
import pytest

from refloss.homes import homes
from tests import detection_truth
from tests.mpfr import boxes, definitions, masks, rows, triples
from tests.mpfr.measure import KINDS, measured
from tests.mpfr.rounding import DTYPES, PRECISION, exact, judge, real, reals
from tests.truth import FORMATS, cross_entropy_row

# Of each function, over its kinds of inputs.
ELEMENTS = 20_000
OF_ELEMENTS = (
    *("mse", "l1", "smooth_l1", "huber", "bce", "bce_with_logits", "kl_div", "sigmoid_focal", "varifocal"),
    *("soft_margin", "hinge_embedding", "sigmoid_contrastive", "info_nce", "multilabel_soft_margin"),
    *("value_loss", "policy_loss"),
    *("linear_cross_entropy", "linear_selected_log_probs", "distillation"),
)
OF_TRIPLES = (*triples.LOSSES, "poisson_nll")

VALUES = {
    "mse": lambda x, t: (x - t) ** 2,
    "l1": lambda x, t: abs(x - t),
    "smooth_l1": lambda x, t: (x - t) ** 2 / (2 * 0.75) if abs(x - t) < 0.75 else abs(x - t) - mpmath.mpf(0.375),
    "huber": lambda x, t: (x - t) ** 2 / 2 if abs(x - t) <= 0.75 else 0.75 * (abs(x - t) - mpmath.mpf(0.375)),
    "bce_with_logits": lambda x, t: 2.5 * t * detection_truth.softplus(-x) + (1 - t) * detection_truth.softplus(x),
    "kl_div": lambda x, t: t * (mpmath.log(t) - x),
    "kl_div_of_log": lambda x, t: mpmath.exp(t) * (t - x),
    "sigmoid_focal": lambda x, t: detection_truth.focal(x, t, 0.75, 2.5),
}
PARAMETERS = {"smooth_l1": (0.75,), "huber": (0.75,), "bce_with_logits": (2.5,), "sigmoid_focal": (0.75, 2.5)}


@pytest.fixture(autouse=True)
def _many_bits():
    with gmpy2.context(precision=PRECISION), mpmath.workprec(PRECISION):
        yield


def in_mpmath(value):
    """An MPFR number as mpmath has it."""
    mantissa, exponent = value.as_mantissa_exp()
    return mpmath.mpf(int(mantissa)) * mpmath.mpf(2) ** int(exponent)


def assert_equal(found, expected, bits=150):
    difference = abs(in_mpmath(found) - expected)
    assert difference <= abs(expected) * mpmath.mpf(2) ** -bits + mpmath.mpf(2) ** -(bits + 60)


@pytest.mark.parametrize("name", VALUES)
def test_derivatives_are_those_of_the_value(name):
    generator = np.random.default_rng(3)
    step = mpmath.mpf(2) ** -100
    for drawn in zip(generator.standard_normal(20) * 3, generator.random(20), strict=True):
        found = getattr(definitions, name)(*map(real, drawn), *map(real, PARAMETERS.get(name, ())))
        x, t = (mpmath.mpf(float(number)) for number in drawn)
        value = VALUES[name]
        assert_equal(found[0], value(x, t))
        assert_equal(found[1], (value(x + step, t) - value(x - step, t)) / (2 * step))
        assert_equal(found[2], (value(x, t + step) - value(x, t - step)) / (2 * step))


def test_losses_with_derivatives_of_their_own():
    """bce as torch has it; the weights of varifocal are held."""
    p, t = 0.3125, 0.75
    value, slope, of_target = definitions.bce(real(p), real(t))
    logs = mpmath.log(p), mpmath.log(1 - p)
    assert_equal(value, -t * logs[0] - (1 - t) * logs[1])
    assert_equal(slope, mpmath.mpf(p - t) / (p * (1 - p)))
    assert_equal(of_target, logs[1] - logs[0])
    value, slope, _ = definitions.bce(real(0), real(0.5))
    assert (value, slope) == (50, real(-0.5) / real(1e-12))
    x = mpmath.mpf(1.5)
    weight = 0.75 * detection_truth.sigmoid(x) ** 2
    value, slope, _ = definitions.varifocal(real(1.5), real(0), real(0.75), real(2))
    assert_equal(value, weight * detection_truth.softplus(x))
    assert_equal(slope, weight * detection_truth.sigmoid(x))
    value, slope, _ = definitions.varifocal(real(1.5), real(0.25), real(0.75), real(2))
    assert_equal(value, 0.25 * (detection_truth.softplus(x) - 0.25 * x))
    assert_equal(slope, 0.25 * (detection_truth.sigmoid(x) - mpmath.mpf(0.25)))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("is_soft", [False, True])
def test_rows_are_those_of_mpmath(is_soft, smoothing):
    generator = np.random.default_rng(4)
    x, weight = generator.standard_normal((5, 7)) * 4, generator.uniform(0.1, 2.0, 7)
    x[1, 2] += 60
    t = generator.random((5, 7)) if is_soft else np.array([1, 2, rows.IGNORED, 0, 6])
    found = rows.truth(rows.Rows(x, t, weight, smoothing, -1.5, "sum"))
    for k in np.flatnonzero(np.ones(5) if is_soft else t != rows.IGNORED):
        target = t[k] if is_soft else int(t[k])
        expected = cross_entropy_row(
            x[k], target, weight=weight, label_smoothing=smoothing, coefficient=-1.5, precision_bits=PRECISION
        )
        assert_equal(found.losses[k], expected.loss)
        for j in range(7):
            assert_equal(found.gradient[7 * k + j], expected.gradient[j])
            if is_soft:
                assert_equal(found.target_gradient[7 * k + j], expected.target_gradient[j])
    if not is_soft:
        assert found.gradient[14:21] == [0] * 7


@pytest.mark.parametrize("is_centered", [False, True])
def test_boxes_are_those_of_mpmath(is_centered):
    generator = np.random.default_rng(5)
    for _ in range(10):
        both = [boxes.draw(generator, 1, "cxcywh" if is_centered else "xyxy")[0] for _ in range(2)]
        found = boxes.overlap(*map(reals, both), centered=is_centered)
        arrays = dict(zip(("boxes1", "boxes2"), both, strict=True))

        def misfit(arrays, which):
            turned = [detection_truth.corners(box) if is_centered else list(box) for box in arrays.values()]
            return 1 - detection_truth.overlap(*turned)[which]

        for which, own in enumerate((found.of_iou, found.of_giou)):
            known = {name: detection_truth.exact(array) for name, array in arrays.items()}
            assert_equal(own[0], misfit(known, which))
            for name, slopes in zip(arrays, own[1:], strict=True):
                true = detection_truth.derivative(lambda given, which=which: misfit(given, which), arrays, name)
                verdict = judge([float(slope) for slope in slopes], exact(slopes, (4,)), "float64")
                assert verdict.right.all()
                assert np.abs([float(slope) for slope in slopes] - true.high).max() <= 1e-15 * np.abs(true.high).max()


def test_dice_is_that_of_mpmath():
    generator = np.random.default_rng(6)
    x, t = generator.standard_normal(5) * 3, generator.random(5)
    found = masks.dice_of(reals(x), reals(t))
    assert_equal(found.loss, detection_truth.dice(detection_truth.exact(x), detection_truth.exact(t)))
    step = mpmath.mpf(2) ** -100
    for k in range(5):
        for place, slopes in enumerate((found.of_logits, found.of_targets)):
            ends = []
            for sign in (1, -1):
                moved = [detection_truth.exact(x), detection_truth.exact(t)]
                moved[place][k] += sign * step
                ends.append(detection_truth.dice(*moved))
            assert_equal(slopes[k], (ends[0] - ends[1]) / (2 * step))


@pytest.mark.parametrize("resized", [(6, 8), (5, 3), (3, 4)], ids=str)
def test_resampling_is_that_of_mpmath_and_its_adjoint(resized):
    generator = np.random.default_rng(7)
    plane, cotangents = generator.standard_normal((3, 4)), generator.standard_normal(resized)
    resampling = masks.Resampling((3, 4), resized)
    wide = resampling.widened(reals(plane))
    for found, expected in zip(
        wide, detection_truth.upsampled(detection_truth.exact(plane), resized).ravel(), strict=True
    ):
        assert_equal(found, expected)
    back = resampling.handed_back(reals(cotangents), plane.size)
    forth = gmpy2.fsum([a * b for a, b in zip(wide, reals(cotangents), strict=True)])
    assert_equal(forth, in_mpmath(gmpy2.fsum([a * b for a, b in zip(reals(plane), back, strict=True)])))


def nearest(value, format_name):
    """A rational number in a format, to nearest even, as a rational number."""
    precision, smallest = FORMATS[format_name]
    if value == 0:
        return value
    size = abs(value)
    leading = size.numerator.bit_length() - size.denominator.bit_length()
    leading -= size < Fraction(2) ** leading
    unit = Fraction(2) ** (max(leading, smallest) - precision + 1)
    return round(value / unit) * unit


@pytest.mark.parametrize("format_name", DTYPES)
def test_the_judge_rounds_as_rational_arithmetic_does(format_name):
    """Ties, what is 2^-90 beside them, subnormals, zeros; the next number on either side is wrong."""
    precision, smallest = FORMATS[format_name]
    generator = np.random.default_rng(8)
    values = [Fraction(0)]
    for _ in range(500):
        short = Fraction(int(generator.integers(1, 2**precision)) * 2 + 1, 2)
        scale = Fraction(2) ** int(generator.integers(smallest - precision - 3, 15 - precision))
        beside = Fraction(int(generator.integers(-1, 2)), 2**90)
        values.append(int(generator.choice([-1, 1])) * (short + beside) * scale)
    true = exact([gmpy2.mpfr(gmpy2.mpq(value)) for value in values], (len(values),))
    expected = np.array([float(nearest(value, format_name)) for value in values])
    assert judge(expected, true, format_name).right.all()
    assert (judge(expected, true, format_name).ulp <= 0.5).all()
    for direction in (-np.inf, np.inf):
        next_one = np.nextafter(expected.astype(DTYPES[format_name]), DTYPES[format_name](direction))
        verdict = judge(next_one, true, format_name)
        assert not verdict.right.any()
        assert (verdict.ulp >= 0.5).all()


@pytest.mark.parametrize("format_name", ["float32", "bfloat16", "float16"])
def test_the_judge_knows_what_is_too_large(format_name):
    largest = {"float32": np.finfo(np.float32).max, "float16": 65504.0, "bfloat16": 2.0**127 * (2 - 2.0**-7)}[
        format_name
    ]
    half = math.ulp(largest) * 2 ** (52 - FORMATS[format_name].precision)
    values = exact([real(largest) + real(half) * 0.99, real(largest) + real(half), -real(largest) * 4], (3,))
    assert judge([largest, np.inf, -np.inf], values, format_name).right.all()
    assert not judge([np.inf, largest, -largest], values, format_name).right.any()
    special = exact([gmpy2.inf(), gmpy2.nan(), gmpy2.mpfr(0)], (3,))
    assert judge([np.inf, np.nan, -0.0], special, format_name).right.all()
    assert not judge([-np.inf, 0.0, 1e-40], special, "float32").right.any()


def test_every_public_function_has_a_definition():
    assert set(KINDS) == set(homes())


@pytest.mark.parametrize(
    ("function", "kind"),
    [(function, kind) for function in (*OF_ELEMENTS, *OF_TRIPLES, "cross_entropy") for kind in KINDS[function]],
)
def test_adversarial_inputs_are_rounded_once(function, kind):
    """benchmarks/accuracy.py looks at a hundred times as many elements, of every function."""
    for tally in measured(function, kind, ELEMENTS // len(KINDS[function]), seed=1):
        found = f"{tally.name} in {tally.format}: {tally.wrong} of {tally.size}, {tally.worst} ulp, {tally.example}"
        if tally.format != "float64":
            assert tally.wrong <= 1e-5 * tally.size, found
            assert tally.worst <= 0.501, found
        elif tally.name == "loss":
            assert tally.worst <= 2, found
