"""Log-probabilities and entropies of a linear layer's outputs: mpmath, blocks, rows that do not count, edges."""

from typing import Any

import ml_dtypes
import mpmath
import numpy as np
import pytest

import refloss
from refloss.kernels.linear import run
from tests.test_derivatives import TOLERANCE, fourth_order
from tests.test_linear import bits
from tests.test_log_probs import BITS, CHAINS, truth
from tests.truth import correctly_rounded, pairs, ulp_errors

INFINITY, NAN = np.inf, np.nan


def layer(seed=1, rows=(2, 4), features=6, classes=9, several=(), dtype=np.float32) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "input": random.standard_normal((*rows, features)).astype(dtype),
        "linear_weight": random.standard_normal((classes, features)).astype(dtype),
        "index": random.integers(0, classes, (*rows, *several)),
        "linear_bias": random.standard_normal(classes).astype(dtype),
    }


def both(seed, inputs):
    """A cotangent for each log-probability and each entropy."""
    random = np.random.default_rng(seed)
    rows = inputs["input"].shape[:-1]
    return {"log_probs": random.standard_normal(inputs["index"].shape), "entropy": random.standard_normal(rows)}


def sums(x, w, rows):
    """The gradients, flat, from those of the logits [N, V]."""
    columns = [*zip(*rows, strict=True)]
    return {
        "input": [mpmath.fsum(g * b for g, b in zip(row, column, strict=True)) for row in rows for column in w.T],
        "linear_weight": [
            mpmath.fsum(g * a for g, a in zip(c, feature, strict=True)) for c in columns for feature in x.T
        ],
        "linear_bias": [mpmath.fsum(c) for c in columns],
    }


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float64])
def test_values_and_gradients_are_rounded_once(dtype, chain):
    """Of ordinary rows, and of two that point where their class's weights do."""
    inputs = layer(several=(2,), dtype=dtype)
    inputs["input"][0, 1] = 8 * inputs["linear_weight"][3]
    inputs["input"][1, 1] = 3 * inputs["linear_weight"][5]
    inputs["index"][:, 1] = [[3, 3], [5, 2]]
    upstream = both(2, inputs)
    result = refloss.linear_selected_log_probs(**inputs, grad_output=upstream, **CHAINS[chain])
    with mpmath.workprec(BITS):
        exact = np.vectorize(lambda value: mpmath.mpf(float(value)), otypes=[object])
        x, w, b = (exact(inputs[name]) for name in ("input", "linear_weight", "linear_bias"))
        x = x.reshape(8, 6)
        index, of_log_probs = (array.reshape(8, 2) for array in (inputs["index"], upstream["log_probs"]))
        z = [[mpmath.fsum([*(row * each), bias]) for each, bias in zip(w, b, strict=True)] for row in x]
        rows = [
            truth(z[k], index[k], of_log_probs[k], upstream["entropy"].reshape(8)[k], **CHAINS[chain]) for k in range(8)
        ]
        log_probs, entropy = pairs([row[0] for row in rows]), pairs([row[1] for row in rows])
        gradients = {name: pairs(values) for name, values in sums(x, w, [row[2] for row in rows]).items()}
    assert ulp_errors(result.loss.reshape(8, 2), log_probs, "float64").max() <= 2
    assert ulp_errors(result.components["entropy"].reshape(8), entropy, "float64").max() <= 2
    assert np.all(result.loss <= 0)
    name = np.dtype(dtype).name
    for key, expected in gradients.items():
        errors = ulp_errors(result.grads[key].reshape(-1), expected, name)
        assert errors.max() <= 2 if name == "float64" else np.all(correctly_rounded(errors)), key


@pytest.mark.parametrize("chain", ["plain", "all"])
def test_gradients_are_derivatives(chain):
    inputs = layer(several=(2,), dtype=np.float64)
    mask = np.arange(8).reshape(2, 4) % 3 != 1
    upstream = both(3, inputs)

    def total(name, a):
        given = inputs | {name: a}
        parts = refloss.linear_selected_log_probs(**given, mask=mask, grad=False, **CHAINS[chain]).components
        return sum(np.sum(upstream[component] * parts[component]) for component in upstream)

    result = refloss.linear_selected_log_probs(**inputs, mask=mask, grad_output=upstream, **CHAINS[chain])
    for name in ("input", "linear_weight", "linear_bias"):
        expected = fourth_order(lambda a, name=name: total(name, a), inputs[name])
        np.testing.assert_allclose(result.grads[name], expected, rtol=0, atol=10 * TOLERANCE)


