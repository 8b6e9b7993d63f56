"""Losses of a mixture's router: mpmath, derivatives, layers, ties, masks, bits, edges and bad input."""

import mpmath
import numpy as np
import pytest

import refloss
from tests.test_derivatives import TOLERANCE, fourth_order
from tests.test_elementwise import DTYPES
from tests.test_same_bits import bits, layouts
from tests.truth import correctly_rounded, pairs, ulp_errors

INFINITY, NAN = np.inf, np.nan
BITS = 800


def softmaxes(x):
    """Of every row, with its lse."""
    for row in x.astype(np.float64):
        terms = [mpmath.exp(mpmath.mpf(value)) if value > -INFINITY else mpmath.mpf(0) for value in row.tolist()]
        total = mpmath.fsum(terms)
        yield [term / total for term in terms], mpmath.log(total)


def z_truth(x, upstream):
    """The loss and its gradient."""
    rows = list(softmaxes(x))
    gradient = [[2 * mpmath.mpf(upstream) * lse * share / len(rows) for share in p] for p, lse in rows]
    return mpmath.fsum(lse**2 for _, lse in rows) / len(rows), gradient


def counts_of(x, top_k):
    """How often each expert is chosen."""
    order = np.argsort(-x.astype(np.float64), axis=1, kind="stable")[:, :top_k]
    return np.bincount(order.ravel(), minlength=x.shape[1]).tolist()


def balance_truth(x, counts, upstream):
    """The loss and its gradient, by the definition E·Σ f·P."""
    rows, (count, experts) = [p for p, _ in softmaxes(x)], x.shape
    f = [mpmath.mpf(c) / count for c in counts]
    mean = [mpmath.fsum(p[e] for p in rows) / count for e in range(experts)]
    gradient = []
    for p in rows:
        # p sums to 1, so that what is equally often chosen leaves exactly nothing.
        left = [mpmath.fsum((own - other) * share for other, share in zip(f, p, strict=True)) for own in f]
        gradient.append([mpmath.mpf(upstream) * experts / count * a * b for a, b in zip(p, left, strict=True)])
    return experts * mpmath.fsum(a * b for a, b in zip(f, mean, strict=True)), gradient


def logits_of(dtype, seed=0):
    """Ordinary rows, sure ones, equal logits and experts that are not there."""
    x = np.random.default_rng(seed).standard_normal((14, 6)) * 2
    x[1, 2] += 12
    x[2, 4] += 60
    x[3, 2:4] = -INFINITY
    x[4, 1:] = -INFINITY
    x[5] = 1.25
    x[6:9] = np.round(x[6:9])
    x[9, [0, 5]] = 40.0
    return x.astype(DTYPES.get(dtype, np.float64))


@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_the_z_loss_is_rounded_once(dtype):
    x = logits_of(dtype)
    result = refloss.router_z_loss(x, grad_output=-0.3)
    with mpmath.workprec(BITS):
        loss, gradient = map(pairs, z_truth(x, -0.3))
    assert ulp_errors(result.loss, loss, "float64") <= 2
    errors = ulp_errors(result.grads["router_logits"], gradient, dtype)
    assert errors.max() <= 2 if dtype == "float64" else np.all(correctly_rounded(errors))


@pytest.mark.parametrize("top_k", [1, 2, 5, 6])
@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_the_balance_is_rounded_once(dtype, top_k):
    x = logits_of(dtype)
    result = refloss.moe_load_balancing(x, top_k, grad_output=1 / 3)
    with mpmath.workprec(BITS):
        loss, gradient = map(pairs, balance_truth(x, counts_of(x, top_k), 1 / 3))
    assert ulp_errors(result.loss, loss, "float64") <= 2
    errors = ulp_errors(result.grads["router_logits"], gradient, dtype)
    assert errors.max() <= 2 if dtype == "float64" else np.all(correctly_rounded(errors))
    if top_k == 6:
        assert not result.grads["router_logits"].any()


@pytest.mark.parametrize("gap", [-30.0, -70.0, -90.0])
def test_what_cancels_leaves_what_there_is(gap):
    """The first expert is chosen as often as the next two in the mean, whose logits are equal."""
    x = np.array([[2.0**-10, 0.0, 0.0, gap]] * 5, np.float32)
    chosen = np.array([[0, 1], [0, 1], [0, 1], [2, 1], [2, 3]])
    result = refloss.moe_load_balancing(x, 2, selected=chosen)
    assert np.array_equal(result.intermediates["tokens_per_expert"], np.array([3, 4, 2, 1]) / 5)
    with mpmath.workprec(BITS):
        gradient = pairs(balance_truth(x, [3, 4, 2, 1], 1.0)[1])
    assert np.all(correctly_rounded(ulp_errors(result.grads["router_logits"], gradient, "float32")))
    assert result.grads["router_logits"][:, 0].all()


