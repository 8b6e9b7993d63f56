"""Losses of tokens: their definitions by finite differences, kinks, aggregations, edges, bits, and bad arguments."""

import itertools
from fractions import Fraction

import gmpy2
import mpmath
import numpy as np
import pytest

import refloss
from refloss import parallel
from refloss.cases.source import DTYPES
from refloss.golden.corpus import cases_of
from refloss.kernels.tokens import run
from refloss.losses.parts.aggregation import AGGREGATIONS, SEQUENCES
from tests.mpfr import policies
from tests.mpfr.rounding import PRECISION

OBJECTIVES, RATIOS = ("clip", "cispo", "sapo"), ("token", "sequence")
NAN, INF = np.nan, np.inf


def drawn(seed=1, rows=4, tokens=5, dtype=np.float64):
    generator = np.random.default_rng(seed)
    old = -np.abs(generator.standard_normal((rows, tokens))) * 2
    x = old + 0.3 * generator.standard_normal((rows, tokens))
    ref = x + 0.3 * generator.standard_normal((rows, tokens))
    mask = generator.random((rows, tokens)) < 0.7
    mask[0], mask[1], mask[2] = True, False, np.arange(tokens) == 2
    inputs = {"log_probs": x, "old_log_probs": old, "advantages": generator.standard_normal((rows, tokens))}
    inputs |= {"ref_log_probs": ref, "weights": 0.5 + generator.random((rows, tokens))}
    return {name: array.astype(dtype) for name, array in inputs.items()} | {"mask": mask}


def values_drawn(seed=2, rows=4, tokens=5):
    generator = np.random.default_rng(seed)
    v, target, old = generator.standard_normal((3, rows, tokens))
    return {"values": v, "returns": target, "old_values": old, "mask": generator.random((rows, tokens)) < 0.7}


def in_mpmath(given):
    """The losses of a policy's tokens by their definition, from mpmath numbers of log-probabilities."""
    options, mask = given["options"], given["mask"]
    low, high = options.get("clip_low", 0.2), options.get("clip_high")
    upper, lower = 1 + mpmath.mpf(low if high is None else high), 1 - mpmath.mpf(low)

    def losses(x, frozen):
        found = {}
        for row in range(mask.shape[0]):
            places = np.flatnonzero(mask[row]).tolist()
            ds = {t: x[row][t] - mpmath.mpf(given["old_log_probs"][row, t]) for t in places}
            held_ds = {t: frozen[row][t] - mpmath.mpf(given["old_log_probs"][row, t]) for t in places}
            if options.get("ratio") == "sequence" and places:
                ds = dict.fromkeys(places, mpmath.fsum(ds.values()) / len(places))
                held_ds = dict.fromkeys(places, mpmath.fsum(held_ds.values()) / len(places))
            for t in places:
                r, a, w = mpmath.exp(ds[t]), mpmath.mpf(given["advantages"][row, t]), given["weights"][row, t]
                clip = min(max(r, lower), upper)
                loss = -min(r * a, clip * a)
                if options.get("dual_clip") and a < 0:
                    loss = min(loss, -options["dual_clip"] * a)
                if options.get("objective") == "cispo":
                    loss = -min(max(mpmath.exp(held_ds[t]), lower), upper) * a * x[row][t]
                elif options.get("objective") == "sapo":
                    tau = mpmath.mpf(1.0 if a > 0 else 1.05)
                    loss = -4 / tau / (1 + mpmath.exp(-tau * (r - 1))) * a
                q = mpmath.mpf(given["ref_log_probs"][row, t]) - x[row][t]
                kl = {"k1": -q, "k2": q**2 / 2, "k3": mpmath.exp(q) - q - 1}[options["kl"]]
                kl = kl * r if options.get("kl_ratio_weighted") else kl
                found[row, t] = w * loss + mpmath.mpf(options["kl_coef"]) * kl
        return found

    return losses


CHOICES = [
    {"objective": objective, "ratio": ratio, "kl": kl, "kl_coef": 0.5, "kl_ratio_weighted": weighted}
    for objective, ratio, (kl, weighted) in itertools.product(
        OBJECTIVES, RATIOS, [("k1", False), ("k2", True), ("k3", False), ("k3", True)]
    )
]


