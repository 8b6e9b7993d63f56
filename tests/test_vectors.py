"""Losses of rows of vectors: definitions against mpmath, rounding, edges, errors, and bits."""

import gmpy2
import mpmath
import numpy as np
import pytest

import refloss
from refloss.kernels.vectors import run as launch
from tests.mpfr import vectors
from tests.mpfr.measure import KINDS, measured
from tests.mpfr.rounding import PRECISION
from tests.vectors_truth import VALUES, drawn

ELEMENTS = 400  # of each kind of inputs
INF, NAN = np.inf, np.nan


def in_mpmath(value):
    """An MPFR number as mpmath has it."""
    mantissa, exponent = value.as_mantissa_exp()
    return mpmath.mpf(int(mantissa)) * mpmath.mpf(2) ** int(exponent)


@pytest.mark.parametrize(("function", "case"), drawn())
def test_derivatives_are_those_of_the_value(function, case):
    row, parameters = case
    step, bound = mpmath.mpf(2) ** -100, mpmath.mpf(2) ** -80
    with gmpy2.context(precision=PRECISION), mpmath.workprec(PRECISION):
        found = vectors.DEFINITIONS[function](row, parameters)
        exact = {name: [mpmath.mpf(float(x)) for x in np.ravel(values)] for name, values in row.items()}
        value = VALUES[function]
        assert abs(in_mpmath(found.loss) - value(exact, parameters)) < bound
        for name, slopes in found.slopes.items():
            for i, slope in enumerate(slopes):
                ends = []
                for sign in (1, -1):
                    moved = exact | {name: [x + sign * step * (i == j) for j, x in enumerate(exact[name])]}
                    ends.append(value(moved, parameters))
                assert abs(in_mpmath(slope) - (ends[0] - ends[1]) / (2 * step)) < bound, (name, i)


@pytest.mark.parametrize(("function", "kind"), [(name, kind) for name in vectors.KINDS for kind in KINDS[name]])
def test_adversarial_inputs_are_rounded_once(function, kind):
    for tally in measured(function, kind, ELEMENTS, seed=1):
        found = f"{tally.name} in {tally.format}: {tally.wrong} of {tally.size}, {tally.worst} ulp, {tally.example}"
        if tally.format != "float64":
            assert tally.wrong == 0, found
        elif tally.name == "loss":
            assert tally.worst <= 2, found


@pytest.fixture
def _other_threads():
    threads = refloss.get_num_threads()
    yield
    refloss.set_num_threads(threads)


@pytest.mark.usefixtures("_other_threads")
@pytest.mark.parametrize("function", vectors.KINDS)
def test_threads_blocks_and_layout_do_not_show(function, monkeypatch):
    sample = next(vectors.KINDS[function]["cotangents"](np.random.default_rng(1), 900))
    seen = set()
    for threads, block, layout in ((1, 1 << 15, "C"), (3, 1, "C"), (2, 64, "F")):
        refloss.set_num_threads(threads)
        monkeypatch.setattr(launch, "BLOCK_ELEMENTS", block)
        inputs = {name: np.array(value, order=layout) for name, value in sample.inputs.items()}
        result = getattr(refloss, function)(**inputs, **sample.parameters, grad_output=1 / 3)
        arrays = [result.loss, *result.grads.values(), result.intermediates["losses"]]
        seen.add(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))
    assert len(seen) == 1


MARGINS = [
    # z = 0 has no slope, and NaN neither a loss nor a slope.
    ([[1.0, 0.0, 2.0]], [0], {}, 2 / 3, [[-1 / 3, 0.0, 1 / 3]]),
    ([[1.0, NAN, 2.0]], [0], {}, 2 / 3, [[-1 / 3, 0.0, 1 / 3]]),
    ([[NAN, 1.0, 2.0]], [0], {}, 0.0, [[0.0, 0.0, 0.0]]),
    ([[1.0, INF, 2.0]], [0], {"p": 2}, INF, [[-INF, INF, 4 / 3]]),
    ([[INF, INF, 2.0]], [0], {}, 0.0, [[0.0, 0.0, 0.0]]),
    ([[1.0, 3.0, 2.0]], [0], {"weight": [-2.0, 0.0, 0.0]}, -10 / 3, [[4 / 3, -2 / 3, -2 / 3]]),
    ([[1.0, 3.0, 2.0]], [0], {"margin": -1.5}, 0.5 / 3, [[-1 / 3, 1 / 3, 0.0]]),
    ([[7.0], [1.0]], [0, 0], {}, 0.0, [[0.0], [0.0]]),
    (np.zeros((0, 3)), np.zeros(0, int), {}, NAN, np.zeros((0, 3))),
    ([0.1, 0.2, 0.8], 1, {"reduction": "none"}, 2.5 / 3, [1 / 3, -2 / 3, 1 / 3]),
]


