"""Log-probabilities and entropies: mpmath, derivatives, edges, layouts and bad input."""

from typing import Any

import mpmath
import numpy as np
import pytest

import refloss
from refloss.golden import store
from refloss.golden.manifest import read_manifest
from refloss.testing import assert_matches, golden_case
from tests.test_derivatives import TOLERANCE, fourth_order
from tests.test_elementwise import DTYPES
from tests.test_same_bits import bits, layouts
from tests.truth import correctly_rounded, pairs, ulp_errors

INFINITY, NAN = np.inf, np.nan
CHAINS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "scale": {"logit_scale": -0.3, "temperature": 1.1},
    "cap": {"softcap": 5.0},
    "all": {"logit_scale": 0.4, "softcap": 3.0, "temperature": 1.7},
}
BITS = 2500


def truth(x, classes, upstream, of_entropy, *, logit_scale=1.0, softcap=None, temperature=1.0):
    """Log-probabilities, entropy and gradient of a row, by their definitions; classes of −inf are left out.

    Logits are numbers of any float format, or mpmath's.
    """
    scale, divisor = mpmath.mpf(logit_scale), mpmath.mpf(temperature)
    values = [(value if isinstance(value, mpmath.mpf) else mpmath.mpf(float(value))) * scale for value in x]
    slopes = [scale / divisor] * len(values)
    if softcap is not None:
        cap = mpmath.mpf(softcap)
        tangents = [mpmath.tanh(value / cap) for value in values]
        values, slopes = [cap * t for t in tangents], [scale / divisor * (1 - t * t) for t in tangents]
    z = [value / divisor for value in values]
    there = [j for j, value in enumerate(z) if mpmath.isfinite(value)]
    largest = max(z[j] for j in there)
    lse = largest + mpmath.log(mpmath.fsum(mpmath.exp(z[j] - largest) for j in there))
    log_p = [value - lse for value in z]
    p = [mpmath.exp(log_p[j]) if j in there else mpmath.mpf(0) for j in range(len(z))]
    entropy = -mpmath.fsum(p[j] * log_p[j] for j in there)
    gradient = []
    for j in range(len(z)):
        named = mpmath.fsum(mpmath.mpf(c) * ((k == j) - p[j]) for c, k in zip(upstream, classes, strict=True))
        own = -mpmath.mpf(of_entropy) * p[j] * (log_p[j] + entropy) if j in there else 0
        gradient.append(slopes[j] * (named + own))
    return [log_p[k] for k in classes], entropy, gradient


