"""What the built-in cases see: every option in every format, and what kernels break at."""

import math

import numpy as np
import pytest

from refloss.cases.source import DTYPES
from refloss.golden import store
from refloss.golden.drawn import fresh
from refloss.registry import FUNCTIONS
from refloss.specification import Elementwise, MatchingHead
from refloss.testing.judging import judge
from refloss.testing.judging.callables import select

# Without these an answer is that of another problem, if there is one at all: shapes say them as well.
STRUCTURAL = {"vocab_size", "num_labels", "config", "auxiliary_loss", "two_stage", "max_num_bins", "use_focal_loss"}
# What the configurations of transformers have where nobody says otherwise.
USUAL = {
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
    monkeypatch.setattr(judge, "explain", lambda asked, verdict: None)


def small_cases(function, dtype):
    return [
        case for case in select(function, dtypes=dtype) if sum(value.nbytes for value in case.inputs.values()) < SMALL
    ]


def tells(case, other):
    """Whether an answer to another case fails as one to this case, or there is none."""
    try:
        result = store.evaluate(other)
    except (ValueError, TypeError):
        return True
    answer = {name.removeprefix("expected."): value for name, value in store.expected_tensors(result).items()}
    answer = {name: value for name, value in answer.items() if not name.startswith("intermediate.")}
    return judge.judge(judge.question(case), answer).passed is False


def without(case, name):
    """The case of somebody who does not know a parameter, an array or an entry of a configuration."""
    if name in case.parameters.get("config", {}):
        return case._replace(parameters=case.parameters | {"config": case.parameters["config"] | {name: USUAL[name]}})
    parameters = {key: value for key, value in case.parameters.items() if key != name}
    inputs = {key: value for key, value in case.inputs.items() if key.partition(".")[0] != name}
    return case._replace(parameters=parameters, inputs=inputs)


class Recording(dict):
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
        missing -= {name for name in missing & given if tells(case, without(case, name))}
    assert not missing
