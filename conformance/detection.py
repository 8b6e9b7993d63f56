"""The heads that match, on both sides: cases, arguments, and what each side makes of them."""

from __future__ import annotations

import copy
import functools
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from transformers.loss.loss_utils import LOSS_MAPPING

import refloss
from conformance import points
from conformance.call import array
from conformance.error_model import with_rounding
from conformance.reference import formula_precision, outcome_of
from refloss.cases.source import Case as GoldenCase
from refloss.files import nested
from refloss.golden.corpus import cases_of
from refloss.registry import FUNCTIONS
from refloss.specification import MatchingHead
from refloss.testing.judging.judge import question_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from conformance.cases import Array
    from conformance.reference import Outcome
    from refloss.testing.verdict import Question

KEYS = {
    key: name
    for name, function in FUNCTIONS.items()
    if isinstance(function.specification, MatchingHead)
    for key in function.specification.keys
}


class Run(NamedTuple):
    """A key, and keyword arguments as torch takes them."""

    key: str
    arguments: dict[str, Any]
    differentiable: tuple[str, ...]


@functools.cache
def golden_cases() -> list[tuple[str, GoldenCase]]:
    """Every golden case of a head, for each of its keys; those of the 16-bit formats are float32's."""
    return [
        (key, case)
        for key, function in KEYS.items()
        for case in cases_of(function)
        if not case.id.endswith(("float16", "float64"))
    ]


def prepared(key: str, inputs: Mapping[str, Array], config: Mapping[str, Any], dtype: torch.dtype) -> Run:
    """Arguments for both sides; flat inputs are put together."""
    flat = {name: _tensor(value, dtype) for name, value in inputs.items()}
    arguments = nested(flat)
    if "label_maps" in arguments:
        arguments["label_maps"] = tuple(arguments["label_maps"])
    if "denoising_meta_values" in arguments:
        meta = arguments["denoising_meta_values"]
        meta |= {"dn_num_group": int(meta["dn_num_group"]), "dn_num_split": meta["dn_num_split"].tolist()}
    differentiable = tuple(name for name in FUNCTIONS[KEYS[key]].differentiable if name in arguments)
    for name in differentiable:
        arguments[name].requires_grad_()
    arguments["config"] = SimpleNamespace(**config)
    if "points" in FUNCTIONS[KEYS[key]].specification.arguments:
        # transformers takes none, and masks of one size.
        smallest = np.min([image["masks"].shape[1:] for image in arguments["labels"]], axis=0)
        for image in arguments["labels"]:
            image["masks"] = image["masks"][:, : smallest[0], : smallest[1]]
        arguments = {name: value for name, value in arguments.items() if name not in (*points.NAMES, "points")}
        arguments |= points.draws(points.of_rf_detr(arguments), dtype)
    return Run(key, arguments, differentiable)


def golden_run(key: str, name: str = "float32", **options: Any) -> Run:
    """A golden case of a key by the end of its id, in float64, with other entries of its configuration."""
    function = KEYS[key]
    case = next(case for case in cases_of(function) if case.id == f"{function}-{name}")
    return prepared(key, case.inputs, case.parameters["config"] | options, torch.float64)