@pytest.mark.parametrize("options", CHOICES, ids=str)
def test_gradients_are_finite_differences_of_the_definition_in_mpmath(options):
    """What is held constant is frozen; inputs are away from kinks."""
    options = options | ({"dual_clip": 1.25} if options["objective"] == "clip" else {})
    inputs = drawn()
    mask = inputs["mask"]
    given = {name: array for name, array in inputs.items() if name != "mask"}
    cotangent = np.random.default_rng(5).standard_normal(mask.shape)
    result = refloss.policy_loss(**inputs, **options, aggregation="none", grad_output=cotangent)
    with mpmath.workprec(300):
        losses = in_mpmath(given | {"options": options, "mask": mask})
        x = [[mpmath.mpf(value) for value in row] for row in inputs["log_probs"].tolist()]
        plain = losses(x, x)
        for (row, t), loss in plain.items():
            assert abs(result.loss[row, t] - loss) <= 2.0**-51 * max(abs(loss), 1e-3)
        step = mpmath.mpf(2) ** -90
        for row, t in [(0, 1), (0, 4), (2, 2), (3, int(np.flatnonzero(mask[3])[0]))]:
            ends = []
            for sign in (1, -1):
                moved = [list(line) for line in x]
                moved[row][t] += sign * step
                values = losses(moved, x)
                ends.append(mpmath.fsum(cotangent[place] * value for place, value in values.items()))
            slope = (ends[0] - ends[1]) / (2 * step)
            assert abs(result.grads["log_probs"][row, t] - slope) <= 2.0**-50 * max(abs(slope), 1e-3)
    assert not result.grads["log_probs"][~mask].any()


@pytest.mark.parametrize("options", CHOICES[::3], ids=str)
def test_mpfr_s_definition_is_mpmath_s(options):
    inputs = drawn(3)
    mask = inputs["mask"]
    with mpmath.workprec(300), gmpy2.context(precision=PRECISION):
        truth = policies.policy_truth(policies.Tokens(inputs, options))
        x = [[mpmath.mpf(value) for value in row] for row in inputs["log_probs"].tolist()]
        arrays = {name: array for name, array in inputs.items() if name != "mask"}
        for (row, t), loss in in_mpmath(arrays | {"options": options, "mask": mask})(x, x).items():
            assert abs(mpmath.mpf(str(truth.losses[row][t])) - loss) <= mpmath.mpf(2) ** -200


def test_value_loss_by_finite_differences():
    inputs = values_drawn()
    mask = inputs["mask"]
    result = refloss.value_loss(**inputs, clip=0.25, aggregation="none", grad_output=np.full(mask.shape, 3.0))
    step = 2.0**-26
    for row, t in np.argwhere(mask).tolist():
        moved = []
        for sign in (1, -1):
            values = inputs["values"].copy()
            values[row, t] += sign * step
            moved.append(refloss.value_loss(**inputs | {"values": values}, clip=0.25, aggregation="none").loss[row, t])
        assert result.grads["values"][row, t] == pytest.approx(3.0 * (moved[0] - moved[1]) / (2 * step), abs=1e-6)


def policy_of_one(x, old, advantage, **options):
    given = (np.array([[value]], np.float64) for value in (x, old, advantage))
    return refloss.policy_loss(*given, aggregation="sum", **options)


def test_subgradients_of_policies_at_kinks():
    """As torch's autograd: clamp passes at its bounds, a minimum of equal numbers splits."""
    for advantage in (2.0, -2.0):
        at_both_bounds = policy_of_one(-1.0, -1.0, advantage, clip_low=0.0)
        assert at_both_bounds.grads["log_probs"] == -advantage
    # r = 1 is the dual clip.
    assert policy_of_one(-1.0, -1.0, -2.0, clip_low=0.0, dual_clip=1.0).grads["log_probs"] == 1.0
    assert policy_of_one(-1.0, -1.0, -2.0, clip_low=0.0, dual_clip=1.0).loss == 2.0
    # A bound that ratios of 1 are above, or below.
    assert policy_of_one(-1.0, -1.0, 2.0, clip_low=1.0, clip_high=-(2.0**-60)).grads["log_probs"] == 0.0
    assert policy_of_one(-1.0, -1.0, -2.0, clip_low=-(2.0**-60), clip_high=1.0).grads["log_probs"] == 0.0
    assert policy_of_one(-1.0, -1.0, 2.0, clip_low=1.0, clip_high=2.0**-60).grads["log_probs"] == -2.0


