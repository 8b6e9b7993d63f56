"""Correct rounding against mpmath: 99.999 % of gradient elements, none beyond 0.501 ulp, losses within 2 ulp."""

from typing import NamedTuple

import ml_dtypes
import mpmath
import numpy as np
import pytest

import refloss
from tests.truth import Pairs, Truth, correctly_rounded, cross_entropy_row, pairs, ulp_errors

FORMATS = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


class Batch(NamedTuple):
    """Logits [N, V] with labels, a cotangent, and the truth for it."""

    logits: np.ndarray
    labels: np.ndarray
    grad_output: float
    truths: list[Truth]


def row(kind: str, width: int, generator: np.random.Generator) -> tuple[np.ndarray, int]:
    """One row of a kind, in float32."""
    name, _, amount = kind.partition(" ")
    value = float(amount or 1)
    label = int(generator.integers(width))
    logits = generator.standard_normal(width) * (value if name == "scale" else 2.0)
    if name == "confident":
        logits[label] = np.delete(logits, label).max(initial=0.0) + value
    if name == "hopeless":
        logits[label] = logits.min() - value
    if name == "masked":
        logits[generator.random(width) < 0.5] = -np.inf
        logits[label] = 1.25
    if name == "offset":
        logits = logits * 4 + value
    if name == "alone":
        logits[:] = -np.inf
        logits[label] = 3.5
    if name == "equal":
        logits[:] = 0.1
    return logits.astype(np.float32), label


KINDS = [
    *(f"scale {scale}" for scale in (1, 8, 60)),
    *(f"confident {margin}" for margin in (5, 20, 40, 60, 80)),
    "hopeless 100",
    "masked",
    *(f"offset {offset}" for offset in ("1e4", "-1e6", "1e8")),
    "alone",
    "equal",
]
WIDE_KINDS = ["scale 3", "confident 30", "masked", "offset 1e4"]


def batch(width: int, kinds: list[str], grad_output: float, seed: int = 0) -> Batch:
    """A batch with a row of every kind; its truth is that of reduction="mean"."""
    generator = np.random.default_rng([width, seed])
    rows = [row(kind, width, generator) for kind in kinds]
    logits = np.stack([logits for logits, _ in rows])
    labels = np.array([label for _, label in rows])
    with mpmath.workprec(300):
        coefficient = mpmath.mpf(grad_output) / len(rows)
        truths = [cross_entropy_row(x, y, coefficient=coefficient) for x, y in rows]
    return Batch(logits, labels, grad_output, truths)


def gradients(truths: list[Truth]) -> Pairs:
    """The true gradient of some rows."""
    return pairs([truth.gradient for truth in truths])


def check_gradient(gradient: np.ndarray, true: Pairs, dtype: str) -> None:
    """Fail unless the gradient is correctly rounded as promised."""
    errors = ulp_errors(gradient, true, dtype)
    share = np.mean(correctly_rounded(errors))
    worst = np.unravel_index(errors.argmax(), errors.shape)
    assert share >= 0.99999, f"only {share:.6%} correctly rounded"
    assert errors.max() <= 0.501, f"{errors.max():.4f} ulp at {worst}: {gradient[worst]!r}"


def check_losses(losses: np.ndarray, truths: list[Truth]) -> None:
    """Fail unless the losses are within 2 ulp."""
    errors = ulp_errors(losses, pairs([truth.loss for truth in truths]), "float64")
    assert errors.max() <= 2, f"{errors.max()} ulp in row {errors.argmax()}"


