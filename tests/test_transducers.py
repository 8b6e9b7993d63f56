"""Transducers: every path in mpmath, long lattices by a recursion there, and what is at their edges."""

import mpmath
import numpy as np
import pytest

import refloss
from refloss.kernels.transducer import run
from tests import transducer_truth
from tests.transducer_truth import Sample, by_paths, by_recursion
from tests.truth import correctly_rounded, pairs, ulp_errors

FRAMES, LABELS, CLASSES = 4, 2, 4


def lattice(kind, seed=0, frames=FRAMES, labels=LABELS, classes=CLASSES):
    generator = np.random.default_rng(seed)
    logits = generator.standard_normal((1, frames, labels + 1, classes)) * 3
    y = generator.integers(1, classes, (1, labels))
    if kind == "ties":
        logits = np.round(logits / 2)
    if kind == "equal":
        logits[:] = 0.25
    if kind == "sure":  # reads first, then writes
        for u in range(labels + 1):
            logits[0, :-1, u, 0] += 40
            logits[0, -1, u, y[0, u] if u < labels else 0] += 60
    if kind == "masked":
        logits[..., 3] = -np.inf
        y[y == 3] = 2
    if kind == "two classes":
        logits[..., 2:] = -np.inf
        y[:] = 1
    if kind == "blanks":
        y[0, 0] = 0
    if kind == "far":
        logits *= 100
    return logits.astype(np.float32), y


KINDS = ["ordinary", "ties", "equal", "sure", "masked", "two classes", "blanks", "far"]


def rnnt_sample(logits, labels):
    return Sample(logits[0], labels[0].tolist(), 0)


def check(result, true, name="logits", own=None):
    """Rounded once in every element; the loss within 4 ulp."""
    errors = ulp_errors(result.grads[name][0], pairs(true.logits if own is None else own), "float32")
    assert correctly_rounded(errors).all(), errors.max()
    assert ulp_errors(result.loss, pairs(true.loss), "float64") <= 4


@pytest.mark.parametrize("kind", KINDS)
def test_every_path(kind):
    for seed in range(3):
        logits, labels = lattice(kind, seed)
        true = by_paths(rnnt_sample(logits, labels), coefficient=mpmath.mpf(-0.7))
        check(refloss.rnnt(logits, labels, [FRAMES], [LABELS], 0, "sum", grad_output=-0.7), true)


def test_the_recursion_is_that_over_paths():
    for kind in KINDS:
        sample = rnnt_sample(*lattice(kind))
        first, second = by_paths(sample), by_recursion(sample)
        assert mpmath.almosteq(first.loss, second.loss, rel_eps=mpmath.mpf(2) ** -250)
        for a, b in zip(first.logits.ravel(), second.logits.ravel(), strict=True):
            assert abs(a - b) <= mpmath.mpf(2) ** -250


@pytest.mark.parametrize("kind", ["ordinary", "sure"])
def test_a_long_lattice(kind):
    """Probabilities far below float64's least."""
    logits, labels = lattice(kind, 5, frames=60, labels=25, classes=6)
    logits *= 8
    true = by_recursion(rnnt_sample(logits, labels))
    result = refloss.rnnt(logits, labels, [60], [25], 0, "sum")
    if kind == "ordinary":
        assert result.loss > 800
    check(result, true)


@pytest.mark.parametrize("margin", [30, 100, 400])
def test_tiny_losses_keep_their_digits(margin, monkeypatch):
    logits, labels = lattice("ordinary", 1, frames=3)
    for u in range(LABELS + 1):
        logits[0, :-1, u, 0] += margin
        logits[0, -1, u, labels[0, u] if u < LABELS else 0] += margin
    monkeypatch.setattr(transducer_truth, "PRECISION_BITS", 2000)
    true = by_recursion(rnnt_sample(logits, labels))
    assert 0 < true.loss < 1e-9
    check(refloss.rnnt(logits, labels, [3], [LABELS], 0, "sum"), true)


