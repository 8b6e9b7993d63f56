"""Cross-entropy of a linear layer's outputs: blocks, rows that do not count, edges, and the loss of its logits."""

import itertools

import ml_dtypes
import numpy as np
import pytest

import refloss
from refloss.kernels.linear import run
from tests.test_derivatives import TOLERANCE, fourth_order
from tests.test_products import logits_of

EVERYTHING = {"softcap": 3.0, "temperature": 0.7, "z_loss": 0.01, "label_smoothing": 0.1}


def layer(seed=1, rows=7, features=12, classes=19, dtype=np.float32, **given):
    random = np.random.default_rng(seed)
    inputs = {
        "input": random.standard_normal((rows, features)).astype(dtype),
        "linear_weight": random.standard_normal((classes, features)).astype(dtype),
        "target": random.integers(0, classes, rows),
        "linear_bias": random.standard_normal(classes).astype(dtype),
    }
    return inputs | given


def bits(result):
    arrays = {"loss": result.loss, **result.grads, **result.components, **result.intermediates.computed()}
    return {name: np.asarray(value).tobytes() for name, value in arrays.items()}


def soft_target(seed, rows, classes, dtype=np.float32):
    values = np.random.default_rng(seed).random((rows, classes)) + 0.01
    return (values / values.sum(axis=1, keepdims=True)).astype(dtype)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("sizes", [(7, 4, 3, 2), (2, 5, 3, 4), (1, 1, 1, 1), (3, 19, 7, 19)])
def test_bits_depend_on_no_blocks(monkeypatch, soft, sizes):
    inputs = layer() | ({"target": soft_target(2, 7, 19)} if soft else {})
    given = {"weight": np.linspace(0.5, 2, 19), "reduction": "none", "grad_output": np.linspace(-2, 3, 7)}
    expected = bits(refloss.linear_cross_entropy(**inputs, **given, **EVERYTHING))
    monkeypatch.setattr(run, "sizes_of", lambda _: run.Sizes(*sizes))
    assert bits(refloss.linear_cross_entropy(**inputs, **given, **EVERYTHING)) == expected


def test_bits_depend_on_no_threads():
    inputs = layer(rows=40, features=64, classes=300)
    before = refloss.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            refloss.set_num_threads(threads)
            found.append(bits(refloss.linear_cross_entropy(**inputs, z_loss=0.1)))
    finally:
        refloss.set_num_threads(before)
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
def test_logits_that_are_written_down_have_the_loss_that_cross_entropy_has_of_them(name):
    """The gradients are sums of products with those of the logits, which go through as they are."""
    inputs = layer(dtype=ml_dtypes.bfloat16)
    given = {"label_smoothing": 0.1, "temperature": 0.7, "reduction": "none", "grad_output": np.linspace(-2, 3, 7)}
    result = refloss.linear_cross_entropy(**inputs, logits_dtype=name, **given)
    x, w = (inputs[key].astype(np.float64) for key in ("input", "linear_weight"))
    logits = (x @ w.T + inputs["linear_bias"].astype(np.float64)).astype(name)
    whole = refloss.cross_entropy(logits.astype(np.float64), inputs["target"], **given)
    assert np.array_equal(result.loss, whole.loss)
    g = whole.grads["logits"]
    for key, value in {"input": g @ w, "linear_weight": g.T @ x, "linear_bias": g.sum(axis=0)}.items():
        assert np.array_equal(result.grads[key], value.astype(ml_dtypes.bfloat16)), key


@pytest.mark.parametrize("options", [{}, EVERYTHING])
def test_exact_logits_have_the_loss_that_cross_entropy_has_of_them(options):
    """Small integers, whose products are exact in any order."""
    random = np.random.default_rng(3)
    x, w = random.integers(-4, 5, (9, 6)).astype(np.float32), random.integers(-4, 5, (11, 6)).astype(np.float32)
    labels = np.where(np.arange(9) % 4 == 1, -100, random.integers(0, 11, 9))
    result = refloss.linear_cross_entropy(x, w, labels, **options)
    whole = refloss.cross_entropy(x @ w.T, labels, grad_dtype=np.float64, **options)
    assert abs(result.loss - whole.loss) <= np.spacing(whole.loss)
    assert np.allclose(result.grads["input"], whole.grads["logits"] @ w, rtol=1e-6, atol=1e-12)
    assert result.intermediates["lse"] == pytest.approx(whole.intermediates["lse"], rel=1e-15)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("sizes", [None, (2, 5, 3, 4)])