@pytest.mark.parametrize(("x", "target", "options", "loss", "gradient"), MARGINS)
def test_edges_of_multi_margin(x, target, options, loss, gradient):
    result = refloss.multi_margin(np.array(x), target, **options)
    np.testing.assert_allclose(result.loss, loss, rtol=1e-15)
    np.testing.assert_allclose(result.grads["input"], gradient, rtol=1e-15)


def test_a_difference_that_float64_rounds_is_exact():
    """1 − x_y + x_j is 2^-60, and was 0."""
    result = refloss.multi_margin(np.array([[1.0, 2.0**-60]]), [0], reduction="sum")
    assert result.loss == 2.0**-61
    assert np.array_equal(result.grads["input"], [[-0.5, 0.5]])
    assert refloss.multi_margin(np.array([[1.0, -(2.0**-60)]]), [0]).loss == 0.0


LABEL_SETS = [
    ([[0.1, 0.2, 0.4, 0.8]], [[3, 0, -1, 1]], 0.85, [[-0.5, 0.5, 0.5, -0.5]]),
    ([[0.1, 0.2, 0.4, 0.8]], [[3, 3, -1, 1]], 0.65, [[0.5, 0.5, 0.5, -1.5]]),
    ([[0.1, 0.2, 0.4, 0.8]], [[-1, 3, -1, 1]], 0.0, [[0.0, 0.0, 0.0, 0.0]]),
    ([[NAN, 0.2, 0.4, 0.8]], [[3, 0, -1, 1]], 0.25, [[0.0, 0.25, 0.25, -0.5]]),
    ([[0.1, 0.2]], [[1, 0]], 0.0, [[0.0, 0.0]]),
]


@pytest.mark.parametrize(("x", "target", "loss", "gradient"), LABEL_SETS)
def test_edges_of_multilabel_margin(x, target, loss, gradient):
    result = refloss.multilabel_margin(np.array(x), np.array(target))
    np.testing.assert_allclose(result.loss, loss, rtol=1e-15)
    np.testing.assert_allclose(result.grads["input"], gradient, rtol=1e-15)


def test_one_target_a_row_is_a_label():
    x, labels = np.random.default_rng(2).standard_normal((9, 6)), np.arange(9) % 6
    sets = np.full((9, 6), -1)
    sets[:, 0] = labels
    one, other = refloss.multi_margin(x, labels, grad_output=0.1), refloss.multilabel_margin(x, sets, grad_output=0.1)
    assert one.loss == other.loss
    assert one.grads["input"].tobytes() == other.grads["input"].tobytes()


def triplet(anchor, positive, negative, **options):
    result = refloss.triplet_margin(*(np.array([x], float) for x in (anchor, positive, negative)), eps=0.0, **options)
    return result.loss, [gradient[0].tolist() for gradient in result.grads.values()]


def test_on_the_margin_the_slope_passes():
    """5 + 1 = 6."""
    loss, grads = triplet([0, 0], [3, 4], [6, 0])
    assert loss == 0.0
    assert grads == [[0.4, -0.8], [0.6, 0.8], [-1.0, 0.0]]
    assert triplet([0, 0], [3, 4], [6.000001, 0]) == (0.0, [[0.0, 0.0]] * 3)