def frozen(x, top_k, **options):
    """The balance as a function of logits alone, the experts that x chooses held constant."""
    chosen = refloss.moe_load_balancing(x, top_k, grad=False, **options).intermediates["selected"]

    def loss(a):
        return refloss.moe_load_balancing(a, top_k, selected=chosen, grad=False, **options).loss

    return loss


@pytest.mark.parametrize("options", [{}, {"pool_layers": False}, {"normalise_top_k": True}], ids=str)
def test_gradients_are_derivatives(options):
    x = np.random.default_rng(2).standard_normal((2, 4, 3))
    mask = np.array([[True, True], [False, True]])
    for given in ({}, {"mask": mask}, {"mask": np.arange(8).reshape(2, 4) % 3 > 0}):
        result = refloss.moe_load_balancing(x, 2, **options, **given, grad_output=-1.5)
        expected = -1.5 * fourth_order(frozen(x, 2, **options, **given), x)
        np.testing.assert_allclose(result.grads["router_logits"], expected, rtol=0, atol=TOLERANCE)
        if options:
            continue
        result = refloss.router_z_loss(x, **given, grad_output=-1.5)
        expected = -1.5 * fourth_order(lambda a, given=given: refloss.router_z_loss(a, **given, grad=False).loss, x)
        np.testing.assert_allclose(result.grads["router_logits"], expected, rtol=0, atol=TOLERANCE)


def test_a_list_of_layers_is_one_array():
    x = np.random.default_rng(3).standard_normal((3, 8, 5)).astype(np.float32)
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0]])
    for options in ({}, {"mask": mask}, {"mask": mask.ravel()}, {"mask": np.tile(mask.ravel(), (3, 1))}):
        expected = refloss.moe_load_balancing(x, 2, **options)
        for layers in (list(x), tuple(x)):
            assert bits(refloss.moe_load_balancing(layers, 2, **options)) == bits(expected)
        assert bits(refloss.router_z_loss(list(x), **options)) == bits(refloss.router_z_loss(x, **options))
        chosen = list(expected.intermediates["selected"])
        assert bits(refloss.moe_load_balancing(x, 2, selected=chosen, **options)) == bits(expected)
    folded = refloss.moe_load_balancing(x.reshape(3, 2, 4, 5), 2, mask=mask)
    flat = refloss.moe_load_balancing(x, 2, mask=mask)
    assert folded.grads["router_logits"].tobytes() == flat.grads["router_logits"].tobytes()


def test_layers_apart():
    """Each as if it were alone; where they are pooled, opposite favourites look balanced."""
    x = np.random.default_rng(4).standard_normal((2, 40, 4)) * 0.1
    x += 5.0 * np.array([[[1, 1, 0, 0]], [[0, 0, 1, 1]]])
    apart = refloss.moe_load_balancing(x, 2, pool_layers=False)
    alone = [refloss.moe_load_balancing(layer, 2) for layer in x]
    assert np.array_equal(apart.intermediates["layer_losses"], [each.loss for each in alone])
    assert apart.loss == np.mean([each.loss for each in alone])
    for got, each in zip(apart.grads["router_logits"], alone, strict=True):
        assert np.array_equal(got, each.grads["router_logits"] / 2)
    assert apart.intermediates["tokens_per_expert"].shape == (2, 4)
    pooled = refloss.moe_load_balancing(x, 2)
    assert pooled.loss == 2.0
    assert not pooled.grads["router_logits"].any()
    assert apart.loss > 3.9
    normalised = refloss.moe_load_balancing(x, 2, normalise_top_k=True)
    assert normalised.loss == 1.0
    assert np.array_equal(normalised.intermediates["tokens_per_expert"], [0.25] * 4)


def test_the_first_of_tied_experts_is_chosen():
    x = np.array([[1.0, 2.0, 2.0, 2.0], [0.0, -0.0, 0.0, -0.0], [3.0, -INFINITY, -INFINITY, 1.0]])
    found = refloss.moe_load_balancing(x, 2)
    assert found.intermediates["selected"].tolist() == [[1, 2], [0, 1], [0, 3]]
    assert refloss.moe_load_balancing(x, 3).intermediates["selected"].tolist() == [[1, 2, 3], [0, 1, 2], [0, 3, 1]]
    other = refloss.moe_load_balancing(x, 2, selected=[[2, 3], [2, 3], [0, 3]])
    assert np.array_equal(other.intermediates["tokens_per_expert"], np.array([1, 0, 2, 3]) / 3)
    # In float32 both last probabilities are 0; the logits are not tied.
    far = refloss.moe_load_balancing(np.array([[200.0, 0.0, 50.0]], np.float32), 2)
    assert far.intermediates["selected"].tolist() == [[0, 2]]