@pytest.mark.parametrize("high", [0.2, 0.28, 1e-3, 3.0])
def test_which_side_of_a_bound_a_ratio_is_on_is_known_exactly(high):
    """The log-ratio of three float64 next to log(1 + ε), 160 bits apart: no pair tells them from the bound."""
    with mpmath.workprec(400):
        exact = mpmath.log(1 + mpmath.mpf(high))
        first = float(exact)
        second = float(exact - first)
        for nudge in (-1, 0, 1):
            # x − old is exactly first + second, to the last bit of second.
            x, old = first, -float(np.nextafter(second, nudge * INF) if nudge else second)
            above = mpmath.mpf(x) - mpmath.mpf(old) > exact
            slope = policy_of_one(x, old, 1.0, clip_low=0.9, clip_high=high).grads["log_probs"]
            assert (slope == 0.0) == above, nudge


def test_subgradients_of_values_at_kinks():
    def slope(v, target, old, clip=0.25):
        given = ([[value]] for value in (v, target))
        result = refloss.value_loss(*map(np.array, given), old_values=np.array([[old]]), clip=clip)
        return float(result.loss), float(result.grads["values"][0, 0])

    assert slope(0.25, 1.0, 0.0) == (0.28125, -0.75)  # at the clip, where v_c is v
    assert slope(-0.25, 1.0, 0.0) == (0.78125, -1.25)
    assert slope(1.0, 0.625, 0.0) == (0.0703125, 0.1875)  # equal squares: half of the slope
    assert slope(1.0, np.nextafter(0.625, 0), 0.0)[1] == pytest.approx(0.375)
    assert slope(1.0, np.nextafter(0.625, 1), 0.0)[1] == 0.0
    assert slope(1.0, 1.0, 1.0, clip=0.0) == (0.0, 0.0)


def weights_in_fractions(name, sequences, mask, items):
    """What tokens of each sequence are weighed with."""
    lengths = [int(count) for count in mask.sum(axis=1)]
    rows = len(mask) if sequences == "all" else sum(length > 0 for length in lengths)
    denominator = {"token-mean": sum(lengths), "sum": 1}.get(name, rows) if items is None else Fraction(items)
    return [Fraction(1, 1) / denominator / (max(n, 1) if name == "seq-mean-token-mean" else 1) for n in lengths]


@pytest.mark.parametrize("items", [None, 2.75])
@pytest.mark.parametrize("sequences", SEQUENCES)
@pytest.mark.parametrize("name", AGGREGATIONS[:-1])
def test_aggregations_are_exact(name, sequences, items):
    """Sums that cancel to their last bit, over lengths whose inverses have no end."""
    mask = np.arange(7) < np.array([7, 0, 3, 1, 6])[:, None]
    v = np.where(mask, 2.0 ** np.arange(-3, 4), NAN) * np.array([[1], [1], [3], [5], [7]])
    given = {"mask": mask, "aggregation": name, "sequences": sequences, "num_items": items}
    result = refloss.value_loss(v, np.zeros(v.shape), **given, grad_output=-0.3)
    weights = weights_in_fractions(name, sequences, mask, items)
    total = Fraction(0)
    for row, t in np.argwhere(mask).tolist():
        total += weights[row] * Fraction(v[row, t]) ** 2 / 2
        assert result.grads["values"][row, t] == float(Fraction(-0.3) * weights[row] * Fraction(v[row, t]))
    assert result.loss == float(total)
    assert not result.grads["values"][~mask].any()


