"""Bounds have power in every type and at every size, hold for honest arithmetic, and need no room."""

import tracemalloc

import ml_dtypes
import mpmath
import numpy as np
import pytest

from refloss.cases.source import DTYPES, Case
from refloss.error_model import bounds
from refloss.error_model.bound import BLOCK, Bound, blocks
from refloss.golden.store import evaluate, expected_tensors
from refloss.roundoff import independent, roundoff
from refloss.testing.spacing import spacing

SIZES = {"small": 24, "2^12": 1 << 12, "2^20": 1 << 20}


def random(name, size):
    return np.random.default_rng([size, len(name)])


# Of each family some losses: inputs of about so many elements.


def elements(name, low=-2.0, high=2.0, **parameters):
    def made(size):
        shape, source = (4, size // 4), random(name, size)
        x, t = 2 * source.standard_normal(shape), source.uniform(low, high, shape)
        first = {"bce_with_logits": "logits"}.get(name, "input")
        return {first: x, "target": t}, parameters

    return made


def divergence(size):
    source = random("kl_div", size)
    x = source.standard_normal((size // 4, 4))
    t = source.dirichlet(np.ones(4), size // 4)
    return {"input": x - np.log(np.exp(x).sum(axis=1, keepdims=True)), "target": t}, {"reduction": "batchmean"}


def weighted(size):
    inputs, _ = elements("mse")(size)
    return inputs | {"weight": random("weight", size).uniform(0.5, 2.0, inputs["input"].shape)}, {}


def rows(classes, **parameters):
    def made(size):
        source, count = random("rows", size), size // classes
        labels = source.integers(classes, size=count)
        labels[1::5] = -100
        return {"logits": 2 * source.standard_normal((count, classes)), "target": labels}, parameters

    return made


def weighted_rows(size):
    inputs, _ = rows(4)(size)
    return inputs | {"weight": random("weights", size).uniform(0.5, 2.0, 4)}, {"label_smoothing": 0.1}


def soft_rows(size):
    inputs, _ = rows(4)(size)
    return inputs | {"target": random("soft", size).dirichlet(np.ones(4), size // 4)}, {}


def log_rows(size):
    inputs, _ = rows(4)(size)
    return {"input": -np.abs(inputs["logits"]) - 0.5, "target": inputs["target"]}, {}


def masks(name):
    def made(size):
        source = random(name, size)
        inputs = {"inputs": 2 * source.standard_normal((2, size // 2)), "targets": source.uniform(0, 1, (2, size // 2))}
        return inputs, {"num_boxes": 2.0}

    return made


PROBLEMS = {
    "mse": elements("mse"),
    "mse weighted": weighted,
    "huber": elements("huber", delta=0.5),
    "bce_with_logits": elements("bce_with_logits", 0.0, 1.0),
    "kl_div": divergence,
    "cross_entropy of few classes": rows(4),
    "cross_entropy of many": lambda size: rows(max(4, size // 8))(size),
    "cross_entropy weighted": weighted_rows,
    "cross_entropy soft": soft_rows,
    "nll": log_rows,
    "sigmoid_focal": masks("sigmoid_focal"),
    "varifocal": masks("varifocal"),
    "dice": masks("dice"),
}


def answered(problem, size, dtype):
    inputs, parameters = PROBLEMS[problem](size)
    cast = {name: value.astype(DTYPES[dtype]) if value.dtype.kind == "f" else value for name, value in inputs.items()}
    case = Case(problem, problem.split()[0], cast, parameters, -float(size))
    return case, evaluate(case)


def allowed(bound, right):
    """With the roundings of both sides to the type of what is expected."""
    size = np.abs(np.where(np.isfinite(right), right, 0.0)).astype(np.float64)
    limit = np.asarray(bound)
    return limit + (spacing(size + limit, right.dtype) + spacing(size, right.dtype)) / 2


def passes(bound, right, factor):
    """Whether a wrong answer is let through; of a large tensor, already where it begins."""
    first = right.reshape(-1)[:BLOCK]
    exact, limit = first.astype(np.float64), bound.part(0, first.size)
    return bool((np.abs((factor - 1) * exact) <= allowed(limit, first)).all())


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_nothing_passes_that_is_zero_negated_doubled_or_a_gradient_a_fifth_too_large(problem, dtype, size):
    case, result = answered(problem, size, dtype)
    limits = bounds(case, result, dtype)
    for name, tensor in expected_tensors(result).items():
        right, kind = np.asarray(tensor), name.removeprefix("expected.")
        if kind.startswith("intermediate."):
            continue
        wrong = [0.0, -1.0, 2.0] + [1.2] * kind.startswith("grad.") + [1.01] * (dtype in {"float32", "float64"})
        assert not [factor for factor in wrong if passes(limits[kind], right, factor)], kind


def test_one_chain_of_float32_fails_unless_any_order_is_allowed():
    source = np.random.default_rng(1)
    x, t = (source.standard_normal(1 << 24, np.float32) for _ in range(2))
    squares = (x - t) ** 2
    exact, case = squares.mean(dtype=np.float64), Case("long", "mse", {"input": x, "target": t}, {}, 1.0)
    chain = np.add.accumulate(squares)[-1] / np.float32(x.size)
    paired = squares.sum() / np.float32(x.size)
    blocked, anyhow = (float(np.asarray(bounds(case, None, "float32", how)["loss"])) for how in ("blocks", "any"))
    assert abs(chain - exact) > 10 * blocked
    assert abs(chain - exact) < anyhow
    assert abs(paired - exact) < blocked / 10
    assert 0.01 * exact > 30 * blocked


def test_sums_cost_their_chains_and_the_pairs_above_them():
    unit, chain = roundoff("float32"), roundoff("float32", "any")
    assert unit.sum(1000) == chain.sum(1000) == 1000 * 2.0**-24
    assert unit.sum(2**24) == (2**12 + 12) * 2.0**-24
    assert chain.sum(2**24) == 1.0
    assert roundoff("bfloat16").sum(2**24) == unit.sum(2**24)
    with pytest.raises(ValueError, match="summation is 'pairs'; expected one of blocks, any"):
        roundoff("float32", "pairs")


def test_roundings_of_like_terms_are_not_independent():
    assert independent(np.full(100, 0.5)) == 50.0
    assert independent(np.arange(1.0, 10001.0)) == pytest.approx(6 * np.sqrt(np.sum(np.arange(1.0, 10001.0) ** 2)))
    assert independent(np.array([1.0, 2.0])) == 3.0


# What a chain of logits is granted is what its roundings cost: confident rows tell a percent beside logits of 14.


def through_chain(x, scale, temperature, how):
    """Float32 logits on their way, in the orders in which people write them."""
    scale, temperature = np.float32(scale), np.float32(temperature)
    if how == "divided":
        return x * scale / temperature
    return x * scale * (np.float32(1.0) / temperature) if how == "multiplied" else x * (scale / temperature)


@pytest.mark.parametrize("how", ["divided", "multiplied", "by one factor"])
@pytest.mark.parametrize(("scale", "temperature"), [(1.0, 0.7), (1.75, 1.0), (0.9, 1.3), (0.25, 2.0)])
def test_a_confident_rows_cross_entropy_is_told_to_a_percent_and_honest_ones_pass(scale, temperature, how):
    source, rows = np.random.default_rng(9), 4
    options = {"logit_scale": scale, "temperature": temperature, "z_loss": 1e-4}
    for _ in range(60):
        x = source.normal(0.0, 0.5, (rows, 6))
        labels = source.integers(6, size=rows)
        x[np.arange(rows), labels] += 8.0
        given = (x + 6.0).astype(np.float32) * np.float32(temperature / scale)
        case = Case("confident", "cross_entropy", {"logits": given, "target": labels}, options, 1.0)
        result = evaluate(case)
        right, limits = float(result.components["cross_entropy"]), bounds(case, result, "float32")
        limit = float(np.asarray(limits["component.cross_entropy"])) + np.spacing(np.float32(right))
        assert 5e-4 < right < 1e-2
        assert 0.01 * right > limit
        y = through_chain(given, scale, temperature, how)
        below = y - y.max(axis=1, keepdims=True)
        losses = np.log(np.exp(below).sum(axis=1, dtype=np.float32)) - below[np.arange(rows), labels]
        assert abs(float(losses.mean(dtype=np.float32)) - right) < limit


# Bounds are read in parts.


def bound_of_rows(x, labels, weight, cotangent, u, v):
    """The docstring's formulas, of [R, C] and a mean over weights."""
    classes, counted = x.shape[1], labels >= 0
    distance = x.max(axis=1, keepdims=True) - x
    total = np.exp(-distance).sum(axis=1, keepdims=True)
    p, log_p = np.exp(-distance) / total, distance + np.log(total)
    mass = (labels[:, None] == np.arange(classes)) * weight
    added, summed = v * len(x), v * min(classes, 4096) + v * np.log2(max(classes / 4096, 1))
    log_error = v * (distance + (p * distance).sum(axis=1, keepdims=True) + 4) + summed
    log_error += u * (1 + np.log(total) + log_p)
    relative, divisor = 8 * u + added + summed, weight[labels[counted]].sum()
    pushed = mass.sum(axis=1, keepdims=True)
    slope = relative * (mass + pushed * p) + pushed * p * np.expm1(np.minimum(log_error, 1.0))
    loss = (mass * (log_error + relative * log_p)).sum() / divisor
    return loss, cotangent / divisor * slope


@pytest.mark.parametrize("layout", ["rows", "trailing axes", "strided", "one row longer than a block"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parts_are_the_formula_of_the_whole(dtype, layout):
    source = np.random.default_rng(5)
    shape = {"one row longer than a block": (1, 2 * BLOCK + 77)}.get(layout, (300, 333))
    x = (5 * source.standard_normal(shape)).astype(DTYPES[dtype])
    labels = np.where(source.random(len(x)) < 0.2, -100, source.integers(shape[1], size=len(x)))
    labels[0] = 3
    weight = source.uniform(0.5, 2.0, shape[1])
    logits, target = x, labels
    if layout == "trailing axes":
        logits, target = np.ascontiguousarray(x.reshape(5, 60, -1).swapaxes(1, 2)), labels.reshape(5, 60)
    elif layout == "strided":
        logits = np.repeat(x, 2, axis=1)[:, ::2]
    unit = roundoff(dtype)
    loss, slope = bound_of_rows(x.astype(np.float64), labels, weight, 3.0, unit.between, unit.inside)
    if layout == "trailing axes":
        slope = slope.reshape(5, 60, -1).swapaxes(1, 2)
    case = Case("parts", "cross_entropy", {"logits": logits, "target": target, "weight": weight}, {}, -3.0)
    found = bounds(case, None, dtype)
    np.testing.assert_allclose(np.asarray(found["loss"]), loss, rtol=1e-10)
    gradient = found["grad.logits"]
    assert gradient.shape == logits.shape
    np.testing.assert_allclose(np.asarray(gradient), slope, rtol=1e-9, atol=1e-36)
    whole = np.asarray(gradient).reshape(-1)
    for first, last in blocks(whole.size, 40_009):
        assert np.array_equal(gradient.part(first, last), whole[first:last])


def test_parts_of_elements_follow_broadcast_weights_and_cotangents():
    source = np.random.default_rng(6)
    x, t = source.standard_normal((3, 7, 11)), source.random((3, 7, 11))
    inputs = {"logits": x, "target": t, "weight": source.random((7, 1)), "pos_weight": source.random(11)}
    whole = {name: np.broadcast_to(value, x.shape).copy() for name, value in inputs.items()}
    cotangent, parameters = source.standard_normal(x.shape), {"reduction": "none"}
    found = bounds(Case("", "bce_with_logits", inputs, parameters, cotangent), None, "float32")
    wanted = bounds(Case("", "bce_with_logits", whole, parameters, cotangent), None, "float32")
    for name in ("loss", "grad.logits", "grad.target"):
        assert np.array_equal(found[name].part(50, 190), np.asarray(wanted[name]).reshape(-1)[50:190])


def test_bounds_of_a_large_tensor_need_no_room():
    rows = np.random.default_rng(7).standard_normal((8, 32000)).astype(ml_dtypes.bfloat16)
    logits, labels = np.tile(rows, (64, 1)), np.arange(512) * 7
    case = Case("large", "cross_entropy", {"logits": logits, "target": labels}, {}, 1.0)
    tracemalloc.start()
    try:
        gradient = bounds(case, None, "float32")["grad.logits"]
        largest = max(gradient.part(first, last).max() for first, last in list(blocks(gradient.size))[::16])
        room = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0 < largest < 1
    assert room < 20e6 < logits.nbytes


def test_arrays_that_are_files_are_read_in_parts(tmp_path):
    source = np.random.default_rng(8)
    x = source.standard_normal((40, 50)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for function, first in (("mse", "input"), ("bce_with_logits", "logits")):
        cases = [Case("", function, {first: each, "target": np.abs(x) / 5}, {}, 1.0) for each in (x, mapped)]
        own, other = (np.asarray(bounds(case, None, "float32")[f"grad.{first}"]) for case in cases)
        assert np.array_equal(own, other)


# What is lost below tiny is each row's own affair.


def test_a_huge_cotangent_allows_nothing_in_other_rows():
    source = np.random.default_rng(9)
    logits = source.standard_normal((4, 5)).astype(np.float32)
    cotangent = np.array([1e37, 1e-3, -1.0, 0.0])
    parameters = {"reduction": "none"}
    case = Case("", "cross_entropy", {"logits": logits, "target": np.arange(4)}, parameters, cotangent)
    limits = np.asarray(bounds(case, None, "float32")["grad.logits"])
    right = evaluate(case).grads["logits"].astype(np.float64)
    assert np.all(np.abs(right[:3]) > 1e4 * limits[:3])
    for function, names in (("mse", ("input", "target")), ("sigmoid_focal", ("inputs", "targets"))):
        inputs = {names[0]: logits, names[1]: np.full(logits.shape, 0.3, np.float32)}
        case = Case("", function, inputs, parameters, np.broadcast_to(cotangent[:, None], logits.shape))
        limits, right = np.asarray(bounds(case, None, "float32")[f"grad.{names[0]}"]), evaluate(case).grads[names[0]]
        assert np.all(np.abs(right.astype(np.float64))[:3] > 1e3 * limits[:3]), function
    losses = {how: bounds(case._replace(grad_output=how), None, "float32")["loss"] for how in (1e37, 1.0)}
    assert np.array_equal(losses[1e37], losses[1.0])


# Honest arithmetic.


def exact_focal(x, t, alpha, gamma):
    """[2] the loss and its derivative."""

    def loss(z):
        p = 1 / (1 + mpmath.exp(-z))
        rest = 1 / (1 + mpmath.exp(z))
        own = p * t + rest * (1 - t)
        missed = p * (1 - t) + rest * t
        weight = alpha * t + (1 - alpha) * (1 - t)
        return -weight * missed**gamma * (t * mpmath.log(p) + (1 - t) * mpmath.log(rest)) + 0 * own

    return float(loss(mpmath.mpf(x))), float(mpmath.diff(loss, mpmath.mpf(x), h=mpmath.mpf(10) ** -60))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_saturated_focal_losses_of_float64_are_within_bounds(gamma):
    """The formula with both of p and 1 − p, which loses nothing: bounds that cancel were 0 there."""
    x = np.array([-90.0, -60.5, -38.25, -37.0, -20.0, -3.0, 0.25, 5.0, 30.0, 37.5, 45.0, 100.0]).reshape(2, 6)
    alpha = 0.25
    for t in (np.zeros(x.shape), np.ones(x.shape)):
        case = Case(
            "", "sigmoid_focal", {"inputs": x, "targets": t}, {"gamma": gamma, "reduction": "none"}, np.ones(x.shape)
        )
        limits = bounds(case, None, "float64")
        with mpmath.workdps(150):
            exact = np.array([exact_focal(a, b, alpha, gamma) for a, b in zip(x.flat, t.flat, strict=True)]).T
        exact = exact.reshape(2, *x.shape)
        sign = 1 - 2 * t
        small = np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x)))
        missed = np.where(sign * x > 0, 1 - small, small)
        own = np.where(sign * x > 0, small, 1 - small)
        weight, loss = np.where(t > 0, alpha, 1 - alpha), np.log1p(np.exp(-np.abs(x))) + np.maximum(sign * x, 0)
        value = weight * missed**gamma * loss
        slope = sign * weight * missed**gamma * (missed + gamma * loss * own)
        for name, found, wanted in (("loss", value, exact[0]), ("grad.inputs", slope, exact[1])):
            limit = allowed(limits[name], wanted)
            assert np.isfinite(limit).all()
            assert (np.abs(found - wanted) <= limit).all(), name


def test_what_float16_loses_on_the_way_is_within_bounds():
    """kl_div's derivative for a target as c·log t + (c·t)/t − c·x, rounded to float16 at each step, as torch has it."""
    source = np.random.default_rng(10)
    t = source.dirichlet(np.full(64, 0.2), 32).astype(np.float16)
    x = (-30 * source.random(t.shape)).astype(np.float16)
    t[t == 0] = np.float16(6e-8)
    case = Case("", "kl_div", {"input": x, "target": t}, {"reduction": "sum"}, float(np.float16(1.3e-3)))
    c, log_t = np.float16(case.grad_output), np.log(t.astype(np.float32)).astype(np.float16)
    found = (c * log_t + (c * t) / t - c * x).astype(np.float64)
    exact = case.grad_output * (np.log(t.astype(np.float64)) + 1 - x.astype(np.float64))
    limits = bounds(case, None, "float16")
    assert np.abs(found - exact).max() > 2e-4
    assert (np.abs(found - exact) <= allowed(limits["grad.target"], exact.astype(np.float16))).all()
    assert not passes(limits["grad.target"], exact.astype(np.float16), 0.0)


# Where logits and targets are extreme.


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16", "float16", "float64"])
def test_improbable_targets_have_finite_bounds_that_tell(compute_dtype):
    logits = np.array([[0.0, -120.0, -3.0], [0.0, 1.0, -130.0]])
    case = Case("", "cross_entropy", {"logits": logits, "target": np.array([1, 2])}, {}, 1.0)
    limits = {name: np.asarray(bound) for name, bound in bounds(case, None, compute_dtype).items()}
    assert all(np.isfinite(limit).all() for limit in limits.values())
    assert limits["loss"] < 125.68092451954598 - 87.34
    assert (limits["grad.logits"][[0, 1], [1, 2]] < 0.1).all()  # they are −1/2 less next to nothing


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16", "float64"])
def test_masked_classes_and_targets_of_0_and_1_have_finite_bounds(compute_dtype):
    logits = np.array([[2.0, -np.inf, 1.0, -700.0], [-np.inf, 90.0, -90.0, 0.0], [5.0, 5.0, 5.0, 5.0]])
    soft = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.0, 0.5], [0.25, 0.25, 0.25, 0.25]])
    for target in (np.array([2, 1, 0]), soft):
        case = Case("", "cross_entropy", {"logits": logits, "target": target}, {}, 2.0)
        for name, limit in bounds(case, None, compute_dtype).items():
            assert np.isfinite(np.asarray(limit)).all(), name
    x, t = np.array([-1.0, -np.inf, -100.0]), np.array([0.0, 0.0, 1.0])
    limits = bounds(Case("", "kl_div", {"input": x, "target": t}, {}, 1.0), None, compute_dtype)
    assert np.isfinite(np.asarray(limits["loss"]))
    assert 0 < np.asarray(limits["loss"]) < 10
    for gamma in (0.0, 0.3, 2.0):
        inputs = {
            "inputs": np.array([[-100.0, 100.0, -800.0, 800.0, 0.0]]),
            "targets": np.array([[0.0, 1.0, 1.0, 0.0, 0.5]]),
        }
        limits = bounds(Case("", "sigmoid_focal", inputs, {"gamma": gamma}, 1.0), None, compute_dtype)
        for name, limit in limits.items():
            assert np.isfinite(np.asarray(limit)).all(), (name, gamma)


def test_a_vocabulary_is_told_to_one_per_cent():
    logits = np.random.default_rng(11).standard_normal((2, 128256)).astype(np.float32)
    case = Case("", "cross_entropy", {"logits": logits, "target": np.array([7, 128000])}, {}, 1.0)
    limit, right = np.asarray(bounds(case, None, "float32")["grad.logits"]), evaluate(case).grads["logits"]
    assert (limit < 1e-3 * np.abs(right)).all()


def test_an_array_knows_its_shape_and_its_parts():
    bound = Bound((2, 3), lambda first, last: np.arange(first, last) * np.nan)
    assert (bound.size, bound.ndim) == (6, 2)
    assert np.array_equal(np.asarray(bound), np.zeros((2, 3)))
    assert np.array_equal(bound.reshaped((3, 2)).part(1, 4), np.zeros(3))