def test_rows_that_do_not_count_may_hold_anything(monkeypatch, poison, sizes):
    inputs = layer()
    labels = np.where(np.arange(7) % 3 == 1, -100, inputs["target"])
    clean = refloss.linear_cross_entropy(**inputs | {"target": labels})
    poisoned = inputs["input"].copy()
    poisoned[labels < 0] = poison
    if sizes:
        monkeypatch.setattr(run, "sizes_of", lambda _: run.Sizes(*sizes))
    result = refloss.linear_cross_entropy(**inputs | {"target": labels, "input": poisoned})
    assert result.loss == clean.loss
    for name, gradient in clean.grads.items():
        assert np.array_equal(result.grads[name], gradient), name
    assert not result.grads["input"][labels < 0].any()


def test_a_row_that_counts_and_is_undefined_makes_what_it_is_part_of_undefined():
    inputs = layer()
    inputs["input"][2, 3] = np.nan
    result = refloss.linear_cross_entropy(**inputs, reduction="none")
    undefined = np.arange(7) == 2
    assert np.array_equal(np.isnan(result.loss), undefined)
    assert np.array_equal(np.isnan(result.grads["input"]).all(axis=1), undefined)
    assert np.isnan(result.grads["linear_weight"]).all()
    assert np.isnan(result.grads["linear_bias"]).all()


def test_a_class_that_a_bias_masks_has_no_gradient():
    inputs = layer()
    inputs["linear_bias"][5] = -np.inf
    inputs["target"][inputs["target"] == 5] = 6
    result = refloss.linear_cross_entropy(**inputs)
    assert np.isfinite(result.loss)
    assert not result.grads["linear_weight"][5].any()
    others = {name: inputs[name] for name in ("linear_weight", "linear_bias")}
    without = inputs | {name: np.delete(value, 5, axis=0) for name, value in others.items()}
    without["target"] = inputs["target"] - (inputs["target"] > 5)
    assert np.array_equal(result.grads["input"], refloss.linear_cross_entropy(**without).grads["input"])


def test_without_a_row_that_counts_the_mean_is_undefined_and_gradients_are_zero():
    inputs = layer(target=np.full(7, -100))
    result = refloss.linear_cross_entropy(**inputs)
    assert np.isnan(result.loss)
    assert all(not gradient.any() for gradient in result.grads.values())


@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_to_multiply(rows):
    inputs = layer(rows=rows, features=0)
    result = refloss.linear_cross_entropy(**inputs, reduction="sum")
    logits = np.broadcast_to(inputs["linear_bias"], (rows, 19))
    assert result.loss == refloss.cross_entropy(logits, inputs["target"], reduction="sum").loss
    assert result.grads["linear_weight"].shape == (19, 0)


def test_one_row_is_a_batch_of_one():
    inputs = layer(rows=1)
    batch = refloss.linear_cross_entropy(**inputs)
    alone = refloss.linear_cross_entropy(**inputs | {"input": inputs["input"][0], "target": inputs["target"][0]})
    assert alone.loss == batch.loss
    assert alone.grads["input"].shape == (12,)
    assert np.array_equal(alone.grads["input"], batch.grads["input"][0])
    assert np.array_equal(alone.grads["linear_weight"], batch.grads["linear_weight"])
    soft = soft_target(4, 1, 19)
    batch = refloss.linear_cross_entropy(**inputs | {"target": soft})
    alone = refloss.linear_cross_entropy(**inputs | {"input": inputs["input"][0], "target": soft[0]})
    assert np.array_equal(alone.grads["target"], batch.grads["target"][0])


@pytest.mark.parametrize("sizes", [(7, 57, 7, 19), (2, 5, 3, 4), (1, 1, 1, 1)])
def test_places_have_a_softmax_each(monkeypatch, sizes):
    """As so many layers, whose gradients of the input add up; a place that does not count sees no row."""
    random = np.random.default_rng(5)
    w, bias = random.standard_normal((19, 3, 12)).astype(np.float32), random.standard_normal((19, 3)).astype(np.float32)
    labels, cotangent = random.integers(0, 19, (7, 3)), random.standard_normal((7, 3))
    labels[2, 1], labels[4] = -100, -100
    inputs = layer(linear_weight=w, linear_bias=bias, target=labels)
    inputs["input"][4] = np.nan
    given = {"reduction": "none", "z_loss": 0.1, "weight": np.linspace(0.5, 2, 19)}
    monkeypatch.setattr(run, "sizes_of", lambda _: run.Sizes(*sizes))
    whole = refloss.linear_cross_entropy(**inputs, **given, grad_output=cotangent)
    parts = [
        refloss.linear_cross_entropy(
            **inputs | {"linear_weight": w[:, p], "linear_bias": bias[:, p], "target": labels[:, p]},
            **given,
            grad_output=cotangent[:, p],
            grad_dtype=np.float64,
        )
        for p in range(3)
    ]
    assert np.array_equal(whole.loss, np.stack([part.loss for part in parts], axis=1))
    for name in ("linear_weight", "linear_bias"):
        assert np.array_equal(whole.grads[name], np.stack([part.grads[name] for part in parts], axis=1)), name
        assert whole.grads[name].flags.c_contiguous
    assert np.array_equal(whole.grads["input"], sum(part.grads["input"] for part in parts).astype(np.float32))


