"""The elementwise losses, nll and the heads of classification against torch and transformers, tensor by tensor.

As in test_language: the formula in float64, then both sides as people train, and wrong answers.
"""

from __future__ import annotations

import copy
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers.loss.loss_utils import LOSS_MAPPING

import refloss
from conformance.call import Call
from conformance.cases import Case
from conformance.classification_cases import CASES, ENDS, pretrained
from conformance.comparison import (
    assert_as_shipped,
    assert_formula,
    identifier,
)
from conformance.heads import SEQUENCE_CLASSIFICATION
from conformance.reference import run_refloss, transformers_loss
from refloss.heads.sequence_classification import ProblemType

# torch warns that "mean" is not the mathematical divergence; it is the loss that is compared here.
pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss:UserWarning")

TRAINING_DTYPES = (torch.float32, torch.bfloat16)
RUNS = list(product((*CASES, *ENDS), TRAINING_DTYPES))


@pytest.mark.parametrize("case", CASES, ids=identifier)
def test_formula(case: Case) -> None:
    assert_formula(case)


@pytest.mark.parametrize(("case", "dtype"), RUNS, ids=identifier)
def test_as_shipped(case: Case, dtype: torch.dtype) -> None:
    """And wrong answers fail, but where a bound is infinite."""
    assert_as_shipped(case, dtype, telling=not case.degenerate and case not in ENDS)


def test_ids_are_unique() -> None:
    names = [case.id for case in CASES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("key", SEQUENCE_CLASSIFICATION)
@pytest.mark.parametrize(
    "config", [pretrained(2), SimpleNamespace(num_labels=2, problem_type=None)], ids=["transformers", "object"]
)
def test_only_transformers_writes_to_the_config(key: str, config: Any) -> None:
    labels = np.array([[0.0, 1.0], [1.0, 1.0]])
    inputs = {"labels": labels, "pooled_logits": np.array([[0.5, -1.0], [2.0, 0.25]])}
    config = copy.deepcopy(config)
    call = Call(Case("config", key, inputs, {"config": config}, -3.5), torch.float64)
    before = copy.deepcopy(vars(config))
    run_refloss(call)
    assert vars(config) == before
    transformers_loss(call, config)
    assert config.problem_type == "multi_label_classification"


@pytest.mark.parametrize("key", SEQUENCE_CLASSIFICATION)
@pytest.mark.parametrize("mappings", [LOSS_MAPPING, refloss.LOSS_MAPPING], ids=["transformers", "refloss"])
def test_unknown_problem_type_raises(key: str, mappings: Any) -> None:
    config = SimpleNamespace(num_labels=2, problem_type="ranking")
    with pytest.raises(RuntimeError, match="Invalid problem type"):
        mappings[key](labels=torch.zeros(3), pooled_logits=torch.zeros(3, 2), config=config)


@pytest.mark.parametrize("missing", ["start_positions", "end_positions"])
@pytest.mark.parametrize("mappings", [LOSS_MAPPING, refloss.LOSS_MAPPING], ids=["transformers", "refloss"])
def test_no_positions_no_loss(missing: str, mappings: Any) -> None:
    logits, positions = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
    given = {"start_positions": positions, "end_positions": positions, missing: None}
    assert mappings["ForQuestionAnswering"](start_logits=logits, end_logits=logits, **given) is None


@pytest.mark.parametrize("kind", ["regression", "single_label_classification", "multi_label_classification"])
def test_keywords_do_as_a_config_does(kind: ProblemType) -> None:
    logits = np.array([[0.5, -1.0], [2.0, 0.25]])
    labels = np.array([1, 0]) if kind.startswith("single") else np.array([[0.0, 1.0], [1.0, 1.0]])
    config = pretrained(2, kind)
    by_config = refloss.sequence_classification(labels, logits, config, grad_output=-3.5)
    by_keywords = refloss.sequence_classification(labels, logits, num_labels=2, problem_type=kind, grad_output=-3.5)
    assert by_config.loss == by_keywords.loss
    assert by_config.grads["pooled_logits"].tobytes() == by_keywords.grads["pooled_logits"].tobytes()
