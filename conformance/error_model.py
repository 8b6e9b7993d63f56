"""refloss's own error model, refloss.error_model, for what torch and transformers make of a call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import torch

import refloss
from conformance.call import TORCH_FUNCTIONS, array
from conformance.heads import SEQUENCE_CLASSIFICATION, attributes, problem_type
from conformance.reference import outcome_of, refloss_result
from refloss.cases.source import Case as GoldenCase
from refloss.registry import FUNCTIONS
from refloss.testing.judging.judge import question_of
from refloss.testing.spacing import spacing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conformance.call import Call
    from conformance.reference import Outcome
    from refloss.testing.verdict import Question


def question(call: Call) -> Question:
    """A call with refloss's answer, and how far off each tensor of an honest implementation may be."""
    return question_of(golden_case(call), refloss_result(call), str(call.compute_dtype).removeprefix("torch."))


def golden_case(call: Call) -> GoldenCase:
    """A call as refloss's functions are called by their own names."""
    inputs = {name: array(value) for name, value in call.arguments.items() if _is_input(name, value)}
    options = {name: _number(value) for name, value in call.arguments.items() if name not in inputs}
    if call.case.loss in SEQUENCE_CLASSIFICATION:
        config = attributes(options.pop("config"))
        kind = problem_type(config, call.arguments["labels"])
        options |= {"num_labels": config.num_labels, "problem_type": kind}
    loss = call.case.loss
    function = loss if loss in TORCH_FUNCTIONS else refloss.LOSS_MAPPING[loss].__name__
    known = FUNCTIONS[function].specification.parameters
    parameters = {name: value for name, value in options.items() if name in known}
    return GoldenCase(call.case.id, function, inputs, parameters, array(call.cotangent))


def tolerances(asked: Question, call: Call) -> Outcome:
    """A bound for every element of every tensor of a call, the roundings of both sides to their types included."""
    return with_rounding(
        {name: np.asarray(bound) for name, bound in asked.bounds.items()},
        outcome_of(asked.result),
        call.arguments,
        call.compute_dtype,
    )


def with_rounding(own: Outcome, expected: Outcome, arguments: Mapping[str, Any], compute_dtype: torch.dtype) -> Outcome:
    """Bounds with half an ulp of the output for either side."""
    found = {}
    for name, values in expected.items():
        source = arguments.get(name.removeprefix("grad."))
        dtype = source.dtype if isinstance(source, torch.Tensor) and name.startswith("grad.") else compute_dtype
        bound = own.get(name, np.zeros(values.shape))
        with np.errstate(invalid="ignore"):
            size = np.abs(np.where(np.isfinite(values), values, 0.0)) + bound
        found[name] = bound + spacing(size, _numpy_dtype(dtype))
    return found


def _numpy_dtype(dtype: torch.dtype) -> Any:
    return ml_dtypes.bfloat16 if dtype == torch.bfloat16 else str(dtype).removeprefix("torch.")


def _is_input(name: str, value: Any) -> bool:
    return isinstance(value, torch.Tensor) and name != "num_items_in_batch"


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, torch.Tensor) else value
