"""Classes and rows on several ranks: the bits of one place, what ranks send, and the mistakes that ranks make."""

import re
from fractions import Fraction
from itertools import pairwise

import ml_dtypes
import mpmath
import numpy as np
import pytest

import refloss
from refloss.files import nested
from refloss.golden.corpus import cases_of
from refloss.golden.store import check
from refloss.numerics.exact import quotient
from refloss.testing import MismatchError, assert_matches, golden_case
from refloss.testing.judging.judge import judge, question

DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
MASKED = np.float32(-np.inf)


def rows(seed, *shape, scale=4.0, dtype=np.float32):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


def tokens(seed, classes, *shape, ignored=0.2):
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=shape)
    labels[generator.random(shape) < ignored] = -100
    return labels


def cut(values, *widths):
    return np.split(values, np.cumsum(widths)[:-1], axis=-1)


def random_widths(generator, classes):
    ends = np.sort(generator.integers(0, classes + 1, generator.integers(0, 6)))
    return np.diff([0, *ends, classes]).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_however_classes_are_cut_the_bits_are_those_of_one_array(dtype):
    generator = np.random.default_rng(1)
    chain = {"logit_scale": 0.5, "softcap": 6.0, "temperature": 0.7, "z_loss": 0.01}
    for seed, options in enumerate(({}, {"reduction": "sum"}, {"label_smoothing": 0.3}, chain)):
        x, y = rows(seed, 9, 37, dtype=dtype), tokens(seed, 37, 9)
        whole = refloss.cross_entropy(x, y, grad_output=-1.7, **options)
        for _ in range(5):
            widths = random_widths(generator, 37)
            found = refloss.vocab_parallel_cross_entropy(cut(x, *widths), y, grad_output=-1.7, **options)
            assert [each.shape for each in found.grads["shards"]] == [(9, width) for width in widths]
            assert {each.dtype for each in found.grads["shards"]} == {np.dtype(dtype)}
            assert found.loss == whole.loss
            assert found.components == whole.components
            assert np.concatenate(found.grads["shards"], -1).tobytes() == whole.grads["logits"].tobytes()
            one = refloss.vocab_parallel_cross_entropy(x, y, widths=widths, grad_output=-1.7, **options)
            assert one.grads["shards"].tobytes() == whole.grads["logits"].tobytes()


def test_sequences_and_losses_of_rows():
    x, y, cotangent = rows(2, 2, 5, 11), tokens(2, 11, 2, 5), rows(3, 2, 5, dtype=np.float64)
    found = refloss.vocab_parallel_cross_entropy(cut(x, 4, 7), y, reduction="none", grad_output=cotangent)
    flat = refloss.cross_entropy(
        x.reshape(10, 11), y.reshape(10), reduction="none", grad_output=cotangent.reshape(10), grad_dtype=np.float64
    )
    np.testing.assert_array_equal(found.loss.reshape(10), flat.loss)
    wide = refloss.vocab_parallel_cross_entropy(
        cut(x, 4, 7), y, reduction="none", grad_output=cotangent, grad_dtype=np.float64
    )
    np.testing.assert_array_equal(np.concatenate(wide.grads["shards"], -1).reshape(10, 11), flat.grads["logits"])
    assert {name: value.shape for name, value in found.intermediates.items()} == {
        **dict.fromkeys(("lse", "nll", "common_maximum", "total"), (2, 5)),
        **dict.fromkeys(("maximum", "sum_exp", "label_logit"), (2, 2, 5)),
    }
    assert refloss.vocab_parallel_cross_entropy(cut(x, 4, 7), y, grad=False).grads == {}


def exact_chain(x, logit_scale=1.0, softcap=None, temperature=1.0):
    z = mpmath.mpf(float(x)) * logit_scale
    return (z if softcap is None else softcap * mpmath.tanh(z / softcap)) / temperature


CHAINS: tuple[dict[str, float], ...] = (
    {},
    {"temperature": 0.7},
    {"logit_scale": 0.3, "softcap": 5.0, "temperature": 1.3},
)


