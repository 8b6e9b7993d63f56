"""Distillation from a teacher's most probable classes: mpmath, MPFR, derivatives, edges, bits and bad input."""

import itertools
from typing import Any

import gmpy2
import mpmath
import numpy as np
import pytest

import refloss
from tests.mpfr import topk
from tests.mpfr.rounding import PRECISION, tally
from tests.mpfr.topk import log_softmax, most_probable
from tests.test_derivatives import TOLERANCE, fourth_order
from tests.test_elementwise import DTYPES
from tests.test_examples import code_blocks
from tests.test_same_bits import bits, layouts

INFINITY, NAN = np.inf, np.nan
TAILS = topk.TAILS


def teacher_of(x, count):
    return most_probable(log_softmax(np.asarray(x, np.float64)), count)


def problem(rows=5, classes=9, count=3, seed=0):
    generator = np.random.default_rng(seed)
    x, other = generator.standard_normal((2, rows, classes)) * 2
    return (x, *teacher_of(other, count)), generator


def formula(x, log_probs, ids, tail, temperature):
    """The loss of a row of mpmath's numbers, by its definition."""
    taught = {int(j): mpmath.mpf(float(value)) for j, value in zip(ids, log_probs, strict=True) if value > -INFINITY}
    y = [value / temperature for value in x]
    whole = mpmath.log(mpmath.fsum(map(mpmath.exp, y)))
    p, log_q = {j: mpmath.exp(value) for j, value in taught.items()}, {j: y[j] - whole for j in taught}
    inside, student = mpmath.fsum(p.values()), mpmath.fsum(map(mpmath.exp, log_q.values()))
    if tail == "renormalise":
        log_q = {j: value - mpmath.log(student) for j, value in log_q.items()}
        p = {j: value / inside for j, value in p.items()}
    loss = mpmath.fsum(p[j] * (mpmath.log(p[j]) - log_q[j]) for j in p)
    return loss + ((1 - inside) * mpmath.log((1 - inside) / (1 - student)) if tail == "bucket" else 0)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_losses_are_the_definition_and_gradients_its_derivatives(tail, temperature):
    (x, log_probs, ids), _ = problem()
    log_probs[1, 2] = -INFINITY
    result = refloss.topk_distillation(x, log_probs, ids, tail=tail, temperature=temperature, reduction="none")
    with mpmath.workprec(400):
        for row in range(len(x)):
            exact = [mpmath.mpf(float(value)) for value in x[row]]
            arguments = log_probs[row], ids[row], tail, mpmath.mpf(temperature)
            assert result.loss[row] == pytest.approx(float(formula(exact, *arguments)), rel=2.0**-51)
            step = mpmath.mpf(2) ** -100
            for j in range(x.shape[1]):
                moved = [[value + sign * (k == j) * step for k, value in enumerate(exact)] for sign in (1, -1)]
                ends = [formula(each, *arguments) for each in moved]
                slope = float((ends[0] - ends[1]) / (2 * step))
                assert result.grads["student_logits"][row, j] == pytest.approx(slope, rel=2.0**-50, abs=1e-25)


@pytest.mark.parametrize("kind", [kind for kind in topk.KINDS if kind != "wide"])
def test_every_gradient_is_rounded_once(kind):
    generator = np.random.default_rng([5, *kind.encode()])
    for given in topk.KINDS[kind](generator, 400):
        for comparison in topk.compare(given):
            found = tally("topk_distillation", kind, comparison)
            assert found.worst <= 2 if found.name == "loss" else found.format == "float64" or found.wrong == 0, found


def test_of_a_student_s_own_log_probabilities_there_is_as_much_as_is_promised():
    """A loss of 2^-106 is known to six digits and more, drop to 2^-96 of its terms; gradients are rounded once."""
    for given in topk.own(np.random.default_rng(6), 600):
        for comparison in topk.compare(given):
            found = tally("topk_distillation", "own", comparison)
            if found.name != "loss":
                assert found.format == "float64" or found.wrong == 0, found
                continue
            with gmpy2.context(precision=2 * PRECISION):
                true = np.array([float(row.loss) for row in topk.truth(given)])
            terms = (np.exp(given.log_probs) * -2 * given.log_probs).sum(axis=1)
            slack = 2.0**-96 * terms if given.options["tail"] == "drop" else 2.0**-46 * np.abs(true)
            assert (np.abs(comparison.got - true) <= slack + 2.0**-52 * np.abs(true)).all()


