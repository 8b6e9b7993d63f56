"""CTC against every alignment and a recursion over logarithms in mpmath, its edges, and what must not show."""

import ml_dtypes
import mpmath
import numpy as np
import pytest

import refloss
from refloss.cases.source import DTYPES
from refloss.kernels.ctc import run
from refloss.parallel import get_num_threads, set_num_threads
from tests import alignments_truth as truths
from tests.mpfr import alignments, measure
from tests.truth import correctly_rounded, pairs, ulp_errors

LOSS_ULP = 4
THIRD = 1 / 3


@pytest.fixture(autouse=True)
def _many_bits():
    with mpmath.workprec(400):
        yield


def of(values, labels, *, is_softmax, blank=0, **options):
    """One sequence [T, C]: its loss and its gradient."""
    if is_softmax:
        result = refloss.ctc_of_logits(
            values[None], np.array([labels], np.int64).reshape(1, -1), [len(values)], blank, "sum", **options
        )
        return result.loss, result.grads["logits"][0]
    result = refloss.ctc(values, labels, len(values), len(labels), blank=blank, reduction="sum", **options)
    return result.loss, result.grads["log_probs"]


def check(values, labels, truth, *, is_softmax, blank=0, dtype="float32"):
    """The loss, and the gradient rounded once."""
    loss, gradient = of(values, labels, is_softmax=is_softmax, blank=blank, grad_output=THIRD, grad_dtype=DTYPES[dtype])
    assert ulp_errors(loss, pairs(truth.loss), "float64") <= LOSS_ULP
    errors = ulp_errors(gradient, pairs([[THIRD * slope for slope in row] for row in truth.gradient]), dtype)
    assert correctly_rounded(errors).all() if dtype != "float64" else errors.max() < 100


SMALL = [
    (1, 2, [1]),
    (1, 3, []),
    (2, 2, [1]),
    (3, 2, [1, 1]),
    (4, 3, [1, 2]),
    (5, 3, [2, 2]),
    (5, 3, [1, 2, 1]),
    (4, 3, []),
]


@pytest.mark.parametrize("is_softmax", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("frames", "classes", "labels"), SMALL)
def test_every_alignment(frames, classes, labels, dtype, is_softmax):
    generator = np.random.default_rng(frames)
    for scale in (1.0, 8.0):
        values = -np.abs(generator.standard_normal((frames, classes)) * scale).astype(DTYPES[dtype])
        p = truths.probabilities(values, is_softmax=is_softmax)
        truth = truths.by_definition(p, truths.by_classes(classes, frames, labels, 0))
        check(values, labels, truth, is_softmax=is_softmax, dtype=dtype)


@pytest.mark.parametrize(("blank", "labels"), [(2, [0, 1]), (0, [0]), (1, [1, 1]), (0, [1, 0, 1]), (2, [2, 0])])
def test_any_blank_and_blanks_among_the_labels(blank, labels):
    """A label that is blank is a state of its own, as in torch."""
    values = np.random.default_rng(blank).standard_normal((5, 3)).astype(np.float32)
    p = truths.probabilities(values, is_softmax=False)
    check(values, labels, truths.by_definition(p, truths.by_states(5, labels, blank)), is_softmax=False, blank=blank)


@pytest.mark.parametrize("is_softmax", [False, True])
def test_long_sequences(is_softmax):
    generator = np.random.default_rng(7)
    labels = [1, 1, *generator.integers(1, 5, 14).tolist()]
    values = (generator.standard_normal((400, 5)) * 4.0).astype(np.float32)
    values[7, 3] = -np.inf
    p = truths.probabilities(values, is_softmax=is_softmax)
    with mpmath.workprec(250):
        check(values, labels, truths.by_logarithms(p, labels, 0), is_softmax=is_softmax)


