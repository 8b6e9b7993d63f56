"""Cross-entropy where probabilities meet their target: self-distillation, sure teachers, equal logits, ties."""

import math
from fractions import Fraction

import ml_dtypes
import mpmath
import numpy as np
import pytest

import refloss
from tests import truth
from tests.test_accuracy import check_gradient, check_losses, gradients
from tests.truth import correctly_rounded, cross_entropy_row, pairs, ulp_errors

FORMATS = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float64": np.float64}
COTANGENTS = (1 / 3, 0.1, 0.7, 1 / 6, 1 / 7, 1.0)


def softmax(logits):
    """A row's own probabilities, float64."""
    terms = np.exp(logits.astype(float) - logits.max(axis=-1, keepdims=True).astype(float))
    return terms / terms.sum(axis=-1, keepdims=True)


def check(logits, target, dtypes=("float32",), **options):
    """Fail unless gradients and losses are what they are promised to be."""
    truths = [cross_entropy_row(x, t, **options) for x, t in zip(logits, target, strict=True)]
    for dtype in dtypes:
        result = refloss.cross_entropy(logits, target, reduction="sum", grad_dtype=dtype, **options)
        check_gradient(result.grads["logits"], gradients(truths), dtype)
    if "target" in result.grads:
        dtype = result.grads["target"].dtype.name
        errors = ulp_errors(result.grads["target"], pairs([row.target_gradient for row in truths]), dtype)
        assert errors.max() <= (2 if dtype == "float64" else 0.501)
    check_losses(refloss.cross_entropy(logits, target, reduction="none", grad=False, **options).loss, truths)


