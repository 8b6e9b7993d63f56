"""The logit chain and the z-loss of cross-entropy and the heads of tokens: edges, derivatives, errors, bits."""

import itertools

import mpmath
import numpy as np
import pytest

import refloss
from refloss import parallel
from refloss.losses.parts import chain
from tests.test_derivatives import fourth_order

LOGITS = np.random.default_rng(0).standard_normal((5, 7)) * 3
LABELS = np.array([0, 6, 3, -100, 2])
CHAIN = {"logit_scale": 0.75, "softcap": 4.0, "temperature": 0.7, "z_loss": 0.05}

OPTIONS = {
    "logit_scale": [1.0, -0.75],
    "softcap": [None, 3.0],
    "temperature": [1.0, 0.6],
    "z_loss": [0.0, 0.3],
    "target": ["labels", "weighted", "smoothed", "probabilities"],
    "reduction": ["mean", "sum", "none"],
}


def pairs_of_options():
    """Every value of an option beside every value of another one, all others at their last."""
    seen = set()
    for first, second in itertools.combinations(OPTIONS, 2):
        for values in itertools.product(OPTIONS[first], OPTIONS[second]):
            case = {name: options[-1] for name, options in OPTIONS.items()} | dict(
                zip((first, second), values, strict=True)
            )
            key = tuple(case.values())
            if key not in seen:
                seen.add(key)
                yield pytest.param(case, id=" ".join(map(str, key)))