@pytest.mark.parametrize("margin", [8.0, 16.0, 22.0])
def test_alignments_that_are_sure(margin):
    """p and γ are next to 1; what is left of the loss, float64 still has to 4 ulp."""
    path = [0, 0, 1, 1, 0, 2, 0, 2, 2, 0]
    values = np.random.default_rng(1).standard_normal((10, 4)).astype(np.float32)
    values[np.arange(10), path] += np.float32(margin)
    truth = truths.by_logarithms(truths.probabilities(values, is_softmax=True), [1, 2, 2], 0)
    check(values, [1, 2, 2], truth, is_softmax=True)


def test_the_definition_in_mpfr_is_that_of_every_alignment():
    import gmpy2

    values = np.random.default_rng(3).standard_normal((4, 3))
    for is_softmax in (False, True):
        p = truths.probabilities(values, is_softmax=is_softmax)
        true = truths.by_definition(p, truths.by_classes(3, 4, [1, 1], 0))
        with gmpy2.context(precision=320):
            found = alignments.truth(values, [1, 1], 0, is_softmax=is_softmax)
        rows = [true.loss, *(slope for row in true.gradient for slope in row)]
        got = [found.loss, *(slope for row in found.gradient for slope in row)]
        for a, b in zip(rows, got, strict=True):
            assert abs(a - mpmath.mpf(str(b))) < mpmath.mpf(10) ** -80


def test_the_gradient_of_logits_is_the_derivative_of_the_loss():
    values, step = np.random.default_rng(4).standard_normal((4, 3)), mpmath.mpf(2) ** -120

    def loss(x):
        p = [[mpmath.exp(v) / mpmath.fsum(map(mpmath.exp, row)) for v in row] for row in x]
        return truths.by_definition(p, truths.by_classes(3, 4, [2, 1], 0)).loss

    gradient = of(values, [2, 1], is_softmax=True)[1]
    exact = [[mpmath.mpf(float(v)) for v in row] for row in values]
    for t in range(4):
        for k in range(3):
            moved = [row.copy() for row in exact]
            moved[t][k] += step
            assert abs((loss(moved) - loss(exact)) / step - gradient[t, k]) < 1e-15


@pytest.mark.parametrize("function", ["ctc", "ctc_of_logits"])
@pytest.mark.parametrize("kind", ["ordinary", "far", "aligned", "equal", "masked", "formats"])
def test_adversarial_inputs_are_rounded_once(function, kind):
    for tally in measure.measured(function, kind, 4000, seed=2):
        found = f"{tally.name} in {tally.format}: {tally.wrong} of {tally.size}, {tally.worst} ulp, {tally.example}"
        assert tally.format == "float64" or tally.wrong == 0, found
        assert tally.name != "loss" or tally.worst <= 2, found


# Edges.


def batch(generator, count=3, frames=9, classes=4):
    logits = generator.standard_normal((count, frames, classes)).astype(np.float32)
    return logits, np.array([[1, 2, 2], [3, 1, 1], [2, 3, 1]])[:count], np.array([9, 7, 8]), np.array([3, 2, 3])


def test_what_is_infeasible_is_infinite_or_nothing():
    logits, targets, frames, lengths = batch(np.random.default_rng(0))
    log_probs, frames = logits.transpose(1, 0, 2), np.array([9, 1, 8])
    cotangent = np.array([1.0, -2.0, 0.5])
    for zero_infinity, value, slope in ((False, np.inf, np.nan), (True, 0.0, 0.0)):
        result = refloss.ctc(
            log_probs, targets, frames, lengths, reduction="none", zero_infinity=zero_infinity, grad_output=cotangent
        )
        assert result.loss[1] == value
        np.testing.assert_array_equal(result.grads["log_probs"][:1, 1], np.full((1, 4), slope))
        assert not result.grads["log_probs"][1:, 1].any()
        assert np.isfinite(result.loss[[0, 2]]).all()
        assert np.isfinite(result.grads["log_probs"][:, [0, 2]]).all()
    mean = refloss.ctc(log_probs, targets, frames, lengths, zero_infinity=True).loss
    assert mean == (result.loss[0] / 3 + result.loss[2] / 3) / 3
    assert refloss.ctc(log_probs, targets, frames, lengths).loss == np.inf


