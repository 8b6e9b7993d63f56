"""What the built-in cases see: every option in every format, and what kernels break at."""

import math
from typing import Any

import numpy as np
import pytest

from refloss.cases.source import DTYPES
from refloss.golden import store
from refloss.golden.corpus import corpus, dtype_of
from refloss.golden.drawn import fresh
from refloss.registry import FUNCTIONS
from refloss.specification import Elementwise, MatchingHead
from refloss.testing.judging import judge
from refloss.testing.judging.callables import select
from refloss.testing.mistakes.alterations import labels

# Without these an answer is that of another problem, if there is one at all: shapes say them as well.
STRUCTURAL = {"vocab_size", "num_labels", "config", "auxiliary_loss", "two_stage", "max_num_bins", "use_focal_loss"}
STRUCTURAL |= {"flow_loss_num_samples", "widths", "label_smoothing_classes"}
# What the configurations of transformers have where nobody says otherwise.
USUAL = {
    "no_object_weight": 0.1,
    "class_weight": 2.0,
    "mask_weight": 5.0,
    "dice_weight": 5.0,
    "train_num_points": 12544,
    "oversample_ratio": 3.0,
    "importance_sample_ratio": 0.75,
    "mask_class_loss_coefficient": 5.0,
    "mask_dice_loss_coefficient": 5.0,
    "mask_point_sample_ratio": 16,
    "class_cost": 1.0,
    "bbox_cost": 5.0,
    "giou_cost": 2.0,
    "eos_coefficient": 0.1,
    "focal_alpha": 0.25,
    "decoder_layers": 6,
    "bbox_loss_coefficient": 5.0,
    "giou_loss_coefficient": 2.0,
    "mask_loss_coefficient": 1.0,
    "dice_loss_coefficient": 1.0,
    "class_loss_coefficient": 1.0,
    "group_detr": 1,
    "matcher_class_cost": 2.0,
    "matcher_bbox_cost": 5.0,
    "matcher_giou_cost": 2.0,
    "matcher_alpha": 0.25,
    "matcher_gamma": 2.0,
    "focal_loss_alpha": 0.75,
    "focal_loss_gamma": 2.0,
    "weight_loss_vfl": 1.0,
    "weight_loss_mal": 1.0,
    "weight_loss_bbox": 5.0,
    "weight_loss_giou": 2.0,
    "weight_loss_fgl": 0.15,
    "weight_loss_ddf": 1.5,
    "reg_scale": 4.0,
    "up": 0.5,
    "mal_alpha": None,
    "use_dense_one_to_one": True,
}
HEADS = [name for name, function in FUNCTIONS.items() if isinstance(function.specification, MatchingHead)]
SMALL = 10**5  # bytes


@pytest.fixture(autouse=True)
def _without_explanations(monkeypatch):
    monkeypatch.setattr(judge, "causes", lambda asked, judged, failing: ())


def small_cases(function, dtype):
    return [
        case for case in select(function, dtypes=dtype) if sum(value.nbytes for value in case.inputs.values()) < SMALL
    ]


def tells(asked, other):
    """Whether an answer to another case fails as one to a question, or there is none."""
    try:
        result = store.evaluate(other)
    except (ValueError, TypeError):
        return True
    answer = {name.removeprefix("expected."): value for name, value in store.expected_tensors(result).items()}
    answer = {name: value for name, value in answer.items() if not name.startswith("intermediate.")}
    return judge.judge(asked, answer).passed is False


def without(case, name):
    """The case of somebody who does not know a parameter, an array or an entry of a configuration."""
    if name in case.parameters.get("config", {}):
        return case._replace(parameters=case.parameters | {"config": case.parameters["config"] | {name: USUAL[name]}})
    parameters = {key: value for key, value in case.parameters.items() if key != name}
    inputs = {key: value for key, value in case.inputs.items() if key.partition(".")[0] != name}
    return case._replace(parameters=parameters, inputs=inputs)


class Recording(dict[str, Any]):
    """A configuration that knows what was read of it."""

    def __init__(self, entries):
        super().__init__(entries)
        self.read = set()

    def get(self, name, default=None):
        self.read.add(name)
        return super().get(name, default)


