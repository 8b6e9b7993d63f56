"""Usual mistakes are called by their names, whatever the function, and nothing else is."""

import functools
import re

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import refloss
from refloss.cases.source import Case
from refloss.golden.store import evaluate
from refloss.testing.judging.judge import judge, question
from refloss.testing.mistakes import mutants
from tests.gauntlet.survey import few
from tests.questions import questions

FUNCTIONS = ("cross_entropy", "causal_lm", "masked_lm", "mse", "bce_with_logits", "dice", "giou", "question_answering")


def asked_for(case_id):
    return next(asked for asked in questions(case_id.partition("-")[0]) if asked.case.id == case_id)


def explanation(asked, name, wrong):
    """What is said of one wrong tensor."""
    right = asked.expected[name]
    values = np.asarray(wrong).astype(right.dtype)
    (verdict,) = judge(asked._replace(expected={name: right}), {name: values}).tensors
    assert verdict.passed is False
    return verdict.explanation


def explained_mutants(mutant, *functions):
    for asked in (asked for function in functions for asked in few(questions(function))):
        for name, wrong in mutants.MUTANTS[mutant](asked).items():
            if not isinstance(wrong, str):
                yield asked.case, name, explanation(asked, name, wrong)


# Several mistakes may have the same effect, and a scalar or a constant says less: the words that may be said.
@pytest.mark.parametrize(
    ("mutant", "words"),
    [
        ("zero", ["zero everywhere", "all labels ignored gives 0 instead of NaN"]),
        ("negated", ["constant factor of -1, a wrong sign"]),
        # Where the box around both is their union, 2 − 2·I/U is what comes of the intersection in its place.
        ("doubled", ["constant factor of 2", "the intersection is taken for the union"]),
        ("rows shifted by one", ["shifted by one position (+1) along axis"]),
        ("transposed axes", ["transposed: axes "]),
        ("upstream gradient ignored", ["upstream gradient", "zero everywhere", "a wrong sign"]),
        ("ignored rows leaking", ["ignored rows are included"]),
        (
            "mean over the wrong count",
            ["a mean over ", "the batch size", "all labels ignored", "instead of num_boxes", "is ignored"],
        ),
        ("label smoothing ε/(K − 1)", ["ε/(K − 1) instead of ε/K"]),
    ],
)
def test_every_mutant_has_its_name(mutant, words):
    found = list(explained_mutants(mutant, *FUNCTIONS))
    assert found
    wrong = [
        (case.id, name, said)
        for case, name, said in found
        if said is None or not any(w in said or w in of_two(case, name, said) for w in words)
    ]
    assert not wrong


def of_two(case, name, said):
    """What might be said as well: of two rows that are exchanged, each is moved up and down."""
    moved = re.search(r"\(-1\) along axis (\d)", said)
    axes = case.inputs[name.removeprefix("grad.")].shape if moved else ()
    return said.replace("(-1)", "(+1)") if moved and axes[int(moved[1])] == 2 else said


@pytest.mark.parametrize("function", ["rt_detr_object_detection", "grounding_dino_object_detection", "segmentation"])
def test_heads_that_match(function):
    asked = questions(function)[0]
    for mutant, words in {
        "negated": "a wrong sign",
        "upstream gradient ignored": "upstream gradient",
        "mean over the wrong count": "number of",
        "transposed axes": "transposed",
        "ignored rows leaking": "ignored rows are included",
    }.items():
        wrong = {name: each for name, each in mutants.MUTANTS[mutant](asked).items() if not isinstance(each, str)}
        right = {name: each for name, each in asked.expected.items() if name in wrong}
        for tensor in judge(asked._replace(expected=right), wrong).tensors:
            assert tensor.passed is False
            assert words in tensor.explanation, (mutant, tensor.name)


