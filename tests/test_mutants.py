"""Bounds have power: in every golden case every usual mistake fails, or cannot show for a reason that is true."""

import functools

import ml_dtypes
import numpy as np
import pytest

from refloss.error_model.bound import whole
from refloss.golden import store
from refloss.golden.corpus import corpus
from refloss.registry import FUNCTIONS
from refloss.testing.judging import judge
from refloss.testing.mistakes import mutants
from refloss.testing.mistakes.mutants import MUTANTS
from refloss.testing.spacing import errors
from tests.questions import questions

# Honest float32 finds 0 or noise here: nothing is left beside a log-sum-exp of 30, or beside 1. See the tests below.
ROUNDED_AWAY = {
    "dice-confident": ["loss"],
    **{f"sigmoid_focal-saturated-pair{dtype}": ["loss"] for dtype in ("", "-bfloat16")},
    "cross_entropy-z-loss-sure": ["component.cross_entropy"],
    "d_fine_object_detection-nearly-taught": ["component.loss_ddf_aux_0"],
    "deimv2_object_detection-nearly-taught": ["component.loss_ddf_aux_0"],
    **{
        f"{function}-confident": ["loss"]
        for function in ("cross_entropy", "causal_lm", "masked_lm", "token_classification")
    },
}
# Gradients where honest float32 finds 0 for an element: 1 − p at labels with logits of 18 and more, or inside of masks.
PARTLY_ROUNDED_AWAY = {
    ("dice-confident", "grad.inputs"),
    *((f"sigmoid_focal-saturated-pair{dtype}", "grad.inputs") for dtype in ("", "-bfloat16", "-float16")),
    ("cross_entropy-confident", "grad.logits"),
    ("causal_lm-confident", "grad.logits"),
    ("masked_lm-confident", "grad.logits"),
    ("token_classification-confident", "grad.logits"),
}


@pytest.fixture(autouse=True)
def _without_explanations(monkeypatch):
    monkeypatch.setattr(judge, "_causes", lambda asked, tensors, candidate: ())


def tensors(asked):
    return {name: right for name, right in asked.expected.items() if not name.startswith("intermediate.")}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_mutant_fails_or_has_a_reason(function):
    survivors, untrue = [], []
    for asked in questions(function):
        right = tensors(asked)
        answers = mutants.mutated(asked)
        assert answers.keys() == MUTANTS.keys()
        assert [verdict.name for verdict in judge.judge(asked, right).tensors if verdict.passed] == [*right]
        for mutant, found in answers.items():
            assert found.keys() == right.keys()
            wrong = {name: value for name, value in found.items() if not isinstance(value, str)}
            # One tensor's verdict does not depend on the others.
            altered = asked._replace(expected={name: asked.expected[name] for name in wrong})
            for verdict in judge.judge(altered, wrong).tensors:
                assert wrong[verdict.name].dtype == right[verdict.name].dtype
                if verdict.passed is not False:
                    survivors.append((asked.case.id, mutant, verdict.name, verdict.ratio))
            untrue += [
                (asked.case.id, mutant, name, found[name])
                for name in right.keys() - wrong.keys()
                if not REASONS[found[name]](asked.case, name, right[name])
            ]
    assert not survivors
    assert not untrue


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_single_element_is_told_when_it_is_off_by_a_tenth_of_the_largest(function):
    for asked in questions(function):
        for name, right in tensors(asked).items():
            finite = np.isfinite(right)
            if not np.any(right[finite]):
                continue
            lost = np.full(right.shape, name in ROUNDED_AWAY.get(asked.case.id, []))
            if "saturated-gamma-0.5" in asked.case.id and name == "grad.targets":
                lost = is_hit_by(asked.case, 100 if right.dtype == np.float64 else 40)
            if (asked.case.id, name) in PARTLY_ROUNDED_AWAY:
                lost = (asked.case.inputs[name.removeprefix("grad.")] >= 18) & (right != 0)
            if "at-the-clip" in asked.case.id and name == "grad.log_probs":
                # Next to the bound that the clip acts at, an honest ratio is on either side of it.
                lost = asked.case.inputs["advantages"] * asked.case.inputs["log_probs"] > 0
            values = right.astype(np.float64)
            with np.errstate(over="ignore"):
                wrong = (values + np.abs(values[finite]).max() / 10).astype(right.dtype)
            given = judge.blocks(asked, name, wrong)
            told = np.concatenate([errors(block).ratio > 1.0 for block in given]).reshape(right.shape)
            assert np.array_equal(told[finite], ~lost[finite]), (asked.case.id, name)


