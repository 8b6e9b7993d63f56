"""A mistake in a kernel is said once, first, and by its name, for all cases of a function."""

import ml_dtypes
import numpy as np
import pytest

from refloss.cases.source import Case
from refloss.golden.store import evaluate
from refloss.testing import check
from refloss.testing.diagnosis import Cause, Symptoms, diagnose
from refloss.testing.judging.callables import MismatchError
from refloss.testing.judging.diagnosing import diagnosed
from refloss.testing.judging.judge import judge, question
from refloss.testing.verdict import Judgement
from tests.mistaken import ELEMENTS, EXTREME, ROWS, elementwise, other_sum, rows_of_logits, unscaled
from tests.questions import questions


def judged(kernel, **chosen):
    try:
        return check(kernel, **chosen)
    except MismatchError as error:
        return error.judgement


def said(judgement):
    return [found.mistake for found in judgement.diagnoses]


@pytest.mark.parametrize(("words", "function", "wrong"), ROWS, ids=[f"{words}, {name}" for words, name, _ in ROWS])
def test_mistakes_of_rows(words, function, wrong):
    judgement = judged(rows_of_logits(wrong), function=function)
    assert said(judgement) == [words]
    (found,) = judgement.diagnoses
    failing = [case.id for case in judgement.judged if not case.passed]
    assert list(found.cases) == failing
    assert found.failing == len(failing) > 0
    wrong_tensors = [tensor for case in judgement.judged for tensor in case.tensors if tensor.passed is False]
    assert all(tensor.explanation for tensor in wrong_tensors)


def extreme_cases():
    generator = np.random.default_rng(0)
    for i, (parameters, upstream) in enumerate(
        [({}, -0.75), ({"reduction": "sum"}, 2.0), ({"reduction": "none"}, None)]
    ):
        x = (generator.standard_normal((6, 13)) * 3).astype(np.float32)
        x[0, 1], x[3, 2] = -130, -70
        x[1] -= 120
        x[2] += 95
        labels = generator.integers(0, 13, 6)
        labels[0], labels[3], labels[5] = 1, 2, -100
        cotangent = generator.standard_normal(6) if upstream is None else upstream
        yield Case(f"extreme-{i}", "cross_entropy", {"logits": x, "target": labels}, parameters, cotangent)


@pytest.mark.parametrize(("words", "wrong"), EXTREME)
def test_mistakes_of_extreme_rows(words, wrong):
    assert said(judged(rows_of_logits(wrong), cases=list(extreme_cases()))) == [words]


def element_cases(function, names, options, targets):
    generator = np.random.default_rng(5)
    x = generator.standard_normal((4, 6)) * 6
    x[0, :4], x[1, 0] = [18, -18, 30, -95], 100
    t = np.round(generator.random((4, 6)))
    t[0, :4] = [1, 0, 1, 0]
    if targets == "soft":
        t[2] = generator.random(6)
    if function == "kl_div":
        x, t = -np.abs(x) - 0.01, np.where(t == 1, 0.7, t)
    if function == "bce":
        x = 1 / (1 + np.exp(-x))
    for i, (parameters, further) in enumerate(options):
        upstream = generator.standard_normal((4, 6)) if parameters.get("reduction") == "none" else (-0.75, 2.0)[i % 2]
        for dtype in (np.float32, ml_dtypes.bfloat16):
            inputs = {names[0]: x.astype(dtype), names[1]: t.astype(dtype)} | further
            yield Case(f"{function}-{i}-{np.dtype(dtype).name}", function, inputs, parameters, upstream)


@pytest.mark.parametrize("mistake", ELEMENTS, ids=[each.words for each in ELEMENTS])
def test_mistakes_of_elements(mistake):
    cases = list(element_cases(mistake.function, mistake.names, mistake.options, mistake.targets))
    judgement = judged(
        elementwise(mistake), cases=cases, grads=mistake.names if mistake.for_target else mistake.names[:1]
    )
    assert said(judgement) == [mistake.words]


def answers(function, change, limit=12):
    """The right answers to changed cases, as those of a candidate."""
    asked = {each.case.id: each for each in questions(function)[:limit]}
    verdicts = []
    for each in asked.values():
        result = evaluate(change(each.case))
        tensors = {"loss": result.loss, **{f"grad.{name}": value for name, value in result.grads.items()}}
        tensors |= {f"component.{name}": value for name, value in result.components.items()}
        right = {name: value for name, value in each.expected.items() if not name.startswith("intermediate.")}
        wrong = {name: np.asarray(tensors.get(name, 0 * value)).astype(value.dtype) for name, value in right.items()}
        verdicts.append(judge(each, wrong))
    return Judgement(diagnosed(verdicts, asked.__getitem__))