@pytest.mark.parametrize(
    ("width", "kinds"),
    [(1, KINDS), (2, KINDS), (50, KINDS * 20), (257, KINDS * 8), (32000, WIDE_KINDS), (128256, WIDE_KINDS)],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_gradients_are_correctly_rounded_in_every_format(width, kinds):
    data = batch(width, kinds, grad_output=-0.7310585786300049)
    true = gradients(data.truths)
    for dtype in FORMATS:
        result = refloss.cross_entropy(
            data.logits, data.labels, grad_output=data.grad_output, grad_dtype=dtype, reduction="mean"
        )
        check_gradient(result.grads["logits"], true, dtype)
    rows = refloss.cross_entropy(data.logits, data.labels, reduction="none", grad=False)
    check_losses(rows.loss, data.truths)
    with mpmath.workprec(300):
        mean = mpmath.fsum(truth.loss for truth in data.truths) / len(data.truths)
        assert ulp_errors(result.loss, pairs(mean), "float64") <= 2
        lse = pairs([truth.lse for truth in data.truths])
    assert ulp_errors(result.intermediates["lse"], lse, "float64").max() <= 2


@pytest.mark.parametrize("dtype", FORMATS)
def test_low_precision_logits_are_exact_numbers(dtype):
    generator = np.random.default_rng(7)
    logits = (generator.standard_normal((40, 257)) * 6).astype(FORMATS[dtype])
    labels = generator.integers(257, size=40)
    truths = [cross_entropy_row(x, y) for x, y in zip(logits, labels, strict=True)]
    result = refloss.cross_entropy(logits, labels, reduction="sum")
    assert result.grads["logits"].dtype == logits.dtype
    check_gradient(result.grads["logits"], gradients(truths), dtype)


def test_float64_gradients_are_within_two_ulp():
    """Logits of 53 bits: x_j − m is not a float64, and must not be rounded to one."""
    generator = np.random.default_rng(1)
    logits = generator.standard_normal((60, 257)) * 8
    labels = generator.integers(257, size=60)
    with mpmath.workprec(300):
        truths = [
            cross_entropy_row(x, y, coefficient=mpmath.mpf(1.7) / 60) for x, y in zip(logits, labels, strict=True)
        ]
    result = refloss.cross_entropy(logits, labels, grad_output=1.7)
    errors = ulp_errors(result.grads["logits"], gradients(truths), "float64")
    assert errors.max() <= 1.5


@pytest.mark.parametrize("margin", [30.0, 46.05, 100.0, 300.0, 700.0, 740.0])
def test_tiny_losses_keep_their_digits(margin):
    """1e-13 to 1e-321: log1p of the other terms, not lse − x_y."""
    generator = np.random.default_rng(int(margin))
    logits = generator.standard_normal((30, 17))
    logits[:, 3] += margin
    truths = [cross_entropy_row(x, 3, precision_bits=1300) for x in logits]
    assert all(truth.loss > 0 for truth in truths)
    result = refloss.cross_entropy(logits, np.full(30, 3), reduction="none")
    check_losses(result.loss, truths)


def test_subnormal_gradients_are_rounded_once():
    """Probabilities around the smallest subnormals of float32 and bfloat16."""
    logits = np.linspace(-110.0, 0.0, 400, dtype=np.float32)[None]
    truths = [cross_entropy_row(logits[0], 399)]
    true = gradients(truths)
    for dtype in FORMATS:
        result = refloss.cross_entropy(logits, [399], grad_dtype=dtype)
        check_gradient(result.grads["logits"], true, dtype)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("label_smoothing", [1e-30, 0.1, 0.9, 1.0])
def test_smoothed_gradients_are_correctly_rounded(label_smoothing, weighted):
    generator = np.random.default_rng(3)
    logits = (generator.standard_normal((200, 50)) * 5).astype(np.float32)
    logits[::3, 4] += 25
    logits[::9, 4] += 50
    labels = np.where(np.arange(200) % 2, 4, generator.integers(50, size=200))
    weight = generator.uniform(0.1, 3.0, 50).astype(np.float32) if weighted else None
    options = {"weight": weight, "label_smoothing": label_smoothing}
    truths = [cross_entropy_row(x, y, **options) for x, y in zip(logits, labels, strict=True)]
    true = gradients(truths)
    for dtype in FORMATS:
        result = refloss.cross_entropy(logits, labels, reduction="sum", grad_dtype=dtype, **options)
        check_gradient(result.grads["logits"], true, dtype)
    rows = refloss.cross_entropy(logits, labels, reduction="none", **options)
    check_losses(rows.loss, truths)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["spread", "one-hot", "equal"])
def test_probability_targets(kind, weighted, label_smoothing):
    generator = np.random.default_rng(5)
    logits = (generator.standard_normal((100, 30)) * 5).astype(np.float32)
    target = generator.dirichlet(np.ones(30), 100).astype(np.float32)
    if kind == "one-hot":
        logits[:, 7] = logits.max(axis=1) + 30
        logits[::2, 7] += 60
        target = np.eye(30, dtype=np.float32)[np.full(100, 7)]
    if kind == "equal":
        # p and t differ in their last bits only: the subtraction must be exact.
        logits = np.full((1, 30), 0.3, np.float32)
        target = np.full((1, 30), 1 / 30, np.float32)
    weight = generator.uniform(0.1, 3.0, 30).astype(np.float32) if weighted else None
    options = {"weight": weight, "label_smoothing": label_smoothing}
    truths = [cross_entropy_row(x, t, **options) for x, t in zip(logits, target, strict=True)]
    result = refloss.cross_entropy(logits, target, reduction="sum", **options)
    check_gradient(result.grads["logits"], gradients(truths), "float32")
    errors = ulp_errors(result.grads["target"], pairs([truth.target_gradient for truth in truths]), "float32")
    assert errors.max() <= 0.501
    check_losses(refloss.cross_entropy(logits, target, reduction="none", **options).loss, truths)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("scale", [1e-7, 1.0, 5.0])
def test_soft_targets_at_their_optimum(scale, dtype):
    """p and t differ in the last bits of float32: what is left of their difference is rounded once all the same."""
    generator = np.random.default_rng(9)
    logits = (generator.standard_normal((60, 64)) * scale).astype(np.float32)
    softmax = np.exp(logits.astype(float) - logits.max(axis=1, keepdims=True))
    target = (softmax / softmax.sum(axis=1, keepdims=True)).astype(np.float32)
    truths = [cross_entropy_row(x, t) for x, t in zip(logits, target, strict=True)]
    result = refloss.cross_entropy(logits, target, reduction="sum", grad_dtype=FORMATS[dtype])
    check_gradient(result.grads["logits"], gradients(truths), dtype)


def test_smoothed_labels_at_their_optimum():
    logits = np.array([[0, 1e-20, 3e-20], [1e-9, -1e-9, 2e-9]], np.float32)
    truths = [cross_entropy_row(x, 0, label_smoothing=1.0) for x in logits]
    result = refloss.cross_entropy(logits, [0, 0], label_smoothing=1.0, reduction="sum")
    check_gradient(result.grads["logits"], gradients(truths), "float32")
    labels = np.zeros(40, int)
    smoothing = 0.25
    generator = np.random.default_rng(2)
    logits = np.full((40, 9), np.log(smoothing / 9 / (1 - smoothing + smoothing / 9))) + generator.normal(
        0, 1e-9, (40, 9)
    )
    logits[:, 0] = 0.0
    truths = [cross_entropy_row(x, 0, label_smoothing=smoothing) for x in logits]
    result = refloss.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum", grad_dtype="float32")
    check_gradient(result.grads["logits"], gradients(truths), "float32")