OPTIONS = {
    "tail": TAILS,
    "temperature": [1.0, 1.7],
    "temperature_squared": [False, True],
    "reduction": ["mean", "sum", "none"],
    "rows": ["plain", "padded", "mask"],
}


@pytest.mark.parametrize("values", list(itertools.product(*OPTIONS.values())), ids=str)
def test_finite_differences(values):
    *given, rows = values
    options = dict(zip(OPTIONS, given, strict=False))
    (x, log_probs, ids), generator = problem(3, 5, 3)
    if rows == "padded":
        log_probs[0, 1] = log_probs[2, :2] = -INFINITY
        ids[0, 1], ids[2, :2] = -1, ids[2, 2]
    if rows == "mask":
        options["mask"] = [True, False, True]
    grad_output = generator.standard_normal(3) if options["reduction"] == "none" else -1.3

    def contracted(moved):
        return np.sum(grad_output * refloss.topk_distillation(moved, log_probs, ids, grad=False, **options).loss)

    result = refloss.topk_distillation(x, log_probs, ids, grad_output=grad_output, **options)
    np.testing.assert_allclose(result.grads["student_logits"], fourth_order(contracted, x), rtol=0, atol=TOLERANCE)


def test_means_are_over_rows_that_count():
    (x, log_probs, ids), _ = problem()
    counts = np.array([1, 0, 1, 1, 0])
    each = refloss.topk_distillation(x, log_probs, ids, reduction="none").loss
    mean = refloss.topk_distillation(x, log_probs, ids, mask=counts)
    assert mean.loss == pytest.approx(each[counts > 0].sum() / 3, rel=1e-15)
    assert not mean.grads["student_logits"][counts == 0].any()
    poisoned, taught, named = x.copy(), log_probs.copy(), ids.copy()
    poisoned[1], taught[4], named[1] = NAN, INFINITY, -100
    assert bits(refloss.topk_distillation(poisoned, taught, named, mask=counts)) == bits(mean)
    nothing = refloss.topk_distillation(x, log_probs, ids, mask=np.zeros(5, bool))
    assert np.isnan(nothing.loss)
    assert not nothing.grads["student_logits"].any()


def test_drop_can_be_negative_and_the_others_cannot():
    ids, log_probs = [[0, 1]], np.log([[0.25, 0.25]])
    losses = {tail: refloss.topk_distillation([[0.0, 0.0, -9.0]], log_probs, ids, tail=tail).loss for tail in TAILS}
    assert losses["drop"] < -0.34
    assert losses["bucket"] > 0
    assert losses["renormalise"] == 0.0


@pytest.mark.parametrize("tail", TAILS)
def test_a_place_of_minus_infinity_names_nothing(tail):
    (x, log_probs, ids), _ = problem()
    expected = refloss.topk_distillation(x, log_probs, ids, tail=tail)
    for other in (-1, 0, 10**6):
        more = np.full((5, 2), -INFINITY)
        padded = np.concatenate([log_probs[:, :1], more, log_probs[:, 1:]], axis=1)
        named = np.concatenate([ids[:, :1], np.full((5, 2), other), ids[:, 1:]], axis=1)
        assert bits(refloss.topk_distillation(x, padded, named, tail=tail)) == bits(expected)
    none = refloss.topk_distillation(x, np.full((5, 2), -INFINITY), np.full((5, 2), -1), tail=tail)
    assert none.loss == 0.0
    assert not none.grads["student_logits"].any()
    assert refloss.topk_distillation(x, np.zeros((5, 0)), np.zeros((5, 0), int), tail=tail).loss == 0.0