@pytest.mark.parametrize("chain", CHAINS)
def test_what_ranks_compute_is_rounded_once(chain):
    """Ranks up to e^-740 below the others, whose sums are subnormal, among them."""
    x, y = rows(4, 8, 12), np.array([0, 3, 4, 11, 5, -100, 2, 7])
    x[1, 4:] += 700.0
    x[2, :4] -= 733.0
    x[3, :4] = MASKED
    x[4, 4] += 90.0
    widths = (4, 1, 7)
    found = refloss.vocab_parallel_cross_entropy(cut(x, *widths), y, label_smoothing=0.1, **chain).intermediates
    ends = [0, 4, 5, 12]
    with mpmath.workprec(300):
        for i, row in enumerate(x):
            logits = [exact_chain(value, **chain) for value in row]
            top = max(logits)
            terms = [mpmath.exp(value - top) for value in logits]
            assert found["common_maximum"][i] == float(top)
            assert found["total"][i] == float(mpmath.fsum(terms))
            for rank, (first, last) in enumerate(pairwise(ends)):
                assert found["maximum"][rank, i] == float(max(logits[first:last]))
                assert found["sum_exp"][rank, i] == float(mpmath.fsum(terms[first:last]))
                assert found["logit_sum"][rank, i] == float(mpmath.fsum(logits[first:last]))
                label = float(logits[y[i]]) if first <= y[i] < last else 0.0
                assert found["label_logit"][rank, i] == label


def test_threads_and_blocks_show_in_no_bit():
    """More elements than a block has, of each rank, and strided ones."""
    x, y = rows(13, 700, 60), tokens(13, 60, 700)
    before, found = refloss.get_num_threads(), []
    try:
        for threads, logits in ((1, x), (2, x), (2, np.asfortranarray(x))):
            refloss.set_num_threads(threads)
            found.append(refloss.vocab_parallel_cross_entropy(cut(logits, 50, 10), y, label_smoothing=0.1))
    finally:
        refloss.set_num_threads(before)
    for other in found[1:]:
        assert other.loss == found[0].loss
        for name, value in found[0].intermediates.items():
            assert value.tobytes() == other.intermediates[name].tobytes(), name


def test_ranks_that_are_masked_empty_or_undefined():
    x = np.float32([[1.0, 2.0, MASKED, MASKED], [MASKED] * 4, [1.0, np.nan, 0.0, 0.0]])
    found = refloss.vocab_parallel_cross_entropy([x[:, :2], x[:, 2:2], x[:, 2:]], [1, 1, 1], reduction="none")
    sent = found.intermediates
    np.testing.assert_array_equal(sent["maximum"], [[2.0, MASKED, np.nan], [MASKED] * 3, [MASKED, MASKED, 0.0]])
    np.testing.assert_array_equal(sent["common_maximum"], [2.0, MASKED, np.nan])
    np.testing.assert_array_equal(sent["sum_exp"][1:, 0], [0.0, 0.0])
    assert np.isnan(sent["sum_exp"][:, 1:]).all()
    assert np.isnan(found.loss).tolist() == [False, True, True]


def definition(logits, masses):
    """lse less what each mass pulls, in mpmath; and the gradient."""
    x = [mpmath.mpf(float(value)) for value in logits]
    lse = mpmath.log(mpmath.fsum(mpmath.exp(value) for value in x))
    loss = mpmath.fsum(mass * (lse - value) for mass, value in zip(masses, x, strict=True))
    return loss, [mpmath.exp(value - lse) - mass for mass, value in zip(masses, x, strict=True)]


def masses_of(label, classes, smoothing, among):
    masses = [mpmath.mpf(smoothing) / len(among) * (j in among) for j in range(classes)]
    masses[label] += 1 - mpmath.mpf(smoothing)
    return masses


@pytest.mark.parametrize("share", [0.1, 0.95])
def test_megatron_s_formula_gives_the_label_nothing(share):
    """Also where α is so large that ε is above 1."""
    x, y = rows(5, 3, 7), [0, 6, 3]
    found = refloss.vocab_parallel_cross_entropy(
        cut(x, 3, 4), y, label_smoothing=share, label_smoothing_formula="megatron", reduction="none"
    )
    gradient = np.concatenate(found.grads["shards"], 1)
    with mpmath.workprec(300):
        smoothing = share * 7 / 6
        for i in range(3):
            masses = masses_of(y[i], 7, smoothing, range(7))
            assert abs(masses[y[i]] - (1 - mpmath.mpf(share))) < 1e-15
            loss, slopes = definition(x[i], masses)
            assert abs(found.loss[i] - loss) <= 2 * np.spacing(found.loss[i])
            np.testing.assert_array_equal(gradient[i], np.float32([float(slope) for slope in slopes]))