@pytest.mark.parametrize("case_id", ["causal_lm-float32", "causal_lm-float16", "cross_entropy-weighted", "huber-sum"])
def test_constant_factors_have_their_reasons(case_id):
    asked = asked_for(case_id)
    first = next(iter(asked.case.inputs))
    right = (asked.exact or asked.expected)[f"grad.{first}"].astype(np.float64)
    rows = asked.case.inputs[first].shape[0]
    said = {factor: explanation(asked, f"grad.{first}", right * factor) for factor in (rows, 1 / rows, 32.0, 1.3)}
    assert "the batch size" in said[rows]
    assert "the batch size" in said[1 / rows]
    assert "a power of two such as a world size" in said[32.0]
    assert said[1.3].startswith("off by a constant factor of 1.3")
    assert "or" not in said[1.3].split()
    if "target" in asked.case.inputs and asked.case.inputs["target"].dtype.kind == "i":
        assert "K / (K − 1) of 11 classes" in explanation(asked, f"grad.{first}", right * 11 / 10)


def test_sums_and_means():
    asked = asked_for("causal_lm-float32")
    count = 12  # of 18 positions two are last, and four have no label
    assert f"a sum for a mean over the rows that count ({count})" in explanation(
        asked, "loss", asked.expected["loss"] * count
    )
    items = asked_for("causal_lm-num-items")
    for name in ("loss", "grad.logits"):
        assert explanation(items, name, items.expected[name] * (40 / count)) == "num_items_in_batch is ignored"
        assert "a sum for a mean over num_items_in_batch (40)" in explanation(items, name, items.expected[name] * 40)
    added = asked_for("mse-sum")
    words = explanation(added, "grad.input", added.expected["grad.input"] / 28)
    assert "a mean over the number of elements (28) for a sum" in words or words == "reduction is ignored"


def of_case(asked, name, **changes):
    """A tensor of the right answer to another case."""
    case = asked.case._replace(
        inputs=asked.case.inputs | changes.pop("inputs", {}), parameters=asked.case.parameters | changes
    )
    result = evaluate(case)
    return result.loss if name == "loss" else result.grads[name.removeprefix("grad.")]


@pytest.mark.parametrize("name", ["loss", "grad.logits"])
def test_labels_that_are_shifted_wrongly(name):
    asked = asked_for("causal_lm-bfloat16")
    labels = asked.case.inputs["labels"]
    wrong = of_case(asked, name, inputs={"shift_labels": labels})
    assert explanation(asked, name, wrong) == "labels are not shifted"
    twice = np.concatenate([labels[:, 2:], np.full((2, 2), -100)], axis=1)
    wrong = of_case(asked, name, inputs={"shift_labels": twice})
    assert explanation(asked, name, wrong) == "labels are shifted by one position too many"
    wrong = of_case(asked, name, inputs={"shift_labels": np.roll(labels, -1, axis=1)})
    assert "the last position predicts the first token" in explanation(asked, name, wrong)
    masked = asked_for("masked_lm-float32")
    labels = masked.case.inputs["labels"]
    wrong = of_case(masked, name, inputs={"labels": np.concatenate([labels[:, 1:], np.full((2, 1), -100)], axis=1)})
    assert explanation(masked, name, wrong) == "labels are shifted by one position"


def test_arguments_that_are_ignored():
    smoothed = asked_for("cross_entropy-smoothed")
    weighted = asked_for("cross_entropy-weighted")
    for name in ("loss", "grad.logits"):
        wrong = of_case(smoothed, name, label_smoothing=0.0)
        assert explanation(smoothed, name, wrong) == "label_smoothing is ignored"
        inputs = {key: value for key, value in weighted.case.inputs.items() if key != "weight"}
        result = evaluate(weighted.case._replace(inputs=inputs))
        wrong = result.loss if name == "loss" else result.grads["logits"]
        assert explanation(weighted, name, wrong) == "weight is ignored"
    huber = asked_for("huber-delta-3")
    assert explanation(huber, "grad.input", of_case(huber, "grad.input", delta=1.0)) == "delta is ignored"