def test_a_row_that_does_not_count_at_a_place_does_not_reach_its_weights():
    inputs = layer(linear_weight=np.ones((19, 2, 12), np.float32), linear_bias=None, target=np.ones((7, 2), int))
    inputs["input"][3], inputs["target"][3, 1] = np.nan, -100
    gradient = refloss.linear_cross_entropy(**inputs).grads["linear_weight"]
    assert np.isnan(gradient[:, 0]).all()
    assert np.isfinite(gradient[:, 1]).all()


def test_no_places_are_no_losses():
    inputs = layer(linear_weight=np.ones((19, 0, 12)), linear_bias=np.ones((19, 0)), target=np.zeros((7, 0), int))
    result = refloss.linear_cross_entropy(**inputs, reduction="none")
    assert result.loss.shape == (7, 0)
    assert not result.grads["input"].any()
    assert result.grads["linear_weight"].shape == (19, 0, 12)


def test_rows_add_up_and_only_what_is_asked_for_is_computed():
    inputs = layer()
    whole = refloss.linear_cross_entropy(**inputs, reduction="sum")
    parts = [
        refloss.linear_cross_entropy(
            **inputs | {"input": inputs["input"][rows], "target": inputs["target"][rows]}, reduction="sum"
        )
        for rows in (slice(0, 3), slice(3, 7))
    ]
    assert np.array_equal(np.concatenate([part.grads["input"] for part in parts]), whole.grads["input"])
    added = sum(part.grads["linear_weight"].astype(np.float64) for part in parts)
    assert np.allclose(added, whole.grads["linear_weight"], rtol=1e-6, atol=1e-7)
    for names in (False, "input", ("linear_weight",), ("linear_bias",)):
        result = refloss.linear_cross_entropy(**inputs, reduction="sum", grad=names)
        assert result.loss == whole.loss
        assert all(np.array_equal(gradient, whole.grads[name]) for name, gradient in result.grads.items())
        assert set(result.grads) == (set() if names is False else {names} if isinstance(names, str) else {*names})


def test_components_have_cotangents_of_their_own():
    inputs = layer()
    result = refloss.linear_cross_entropy(**inputs, z_loss=0.5, grad_output={"z_loss": 2.0})
    whole = refloss.linear_cross_entropy(**inputs, z_loss=0.5, grad_output=2.0)
    plain = refloss.linear_cross_entropy(**inputs, grad_output=2.0)
    assert whole.loss == pytest.approx(sum(result.components.values()), rel=1e-15)
    difference = whole.grads["input"].astype(np.float64) - plain.grads["input"]
    assert np.allclose(result.grads["input"], difference, rtol=1e-5, atol=1e-6)