def test_without_other_classes_there_is_no_bucket():
    """Whether all are named, all others are masked, or what is left is below 0: rounding."""
    (x, _, _), _ = problem(4, 6)
    log_probs, ids = teacher_of(x[::-1], 6)
    for shift in (-(2.0**-40), 0.0, 2.0**-40):
        dropped, bucket = (
            refloss.topk_distillation(x, log_probs + shift, ids, tail=tail) for tail in ("drop", "bucket")
        )
        assert bits(dropped) == bits(bucket)
    masked = np.concatenate([x, np.full((4, 3), -INFINITY)], axis=1)
    wider = refloss.topk_distillation(masked, log_probs - 0.5, ids, tail="bucket")
    dropped = refloss.topk_distillation(x, log_probs - 0.5, ids)
    assert wider.loss == dropped.loss
    assert np.array_equal(wider.grads["student_logits"][:, :6], dropped.grads["student_logits"])
    above = np.full((4, 2), -0.5), np.tile([0, 1], (4, 1))
    assert bits(refloss.topk_distillation(x, *above, tail="bucket")) == bits(refloss.topk_distillation(x, *above))


@pytest.mark.parametrize("tail", TAILS)
def test_edges(tail):
    log_probs, ids = np.log([[0.5, 0.25]]), [[1, 2]]
    inside = refloss.topk_distillation([[0.0, -INFINITY, 0.0, 0.0]], log_probs, ids, tail=tail)
    share = 2 / 3 if tail == "renormalise" else 0.5
    assert inside.loss == INFINITY
    assert inside.grads["student_logits"][0, 1] == pytest.approx(-share, rel=1e-15)
    assert np.isfinite(inside.grads["student_logits"]).all()
    outside = refloss.topk_distillation([[-INFINITY, 1.0, 0.0, 0.0]], log_probs, ids, tail=tail)
    assert np.isfinite(outside.loss)
    assert outside.grads["student_logits"][0, 0] == 0.0
    for odd in (NAN, INFINITY):
        result = refloss.topk_distillation([[0.0, odd, 0.0, 0.0]], log_probs, ids, tail=tail)
        assert np.isnan(result.loss)
        assert np.isnan(result.grads["student_logits"][0, 1])
        unseen = refloss.topk_distillation([[odd, 0.0, 0.0, 0.0]], log_probs, ids, tail=tail)
        assert np.isnan(unseen.loss) == (tail != "renormalise")
        wrong = refloss.topk_distillation([[0.0] * 4], [[odd, -1.0]], ids, tail=tail)
        assert np.isnan(wrong.loss)
    masked = refloss.topk_distillation([[-INFINITY] * 4], log_probs, ids, tail=tail)
    assert np.isnan(masked.loss)


def test_a_student_that_is_its_teacher():
    """Log-probabilities on the grid of the logits: what is left is 0, exactly where it is."""
    x = np.array([[3.0, 1.0, 0.5, -2.0, 0.0]])
    same = refloss.topk_distillation(x, x[:, :3] - 4.0, [[0, 1, 2]], tail="renormalise")
    assert same.loss == 0.0
    assert not same.grads["student_logits"].any()
    certain = refloss.topk_distillation([[2.0, -INFINITY, -INFINITY]], [[0.0]], [[0]], tail="bucket")
    assert certain.loss == 0.0
    assert not certain.grads["student_logits"].any()


def test_what_float64_has_no_probability_for_is_known():
    result = refloss.topk_distillation([[0.0, -800.0, -801.0]], [[-1.0]], [[0]], tail="bucket")
    rest = -np.expm1(-1.0)
    tail = np.log(rest) + 800.0 - np.log1p(np.exp(-1.0))
    assert result.loss == pytest.approx(np.exp(-1.0) * -1.0 + rest * tail, rel=1e-14)
    slopes = -rest * np.array([-1.0, 1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(1.0))])
    np.testing.assert_allclose(result.grads["student_logits"][0], slopes, rtol=1e-14)