@pytest.mark.parametrize("case", list(pairs_of_options()))
def test_gradients_are_derivatives(case):
    generator = np.random.default_rng(1)
    kind = case["target"]
    target = generator.dirichlet(np.ones(7), 5) if kind == "probabilities" else LABELS
    options = {name: case[name] for name in ("logit_scale", "softcap", "temperature", "z_loss", "reduction")}
    options |= {"weight": generator.uniform(0.2, 3.0, 7)} if kind in ("weighted", "smoothed") else {}
    options |= {"label_smoothing": 0.2} if kind == "smoothed" else {}
    cotangent = generator.standard_normal(5) if case["reduction"] == "none" else -1.7

    def contracted(x, t):
        return np.sum(cotangent * refloss.cross_entropy(x, t, grad=False, **options).loss)

    result = refloss.cross_entropy(LOGITS, target, grad_output=cotangent, **options)
    # Steps are larger than what the steepest of these chains allows for 1e-9.
    expected = fourth_order(lambda x: contracted(x, target), LOGITS)
    np.testing.assert_allclose(result.grads["logits"], expected, rtol=0, atol=1e-8)
    if kind == "probabilities":
        expected = fourth_order(lambda t: contracted(LOGITS, t), target)
        np.testing.assert_allclose(result.grads["target"], expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("head", [refloss.causal_lm, refloss.masked_lm])
def test_heads_have_them(head):
    labels = np.array([[1, 2, 0, -100, 4]])
    found = head(LOGITS[None], labels, num_items_in_batch=7.5, grad_output=-1.5, **CHAIN)
    moved = np.append(labels[0, 1:], -100) if head is refloss.causal_lm else labels[0]
    expected = refloss.cross_entropy(LOGITS, moved, reduction="sum", grad_output=-1.5 / 7.5, **CHAIN)
    np.testing.assert_allclose(found.loss, expected.loss / 7.5, rtol=1e-15)
    np.testing.assert_allclose(found.grads["logits"][0], expected.grads["logits"], rtol=1e-14)
    assert found.components.keys() == {"cross_entropy", "z_loss"}
    # As transformers' keywords.
    key = {refloss.causal_lm: "ForCausalLM", refloss.masked_lm: "ForMaskedLM"}[head]
    by_key = refloss.LOSS_MAPPING[key](LOGITS[None], labels, vocab_size=7, num_items_in_batch=7.5, **CHAIN)
    assert by_key.loss == found.loss


def test_without_options_nothing_else_runs(monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr(chain, "chained_loss", never)
    plain = refloss.cross_entropy(LOGITS, LABELS)
    same = refloss.cross_entropy(LOGITS, LABELS, logit_scale=1, softcap=None, temperature=1.0, z_loss=0)
    assert plain.grads["logits"].tobytes() == same.grads["logits"].tobytes()
    assert plain.components == same.components == {}


def test_a_chain_that_changes_little_gives_what_none_gives():
    """Two kernels: their losses are within an ulp, and their gradients in float32 the same bits."""
    for options in ({}, {"label_smoothing": 0.1}, {"weight": np.linspace(0.5, 2, 7), "reduction": "none"}):
        plain = refloss.cross_entropy(LOGITS, LABELS, grad_dtype="float32", **options)
        through = refloss.cross_entropy(LOGITS * 2, LABELS, temperature=2.0, grad_dtype="float32", **options)
        np.testing.assert_allclose(through.loss, plain.loss, rtol=2.0**-52)
        halved = (plain.grads["logits"] / 2).tobytes()
        assert through.grads["logits"].tobytes() == halved


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_components_add_up_and_have_cotangents(reduction):
    weight = np.linspace(0.5, 2.0, 7)
    found = refloss.cross_entropy(LOGITS, LABELS, weight, reduction=reduction, **CHAIN)
    np.testing.assert_allclose(found.loss, sum(found.components.values()), rtol=1e-15)
    alone = {}
    for name in ("cross_entropy", "z_loss"):
        alone[name] = refloss.cross_entropy(
            LOGITS, LABELS, weight, reduction=reduction, grad_output={name: -1.5}, **CHAIN
        ).grads["logits"]
    both = refloss.cross_entropy(LOGITS, LABELS, weight, reduction=reduction, grad_output=-1.5, **CHAIN)
    np.testing.assert_allclose(both.grads["logits"], sum(alone.values()), rtol=1e-12, atol=1e-16)
    without = refloss.cross_entropy(
        LOGITS, LABELS, weight, reduction=reduction, grad_output=-1.5, **CHAIN | {"z_loss": 0.0}
    )
    np.testing.assert_array_equal(alone["cross_entropy"], without.grads["logits"])
    np.testing.assert_array_equal(found.components["cross_entropy"], without.loss)


def test_the_z_loss_is_of_counted_rows_and_not_weighted():
    weight = np.linspace(0.5, 2.0, 7)
    counted = LABELS != -100
    lse = np.log(np.exp(LOGITS).sum(axis=1))
    for options, divisor in (
        ({}, weight[LABELS[counted]].sum()),
        ({"reduction": "sum"}, 1.0),
    ):
        found = refloss.cross_entropy(LOGITS, LABELS, weight, z_loss=0.25, **options)
        np.testing.assert_allclose(found.components["z_loss"], 0.25 * (lse[counted] ** 2).sum() / divisor, rtol=1e-13)
        np.testing.assert_allclose(found.intermediates["lse"], lse, rtol=1e-14)


def test_intermediates_are_of_the_logits_that_the_softmax_sees():
    seen = 4.0 * np.tanh(LOGITS * 0.75 / 4.0) / 0.7
    found = refloss.cross_entropy(LOGITS, LABELS, **CHAIN)
    log_p = seen - np.log(np.exp(seen).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found.intermediates["log_probabilities"], log_p, rtol=1e-13)
    np.testing.assert_allclose(found.intermediates["probabilities"], np.exp(log_p), rtol=1e-12)
    counted = LABELS != -100
    np.testing.assert_allclose(found.intermediates["nll"][counted], -log_p[counted, LABELS[counted]], rtol=1e-13)
    assert found.intermediates["nll"][3] == 0.0


def test_where_tanh_is_saturated_gradients_are_small_and_not_0():
    x = np.array([[90.0, -60.0, 33.0, 200.0]], np.float32)
    found = refloss.cross_entropy(x, [2], softcap=3.0).grads["logits"].astype(np.float64)
    with mpmath.workprec(600):
        y = [3 * mpmath.tanh(mpmath.mpf(float(value)) / 3) for value in x[0]]
        total = mpmath.fsum(map(mpmath.exp, y))
        for j, value in enumerate(x[0]):
            slope = (mpmath.exp(y[j]) / total - (j == 2)) * mpmath.sech(mpmath.mpf(float(value)) / 3) ** 2
            assert found[0, j] == float(np.float32(float(slope)))
    assert (found[0, :3] != 0).all()


def test_edges():
    spoilt = LOGITS.copy()
    spoilt[0, 1], spoilt[1, 1], spoilt[2, 1], spoilt[4] = np.nan, np.inf, -np.inf, -np.inf
    plain = refloss.cross_entropy(spoilt, LABELS, reduction="none", temperature=0.5)
    np.testing.assert_array_equal(np.isnan(plain.loss), [True, True, False, False, True])
    assert plain.grads["logits"][2, 1] == 0.0
    capped = refloss.cross_entropy(spoilt, LABELS, reduction="none", softcap=5.0)
    # An infinite logit is the cap, and has no gradient.
    np.testing.assert_array_equal(np.isnan(capped.loss), [True, False, False, False, False])
    assert capped.grads["logits"][1, 1] == capped.grads["logits"][2, 1] == 0.0
    np.testing.assert_allclose(capped.loss[4], np.log(7.0))
    nothing = refloss.cross_entropy(spoilt, np.full(5, -100), **CHAIN)
    assert np.isnan(nothing.loss)
    assert not nothing.grads["logits"].any()
    empty = refloss.cross_entropy(LOGITS[:0], LABELS[:0], reduction="sum", **CHAIN)
    assert empty.loss == 0.0
    equal = refloss.cross_entropy(np.full((1, 3), 0.3), np.full((1, 3), 1 / 3), temperature=3.0, label_smoothing=0.1)
    assert not equal.grads["logits"].any()


def test_bits_do_not_depend_on_threads_or_on_layout():
    generator = np.random.default_rng(3)
    logits = (generator.standard_normal((40, 700)) * 5).astype(np.float32)
    labels = generator.integers(700, size=40)
    target = generator.dirichlet(np.ones(700), 40)
    results = []
    for threads in (1, 3):
        before = parallel.get_num_threads()
        parallel.set_num_threads(threads)
        try:
            for of_rows in (labels, target):
                for layout in (logits, np.asfortranarray(logits)):
                    found = refloss.cross_entropy(layout, of_rows, reduction="none", **CHAIN)
                    alone = [
                        refloss.cross_entropy(layout[k : k + 1], of_rows[k : k + 1], reduction="none", **CHAIN)
                        for k in (0, 39)
                    ]
                    for k, single in zip((0, 39), alone, strict=True):
                        assert single.grads["logits"].tobytes() == found.grads["logits"][k].tobytes()
                        assert single.loss[0] == found.loss[k]
                    results.append(found)
        finally:
            parallel.set_num_threads(before)
    for first, second in ((0, 1), (0, 4), (0, 5), (2, 3), (2, 6), (2, 7)):
        assert results[first].grads["logits"].tobytes() == results[second].grads["logits"].tobytes()
        assert results[first].loss.tobytes() == results[second].loss.tobytes()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": 0.0}, ValueError, r"temperature is 0.0; expected a finite positive number"),
        ({"temperature": -1.0}, ValueError, "temperature is -1.0"),
        ({"temperature": np.nan}, ValueError, "temperature is nan"),
        ({"temperature": np.inf}, ValueError, "temperature is inf"),
        ({"softcap": -30.0}, ValueError, "softcap is -30.0; expected a finite positive number"),
        ({"softcap": 0}, ValueError, "softcap is 0.0"),
        ({"softcap": "30"}, TypeError, "softcap is '30' of type str; expected a number"),
        ({"logit_scale": np.nan}, ValueError, "logit_scale is nan; expected a finite number"),
        ({"logit_scale": [1.0]}, ValueError, r"logit_scale has shape \(1,\)"),
        ({"z_loss": -1e-4}, ValueError, "z_loss is -0.0001; expected a finite number of at least 0"),
        ({"z_loss": np.nan}, ValueError, "z_loss is nan"),
        ({"z_loss": 1.0, "grad_output": {"ce": 1.0}}, ValueError, "grad_output has 'ce'; expected components: cross_"),
        ({"grad_output": {"cross_entropy": 1.0}}, TypeError, "grad_output"),
    ],
)
def test_bad_input(options, error, message):
    for call in (refloss.cross_entropy, refloss.masked_lm):
        with pytest.raises(error, match=message):
            call(LOGITS, LABELS, **options)