def without(*names):
    return lambda case: case._replace(
        inputs={key: value for key, value in case.inputs.items() if key not in names},
        parameters={key: value for key, value in case.parameters.items() if key not in names},
    )


def with_config(name):
    return lambda case: case._replace(parameters=case.parameters | {"config": case.parameters["config"] | {name: 1.0}})


def shifted(move):
    def change(case):
        if "shift_labels" in case.inputs:
            return case
        labels = move(case.inputs["labels"], case.parameters.get("ignore_index", -100))
        return case._replace(inputs=case.inputs | {"shift_labels": labels})

    return change


def flattened(labels, ignored):
    moved = np.full(labels.size, ignored)
    moved[:-1] = labels.reshape(-1)[1:]
    return moved.reshape(labels.shape)


def in_halves(labels, ignored):
    moved, half = np.full(labels.shape, ignored), (labels.shape[-1] + 1) // 2
    moved[..., : half - 1], moved[..., half:-1] = labels[..., 1:half], labels[..., half + 1 :]
    return moved


def counted_before_shift(case):
    counted = np.count_nonzero(case.inputs["labels"] != case.parameters.get("ignore_index", -100))
    if not counted or "num_items_in_batch" in case.parameters or "shift_labels" in case.inputs:
        return case
    return case._replace(parameters=case.parameters | {"num_items_in_batch": float(counted)})


@pytest.mark.parametrize(
    ("words", "function", "change"),
    [
        ("labels are not shifted", "causal_lm", shifted(lambda labels, _: labels)),
        ("labels are shifted over the flattened batch", "causal_lm", shifted(flattened)),
        ("labels are shifted within each shard of a sequence", "causal_lm", shifted(in_halves)),
        ("labels are counted before the shift", "causal_lm", counted_before_shift),
        ("num_items_in_batch is ignored", "question_answering", without("num_items_in_batch")),
        ("upstream gradient ignored", "question_answering", lambda case: case._replace(grad_output=1.0)),
        ("the auxiliary loss is left out", "semantic_segmentation", without("auxiliary_logits")),
        ("num_boxes is ignored", "dice", without("num_boxes")),
        ("box_format is ignored", "giou", without("box_format")),
        ("gamma is ignored", "varifocal", without("gamma")),
        ("weight is ignored", "nll", without("weight")),
        ("eos coefficient ignored", "object_detection", with_config("eos_coefficient")),
        ("bbox_loss_coefficient in config is ignored", "object_detection", with_config("bbox_loss_coefficient")),
    ],
)
def test_mistakes_of_arguments(words, function, change):
    judgement = answers(function, change)
    assert said(judgement) == [words]


def test_names_that_would_be_wrong():
    """A mean over four coordinates is no world size; a loss without exponentials has no e^133; labels that are all
    ignored leave nothing to include.
    """
    four = answers("giou", lambda case: case._replace(grad_output=np.asarray(case.grad_output) / 4))
    assert not any("world size" in words and "1 /" not in words for words in said(four))
    everything = [tensor.explanation or "" for case in four.cases for tensor in case.tensors]
    assert not any("float16" in words for words in everything)

    def infinite(inputs, parameters, _):
        shape = inputs["input"].shape if parameters.get("reduction") == "none" else ()
        return np.full(shape, np.inf, inputs["input"].dtype), {}

    squares = judged(infinite, function="mse", dtypes="float32", grads=[])
    assert not any("e^" in str(words) or "float16" in str(words) for words in said(squares))
    ignored = [each for each in questions("masked_lm") if each.case.id.endswith("all-ignored")]
    for asked in ignored:
        for value in (0.0, np.inf):
            right = asked.expected
            wrong = {"loss": right["loss"] * 0 + value, "grad.logits": right["grad.logits"]}
            explanations = [tensor.explanation or "" for tensor in judge(asked, wrong).tensors]
            assert not any("included" in words or "zero everywhere" in words for words in explanations)