@pytest.mark.parametrize("formula", ["torch", "megatron"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_smoothing_over_local_classes_gives_each_rank_a_loss_of_its_own(formula, reduction):
    x, y = rows(6, 4, 7), np.array([0, 6, -100, 3])
    x[2] = np.nan
    named = {"label_smoothing": 0.25, "label_smoothing_formula": formula, "reduction": reduction}
    found = refloss.vocab_parallel_cross_entropy(cut(x, 3, 4), y, label_smoothing_classes="local", **named)
    gradient = np.concatenate(found.grads["shards"], 1)
    assert not gradient[2].any()
    count = 3 if reduction == "mean" else 1
    for rank, own in enumerate((range(3), range(3, 7))):
        smoothing = 0.25 if formula == "torch" else 0.25 * len(own) / (len(own) - 1)
        losses = np.zeros(4)
        for i in (0, 1, 3):
            loss, slopes = definition(x[i], masses_of(y[i], 7, smoothing, own))
            losses[i] = loss
            np.testing.assert_allclose(gradient[i, own], [float(slopes[j]) / count for j in own], rtol=1e-6)
        expected = losses if reduction == "none" else losses.sum() / count
        np.testing.assert_allclose(found.loss[rank], expected, rtol=1e-14)
    both = refloss.vocab_parallel_cross_entropy(cut(x, 3, 4), y, **named)
    assert np.shape(found.loss) == (2, *np.shape(both.loss))
    assert (found.loss[0] != both.loss).any()
    for name in ("lse", "nll", "sum_exp"):
        np.testing.assert_array_equal(found.intermediates[name], both.intermediates[name])


def test_one_rank_has_no_other_classes_than_its_own():
    x, y = rows(7, 4, 7), tokens(7, 7, 4)
    for formula in ("torch", "megatron"):
        named = {"label_smoothing": 0.25, "label_smoothing_formula": formula, "grad_output": -0.5}
        local, both = (
            refloss.vocab_parallel_cross_entropy([x], y, label_smoothing_classes=classes, **named)
            for classes in ("local", "global")
        )
        np.testing.assert_allclose(local.loss, [both.loss], rtol=1e-15)
        np.testing.assert_allclose(local.grads["shards"][0], both.grads["shards"][0], rtol=1e-6, atol=1e-9)


X, Y = rows(8, 3, 5), np.array([0, 4, 2])
BAD = [
    (([], Y), {}, ValueError, "shards is empty"),
    (([X, X[:2]], Y), {}, ValueError, r"shards\[1\] has shape \(2, 5\); expected \[3, V_r\]"),
    (([X, X.astype(np.float64)], Y), {}, TypeError, r"shards\[1\] has dtype float64; expected float32"),
    (([X, X.astype(int)], Y), {}, TypeError, r"shards\[1\] has dtype int64"),
    (([X], Y), {"widths": [5]}, ValueError, "shards is a list, and widths is given"),
    ((X, Y), {"widths": [2, 2]}, ValueError, "widths add up to 4; expected 5"),
    ((X, Y), {"widths": [7, -2]}, ValueError, r"widths\[0\] = 7 is outside \[0, 5\]"),
    ((X, Y), {"widths": []}, ValueError, "widths has shape"),
    ((X, Y), {"widths": [2.0, 3.0]}, TypeError, "widths has dtype float64"),
    (([X, X], [0, 10, 2]), {}, ValueError, r"target\[1\] = 10 is outside \[0, 10\)"),
    (([X, X], [0, 1]), {}, ValueError, r"target has shape \(2,\); expected \(3,\)"),
    ((X, Y), {"label_smoothing": 1.5}, ValueError, r"label_smoothing is 1.5; expected a number in \[0, 1\]"),
    (
        (X, Y),
        {"label_smoothing": 1.0, "label_smoothing_formula": "megatron"},
        ValueError,
        r"label_smoothing is 1.0; expected a number in \[0, 1\)",
    ),
    ((X, Y), {"label_smoothing_formula": "tea"}, ValueError, "label_smoothing_formula is 'tea'"),
    ((X, Y), {"label_smoothing_classes": "tea"}, ValueError, "label_smoothing_classes is 'tea'"),
    ((X, Y), {"label_smoothing_classes": "local", "z_loss": 0.1}, ValueError, "z_loss is 0.1"),
    (
        ([X, X[:, :1]], Y),
        {"label_smoothing": 0.1, "label_smoothing_formula": "megatron", "label_smoothing_classes": "local"},
        ValueError,
        "label_smoothing over 1 classes; expected at least 2",
    ),
    ((X, Y), {"grad": "logits"}, ValueError, "grad is 'logits'; expected one of 'shards'"),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), BAD)
def test_what_does_not_fit_is_told(arguments, options, error, message):
    with pytest.raises(error, match=message):
        refloss.vocab_parallel_cross_entropy(*arguments, **options)


def test_a_list_is_judged_as_the_array_that_it_is_cut_from():
    x, y = rows(9, 6, 8), tokens(9, 8, 6)
    result = refloss.vocab_parallel_cross_entropy(cut(x, 3, 5), y, label_smoothing=0.2, grad_output=-2.0)
    loss = np.float32(result.loss)
    assert assert_matches(result, loss=loss, grads={"shards": result.grads["shards"]}).passed
    assert assert_matches(result, grads={"shards": np.concatenate(result.grads["shards"], 1)}).passed
    local = refloss.vocab_parallel_cross_entropy(
        cut(x, 3, 5), y, label_smoothing=0.2, label_smoothing_classes="local", grad_output=-2.0
    )
    with pytest.raises(MismatchError) as caught:
        assert_matches(result, loss=np.float32(local.loss[0]), grads={"shards": local.grads["shards"]})
    named = [cause.mistake for cause in caught.value.judgement.diagnoses]
    assert named[0] == "label smoothing over the classes of each rank instead of all"


def test_a_golden_case_of_a_list(tmp_path):
    x, y = rows(10, 4, 6), tokens(10, 6, 4)
    case = golden_case("vocab_parallel_cross_entropy", id="cut", shards=cut(x, 2, 4), target=y)
    assert case.inputs["widths"].tolist() == [2, 4]
    np.testing.assert_array_equal(case.inputs["shards"], x)
    assert case.assert_matches(grads={"shards": np.split(case.result.grads["shards"], [2], axis=1)}).passed
    case.write(tmp_path)
    assert list(check(tmp_path)) == [("cut", None)]


def sent_in_float32(case, *, own_maximum=False):
    """What ranks send, by the formulas, computed in float32."""
    x, one = case.inputs["shards"].astype(np.float32), np.float32(1)
    options = case.parameters
    x = x * np.float32(options.get("logit_scale", 1.0))
    if (cap := options.get("softcap")) is not None:
        x = np.float32(cap) * np.tanh(x / np.float32(cap))
    x = x / np.float32(options.get("temperature", 1.0))
    parts = cut(x, *case.inputs["widths"])
    maximum = np.stack([part.max(-1, initial=-np.inf) for part in parts])
    common = maximum.max(0)
    shift = maximum if own_maximum else np.broadcast_to(common, maximum.shape)
    with np.errstate(invalid="ignore"):
        sums = np.stack([np.exp(part - each[..., None]).sum(-1) for part, each in zip(parts, shift, strict=True)])
    return {"maximum": maximum, "common_maximum": common, "sum_exp": sums, "total": sums.sum(0) * one}


def test_what_ranks_send_is_judged_where_it_is_brought():
    cases = [each for each in cases_of("vocab_parallel_cross_entropy") if "widths" in each.inputs]
    tried = 0
    for case in cases:
        if case.inputs["shards"].dtype == np.float64 or "poisoned" in case.id:
            continue
        asked = question(case)
        for wrong in (False, True):
            sent = {f"intermediate.{name}": value for name, value in sent_in_float32(case, own_maximum=wrong).items()}
            verdicts = {each.name: each.passed for each in judge(asked, sent).tensors if each.name in sent}
            if not wrong:
                assert verdicts == dict.fromkeys(sent, True), case.id
            elif (sent["intermediate.sum_exp"] != sent_in_float32(case)["sum_exp"]).any():
                tried += 1
                assert not verdicts["intermediate.sum_exp"], case.id
    assert tried > 20


# What others do, in NumPy's float32.


def test_log_of_a_stored_probability_is_infinite():
    """Megatron's mean of log p is of the probabilities that the gradient is made of; e^-200 is no float32."""
    x = np.float32([[0.0, -200.0]])
    exact = refloss.vocab_parallel_cross_entropy([x], [0], label_smoothing=0.1)
    stored = np.exp(x - x.max())
    stored /= stored.sum()
    with np.errstate(divide="ignore"):
        log_p = np.log(stored)
    assert np.isneginf(log_p.mean())
    assert np.isclose(exact.loss, 0.1 * 100.0)


def test_a_label_that_is_no_class_is_an_error():
    """flash-attn takes such a row's loss for 0, and pushes its logits nevertheless."""
    with pytest.raises(ValueError, match=r"target\[0\] = 9 is outside \[0, 2\)"):
        refloss.vocab_parallel_cross_entropy([np.zeros((1, 1), np.float32)] * 2, [9])


# Rows on several ranks.


def halves(seed=11):
    x, y = rows(seed, 4, 10, 13), tokens(seed, 13, 4, 10)
    y[1, 3:] = -100
    return x, y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("axis", "along"), [("batch", 0), ("sequence", 1)])
