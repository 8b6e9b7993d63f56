"""Losses of an input and a sign: mpmath, derivatives, kinks, and what is not finite."""

from typing import Any

import mpmath
import numpy as np
import pytest

import refloss
from tests.test_derivatives import TOLERANCE, fourth_order
from tests.test_elementwise import DTYPES, sigmoid, softplus
from tests.test_same_bits import bits, layouts
from tests.truth import correctly_rounded, pairs, ulp_errors

NAMES = ("soft_margin", "hinge_embedding")
INFINITY, NAN = np.inf, np.nan


def hinge(x, y):
    return (x if y != -1 else 0) + (max(1 - x, 0) if y != 1 else 0)


def hinge_slope(x, y):
    return int(y != -1) - int(y != 1 and x <= 1)


DEFINITIONS = {
    "soft_margin": (lambda x, y: softplus(-x * y), lambda x, y: -y * sigmoid(-x * y)),
    "hinge_embedding": (hinge, hinge_slope),
}


def inputs_of(name: str, count: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of all sizes, and signs of which some are none."""
    generator = np.random.default_rng([len(name), count])
    x = generator.standard_normal(count) * generator.choice([0.1, 3.0, 60.0], count)
    x[:6] = [1000, -1000, 88, -88, 1, 0]
    y = generator.choice([1.0, -1.0], count)
    y[::7] = generator.standard_normal(y[::7].size)
    return x.astype(dtype), y.astype(dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_gradients_are_correctly_rounded(name, dtype):
    x, y = inputs_of(name, 400, DTYPES.get(dtype, np.float64))
    value, slope = DEFINITIONS[name]
    with mpmath.workprec(3200):
        points = [(mpmath.mpf(float(a)), mpmath.mpf(float(b))) for a, b in zip(x, y, strict=True)]
        values, slopes = [value(*point) for point in points], [mpmath.mpf(-0.7) * slope(*point) for point in points]
        total, values, slopes = pairs(mpmath.fsum(values)), pairs(values), pairs(slopes)
    loss = getattr(refloss, name)
    result = loss(x, y, reduction="sum", grad_output=-0.7)
    errors = ulp_errors(result.grads["input"], slopes, dtype)
    if dtype == "float64":
        assert errors.max() <= 1.5
    else:
        assert np.mean(correctly_rounded(errors)) == 1.0
    assert ulp_errors(loss(x, y, reduction="none").loss, values, "float64").max() <= 2
    assert ulp_errors(result.loss, total, "float64") <= 2


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_derivatives(name, reduction):
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((3, 5)), generator.choice([1.0, -1.0, 0.5], (3, 5))
    grad_output = generator.standard_normal((3, 5)) if reduction == "none" else -1.7
    loss = getattr(refloss, name)
    result = loss(x, y, reduction=reduction, grad_output=grad_output)
    expected = fourth_order(lambda a: np.sum(grad_output * loss(a, y, reduction=reduction, grad=False).loss), x)
    np.testing.assert_allclose(result.grads["input"], expected, rtol=0, atol=TOLERANCE)
    assert set(result.grads) == {"input"}


@pytest.mark.parametrize("name", NAMES)
def test_threads_blocks_order_and_layout_do_not_show(name, monkeypatch):
    from refloss.kernels.elementwise import run

    x, y = (array.reshape(20, 30) for array in inputs_of(name, 600, np.float32))
    loss = getattr(refloss, name)
    expected = bits(loss(x, y, grad_output=1.3))
    threads = refloss.get_num_threads()
    for count, block in ((1, 7), (3, 64)):
        monkeypatch.setattr(run, "BLOCK_ELEMENTS", block)
        refloss.set_num_threads(count)
        assert bits(loss(x, y, grad_output=1.3)) == expected
    refloss.set_num_threads(threads)
    for which in (0, 1):
        for layout, view in layouts((x, y)[which]):
            given = (view, y) if which == 0 else (x, view)
            assert bits(loss(*given, grad_output=1.3)) == expected, layout
    order = np.random.default_rng(1).permutation(600)
    assert loss(x.ravel()[order], y.ravel()[order]).loss == loss(x, y).loss


@pytest.mark.parametrize("name", NAMES)
def test_no_elements(name):
    empty = np.zeros((0, 3))
    loss = getattr(refloss, name)
    assert np.isnan(loss(empty, empty).loss)
    assert loss(empty, empty, reduction="sum").loss == 0.0
    assert loss(empty, empty, reduction="none").grads["input"].shape == (0, 3)


def test_a_margin_that_is_missed_by_far_is_finite():
    result = refloss.soft_margin(
        [1000.0, -1000.0, -INFINITY, INFINITY, NAN], [1.0, 1.0, 1.0, 1.0, 1.0], reduction="none"
    )
    assert np.array_equal(result.loss, [0.0, 1000.0, INFINITY, 0.0, NAN], equal_nan=True)
    assert np.array_equal(result.grads["input"], [0.0, -1.0, -1.0, 0.0, NAN], equal_nan=True)


def test_a_product_keeps_the_digits_that_float64_has_no_room_for():
    """e^−z of a z near 700 loses ten digits where the lower part of the product is dropped."""
    x, y = np.array([700.0 + 2.0**-30, 640.7]), np.array([1.0 + 2.0**-40, 1.1])
    with mpmath.workprec(3200):
        true = pairs([softplus(-mpmath.mpf(a) * mpmath.mpf(b)) for a, b in zip(x.tolist(), y.tolist(), strict=True)])
    assert ulp_errors(refloss.soft_margin(x, y, reduction="none").loss, true, "float64").max() <= 2


def test_kinks_and_targets_that_are_no_sign_are_torchs():
    """Its float64 answers: input, target, loss, derivative."""
    table = [
        (1.0, -1.0, 0.0, -1.0),
        (1.0, 0.5, 1.0, 0.0),
        (5.0, 0.0, 5.0, 1.0),
        (-4.0, 0.0, 1.0, 0.0),
        (-4.0, 1.0, -4.0, 1.0),
        (2.0, -1.0, 0.0, 0.0),
        (NAN, 1.0, NAN, 1.0),
        (NAN, -1.0, NAN, 0.0),
        (NAN, 0.0, NAN, 1.0),
        (INFINITY, -1.0, 0.0, 0.0),
        (-INFINITY, -1.0, INFINITY, -1.0),
        (-INFINITY, 0.0, NAN, 0.0),
        (INFINITY, 0.0, INFINITY, 1.0),
        (0.25, NAN, 1.0, 0.0),
    ]
    x, y, losses, slopes = (np.array(column) for column in zip(*table, strict=True))
    result = refloss.hinge_embedding(x, y, reduction="none")
    assert np.array_equal(result.loss, losses, equal_nan=True)
    assert np.array_equal(result.grads["input"], slopes, equal_nan=True)


def test_a_sum_of_both_signs_is_that_of_the_exact_terms():
    x, y = np.array([1e16, -1e16, 0.1]), np.array([1.0, 1.0, -1.0])
    assert refloss.hinge_embedding(x, y, reduction="sum").loss == 0.9


def several_labels(dtype):
    """Rows of several classes, and a weight of each class, which every format holds."""
    generator = np.random.default_rng(5)
    x = (generator.standard_normal((12, 9)) * generator.choice([0.1, 3.0, 60.0], (12, 9))).astype(dtype)
    t = generator.random((12, 9))
    return x, np.where(t < 0.5, np.round(t), t).astype(dtype), np.round(generator.uniform(0.2, 2.0, 9) * 64) / 64


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_rows_of_several_labels(reduction, dtype):
    x, t, weight = several_labels(DTYPES.get(dtype, np.float64))
    upstream = np.linspace(-1.0, 2.0, 12) if reduction == "none" else -0.7
    with mpmath.workprec(3200):
        each = [mpmath.mpf(float(c)) / (9 * (12 if reduction == "mean" else 1)) for c in np.broadcast_to(upstream, 12)]
        losses, for_input, for_target, for_weight = [], [], [], [mpmath.mpf(0)] * 9
        for c, *row in zip(each, x, t, strict=True):
            terms = [tuple(map(mpmath.mpf, map(float, term))) for term in zip(*row, weight, strict=True)]
            losses.append(mpmath.fsum(w * (b * softplus(-a) + (1 - b) * softplus(a)) for a, b, w in terms) / 9)
            for_input.append([c * w * ((1 - b) * sigmoid(a) - b * sigmoid(-a)) for a, b, w in terms])
            for_target.append([-c * w * a for a, _, w in terms])
            of_row = [c * (b * softplus(-a) + (1 - b) * softplus(a)) for a, b, _ in terms]
            for_weight = [summed + own for summed, own in zip(for_weight, of_row, strict=True)]
        total = mpmath.fsum(losses) / (12 if reduction == "mean" else 1)
        expected = pairs(losses if reduction == "none" else total)
        gradients = tuple(map(pairs, (for_input, for_target, for_weight)))
    weight = weight.astype(x.dtype)
    result = refloss.multilabel_soft_margin(x, t, weight=weight, reduction=reduction, grad_output=upstream)
    assert list(result.grads) == ["input", "target", "weight"]
    assert np.max(ulp_errors(result.loss, expected, "float64")) <= 2
    for gradient, true in zip(result.grads.values(), gradients, strict=True):
        errors = ulp_errors(gradient, true, dtype)
        assert dtype == "float64" or np.all(correctly_rounded(errors))
    if reduction == "none":
        np.testing.assert_allclose(result.intermediates["losses"].sum(axis=1) / 9, result.loss, rtol=1e-13)


def test_shapes_of_several_labels():
    x, t, weight = several_labels(np.float32)
    one = refloss.multilabel_soft_margin(x[0], t[0], weight=weight, reduction="none", grad_output=2.0)
    assert one.loss.shape == ()
    assert one.loss == refloss.multilabel_soft_margin(x[0], t[0], weight=weight).loss
    many = refloss.multilabel_soft_margin(x.reshape(3, 4, 9), t.reshape(3, 4, 9), weight=weight, reduction="none")
    flat = refloss.multilabel_soft_margin(x, t, weight=weight, reduction="none")
    assert np.array_equal(many.loss, flat.loss.reshape(3, 4))
    assert np.array_equal(many.grads["input"], flat.grads["input"].reshape(3, 4, 9))
    for shape in ((0, 9), (3, 0)):
        empty = np.zeros(shape, np.float32)
        assert np.isnan(refloss.multilabel_soft_margin(empty, empty).loss)
    assert set(refloss.multilabel_soft_margin(x, t, weight=weight, grad="target").grads) == {"target"}


def test_weights_of_several_shapes_have_the_sum_of_what_each_element_has():
    x, t, _ = several_labels(np.float64)
    upstream = np.linspace(-1.0, 2.0, 12)
    call = {"reduction": "none", "grad_output": upstream}
    each = refloss.multilabel_soft_margin(x, t, weight=np.ones((12, 9)), **call).grads["weight"]
    losses = refloss.multilabel_soft_margin(x, t, weight=np.ones(9)).intermediates["losses"]
    np.testing.assert_allclose(each, upstream[:, None] * losses / 9, rtol=1e-15)
    for shape, axes in (((9,), (0,)), ((1, 9), (0,)), ((12, 1), (1,)), ((1,), (0, 1)), ((), (0, 1))):
        found = refloss.multilabel_soft_margin(x, t, weight=np.full(shape, 0.5, np.float32), **call).grads["weight"]
        assert (found.shape, found.dtype) == (shape, np.float32)
        np.testing.assert_allclose(found, each.sum(axes).reshape(shape), rtol=1e-6)
    sure = refloss.multilabel_soft_margin(np.array([np.inf, -1e4]), np.array([0.0, 1.0]), weight=np.ones(2))
    assert sure.grads["weight"].tolist() == [np.inf, 5e3]
    with pytest.raises(ValueError, match=r"weight has shape \(12,\); expected one that broadcasts to \(12, 9\)"):
        refloss.multilabel_soft_margin(x, t, weight=np.ones(12))


def test_rows_of_several_labels_keep_their_bits(monkeypatch):
    from refloss.losses.parts import element_rows

    x, t, weight = several_labels(np.float32)
    call = {"weight": weight, "reduction": "none", "grad_output": np.linspace(-1.0, 2.0, 12)}
    expected = bits(refloss.multilabel_soft_margin(x, t, **call))
    for block in (1, 40):
        monkeypatch.setattr(element_rows, "BLOCK_ELEMENTS", block)
        assert bits(refloss.multilabel_soft_margin(x, t, **call)) == expected
    for layout, view in layouts(x):
        assert bits(refloss.multilabel_soft_margin(view, t, **call)) == expected, layout


@pytest.mark.parametrize("dtype", [np.int64, np.int8, ">i4"])
@pytest.mark.parametrize("name", ["soft_margin", "hinge_embedding", "multilabel_soft_margin"])
def test_integer_targets_are_those_numbers_without_a_gradient(name, dtype):
    x, target = np.array([0.5, -2.0, 1.0], np.float32), np.array([1, -1, 0])
    loss = getattr(refloss, name)
    found, wanted = loss(x, target.astype(dtype)), loss(x, target.astype(np.float32), grad="input")
    assert found.loss == wanted.loss
    assert list(found.grads) == ["input"]
    assert found.grads["input"].tobytes() == wanted.grads["input"].tobytes()
    with pytest.raises(ValueError, match="grad is 'target'"):
        loss(x, target, grad="target")


BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    (
        "soft_margin",
        {"target": np.zeros(3)},
        ValueError,
        r"target has shape \(3,\); expected \(2,\), the shape of input",
    ),
    ("soft_margin", {"target": np.ones(2, bool)}, TypeError, "target has dtype bool"),
    ("soft_margin", {"reduction": "batchmean"}, ValueError, "reduction is 'batchmean'"),
    ("soft_margin", {"grad": "target"}, ValueError, "grad is 'target'; expected .*'input'"),
    ("hinge_embedding", {"margin": np.inf}, ValueError, "margin is inf; expected a finite number"),
    ("hinge_embedding", {"margin": "wide"}, TypeError, "margin is 'wide'"),
    ("hinge_embedding", {"target": np.zeros((2, 1))}, ValueError, "target has shape"),
    ("multilabel_soft_margin", {"target": np.zeros(3)}, ValueError, r"target has shape \(3,\); expected \(2,\)"),
    ("multilabel_soft_margin", {"input": np.ones(()), "target": np.ones(())}, ValueError, r"expected \[..., C\]"),
    ("multilabel_soft_margin", {"weight": np.ones(3)}, ValueError, "weight has shape"),
]


@pytest.mark.parametrize(("name", "arguments", "error", "message"), BAD, ids=str)
def test_bad_input(name, arguments, error, message):
    with pytest.raises(error, match=message):
        getattr(refloss, name)(**{"input": np.ones(2), "target": np.ones(2)} | arguments)


@pytest.mark.parametrize("shape", [(0, 0), (2, 0, 0), (0, 3, 0)])
def test_a_sum_of_no_rows_is_0_whatever_their_length(shape):
    nothing = np.zeros(shape)
    assert refloss.multilabel_soft_margin(nothing, nothing, reduction="sum").loss == 0.0
    assert np.isnan(refloss.multilabel_soft_margin(nothing, nothing).loss)