def test_repeated_labels_need_a_blank_between_them():
    log_probs = np.full((2, 3), -1.0)
    assert refloss.ctc(log_probs, [1, 1], 2, 2).loss == np.inf
    assert refloss.ctc(log_probs, [1, 2], 2, 2, reduction="sum").loss == 2.0
    assert refloss.ctc(np.full((3, 3), -1.0), [1, 1], 3, 2, reduction="sum").loss == 3.0


def test_a_class_that_is_impossible_has_no_gradient():
    logits, targets, frames, lengths = batch(np.random.default_rng(1))
    logits[:, ::2, 3] = -np.inf
    targets = np.where(targets == 3, 1, targets)
    labels = np.where(np.arange(3) < lengths[:, None], targets, -100)
    result = refloss.ctc_of_logits(logits, labels, frames, 0, "sum")
    assert np.isfinite(result.loss)
    assert np.isfinite(result.grads["logits"]).all()
    assert not result.grads["logits"][:, ::2, 3].any()
    logits[1, 2] = -np.inf
    result = refloss.ctc_of_logits(logits, labels, frames, 0, "none")
    assert np.isnan(result.loss[1])
    assert np.isnan(result.grads["logits"][1, :7]).all()
    assert np.isfinite(result.grads["logits"][[0, 2]]).all()


def test_what_is_beyond_a_length_does_not_leak():
    logits, targets, frames, lengths = batch(np.random.default_rng(2))
    clean = refloss.ctc(logits.transpose(1, 0, 2), targets, frames, lengths)
    for poison in (np.nan, np.inf, -np.inf):
        for n, length in enumerate(frames):
            logits[n, length:] = poison
        result = refloss.ctc(logits.transpose(1, 0, 2), np.where(targets == 1, 1, targets), frames, lengths)
        assert result.loss == clean.loss
        assert result.grads["log_probs"].tobytes() == clean.grads["log_probs"].tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_undefined_stays_in_its_sequence(value):
    logits, targets, frames, lengths = batch(np.random.default_rng(3))
    logits[0, 4, 1] = value
    for result in (
        refloss.ctc(logits.transpose(1, 0, 2), targets, frames, lengths, reduction="none"),
        refloss.ctc_of_logits(logits, targets, frames, 0, "none"),
    ):
        gradient = next(iter(result.grads.values()))
        gradient = gradient if gradient.shape == logits.shape else gradient.transpose(1, 0, 2)
        assert np.isnan(result.loss[0])
        assert np.isnan(gradient[0]).all()
        assert np.isfinite(result.loss[1:]).all()
        assert np.isfinite(gradient[1:]).all()


def test_lengths_of_0():
    log_probs = np.random.default_rng(4).standard_normal((3, 2, 4))
    result = refloss.ctc(log_probs, np.zeros((2, 0), int), [0, 3], [0, 0], reduction="none")
    assert result.loss[0] == 0.0
    assert result.loss[1] == pytest.approx(-log_probs[:, 1, 0].sum(), rel=1e-15)
    assert not result.grads["log_probs"][:, 0].any()
    assert refloss.ctc(log_probs, [[1], [2]], [0, 3], [1, 1], reduction="none").loss[0] == np.inf
    nothing = refloss.ctc(log_probs[:, :0], np.zeros((0, 2), int), [], [])
    assert np.isnan(nothing.loss)
    assert nothing.grads["log_probs"].shape == (3, 0, 4)
    assert refloss.ctc(log_probs[:, :0], [], [], [], reduction="sum").loss == 0.0
    assert refloss.ctc(np.zeros((0, 1, 2)), [[]], [0], [0]).loss == 0.0