@pytest.mark.parametrize("extra", ["", "weighted", "smoothed", "weighted smoothed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize(("rows", "classes"), [(40, 17), (1, 4097)])
def test_self_distillation(rows, classes, dtype, extra):
    """Targets are the row's own probabilities, so that gradients are the targets' rounding errors."""
    generator = np.random.default_rng([classes, len(dtype)])
    logits = (generator.standard_normal((rows, classes)) * 3).astype(np.float32)
    weight = generator.uniform(0.1, 3.0, classes) if "weighted" in extra else np.ones(classes)
    smoothing = 0.1 if "smoothed" in extra else 0.0
    mass = softmax(logits) / weight
    target = (mass - smoothing / classes) / (1 - smoothing)
    options = {"weight": weight} if "weighted" in extra else {}
    check(logits, target.astype(FORMATS[dtype]), ("bfloat16", "float32"), label_smoothing=smoothing, **options)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_self_distillation_over_a_vocabulary(dtype):
    logits = (np.random.default_rng(3).standard_normal((1, 32000)) * 2).astype(np.float32)
    check(logits, softmax(logits).astype(FORMATS[dtype]))


@pytest.mark.parametrize("exponent", [*range(-24, -8)])
def test_targets_near_the_optimum(exponent):
    """Off by a share of themselves: wherever it is decided how to compute them, they are rounded correctly."""
    generator = np.random.default_rng(-exponent)
    logits = (generator.standard_normal((3, 1500)) * 2).astype(np.float32)
    off = generator.uniform(0.7, 1.4, logits.shape) * generator.choice([-1, 1], logits.shape)
    check(logits, (softmax(logits) * (1 + off * 2.0**exponent)).astype(np.float32))


@pytest.mark.parametrize("extra", ["", "weighted", "smoothed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("margin", [20, 40, 50, 60, 80])
def test_sure_teachers_of_sure_students(margin, dtype, extra):
    """One class, or two that are equal, far above the rest, and a target that is as sure: near it, and at it."""
    generator = np.random.default_rng(margin)
    logits = generator.standard_normal((24, 9)).astype(np.float32)
    logits[:, 3] += margin
    logits[::2, 5] = logits[::2, 3]
    near = softmax(logits + generator.normal(0.0, 0.3, logits.shape) * (logits < margin / 2))
    target = np.where(np.arange(24)[:, None] % 3 > 0, near, softmax(logits)).astype(FORMATS[dtype])
    options = {"weight": generator.uniform(0.1, 3.0, 9)} if extra == "weighted" else {}
    check(logits, target, ("bfloat16", "float32"), label_smoothing=1e-30 if extra == "smoothed" else 0.0, **options)


def test_a_sure_teacher_s_rest_is_not_lost():
    logits = np.array([[50, 0, 1, -1]], np.float32)
    target = np.array([[1, 9.577888e-23, 1.745205e-22, 3.523508e-23]], np.float32)
    check(logits, target)
    check(logits.astype(ml_dtypes.bfloat16), target.astype(ml_dtypes.bfloat16), ("bfloat16",))


@pytest.mark.parametrize("margin", [30, 50, 70])
def test_sure_labels_with_little_smoothing(margin):
    """The masses of the other classes are as small as their probabilities; one weight may hide all others."""
    generator = np.random.default_rng(margin)
    logits = generator.standard_normal((20, 9)).astype(np.float32)
    logits[:, 3] += margin
    for weight_of_label in (1.0, 1e20):
        weight = generator.uniform(0.1, 3.0, 9)
        weight[3] *= weight_of_label
        check(logits, np.full(20, 3), label_smoothing=math.exp(-margin), weight=weight)


def test_one_class_has_no_gradient():
    result = refloss.cross_entropy([[0.3]], [[0.7]], weight=[0.1], reduction="sum")
    assert result.loss == 0
    assert [gradient.tolist() for gradient in result.grads.values()] == [[[0.0]], [[0.0]]]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equal_logits_and_equal_targets_have_no_gradient(smoothing):
    logits = np.full((2, 3001), 0.3)
    logits[1, 1000:] = -np.inf
    target = np.full((2, 3001), 1 / 3001)
    target[1] = np.where(logits[1] > -np.inf, 1e-3, 0.0)
    gradient = refloss.cross_entropy(logits[:1], target[:1], label_smoothing=smoothing).grads["logits"]
    assert not gradient.any()
    assert not refloss.cross_entropy(logits, target).grads["logits"].any()
    assert not refloss.cross_entropy(logits[:1], [0], label_smoothing=1.0, weight=[0.1] * 3001).grads["logits"].any()


def test_differences_below_a_float64_of_the_terms():
    """Pairs keep 2^-98 of the terms: targets of 53 bits that are the row's own probabilities."""
    logits = np.random.default_rng(8).standard_normal((20, 50)) * 2
    target = softmax(logits)
    truths = [cross_entropy_row(x, t) for x, t in zip(logits, target, strict=True)]
    gradient = refloss.cross_entropy(logits, target, reduction="sum").grads["logits"]
    true = gradients(truths)
    assert np.max(np.abs(true.high) / target) < 2.0**-48
    assert np.max(np.abs(gradient - true.high) / target) < 2.0**-96


def test_the_order_of_classes_does_not_show():
    generator = np.random.default_rng(6)
    logits = generator.standard_normal((30, 40)).astype(np.float32)
    logits[::3, 4] += 50
    logits[::6, 7] = logits[::6, 4]
    logits[1::6] = 0.5
    target = (softmax(logits) * generator.choice([1, 1 + 1e-4], logits.shape)).astype(np.float32)
    weight, order = generator.uniform(0.1, 3.0, 40), generator.permutation(40)
    for options in ({}, {"weight": weight, "label_smoothing": 0.1}):
        shuffled = {name: value[order] if name == "weight" else value for name, value in options.items()}
        one = refloss.cross_entropy(logits, target, **options)
        other = refloss.cross_entropy(logits[:, order], target[:, order], **shuffled)
        assert one.loss == other.loss
        for name, gradient in one.grads.items():
            assert gradient[:, order].tobytes() == other.grads[name].tobytes()


def nearest(number: Fraction, dtype: str) -> np.ndarray:
    """A rational number rounded once to a format, to nearest even, by integers; without overflow."""
    precision, smallest = truth.FORMATS[dtype]
    exponent = max(math.frexp(float(number))[1], smallest + 1) - precision
    return FORMATS[dtype](math.ldexp(round(number / Fraction(2) ** exponent), exponent))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("cotangent", COTANGENTS)
def test_rational_gradients_of_labels_are_rounded_once(cotangent, dtype):
    """Equal logits: multiples of c·w, which rounded to float64 would often be ties of the format."""
    rows = 300
    index = np.arange(rows)
    weight = np.arange(1.0, rows + 1) * (1 if dtype == "float16" else 7)
    coefficient = [Fraction(cotangent) * Fraction(value) for value in weight]
    for classes in (2, 3, 4, 8):
        for width in (rows, 8):  # long rows and short ones have kernels of their own
            logits = np.full((rows, width), -np.inf)
            logits[index[:, None], (index[:, None] + np.arange(classes)) % width] = 0.0
            of_rows = [float(value) for value in weight * cotangent]
            result = refloss.cross_entropy(
                logits, index % width, reduction="none", grad_output=np.array(of_rows), grad_dtype=dtype
            )
            for i in index:
                number = Fraction(of_rows[i]) / classes
                assert result.grads["logits"][i, i % width] == nearest(number * (1 - classes), dtype)
                assert result.grads["logits"][i, (i + 1) % width] == nearest(number, dtype)
    pair_of_classes = np.where(np.isin((index - index[:, None]) % rows, (0, 1)), 0.0, -np.inf)
    options = {"weight": weight, "grad_output": cotangent, "grad_dtype": dtype}
    for reduction, normaliser in (("sum", 1), ("mean", sum(map(Fraction, weight)))):
        gradient = refloss.cross_entropy(pair_of_classes, index, reduction=reduction, **options).grads["logits"]
        of_nll = refloss.nll(np.zeros((rows, rows)), index, reduction=reduction, **options).grads["input"]
        for i in index:
            number = coefficient[i] / normaliser
            assert gradient[i, i] == nearest(-number / 2, dtype)
            assert gradient[i, (i + 1) % rows] == nearest(number / 2, dtype)
            assert of_nll[i, i] == nearest(-number, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("cotangent", COTANGENTS)
def test_rational_gradients_of_probabilities_are_rounded_once(cotangent, dtype):
    generator = np.random.default_rng(1)
    rows = 300
    for classes in (1, 2, 3, 4, 8):
        target = (generator.integers(0, 257, (rows, classes)) / 256).astype(FORMATS[dtype])
        for weight, smoothing in ((None, 0.0), (7.0 * np.arange(1, classes + 1), 0.25), (None, 0.1)):
            gradient = refloss.cross_entropy(
                np.zeros((rows, classes)),
                target,
                weight,
                label_smoothing=smoothing,
                reduction="sum",
                grad_output=cotangent,
                grad_dtype=dtype,
            ).grads["logits"]
            factors = [Fraction(1)] * classes if weight is None else list(map(Fraction, weight))
            for i in range(rows):
                share = [
                    (1 - Fraction(smoothing)) * Fraction(float(t)) + Fraction(smoothing) / classes for t in target[i]
                ]
                mass = [factor * part for factor, part in zip(factors, share, strict=True)]
                slopes = [Fraction(cotangent) * (sum(mass) / classes - q) for q in mass]
                assert gradient[i].tolist() == [nearest(slope, dtype) if slope else 0.0 for slope in slopes]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("cotangent", COTANGENTS)
def test_sure_rows_are_rounded_once(cotangent, dtype):
    """Just beside a tie: c·(1 − 10^-40) and c·w·(d + 10^-40), in which 10^-40 decides."""
    generator = np.random.default_rng(2)
    logits = np.zeros((400, 3), FORMATS[dtype])
    logits[:, 0] = 90.0
    logits[:, 1] = generator.integers(-256, 256, 400) / 8
    target = (generator.integers(0, 257, (400, 3)) / 256).astype(FORMATS[dtype])
    weight = np.array([1.0, 7.0, 3.0])
    result = refloss.cross_entropy(logits, target, weight, reduction="sum", grad_output=cotangent)
    truths = [
        cross_entropy_row(x, t, weight=weight, coefficient=cotangent) for x, t in zip(logits, target, strict=True)
    ]
    errors = ulp_errors(result.grads["logits"], gradients(truths), dtype)
    assert np.all(correctly_rounded(errors))
    assert np.all(ulp_errors(result.grads["target"], pairs([row.target_gradient for row in truths]), dtype) <= 0.5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_infinite_cotangents_follow_the_float_rules(smoothing):
    logits = np.array([[0.5, -1.0, 2.0], [0.5, -1.0, -np.inf]], np.float32)
    infinite = {"grad_output": np.inf, "reduction": "sum"}
    gradient = refloss.cross_entropy(logits[:1], [0], label_smoothing=smoothing, **infinite).grads["logits"]
    assert gradient.tolist() == [[-np.inf, np.inf, np.inf]]
    result = refloss.cross_entropy(logits[:1], [[0.9, 0.05, 0.05]], label_smoothing=smoothing, **infinite)
    assert result.grads["logits"].tolist() == [[-np.inf, -np.inf, np.inf]]
    assert result.grads["target"].tolist() == [[np.inf] * 3]
    gradient = refloss.nll(logits[:1], [0], **infinite).grads["input"]
    assert gradient.tolist() == [[-np.inf, 0.0, 0.0]]


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize(
    ("size", "cotangent"), [(1e-285, 1e280), (1e-310, 1e300), (1e-310, 1.0), (1e300, 1e-300), (5e307, 0.1)]
)
def test_weights_far_from_one(size, cotangent, reduction):
    """A common factor of the weights leaves a mean as it is, and a sum or a row times that factor."""
    generator = np.random.default_rng(5)
    logits = generator.standard_normal((3, 4)).astype(np.float32)
    labels, target = np.array([0, 2, 3]), generator.dirichlet(np.ones(4), 3)
    weight = size * np.array([1.0, 0.5, 0.25, 0.75])
    exact = [Fraction(value) for value in weight]
    for of_rows, options in ((labels, {}), (labels, {"label_smoothing": 0.1}), (target, {})):
        normaliser = Fraction(1)
        if reduction == "mean":
            normaliser = Fraction(3) if of_rows is target else sum(exact[label] for label in labels)
        factor = Fraction(cotangent) * Fraction(size) / normaliser
        with mpmath.workprec(300):
            coefficient = mpmath.mpf(factor.numerator) / factor.denominator
            truths = [
                cross_entropy_row(x, t, weight=weight / size, coefficient=coefficient, **options)
                for x, t in zip(logits, of_rows, strict=True)
            ]
        outputs = {"grad_output": cotangent, "reduction": reduction, "grad_dtype": "float64"}
        gradient = refloss.cross_entropy(logits, of_rows, weight, **options, **outputs).grads["logits"]
        true = gradients(truths)
        assert np.array_equal(np.isinf(gradient), np.isinf(true.high))
        small = np.abs(true.high) < 1e-307
        finite = ~np.isinf(true.high) & ~small
        assert np.allclose(gradient[finite], true.high[finite], rtol=1e-14, atol=0)
        assert np.allclose(gradient[small], true.high[small], rtol=1e-9, atol=1e-322)