def test_tokens_that_do_not_count_are_not_there():
    x = np.random.default_rng(5).standard_normal((2, 6, 5)).astype(np.float32)
    mask = np.array([1, 0, 1, 1, 0, 1])
    poisoned = x.copy()
    poisoned[:, mask == 0] = np.array([NAN, INFINITY, -INFINITY, 1.0, 1e30], np.float32)
    for call in (lambda a, **given: refloss.moe_load_balancing(a, 2, **given), refloss.router_z_loss):
        expected = call(x[:, mask == 1])
        for given in (mask, mask.astype(bool), mask.astype(np.float32), mask.reshape(2, 3)):
            result = call(poisoned, mask=given)
            assert result.loss == expected.loss
            assert np.array_equal(result.grads["router_logits"][:, mask == 1], expected.grads["router_logits"])
            assert not result.grads["router_logits"][:, mask == 0].any()
    chosen = refloss.moe_load_balancing(poisoned, 2, mask=mask).intermediates["selected"]
    assert np.array_equal(chosen[:, mask == 0], np.full((2, 2, 2), -1))
    anything = np.where(mask[:, None] == 0, 10**6, chosen)
    assert refloss.moe_load_balancing(poisoned, 2, mask=mask, selected=anything).intermediates["selected"].max() < 5


@pytest.mark.parametrize("pool_layers", [True, False])
def test_nothing_counts(pool_layers):
    x = np.random.default_rng(6).standard_normal((2, 3, 4))
    none = np.zeros(3, bool)
    for result in (
        refloss.moe_load_balancing(x, 2, mask=none, pool_layers=pool_layers),
        refloss.moe_load_balancing(x[:, :0], 2, pool_layers=pool_layers),
        refloss.router_z_loss(x, mask=none),
        refloss.router_z_loss(x[:, :0]),
    ):
        assert np.isnan(result.loss)
        assert not result.grads["router_logits"].any()
    one_layer = refloss.moe_load_balancing(x, 2, mask=np.array([[True] * 3, [False] * 3]), pool_layers=pool_layers)
    assert np.isnan(one_layer.loss) != pool_layers
    assert np.array_equal(one_layer.grads["router_logits"].any(axis=(1, 2)), [True, False])


def test_rows_without_probabilities():
    """Their own gradients are NaN, and no others; they choose the first experts."""
    x = np.array([[0.0, NAN, 1.0], [INFINITY, 0.0, 1.0], [-INFINITY] * 3, [0.0, 1.0, 2.0]])
    result = refloss.moe_load_balancing(x, 2)
    assert np.isnan(result.loss)
    assert np.isnan(result.intermediates["router_prob_per_expert"]).all()
    assert result.intermediates["selected"].tolist() == [[0, 1]] * 3 + [[2, 1]]
    assert np.array_equal(np.isnan(result.grads["router_logits"]), [[True] * 3] * 3 + [[False] * 3])
    squares = refloss.router_z_loss(x)
    assert np.isnan(squares.loss)
    assert np.array_equal(np.isnan(squares.grads["router_logits"]), [[True] * 3] * 3 + [[False] * 3])
    assert refloss.router_z_loss(x[2:]).loss == INFINITY


def test_threads_blocks_and_layouts_do_not_show(monkeypatch):
    from refloss.kernels.routers import run

    generator = np.random.default_rng(8)
    x = (generator.standard_normal((2, 101, 9)) * 4).astype(np.float32)
    mask = generator.random(101) < 0.8

    def answers(a):
        yield refloss.moe_load_balancing(a, 3, mask=mask)
        yield refloss.moe_load_balancing(a, 3, mask=mask, pool_layers=False)
        yield refloss.router_z_loss(a, mask=mask)

    expected = [bits(result) for result in answers(x)]
    threads = refloss.get_num_threads()
    for count, block in ((1, 9), (3, 100)):
        monkeypatch.setattr(run, "BLOCK_ELEMENTS", block)
        refloss.set_num_threads(count)
        assert [bits(result) for result in answers(x)] == expected
    refloss.set_num_threads(threads)
    for layout, view in layouts(x):
        assert [bits(result) for result in answers(view)] == expected, layout
    order = generator.permutation(101)
    whole, permuted = (refloss.moe_load_balancing(a, 3, mask=b) for a, b in ((x, mask), (x[:, order], mask[order])))
    assert permuted.loss == whole.loss
    assert np.array_equal(permuted.grads["router_logits"], whole.grads["router_logits"][:, order])