def test_an_upstream_gradient_of_every_row_that_is_ignored():
    asked = asked_for("cross_entropy-none")
    wrong = evaluate(asked.case._replace(grad_output=1.0)).grads["logits"]
    assert explanation(asked, "grad.logits", wrong) == "upstream gradient ignored"


def softmax(x, axis):
    terms = np.exp(x - x.max(axis=axis, keepdims=True))
    return terms / terms.sum(axis=axis, keepdims=True)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("upstream", [1.0, -0.75])
def test_double_softmax_and_wrong_axes(dtype, upstream):
    generator = np.random.default_rng(1)
    logits = (generator.standard_normal((6, 9)) * 3).astype(dtype)
    labels = np.array([3, 0, -100, 8, 5, 3])
    asked = question(Case("mine", "cross_entropy", {"logits": logits, "target": labels}, {}, upstream))
    x, counts = logits.astype(np.float64), (labels != -100)[:, None]
    wanted = counts * (labels[:, None] == np.arange(9))
    scale = upstream / counts.sum()
    twice = softmax(softmax(x, 1), 1)
    naive = scale * counts * (twice - wanted)
    assert "double softmax" in explanation(asked, "grad.logits", naive)
    inner = softmax(x, 1)
    derived = inner * (naive - (naive * inner).sum(axis=1, keepdims=True))
    assert "double softmax" in explanation(asked, "grad.logits", derived)
    other = softmax(x, 0)
    by_hand = scale * counts * (other - wanted)
    assert explanation(asked, "grad.logits", by_hand) == "wrong axis: softmax along axis 0 instead of 1"
    derived = scale * (other * wanted.sum(axis=0) - wanted)
    assert explanation(asked, "grad.logits", derived) == "wrong axis: softmax along axis 0 instead of 1"
    loss = -(wanted * np.log(twice)).sum() / counts.sum()
    assert "double softmax" in explanation(asked, "loss", loss)
    loss = -(wanted * np.log(other)).sum() / counts.sum()
    assert explanation(asked, "loss", loss) == "wrong axis: softmax along axis 0 instead of 1"


def test_a_sigmoid_taken_twice():
    asked = asked_for("bce_with_logits-float32-mean")
    logits = asked.case.inputs["logits"].astype(np.float64)
    target = asked.case.inputs["target"].astype(np.float64)
    wrong = refloss.bce_with_logits(1 / (1 + np.exp(-logits)), target, grad_output=-0.75)
    assert "sigmoid" in explanation(asked, "grad.logits", wrong.grads["logits"])
    assert "sigmoid" in explanation(asked, "loss", wrong.loss)


def test_ignored_rows_without_a_class_and_counted():
    asked = asked_for("masked_lm-float32")
    labels = asked.case.inputs["labels"]
    logits = asked.case.inputs["logits"].astype(np.float64)
    wanted = labels[..., None] == np.arange(17)
    counted = np.count_nonzero(labels != -100)
    wrong = -0.625 / counted * (softmax(logits, -1) - wanted)
    assert explanation(asked, "grad.logits", wrong) == "ignored rows are included: their gradient is not 0"
    wrong *= counted / labels.size
    assert explanation(asked, "grad.logits", wrong) == "ignored rows are included, in the count as well"
    poisoned = asked_for("masked_lm-poisoned-ignored-row")
    wrong = poisoned.expected["grad.logits"].copy()
    wrong[0, 7] = np.nan
    assert explanation(poisoned, "grad.logits", wrong) == "ignored rows are included: their gradient is not 0"


