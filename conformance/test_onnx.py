"""ONNX's own node tests of its two losses: inputs, attributes, and outputs that ONNX computed in NumPy, in float32."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
from onnx import helper
from onnx.backend.test.case.node import collect_testcases

import refloss
from conformance.cases import Array

OPERATORS = ("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss")
# By what the names begin with; that of each cross-entropy again with "_log_prob", where it has a second output.
NAMES = {
    "test_nllloss_": """
        NC NCd1 NCd1_ii NCd1_mean_weight_negative_ii NCd1_weight NCd1_weight_ii NCd1d2
        NCd1d2_no_weight_reduction_mean_ii NCd1d2_reduction_mean NCd1d2_reduction_sum NCd1d2_with_weight
        NCd1d2_with_weight_reduction_mean NCd1d2_with_weight_reduction_sum NCd1d2_with_weight_reduction_sum_ii
        NCd1d2d3_none_no_weight_negative_ii NCd1d2d3_sum_weight_high_ii NCd1d2d3d4d5_mean_weight
        NCd1d2d3d4d5_none_no_weight
    """,
    "test_sce_": """
        NCd1_mean_weight_negative_ii NCd1d2d3_none_no_weight_negative_ii NCd1d2d3_sum_weight_high_ii
        NCd1d2d3d4d5_mean_weight NCd1d2d3d4d5_none_no_weight mean mean_3d mean_no_weight_ii mean_no_weight_ii_3d
        mean_no_weight_ii_4d mean_weight mean_weight_ii mean_weight_ii_3d mean_weight_ii_4d none none_weights sum
    """,
}
PLAIN = [prefix + name for prefix, names in NAMES.items() for name in names.split()]
WITH_LOG_PROBABILITY = [f"{name}_log_prob" for name in PLAIN if name.startswith("test_sce_")]
ROUNDINGS = 8  # of a row, its exponentials and their sum apart; a sum of numbers of one sign adds its pairwise ones


class NodeCase(NamedTuple):
    """One node, what goes in, and what ONNX says comes out."""

    operator: str
    attributes: dict[str, Any]
    inputs: list[Array]
    loss: Array
    log_probability: Array | None


@pytest.fixture(scope="session")
def cases() -> dict[str, NodeCase]:
    """Those of the two operators; the same tests with the operator written out as others are not."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of the other operators' cases, which the package computes as well
        found = {case.name: case for case in collect_testcases()}
    cases = {}
    for name, case in found.items():
        if case.model is None or case.data_sets is None:
            continue
        nodes = case.model.graph.node
        if len(nodes) != 1 or nodes[0].op_type not in OPERATORS:
            continue
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in nodes[0].attribute}
        ((inputs, outputs),) = case.data_sets
        log_probability = outputs[1] if len(outputs) > 1 else None
        cases[name] = NodeCase(nodes[0].op_type, attributes, list(inputs), outputs[0], log_probability)
    return cases


def _options(case: NodeCase) -> dict[str, Any]:
    options = dict(case.attributes)
    return {**options, "reduction": options.get("reduction", b"mean").decode()}


def _roundoff(case: NodeCase) -> float:
    return ROUNDINGS * float(np.finfo(case.inputs[0].dtype).eps) / 2


def test_the_names_are_those_of_all_cases(cases: dict[str, NodeCase]) -> None:
    assert set(cases) == {*PLAIN, *WITH_LOG_PROBABILITY}
    assert {name for name, case in cases.items() if case.log_probability is not None} == set(WITH_LOG_PROBABILITY)


@pytest.mark.parametrize("name", [*PLAIN, *WITH_LOG_PROBABILITY])
def test_loss(cases: dict[str, NodeCase], name: str) -> None:
    """Within float32's roundings of a row, log-probabilities of which are up to 7 here, and of the sum."""
    case = cases[name]
    function = refloss.cross_entropy if case.operator == "SoftmaxCrossEntropyLoss" else refloss.nll
    result = function(*case.inputs, **_options(case))
    wanted = case.loss.astype(np.float64)
    assert result.loss.shape == wanted.shape
    rows = np.maximum(1.0, np.log2(case.inputs[1].size))
    np.testing.assert_allclose(result.loss, wanted, rtol=rows * _roundoff(case), atol=_roundoff(case))


@pytest.mark.parametrize("name", WITH_LOG_PROBABILITY)
def test_log_probabilities(cases: dict[str, NodeCase], name: str) -> None:
    """x − lse, and −nll at every label."""
    case = cases[name]
    assert case.log_probability is not None
    logits = case.inputs[0].astype(np.float64)
    options = {"ignore_index": case.attributes.get("ignore_index", -100)}
    rows = refloss.cross_entropy(logits, case.inputs[1], **options).intermediates
    found = logits - np.expand_dims(rows["lse"], 1)
    np.testing.assert_allclose(found, case.log_probability, rtol=0, atol=_roundoff(case))
    counted = case.inputs[1] != options["ignore_index"]
    label = np.expand_dims(np.where(counted, case.inputs[1], 0), 1)
    at_label = np.take_along_axis(case.log_probability, label, 1).squeeze(1)
    np.testing.assert_allclose(np.where(counted, -at_label, 0.0), rows["nll"], rtol=0, atol=_roundoff(case))