def test_a_mean_divides_each_by_its_labels():
    logits, targets, frames, lengths = batch(np.random.default_rng(5))
    lengths = np.array([3, 0, 1])
    each = refloss.ctc(logits.transpose(1, 0, 2), targets, frames, lengths, reduction="none").loss
    mean = refloss.ctc(logits.transpose(1, 0, 2), targets, frames, lengths)
    assert mean.loss == pytest.approx((each / [3, 1, 1]).mean(), rel=1e-15)
    np.testing.assert_array_equal(mean.intermediates["nll"], each)


def test_labels_that_do_not_count_are_left_out_wherever_they_stand():
    logits = np.random.default_rng(6).standard_normal((2, 8, 5)).astype(np.float32)
    tight = refloss.ctc_of_logits(logits, [[1, 2, -100, -100], [3, -100, -100, -100]], [8, 7], 4)
    loose = refloss.ctc_of_logits(logits, [[-100, 1, 4, 2], [4, 4, 3, -100]], [8, 7], 4)
    assert tight.loss == loose.loss
    assert tight.grads["logits"].tobytes() == loose.grads["logits"].tobytes()


# What must not show.


@pytest.mark.parametrize("block", [1, 4, 200])
def test_neither_blocks_nor_threads_nor_neighbours_show(monkeypatch, block):
    generator = np.random.default_rng(8)
    logits = (generator.standard_normal((3, 90, 6)) * 3.0).astype(ml_dtypes.bfloat16)
    labels, frames = generator.integers(0, 6, (3, 20)), [90, 71, 88]
    expected = refloss.ctc_of_logits(logits, labels, frames, 0, "none", grad_output=np.array([1.0, -2.0, 0.3]))
    threads = get_num_threads()
    monkeypatch.setattr(run, "_block", lambda _: block)
    try:
        set_num_threads(1)
        result = refloss.ctc_of_logits(logits, labels, frames, 0, "none", grad_output=np.array([1.0, -2.0, 0.3]))
    finally:
        set_num_threads(threads)
    assert result.loss.tobytes() == expected.loss.tobytes()
    assert result.grads["logits"].tobytes() == expected.grads["logits"].tobytes()
    alone = refloss.ctc_of_logits(logits[1:2], labels[1:2], frames[1:2], 0, "none", grad_output=-2.0)
    assert alone.loss[0] == expected.loss[1]
    assert alone.grads["logits"].tobytes() == expected.grads["logits"][1:2].tobytes()


@pytest.mark.parametrize("block", [1, 7, 200])
@pytest.mark.parametrize("zero_infinity", [False, True])
def test_threads_that_share_a_sequence_do_not_show(monkeypatch, block, zero_infinity):
    """As they do with long sequences; one of these has no alignment, and one has no frames."""
    generator = np.random.default_rng(9)
    logits = (generator.standard_normal((4, 50, 9)) * 3.0).astype(np.float32)
    labels, frames, lengths = generator.integers(1, 9, (4, 20)), [50, 37, 11, 0], [20, 13, 20, 0]
    stages, work = [], run.ctc_sequences

    def seen(*arguments):
        stages.append(arguments[7])
        work(*arguments)

    def results():
        stages.clear()
        options = dict(zero_infinity=zero_infinity, grad_output=np.array([1.0, -2.0, 0.3, 5.0]))
        log_probs = np.ascontiguousarray(logits.transpose(1, 0, 2)) - np.float32(3.0)
        found = [
            refloss.ctc(log_probs, labels, frames, lengths, reduction="none", **options),
            refloss.ctc_of_logits(logits, labels, frames, 0, "none", **options),
            refloss.ctc_of_logits(logits, labels, frames, 0, "none", grad=False, zero_infinity=zero_infinity),
        ]
        return [array.tobytes() for result in found for array in (result.loss, *result.grads.values())]

    monkeypatch.setattr(run, "ctc_sequences", seen)
    monkeypatch.setattr(run, "_block", lambda _: block)
    threads = get_num_threads()
    try:
        set_num_threads(1)
        expected = results()
        assert set(stages) == {run.WHOLE}
        monkeypatch.setattr(run, "_PAIRS", 1)
        for count in (9, 16):
            set_num_threads(count)
            assert results() == expected
            assert set(stages) == {run.LOOK, run.SWEEP, run.SLOPES}
    finally:
        set_num_threads(threads)