def test_float64_gradients():
    logits, labels = lattice("ordinary", 3)
    true = by_paths(rnnt_sample(logits, labels))
    result = refloss.rnnt(logits, labels, [FRAMES], [LABELS], 0, "sum", grad_dtype=np.float64)
    errors = np.abs(result.grads["logits"][0] - np.array(true.logits, float))
    assert errors.max() < 1e-15


def test_what_is_close_to_0_is_computed_again(monkeypatch):
    """A node whose label's row is solved for a gradient next to 0."""
    logits, labels = lattice("ordinary", 4)
    low, high = np.float32(-8), np.float32(8)
    for _ in range(60):
        logits[0, 1, 1, 0] = middle = (low + high) / 2
        slope = refloss.rnnt(logits, labels, [FRAMES], [LABELS], 0, "sum").grads["logits"][0, 0, 0, 0]
        low, high = (middle, high) if slope < 0 else (low, middle)
    accurate = []
    weigh = run._Passes._weigh

    def noted(self, chosen, *, accurate: bool):
        seen.append(accurate)
        weigh(self, chosen, accurate=accurate)

    seen = accurate
    monkeypatch.setattr(run._Passes, "_weigh", noted)
    result = refloss.rnnt(logits, labels, [FRAMES], [LABELS], 0, "sum")
    true = by_paths(rnnt_sample(logits, labels))
    assert abs(true.logits[0, 0, 0]) < 1e-6
    assert seen == [False, True]
    check(result, true)


REDUCED = {"mean_volume": lambda nll, u: nll.sum() / u.sum(), "mean_batch": lambda nll, u: nll.mean()}
REDUCED |= {"mean": lambda nll, u: (nll / u).mean(), "sum": lambda nll, u: nll.sum(), "none": lambda nll, u: nll}


def batch(seed=0, times=5, width=4, classes=6):
    generator = np.random.default_rng(seed)
    logits = generator.standard_normal((3, times, width, classes)).astype(np.float32)
    labels = generator.integers(1, classes, (3, width - 1))
    return logits, labels, np.array([times, 3, 4]), np.array([width - 1, 2, 1])


@pytest.mark.parametrize("reduction", REDUCED)
def test_reductions(reduction):
    logits, labels, frames, counts = batch()
    nll = refloss.rnnt(logits, labels, frames, counts, 0, "none").loss
    cotangent = np.array([1.5, -2.0, 0.25]) if reduction == "none" else -1.5
    result = refloss.rnnt(logits, labels, frames, counts, 0, reduction, grad_output=cotangent)
    assert np.allclose(result.loss, REDUCED[reduction](nll, counts), rtol=1e-14)
    assert result.intermediates["nll"].tobytes() == nll.tobytes()
    over = {"mean_volume": 6, "mean_batch": 3, "mean": 3 * counts, "sum": 1, "none": 1}[reduction]
    ones = refloss.rnnt(logits.astype(float), labels, frames, counts, 0, "sum").grads["logits"]
    expected = ones * np.broadcast_to(cotangent / over, 3)[:, None, None, None]
    assert np.allclose(result.grads["logits"], expected, rtol=1e-6, atol=1e-30)


def test_what_is_beyond_the_lengths_does_not_show():
    logits, labels, frames, counts = batch()
    plain = refloss.rnnt(logits, labels, frames, counts, 0, "none")
    late = np.arange(5)[:, None] >= frames[:, None, None]
    outside = late | (np.arange(4) > counts[:, None, None])
    padded = np.where(np.arange(3) < counts[:, None], labels, -100)
    for value in (np.nan, np.inf, -np.inf, 7.0):
        result = refloss.rnnt(
            np.where(outside[..., None], np.float32(value), logits), padded, frames, counts, 0, "none"
        )
        assert result.loss.tobytes() == plain.loss.tobytes()
        assert result.grads["logits"].tobytes() == plain.grads["logits"].tobytes()
    assert not plain.grads["logits"][outside].any()
    for b in range(3):
        t, u = frames[b], counts[b]
        alone = refloss.rnnt(logits[b : b + 1, :t, : u + 1], labels[b : b + 1, :u], [t], [u], 0, "none")
        assert alone.loss == plain.loss[b]
        assert alone.grads["logits"][0].tobytes() == plain.grads["logits"][b, :t, : u + 1].tobytes()


