"""Losses of corresponding elements: correct rounding against mpmath, derivatives, layouts, edges."""

from fractions import Fraction
from typing import Any, NamedTuple

import ml_dtypes
import mpmath
import numpy as np
import pytest

import refloss
from tests.test_derivatives import TOLERANCE, fourth_order
from tests.test_same_bits import bits, layouts
from tests.truth import correctly_rounded, pairs, ulp_errors

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


class Definition(NamedTuple):
    """A loss's element in mpmath, and the derivatives that torch gives it."""

    value: Any
    for_input: Any
    for_target: Any


def softplus(x):
    return mpmath.log1p(mpmath.exp(x)) if x < 0 else x + mpmath.log1p(mpmath.exp(-x))


def sigmoid(x):
    return 1 / (1 + mpmath.exp(-x))


DEFINITIONS = {
    "mse": Definition(lambda x, t: (x - t) ** 2, lambda x, t: 2 * (x - t), lambda x, t: 2 * (t - x)),
    "l1": Definition(lambda x, t: abs(x - t), lambda x, t: mpmath.sign(x - t), lambda x, t: mpmath.sign(t - x)),
    "smooth_l1": Definition(
        lambda x, t: (x - t) ** 2 / 2 if abs(x - t) < 1 else abs(x - t) - 0.5,
        lambda x, t: min(max(x - t, -1), 1),
        lambda x, t: min(max(t - x, -1), 1),
    ),
    "huber": Definition(
        lambda x, t: (x - t) ** 2 / 2 if abs(x - t) <= 1 else abs(x - t) - 0.5,
        lambda x, t: min(max(x - t, -1), 1),
        lambda x, t: min(max(t - x, -1), 1),
    ),
    "bce": Definition(
        lambda x, t: -t * mpmath.log(x) - (1 - t) * mpmath.log1p(-x),
        lambda x, t: (x - t) / (x * (1 - x)),
        lambda x, t: mpmath.log1p(-x) - mpmath.log(x),
    ),
    "bce_with_logits": Definition(
        lambda x, t: t * softplus(-x) + (1 - t) * softplus(x),
        lambda x, t: (1 - t) * sigmoid(x) - t * sigmoid(-x),
        lambda x, _: -x,
    ),
    "kl_div": Definition(lambda x, t: t * (mpmath.log(t) - x), lambda _, t: -t, lambda x, t: mpmath.log(t) + 1 - x),
}