def is_hit_by(case, logit):
    """Where a target is met by a logit so large: the derivative of m^γ, for γ < 1, is infinite where m is 1 − 1."""
    x, t = (case.inputs[name].astype(np.float64) for name in ("inputs", "targets"))
    return (np.abs(x) >= logit) & (t == (x > 0))


def test_every_mutant_shows_somewhere():
    for mutant, mutate in MUTANTS.items():
        found = [mutate(asked) for asked in questions("cross_entropy")]
        assert any(not isinstance(value, str) for own in found for value in own.values()), mutant


def test_honest_float32_loses_what_is_said_to_be_rounded_away():
    for function in ("cross_entropy", "causal_lm", "masked_lm", "token_classification"):
        (asked,) = (asked for asked in questions(function) if asked.case.id == f"{function}-confident")
        logits = asked.case.inputs["logits"].reshape(-1, asked.case.inputs["logits"].shape[-1])
        maximum = logits.max(axis=-1, keepdims=True)
        lse = maximum[:, 0] + np.log(np.exp(logits - maximum).sum(axis=-1))
        assert lse.dtype == np.float32
        sure = maximum[:, 0] >= 30
        assert np.all(lse[sure] - maximum[sure, 0] == 0)
        p = np.exp(logits - lse[:, None])
        assert np.all(p.max(axis=-1)[sure] == 1)
    # log σ(18), where σ(18) is 1.
    assert np.log(np.float32(1) / (np.float32(1) + np.exp(np.float32(-18)))) == 0
    (asked,) = (asked for asked in questions("dice") if asked.case.id == "dice-confident")
    x, t = (asked.case.inputs[name].reshape(3, -1) for name in ("inputs", "targets"))
    p = np.float32(1) / (np.float32(1) + np.exp(-x))
    loss = 1 - (2 * (p * t).sum(axis=1) + 1) / (p.sum(axis=1) + t.sum(axis=1) + 1)
    assert loss.dtype == np.float32
    assert not loss.any()
    assert not np.any((1 - p)[x > 0])


def test_one_per_cent_of_a_power_of_two_is_a_rounding_of_bfloat16():
    asked = questions("mse")[0]
    ones = np.ones(3, ml_dtypes.bfloat16)
    reason = "1 % too large", {"grad.input": mutants.WITHIN_ROUNDING}
    small = asked._replace(expected={"grad.input": ones}, bounds={"grad.input": whole(np.zeros(3))})
    assert MUTANTS[reason[0]](small) == reason[1]
    assert not isinstance(MUTANTS[reason[0]](small._replace(expected={"grad.input": ones * 1.75}))["grad.input"], str)


ALWAYS_SHOWN = {"zero", "negated", "doubled", "rows shifted by one", "transposed axes", "upstream gradient ignored"}