def test_without_labels():
    """Only blanks; a length of 0 is divided by 1."""
    logits, labels, frames, _ = batch()
    none = np.zeros(3, int)
    nll = refloss.rnnt(logits, labels, frames, none, 0, "none").loss
    x = logits.astype(float)
    log_p = x - np.log(np.exp(x).sum(-1, keepdims=True))
    assert np.allclose(nll, [-log_p[b, :t, 0, 0].sum() for b, t in enumerate(frames)])
    assert np.isclose(refloss.rnnt(logits, labels, frames, none, 0, "mean").loss, nll.mean())
    assert np.isclose(refloss.rnnt(logits, labels, frames, none, 0).loss, nll.sum())
    alone = refloss.rnnt(logits[:, :, :1], labels[:, :0], frames, none, 0, "none")
    assert alone.loss.tobytes() == nll.tobytes()


def test_no_path_and_no_softmax():
    logits, labels, frames, counts = batch()
    logits[0, -1, -1, 0] = -np.inf  # the last blank
    logits[1, 0, 0] = -np.inf
    result = refloss.rnnt(logits, labels, frames, counts, 0, "none")
    assert result.loss[0] == np.inf
    assert np.isnan(result.loss[1])
    assert np.isfinite(result.loss[2])
    gradient = result.grads["logits"]
    assert np.isnan(gradient[0]).all()
    assert np.isnan(gradient[1, :3, :3]).all()
    assert not gradient[1, 3:].any()
    assert np.isfinite(gradient[2]).all()
    assert refloss.rnnt(logits, labels, frames, counts, 0, "sum").loss != np.inf  # NaN
    nothing = refloss.rnnt(logits[2:], labels[2:], [0], [1], 0, "none")
    assert nothing.loss == np.inf
    assert not nothing.grads["logits"].any()


@pytest.mark.parametrize(("reduction", "expected"), [("mean", np.nan), ("mean_volume", np.nan), ("sum", 0.0)])
def test_no_samples(reduction, expected):
    result = refloss.rnnt(np.zeros((0, 3, 2, 4), np.float32), np.zeros((0, 1), int), [], [], 0, reduction)
    assert np.array_equal(result.loss, expected, equal_nan=True)
    assert result.grads["logits"].shape == (0, 3, 2, 4)


def bits(result):
    return b"".join(np.ascontiguousarray(each).tobytes() for each in (result.loss, *result.grads.values()))


def test_threads_blocks_and_layouts_do_not_show(monkeypatch):
    logits, labels, frames, counts = batch(times=40, width=70)
    frames, counts = np.array([40, 7, 33]), np.array([69, 40, 0])
    seen, threads = set(), refloss.get_num_threads()
    for count, block, buffer in ((1, 1 << 16, 1 << 12), (2, 64, 1), (5, 4096, 64)):
        refloss.set_num_threads(count)
        monkeypatch.setattr(run, "BLOCK_ELEMENTS", block)
        monkeypatch.setattr(run, "BUFFER_ELEMENTS", buffer)
        seen.add(bits(refloss.rnnt(logits, labels, frames, counts, 0)))
    refloss.set_num_threads(threads)
    seen.add(bits(refloss.rnnt(np.asfortranarray(logits), labels[::-1][::-1], frames, counts, 0)))
    wide = refloss.rnnt(logits.astype(float), labels, frames, counts, 0)
    assert len(seen) == 1
    assert next(iter(seen))[:8] == wide.loss.tobytes()


def test_only_a_loss_has_the_same_bits():
    logits, labels, frames, counts = batch()
    both = [refloss.rnnt(logits, labels, frames, counts, 0, grad=grad).loss for grad in (True, False)]
    assert both[0].tobytes() == both[1].tobytes()