def test_truncated_gradients():
    def truncated(inputs, parameters, upstream):
        x, t = (inputs[name].astype(np.float32) for name in ("input", "target"))
        scale = np.float32(np.asarray(upstream) / (x.size if parameters.get("reduction", "mean") == "mean" else 1))
        gradient = (2 * (x - t) * scale).astype(np.float32)
        bits = gradient.view(np.uint32) & np.uint32(0xFFFF0000)
        losses = (x - t) ** 2
        loss = losses if parameters.get("reduction") == "none" else losses.sum()
        loss = loss / x.size if parameters.get("reduction", "mean") == "mean" else loss
        return loss, {"input": bits.view(np.float32).astype(ml_dtypes.bfloat16)}

    judgement = judged(truncated, cases="mse-bfloat16-*", grads=["input"])
    assert said(judgement) == ["rounded towards zero instead of to nearest"]


def test_fewest_mistakes_that_explain():
    both = Cause("both", 0.2, tensors=("loss", "grad.x"))
    loss, gradient = Cause("loss", 0.9, tensors=("loss",)), Cause("gradient", 0.9, tensors=("grad.x",))
    failing = ("loss", "grad.x")
    cases = [Symptoms(str(i), failing, (loss, gradient, both)) for i in range(3)]
    assert [found.mistake for found in diagnose("f", cases)] == ["both"]
    odd = Symptoms("odd", ("grad.x",), (gradient,))
    found = diagnose("f", [*cases, odd, Symptoms("none", failing, ())])
    assert [(each.mistake, each.cases, each.failing) for each in found] == [
        ("both", ("0", "1", "2"), 5),
        ("gradient", ("odd",), 5),
        (None, ("none",), 5),
    ]


def test_what_passes_speaks_against_a_mistake():
    first, second = Cause("first", 0.9, tensors=("loss",)), Cause("second", 0.3, tensors=("loss",))
    failing = Symptoms("failing", ("loss",), (first, second))
    assert diagnose("f", [failing])[0].mistake == "first"
    assert diagnose("f", [failing, Symptoms("passing", (), (), ("first",))])[0].mistake == "second"


def test_a_factor_is_one_number_in_all_cases():
    def factor(low, high):
        return Cause("off by a constant factor", 0.2, tensors=("loss",), factors=(low, high))

    near = [Symptoms(str(i), ("loss",), (factor(1.29 - 0.01 * i, 1.31),)) for i in range(3)]
    (found,) = diagnose("f", near)
    assert found.mistake == "off by a constant factor of 1.3"
    assert len(found.cases) == 3
    assert len(diagnose("f", [*near, Symptoms("other", ("loss",), (factor(63.9, 64.1),))])) == 2


def test_a_running_sum():
    x = np.random.default_rng(3).random(2**16, np.float32)
    asked = question(Case("long", "mse", {"input": x, "target": np.zeros_like(x)}, {}, 1.0))
    loss = np.add.accumulate(x * x)[-1] / np.float32(x.size)
    right = asked.expected["loss"]
    # A bound that asks for better sums than one chain.
    strict = asked._replace(expected={"loss": right}, bounds=asked.bounds | {"loss": 2.0**-22 * right})
    verdict = judge(strict, {"loss": loss})
    assert verdict.tensors[0].explanation == "a running sum in one chain (naive float32)"
    assert judge(strict, {"loss": loss * np.float32(1.3)}).tensors[0].explanation is None


@pytest.mark.parametrize(
    ("words", "total"),
    [
        (
            "sums are accumulated in the 16-bit type",
            lambda each: np.add.accumulate(each.reshape(-1))[-1].astype(np.float32),
        ),
        ("losses are rounded to 16 bits before they are added", lambda each: each.astype(np.float32).sum()),
    ],
)
def test_sums_in_16_bits(words, total):
    generator = np.random.default_rng(4)
    x, t = generator.standard_normal((2, 40, 9)).astype(ml_dtypes.bfloat16)
    asked = question(Case("short", "mse", {"input": x, "target": t}, {"reduction": "sum"}, 1.0))
    losses = ((x.astype(np.float32) - t.astype(np.float32)) ** 2).astype(ml_dtypes.bfloat16)
    alone = asked._replace(expected={"loss": asked.expected["loss"]})
    assert judge(alone, {"loss": np.asarray(total(losses), np.float32)}).tensors[0].explanation == words


def test_large_blocks_of_classes():
    """An online softmax whose blocks of 1024 classes never show in a small case."""
    generator = np.random.default_rng(6)
    x = (generator.standard_normal((3, 4097)) * 4).astype(np.float32)
    case = Case("wide", "cross_entropy", {"logits": x, "target": np.array([5, 4096, 1023])}, {}, -1.5)
    kernel = rows_of_logits(other_sum(unscaled(1024)))
    assert said(judged(kernel, cases=[case])) == [
        "blocks of classes: the running sum is not rescaled when the maximum grows"
    ]