@pytest.mark.parametrize(("name", "items"), [("token-mean", 9.0), ("seq-mean-token-mean", 4.0), ("sum", 3.0)])
def test_micro_batches_with_num_items_add_up_exactly(name, items):
    inputs = drawn(7, 6, 5, np.float32)
    options = {"ratio": "sequence", "kl": "k3", "kl_coef": 0.04, "aggregation": name, "num_items": items}
    whole = refloss.policy_loss(**inputs, **options, grad_output=0.7)
    parts = [
        refloss.policy_loss(**{key: array[rows] for key, array in inputs.items()}, **options, grad_output=0.7)
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    joined = np.concatenate([part.grads["log_probs"] for part in parts])
    assert joined.tobytes() == whole.grads["log_probs"].tobytes()
    assert sum(part.loss for part in parts) == pytest.approx(whole.loss, rel=1e-15)
    turned = refloss.policy_loss(**{key: array[::-1] for key, array in inputs.items()}, **options, grad_output=0.7)
    assert turned.loss == whole.loss
    assert turned.grads["log_probs"].tobytes() == whole.grads["log_probs"][::-1].tobytes()


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
def test_tokens_that_do_not_count_leak_nothing(poison):
    inputs = drawn(9)
    options = {"kl": "k3", "kl_coef": 0.5, "ratio": "sequence", "aggregation": "seq-mean-token-mean"}
    clean = refloss.policy_loss(**inputs, **options)
    bad = {name: array if name == "mask" else np.where(inputs["mask"], array, poison) for name, array in inputs.items()}
    result = refloss.policy_loss(**bad, **options)
    assert result.loss == clean.loss
    assert result.grads["log_probs"].tobytes() == clean.grads["log_probs"].tobytes()
    for name, value in clean.intermediates.items():
        assert np.array_equal(result.intermediates[name], value), name


def test_nothing_over_nothing():
    inputs = drawn() | {"mask": np.zeros((4, 5), bool)}
    for name, sequences in itertools.product(AGGREGATIONS[:-1], SEQUENCES):
        result = refloss.policy_loss(**inputs, aggregation=name, sequences=sequences)
        is_defined = name == "sum" or (name.startswith("seq") and sequences == "all")
        assert result.loss == 0.0 if is_defined else np.isnan(result.loss)
        assert not result.grads["log_probs"].any()
    assert np.isnan(refloss.policy_loss(**inputs).intermediates["clip_fraction"])
    empty = refloss.policy_loss(*np.zeros((3, 0, 5)), aggregation="none")
    assert empty.loss.shape == empty.grads["log_probs"].shape == (0, 5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nothing_overflows_that_the_result_does_not(objective):
    """Log-ratios of ±700 and ±800, and no clamp at ±10 or ±20."""
    with mpmath.workprec(300):
        for d, advantage in itertools.product((100.0, -100.0, 700.0, -700.0, 800.0, -800.0), (1e-30, -1e-60)):
            result = policy_of_one(d - 900.0, -900.0, advantage, objective=objective, grad_output=1e-40)
            r, a = mpmath.exp(mpmath.mpf(d)), mpmath.mpf(advantage)
            held = min(max(r, 1 - mpmath.mpf(0.2)), 1 + mpmath.mpf(0.2))
            tau = mpmath.mpf(1.0 if advantage > 0 else 1.05)
            u = mpmath.exp(-tau * abs(r - 1))
            sapo = -4 * u / (1 + u) ** 2 * r * a
            slope = {"clip": -r * a if -r * a > -held * a else 0, "cispo": -held * a, "sapo": sapo}[objective]
            assert result.grads["log_probs"][0, 0] == pytest.approx(float(slope * mpmath.mpf(1e-40)), rel=1e-15)
            loss = {"clip": max(-r * a, -held * a), "cispo": -held * a * (d - 900)}.get(objective)
            if loss is not None:
                assert result.loss == pytest.approx(float(loss), rel=1e-15)


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9, 1e-13, 1e-100])
def test_k3_next_to_0_keeps_its_digits(size):
    result = policy_of_one(-size, -size, 0.0, ref_log_probs=np.array([[-3 * size]]), kl="k3", kl_coef=0.5)
    with mpmath.workprec(2000):
        q = mpmath.mpf(-3 * size) + mpmath.mpf(size)
        assert result.intermediates["kl"][0, 0] == float(mpmath.expm1(q) - q)
        assert result.grads["log_probs"][0, 0] == float(-mpmath.expm1(q) / 2)


def test_what_tokens_hold_is_kept():
    """Ratios, estimates, and the share of tokens beyond the side that is clipped."""
    x, old = np.log([[1.5, 1.5, 0.5, 0.5, 1.0]]), np.zeros((1, 5))
    advantages = np.array([[1.0, -1.0, 1.0, -1.0, 1.0]])
    result = refloss.policy_loss(x, old, advantages, ref_log_probs=x + 0.5, kl="k2")
    assert result.intermediates["clip_fraction"] == 2 / 5
    assert np.allclose(result.intermediates["ratio"], [[1.5, 1.5, 0.5, 0.5, 1.0]])
    assert np.allclose(result.intermediates["kl"], 0.125)
    cispo = refloss.policy_loss(x, old, advantages, objective="cispo", clip_low=None, clip_high=0.2)
    assert cispo.intermediates["clip_fraction"] == 2 / 5
    assert "kl" not in cispo.intermediates
    mask = np.array([[True, False, True, True, False]])
    of_sequence = refloss.policy_loss(x, old, advantages, mask=mask, ratio="sequence")
    assert np.allclose(of_sequence.intermediates["ratio"], np.where(mask, 0.375 ** (1 / 3), 0.0))