def test_equal_distances_share_the_slope():
    root = 0.5**0.5
    _, grads = triplet([0, 0], [2, 0], [1, 1], swap=True)
    np.testing.assert_allclose(grads, [[root / 2 - 1, root / 2], [1 - root / 2, root / 2], [0.0, -root]], rtol=1e-15)
    assert triplet([0, 0], [2, 2], [1, 1], p=INF) == (2.0, [[0.0, 0.0], [0.5, 0.5], [-0.5, -0.5]])


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, 1.5, 0.5, INF])
def test_a_distance_of_0_has_no_slope(p):
    assert triplet([0, 1], [0, 1], [0, 1], p=p) == (1.0, [[0.0, 0.0]] * 3)
    assert triplet([0, 1], [0, 2], [0, 1.5], p=p) == (1.5, [[0.0, 0.0], [0.0, 1.0], [0.0, -1.0]])


def test_nan_and_infinities_in_triplets_are_torch_s():
    loss, grads = triplet([0, 1], [NAN, 2], [3, 5])
    assert np.isnan(loss)
    np.testing.assert_array_equal(grads, [[NAN, NAN], [NAN, NAN], [0.0, 0.0]])
    for p, rest in ((1.0, 0.0), (2.0, NAN), (3.0, NAN), (INF, 0.0)):
        loss, grads = triplet([0, 1], [1, 2], [INF, 5], p=p)
        assert loss == 0.0
        np.testing.assert_array_equal(grads, [[rest, 0.0], [0.0, 0.0], [rest, 0.0]])


def test_slopes_of_parallel_vectors_keep_their_digits():
    """The anchor's slope is the difference of two directions that agree in eleven digits."""
    away = np.array([1.0, 2.0, -1.0])
    turned = away + np.array([0.0, 2.0**-36, 0.0])
    result = refloss.triplet_margin(np.zeros((1, 3)), -away[None], -3 * turned[None], margin=9.0, eps=0.0)
    with mpmath.workdps(60):
        sides = [[mpmath.mpf(float(x)) for x in side] for side in (away, turned)]
        first, second = ([x / mpmath.sqrt(mpmath.fsum(y * y for y in side)) for x in side] for side in sides)
        wanted = [float(a - b) for a, b in zip(first, second, strict=True)]
    assert result.grads["anchor"][0].tolist() == wanted
    same = refloss.triplet_margin(np.zeros((1, 3)), -away[None], -3 * away[None], margin=9.0, eps=0.0)
    assert not same.grads["anchor"].any()


def cosine(first, second, target, **options):
    given = (np.array([x], float) for x in (first, second))
    result = refloss.cosine_embedding(*given, [target], **options)
    return result.loss, [gradient[0].tolist() for gradient in result.grads.values()]


def test_one_less_the_cosine_of_parallel_vectors_keeps_its_digits():
    """ε/(Σ x² + ε), where 1 less the quotient has four digits; and what a turn by 2^-40 comes to."""
    with mpmath.workdps(60):
        epsilon = mpmath.mpf(1e-12)
        assert cosine([1, 2], [1, 2], 1)[0] == float(epsilon / (5 + epsilon))
        slope = -epsilon / (5 + epsilon) ** 2
        assert cosine([1, 2], [1, 2], 1)[1] == [[float(slope), float(2 * slope)]] * 2
    turn = 2.0**-40
    loss, _ = cosine([1e8, 0], [1e8, turn * 1e8], 1)
    assert loss == pytest.approx(turn**2 / 2, rel=1e-7)
    assert cosine([1, 2], [-1, -2], -1, margin=-1.0)[0] == cosine([1, 2], [1, 2], 1)[0]


def test_a_cosine_at_the_margin_passes_its_slope():
    _, grads = cosine([2, -1], [1, 2], -1)
    np.testing.assert_allclose(grads, [[0.2, 0.4], [0.4, -0.2]], rtol=1e-12)
    loss, grads = cosine([0, 0], [1, 2], -1)
    assert loss == 0.0
    np.testing.assert_allclose(grads, [[1e6 / 5**0.5, 2e6 / 5**0.5], [0.0, 0.0]], rtol=1e-12)
    assert cosine([2, -1], [1, 2], -1, margin=2.0**-60) == (0.0, [[0.0, 0.0]] * 2)


@pytest.mark.parametrize("target", [0, 0.5, 2, -3, NAN])
def test_other_targets_cost_nothing(target):
    assert cosine([1, 2], [2, 3], target) == (0.0, [[0.0, 0.0]] * 2)