def inputs_of(name: str, count: int, dtype: Any, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of a loss, hard and soft, near and far."""
    generator = np.random.default_rng([seed, count])
    x = generator.standard_normal(count) * generator.choice([0.1, 3.0, 60.0], count)
    t = generator.standard_normal(count) * 3
    if name in ("bce", "bce_with_logits", "kl_div"):
        t = np.clip(generator.random(count), 0.01, 0.99)
    if name == "bce":
        x = np.clip(generator.random(count), 0.01, 0.99)
    if name == "bce_with_logits":
        t[::3] = np.round(t[::3])
        x[:8] = [1000, -1000, 1000, -1000, 88, -88, 700, -700]
        t[:8] = [1, 0, 0, 1, 1, 0, 0, 1]
    return x.astype(dtype), t.astype(dtype)


def truth(name: str, x: np.ndarray, t: np.ndarray, coefficient: Any) -> tuple[Any, Any, Any]:
    """Values, and both derivatives times a coefficient, in mpmath."""
    definition = DEFINITIONS[name]
    with mpmath.workprec(300):
        # 400 decimal orders below 1 there is still a sigmoid to tell from 0.
        points = [(mpmath.mpf(float(a)), mpmath.mpf(float(b))) for a, b in zip(x, t, strict=True)]
        with mpmath.workprec(3200):
            values = [definition.value(*point) for point in points]
            for_input = [coefficient * definition.for_input(*point) for point in points]
            for_target = [coefficient * definition.for_target(*point) for point in points]
        return pairs(values), pairs(for_input), pairs(for_target)


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_correctly_rounded(name, dtype):
    x, t = inputs_of(name, 600, DTYPES[dtype])
    grad_output = -0.7310585786300049
    values, for_input, for_target = truth(name, x, t, mpmath.mpf(grad_output))
    loss = getattr(refloss, name)
    result = loss(x, t, reduction="sum", grad_output=grad_output)
    for gradient, true in zip(result.grads.values(), (for_input, for_target), strict=True):
        errors = ulp_errors(gradient, true, dtype)
        assert np.mean(correctly_rounded(errors)) >= 0.99999
        assert errors.max() <= 0.501
    assert ulp_errors(loss(x, t, reduction="none").loss, values, "float64").max() <= 2
    with mpmath.workprec(300):
        exact = mpmath.fsum(
            mpmath.mpf(float(h)) + mpmath.ldexp(low, -int(s)) for h, low, s in zip(*values, strict=True)
        )
    assert ulp_errors(result.loss, pairs(exact), "float64") <= 2
    assert ulp_errors(loss(x, t).loss, pairs(exact / len(x)), "float64") <= 2


def test_tiny_terms_and_huge_weights_keep_their_digits():
    x = np.float32([-80.0, -30.0, 25.0, 60.0])
    t, weight = np.float32([0, 0, 1, 1]), np.float32([1e30, 1e-30, 1e38, 3e-38])
    with mpmath.workprec(400):
        true = pairs(
            [mpmath.mpf(float(w)) * softplus(-abs(mpmath.mpf(float(a)))) for a, w in zip(x, weight, strict=True)]
        )
        slope = pairs(
            [
                mpmath.mpf(float(w)) * (sigmoid(mpmath.mpf(float(a))) - mpmath.mpf(float(b)))
                for a, b, w in zip(x, t, weight, strict=True)
            ]
        )
    result = refloss.bce_with_logits(x, t, weight, reduction="none")
    assert ulp_errors(result.loss, true, "float64").max() <= 2
    assert ulp_errors(result.grads["logits"], slope, "float32").max() <= 0.501


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {"reduction": reduction}) for name in DEFINITIONS for reduction in ("mean", "sum", "none")),
    *(
        (name, {"weight": "full", "reduction": reduction})
        for name in ("mse", "l1", "huber")
        for reduction in ("mean", "none")
    ),
    ("smooth_l1", {"beta": 0.3}),
    ("huber", {"delta": 0.4}),
    ("bce", {"weight": "row"}),
    ("bce_with_logits", {"weight": "row", "pos_weight": "row"}),
    ("bce_with_logits", {"pos_weight": "full", "reduction": "none"}),
    ("kl_div", {"reduction": "batchmean"}),
    ("kl_div", {"log_target": True}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_gradients_are_derivatives(name, options):
    generator = np.random.default_rng(0)
    shape = (3, 5)
    x, t = generator.standard_normal(shape), generator.standard_normal(shape)
    if name in ("bce", "bce_with_logits", "kl_div") and not options.get("log_target"):
        t = generator.uniform(0.35, 0.65, shape)
    if name == "bce":
        x = generator.uniform(0.35, 0.65, shape)
    weights = {"full": generator.uniform(0.5, 2, shape), "row": generator.uniform(0.5, 2, 5)}
    given = {key: weights[value] if value in ("full", "row") else value for key, value in options.items()}
    grad_output = generator.standard_normal(shape) if options.get("reduction") == "none" else -1.7
    loss = getattr(refloss, name)
    result = loss(x, t, grad_output=grad_output, **given)

    # The fourth derivative of a logarithm near a third is large.
    tolerance = 20 * TOLERANCE if name == "bce" else TOLERANCE

    def contracted(a, b, **changed):
        return np.sum(grad_output * loss(a, b, grad=False, **given | changed).loss)

    first, second = list(result.grads)[:2]
    np.testing.assert_allclose(result.grads[first], fourth_order(lambda a: contracted(a, t), x), rtol=0, atol=tolerance)
    np.testing.assert_allclose(
        result.grads[second], fourth_order(lambda b: contracted(x, b), t), rtol=0, atol=tolerance
    )
    if "weight" in result.grads:
        expected = fourth_order(lambda w: contracted(x, t, weight=w), given["weight"])
        np.testing.assert_allclose(result.grads["weight"], expected, rtol=0, atol=tolerance)
    assert ("weight" in result.grads) == (name in ("mse", "l1", "huber") and "weight" in given)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_threads_blocks_order_and_layout_do_not_show(name, monkeypatch):
    from refloss.kernels.elementwise import run

    x, t = (array.reshape(20, 30) for array in inputs_of(name, 600, np.float32))
    loss = getattr(refloss, name)
    expected = bits(loss(x, t, grad_output=1.3))
    threads = refloss.get_num_threads()
    for count, block in ((1, 7), (3, 64), (2, 1 << 18)):
        monkeypatch.setattr(run, "BLOCK_ELEMENTS", block)
        refloss.set_num_threads(count)
        assert bits(loss(x, t, grad_output=1.3)) == expected
    refloss.set_num_threads(threads)
    order = np.random.default_rng(1).permutation(600)
    permuted = loss(x.ravel()[order], t.ravel()[order], grad_output=1.3)
    assert permuted.loss == loss(x, t).loss
    for layout, view in list(layouts(x)):
        assert bits(loss(view, t, grad_output=1.3)) == expected, layout
    for layout, view in layouts(t):
        assert bits(loss(x, view, grad_output=1.3)) == expected, layout


@pytest.mark.parametrize("name", DEFINITIONS)
def test_no_elements(name):
    loss = getattr(refloss, name)
    empty = np.zeros((0, 3))
    assert np.isnan(loss(empty, empty).loss)
    assert loss(empty, empty, reduction="sum").loss == 0.0
    assert loss(empty, empty, reduction="none").loss.shape == (0, 3)
    assert all(gradient.shape == (0, 3) for gradient in loss(empty, empty).grads.values())


@pytest.mark.parametrize("name", ["mse", "l1", "smooth_l1", "huber", "bce_with_logits", "kl_div"])
def test_values_that_are_not_finite_follow_the_float_rules(name):
    loss = getattr(refloss, name)
    t = np.array([0.5, 0.25, 1.0])
    assert np.isnan(loss(np.array([0.0, np.nan, 1.0]), t).loss)
    rows = loss(np.array([0.0, -np.inf, 1.0]), t, reduction="none").loss
    assert np.isinf(rows[1])
    assert np.all(np.isfinite(rows[[0, 2]]))
    assert np.isinf(loss(np.array([0.0, -np.inf, 1.0]), t).loss)


def test_kinks_have_torchs_subgradients():
    zero = np.zeros(3)
    assert np.array_equal(refloss.l1(zero, zero).grads["input"], zero)
    ends = np.array([1.0, -1.0, 0.0])
    for loss in (refloss.smooth_l1, refloss.huber):
        assert np.array_equal(loss(ends, zero, reduction="sum").grads["input"], ends)
    assert np.array_equal(refloss.smooth_l1(ends, zero, beta=0.0, reduction="sum").grads["input"], ends)


def test_bce_is_clamped_and_its_gradient_is_not():
    x, t = np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])
    result = refloss.bce(x, t, reduction="none")
    assert np.array_equal(result.loss, [100.0, 100.0, 0.0])
    assert np.array_equal(result.grads["input"], [-1e12, 1e12, 0.0])
    assert np.array_equal(result.grads["target"], [np.inf, -np.inf, np.inf])


def test_kl_div_of_a_target_of_zero():
    result = refloss.kl_div(np.array([-1.0]), np.array([0.0]), reduction="sum")
    assert result.loss == 0.0
    assert np.isnan(result.grads["target"][0])


BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("mse", {"target": np.zeros(3)}, ValueError, r"target has shape \(3,\); expected \(2,\), the shape of input"),
    ("mse", {"input": np.zeros(2, int)}, TypeError, "input has dtype int64; expected float64"),
    ("mse", {"target": np.zeros(2, bool)}, TypeError, "target has dtype bool"),
    ("mse", {"weight": np.zeros(3)}, ValueError, r"weight has shape \(3,\); expected \(2,\), the shape of input"),
    ("mse", {"reduction": "batchmean"}, ValueError, "reduction is 'batchmean'"),
    ("mse", {"grad_output": np.zeros(2)}, ValueError, r"grad_output has shape \(2,\)"),
    ("mse", {"grad_dtype": "int8"}, TypeError, "grad_dtype is int8"),
    ("mse", {"out": np.zeros(3)}, ValueError, r"out has shape \(3,\); expected \(2,\), the shape of input"),
    ("mse", {"backend": "cuda"}, RuntimeError, "backend='cuda'"),
    ("l1", {"weight": np.zeros(3)}, ValueError, "weight has shape"),
    ("huber", {"delta": 0.0}, ValueError, "delta is 0.0; expected a positive number"),
    ("huber", {"delta": np.nan}, ValueError, "delta is nan"),
    ("huber", {"delta": "wide"}, TypeError, "delta is 'wide'"),
    ("smooth_l1", {"beta": -1.0}, ValueError, "beta is -1.0; expected a number of at least 0"),
    ("bce", {"input": np.array([0.5, 1.5])}, ValueError, r"input\[1\] = 1.5 is outside \[0, 1\]"),
    ("bce", {"target": np.array([np.nan, 0.5])}, ValueError, r"target\[0\] = nan is outside \[0, 1\]"),
    ("bce", {"weight": np.zeros(3)}, ValueError, r"weight has shape \(3,\); expected one that broadcasts to \(2,\)"),
    ("bce_with_logits", {"pos_weight": np.zeros(3)}, ValueError, "pos_weight has shape"),
    ("bce_with_logits", {"target": np.zeros((2, 1))}, ValueError, r"target has shape \(2, 1\); expected \(2,\)"),
    ("kl_div", {"target": np.zeros((1, 2))}, ValueError, "target has shape"),
    ("kl_div", {"reduction": "average"}, ValueError, "expected one of 'mean', 'batchmean', 'sum', 'none'"),
    ("nll", {"input": np.zeros((2, 3)), "target": [0, 3]}, ValueError, r"target\[1\] = 3 is outside \[0, 3\)"),
    ("nll", {"input": np.zeros((2, 3)), "target": [0, 1, 2]}, ValueError, "target has shape"),
    ("nll", {"input": np.zeros(()), "target": 0}, ValueError, r"input has shape \(\)"),
    ("nll", {"input": np.zeros((2, 3)), "target": [0, 1], "weight": np.ones(2)}, ValueError, "weight has shape"),
]


@pytest.mark.parametrize(("name", "arguments", "error", "message"), BAD, ids=str)
def test_bad_input(name, arguments, error, message):
    first = "logits" if name == "bce_with_logits" else "input"
    with pytest.raises(error, match=message):
        getattr(refloss, name)(**{first: np.full(2, 0.5), "target": np.full(2, 0.5)} | arguments)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nll_of_log_probabilities_is_cross_entropy(reduction, dtype):
    generator = np.random.default_rng(3)
    logits = generator.standard_normal((6, 5, 2))
    labels = generator.integers(5, size=(6, 2))
    labels[2] = -100
    weight = generator.uniform(0.5, 2, 5)
    options = {"weight": weight, "reduction": reduction, "grad_output": -2.0}
    cross = refloss.cross_entropy(logits, labels, **options)
    log_p = logits - refloss.cross_entropy(logits, labels).intermediates["lse"][:, None]
    result = refloss.nll(log_p, labels, grad_dtype=dtype, **options)
    np.testing.assert_allclose(result.loss, cross.loss, rtol=1e-14)
    gradient = result.grads["input"].astype(float)
    rows, places = np.nonzero(labels >= 0)
    divisor = weight[labels[labels >= 0]].sum() if reduction == "mean" else 1.0
    expected = np.zeros_like(gradient)
    expected[rows, labels[rows, places], places] = (2.0 * weight / divisor)[labels[rows, places]]
    assert np.array_equal(gradient, expected.astype(DTYPES[dtype]).astype(float))


@pytest.mark.parametrize("name", DEFINITIONS)
def test_gradients_by_name(name):
    x, t = inputs_of(name, 50, np.float32)
    everything = getattr(refloss, name)(x, t, grad_output=-1.5).grads
    for asked in (*everything, [*everything][::-1], (), True, np.True_, False, np.False_):
        grads = getattr(refloss, name)(x, t, grad_output=-1.5, grad=asked).grads
        names = [asked] if isinstance(asked, str) else asked
        expected = set(names) if isinstance(names, list | tuple) else set(everything if asked else ())
        assert set(grads) == expected
        for key, gradient in grads.items():
            assert gradient.tobytes() == everything[key].tobytes()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", ["mse", "l1", "huber"])
def test_gradients_of_weights_by_name(name, reduction):
    x, t = inputs_of(name, 50, np.float32)
    weight = np.random.default_rng(0).uniform(0.5, 2, 50)
    loss = getattr(refloss, name)
    everything = loss(x, t, weight=weight, reduction=reduction)
    for asked in ("weight", ["target", "weight"]):
        result = loss(x, t, weight=weight, reduction=reduction, grad=asked)
        assert set(result.grads) == {"weight", *([] if isinstance(asked, str) else asked)}
        assert all(gradient.tobytes() == everything.grads[key].tobytes() for key, gradient in result.grads.items())
        assert np.array_equal(result.loss, everything.loss)


def test_a_buffer_is_left_alone_where_its_gradient_is_not_asked_for():
    out = np.full(3, 7.0)
    assert set(refloss.mse(np.ones(3), np.zeros(3), grad="target", out=out).grads) == {"target"}
    assert (out == 7.0).all()
    assert refloss.mse(np.ones(3), np.zeros(3), grad="input", out=out).grads["input"] is out


@pytest.mark.parametrize("asked", ["weight", "Input", ["input", "nobody"]])
def test_a_gradient_that_does_not_exist_is_an_error(asked):
    with pytest.raises(ValueError, match=r"grad is '(weight|Input|nobody)'; expected one of 'input', 'target'"):
        refloss.mse(np.ones(3), np.ones(3), grad=asked)


@pytest.mark.parametrize("asked", [None, 1, 0.5, b"input"])
def test_gradients_are_asked_for_by_a_bool_or_by_names(asked):
    with pytest.raises(TypeError, match=r"grad is .* of type \w+; expected a bool, a name or several names"):
        refloss.mse(np.ones(3), np.ones(3), grad=asked)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_losses_are_computed_when_asked_for(name, reduction):
    x, t = inputs_of(name, 60, np.float32)
    result = getattr(refloss, name)(x.reshape(3, 20), t.reshape(3, 20), reduction=reduction)
    assert "losses" in result.intermediates
    assert "losses" not in result.intermediates.computed()
    expected = getattr(refloss, name)(x.reshape(3, 20), t.reshape(3, 20), reduction="none").loss
    assert result.intermediates["losses"].tobytes() == expected.tobytes()
    assert result.intermediates["losses"].shape == (3, 20)
    assert "losses" in result.intermediates.computed()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mse", {"weight": 60}),
        ("huber", {"weight": 60, "delta": 0.4}),
        ("bce", {"weight": 1}),
        ("bce_with_logits", {"weight": 60, "pos_weight": 1}),
        ("kl_div", {"reduction": "batchmean"}),
    ],
    ids=str,
)
def test_losses_when_asked_for_have_every_option(name, options):
    x, t = inputs_of(name, 60, np.float32)
    generator = np.random.default_rng(0)
    given = {key: generator.random(value) if isinstance(value, int) else value for key, value in options.items()}
    result = getattr(refloss, name)(x, t, grad_output=-3.0, **given)
    gradients = {key: gradient.copy() for key, gradient in result.grads.items()}
    expected = getattr(refloss, name)(x, t, **given | {"reduction": "none"}).loss
    assert result.intermediates["losses"].tobytes() == expected.tobytes()
    assert all(np.array_equal(result.grads[key], gradient) for key, gradient in gradients.items())


@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_probabilities_of_logits(dtype):
    x, t = inputs_of("bce_with_logits", 600, DTYPES.get(dtype, np.float64))
    with mpmath.workprec(3200):
        true = pairs([sigmoid(mpmath.mpf(float(a))) for a in x])
    found = refloss.bce_with_logits(x.reshape(20, 30).T, t.reshape(20, 30).T).intermediates["probabilities"]
    assert ulp_errors(found.T.reshape(-1), true, "float64").max() <= 1.5
    ends = refloss.bce_with_logits([-np.inf, np.inf, np.nan], [0.0, 1.0, 0.0], reduction="sum")
    assert np.array_equal(ends.intermediates["probabilities"], [0.0, 1.0, np.nan], equal_nan=True)
    with pytest.raises(KeyError, match="nothing"):
        ends.intermediates["nothing"]


def agreeing(dtype, factor):
    """Logits, and targets for which the slope is 0 but for their rounding."""
    generator = np.random.default_rng(3)
    scale = generator.choice([0.3, 3.0, 8.0, 40.0, 1e-30], 20_000)
    x = np.concatenate([generator.standard_normal(20_000) * scale, [0.0, 1e-45, -1e-45, 1e-38]]).astype(dtype)
    with np.errstate(over="ignore"):
        return x, 1 / (1 + factor * np.exp(-x.astype(np.float64)))


def slope(x, t, factor):
    with mpmath.workprec(400):
        numbers = [(mpmath.mpf(float(a)), mpmath.mpf(float(b))) for a, b in zip(x, t, strict=True)]
        terms = [((1 - b) * sigmoid(a), factor * b * sigmoid(-a)) for a, b in numbers]
        return pairs([a - b for a, b in terms]), pairs([max(pair) for pair in terms])


@pytest.mark.parametrize("factor", [1.0, 2.5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_soft_target_that_is_nearly_the_probability(dtype, factor):
    x, t = agreeing(DTYPES[dtype], factor)
    t = t.astype(DTYPES[dtype])
    true, _ = slope(x, t, factor)
    pos_weight = None if factor == 1.0 else factor
    for output in DTYPES:
        gradient = refloss.bce_with_logits(
            x, t, pos_weight=pos_weight, reduction="sum", grad="logits", grad_dtype=DTYPES[output]
        ).grads["logits"]
        errors = ulp_errors(gradient, true, output)
        assert np.mean(correctly_rounded(errors)) >= 0.99999
        assert errors.max() <= 0.501


@pytest.mark.parametrize("factor", [1.0, 2.5])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_digits_of_a_float64_gradient_where_a_soft_target_is_nearly_the_probability(dtype, factor):
    x, t = agreeing(dtype, factor)
    t = t.astype(dtype)
    true, terms = slope(x, t, factor)
    gradient = refloss.bce_with_logits(
        x, t, pos_weight=np.float64(factor), reduction="sum", grad="logits", grad_dtype="float64"
    ).grads["logits"]
    errors = np.abs((gradient - true.high) - np.ldexp(true.low, -true.shift))
    # Where less than 2^-18 of the terms is left, it is computed again.
    again = np.abs(true.high) < 2.0**-18 * terms.high
    assert again.sum() > 1000
    assert (errors <= 2.0**-52 * np.abs(true.high) + 2.0**-104 * terms.high)[again].all()
    assert (errors <= 2.0**-36 * np.abs(true.high))[~again].all()


@pytest.mark.parametrize("weighted", [False, True])
def test_float64_gradients_of_hard_targets_are_within_two_ulp(weighted):
    generator = np.random.default_rng(8)
    x = generator.standard_normal(8000) * generator.choice([0.5, 3.0, 20.0, 200.0], 8000)
    t, cotangent = generator.integers(2, size=8000), generator.standard_normal(8000)
    weight = generator.uniform(0.1, 3, 8000) if weighted else np.ones(8000)
    with mpmath.workprec(200):
        logits = [mpmath.mpf(float(a)) for a in x]
        slopes = [-sigmoid(-a) if b else sigmoid(a) for a, b in zip(logits, t, strict=True)]
        factors = [mpmath.mpf(float(w)) * mpmath.mpf(float(c)) for w, c in zip(weight, cotangent, strict=True)]
        each = pairs([a * b for a, b in zip(slopes, factors, strict=True)])
        alike = pairs([mpmath.mpf(-1.7) * a / 8000 for a in slopes])
    given = weight if weighted else None
    result = refloss.bce_with_logits(x, t.astype(float), given, reduction="none", grad_output=cotangent)
    # The promise is 2; a rounding between the factors would exceed 1.5.
    assert ulp_errors(result.grads["logits"], each, "float64").max() <= 1.5
    result = refloss.bce_with_logits(x, t.astype(float), grad_output=-1.7)
    assert ulp_errors(result.grads["logits"], alike, "float64").max() <= 1.5


@pytest.mark.parametrize("exponents", [(0, 40, 90, -90, 0), (900, -900, 0, 1000, -1000), (-1070, 5, -1070, 500, 500)])
def test_a_sum_is_exact_whatever_the_blocks_before_were_like(exponents):
    # The grids of a block are those of the block before it, as far as they fit.
    generator = np.random.default_rng(1)
    blocks = [np.ldexp(generator.integers(1, 2**30, 2048).astype(float), exponent - 30) for exponent in exponents]
    x = np.concatenate([*blocks, *blocks[::-1], blocks[0][:100]])
    assert refloss.l1(x, np.zeros_like(x), reduction="sum").loss == float(sum(map(Fraction, x.tolist())))