def test_overflow():
    asked = asked_for("causal_lm-float16")
    right = asked.expected["grad.logits"]
    wrong = right.copy()
    wrong[1, 3] = np.nan
    assert explanation(asked, "grad.logits", wrong) == "float16 overflow: 17 of 306 elements are not finite"
    large = asked_for("causal_lm-large-cotangent")
    right = large.expected["grad.logits"].astype(np.float64)
    clipped = np.where(np.abs(right) > 2000.0, np.copysign(65504.0, right), right)
    assert "are clipped at 65504 or not finite" in explanation(large, "grad.logits", clipped)
    offset = asked_for("cross_entropy-offset")
    wrong = np.full((7, 11), np.nan)
    assert "no maximum is subtracted" in explanation(offset, "grad.logits", wrong)


@pytest.mark.parametrize("function", [*FUNCTIONS, "rt_detr_object_detection"])
def test_noise_has_no_name(function):
    generator = np.random.default_rng(2)
    for asked in few(questions(function))[:: 4 if function.startswith("rt_detr") else 2]:
        right = {name: each for name, each in asked.expected.items() if not name.startswith("intermediate.")}
        for share in (1.0, 0.2):
            wrong = {name: noisy(each, share, generator) for name, each in right.items()}
            # All at once, and the loss or the gradients alone.
            for names in (right, ["loss"], [name for name in right if name.startswith("grad.")]):
                some = {name: right[name] for name in names}
                verdict = judge(asked._replace(expected=some), {name: wrong[name] for name in names})
                said = {tensor.name: tensor.explanation for tensor in verdict.tensors if tensor.explanation}
                assert not said, asked.case.id


def noisy(right, share, generator):
    """Far too much noise, on all elements or a share of them."""
    values = right.astype(np.float64)
    finite = np.abs(values[np.isfinite(values)])
    noise = generator.standard_normal(right.shape) * finite.max(initial=0.0)
    hit = generator.random(right.shape) < share if right.ndim else np.array(True)
    hit.flat[np.argmax(np.abs(values))] = True  # in a row that counts: noise in ignored rows alone has a name
    with np.errstate(over="ignore"):
        return (values + np.where(hit, noise, 0.0)).astype(right.dtype)


def test_what_passes_is_not_explained():
    for asked in questions("masked_lm"):
        right = {name: value for name, value in asked.expected.items() if not name.startswith("intermediate.")}
        assert all(verdict.explanation is None for verdict in judge(asked, right).tensors)


ODD = st.sampled_from([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 65504.0, 1e-40, 3e38, 0.125])


@settings(max_examples=60)
@given(data=st.data())
def test_odd_values_raise_nothing(data):
    asked = data.draw(st.sampled_from(_odd_questions()))
    names = [name for name in asked.expected if not name.startswith("intermediate.")]
    name = data.draw(st.sampled_from(names))
    right = asked.expected[name]
    with np.errstate(over="ignore"):
        wrong = data.draw(npst.arrays(np.float64, right.shape, elements=ODD)).astype(right.dtype)
    (verdict,) = judge(asked._replace(expected={name: right}), {name: wrong}).tensors
    assert verdict.explanation is None or isinstance(verdict.explanation, str)


@functools.cache
def _odd_questions():
    return [question(case) for case in _odd_cases()]


def _odd_cases():
    logits = np.zeros((3, 4), np.float32)
    labels = np.array([1, -100, 2])
    strange = np.array([[np.nan, 1, 2, 3], [np.inf, 0, 0, 0], [-np.inf] * 4], np.float32)
    none = np.zeros((0,), np.int64)
    for x, t in (
        (logits, labels),
        (strange, labels),
        (logits[:0], none),
        (logits[0], np.array(1)),
        (logits[:, :1], 0 * labels),
    ):
        for reduction in ("mean", "sum", "none"):
            yield Case("odd", "cross_entropy", {"logits": x, "target": t}, {"reduction": reduction}, -2.0)
    yield Case("odd", "mse", {"input": np.array(2.0), "target": np.array(np.inf)}, {}, 3.0)
    yield Case("odd", "mse", {"input": np.zeros(0), "target": np.zeros(0)}, {}, 0.0)
    yield Case("odd", "causal_lm", {"logits": strange[None], "labels": labels[None]}, {}, 1.0)