@pytest.mark.parametrize("sizes", [(7, 4, 3, 2), (2, 5, 3, 4), (1, 1, 1, 1), (3, 9, 7, 9)])
@pytest.mark.parametrize("chain", ["plain", "all"])
def test_bits_depend_on_no_blocks(monkeypatch, sizes, chain):
    inputs = layer(several=(3,))
    inputs["input"][1, 2] = NAN
    mask = np.arange(8).reshape(2, 4) % 3 != 1
    given = {"mask": mask, "grad_output": both(4, inputs), **CHAINS[chain]}
    # An undefined row that counts, and the same that does not.
    for counts in (mask, mask & (np.arange(8).reshape(2, 4) != 6)):
        expected = bits(refloss.linear_selected_log_probs(**inputs, **given | {"mask": counts}))
        with monkeypatch.context() as patch:
            patch.setattr(run, "sizes_of", lambda _: run.Sizes(*sizes))
            assert bits(refloss.linear_selected_log_probs(**inputs, **given | {"mask": counts})) == expected


def test_bits_depend_on_no_threads_and_no_layout():
    inputs = layer(rows=(5, 8), features=64, classes=300)
    upstream, before = both(5, inputs), refloss.get_num_threads()
    given = {"linear_weight": np.asfortranarray(inputs["linear_weight"])}
    given["input"] = np.repeat(inputs["input"].transpose(1, 0, 2), 2, axis=2)[..., ::2].transpose(1, 0, 2)
    assert not given["input"].flags.c_contiguous
    found = []
    try:
        for threads, arrays in ((1, inputs), (3, inputs), (2, inputs | given)):
            refloss.set_num_threads(threads)
            out = np.empty((8, 5, 64), np.float32).transpose(1, 0, 2)
            found.append(bits(refloss.linear_selected_log_probs(**arrays, grad_output=upstream, out=out)))
    finally:
        refloss.set_num_threads(before)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
def test_logits_that_are_written_down_have_what_others_have_of_them(name):
    inputs = layer(dtype=ml_dtypes.bfloat16)
    upstream = both(6, inputs)
    result = refloss.linear_selected_log_probs(**inputs, logits_dtype=name, grad_output=upstream)
    x, w, b = (inputs[key].astype(np.float64) for key in ("input", "linear_weight", "linear_bias"))
    logits = (x @ w.T + b).astype(name).astype(np.float64)
    whole = refloss.selected_log_probs(logits, inputs["index"], grad_output=upstream)
    assert np.array_equal(result.loss, whole.loss)
    assert np.array_equal(result.components["entropy"], whole.components["entropy"])
    g = whole.grads["logits"]
    expected = {"input": g @ w, "linear_weight": np.einsum("abv,abk->vk", g, x), "linear_bias": g.sum(axis=(0, 1))}
    for key, value in expected.items():
        assert np.array_equal(result.grads[key], value.astype(ml_dtypes.bfloat16)), key


def test_log_probabilities_are_those_of_the_cross_entropy():
    inputs = layer(rows=(7,))
    upstream = np.linspace(-2, 3, 7)
    result = refloss.linear_selected_log_probs(**inputs, grad_output=upstream, softcap=3.0)
    given = {name: value for name, value in inputs.items() if name != "index"}
    loss = refloss.linear_cross_entropy(
        **given, target=inputs["index"], reduction="none", grad_output=-upstream, softcap=3.0
    )
    assert np.array_equal(result.loss, -loss.loss)
    for name, gradient in loss.grads.items():
        assert np.array_equal(result.grads[name], gradient), name


@pytest.mark.parametrize("poison", [NAN, INFINITY])
@pytest.mark.parametrize("sizes", [None, (2, 5, 3, 4)])
def test_rows_that_do_not_count_may_hold_anything(monkeypatch, poison, sizes):
    inputs = layer()
    mask = np.arange(8).reshape(2, 4) % 3 != 1
    upstream = both(7, inputs)
    clean = refloss.linear_selected_log_probs(**inputs, mask=mask, grad_output=upstream)
    inputs["input"][~mask] = poison
    inputs["index"] = np.where(mask, inputs["index"], -100)
    if sizes:
        monkeypatch.setattr(run, "sizes_of", lambda _: run.Sizes(*sizes))
    result = refloss.linear_selected_log_probs(**inputs, mask=mask, grad_output=upstream)
    assert bits(result) == bits(clean)
    for values in (result.loss, result.components["entropy"], result.grads["input"]):
        assert not values[~mask].any()
    none = refloss.linear_selected_log_probs(**inputs, mask=np.zeros((2, 4)), grad_output=upstream)
    assert not none.loss.any()
    assert all(not gradient.any() for gradient in none.grads.values())


@pytest.mark.parametrize("poison", [NAN, INFINITY])
def test_weights_that_are_no_numbers_do_not_reach_rows_that_do_not_count(poison):
    inputs = layer()
    inputs["linear_weight"][5, 3] = poison
    mask = np.arange(8).reshape(2, 4) % 3 != 1
    out = np.empty((4, 2, 6), np.float32).transpose(1, 0, 2)
    gradient = refloss.linear_selected_log_probs(**inputs, mask=mask, out=out).grads["input"]
    assert not gradient[~mask].any()
    assert np.isnan(gradient[mask]).any()
    alone = inputs | {"input": inputs["input"][0, 1], "index": 0}
    assert not refloss.linear_selected_log_probs(**alone, mask=False).grads["input"].any()