def rows_of_logits(seed=0):
    """Ordinary, sure, with masked classes, all but alike, alike, and of classes with the average surprise."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((12, 9)) * 3
    x[1, 4] += 12
    x[2, 4] += 60
    x[3, 2:6] = -INFINITY
    x[4, 1:] = -INFINITY
    x[5] = 1.25
    x[6] = 100.0 + np.round(generator.standard_normal(9)) * 2.0**-10
    x[7] = [0, 0, *[-INFINITY] * 7]
    x[8, 3] += 690
    x[9, 1:] = generator.standard_normal(8) * 2.0**-6
    x[10] *= 40
    return x


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_values_and_gradients_are_rounded_once(dtype, chain):
    generator = np.random.default_rng(1)
    x = rows_of_logits().astype(DTYPES.get(dtype, np.float64))
    if chain in ("cap", "all", "scale"):
        x = np.where(np.isneginf(x), x.dtype.type(-50), x)
    classes = generator.integers(9, size=(12, 3))
    classes[::2, 2] = classes[::2, 0]
    classes[1:3, 1] = 4
    classes[[3, 4, 7], :] = [[0, 1, 0], [0, 0, 0], [1, 1, 0]]
    upstream, of_entropy = generator.standard_normal((12, 3)), generator.standard_normal(12)
    upstream[::3], of_entropy[1::3] = 0.0, 0.0
    result = refloss.selected_log_probs(
        x, classes, grad_output={"log_probs": upstream, "entropy": of_entropy}, **CHAINS[chain]
    )
    with mpmath.workprec(BITS):
        rows = [truth(x[k], classes[k], upstream[k], of_entropy[k], **CHAINS[chain]) for k in range(12)]
        log_probs, entropy, gradient = (pairs([row[part] for row in rows]) for part in range(3))
    assert np.max(ulp_errors(result.loss, log_probs, "float64")) <= 2
    assert np.max(ulp_errors(result.components["entropy"], entropy, "float64")) <= 2
    assert np.all(result.loss <= 0)
    errors = ulp_errors(result.grads["logits"], gradient, dtype)
    if dtype == "float64":
        # Where a cap saturates, nothing is left of differences of classes; terms as large as p·H are held all the same.
        errors = np.delete(errors, [6, 10], axis=0) if "softcap" in CHAINS[chain] else errors
        assert errors.max() <= 2
    else:
        assert np.all(correctly_rounded(errors))


@pytest.mark.parametrize("margin", [40.0, 46.05, 100.0, 300.0, 700.0, 730.0])
def test_what_is_left_of_a_sure_row_keeps_its_digits(margin):
    """Log-probabilities and entropies of −1e-17 to −1e-315: neither is 0."""
    x = np.random.default_rng(int(margin)).standard_normal((20, 17))
    x[:, 3] += margin - x.max(axis=1)
    result = refloss.selected_log_probs(x, np.full(20, 3), grad=False)
    with mpmath.workprec(BITS):
        rows = [truth(row, [3], [1.0], 0.0) for row in x]
        log_probs, entropy = pairs([row[0][0] for row in rows]), pairs([row[1] for row in rows])
    assert np.all(result.loss < 0)
    assert ulp_errors(result.loss, log_probs, "float64").max() <= 2
    assert ulp_errors(result.components["entropy"], entropy, "float64").max() <= 2


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("chain", CHAINS)
def test_gradients_are_derivatives(chain, several):
    generator = np.random.default_rng(2)
    x = generator.standard_normal((2, 3, 4))
    index = generator.integers(4, size=(2, 3, 2) if several else (2, 3))
    mask = np.array([[True, True, False], [True, False, True]])
    weights = {"log_probs": generator.standard_normal(index.shape), "entropy": generator.standard_normal((2, 3))}

    def total(a):
        parts = refloss.selected_log_probs(a, index, mask=mask, grad=False, **CHAINS[chain]).components
        return sum(np.sum(weights[name] * parts[name]) for name in weights)

    result = refloss.selected_log_probs(x, index, mask=mask, grad_output=weights, **CHAINS[chain])
    np.testing.assert_allclose(result.grads["logits"], fourth_order(total, x), rtol=0, atol=TOLERANCE)


def test_the_chain_is_that_of_a_model_s_head():
    """Scale, cap, temperature, in this order."""
    x = np.random.default_rng(3).standard_normal((5, 7)) * 4
    z = 3.0 * np.tanh(x * 0.4 / 3.0) / 1.7
    index = np.arange(5)
    expected = refloss.selected_log_probs(z, index)
    result = refloss.selected_log_probs(x, index, logit_scale=0.4, softcap=3.0, temperature=1.7)
    np.testing.assert_allclose(result.loss, expected.loss, rtol=1e-14)
    np.testing.assert_allclose(result.components["entropy"], expected.components["entropy"], rtol=1e-13)
    np.testing.assert_allclose(expected.loss, -refloss.cross_entropy(z, index, reduction="none").loss, rtol=1e-15)


def test_entropy_of_masked_classes():
    """verl, OpenRLHF, TRL and Liger have NaN."""
    x = np.array([[0.0, 0.0, -INFINITY], [3.0, -INFINITY, -INFINITY]])
    upstream = {"log_probs": 1.0, "entropy": 2.0}
    result = refloss.selected_log_probs(x, [0, 0], grad_output=upstream)
    assert np.array_equal(result.components["entropy"], [np.log(2.0), 0.0])
    assert np.array_equal(result.loss, [-np.log(2.0), 0.0])
    assert np.array_equal(result.grads["logits"], [[0.5, -0.5, 0.0], [0.0, 0.0, 0.0]])
    masked = refloss.selected_log_probs(x, [2, 1], grad_output=upstream)
    assert np.array_equal(masked.loss, [-INFINITY, -INFINITY])
    assert np.array_equal(masked.grads["logits"], [[-0.5, -0.5, 1.0], [-1.0, 1.0, 0.0]])
    assert np.array_equal(masked.components["entropy"], result.components["entropy"])


def test_equal_logits_have_no_slope_of_entropy():
    for options in ({}, {"softcap": 2.0, "temperature": 0.3}):
        x = np.full((4, 7), 0.3)
        result = refloss.selected_log_probs(x, np.zeros(4, int), grad_output={"entropy": 1e6}, **options)
        assert not result.grads["logits"].any()
        assert np.array_equal(result.components["entropy"], np.full(4, np.log(7.0)))


def test_rows_that_do_not_count():
    x = np.random.default_rng(4).standard_normal((3, 4, 5)).astype(np.float32)
    index = np.random.default_rng(5).integers(5, size=(3, 4))
    mask = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1]])
    upstream = {"log_probs": np.linspace(-1, 2, 12).reshape(3, 4), "entropy": 0.3}
    expected = refloss.selected_log_probs(x, index, grad_output=upstream)
    poisoned, padded = x.copy(), np.where(mask, index, -100)
    poisoned[mask == 0] = np.array([NAN, INFINITY, -INFINITY, 1.0, 1e30], np.float32)
    for given in (mask, mask.astype(bool), mask.astype(np.float32)):
        result = refloss.selected_log_probs(poisoned, padded, mask=given, grad_output=upstream)
        for got, whole in (
            (result.loss, expected.loss),
            (result.components["entropy"], expected.components["entropy"]),
            (result.grads["logits"], expected.grads["logits"]),
        ):
            there = mask.astype(bool)
            assert np.array_equal(got[there], whole[there])
            assert not got[~there].any()


def test_rows_without_a_number():
    x = np.array([[0.0, NAN, 1.0], [INFINITY, 0.0, 1.0], [-INFINITY] * 3, [0.0, 1.0, 2.0]])
    result = refloss.selected_log_probs(x, [0, 0, 0, 0], grad_output={"log_probs": 0.0, "entropy": 1.0})
    for values in (result.loss, result.components["entropy"], result.grads["logits"][:, 1]):
        assert np.array_equal(np.isnan(values), [True, True, True, False])
    assert np.isnan(result.grads["logits"][:3]).all()
    capped = refloss.selected_log_probs(x[:3], [0, 0, 0], softcap=2.0)
    assert np.array_equal(np.isnan(capped.loss), [True, False, False])
    assert capped.grads["logits"][1, 0] == 0.0
    assert capped.loss[2] == -np.log(3.0)


def test_shapes():
    x = np.random.default_rng(6).standard_normal((2, 3, 5))
    one = refloss.selected_log_probs(x[0, 0], 2)
    assert (np.shape(one.loss), np.shape(one.components["entropy"])) == ((), ())
    several = refloss.selected_log_probs(x, np.zeros((2, 3, 4), int), grad_output=np.ones((2, 3, 4)))
    assert (several.loss.shape, several.components["entropy"].shape) == ((2, 3, 4), (2, 3))
    none = refloss.selected_log_probs(x, np.zeros((2, 3, 0), int), grad_output={"entropy": 1.0})
    assert none.loss.shape == (2, 3, 0)
    assert none.grads["logits"].any()
    empty = refloss.selected_log_probs(x[:0], np.zeros((0, 3), int))
    assert (empty.loss.shape, empty.grads["logits"].shape) == ((0, 3), (0, 3, 5))
    nothing = refloss.selected_log_probs(np.zeros((2, 0)), [-100, -100], mask=[0, 0])
    assert np.array_equal(nothing.loss, [0.0, 0.0])


def test_a_number_or_an_array_is_for_the_log_probabilities_alone():
    x, index = np.random.default_rng(7).standard_normal((3, 5)), np.array([1, 2, 3])
    for upstream in (-1.5, np.array([1.0, -2.0, 0.5])):
        plain = refloss.selected_log_probs(x, index, grad_output=upstream)
        named = refloss.selected_log_probs(x, index, grad_output={"log_probs": upstream})
        assert bits(plain) == bits(named)
        expected = refloss.cross_entropy(x, index, reduction="none", grad_output=-np.broadcast_to(upstream, 3))
        np.testing.assert_allclose(plain.grads["logits"], expected.grads["logits"], rtol=1e-15, atol=0)


def test_threads_blocks_and_layouts_do_not_show(monkeypatch):
    from refloss.kernels.log_probs import run

    generator = np.random.default_rng(8)
    x, index = (generator.standard_normal((31, 45)) * 4).astype(np.float32), generator.integers(45, size=(31, 2))
    call = {"grad_output": {"log_probs": generator.standard_normal((31, 2)), "entropy": -0.3}, "temperature": 0.7}
    expected = bits(refloss.selected_log_probs(x, index, **call))
    threads = refloss.get_num_threads()
    for count, block in ((1, 45), (3, 500)):
        monkeypatch.setattr(run, "BLOCK_ELEMENTS", block)
        refloss.set_num_threads(count)
        assert bits(refloss.selected_log_probs(x, index, **call)) == expected
    refloss.set_num_threads(threads)
    for layout, view in layouts(x):
        assert bits(refloss.selected_log_probs(view, index, **call)) == expected, layout
    order = generator.permutation(45)
    permuted, whole = (
        refloss.selected_log_probs(a, b, **call) for a, b in ((x[:, order], np.argsort(order)[index]), (x, index))
    )
    assert np.array_equal(permuted.grads["logits"], whole.grads["logits"][:, order])
    assert np.array_equal(permuted.components["entropy"], whole.components["entropy"])


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"logits": 1.0}, ValueError, r"logits has shape \(\); expected \[\.\.\., V\]"),
    ({"index": np.zeros((3,), int)}, ValueError, r"index has shape \(3,\); expected \(2,\), or that and several"),
    ({"index": [0, 5]}, ValueError, r"index\[1\] = 5 is outside \[0, 4\]"),
    ({"index": [0, -100]}, ValueError, r"index\[1\] = -100 is outside \[0, 4\]"),
    ({"index": [0.0, 1.0]}, TypeError, "index has dtype float64; expected an integer dtype"),
    ({"mask": [1, 2]}, ValueError, "mask has other numbers than 0 and 1"),
    ({"mask": [NAN, 1]}, ValueError, "mask has other numbers than 0 and 1"),
    ({"mask": [True]}, ValueError, r"mask has shape \(1,\); expected \(2,\), one for each row of logits"),
    ({"mask": ["a", "b"]}, TypeError, "mask has dtype"),
    ({"temperature": 0.0}, ValueError, "temperature is 0.0; expected a finite positive number"),
    ({"softcap": -1.0}, ValueError, "softcap is -1.0; expected a finite positive number"),
    ({"logit_scale": INFINITY}, ValueError, "logit_scale is inf; expected a finite number"),
    ({"grad_output": {"entropies": 1.0}}, ValueError, "grad_output has 'entropies'; expected components: log_probs"),
    ({"grad_output": {"entropy": [1.0]}}, ValueError, r"grad_output\['entropy'\] has shape \(1,\); expected \(2,\)"),
]


@pytest.mark.parametrize(("given", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_input(given, error, message):
    arguments = {"logits": np.zeros((2, 5)), "index": [0, 1], **given}
    with pytest.raises(error, match=message):
        refloss.selected_log_probs(**arguments)


def test_cotangents_of_both_are_kept_in_golden_files_and_judged(tmp_path):
    generator = np.random.default_rng(9)
    x, index = generator.standard_normal((3, 4, 5)).astype(np.float32), generator.integers(5, size=(3, 4))
    upstream = {"log_probs": generator.standard_normal((3, 4)), "entropy": generator.standard_normal((3, 4))}
    case = golden_case("selected_log_probs", logits=x, index=index, grad_output=upstream)
    result = refloss.selected_log_probs(x, index, grad_output=upstream)
    assert_matches(result, grads={"logits": result.grads["logits"]}, components=result.components)
    detached = refloss.selected_log_probs(x, index, grad_output=upstream["log_probs"])
    with pytest.raises(AssertionError, match="entropy has no gradient"):
        assert_matches(result, grads=detached.grads)
    store.add(tmp_path / "golden", case.case._replace(id="both"), result)
    assert list(store.check(tmp_path / "golden")) == [("both", None)]
    (entry,) = read_manifest(tmp_path / "golden")["cases"]
    assert entry["grad_output"] == {"log_probs": None, "entropy": None}
    read, _ = store.read_case(tmp_path / "golden", entry)
    assert all(np.array_equal(read.grad_output[name], values) for name, values in upstream.items())