def test_a_z_loss_of_0_is_0_and_a_small_one_keeps_a_square_that_overflows():
    assert refloss.cross_entropy([[1.0, 2.0, -1.0]], [0], logit_scale=1e155).loss == 1e155
    result = refloss.cross_entropy([[2.0**511, 2.0**512, -(2.0**511)]], [0], z_loss=2.0**-1000)
    assert result.components["z_loss"] == 2.0**24
    with pytest.raises(ValueError, match="grad_output is a mapping, and z_loss is 0"):
        refloss.cross_entropy([[1.0, 2.0]], [0], softcap=2.0, grad_output={"z_loss": 1.0})


@pytest.mark.parametrize("cap", [2.0**901, 1e300, 1e308, 1.7e308])
@pytest.mark.parametrize("temperature", [0.5, 0.7])
def test_a_cap_that_no_logit_comes_near_changes_nothing(cap, temperature):
    options = {"logit_scale": 0.75, "temperature": temperature, "z_loss": 1e-3}
    plain, capped = (refloss.cross_entropy(LOGITS, LABELS, softcap=each, **options) for each in (None, cap))
    assert capped.loss == plain.loss
    assert capped.grads["logits"].tobytes() == plain.grads["logits"].tobytes()


@pytest.mark.parametrize("cap", [1e307, 1e308, 1.7e308])
def test_a_cap_near_the_end_of_float64_loses_no_digit(cap):
    """Logits as large as it: what their softmax sees is read off a loss, to 2 ulp."""
    for z in (cap * 2.0**-59, cap / 1000, cap / 3, -cap, 1.75e308):
        found = refloss.cross_entropy([[0.0, z]], [0 if z > 0 else 1], softcap=cap).loss
        with mpmath.workprec(300):
            exact = abs(mpmath.mpf(cap) * mpmath.tanh(mpmath.mpf(z) / mpmath.mpf(cap)))
            assert abs(found - exact) <= 2 * np.spacing(float(exact))