def test_a_class_that_a_bias_masks_has_no_probability():
    inputs = layer()
    inputs["linear_bias"][5] = -INFINITY
    inputs["index"][...] = 6
    upstream = {"log_probs": 1.0, "entropy": 2.0}
    result = refloss.linear_selected_log_probs(**inputs, grad_output=upstream)
    others = {name: np.delete(inputs[name], 5, axis=0) for name in ("linear_weight", "linear_bias")}
    index = np.full((2, 4), 5)
    without = refloss.linear_selected_log_probs(**inputs | others | {"index": index}, grad_output=upstream)
    assert np.array_equal(result.components["entropy"], without.components["entropy"])
    assert np.array_equal(result.grads["input"], without.grads["input"])
    assert not result.grads["linear_weight"][5].any()
    assert np.all(np.isneginf(refloss.linear_selected_log_probs(**inputs | {"index": index}).loss))


def test_rows_alike_have_no_slope_of_entropy():
    inputs = layer()
    inputs["linear_weight"][:], inputs["linear_bias"][:] = inputs["linear_weight"][0], 0.5
    result = refloss.linear_selected_log_probs(**inputs, grad_output={"entropy": 1e6})
    assert np.array_equal(result.components["entropy"], np.full((2, 4), np.log(9.0)))
    assert all(not gradient.any() for gradient in result.grads.values())


def test_shapes():
    inputs = layer()
    whole = refloss.linear_selected_log_probs(**inputs)
    assert (whole.loss.shape, whole.components["entropy"].shape) == ((2, 4), (2, 4))
    one = refloss.linear_selected_log_probs(**inputs | {"input": inputs["input"][0, 1], "index": inputs["index"][0, 1]})
    assert np.shape(one.loss) == ()
    assert one.loss == whole.loss[0, 1]
    assert np.array_equal(one.grads["input"], whole.grads["input"][0, 1])
    several = refloss.linear_selected_log_probs(
        **inputs | {"index": np.zeros((2, 4, 0), int)}, grad_output={"entropy": 1}
    )
    assert several.loss.shape == (2, 4, 0)
    assert several.grads["input"].any()
    empty = refloss.linear_selected_log_probs(**layer(rows=(0, 4)))
    assert (empty.loss.shape, empty.grads["input"].shape) == ((0, 4), (0, 4, 6))
    assert not empty.grads["linear_weight"].any()
    biases = layer(features=0)
    expected = refloss.selected_log_probs(np.broadcast_to(biases["linear_bias"], (2, 4, 9)), biases["index"])
    assert np.array_equal(refloss.linear_selected_log_probs(**biases).loss, expected.loss)


def test_only_what_is_asked_for_is_computed():
    inputs = layer()
    upstream = both(8, inputs)
    whole = refloss.linear_selected_log_probs(**inputs, grad_output=upstream)
    for names in (False, "input", ("linear_weight",), ("linear_bias",)):
        result = refloss.linear_selected_log_probs(**inputs, grad_output=upstream, grad=names)
        assert np.array_equal(result.loss, whole.loss)
        assert all(np.array_equal(gradient, whole.grads[name]) for name, gradient in result.grads.items())
        assert set(result.grads) == (set() if names is False else {names} if isinstance(names, str) else {*names})


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"input": np.float32(1)}, ValueError, r"input has shape \(\); expected \[\.\.\., K\]"),
    ({"linear_weight": np.zeros((9, 5))}, ValueError, r"linear_weight has shape \(9, 5\); expected \[V, K\]"),
    ({"linear_bias": np.zeros(3)}, ValueError, r"linear_bias has shape \(3,\); expected \(9,\)"),
    ({"index": np.zeros(4, int)}, ValueError, r"index has shape \(4,\); expected \(2, 4\), or that and several"),
    ({"index": np.full((2, 4), 9)}, ValueError, r"index\[0, 0\] = 9 is outside \[0, 8\]"),
    ({"index": np.zeros((2, 4))}, TypeError, "index has dtype float64; expected an integer dtype"),
    ({"mask": np.full((2, 4), 2)}, ValueError, "mask has other numbers than 0 and 1"),
    ({"mask": [True]}, ValueError, r"mask has shape \(1,\); expected \(2, 4\)"),
    ({"logits_dtype": "float8"}, ValueError, r"logits_dtype is 'float8'; expected one of 'bfloat16'"),
    ({"temperature": 0.0}, ValueError, "temperature is 0.0; expected a finite positive number"),
    ({"grad_output": {"entropies": 1.0}}, ValueError, "grad_output has 'entropies'; expected components: log_probs"),
    ({"grad": "logits"}, ValueError, "grad is 'logits'; expected one of"),
    ({"input": np.zeros((2, 4, 6), int)}, TypeError, "input has dtype int64"),
]


@pytest.mark.parametrize(("given", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_input(given, error, message):
    with pytest.raises(error, match=message):
        refloss.linear_selected_log_probs(**layer() | given)
