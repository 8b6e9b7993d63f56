"""A mistake in a kernel is said once, first, and by its name, for all cases of a function."""

import ml_dtypes
import numpy as np
import pytest

from refloss.cases.source import Case
from refloss.error_model.bound import whole
from refloss.registry import FUNCTIONS
from refloss.testing import check
from refloss.testing.diagnosis import Cause, Symptoms, diagnose
from refloss.testing.judging.callables import MismatchError
from refloss.testing.judging.judge import judge, question
from tests.gauntlet.mistakes import MISTAKES
from tests.gauntlet.mistakes.mistake import from_above, stepped
from tests.gauntlet.rows import CrossEntropy
from tests.gauntlet.survey import few, is_right, judgement
from tests.questions import questions

NAMED = {mistake.name: mistake for mistake in MISTAKES}


def judged(kernel, **chosen):
    try:
        return check(kernel, **chosen)
    except MismatchError as error:
        return error.judgement


def said(judgement):
    return [found.mistake for found in judgement.diagnoses]


def is_said_once(name, function, asked):
    """All failing tensors of all failing cases have one diagnosis, which is the mistake's name."""
    found = judgement(NAMED[name].kernel(function), asked)
    (diagnosis,) = found.diagnoses
    assert is_right(NAMED[name], diagnosis.mistake), diagnosis.mistake
    failing = [case for case in found.cases if not case.passed]
    assert list(diagnosis.cases) == [case.id for case in failing]
    assert diagnosis.failing == len(failing) > 0
    assert all(tensor.explanation for case in failing for tensor in case.tensors if tensor.passed is False)


# Of these a judge has one thing to say, whatever the golden cases hold.
ONCE = {
    "masked_lm": (
        *("upstream ignored", "a wrong sign", "one-hot times −inf", "a gradient over all rows", "chunks' means"),
        *("num_items_in_batch is ignored", "nothing counts: 0", "log(p + 1e-30)"),
    ),
    "token_classification": ("ignored rows have a gradient", "softmax twice"),
    "causal_lm": ("not shifted", "shifted over the batch", "counted before the shift"),
    "cross_entropy": (
        *("smoothing without 1/K", "smoothing of ignored rows", "smoothing without weights", "rows for their weights"),
        *("the first upstream for all", "Σq is 1", "label_smoothing is ignored", "a maximum of at least −64"),
    ),
    "question_answering": ("num_items_in_batch is ignored", "upstream ignored"),
    "object_detection": ("eos coefficient ignored", "bbox_loss_coefficient in config is ignored"),
    "nll": ("weight is ignored",),
    "varifocal": ("gamma is ignored",),
    "dice": ("num_boxes is ignored",),
    "mse": ("gradients truncated", "no factor of 2"),
}


@pytest.mark.parametrize(("function", "name"), [(function, name) for function, names in ONCE.items() for name in names])
def test_golden_cases_say_it_once(function, name):
    is_said_once(name, function, few(questions(function)))


def row_cases(classes, *, extreme=False):
    generator = np.random.default_rng(0)
    for i, (parameters, upstream) in enumerate(
        [({}, -0.75), ({"reduction": "sum"}, 2.0), ({"reduction": "none"}, None)]
    ):
        x = (generator.standard_normal((6, classes)) * 3).astype(np.float32)
        labels = generator.integers(0, classes, 6)
        if extreme:
            x[0, 1], x[3, 2] = -130, -70
            x[1] -= 120
            x[2] += 95
            labels[0], labels[3] = 1, 2
        labels[5] = -100
        cotangent = generator.standard_normal(6) if upstream is None else upstream
        yield Case(f"rows-{i}", "cross_entropy", {"logits": x, "target": labels}, parameters, cotangent)


# Rows that are plain, some with improbable labels and far from each other, or of more classes than four blocks.
ROWS = {
    "plain": (
        *("vectors of 8: the tail is lost", "padded classes", "a mean over all rows", "a sum for a mean"),
        *("ignored rows are added up", "a shard without the label"),
    ),
    "extreme": (
        *("log(max(p, FLT_MIN))", "log(p + 1e-30)", "distances clamped at −50", "distances clamped at −80"),
        *("a maximum of at least 0", "the batch's maximum for the row's", "no maximum is subtracted"),
        "a shard without the label",
    ),
    "wide": ("blocks: the sum is not rescaled", "blocks: the tail is lost", "blocks: a gradient of the first one"),
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in ROWS.items() for name in names])
def test_rows_say_it_once(kind, name):
    cases = row_cases(4500 if kind == "wide" else 13, extreme=kind == "extreme")
    is_said_once(name, "cross_entropy", [question(case) for case in cases])