@pytest.mark.parametrize("cap", [1e307, 1e308, 1.7e308])
def test_so_it_does_in_every_loss_that_has_a_chain(cap):
    z = cap / 3
    found = [
        -refloss.selected_log_probs([0.0, z], 0, softcap=cap).loss,
        -refloss.linear_selected_log_probs([z], [[0.0], [1.0]], 0, softcap=cap).loss,
        refloss.linear_cross_entropy([[z]], [[0.0], [1.0]], [0], softcap=cap).loss,
    ]
    assert found == [refloss.cross_entropy([[0.0, z]], [0], softcap=cap).loss] * 3


def test_an_infinite_cotangent_comes_out_as_it_does_without_a_chain():
    for given in (np.inf, -np.inf):
        plain = refloss.cross_entropy(LOGITS, LABELS, grad_output=given).grads["logits"]
        through = refloss.cross_entropy(LOGITS * 2, LABELS, grad_output=given, temperature=2.0).grads["logits"]
        np.testing.assert_array_equal(through, plain)
        assert np.isinf(plain[LABELS != -100]).all()


@pytest.mark.parametrize("weights", [[0.0] * 7, [1.0, 0, 1, 2, 0, 0, -3]])
def test_squares_over_weights_that_sum_to_0_are_infinite(weights):
    found = refloss.cross_entropy(LOGITS, [2, 3, 6, -100, 1], np.array(weights), **CHAIN)
    assert found.components["z_loss"] == np.inf
    assert np.isnan(found.loss)
    assert np.isnan(found.components["cross_entropy"])
    none = refloss.cross_entropy(LOGITS, np.full(5, -100), np.array(weights), **CHAIN)
    undefined = refloss.cross_entropy(LOGITS, LABELS, np.full(7, np.nan), **CHAIN)
    assert np.isnan(none.components["z_loss"])
    assert np.isnan(undefined.components["z_loss"])