@pytest.mark.parametrize("function", ["value_loss", "policy_loss"])
def test_threads_and_blocks_do_not_show(function, monkeypatch):
    cases = [case for case in cases_of(function) if "-options" in case.id or "long" in case.id or "sequence" in case.id]
    for case in cases:
        seen = set()
        for block, threads in ((1, 1), (1, 2), (4096, 2)):
            monkeypatch.setattr(run, "BLOCK_TOKENS", block)
            monkeypatch.setattr(parallel, "get_num_threads", lambda threads=threads: threads)
            result = getattr(refloss, function)(**case.inputs, **case.parameters, grad_output=case.grad_output)
            seen.add((np.asarray(result.loss).tobytes(), *(part.tobytes() for part in result.grads.values())))
        assert len(seen) == 1, case.id


@pytest.mark.parametrize("dtype", DTYPES)
def test_advantages_and_weights_of_sequences_are_those_of_their_tokens(dtype):
    inputs = drawn(11, dtype=DTYPES[dtype])
    few = {name: inputs[name][:, 0] for name in ("advantages", "weights")}
    many = {name: np.repeat(array[:, None], 5, axis=1) for name, array in few.items()}
    one = {name: array[:, None] for name, array in few.items()}
    expected = refloss.policy_loss(**inputs | many)
    for given in (few, one):
        result = refloss.policy_loss(**inputs | given)
        assert result.loss == expected.loss
        assert result.grads["log_probs"].tobytes() == expected.grads["log_probs"].tobytes()


ZEROS = np.zeros((2, 3))
WRONG = [
    ({"log_probs": np.zeros(3)}, ValueError, r"log_probs has shape \(3,\); expected \[B, T\]"),
    ({"log_probs": np.zeros((2, 3), int)}, TypeError, "log_probs has dtype int64"),
    ({"old_log_probs": np.zeros(2)}, ValueError, r"old_log_probs has shape \(2,\); expected \(2, 3\)"),
    ({"advantages": np.zeros(3)}, ValueError, r"advantages has shape \(3,\).*or one number for each of its sequences"),
    ({"weights": np.zeros((1, 3))}, ValueError, r"weights has shape \(1, 3\)"),
    ({"mask": np.zeros(2, bool)}, ValueError, r"mask has shape \(2,\); expected \(2, 3\), one for each of log_probs"),
    ({"mask": np.full((2, 3), 2)}, ValueError, "mask has other numbers than 0 and 1"),
    ({"objective": "ppo"}, ValueError, "objective is 'ppo'"),
    ({"ratio": "row"}, ValueError, "ratio is 'row'"),
    ({"kl": "k4", "ref_log_probs": ZEROS}, ValueError, "kl is 'k4'"),
    ({"kl": "k3"}, ValueError, "ref_log_probs is None"),
    ({"kl_coef": 0.1}, ValueError, "kl_coef is 0.1 and kl is None"),
    ({"kl_coef": NAN}, ValueError, "kl_coef is nan"),
    ({"kl_ratio_weighted": 2}, TypeError, "kl_ratio_weighted is 2"),
    ({"clip_low": NAN}, ValueError, "clip_low is nan"),
    ({"clip_low": None}, ValueError, "clip_low and clip_high are None"),
    ({"clip_low": -1.0, "clip_high": 0.5}, ValueError, "clip_low is -1 and clip_high 0.5"),
    ({"dual_clip": 0.0}, ValueError, "dual_clip is 0.0"),
    ({"dual_clip": 3.0, "objective": "sapo"}, ValueError, "dual_clip is given"),
    ({"aggregation": "mean"}, ValueError, "aggregation is 'mean'"),
    ({"aggregation": "none", "num_items": 3}, ValueError, "num_items is given"),
    ({"num_items": -1}, ValueError, "num_items is -1.0"),
    ({"sequences": "some"}, ValueError, "sequences is 'some'"),
    ({"sapo_temperature_neg": 0.0}, ValueError, "sapo_temperature_neg is 0.0"),
    ({"grad_output": ZEROS}, ValueError, "grad_output has shape"),
    ({"epsilon": 0.2}, TypeError, "epsilon"),
]