def test_sums_of_ranks_are_the_bits_of_all_rows(axis, along, dtype):
    x, y = halves()
    x = x.astype(dtype)
    options = {"grad_output": -1.5, "softcap": 8.0, "temperature": 0.9}
    for items in (None, 21.5):
        whole = refloss.causal_lm(x, y, num_items_in_batch=items, **options)
        for count in (1, 2, 3, 4):
            found = refloss.shards(
                np.array_split(x, count, along),
                np.array_split(y, count, along),
                axis=axis,
                num_items_in_batch=items,
                **options,
            )
            assert found.loss == whole.loss
            assert found.count == (items or sum(rank.count for rank in found.ranks))
            # In any order.
            total = sum((rank.total for rank in reversed(found.ranks)), Fraction(0))
            assert quotient(total, Fraction(found.count)) == whole.loss
            gradient = np.concatenate([rank.grad for rank in found.ranks], along)
            assert gradient.tobytes() == whole.grads["logits"].tobytes()
            targets = np.concatenate([rank.targets for rank in found.ranks], along)
            np.testing.assert_array_equal(targets, whole.intermediates["shift_labels"])


def test_a_rank_alone_computes_its_part_from_its_targets():
    x, y = halves()
    found = refloss.shards(np.split(x, 2, 1), np.split(y, 2, 1), axis="sequence")
    assert np.array_equal(found.ranks[0].targets[:, -1], y[:, 5])  # across the edge
    for rank, own in zip(found.ranks, np.split(x, 2, 1), strict=True):
        part = refloss.causal_lm(own, rank.targets, shift_labels=rank.targets, num_items_in_batch=found.count)
        assert rank.loss == part.loss
        assert rank.grad.tobytes() == part.grads["logits"].tobytes()
        alone = refloss.causal_lm(own, rank.targets, shift_labels=rank.targets)
        assert rank.local_loss == alone.loss
        doubled = refloss.causal_lm(
            own, rank.targets, shift_labels=rank.targets, num_items_in_batch=found.count, grad_output=2.0
        )
        # The mean of two ranks' is the gradient.
        assert rank.grad_for_mean.tobytes() == doubled.grads["logits"].tobytes()
        np.testing.assert_array_equal(rank.grad_for_mean, 2 * rank.grad)