def test_logits_are_log_probabilities_that_are_normalised():
    """Classes that are alike are normalised by numbers that float64 has."""
    labels = np.array([[1, 3, 3]])
    logits = refloss.ctc_of_logits(np.zeros((1, 9, 4)), labels, [9], 0, "sum")
    log_probs = refloss.ctc(np.full((9, 1, 4), -np.log(4.0)), labels, [9], [3], reduction="sum")
    assert logits.loss == pytest.approx(log_probs.loss, rel=1e-15)
    np.testing.assert_allclose(logits.grads["logits"][0], log_probs.grads["log_probs"][:, 0], rtol=1e-14, atol=1e-16)


# Bad input.

LOG_PROBS = np.zeros((5, 2, 4))
CALL = dict(log_probs=LOG_PROBS, targets=[[1, 2], [3, 1]], input_lengths=[5, 4], target_lengths=[2, 1])
WRONG = [
    (dict(log_probs=np.zeros(4)), r"log_probs has shape \(4,\); expected \[T, N, C\] or \[T, C\]"),
    (dict(log_probs=np.zeros((5, 2, 0)), target_lengths=[0, 0]), "blank is 0; expected a class, below 0"),
    (dict(targets=[[1, 2]]), r"targets has shape \(1, 2\); expected \(2, 2\), a row for each sequence"),
    (dict(targets=[[[1]]]), r"targets has shape \(1, 1, 1\); expected \[N, U\] or one axis"),
    (dict(targets=[1, 2]), r"targets has shape \(2,\); expected \(3,\), \[N, U\], or as many labels as"),
    (dict(targets=[[1, 4], [3, 1]]), r"targets\[0, 1\] = 4 is outside \[0, 3\]"),
    (dict(targets=[1, 2, -1]), r"targets\[2\] = -1 is outside \[0, 3\]"),
    (dict(input_lengths=[5]), r"input_lengths has shape \(1,\); expected \(2,\), one for each sequence"),
    (dict(input_lengths=[5, 6]), r"input_lengths\[1\] = 6 is outside \[0, 5\]"),
    (dict(target_lengths=[-1, 1]), r"target_lengths\[0\] = -1 is outside \[0, 2\]"),
    (dict(target_lengths=[3, 1]), r"target_lengths\[0\] = 3 is outside \[0, 2\]"),
    (dict(blank=4), "blank is 4; expected a class, below 4"),
    (dict(blank=-1), "blank is -1; expected at least 0"),
    (dict(reduction="batch"), "reduction is 'batch'; expected one of 'mean', 'sum', 'none'"),
    (dict(grad_output=np.ones(2)), r"grad_output has shape \(2,\); expected \(\)"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        refloss.ctc(**CALL | arguments)


def test_bad_input_of_the_head():
    call = dict(logits=np.zeros((2, 5, 4)), labels=[[1, 2], [3, -100]], logit_lengths=[5, 4], blank_token_id=0)
    for arguments, message in (
        (dict(logits=np.zeros((5, 4))), r"logits has shape \(5, 4\); expected \[B, T, V\]"),
        (dict(labels=[1, 2]), r"labels has shape \(2,\); expected \[2, U\]"),
        (dict(labels=[[1, 4], [3, 0]]), r"labels\[0, 1\] = 4 is outside \[0, 4\) and is not ignore_index -100"),
        (dict(blank_token_id=4), "blank_token_id is 4; expected a class, below 4"),
        (dict(logit_lengths=[5, 6]), r"logit_lengths\[1\] = 6 is outside \[0, 5\]"),
    ):
        with pytest.raises(ValueError, match=message):
            refloss.ctc_of_logits(**call | arguments)
    with pytest.raises(TypeError, match="zero_infinity is 'no'"):
        refloss.ctc_of_logits(**call, zero_infinity="no")