def test_out_receives_the_gradient():
    logits, labels, frames, counts = batch()
    out = np.full(logits.shape, 7.0)
    result = refloss.rnnt(logits, labels, frames, counts, 0, out=out)
    assert result.grads["logits"] is out
    expected = refloss.rnnt(logits, labels, frames, counts, 0, grad_dtype=np.float64).grads["logits"]
    assert out.tobytes() == expected.tobytes()


TDT_KINDS = {
    "all": (0, 1, 2, 3),
    "without 0": (1, 2),
    "without 1": (0, 2),
    "only 1": (1,),
    "twice": (2, 0, 1, 1),
    "far": (0, 1, 7),
}


def tdt_sample(steps, seed=0, sigma=0.0, sure=0.0):
    logits, labels = lattice("ordinary", seed)
    durations = np.random.default_rng(seed).standard_normal((1, FRAMES, LABELS + 1, len(steps))).astype(np.float32)
    durations[..., 0] += np.float32(sure)
    return Sample(logits[0], labels[0].tolist(), 0, durations[0], steps, sigma)


def tdt_of(sample, **options):
    durations = np.array(sample.steps)
    given = sample.logits[None], sample.durations[None], [sample.labels], [len(sample.logits)], [len(sample.labels)]
    return refloss.tdt(*given, sample.blank, durations, sigma=sample.sigma, reduction="sum", **options)


@pytest.mark.parametrize("sure", [0.0, 30.0])
@pytest.mark.parametrize("kind", TDT_KINDS)
def test_every_path_with_durations(kind, sure):
    sample = tdt_sample(TDT_KINDS[kind], 1, 0.05, sure)
    true = by_paths(sample, coefficient=mpmath.mpf(-0.7))
    result = tdt_of(sample, grad_output=-0.7)
    check(result, true, "token_logits")
    check(result, true, "duration_logits", own=true.durations)
    second = by_recursion(sample, coefficient=mpmath.mpf(-0.7))
    assert mpmath.almosteq(true.loss, second.loss, rel_eps=mpmath.mpf(2) ** -250)


@pytest.mark.parametrize("sigma", [-0.5, 0.0, 1e-12, 0.05, 3.0])
def test_sigma_is_what_an_arc_costs(sigma):
    sample = tdt_sample((0, 1, 2), 2, sigma)
    true = by_paths(sample)
    result = tdt_of(sample)
    check(result, true, "token_logits")
    check(result, true, "duration_logits", own=true.durations)


@pytest.mark.parametrize("sigma", [0.0, 1e-12])
def test_tiny_losses_with_durations_keep_their_digits(sigma, monkeypatch):
    sample = tdt_sample((1, 0), 3, sigma, sure=50.0)
    for u in range(LABELS + 1):
        sample.logits[:-1, u, 0] += 60
        sample.logits[-1, u, sample.labels[u] if u < LABELS else 0] += 60
        sample.durations[-1, u] = (-40, 40) if u < LABELS else (40, -40)
    monkeypatch.setattr(transducer_truth, "PRECISION_BITS", 900)
    true = by_paths(sample)
    assert 0 < true.loss < 1e-10
    check(tdt_of(sample), true, "token_logits")


def test_no_path_with_durations():
    logits, labels, _, counts = batch()
    durations = np.zeros((*logits.shape[:3], 1), np.float32)
    result = refloss.tdt(logits, durations, labels, [5, 2, 4], counts, 0, [2], reduction="none")
    assert list(np.isinf(result.loss)) == [True, True, False]
    for b in np.flatnonzero(np.isinf(result.loss)):
        t, u = [5, 2, 4][b], counts[b]
        assert np.isnan(result.grads["token_logits"][b, :t, : u + 1]).all()
        assert np.isnan(result.grads["duration_logits"][b, :t, : u + 1]).all()


def test_gradients_of_one_of_two_inputs():
    logits, labels, frames, counts = batch()
    durations = np.zeros((*logits.shape[:3], 3), np.float32)
    both = refloss.tdt(logits, durations, labels, frames, counts, 0, [0, 1, 2])
    for name in both.grads:
        one = refloss.tdt(logits, durations, labels, frames, counts, 0, [0, 1, 2], grad=name)
        assert list(one.grads) == [name]
        assert one.grads[name].tobytes() == both.grads[name].tobytes()