POS_WEIGHT = {"pos_weight": np.linspace(0.5, 3, 6, dtype=np.float32)}
# The options that a mistake shows in, or not, and the mistakes.
ELEMENTS = [
    ("bce_with_logits", [{}, {"reduction": "sum"}, {"reduction": "none"}], ("softplus overflows", "logits clamped")),
    (
        "bce_with_logits",
        [{"reduction": name} | POS_WEIGHT for name in ("mean", "none")],
        ("pos_weight of negatives", "pos_weight is ignored"),
    ),
    ("bce", [{}, {"reduction": "sum"}, {"reduction": "none"}], ("logarithms not clamped",)),
    (
        "kl_div",
        [{}, {"reduction": "batchmean"}, {"reduction": "none"}],
        ("KL reversed", "no entropy", "t·log t", "log(max(t, 1e-10))", "batchmean over elements"),
    ),
    (
        "sigmoid_focal",
        [
            *({}, {"reduction": "sum", "gamma": 0.5}, {"reduction": "none", "gamma": 0.0}),
            {"reduction": "sum", "gamma": 1.5, "alpha": 0.6},
        ],
        ("α swapped", "α on both sides", "α on positives only", "focal factor held constant"),
    ),
    (
        "smooth_l1",
        [{"beta": 0.25}, {"beta": 3.0}, {"beta": 3.0, "reduction": "none"}, {}],
        ("Huber for smooth L1", "beta is ignored"),
    ),
]


def element_cases(function, options):
    generator = np.random.default_rng(5)
    x = generator.standard_normal((4, 6)) * 6
    x[0, :4], x[1, 0] = [18, -18, 30, -95], 100
    t = np.round(generator.random((4, 6)))
    t[0, :4] = [1, 0, 1, 0]
    if function != "sigmoid_focal":
        t[2] = generator.random(6)
    if function == "kl_div":
        x, t = -np.abs(x) - 0.01, np.where(t == 1, 0.7, t)
    if function == "bce":
        x = 1 / (1 + np.exp(-x))
    first, second = FUNCTIONS[function].required
    for i, given in enumerate(options):
        further = {name: value for name, value in given.items() if name == "pos_weight"}
        parameters = {name: value for name, value in given.items() if name != "pos_weight"}
        upstream = generator.standard_normal((4, 6)) if parameters.get("reduction") == "none" else (-0.75, 2.0)[i % 2]
        for dtype in (np.float32, ml_dtypes.bfloat16):
            inputs = {first: x.astype(dtype), second: t.astype(dtype)} | further
            yield Case(f"{function}-{i}-{np.dtype(dtype).name}", function, inputs, parameters, upstream)


@pytest.mark.parametrize(
    ("function", "options", "name"),
    [(function, options, name) for function, options, names in ELEMENTS for name in names],
)
def test_elements_say_it_once(function, options, name):
    is_said_once(name, function, [question(case) for case in element_cases(function, options)])


def test_names_that_would_be_wrong():
    """A mean over four coordinates is no world size; a loss without exponentials has no e^133; labels that are all
    ignored leave nothing to include.
    """
    four = judgement(from_above(lambda cotangent: cotangent / 4)("giou"), few(questions("giou")))
    assert not any("world size" in str(words) and "1 /" not in str(words) for words in said(four))
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


def test_a_factor_without_a_reason_is_said_as_a_number():
    kernel = stepped(derivative=lambda self, *given: CrossEntropy.derivative(self, *given) * given[0].x.dtype.type(1.3))
    # Of a loss with a z-loss it is a factor of a part only.
    asked = [question for question in questions("masked_lm") if not question.case.parameters.get("z_loss")]
    assert said(judgement(kernel("masked_lm"), few(tuple(asked)))) == ["off by a constant factor of 1.3"]


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
    strict = asked._replace(expected={"loss": right}, bounds=asked.bounds | {"loss": whole(2.0**-22 * right)})
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