def _tensor(value: Array, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.tensor(np.asarray(value, np.float64 if value.dtype.kind not in "biu" else value.dtype))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


@contextmanager
def double_precision() -> Iterator[None]:
    """transformers' formula in float64, where it makes tensors of its own too."""
    torch.set_default_dtype(torch.float64)
    try:
        with formula_precision():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


class Matched(NamedTuple):
    """What transformers matched in a layer: for each image its pairs and the costs that decided."""

    pairs: list[Any]
    costs: list[Array]


def run_transformers(run: Run, cotangents: Mapping[str, float] | float) -> tuple[Outcome, list[Matched]]:
    """Loss, components, gradients; and the matching of each layer in the order in which it was made."""
    solved: list[Any] = []

    def solve(costs: Any) -> Any:
        solved.append((linear_sum_assignment(costs), array(torch.as_tensor(costs))))
        return solved[-1][0]

    modules = ("for_object_detection", "deformable_detr", "grounding_dino", "rt_detr", "lw_detr", "rf_detr")
    arguments = dict(run.arguments) | {"device": "cpu", "config": copy.copy(run.arguments["config"])}
    patches = {f"transformers.loss.loss_{module}.linear_sum_assignment": solve for module in modules}
    # DEIMv2 leaves the order of pairs that equally many layers made to a sort that is not stable.
    patches["torch.argsort"] = functools.partial(torch.argsort, stable=True)
    if points.NAMES[0] in arguments:
        patches["torch.rand"] = points.rand(arguments)
    with _all_patched(patches):
        mapping: Mapping[str, Any] = LOSS_MAPPING
        loss, components, _ = mapping[run.key](**arguments)
    if isinstance(cotangents, float):
        target = loss * cotangents
    else:
        target = sum((components[name] * weight for name, weight in cotangents.items()), torch.zeros(()))
    inputs = [run.arguments[name] for name in run.differentiable]
    grads = torch.autograd.grad(target, inputs, allow_unused=True)
    outcome = {
        "loss": array(torch.as_tensor(loss)),
        **{f"component.{name}": array(value) for name, value in components.items()},
    }
    for name, value, grad in zip(run.differentiable, inputs, grads, strict=True):
        outcome[f"grad.{name}"] = array(torch.zeros_like(value) if grad is None else grad)
    images, groups = len(run.arguments["labels"]), getattr(run.arguments["config"], "group_detr", 1)
    layers = [solved[first : first + images * groups] for first in range(0, len(solved), images * groups)]
    return outcome, [_matched([layer[image::images] for image in range(images)]) for layer in layers]


def _matched(solved: list[list[Any]]) -> Matched:
    """The pairs and costs of each image, of all its groups of queries."""
    pairs, costs = [], []
    for groups in solved:
        offsets = np.cumsum([0, *(len(cost) for _, cost in groups)])
        queries = [query + offset for ((query, _), _), offset in zip(groups, offsets, strict=False)]
        pairs.append((np.concatenate(queries), np.concatenate([chosen for (_, chosen), _ in groups])))
        costs.append(np.concatenate([cost for _, cost in groups]))
    return Matched(pairs, costs)


@contextmanager
def _all_patched(values: Mapping[str, Any]) -> Iterator[None]:
    patches = [mock.patch(name, value) for name, value in values.items()]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def run_refloss(run: Run, cotangents: Any, assignment: Any = None) -> tuple[Outcome, refloss.LossResult]:
    """The same of refloss."""
    result = refloss.LOSS_MAPPING[run.key](**run.arguments, device="cpu", grad_output=cotangents, assignment=assignment)
    outcome = {
        "loss": np.asarray(result.loss),
        **{f"component.{name}": np.asarray(value) for name, value in result.components.items()},
        **{f"grad.{name}": value.astype(np.float64) for name, value in result.grads.items()},
    }
    return outcome, result


def matching_disagreements(result: refloss.LossResult, theirs: list[Matched], tolerance: float) -> list[str]:
    """Costs and assignments of all layers; IoU and GIoU of the pairs are checked by the components.

    transformers rounds 1 − p to float64 before it takes log(1 − p + 10^-8), which costs up to twice as much.
    """
    values, lines = result.intermediates, []
    of_logarithm = 0.0 if "lse" in values else 2.0**-52 / 1e-8
    suffixes = [name.removeprefix("cost_matrix") for name in values if name.startswith("cost_matrix")]
    for suffix, matched in zip(suffixes, theirs, strict=True):
        table = [(image, *map(int, pair)) for image, own in enumerate(matched.pairs) for pair in zip(*own, strict=True)]
        if [tuple(row) for row in values[f"assignment{suffix}"].tolist()] != table:
            lines.append(f"assignment{suffix} is {values[f'assignment{suffix}'].tolist()} instead of {table}")
        costs = np.concatenate(matched.costs, axis=1)
        found = values[f"cost_matrix{suffix}"][: len(costs)]
        if not np.allclose(found, costs, rtol=tolerance, atol=tolerance + of_logarithm):
            lines.append(f"cost_matrix{suffix} is off by {np.abs(found - costs).max()}")
    return lines


def question(run: Run, result: refloss.LossResult, cotangent: float, assignment: Any) -> Question:
    """A run with refloss's answer, and how far off transformers may be in float32, with the same matching."""
    inputs = {name: _arrays(value) for name, value in run.arguments.items() if name != "config"}
    parameters = {"config": run.arguments["config"], "assignment": assignment}
    case = GoldenCase(run.key, KEYS[run.key], inputs, parameters, cotangent)
    return question_of(case, result, "float32")


def tolerances(run: Run, asked: Question) -> Outcome:
    """A bound for every element, the roundings of both sides to their types included."""
    expected = {name: values for name, values in outcome_of(asked.result).items() if name in asked.bounds}
    return with_rounding(
        {name: np.asarray(bound) for name, bound in asked.bounds.items()}, expected, run.arguments, torch.float32
    )


def _arrays(value: Any) -> Any:
    """Tensors as arrays, wherever they are."""
    if isinstance(value, torch.Tensor):
        return array(value)
    if isinstance(value, dict):
        return {name: _arrays(part) for name, part in value.items()}
    return [_arrays(part) for part in value] if isinstance(value, list | tuple) else value