WRONG_DURATIONS = [
    (
        dict(durations=[0, 1]),
        ValueError,
        r"durations has shape \(2,\); expected \(3,\), one for each of duration_logits",
    ),
    (dict(durations=[0, -1, 2]), ValueError, r"durations\[1\] = -1 is outside"),
    (dict(durations=[0.0, 1.0, 2.0]), TypeError, "durations has dtype float64"),
    (dict(duration_logits=np.zeros((3, 5, 3, 3))), ValueError, r"duration_logits has shape \(3, 5, 3, 3\); expected"),
    (dict(sigma=np.inf), ValueError, "sigma is inf; expected a finite number"),
    (dict(sigma="none"), TypeError, "sigma is 'none'"),
]


@pytest.mark.parametrize(
    ("given", "error", "message"), WRONG_DURATIONS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_bad_durations(given, error, message):
    logits, labels, frames, counts = batch()
    arguments = dict(token_logits=logits, duration_logits=np.zeros((3, 5, 4, 3)), labels=labels, logit_lengths=frames)
    arguments |= dict(label_lengths=counts, blank_token_id=0, durations=[0, 1, 2])
    with pytest.raises(error, match=message):
        refloss.tdt(**arguments | given)


WRONG = [
    (dict(logits=np.zeros((3, 4, 5))), ValueError, r"logits has shape \(3, 4, 5\); expected \[B, T, U \+ 1, V\]"),
    (dict(logits=np.zeros((3, 5, 4, 6), int)), TypeError, "logits has dtype int64"),
    (dict(labels=np.zeros((3, 4), int)), ValueError, r"labels has shape \(3, 4\); expected \(3, 3\), U of them"),
    (dict(labels=np.zeros((3, 3))), TypeError, "labels has dtype float64; expected an integer dtype"),
    (dict(labels=np.full((3, 3), 6)), ValueError, r"labels\[0, 0\] = 6 is outside \[0, 5\]"),
    (dict(labels=np.full((3, 3), -100)), ValueError, r"labels\[0, 0\] = -100 is outside"),
    (dict(logit_lengths=[5, 6, 1]), ValueError, r"logit_lengths\[1\] = 6 is outside \[0, 5\]"),
    (dict(logit_lengths=[5, 5]), ValueError, r"logit_lengths has shape \(2,\); expected \(3,\), one for each sample"),
    (dict(label_lengths=[3, -1, 1]), ValueError, r"label_lengths\[1\] = -1 is outside \[0, 3\]"),
    (dict(label_lengths=[3.0, 1.0, 1.0]), TypeError, "label_lengths has dtype float64"),
    (dict(blank_token_id=6), ValueError, "blank_token_id is 6; expected a class, less than 6"),
    (dict(blank_token_id=-1), ValueError, "blank_token_id is -1; expected at least 0"),
    (dict(blank_token_id=None), TypeError, "blank_token_id is None"),
    (dict(reduction="batchmean"), ValueError, "reduction is 'batchmean'; expected one of 'mean_volume', 'mean_batch'"),
    (dict(grad_output=np.ones(2), reduction="none"), ValueError, r"grad_output has shape \(2,\); expected \(3,\)"),
]


@pytest.mark.parametrize(
    ("given", "error", "message"), WRONG, ids=lambda value: value if isinstance(value, str) else ""
)
def test_bad_input(given, error, message):
    logits, labels, frames, counts = batch()
    arguments = dict(logits=logits, labels=labels, logit_lengths=frames, label_lengths=counts, blank_token_id=0)
    with pytest.raises(error, match=message):
        refloss.rnnt(**arguments | given)


def test_keys_of_the_mapping():
    logits, labels, frames, counts = batch()
    given = dict(logits=logits, labels=labels, logit_lengths=frames, label_lengths=counts, blank_token_id=0)
    found = refloss.LOSS_MAPPING["ParakeetForRNNT"](**given, vocab_size=6, device="cpu")
    assert found.loss == refloss.rnnt(**given).loss
