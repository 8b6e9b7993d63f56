"""The heads that match against transformers: in float64 to 1e-11, as shipped in float32, and wrong answers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from conformance import detection
from conformance.comparison import assert_mutants_fail, scale
from conformance.detection import (
    Run,
    double_precision,
    golden_cases,
    matching_disagreements,
    prepared,
    run_refloss,
    run_transformers,
)
from conformance.reference import Outcome, disagreements
from refloss.cases.source import Case as GoldenCase

if TYPE_CHECKING:
    from collections.abc import Callable

TOLERANCE = 1e-11  # of the tensor's largest element


def _is_run(key: str, case: GoldenCase) -> bool:
    """Whether transformers can: it has no num_boxes, and masks at points without objects give no number."""
    return "num_boxes" not in case.parameters and (key != AT_POINTS or "no-objects" not in case.id)


AT_POINTS = "RfDetrForInstanceSegmentation"
RUNS = [
    pytest.param(key, case, id=f"{key}-{case.id.partition('-')[2]}")
    for key, case in golden_cases()
    if _is_run(key, case)
]
# transformers takes this mean in float32; where boxes fit, the gradient is what is left of terms near 1.
ABSOLUTE = {"component.cardinality_error": 1e-6, "grad.pred_boxes": TOLERANCE, "component.loss_ddf": 1e-14}
# Logarithms of probabilities, of which little is left where a layer is close to its teacher.
RELATIVE = {"component.loss_fgl": 1e-9, "component.loss_ddf": 1e-9, "grad.predicted_corners": 1e-9}
# Of costs: transformers computes these in float32 whatever it is given.
COSTS = {"LwDetrForObjectDetection": 2e-6, "RfDetrForObjectDetection": 2e-6, AT_POINTS: 2e-6}


def allowed_in_float64(outcome: Outcome) -> Outcome:
    """A bound for every tensor, whatever its layer."""
    plain = {
        name: name if name.startswith("grad.") else re.sub(r"(_aux|_dn)?_(\d+|enc)$", "", name) for name in outcome
    }
    return {
        name: np.asarray(max(ABSOLUTE.get(plain[name], 0.0), RELATIVE.get(plain[name], TOLERANCE) * scale(values)))
        for name, values in outcome.items()
    }


@pytest.mark.parametrize(("key", "case"), RUNS)
def test_formula(key: str, case: GoldenCase) -> None:
    run = prepared(key, case.inputs, case.parameters["config"], torch.float64)
    cotangent = float(case.grad_output)
    with double_precision():
        expected, matchings = run_transformers(run, cotangent)
    found, result = run_refloss(run, cotangent)
    lines = disagreements(found, expected, allowed_in_float64(expected))
    lines += matching_disagreements(result, matchings, COSTS.get(key, TOLERANCE))
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize(("key", "case"), RUNS)
def test_formula_of_components(key: str, case: GoldenCase) -> None:
    """The vector-Jacobian product of signed weights of components, whatever their weights in the total."""
    run = prepared(key, case.inputs, case.parameters["config"], torch.float64)
    with double_precision():
        names = [name for name in run_refloss(run, 1.0)[1].components if "cardinality" not in name]
        weights = {name: (-1) ** i * (0.5 + i) for i, name in enumerate(names)}
        expected, _ = run_transformers(run, weights)
    found, _ = run_refloss(run, weights)
    grads = [name for name in expected if name.startswith("grad.")]
    allowed = {name: np.asarray(TOLERANCE * max(1.0, scale(expected[name]))) for name in grads}
    lines = disagreements({name: found[name] for name in grads}, {name: expected[name] for name in grads}, allowed)
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize(("key", "case"), RUNS)
def test_as_shipped(key: str, case: GoldenCase) -> None:
    """Both sides in float32, with transformers' matching; and wrong answers fail."""
    run = prepared(key, case.inputs, case.parameters["config"], torch.float32)
    cotangent = float(case.grad_output)
    theirs, matchings = run_transformers(run, cotangent)
    pairs = [matched.pairs for matched in matchings]
    ours, result = run_refloss(run, cotangent, assignment=pairs)
    asked = detection.question(run, result, cotangent, pairs)
    allowed = detection.tolerances(run, asked)
    lines = disagreements(theirs, ours, allowed)
    assert not lines, "\n".join(lines)
    assert_mutants_fail(asked, theirs, allowed)


def plain_case(key: str, **options: Any) -> Run:
    """The plain case of a key, in float64."""
    case = next(case for name, case in golden_cases() if name == key and case.id.endswith("-float32"))
    return prepared(key, case.inputs, case.parameters["config"] | options, torch.float64)


EDGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "no number among the logits": lambda given: given["logits"].data[0, :2].fill_(torch.nan),
    "an infinite logit": lambda given: given["logits"].data[0, 1, 2].fill_(-torch.inf),
    "a box without area": lambda given: given["pred_boxes"].data[0, :, 2:].fill_(0.0),
    "a target without area": lambda given: given["labels"][0]["boxes"][:, 2:].fill_(0.0),
    "boxes that leave the image": lambda given: given["pred_boxes"].data.add_(0.7),
    "huge boxes": lambda given: given["pred_boxes"].data.mul_(1e6),
}


EDGE_KEYS = (
    "ForObjectDetection",
    "DeformableDetrForObjectDetection",
    "ForSegmentation",
    "RTDetrForObjectDetection",
    "DFineForObjectDetection",
    "Deimv2ForObjectDetection",
    "LwDetrForObjectDetection",
    AT_POINTS,
)
# Where transformers multiplies 0 by an infinite logarithm.
UNDEFINED = ("DeformableDetrForObjectDetection", "LwDetrForObjectDetection", AT_POINTS)


@pytest.mark.parametrize("key", EDGE_KEYS)
@pytest.mark.parametrize("edge", EDGES)
def test_edges(key: str, edge: str) -> None:
    run = plain_case(key)
    EDGES[edge](run.arguments)
    with double_precision():
        expected, matchings = run_transformers(run, -1.5)
    found, result = run_refloss(run, -1.5, assignment=[matched.pairs for matched in matchings])
    if key not in COSTS or "huge" not in edge:
        # transformers' float32 costs of huge boxes are noise.
        found, result = run_refloss(run, -1.5)
        lines = matching_disagreements(result, matchings, COSTS.get(key, TOLERANCE))
        assert not lines, "\n".join(lines)
    for name, values in expected.items():
        allowed = max(ABSOLUTE.get(name, 0.0), 1e-11 * scale(values))
        if name == "grad.logits" and "infinite" in edge:
            # torch has NaN for an element of -inf whose loss is 0.
            values[~np.isfinite(values)] = found[name][~np.isfinite(values)]
        if "infinite" in edge and key in UNDEFINED and name in ("loss", "component.loss_ce"):
            assert np.isnan(values)
            assert np.isfinite(found[name])
            continue
        np.testing.assert_allclose(found[name], values, rtol=0, atol=allowed, err_msg=name)


@pytest.mark.parametrize("value", [torch.nan, -0.25])
def test_boxes_that_are_none_are_an_error_on_both_sides(value: float) -> None:
    run = plain_case("ForObjectDetection")
    run.arguments["pred_boxes"].data[1, 2, 2] = value
    with double_precision(), pytest.raises(ValueError, match="corner"):
        run_transformers(run, 1.0)
    with pytest.raises(ValueError, match=r"pred_boxes\[1, 2\]"):
        run_refloss(run, 1.0)