@pytest.mark.parametrize(("given", "error", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_bad_arguments_of_policies(given, error, message):
    inputs = {"log_probs": ZEROS, "old_log_probs": ZEROS, "advantages": ZEROS}
    with pytest.raises(error, match=message):
        refloss.policy_loss(**inputs | given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clip": 0.2}, "old_values is None"),
        ({"clip": -0.1, "old_values": ZEROS}, "clip is -0.1"),
        ({"returns": np.zeros(2)}, r"returns has shape \(2,\)"),
        ({"old_values": np.zeros(2)}, r"old_values has shape \(2,\)"),
    ],
)
def test_bad_arguments_of_values(given, message):
    with pytest.raises(ValueError, match=message):
        refloss.value_loss(**{"values": ZEROS, "returns": ZEROS} | given)


def test_what_is_not_finite_and_counts_comes_out_as_torch_has_it():
    """Of a return, a value or an old value that is infinite; and of log-probabilities of −inf."""
    v = np.array([[INF, 1.0, NAN, 1.0]])
    target, old = np.array([[0.0, INF, 0.0, 0.0]]), np.array([[0.0, 0.0, 0.0, NAN]])
    result = refloss.value_loss(v, target, old_values=old, clip=0.5, aggregation="none")
    assert np.array_equal(result.loss, [[INF, INF, NAN, NAN]], equal_nan=True)
    assert np.array_equal(result.grads["values"], [[INF, -INF, NAN, 1.0]], equal_nan=True)
    unclipped = refloss.value_loss(np.array([[INF, 1.0, NAN]]), np.array([[0.0, INF, 0.0]]), aggregation="none")
    assert np.array_equal(unclipped.loss, [[INF, INF, NAN]], equal_nan=True)
    assert np.array_equal(unclipped.grads["values"], [[INF, -INF, NAN]], equal_nan=True)
    gone = policy_of_one(-INF, -1.0, 2.0)
    assert (gone.loss, gone.grads["log_probs"][0, 0]) == (0.0, 0.0)
    assert np.isnan(policy_of_one(-1.0, -INF, 2.0).grads["log_probs"][0, 0])
    assert policy_of_one(-1.0, -INF, -2.0).loss == INF
    assert np.isnan(policy_of_one(NAN, -1.0, 2.0).loss)


def test_nothing_of_what_is_not_finite_is_lost():
    """An advantage of 0 hides no NaN; nothing times an infinite ratio is NaN; an infinite weight of what is cut, 0."""
    for options in ({}, {"dual_clip": 3.0}, {"objective": "sapo"}):
        for x, old in ((NAN, -1.0), (-1.0, NAN), (INF, -1.0), (-1.0, -INF)):
            assert np.isnan(policy_of_one(x, old, 0.0, **options).grads["log_probs"]).all(), (options, x, old)
    assert np.isnan(policy_of_one(-1.0, -1.0, 0.0, weights=np.array([-INF])).loss)
    beyond = policy_of_one(0.0, -1.0, 2.0, weights=np.array([INF]))
    assert (beyond.loss, beyond.grads["log_probs"][0, 0]) == (-INF, 0.0)
    # Both are infinite: the minimum gives each half, and the clamp passes nothing.
    assert policy_of_one(0.0, -1.0, INF).grads["log_probs"] == -INF
    assert policy_of_one(0.0, -1.0, -INF, dual_clip=3.0, clip_low=-3.0, clip_high=3.0).loss == INF


@pytest.mark.parametrize(("kl", "expected"), [("k1", -INF), ("k2", NAN), ("k3", NAN)])
def test_slopes_of_infinite_estimates_do_not_cancel(kl, expected):
    """Of r·KL: −q and its slope 1; q²/2 and −q; e^q − q − 1 and 1 − e^q, of an infinite q."""
    options = {"kl": kl, "kl_coef": 1.0, "kl_ratio_weighted": True, "ref_log_probs": np.array([[INF]])}
    result = policy_of_one(-1.0, -1.0, 0.0, **options)
    assert np.array_equal(result.grads["log_probs"], [[expected]], equal_nan=True)
    # What is cut has no slope in r; its KL has one.
    beyond = policy_of_one(INF, -1.0, 2.0, **options | {"kl": "k1", "ref_log_probs": np.array([[-1.0]])})
    assert beyond.grads["log_probs"][0, 0] == INF
    held = policy_of_one(-1.0, -INF, 2.0, objective="cispo")
    assert held.grads["log_probs"][0, 0] == -2.0 * 1.2