def options_of(function, cases):
    """All that may be left out, and what is read of configurations."""
    specification = FUNCTIONS[function].specification
    read = set()
    for case in cases if function in HEADS else ():
        recording = Recording(case.parameters["config"])
        store.evaluate(case._replace(parameters=case.parameters | {"config": recording}))
        read |= recording.read
    return {*specification.parameters, *specification.optional, *read} - STRUCTURAL


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_who_ignores_an_option_fails_in_each_format(function, dtype):
    cases = small_cases(function, dtype)
    missing = options_of(function, cases)
    for case in sorted(cases, key=lambda case: "-options" not in case.id):
        given = {
            *case.parameters,
            *(name.partition(".")[0] for name in case.inputs),
            *case.parameters.get("config", {}),
        }
        asked = judge.question(case) if missing & given else None
        missing -= {name for name in missing & given if tells(asked, without(case, name))}
    assert not missing


def rows_of(case):
    """For each array of logits of classes: its rows that count, in float64, and their labels."""
    for name, argument in FUNCTIONS[case.function].specification.arguments.items():
        found = labels(case, f"grad.{name}") if argument.activation == "softmax" and name in case.inputs else None
        if found is None or FUNCTIONS[case.function].specification.mean == "objects":
            continue
        logits = case.inputs[name].astype(np.float64)
        rows = np.moveaxis(logits, argument.class_axis if logits.ndim > 1 else 0, -1)
        # Of shifted labels the last row has none.
        rows = rows[..., : found.values.shape[-1], :] if rows.ndim > 2 and name == "logits" else rows
        if found.values.shape == rows.shape[:-1]:
            yield name, rows[found.counts], found.values[found.counts]


SOFTMAX = {
    "cross_entropy": ("logits",),
    "vocab_parallel_cross_entropy": ("shards",),
    "causal_lm": ("logits",),
    "masked_lm": ("logits",),
    "token_classification": ("logits",),
    "sequence_classification": ("pooled_logits",),
    "question_answering": ("start_logits", "end_logits"),
    "semantic_segmentation": ("logits", "auxiliary_logits"),
}


@pytest.mark.parametrize("function", SOFTMAX)
def test_labels_are_improbable_and_rows_apart_in_each_format(function):
    found = set()
    for dtype in DTYPES:
        for case in small_cases(function, dtype):
            for name, rows, asked in rows_of(case):
                largest = rows.max(axis=-1, initial=-np.inf)
                distances = largest - rows[np.arange(len(rows)), asked]
                found |= {(dtype, name, "improbable")} if distances.max(initial=0.0) > 104 else set()
                # Of another row's maximum nothing is left in float64, nor of one that is not below −64.
                far = largest.max(initial=-np.inf) - largest.min(initial=np.inf) > 1500 and largest.min() < -900
                found |= {(dtype, name, "apart")} if far else set()
                found |= {(dtype, name, "masked")} if np.isneginf(rows).any() else set()
    kinds = ("improbable", "apart", "masked")
    assert found == {(dtype, name, kind) for dtype in DTYPES for name in SOFTMAX[function] for kind in kinds}


@pytest.mark.parametrize("function", [*SOFTMAX, "nll"])
def test_there_are_as_many_classes_as_blocks_and_indices_end_at(function):
    specification = FUNCTIONS[function].specification
    (name, argument), *_ = [each for each in specification.arguments.items() if each[1].class_axis is not None]
    counts = {}
    for case in select(function):
        values = case.inputs[name]
        counts.setdefault(values.shape[argument.class_axis if values.ndim > 1 else 0], set()).add(dtype_of(case))
    few = function == "semantic_segmentation"
    assert counts.keys() >= {1, 2, 1025, 4097, *(() if few else (50257, 128256))}
    # In each format more classes than a block of 1024 holds.
    assert set().union(*(dtypes for count, dtypes in counts.items() if count > 1024)) == {*DTYPES}


ELEMENTS = [name for name, function in FUNCTIONS.items() if isinstance(function.specification, Elementwise)]


@pytest.mark.parametrize("function", [*ELEMENTS, "sigmoid_focal", "varifocal", "dice"])
def test_there_are_more_elements_than_blocks_and_indices_hold(function):
    name = FUNCTIONS[function].required[0]
    sizes = {dtype: max(case.inputs[name].size for case in select(function, dtypes=dtype)) for dtype in DTYPES}
    assert min(sizes.values()) > 1024
    assert sizes["float32"] > 65536
    assert all(size % 32 for size in sizes.values())