def test_memory_beside_inputs_and_gradients_is_bounded():
    """No block takes more than its budget; one row or one class is the least that there is."""

    def sizes(rows, features, classes):
        task = run.LinearTask(
            None, np.broadcast_to(np.float32(0), (rows, features)), np.broadcast_to(np.float32(0), (classes, features)),
            np.empty(0), None, None, None, None,
        )  # fmt: skip
        return run.sizes_of(task)

    for rows, features, classes in ((256, 2048, 32000), (8192, 4096, 128256), (100000, 64, 1000), (1 << 24, 8, 9)):
        found = sizes(rows, features, classes)
        assert found.rows * classes * 16 <= run.BUDGET
        assert found.columns * min(rows, max(1, run.BUDGET // 16)) * 16 <= 4 * run.BUDGET
        assert (found.classes * features * 44) <= run.SLICES_BUDGET
    assert sizes(3, 2, 1 << 26) == (1, 1024, 3, 256)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"input": np.zeros((2, 3, 4))}, ValueError, r"input has shape \(2, 3, 4\); expected \[N, K\] or \[K\]"),
        ({"linear_weight": np.zeros((19, 5))}, ValueError, r"linear_weight has shape \(19, 5\); expected \[V, K\]"),
        ({"linear_weight": np.zeros((19, 2, 12))}, ValueError, r"linear_bias has shape \(19,\); expected \(19, 2\)"),
        ({"input": np.zeros(12), "linear_weight": np.zeros((19, 2, 12))}, ValueError, r"linear_weight has shape"),
        ({"linear_bias": np.zeros(3)}, ValueError, r"linear_bias has shape \(3,\); expected \(19,\)"),
        ({"target": np.full(7, 19)}, ValueError, r"target\[0\] = 19 is outside \[0, 19\)"),
        ({"target": np.zeros(6, int)}, ValueError, r"target has shape \(6,\); expected \(7,\)"),
        ({"target": np.zeros((7, 19), int)}, TypeError, r"expected probabilities of a float dtype"),
        ({"logits_dtype": "float8"}, ValueError, r"logits_dtype is 'float8'; expected one of 'bfloat16'"),
        ({"logits_dtype": np.float64}, ValueError, r"logits_dtype is"),
        ({"label_smoothing": 2}, ValueError, r"label_smoothing is 2.0"),
        ({"softcap": 0}, ValueError, r"softcap is 0"),
        ({"grad": "weight"}, ValueError, r"grad is 'weight'; expected one of"),
        ({"input": np.zeros((7, 12), int)}, TypeError, r"input has dtype int64"),
    ],
)
def test_what_does_not_fit_is_told(given, error, message):
    with pytest.raises(error, match=message):
        refloss.linear_cross_entropy(**layer() | given)


def test_progress_is_told_by_blocks_of_classes_too(monkeypatch):
    from refloss import parallel

    monkeypatch.setattr(run, "sizes_of", lambda _: run.Sizes(2, 5, 3, 4))
    told = []
    with parallel.progress(lambda done, total: told.append((done, total))):
        refloss.linear_cross_entropy(**layer())
    totals = {total for _, total in told}
    assert len(totals) == 1
    assert sum(done for done, _ in told) == totals.pop() == 4 * 4 * 2 + 5


def test_logits_are_those_of_the_products():
    inputs = layer(dtype=np.float64)
    z = logits_of(inputs["input"], inputs["linear_weight"], bias=inputs["linear_bias"])[0]
    lse = refloss.cross_entropy(z, inputs["target"]).intermediates["lse"]
    assert np.allclose(refloss.linear_cross_entropy(**inputs).intermediates["lse"], lse, rtol=3e-16)


CHOICES = {
    "target": ["labels", "ignored", "probabilities"],
    "places": [(), (2,)],
    "reduction": ["mean", "sum", "none"],
    "weight": [None, np.linspace(0.5, 2, 4)],
    "label_smoothing": [0.0, 0.3],
    "logit_scale": [1.0, -0.7],
    "softcap": [None, 1.5],
    "temperature": [1.0, 0.6],
    "z_loss": [0.0, 0.2],
}


def pairs_of_choices():
    """Every pair of choices, beside the first of all others."""
    first = {name: values[0] for name, values in CHOICES.items()}
    for one, other in itertools.combinations(CHOICES, 2):
        for values in itertools.product(CHOICES[one][1:], CHOICES[other][1:]):
            yield pytest.param(first | dict(zip((one, other), values, strict=True)), id=f"{one} {other}")


@pytest.mark.parametrize("choice", list(pairs_of_choices()))
def test_gradients_are_derivatives(choice):
    random = np.random.default_rng(0)
    target, places, options = choice["target"], choice["places"], dict(choice)
    del options["target"], options["places"]
    inputs = {
        "input": random.standard_normal((3, 2)),
        "linear_weight": random.standard_normal((4, *places, 2)),
        "linear_bias": random.standard_normal((4, *places)),
        "target": random.integers(0, 4, (3, *places)),
    }
    if target == "ignored":
        inputs["target"][1] = -100
    if target == "probabilities":
        values = random.random((3, 4, *places)) + 0.1
        inputs["target"] = values / values.sum(axis=1, keepdims=True)
    cotangent = random.standard_normal((3, *places)) if options["reduction"] == "none" else -1 / 3
    result = refloss.linear_cross_entropy(**inputs, **options, grad_output=cotangent)
    assert result.grads.keys() == inputs.keys() - ({"target"} if target != "probabilities" else set())
    for name, gradient in result.grads.items():

        def loss(x, name=name):
            value = refloss.linear_cross_entropy(**inputs | {name: x}, **options, grad=False).loss
            return np.sum(cotangent * value)

        expected = fourth_order(loss, inputs[name])
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("wanted", ["input", "linear_weight", ("input", "linear_bias")])
@pytest.mark.parametrize("sizes", [(7, 19, 7, 19), (2, 5, 3, 4)])
def test_a_target_whose_gradient_is_not_asked_for_is_only_read(monkeypatch, wanted, sizes):
    monkeypatch.setattr(run, "sizes_of", lambda _: run.Sizes(*sizes))
    target = soft_target(3, 7, 19)
    before = target.copy()
    target.flags.writeable = False
    inputs = layer(target=target)
    everything = refloss.linear_cross_entropy(**inputs)
    some = refloss.linear_cross_entropy(**inputs, grad=wanted)
    assert np.array_equal(target, before)
    assert some.loss == everything.loss
    for name, gradient in some.grads.items():
        assert np.array_equal(gradient, everything.grads[name])
    spread = np.broadcast_to(target[:1], (7, 19))
    assert (
        refloss.linear_cross_entropy(**inputs | {"target": spread}, grad=wanted).loss
        == refloss.linear_cross_entropy(**inputs | {"target": spread.copy()}, grad=wanted).loss
    )


