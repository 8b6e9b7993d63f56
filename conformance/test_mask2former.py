"""Classes and masks at points against transformers' modules: in float64, as shipped in float32, and wrong answers."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

import refloss
from conformance import points
from conformance.call import array
from conformance.comparison import assert_mutants_fail, scale
from conformance.detection import Run, double_precision, tolerances
from conformance.reference import Outcome, disagreements
from refloss.cases.source import Case as GoldenCase
from refloss.files import nested
from refloss.golden.corpus import cases_of
from refloss.registry import FUNCTIONS
from refloss.testing.judging.judge import question_of

if TYPE_CHECKING:
    from collections.abc import Callable

FUNCTION = "mask2former"
TOLERANCE = 1e-11  # of the tensor's largest element
WEIGHTS = {"loss_cross_entropy": "class_weight", "loss_mask": "mask_weight", "loss_dice": "dice_weight"}
AUXILIARY = ("auxiliary_masks_queries_logits", "auxiliary_class_queries_logits")
MODULES = {"mask2former": "Mask2FormerLoss", "eomt": "EomtLoss"}
# transformers has no num_boxes; the 16-bit formats are float32's.
CASES = [
    pytest.param(case, id=case.id.removeprefix(f"{FUNCTION}-"))
    for case in cases_of(FUNCTION)
    if "num_boxes" not in case.parameters and not case.id.endswith(("float16", "float64"))
]


def prepared(case: GoldenCase, dtype: torch.dtype, **options: Any) -> dict[str, Any]:
    """Arguments for both sides, with the same points; masks are numbers."""
    inputs = {}
    for name, value in case.inputs.items():
        tensor = torch.tensor(np.asarray(value, value.dtype if "class_labels" in name else np.float64))
        inputs[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    arguments = nested(inputs)
    arguments = {name: value for name, value in arguments.items() if name not in (*points.NAMES, "points")}
    arguments["config"] = SimpleNamespace(**case.parameters["config"] | options)
    return arguments | points.draws(points.of_mask2former(arguments), dtype)


def run_transformers(module: str, arguments: dict[str, Any], cotangent: float) -> tuple[Outcome, list[Any]]:
    """Weighted loss, components, gradients; pairs and costs of each image of each layer."""
    solved: list[Any] = []

    def solve(costs: Any) -> Any:
        solved.append((linear_sum_assignment(costs), array(torch.as_tensor(costs))))
        return solved[-1][0]

    code = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
    config, names = arguments["config"], differentiable(arguments)
    for name in names:
        arguments[name] = arguments[name].detach().requires_grad_()
    auxiliary = None
    if AUXILIARY[0] in arguments:
        keys = ("masks_queries_logits", "class_queries_logits")
        layers = zip(*(arguments[name] for name in AUXILIARY), strict=True)
        auxiliary = [dict(zip(keys, layer, strict=True)) for layer in layers]
    criterion = getattr(code, MODULES[module])(config, {})
    criterion.empty_weight = criterion.empty_weight.to(arguments["masks_queries_logits"].dtype)
    given = (
        arguments[name] for name in ("masks_queries_logits", "class_queries_logits", "mask_labels", "class_labels")
    )
    with mock.patch.object(code, "linear_sum_assignment", solve), mock.patch("torch.rand", points.rand(arguments)):
        components = criterion(*given, auxiliary)
    weight_of = {name: getattr(config, WEIGHTS[name.rstrip("_0123456789")]) for name in components}
    loss = sum((weight_of[name] * value for name, value in components.items()), torch.zeros(()))
    grads = torch.autograd.grad(loss * cotangent, [arguments[name] for name in names], allow_unused=True)
    outcome = {"loss": array(loss), **{f"component.{name}": array(value) for name, value in components.items()}}
    for name, grad in zip(names, grads, strict=True):
        outcome[f"grad.{name}"] = array(torch.zeros_like(arguments[name]) if grad is None else grad)
    return outcome, solved


def differentiable(arguments: dict[str, Any]) -> tuple[str, ...]:
    """The arguments that have gradients."""
    return tuple(name for name in FUNCTIONS[FUNCTION].differentiable if name in arguments)


def run_refloss(
    arguments: dict[str, Any], cotangent: float, assignment: Any = None
) -> tuple[Outcome, refloss.LossResult]:
    """The same of refloss."""
    result = refloss.mask2former(**arguments, grad_output=cotangent, assignment=assignment)
    return {
        "loss": np.asarray(result.loss),
        **{f"component.{name}": np.asarray(value) for name, value in result.components.items()},
        **{f"grad.{name}": value.astype(np.float64) for name, value in result.grads.items()},
    }, result


def by_layer(arguments: dict[str, Any], solved: list[Any]) -> list[list[Any]]:
    """What was solved for the images of each layer."""
    images = len(arguments["class_labels"])
    return [solved[first : first + images] for first in range(0, len(solved), images)]


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("case", CASES)
def test_formula(case: GoldenCase, module: str) -> None:
    arguments = prepared(case, torch.float64)
    cotangent = float(case.grad_output)
    with double_precision():
        expected, solved = run_transformers(module, arguments, cotangent)
    found, result = run_refloss(arguments, cotangent)
    allowed = {name: np.asarray(TOLERANCE * max(scale(values), 1e-3)) for name, values in expected.items()}
    lines = disagreements(found, expected, allowed)
    suffixes = [name.removeprefix("cost_matrix") for name in result.intermediates if name.startswith("cost_matrix")]
    for suffix, layer in zip(suffixes, by_layer(arguments, solved), strict=True):
        table = [(image, *pair) for image, (pairs, _) in enumerate(layer) for pair in zip(*pairs, strict=True)]
        assert [tuple(row) for row in result.intermediates[f"assignment{suffix}"].tolist()] == table
        costs = np.concatenate([costs for _, costs in layer], axis=1)
        np.testing.assert_allclose(result.intermediates[f"cost_matrix{suffix}"], costs, rtol=1e-12, atol=1e-12)
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("case", CASES)
def test_as_shipped(case: GoldenCase) -> None:
    """Both sides in float32, with transformers' matching; and wrong answers fail."""
    arguments, cotangent = prepared(case, torch.float32), float(case.grad_output)
    theirs, solved = run_transformers(FUNCTION, arguments, cotangent)
    pairs = [[pair for pair, _ in layer] for layer in by_layer(arguments, solved)]
    ours, result = run_refloss(arguments, cotangent, pairs)
    values = {name: arrays_of(value) for name, value in arguments.items() if name != "config"}
    parameters = {"config": arguments["config"], "assignment": pairs}
    asked = question_of(GoldenCase(FUNCTION, FUNCTION, values, parameters, cotangent), result, "float32")
    allowed = tolerances(Run(FUNCTION, arguments, differentiable(arguments)), asked)
    lines = disagreements(theirs, ours, allowed)
    assert not lines, "\n".join(lines)
    assert_mutants_fail(asked, theirs, allowed)


def arrays_of(value: Any) -> Any:
    """Tensors as arrays, in lists as well."""
    return array(value) if isinstance(value, torch.Tensor) else [arrays_of(part) for part in value]


EDGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "no number in a mask": lambda given: given["masks_queries_logits"][0, :, 1, 2].fill_(torch.nan),
    "an infinite pixel": lambda given: given["masks_queries_logits"][0, :, 1, 2].fill_(torch.inf),
    "no number among the classes": lambda given: given["class_queries_logits"][0, 1].fill_(torch.nan),
    "masks that fit": lambda given: given["masks_queries_logits"].mul_(1e3),
}


@pytest.mark.parametrize("edge", EDGES)
def test_edges(edge: str) -> None:
    case = next(case for case in cases_of(FUNCTION) if case.id.endswith("-last-layer"))
    arguments = prepared(case, torch.float64)
    EDGES[edge](arguments)
    with double_precision():
        expected, _ = run_transformers(FUNCTION, arguments, -1.5)
    found, _ = run_refloss(arguments, -1.5)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-11 * scale(values), err_msg=name)