NAMED = {
    "a mean of the means of ranks": r"a mean of the means of (ranks|chunks)",
    "the means of ranks are added": r"the means of ranks are added",
    "the mean of a reducer is not undone": r"off by a constant factor of 0\.3333",
    "a reducer that adds is taken for one that takes the mean": r"off by a constant factor of 3",
    "labels are shifted within each rank": r"labels are shifted within each shard of a sequence",
}


@pytest.mark.parametrize(("axis", "along"), [("batch", 0), ("sequence", 1)])
def test_the_judge_names_what_ranks_do_wrong(axis, along):
    x, y = halves()
    whole = refloss.causal_lm(x, y, grad_output=-1.5)
    found = refloss.shards(np.array_split(x, 3, along), np.array_split(y, 3, along), axis=axis, grad_output=-1.5)
    assert found.mistakes.keys() == NAMED.keys() - (
        {"labels are shifted within each rank"} if axis == "batch" else set()
    )
    for words, compute in found.mistakes.items():
        wrong = compute()
        with pytest.raises(MismatchError) as caught:
            assert_matches(whole, loss=np.float32(wrong.loss), grads={"logits": np.concatenate(wrong.grads, along)})
        first = caught.value.judgement.diagnoses[0].mistake
        assert re.fullmatch(NAMED[words], first), (words, first)