@pytest.mark.parametrize("poison", [np.inf, -np.inf, np.nan])
def test_weights_that_are_no_numbers_do_not_reach_rows_that_do_not_count(poison):
    inputs = layer(target=np.array([-100, 1, -100, 2, 3, -100, 4]))
    inputs["linear_weight"][5, 3] = poison
    gradient = refloss.linear_cross_entropy(**inputs).grads["input"]
    assert np.array_equal(gradient[[0, 2, 5]], np.zeros((3, 12)))
    alone = inputs | {"input": inputs["input"][0], "target": np.int64(-100)}
    assert np.array_equal(refloss.linear_cross_entropy(**alone).grads["input"], np.zeros(12))


@pytest.mark.parametrize("poison", [np.inf, -np.inf, np.nan])
def test_a_weight_that_is_no_number_makes_its_logit_what_arithmetic_does(poison):
    """A number has parts of either sign, and a sum of infinite ones would not be a number."""
    random = np.random.default_rng(6)
    for features in (1, 2, 3, 200):
        inputs = layer(
            rows=40, features=features, linear_weight=random.standard_normal((19, features)), linear_bias=None
        )
        inputs["linear_weight"][7, features // 2] = poison
        inputs["target"][inputs["target"] == 7] = 8
        with np.errstate(invalid="ignore"):
            logits = inputs["input"].astype(np.float64) @ inputs["linear_weight"].T
        expected = refloss.cross_entropy(logits, inputs["target"], reduction="none").loss
        found = refloss.linear_cross_entropy(**inputs, reduction="none").loss
        assert np.array_equal(np.isnan(found), np.isnan(expected))
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_what_is_beyond_float64_is_infinite():
    logits = refloss.linear_cross_entropy([[-1e200]], [[1e200], [1e-300]], [1])
    assert logits.loss == 0.0
    gradient = refloss.linear_cross_entropy([[1e-298]], [[7e297], [-5.6e295]], [0], grad_output=-1e20).grads["input"]
    assert gradient == np.inf


@pytest.mark.parametrize("chain", [{}, {"softcap": 3.0}, {"logit_scale": 0.5}])
def test_an_infinite_cotangent_has_infinite_gradients(chain):
    inputs = layer()
    cotangent = np.where(np.arange(7) == 3, -np.inf, 1.0)
    given = {"reduction": "none", "grad_output": cotangent, **chain}
    gradient = refloss.linear_cross_entropy(**inputs, **given).grads["linear_bias"]
    sign = np.where(np.arange(19) == inputs["target"][3], 1.0, -1.0)
    assert np.array_equal(gradient, sign * np.inf)
    logits = inputs["input"] @ inputs["linear_weight"].T
    assert np.array_equal(refloss.cross_entropy(logits, inputs["target"], **given).grads["logits"][3], sign * np.inf)


@pytest.mark.parametrize("target", [np.full(3, -100), np.zeros((3, 0))])
def test_rows_without_classes(target):
    result = refloss.linear_cross_entropy(np.zeros((3, 4)), np.zeros((0, 4)), target, reduction="sum")
    np.testing.assert_equal(result.loss, refloss.cross_entropy(np.zeros((3, 0)), target, reduction="sum").loss)
    assert not result.grads["input"].any()


def test_without_a_z_loss_no_square_overflows():
    result = refloss.linear_cross_entropy(np.array([[1e155]]), np.array([[1.0], [2.0]]), [0])
    assert result.loss == 1e155