@pytest.mark.parametrize("tail", TAILS)
def test_threads_blocks_layouts_and_order_do_not_show(tail, monkeypatch):
    from refloss.kernels.topk import run

    (x, log_probs, ids), generator = problem(31, 45, 7)
    x = x.astype(np.float32)
    call: dict[str, Any] = {"tail": tail, "temperature": 0.7, "grad_output": -0.3}
    whole = refloss.topk_distillation(x, log_probs, ids, **call)
    threads = refloss.get_num_threads()
    for count, block in ((1, 45), (3, 500)):
        monkeypatch.setattr(run, "BLOCK_ELEMENTS", block)
        refloss.set_num_threads(count)
        assert bits(refloss.topk_distillation(x, log_probs, ids, **call)) == bits(whole)
    refloss.set_num_threads(threads)
    for layout, view in layouts(x):
        assert bits(refloss.topk_distillation(view, log_probs, ids, **call)) == bits(whole), layout
    order, places = generator.permutation(45), generator.permutation(7)
    renamed = np.argsort(order)[ids][:, places]
    permuted = refloss.topk_distillation(x[:, order], log_probs[:, places], renamed, **call)
    assert permuted.loss == whole.loss
    assert np.array_equal(permuted.grads["student_logits"], whole.grads["student_logits"][:, order])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_format_and_shape(dtype):
    (x, log_probs, ids), _ = problem(6, 5)
    x, log_probs = x.astype(dtype), log_probs.astype(dtype)
    flat = refloss.topk_distillation(x, log_probs, ids, reduction="none")
    assert flat.grads["student_logits"].dtype == dtype
    shaped = refloss.topk_distillation(*(each.reshape(2, 3, -1) for each in (x, log_probs, ids)), reduction="none")
    assert np.array_equal(shaped.loss.ravel(), flat.loss)
    one = refloss.topk_distillation(x[0], log_probs[0], ids[0].astype(np.uint8), reduction="none")
    assert one.loss == flat.loss[0]
    empty = refloss.topk_distillation(x[:0], log_probs[:0], ids[:0], reduction="sum")
    assert (empty.loss, empty.grads["student_logits"].shape) == (0.0, (0, 5))
    without = refloss.topk_distillation(x, log_probs, ids, grad=False)
    assert without.grads == {}


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"student_logits": 1.0}, ValueError, r"student_logits has shape \(\); expected \[\.\.\., V\]"),
    ({"teacher_log_probs": np.zeros(2)}, ValueError, r"teacher_log_probs has shape \(2,\); expected \(2,\) and K"),
    ({"teacher_ids": [[0], [1]]}, ValueError, r"teacher_ids has shape \(2, 1\); expected \(2, 2\)"),
    ({"teacher_ids": [[0, 1], [0, 5]]}, ValueError, r"teacher_ids\[1, 1\] = 5 is outside \[0, 4\]"),
    ({"teacher_ids": [[0, 1], [-1, 2]]}, ValueError, r"teacher_ids\[1, 0\] = -1 is outside \[0, 4\]"),
    ({"teacher_ids": [[0, 1], [3, 3]]}, ValueError, r"teacher_ids\[1, 1\] = 3 is the class of place 0 as well"),
    ({"teacher_ids": [[0.0, 1.0]] * 2}, TypeError, "teacher_ids has dtype float64; expected an integer dtype"),
    ({"teacher_log_probs": np.zeros((2, 2), int)}, TypeError, "teacher_log_probs has dtype"),
    ({"mask": [True]}, ValueError, r"mask has shape \(1,\); expected \(2,\), one for each row of student_logits"),
    ({"mask": [1, 2]}, ValueError, "mask has other numbers than 0 and 1"),
    ({"tail": "keep"}, ValueError, "tail is 'keep'; expected one of"),
    ({"reduction": "batchmean"}, ValueError, "reduction is 'batchmean'; expected one of"),
    ({"temperature": 0.0}, ValueError, "temperature is 0.0; expected a finite positive number"),
    ({"temperature_squared": "no"}, TypeError, "temperature_squared is 'no'"),
    ({"grad": "teacher_log_probs"}, ValueError, "teacher_log_probs"),
]


@pytest.mark.parametrize(("given", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_input(given, error, message):
    arguments = {
        "student_logits": np.zeros((2, 5)),
        "teacher_log_probs": np.full((2, 2), -1.0),
        "teacher_ids": [[0, 1], [3, 2]],
        **given,
    }
    with pytest.raises(error, match=message):
        refloss.topk_distillation(**arguments)


def test_the_page_s_example_runs():
    (block,) = code_blocks("python", "docs/topk_distillation.md")
    names: dict = {}
    exec(block, names)
    assert names["result"].loss > 0
    assert names["gradient"].shape == (4, 6, 32)