@pytest.mark.parametrize("function", ["sigmoid_focal", "varifocal"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_elements_saturate_on_both_sides_at_every_exponent(function, dtype):
    found = set()
    for case in small_cases(function, dtype):
        x, t = (case.inputs[name].astype(np.float64) for name in ("inputs", "targets"))
        found |= {
            (case.parameters.get("gamma", 2.0), side)
            for side, hit in {"hit": x * (2.0 * t - 1.0) >= 100, "missed": x * (2.0 * t - 1.0) <= -100}.items()
            if hit.any()
        }
    assert found >= {(gamma, side) for gamma in (0.0, 0.5, 1.0, 2.0, 5.0) for side in ("hit", "missed")}


@pytest.mark.parametrize("dtype", DTYPES)
def test_distributions_are_hard_and_need_not_sum_to_1(dtype):
    for function in ("cross_entropy", "kl_div"):
        targets = [
            case.inputs["target"].astype(np.float64)
            for case in small_cases(function, dtype)
            if case.inputs["target"].dtype.kind != "i" and not case.parameters.get("log_target")
        ]
        assert any(((t == 0).any() and (t == 1).any()) for t in targets)
        # 2^-100 is no float16, where the least number stands for it.
        least = 2.0**-100 if dtype != "float16" else 2.0**-20
        assert any(((t > 0) & (t <= least)).any() for t in targets) or (function, dtype) == ("cross_entropy", "float16")
        assert any(np.any(np.abs(t.sum(axis=-1) - 1.0) > 0.4) for t in targets)


def test_the_pair_that_a_clamp_and_one_minus_p_lose():
    (case,) = select(cases="sigmoid_focal-saturated-pair")
    assert (case.inputs["inputs"].tolist(), case.inputs["targets"].tolist()) == ([[18, -18]], [[1, 0]])
    gradient = store.evaluate(case).grads["inputs"]
    exact = 1.0 / (1.0 + math.exp(18.0))
    assert np.allclose(gradient, [[-exact, exact]], rtol=1e-6, atol=0)


def test_labels_of_64_bits_are_others_in_32():
    for function in ("cross_entropy", "nll", *list(SOFTMAX)[1:5], "semantic_segmentation"):
        for dtype in DTYPES:
            wrapped = [
                case.parameters.get("ignore_index", 0)
                for case in small_cases(function, dtype)
                if abs(case.parameters.get("ignore_index", 0)) > 2**32
            ]
            # In 32 bits it is a class that some label has.
            assert any(ignored % 2**32 == 0 for ignored in wrapped), (function, dtype)


def test_cotangents_of_rows_and_elements_differ_and_have_both_signs():
    others = {"bce-sure", "kl_div-log-target-none"}  # beside which are cases of the same values that have them
    for case in corpus():
        if case.id in others:
            continue
        if case.parameters.get("reduction") == "none" and np.size(store.evaluate(case).loss) > 1:
            assert np.ndim(case.grad_output) > 0, case.id
            assert len(np.unique(case.grad_output)) == np.size(case.grad_output) or np.size(case.grad_output) > 1000
            assert np.min(case.grad_output) < 0 < np.max(case.grad_output), case.id


def test_the_corpus_is_small():
    cases = corpus()
    assert len(cases) <= 40 * len(FUNCTIONS)
    total = 0
    for case in cases:
        expected = store.expected_tensors(store.evaluate(case))
        total += sum(np.asarray(value).nbytes for value in (*case.inputs.values(), *expected.values()))
    assert 40e6 < total + 2000 * len(cases) < 1.25e6 * len(FUNCTIONS)


@pytest.mark.parametrize("function", ["mse", "dice", "cross_entropy", "question_answering", "rt_detr_object_detection"])
def test_fresh_cases_follow_from_their_seed(function):
    first, again, other = fresh(function, 3, 16), fresh(function, 3, 16), fresh(function, 4, 16)
    assert [case.id for case in first] == [f"{function}-seed3-{k}" for k in range(16)]
    assert {dtype_of(case) for case in first} == {*DTYPES}
    differs = False
    for one, same, third in zip(first, again, other, strict=True):
        assert one.inputs.keys() == same.inputs.keys()
        assert all(value.tobytes() == same.inputs[name].tobytes() for name, value in one.inputs.items())
        assert (one.parameters, np.asarray(one.grad_output).tobytes()) == (
            same.parameters,
            np.asarray(same.grad_output).tobytes(),
        )
        differs |= {name: value.tobytes() for name, value in one.inputs.items()} != {
            name: value.tobytes() for name, value in third.inputs.items()
        }
        store.evaluate(one)
        assert all(not np.isnan(value.astype(np.float64)).any() for value in one.inputs.values())
    assert differs
    assert max(value.size for case in first for value in case.inputs.values()) > 1024