def test_a_rank_on_which_nothing_counts():
    x, y = halves()
    y[2:] = -100
    found = refloss.shards(np.split(x, 2), np.split(y, 2))
    assert (found.ranks[1].count, found.ranks[1].loss) == (0, 0.0)
    assert np.isnan(found.ranks[1].local_loss)
    assert not found.ranks[1].grad.any()
    assert found.loss == refloss.causal_lm(x, y).loss
    assert np.isnan(found.mistakes["a mean of the means of ranks"]().loss)
    nowhere = refloss.shards(np.split(x, 2), np.split(np.full_like(y, -100), 2), grad=False)
    assert np.isnan(nowhere.loss)
    assert nowhere.ranks[0].grad is None


def test_rows_that_are_not_finite():
    x, y = halves()
    x[0, 0] = np.nan
    y[0, 1] = 3
    found = refloss.shards(np.split(x, 2), np.split(y, 2))
    assert np.isnan(found.loss)
    assert np.isfinite(found.ranks[1].loss)


Z, T = rows(12, 2, 4, 5), tokens(12, 5, 2, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((Z, [T]), {}, TypeError, "logits is a ndarray; expected a list"),
        (([Z], T), {}, TypeError, "labels is a ndarray; expected a list"),
        (([Z, Z], [T]), {}, ValueError, "labels has 1 parts and logits 2"),
        (([Z[0]], [T]), {}, ValueError, r"logits\[0\] has shape \(4, 5\); expected \[B, S, V\]"),
        (([Z, Z[:, :3]], [T, T[:, :3]]), {}, ValueError, r"logits\[1\] has shape \(2, 3, 5\)"),
        (([Z, Z], [T, T[:1]]), {}, ValueError, r"labels\[1\] has shape \(1, 4\); expected \(2, 4\)"),
        (([Z, Z.astype(np.float64)], [T, T]), {}, TypeError, r"logits\[1\] has dtype float64"),
        (([Z], [T]), {"axis": "tea"}, ValueError, "axis is 'tea'"),
        (([Z], [T]), {"grad_output": np.ones(2)}, ValueError, "grad_output has shape"),
    ],
)
def test_what_does_not_fit_a_rank_is_told(arguments, options, error, message):
    with pytest.raises(error, match=message):
        refloss.shards(*arguments, **options)


def of_image(given, i, **options):
    """DETR's losses of one image, as a rank has it."""
    logits, boxes = (given[name][i : i + 1] for name in ("logits", "pred_boxes"))
    return refloss.object_detection(logits, given["labels"][i : i + 1], boxes, **options)


def test_boxes_of_ranks_are_divided_by_their_mean():
    """Each rank divides by num_boxes, the mean of ranks' objects: then the mean of ranks is Σ over all objects."""
    case = next(case for case in cases_of("object_detection") if case.id == "object_detection-float32")
    given, images = nested(case.inputs), range(len(case.inputs["logits"]))
    whole = refloss.object_detection(**given, **case.parameters)
    counts = [len(image["boxes"]) for image in given["labels"]]
    mean = sum(counts) / len(counts)
    ranks = [of_image(given, i, num_boxes=mean, **case.parameters) for i in images]
    alone = [of_image(given, i, **case.parameters) for i in images]
    assert len(set(counts)) > 1
    assert mean >= 1
    for name in ("loss_bbox", "loss_giou"):
        right = whole.components[name]
        assert np.isclose(np.mean([rank.components[name] for rank in ranks]), right, rtol=1e-14)
        assert not np.isclose(np.mean([rank.components[name] for rank in alone]), right, rtol=1e-3)
    boxes = np.concatenate([rank.grads["pred_boxes"] for rank in ranks]) / np.float32(len(counts))
    np.testing.assert_allclose(boxes, whole.grads["pred_boxes"], rtol=1e-6)