@pytest.mark.parametrize("compute_dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("function", ["cross_entropy", "mse", "kl_div", "question_answering"])
def test_computed_in_16_bits_only_what_is_small_is_let_through(function, compute_dtype):
    shown = set()
    for case in corpus({function}):
        asked = judge.question(case, compute_dtype)
        for mutant, answers in mutants.mutated(asked).items():
            wrong = {name: value for name, value in answers.items() if not isinstance(value, str)}
            failed = {each.name for each in judge.judge(asked, tensors(asked) | wrong).tensors if not each.passed}
            assert failed == wrong.keys(), (case.id, mutant)
            shown |= {mutant} if wrong else set()
            small = {name for name, value in answers.items() if isinstance(value, str)} - wrong.keys()
            if mutant in ALWAYS_SHOWN:
                assert all(answers[name] != mutants.WITHIN_ROUNDING for name in small), (case.id, mutant)
            if mutant == "a fifth too large":
                gradients = (answers[name] for name in small if name.startswith("grad."))
                assert all(reason != mutants.WITHIN_ROUNDING for reason in gradients), case.id
    assert shown >= ALWAYS_SHOWN


# What makes a reason true, said without the code that gives it.


def has_no_numbers(_case, _name, right):
    return not np.nan_to_num(right.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0).any()


def has_one_row(_case, _name, right):
    return right.ndim == 0 or (right.shape[0] if right.ndim == 1 else right.shape[-2]) == 1


def has_rows_alike(_case, _name, right):
    rows = right[..., None] if right.ndim == 1 else right
    return np.array_equal(rows, np.broadcast_to(rows[..., :1, :], rows.shape), equal_nan=True)


def has_one_axis(_case, _name, right):
    return max(right.shape, default=1) == right.size


def is_symmetric(_case, _name, right):
    matrices = right.squeeze().reshape(-1, *right.squeeze().shape[-2:])
    return all(np.array_equal(own.flatten("F"), own.flatten("C"), equal_nan=True) for own in matrices)


def has_no_ignored_rows(case, name, _right):
    inputs, ignored = case.inputs, case.parameters.get("ignore_index", -100)
    if FUNCTIONS[case.function].specification.mean == "sequences":
        return True  # what is beyond a length is padding, whatever it holds
    if case.function == "question_answering":
        side = "end" if name == "grad.end_logits" else "start"
        return np.all(inputs[f"{side}_positions"] < inputs[f"{side}_logits"].shape[1])
    if case.function == "grounding_dino_object_detection":
        # The mask is one of tokens, which boxes do not have; nor does what is not part of the loss.
        return "box" in name or "coord" in name or "giou" in name or "cardinality" in name or not _right.any()
    if case.function == "semantic_segmentation":
        return np.all(inputs["labels"] != case.parameters.get("ignore_index", 255))
    if case.function == "causal_lm" and "shift_labels" not in inputs:
        return np.all(inputs["labels"][:, 1:] != ignored)
    labels = inputs.get("shift_labels", inputs.get("labels", inputs.get("target")))
    counted = inputs.get("mask", np.ones(1)).all()
    return counted and (labels is None or labels.dtype.kind == "f" or np.all(labels != ignored))


def is_not_divided(case, name, right):
    if not FUNCTIONS[case.function].specification.reduces:
        return True
    if FUNCTIONS[case.function].specification.mean == "tokens":
        counts_nothing = not case.inputs.get("mask", np.ones(1)).any()
        is_sum = case.parameters.get("aggregation") in {"sum", "none"} and "num_items" not in case.parameters
        return is_sum or counts_nothing
    if case.id.startswith("sigmoid_focal-saturated-pair"):
        return True  # by the number of its rows, which is num_boxes
    if FUNCTIONS[case.function].specification.mean == "sequences":
        return case.parameters.get("reduction", "mean") not in {"mean_volume", "mean_batch"}
    takes_boxes = "num_boxes" in FUNCTIONS[case.function].parameters
    if case.parameters.get("reduction") in {"sum", "none"} and not (takes_boxes and name.startswith("component.")):
        return not takes_boxes or case.parameters["reduction"] == "none"
    # Of heads that match, classes may be divided by a sum of weights, or by queries.
    return np.array_equal(of_other_count(case.function)[case.id][f"expected.{name}"], right)


@functools.cache
def of_other_count(function):
    cases = [case._replace(parameters=case.parameters | {"num_boxes": 7.25}) for case in corpus({function})]
    return {case.id: store.expected_tensors(store.evaluate(case)) for case in cases}


def counts_everything(case, name, right):
    shape = next(iter(case.inputs.values())).shape
    if FUNCTIONS[case.function].specification.mean == "tokens":
        mask, options = case.inputs.get("mask", np.ones(shape)), case.parameters
        of_rows, has_all = options.get("aggregation", "").startswith("seq"), options.get("sequences", "all") == "all"
        return "num_items" not in options and (has_all if of_rows else mask.all())
    if FUNCTIONS[case.function].specification.mean == "rows":
        return len(shape) <= 2
    if case.inputs.get("target", right).dtype.kind not in "biu" and case.function == "cross_entropy":
        return True  # with probabilities, torch divides by the number of rows whatever the weights
    unweighted = "weight" not in case.inputs and "num_items_in_batch" not in case.parameters
    return unweighted and has_no_ignored_rows(case, name, right)


REASONS = {
    mutants.ALL_ZERO: lambda case, name, right: not right.any(),
    mutants.NOTHING_FINITE: has_no_numbers,
    mutants.WITHIN_ROUNDING: lambda case, name, right: right.dtype == ml_dtypes.bfloat16,
    mutants.ROUNDED_AWAY: lambda case, name, right: name in ROUNDED_AWAY.get(case.id, []),
    mutants.ONE_ROW: has_one_row,
    mutants.ROWS_ALIKE: has_rows_alike,
    mutants.ONE_AXIS: has_one_axis,
    mutants.SYMMETRIC: is_symmetric,
    mutants.NOT_A_GRADIENT: lambda case, name, right: name == "loss" or name.startswith("component."),
    mutants.UPSTREAM_IS_ONE: lambda case, name, right: np.all(np.equal(case.grad_output, 1)),
    mutants.NO_IGNORED_ROWS: has_no_ignored_rows,
    mutants.NOT_DIVIDED: is_not_divided,
    mutants.EVERYTHING_COUNTS: counts_everything,
    mutants.NOT_SMOOTHED: lambda case, name, right: (
        not case.parameters.get("label_smoothing") or name == "component.z_loss"
    ),
}