@pytest.mark.parametrize("value", [NAN, INF])
def test_rows_that_are_not_finite_have_undefined_slopes(value):
    for target in (1, -1, 0):
        loss, grads = cosine([value, 0], [1, 2], target)
        assert np.isnan(loss) == (target != 0)
        assert np.isnan(grads).all()


def test_cosines_of_vectors_whose_squares_leave_float64():
    for scale in (1e200, 1e308):
        loss, grads = cosine([0.375 * scale, 0.5 * scale], [0.5 * scale, 0.375 * scale], 1)
        assert loss == pytest.approx(0.04, rel=1e-15)
        np.testing.assert_allclose(np.multiply(grads, scale), [[-0.3584, 0.2688], [0.2688, -0.3584]], rtol=1e-12)


X = np.zeros((2, 3))
TRIPLET = {"anchor": X, "positive": X, "negative": X}
COSINE = {"input1": X, "input2": X, "target": [1, -1]}
BAD = [
    ("cosine_embedding", COSINE | {"input2": np.zeros((1, 3))}, r"input2 has shape \(1, 3\); expected \(2, 3\)"),
    ("cosine_embedding", COSINE | {"target": [1]}, r"target has shape \(1,\); expected \(2,\), one number for each"),
    ("cosine_embedding", COSINE | {"input1": np.zeros(())}, r"input1 has shape \(\); expected"),
    ("cosine_embedding", COSINE | {"margin": INF}, "margin is inf"),
    ("triplet_margin", TRIPLET | {"negative": np.zeros((1, 3))}, r"negative has shape \(1, 3\); expected \(2, 3\)"),
    ("triplet_margin", TRIPLET | {"anchor": np.zeros((2, 0))}, r"anchor has shape \(2, 0\); expected"),
    ("triplet_margin", TRIPLET | {"margin": 0.0}, "margin is 0.0; expected a finite positive number"),
    ("triplet_margin", TRIPLET | {"p": 0}, "p is 0.0; expected a positive number"),
    ("triplet_margin", TRIPLET | {"eps": INF}, "eps is inf; expected a finite number"),
    (
        "multi_margin",
        {"input": np.zeros((2, 3, 4)), "target": [0, 0]},
        r"input has shape \(2, 3, 4\); expected \[N, C\]",
    ),
    ("multi_margin", {"input": np.zeros((2, 0)), "target": [0, 0]}, r"input has shape \(2, 0\)"),
    ("multi_margin", {"input": X, "target": [0, 3]}, r"target\[1\] = 3 is outside \[0, 2\]"),
    ("multi_margin", {"input": X, "target": [0, -1]}, r"target\[1\] = -1 is outside"),
    ("multi_margin", {"input": X, "target": [0, 1, 2]}, r"target has shape \(3,\); expected \(2,\)"),
    ("multi_margin", {"input": X, "target": [0, 1], "p": 3}, "p is 3; expected 1 or 2"),
    ("multi_margin", {"input": X, "target": [0, 1], "p": 1.5}, "p is 1.5; expected 1 or 2"),
    ("multi_margin", {"input": X, "target": [0, 1], "margin": NAN}, "margin is nan"),
    ("multi_margin", {"input": X, "target": [0, 1], "weight": np.ones(2)}, r"weight has shape \(2,\)"),
    ("multi_margin", {"input": X, "target": [0, 1], "reduction": "batchmean"}, "reduction is 'batchmean'"),
    ("multilabel_margin", {"input": X, "target": [0, 1]}, r"target has shape \(2,\); expected \(2, 3\)"),
    ("multilabel_margin", {"input": X, "target": [[0, -1, 3], [0, 0, 0]]}, r"target\[0, 2\] = 3 is outside \[-1, 2\]"),
    ("multilabel_margin", {"input": X, "target": [[0, -2, 1], [0, 0, 0]]}, r"target\[0, 1\] = -2 is outside"),
]


@pytest.mark.parametrize(("function", "arguments", "message"), BAD)
def test_what_does_not_fit_is_told(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(refloss, function)(**arguments)
