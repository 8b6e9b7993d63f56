"""Losses of preferences: correct rounding of every kind, derivatives, limits, layouts, edges, bad input."""

import ml_dtypes
import mpmath
import numpy as np
import pytest

import refloss
from refloss.cases import preferences as cases
from refloss.cases.preferences import KINDS
from refloss.testing.judging.diagnosing import diagnosed
from refloss.testing.judging.judge import judge
from refloss.testing.verdict import Judgement
from tests.mpfr.measure import KINDS as MEASURED
from tests.mpfr.measure import measured
from tests.questions import questions
from tests.test_derivatives import TOLERANCE, fourth_order
from tests.test_same_bits import bits, layouts
from tests.truth import correctly_rounded, pairs, ulp_errors

NAMES = ("chosen_log_probs", "rejected_log_probs", "ref_chosen_log_probs", "ref_rejected_log_probs")
ALONE = ("simpo", "orpo")
SHORT = [np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)]
OPTIONS = {
    "sigmoid": {"label_smoothing": 0.2},
    "robust": {"label_smoothing": 0.2},
    "exo_pair": {"label_smoothing": 0.2},
    "simpo": {"gamma": 0.3, "label_smoothing": 0.1},
}


def _arrays(kind, count, seed=1):
    """Log-probabilities in float64; mean ones, and no references, where a kind has these."""
    generator = np.random.default_rng(seed)
    if kind in ALONE:
        return list(-0.05 - generator.exponential(1.0, (2, count)))
    chosen, rejected = -generator.exponential(20.0, (2, count))
    return [chosen, rejected, *(chosen, rejected) + 4 * generator.standard_normal((2, count))]


def _sigma(x):
    return 1 / (1 + mpmath.exp(-x))


def _of_x(kind, x, smoothing):
    """The value, as the papers write it."""
    if kind in ("sigmoid", "simpo"):
        return -(1 - smoothing) * mpmath.log(_sigma(x)) - smoothing * mpmath.log(_sigma(-x))
    if kind == "robust":
        flipped = -(1 - smoothing) * mpmath.log(_sigma(x)) + smoothing * mpmath.log(_sigma(-x))
        return flipped / (1 - 2 * smoothing)
    if kind == "hinge":
        return max(1 - x, mpmath.mpf(0))
    if kind == "exo_pair":
        most = mpmath.log(_sigma(x) / (1 - smoothing))
        return _sigma(x) * most + _sigma(-x) * mpmath.log(_sigma(-x) / smoothing)
    modulation = _sigma(x / mpmath.mpf(0.05))
    return -mpmath.log(_sigma(x)) * (1 - modulation) + mpmath.exp(-x) * modulation


def _nca(a, b, beta):
    logs = [mpmath.log(_sigma(x)) for x in (beta * a, -beta * a, -beta * b)]
    return -logs[0] - logs[1] / 2 - logs[2] / 2


OF_BOTH = {
    "ipo": lambda a, b, beta: (a - b - 1 / (2 * beta)) ** 2,
    "nca_pair": _nca,
    "sppo_hard": lambda a, b, beta: (a - 1 / (2 * beta)) ** 2 + (b + 1 / (2 * beta)) ** 2,
    "apo_zero": lambda a, b, beta: 1 - _sigma(beta * a) + _sigma(beta * b),
    "apo_down": lambda a, b, beta: _sigma(beta * a) + 1 - _sigma(beta * (a - b)),
}


def _value(kind, w, r, v, m, options):
    beta, smoothing = mpmath.mpf(options.get("beta", 0.1)), mpmath.mpf(options.get("label_smoothing", 0.0))
    a, b = w - v, r - m
    if kind in OF_BOTH:
        return OF_BOTH[kind](a, b, beta)
    if kind == "orpo":
        odds = [mpmath.exp(p) / (1 - mpmath.exp(p)) for p in (w, r)]
        return -w - beta * mpmath.log(_sigma(mpmath.log(odds[0] / odds[1])))
    return _of_x(kind, beta * (a - b) - mpmath.mpf(options.get("gamma", 0.0)), smoothing)


