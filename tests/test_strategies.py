"""Strategies: every case that is drawn is accepted, and what is meant to occur does."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings

from refloss.cases.source import DTYPES
from refloss.golden.store import evaluate
from refloss.registry import FUNCTIONS
from refloss.testing.strategies import inputs

LABELS = ("target", "labels", "shift_labels", "start_positions", "end_positions")
SUMS = ("sigmoid_focal", "varifocal", "dice")
LABELLED = (
    "nll",
    "cross_entropy",
    "causal_lm",
    "masked_lm",
    "token_classification",
    "sequence_classification",
    "question_answering",
    "semantic_segmentation",
)


def predictions_of(case):
    return case.inputs[next(name for name in FUNCTIONS[case.function].differentiable if name in case.inputs)]


def is_float(case, name):
    return name in case.inputs and case.inputs[name].dtype.name in DTYPES


def targets_of(case):
    """What each row asks for, where that is a class; nothing else."""
    found = {name: value for name, value in case.inputs.items() if name in LABELS and value.dtype.kind in "iu"}
    if case.function == "causal_lm":
        shifted = found["labels"][..., 1:]
        found = {"labels": found.get("shift_labels", shifted)}
    return list(found.values())


def ignored_in(case):
    """For each array of targets which of them do not count."""
    if case.function == "question_answering":
        return [positions >= case.inputs["start_logits"].shape[1] for positions in targets_of(case)]
    default = 255 if case.function == "semantic_segmentation" else -100
    return [labels == case.parameters.get("ignore_index", default) for labels in targets_of(case)]


def nothing_counts(case):
    """Whether a mean is one over nothing, so that it has no value; these three add rows up."""
    if FUNCTIONS[case.function].specification.mean == "tokens":
        return FUNCTIONS[case.function].specification.divisor(case) == 0
    return nothing_is_labelled(case)


def nothing_is_labelled(case):
    """The same of losses of rows, samples or elements."""
    if case.function in SUMS or not FUNCTIONS[case.function].specification.reduces:
        return False
    if case.parameters.get("reduction", "mean") in ("sum", "none") or "num_items_in_batch" in case.parameters:
        return False
    # A sequence without labels has alignments.
    if predictions_of(case).size == 0 or FUNCTIONS[case.function].specification.mean == "sequences":
        return predictions_of(case).size == 0
    weights, mask = case.inputs.get("weight"), case.inputs.get("mask")
    if mask is not None and FUNCTIONS[case.function].specification.mean == "rows":
        return not mask.any()
    for labels, ignored in zip(targets_of(case), ignored_in(case), strict=True):
        counted = labels[~ignored]
        if counted.size == 0 or (weights is not None and weights[counted].sum() == 0):
            return True
    return False


def layout_of(array):
    strides = [stride for stride, size in zip(array.strides, array.shape, strict=True) if size > 1]
    if any(stride < 0 for stride in strides):
        return "reversed"
    if array.flags.c_contiguous:
        return "contiguous" if array.flags.writeable else "read-only"
    return "transposed" if array.flags.f_contiguous else "strided"


def softmax(x):
    terms = np.exp(x - x.max(min(1, x.ndim - 1), keepdims=True))
    return terms / terms.sum(min(1, x.ndim - 1), keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# What a student predicts: of functions whose gradient is a difference of that and the target.
PREDICTIONS = {
    "cross_entropy": softmax,
    "bce_with_logits": sigmoid,
    "sigmoid_focal": sigmoid,
    "varifocal": sigmoid,
    "kl_div": np.exp,
    "bce": np.array,
}


def has_learnt(case):
    """Whether targets are next to the predictions."""
    values = predictions_of(case)
    target = case.inputs.get("target", case.inputs.get("targets"))
    if case.function not in PREDICTIONS or target.dtype.kind in "iu" or len(np.unique(values.astype(float))) < 3:
        return False
    with np.errstate(over="ignore"):
        predicted = PREDICTIONS[case.function](values.astype(np.float64))
    return bool(np.allclose(target.astype(np.float64), predicted, rtol=0.02, atol=0))


def cotangents_of(case):
    """All of them, flat."""
    given = case.grad_output if isinstance(case.grad_output, dict) else {"loss": case.grad_output}
    return np.concatenate([np.ravel(value) for value in given.values()])


def features_of(case):
    values = predictions_of(case)
    reals = np.concatenate(
        [
            case.inputs[name].astype(np.float64).ravel()
            for name in FUNCTIONS[case.function].differentiable
            if name in case.inputs
        ]
    )
    finite = np.abs(reals[np.isfinite(reals)])
    ignored = ignored_in(case)
    return {
        *(name.partition(".")[0] for name in (*case.inputs, *case.parameters)),
        values.dtype.name,
        *(layout_of(value) for value in case.inputs.values()),
        *(["empty"] if values.size == 0 else []),
        *(["huge"] if np.any(finite > 6e4) else []),
        *(["tiny"] if np.any((finite > 0) & (finite < 1e-30)) else []),
        *(["ties"] if len(np.unique(finite)) < finite.size else []),
        *(["all ignored"] if any(own.size and own.all() for own in ignored) else []),
        *(["some ignored"] if any(own.any() and not own.all() for own in ignored) else []),
        *(["poisoned"] if np.isnan(reals).any() else []),
        *(["masked"] if np.isneginf(reals).any() else []),
        *(["cotangents"] if np.ndim(case.grad_output) else []),
        *(["negative"] if np.any(cotangents_of(case) < 0) else []),
        *(["third"] if np.any(cotangents_of(case) == 1 / 3) else []),
        *(["learnt"] if has_learnt(case) else []),
    }


def expected_features(function):
    own = FUNCTIONS[function]
    found = {*own.required, *own.optional, *own.parameters, *DTYPES, "negative", "ties", "third"}
    found |= {"learnt"} if function in PREDICTIONS else set()
    found |= {"contiguous", "read-only", "transposed", "strided", "reversed"}
    if "reduction" in own.parameters:
        found |= {"cotangents"}
    if not own.nested and function not in SUMS:
        found |= {"empty"}
    if function not in ("bce", "iou", "giou"):
        found |= {"huge", "tiny"}
    if function in LABELLED:
        found |= {"all ignored", "some ignored"}
    if function in LABELLED and function not in ("nll", "semantic_segmentation"):
        found |= {"poisoned", "masked"}
    return found


def draw_cases(strategy, check, count):
    settings(max_examples=count, derandomize=True, database=None)(given(strategy)(check))()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_case_is_accepted_and_every_feature_occurs(function):
    missing = expected_features(function)

    def check(case):
        before = {name: value.tobytes() for name, value in case.inputs.items()}
        result = evaluate(case)
        assert {name: value.tobytes() for name, value in case.inputs.items()} == before
        assert np.all(np.isfinite(result.loss)) != nothing_counts(case)
        assert result.grads.keys() == {name for name in FUNCTIONS[function].differentiable if is_float(case, name)}
        for name, gradient in result.grads.items():
            assert (gradient.shape, gradient.dtype) == (case.inputs[name].shape, case.inputs[name].dtype)
        missing.difference_update(features_of(case))

    draw_cases(inputs(function), check, 50)
    for feature in sorted(missing):
        thorough = settings(max_examples=500, derandomize=True, database=None, phases=[Phase.generate])
        find(inputs(function), lambda case, feature=feature: feature in features_of(case), settings=thorough)


def test_limits_hold():
    def check(case):
        assert case.inputs["logits"].dtype == np.float16
        assert case.inputs["labels"].size <= 2
        assert case.inputs["logits"].shape[-1] <= 3

    draw_cases(inputs("masked_lm", dtypes=["float16"], max_rows=2, max_classes=3), check, 50)


@pytest.mark.parametrize("function", ["cross_entropy", "question_answering", "mse"])
def test_without_extremes_everything_is_within_reach_of_float32(function):
    def check(case):
        values = predictions_of(case).astype(np.float64)
        assert np.all((np.abs(values) < 2e4) | np.isneginf(values))
        assert np.all((np.abs(values) > 1e-12) | (values == 0))

    draw_cases(inputs(function, extreme=False), check, 100)


def test_examples_shrink_to_little():
    case = find(inputs("cross_entropy"), lambda case: case.inputs["logits"].size > 2, settings=settings(database=None))
    assert case.inputs["logits"].size == 3
    assert not np.any(case.inputs["logits"])
    assert (case.parameters, case.grad_output) == ({}, 1.0)
    assert case.inputs["logits"].dtype == np.float32
    assert layout_of(case.inputs["logits"]) == "contiguous"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"function": "l2"}, "unknown function 'l2'"),
        ({"function": "l1", "dtypes": ["int8"]}, "expected some of float32"),
        ({"function": "l1", "dtypes": []}, "expected some of float32"),
        ({"function": "l1", "max_rows": 0}, "expected at least 1"),
    ],
)
def test_what_cannot_be_drawn_is_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        inputs(**arguments)


def test_without_hypothesis_it_is_said_what_to_install():
    program = """
import sys
sys.modules["hypothesis"] = None
try:
    import refloss.testing.strategies
except ImportError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'refloss[testing]'" in run.stdout