def test_the_scale_of_both():
    """k at balance, E where one expert takes all; a constant added to a row moves lse alone."""
    x = 20.0 * np.eye(8)[np.arange(64) % 8]
    np.testing.assert_allclose(refloss.moe_load_balancing(x, 1).loss, 1.0, rtol=1e-12)
    np.testing.assert_allclose(refloss.moe_load_balancing(np.roll(x[:1], 1, 1), 1).loss, 8.0, rtol=1e-6)
    flat = np.full((5, 8), 3.0)
    assert refloss.moe_load_balancing(flat, 2).loss == 2.0
    np.testing.assert_allclose(refloss.router_z_loss(flat).loss, (3.0 + np.log(8.0)) ** 2, rtol=1e-15)
    mean = refloss.router_z_loss([flat, flat - 5.0]).loss
    assert mean == np.mean([refloss.router_z_loss(flat).loss, refloss.router_z_loss(flat - 5.0).loss])


BALANCE = [
    ({"top_k": 0}, ValueError, "top_k is 0; expected at least 1"),
    ({"top_k": 6}, ValueError, "top_k is 6; expected at most 5, the number of experts"),
    ({"top_k": 1.5}, TypeError, "top_k is 1.5"),
    ({"router_logits": np.zeros(5)}, ValueError, r"router_logits has shape \(5,\); expected \[T, E\]"),
    ({"router_logits": np.zeros((3, 0))}, ValueError, r"router_logits has shape \(3, 0\); expected"),
    ({"router_logits": np.zeros((3, 5), int)}, TypeError, "router_logits has dtype int64"),
    ({"router_logits": [np.zeros((3, 5)), np.zeros((2, 5))]}, ValueError, r"router_logits\[1\] has shape \(2, 5\)"),
    (
        {"router_logits": [np.zeros((3, 5)), np.zeros((3, 5), np.float32)]},
        TypeError,
        r"router_logits\[1\] has dtype float32; expected float64",
    ),
    ({"mask": [True]}, ValueError, r"mask has shape \(1,\); expected \(3,\), one for each row of router_logits"),
    ({"mask": [1, 2, 0]}, ValueError, "mask has other numbers than 0 and 1"),
    ({"mask": ["a", "b", "c"]}, TypeError, "mask has dtype"),
    ({"selected": [[0, 1]]}, ValueError, r"selected has shape \(1, 2\); expected \(3, 2\), top_k experts"),
    ({"selected": [[0, 1], [1, 5], [2, 3]]}, ValueError, r"selected\[1, 1\] = 5 is outside \[0, 4\]"),
    ({"selected": [[0, 1], [1, -1], [2, 3]]}, ValueError, r"selected\[1, 1\] = -1 is outside"),
    ({"selected": [[0, 1], [1, 2], [3, 3]]}, ValueError, r"selected\[2\] = \[3, 3\] names an expert twice"),
    ({"selected": np.zeros((3, 2))}, TypeError, "selected has dtype float64; expected an integer dtype"),
    ({"pool_layers": "no"}, TypeError, "pool_layers is 'no'"),
    ({"grad_output": [1.0]}, ValueError, "grad_output has shape"),
]


@pytest.mark.parametrize(("given", "error", "message"), BALANCE, ids=[message for *_, message in BALANCE])
def test_bad_input_of_a_balance(given, error, message):
    with pytest.raises(error, match=message):
        refloss.moe_load_balancing(**{"router_logits": np.zeros((3, 5)), "top_k": 2, **given})


Z_LOSS = [
    ({"router_logits": 1.0}, ValueError, r"router_logits has shape \(\); expected \[..., E\]"),
    ({"mask": [True, False]}, ValueError, r"mask has shape \(2,\); expected \(2, 3\)"),
    ({"mask": np.ones((3, 2), bool)}, ValueError, r"mask has shape \(3, 2\); expected \(2, 3\)"),
    ({"grad": "logits"}, ValueError, "grad is 'logits'"),
]


@pytest.mark.parametrize(("given", "error", "message"), Z_LOSS, ids=[message for *_, message in Z_LOSS])
def test_bad_input_of_a_z_loss(given, error, message):
    with pytest.raises(error, match=message):
        refloss.router_z_loss(**{"router_logits": np.zeros((2, 3, 5)), **given})