def _truth(kind, arrays, options):
    """Values and both slopes of pairs, the slopes by differences of the value."""
    step, values, slopes = mpmath.mpf(2) ** -300, [], ([], [])
    nothing = np.zeros(arrays[0].shape)
    for point in zip(*arrays, *[nothing] * (4 - len(arrays)), strict=True):
        w, r, v, m = (mpmath.mpf(float(value)) for value in point)
        values.append(_value(kind, w, r, v, m, options))
        for k, each in enumerate(slopes):
            up, down = ((w + s, r) if k == 0 else (w, r + s) for s in (step, -step))
            each.append((_value(kind, *up, v, m, options) - _value(kind, *down, v, m, options)) / (2 * step))
    return values, slopes


@pytest.mark.parametrize("dtype", SHORT, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_rounded_once(kind, dtype):
    arrays, options = [array.astype(dtype) for array in _arrays(kind, 25)], OPTIONS.get(kind, {})
    generator = np.random.default_rng(2)
    cotangent = generator.choice([1 / 3, -0.1, 0.7], 25)
    result = refloss.preference_loss(*arrays, kind=kind, reduction="none", grad_output=cotangent, **options)
    mean = refloss.preference_loss(*arrays, kind=kind, grad=False, **options)
    with mpmath.workprec(1000):
        values, slopes = _truth(kind, arrays, options)
        exact = [pairs([mpmath.mpf(c) * s for c, s in zip(cotangent, each, strict=True)]) for each in slopes]
        losses, total = pairs(values), pairs(mpmath.fsum(values) / 25)
    for gradient, true in zip(result.grads.values(), exact, strict=True):
        assert gradient.dtype == dtype
        assert correctly_rounded(ulp_errors(gradient, true, dtype.name)).all()
    assert ulp_errors(result.loss, losses, "float64").max() <= 1
    assert ulp_errors(mean.loss, total, "float64") <= 1


@pytest.mark.parametrize(
    ("function", "kind"), [(name, kind) for name in ("kto", "preference_loss") for kind in MEASURED[name]]
)
def test_adversarial_inputs_are_rounded_once(function, kind):
    for tally in measured(function, kind, 120, seed=1):
        found = f"{tally.name} in {tally.format}: {tally.wrong} of {tally.size}, {tally.worst} ulp, {tally.example}"
        if tally.format != "float64":
            assert tally.wrong == 0, found
        else:
            assert tally.worst <= 2, found


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_derivatives(kind, reduction):
    """References have none; kinks are far."""
    arrays = dict(zip(NAMES, _arrays(kind, 5, seed=3), strict=False))
    if kind == "orpo":
        arrays = {name: array - 0.5 for name, array in arrays.items()}
    cotangent = np.random.default_rng(4).standard_normal(5) if reduction == "none" else -1.7
    given = {"kind": kind, "reduction": reduction, "beta": 0.04, **OPTIONS.get(kind, {})}
    result = refloss.preference_loss(**arrays, grad_output=cotangent, **given)
    assert result.grads.keys() == {*NAMES[:2]}
    for name in NAMES[:2]:

        def contracted(moved, name=name):
            return np.sum(cotangent * refloss.preference_loss(**arrays | {name: moved}, grad=False, **given).loss)

        scale = max(1.0, np.abs(result.grads[name]).max())
        np.testing.assert_allclose(
            result.grads[name], fourth_order(contracted, arrays[name]), rtol=0, atol=100 * scale * TOLERANCE
        )


def test_what_kinds_have_in_common():
    """cDPO without smoothing is DPO; so are "robust", and "simpo" of log-ratios, to the bit."""
    w, r, v, m = _arrays("sigmoid", 40)
    plain = refloss.preference_loss(w, r, v, m, reduction="none")
    assert bits(refloss.preference_loss(w, r, v, m, kind="robust", reduction="none")) == bits(plain)
    quarters = [np.round(4 * array) / 4 for array in (w, r)]
    one = refloss.preference_loss(*quarters, kind="simpo", gamma=0.0, reduction="none")
    assert bits(one) == bits(refloss.preference_loss(*quarters, reduction="none"))
    assert bits(one) == bits(refloss.preference_loss(*quarters, np.zeros(40), np.zeros(40), reduction="none"))
    half = refloss.preference_loss(w, r, v, m, label_smoothing=0.5, reduction="none")
    other = refloss.preference_loss(r, w, m, v, label_smoothing=0.5, reduction="none")
    assert np.array_equal(half.loss, other.loss)
    assert np.array_equal(half.grads["chosen_log_probs"], other.grads["rejected_log_probs"])


def test_optima_and_kinks_are_found_exactly():
    base, steps = np.full(3, -3.0), np.array([2.0, 2.0 + 2.0**-50, 2.0 - 2.0**-50])
    hinge = refloss.preference_loss(base + steps, base, base, base, kind="hinge", beta=0.5, reduction="none")
    assert hinge.loss.tolist() == [0.0, 0.0, 2.0**-51]
    assert hinge.grads["chosen_log_probs"].tolist() == [0.0, 0.0, -0.5]
    for kind in ("ipo", "sppo_hard"):
        met = refloss.preference_loss(base + 1.0, base - (kind == "sppo_hard"), base, base, kind=kind, beta=0.5)
        assert met.loss == 0.0
        assert not any(np.any(gradient) for gradient in met.grads.values())
    # 1/2β is no float64 for β = 0.1: h = 5 is 2^-52 · 5/4 beyond it.
    near = refloss.preference_loss(np.array([5.0]), np.zeros(1), kind="ipo", beta=0.1)
    with mpmath.workprec(300):
        beyond = 5 - 1 / (2 * mpmath.mpf(0.1))
        assert ulp_errors(near.loss, pairs(beyond**2), "float64") <= 0.51
        assert ulp_errors(near.grads["chosen_log_probs"], pairs([2 * beyond]), "float64").max() <= 0.51
    # A rejected answer that is as likely as before leaves "apo_down" without a slope for what was chosen.
    down = refloss.preference_loss(
        np.array([-4.0]), np.array([-7.0]), np.array([-2.0]), np.array([-7.0]), kind="apo_down"
    )
    assert down.grads["chosen_log_probs"].tolist() == [0.0]
    smoothed = {"kind": "exo_pair", "label_smoothing": 0.5 - 2.0**-54, "beta": 1.0}
    least = refloss.preference_loss(np.array([0.0]), np.array([0.0]), **smoothed)
    assert 0.0 < least.loss < 1e-30
    assert -1e-15 < least.grads["chosen_log_probs"][0] < 0.0


def test_odds_of_what_is_nearly_certain():
    """log(1 − e^p) is log(1e-9), and not log 0."""
    w, r = np.array([-1e-9, -1e-9, -1e-300, -700.0]), np.array([-1.0, -1e-9, -1e-300, -1e-9])
    result = refloss.preference_loss(w, r, kind="orpo", reduction="none")
    assert np.isfinite(result.loss).all()
    with mpmath.workprec(3000):
        values, slopes = _truth_of_odds(w, r)
        assert ulp_errors(result.loss, pairs(values), "float64").max() <= 1
        for gradient, each in zip(result.grads.values(), slopes, strict=True):
            assert ulp_errors(gradient, pairs(each), "float64").max() <= 1
    certain = refloss.preference_loss(np.array([0.0]), np.array([-np.log(2.0)]), kind="orpo")
    assert certain.loss == 0.0
    assert certain.grads["chosen_log_probs"].tolist() == [pytest.approx(-1.1, rel=1e-15)]
    assert certain.grads["rejected_log_probs"].tolist() == [0.0]
    above = refloss.preference_loss(np.array([0.5]), np.array([-1.0]), kind="orpo")
    assert np.isnan(above.loss)
    assert np.isnan(above.grads["chosen_log_probs"]).all()


def _truth_of_odds(w, r):
    values, slopes = [], ([], [])
    for point in zip(w, r, strict=True):
        p, q = (mpmath.mpf(float(value)) for value in point)
        odds = [x - mpmath.log(-mpmath.expm1(x)) for x in (p, q)]
        z, beta = odds[0] - odds[1], mpmath.mpf(0.1)
        values.append(-p + beta * mpmath.log1p(mpmath.exp(-z)))
        slopes[0].append(-1 + beta * _sigma(-z) / mpmath.expm1(p))
        slopes[1].append(-beta * _sigma(-z) / mpmath.expm1(q))
    return values, slopes


def test_nothing_overflows_where_the_exact_value_is_finite():
    """x of ±10⁴ and more: "discopop" of e^−x·σ(20x) among them."""
    h = np.array([1e5, -1e5, 3e300, -3e300])
    zero = np.zeros(4)
    for kind in ("sigmoid", "robust", "hinge", "nca_pair", "apo_zero", "apo_down", "discopop", "exo_pair"):
        options = {"label_smoothing": 0.1} if kind == "exo_pair" else {}
        result = refloss.preference_loss(h, zero, zero, zero, kind=kind, reduction="none", **options)
        assert np.isfinite(result.loss).all(), kind
        assert all(np.isfinite(gradient).all() for gradient in result.grads.values()), kind
    assert refloss.preference_loss(h, zero, reduction="none").loss.tolist() == [0.0, 1e4, 0.0, 3e299]
    assert refloss.preference_loss(h, zero, kind="discopop", reduction="none").loss.tolist() == [0.0, 1e4, 0.0, 3e299]


def test_log_probabilities_that_are_infinite():
    gone, there = np.array([-np.inf, -1.0, -np.inf]), np.array([-1.0, -np.inf, -np.inf])
    result = refloss.preference_loss(gone, there, reduction="none")
    assert np.array_equal(result.loss, [np.inf, 0.0, np.nan], equal_nan=True)
    assert np.array_equal(result.grads["chosen_log_probs"], [-0.1, 0.0, np.nan], equal_nan=True)
    hinge = refloss.preference_loss(gone[:2], there[:2], kind="hinge", reduction="none")
    assert hinge.loss.tolist() == [np.inf, 0.0]
    down = refloss.preference_loss(gone[:2], there[:2], kind="apo_down", reduction="none")
    assert down.loss.tolist() == [1.0, pytest.approx(1 / (1 + np.exp(0.1)), rel=1e-15)]


def test_threads_blocks_layouts_and_what_is_asked_for_do_not_show(monkeypatch):
    from refloss.kernels.preferences import run

    arrays = [array.reshape(20, 30).astype(np.float32) for array in _arrays("sigmoid", 600)]
    for kind in ("nca_pair", "discopop"):
        given = {"kind": kind, "grad_output": 1.3}
        expected = bits(refloss.preference_loss(*arrays, **given))
        threads = refloss.get_num_threads()
        for count, block in ((1, 7), (3, 64), (2, 1 << 12)):
            monkeypatch.setattr(run, "BLOCK_PAIRS", block)
            refloss.set_num_threads(count)
            assert bits(refloss.preference_loss(*arrays, **given)) == expected
        refloss.set_num_threads(threads)
        for k in range(4):
            for layout, view in layouts(arrays[k]):
                moved = [*arrays[:k], view, *arrays[k + 1 :]]
                assert bits(refloss.preference_loss(*moved, **given)) == expected, (k, layout)
    everything = refloss.preference_loss(*arrays)
    for name in NAMES[:2]:
        one = refloss.preference_loss(*arrays, grad=name)
        assert one.grads.keys() == {name}
        assert np.array_equal(one.grads[name], everything.grads[name])
    out = np.empty((20, 30))
    refloss.preference_loss(*arrays, grad_dtype=np.float64, out=out)
    assert np.array_equal(out.astype(np.float32), everything.grads[NAMES[0]])


def test_no_pairs():
    nothing = np.zeros(0, np.float32)
    assert np.isnan(refloss.preference_loss(nothing, nothing).loss)
    assert refloss.preference_loss(nothing, nothing, reduction="sum").loss == 0.0
    assert np.isnan(refloss.kto(nothing, nothing, np.zeros(0, bool), 0.5).loss)


BAD_PAIRS = [
    ({"kind": "dpo"}, ValueError, "kind is 'dpo'; expected one of 'sigmoid', 'robust'"),
    ({"kind": "hinge", "label_smoothing": 0.1}, ValueError, "label_smoothing is 0.1; expected 0 for kind 'hinge'"),
    ({"label_smoothing": 1.5}, ValueError, r"label_smoothing is 1.5; expected a number in \[0, 1\] for"),
    ({"kind": "robust", "label_smoothing": 0.5}, ValueError, r"expected a number in \[0, 0.5\) for kind 'robust'"),
    ({"kind": "exo_pair"}, ValueError, r"label_smoothing is 0.0; expected a number in \(0, 0.5\) for"),
    ({"gamma": 0.5}, ValueError, "gamma is 0.5, and 'sigmoid' has none; 'simpo' has"),
    ({"beta": 0.0}, ValueError, "beta is 0.0; expected a finite positive number"),
    ({"beta": -0.1}, ValueError, "beta is -0.1"),
    ({"kind": "orpo"}, ValueError, "ref_chosen_log_probs is given, and 'orpo' has no reference; expected None"),
    ({"ref_chosen_log_probs": None}, ValueError, "ref_chosen_log_probs is None and ref_rejected_log_probs is not"),
    ({"rejected_log_probs": np.zeros(2)}, ValueError, r"rejected_log_probs has shape \(2,\); expected \(3,\)"),
    ({"ref_chosen_log_probs": np.zeros((3, 1))}, ValueError, r"ref_chosen_log_probs has shape \(3, 1\)"),
    ({"chosen_log_probs": np.zeros(3, int)}, TypeError, "chosen_log_probs has dtype int64"),
    ({"reduction": "batchmean"}, ValueError, "reduction is 'batchmean'"),
    ({"grad_output": np.ones(3)}, ValueError, r"grad_output has shape \(3,\); expected \(\)"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_PAIRS, ids=str)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        refloss.preference_loss(**dict.fromkeys(NAMES, np.zeros(3)) | arguments)


def _of_sequence(a, desirable, options):
    beta = mpmath.mpf(options.get("beta", 0.1))
    y = beta * (a - max(mpmath.mpf(options["kl"]), 0))
    weight = mpmath.mpf(options["desirable_weight" if desirable else "undesirable_weight"])
    sign = -1 if desirable else 1
    return weight * (1 - _sigma(-sign * y)), sign * weight * beta * _sigma(y) * _sigma(-y)


@pytest.mark.parametrize("dtype", SHORT, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("kl", [0.7, -3.0])
def test_kto_is_rounded_once(kl, dtype):
    values, _, reference, _ = (array.astype(dtype) for array in _arrays("sigmoid", 99))
    generator = np.random.default_rng(5)
    desirable, cotangent = generator.random(99) < 0.5, generator.choice([1 / 3, -0.1, 0.7], 99)
    options = {"kl": kl, "beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.6}
    result = refloss.kto(values, reference, desirable, **options, reduction="none", grad_output=cotangent)
    with mpmath.workprec(1000):
        points = [mpmath.mpf(float(x)) - mpmath.mpf(float(t)) for x, t in zip(values, reference, strict=True)]
        found = [_of_sequence(a, flag, options) for a, flag in zip(points, desirable, strict=True)]
        slopes = pairs([mpmath.mpf(c) * slope for c, (_, slope) in zip(cotangent, found, strict=True)])
        losses = pairs([value for value, _ in found])
    assert result.grads.keys() == {"log_probs"}
    assert correctly_rounded(ulp_errors(result.grads["log_probs"], slopes, dtype.name)).all()
    assert ulp_errors(result.loss, losses, "float64").max() <= 1


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_kto_gradients_are_derivatives(reduction):
    values, _, reference, _ = _arrays("sigmoid", 6)
    desirable = np.arange(6) % 2 == 0
    cotangent = np.arange(1.0, 7.0) if reduction == "none" else -1.7
    given = {"kl": 0.4, "desirable_weight": 1.5, "undesirable_weight": 0.5, "reduction": reduction}

    def contracted(moved):
        return np.sum(cotangent * refloss.kto(moved, reference, desirable, grad=False, **given).loss)

    result = refloss.kto(values, reference, desirable, grad_output=cotangent, **given)
    np.testing.assert_allclose(result.grads["log_probs"], fourth_order(contracted, values), rtol=0, atol=TOLERANCE)


def test_what_kto_takes():
    values, _, reference, _ = _arrays("sigmoid", 8)
    desirable = np.arange(8) < 3
    plain = bits(refloss.kto(values, reference, desirable, 0.5))
    assert bits(refloss.kto(values, reference, desirable.astype(np.int8), np.float32(0.5))) == plain
    assert bits(refloss.kto(values, reference, desirable.tolist(), np.array(0.5))) == plain
    assert bits(refloss.kto(values, reference, desirable, -2.0)) == bits(refloss.kto(values, reference, desirable, 0.0))
    gone = refloss.kto(
        np.array([-np.inf, -np.inf]), np.zeros(2), [True, False], 0.0, desirable_weight=2.0, reduction="none"
    )
    assert gone.loss.tolist() == [2.0, 0.0]
    assert gone.grads["log_probs"].tolist() == [0.0, 0.0]


BAD_SEQUENCES = [
    ({"desirable": np.zeros(3)}, TypeError, "desirable has dtype float64; expected bool, or integers 0 and 1"),
    ({"desirable": np.array([0, 1, 2])}, ValueError, r"desirable\[2\] = 2 is outside \[0, 1\]"),
    ({"desirable": np.zeros((3, 3), bool)}, ValueError, r"desirable has shape \(3, 3\); expected \(3,\), the shape of"),
    ({"ref_log_probs": np.zeros((3, 1))}, ValueError, r"ref_log_probs has shape \(3, 1\)"),
    ({"kl": np.zeros(3)}, ValueError, r"kl has shape \(3,\); expected a number"),
    ({"kl": np.nan}, ValueError, "kl is nan; expected a finite number"),
    ({"beta": 0.0}, ValueError, "beta is 0.0; expected a finite positive number"),
    ({"desirable_weight": -1.0}, ValueError, "desirable_weight is -1.0; expected a finite number of at least 0"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_SEQUENCES, ids=str)
def test_bad_input_of_kto(arguments, error, message):
    given = {"log_probs": np.zeros(3), "ref_log_probs": np.zeros(3), "desirable": np.zeros(3, bool), "kl": 0.0}
    with pytest.raises(error, match=message):
        refloss.kto(**given | arguments)


@pytest.mark.parametrize("kind", ["sigmoid", "simpo", "exo_pair", "nca_pair", "ipo", "sppo_hard"])
def test_gradients_next_to_their_zeros_have_all_digits(kind):
    """The nearest float64 numbers to a zero that is none of them."""
    options = {"kind": kind, "beta": 0.3, **({"gamma": 0.7} if kind == "simpo" else {})}
    if kind in cases.SMOOTHED:
        options["label_smoothing"] = 0.1
    balance = np.log(9.0) + options.get("gamma", 0.0)
    zero = {"nca_pair": np.log(2.0), "ipo": 0.5, "sppo_hard": 0.5}.get(kind, balance) / 0.3
    chosen = zero + np.arange(-8, 9) * np.spacing(zero)
    arrays = [chosen, np.zeros(17)]
    result = refloss.preference_loss(*arrays, reduction="none", **options)
    with mpmath.workprec(1000):
        values, slopes = _truth(kind, arrays, options)
        exact = pairs(slopes[0])
        assert ulp_errors(result.loss, pairs(values), "float64").max() <= 0.51
    assert ulp_errors(result.grads["chosen_log_probs"], exact, "float64").max() <= 0.51


def test_any_smoothing_is_told_from_none():
    """1 − 1e-160 has 160 digits."""
    arrays, options = [np.array([380.0, 368.5]), np.zeros(2)], {"beta": 1.0, "label_smoothing": 1e-160}
    result = refloss.preference_loss(*arrays, kind="exo_pair", reduction="none", **options)
    with mpmath.workprec(2000):
        values, _ = _truth("exo_pair", arrays, options)
        assert ulp_errors(result.loss, pairs(values), "float64").max() <= 0.51


@pytest.mark.parametrize("kind", ["ipo", "sppo_hard"])
def test_no_beta_makes_the_optimum_overflow(kind):
    for beta in (1e300, 1.7e308):
        result = refloss.preference_loss(np.array([1e100]), np.zeros(1), kind=kind, beta=beta)
        assert (result.loss, result.grads["chosen_log_probs"].tolist()) == (1e200, [2e100])
    far = refloss.preference_loss(np.array([1.0]), np.zeros(1), kind=kind, beta=5e-324)
    assert (far.loss, far.grads["chosen_log_probs"].tolist()) == (np.inf, [-np.inf])


def test_the_judge_names_a_kl_that_is_ignored():
    asked = [
        each for each in questions("kto") if each.case.parameters["kl"] > 0 and each.case.inputs["log_probs"].size < 100
    ]
    verdicts = []
    for each in asked:
        case = each.case
        result = refloss.kto(**case.inputs, **case.parameters | {"kl": 0.0}, grad_output=case.grad_output)
        verdicts.append(judge(each, {"loss": result.loss, "grad.log_probs": result.grads["log_probs"]}))
    found = Judgement(diagnosed(verdicts, {each.case.id: each for each in asked}.__getitem__))
    assert not any(verdict.passed for verdict in verdicts)
    assert found.diagnoses[0].mistake == "kl is ignored"


def test_odds_of_subnormal_log_probabilities():
    arrays = [np.array([-1.0, -5e-324, -1e-310, -3e-320, -1.0]), np.array([-5e-324, -1.0, -2e-310, -4e-322, -1e-290])]
    result = refloss.preference_loss(*arrays, kind="orpo", beta=0.5, reduction="none", grad=False)
    with mpmath.workprec(3000):
        values, _ = _truth("orpo", arrays, {"beta": 0.5})
        assert ulp_errors(result.loss, pairs(values), "float64").max() <= 0.51
