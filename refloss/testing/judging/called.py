"""A call of a loss as a case; arrays of any framework and device as NumPy's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss import configuration
from refloss.arrays import FLOAT_DTYPES, as_array, float_array, number
from refloss.cases.source import Case
from refloss.device import is_on_gpu
from refloss.files import flattened, nested
from refloss.placement import to_host
from refloss.registry import FUNCTIONS

if TYPE_CHECKING:
    from refloss.registry import Function
    from refloss.result import LossResult

# What decides a matching is no parameter of golden files, which let refloss match.
_ASSIGNMENT = "assignment"
_ABSENT = object()


def on_host(value: Any, name: str) -> np.ndarray:
    """An array of any framework on any device, as NumPy's; copied only where it has to be."""
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu()  # torch's own way leads from every device that it has
    return to_host(value, name) if is_on_gpu(value) else as_array(value, name)


def called(result: LossResult) -> Case:
    """What a result is the answer to. Its arrays are those of the call, and may have been changed since."""
    if result.call is None:
        raise ValueError("this result does not know what was asked, as copies and pickles do not: call refloss here")
    name = result.call.function.__name__
    function, given = FUNCTIONS[name], result.call.named()
    inputs: dict[str, np.ndarray] = {}
    for key in (*function.required, *function.optional):
        if given.get(key) is None:
            continue
        widths = function.specification.arguments[key].widths
        if widths and is_in_parts(given[key]):
            parts = [float_array(on_host(part, key), key) for part in given[key]]
            inputs |= {key: joined(parts, key), widths: np.array([part.shape[-1] for part in parts])}
        elif key in function.nested:
            inputs |= {part: _array(value, part) for part, value in flattened(key, given[key]).items()}
        else:
            is_float = key == function.differentiable[0] or key in result.grads
            inputs[key] = float_array(_whole(given[key], key), key) if is_float else _array(given[key], key)
    return Case(name, name, inputs, _parameters(function, given), _cotangent(given.get("grad_output", 1.0)))


def is_in_parts(value: Any) -> bool:
    """Whether an argument that is cut, or its gradient, is a list of the parts."""
    return isinstance(value, list | tuple)


def joined(value: Any, name: str) -> Any:
    """Parts side by side; anything else as it is."""
    return np.concatenate([on_host(part, name) for part in value], axis=-1) if is_in_parts(value) else value


def as_one(result: LossResult) -> LossResult:
    """A result whose gradients are arrays, in the place of lists of parts."""
    return replace(result, grads={name: joined(value, name) for name, value in result.grads.items()})


def changed_since(case: Case, result: LossResult) -> bool:
    """Whether the arrays of a call no longer give its loss, as where a kernel has written its gradient over them.

    The loss alone costs 1 to 3 % of what its bounds do, and a sixth where boxes are matched.
    """
    call = FUNCTIONS[case.function].call
    again = call(**nested(case.inputs), **case.parameters, grad_output=case.grad_output, grad=False)
    return not np.array_equal(again.loss, on_host(result.loss, "loss"), equal_nan=True)


def _whole(value: Any, name: str) -> Any:
    """An array, of a list of arrays or of numbers as well: those are for float_array."""
    if not isinstance(value, list | tuple):
        return on_host(value, name)
    parts = [hasattr(part, "shape") for part in value]
    return np.stack([on_host(part, f"{name}[{i}]") for i, part in enumerate(value)]) if any(parts) else value


def _array(value: Any, name: str) -> np.ndarray:
    array = on_host(value, name)
    return float_array(array, name) if array.dtype.newbyteorder("=") in FLOAT_DTYPES else array


def _parameters(function: Function, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are no arrays, numbers as Python's."""
    given = _configured(function, given)
    parameters = {key: given[key] for key in (*function.parameters, _ASSIGNMENT) if given.get(key) is not None}
    for key, kind in function.parameters.items():
        if key in parameters and kind is float:
            parameters[key] = float(number(on_host(parameters[key], key), key))
        elif key in parameters and kind is int:
            parameters[key] = int(parameters[key])
    return parameters


def _configured(function: Function, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same with what a configuration is read for: as a mapping, or in the place of arguments that are not given."""
    config, parameter = given.get("config"), function.specification.parameters.get("config")
    if config is None or parameter is None or not parameter.keys:
        return given
    read = {key: configuration.read(config, key, default=_ABSENT) for key in parameter.keys}
    read = {key: value for key, value in read.items() if value is not _ABSENT}
    if parameter.on_command_line:
        return {**given, "config": config if isinstance(config, Mapping) else read}
    return read | {key: value for key, value in given.items() if value is not None}


def _cotangent(given: Any) -> Any:
    if isinstance(given, Mapping):
        return {name: _cotangent(value) for name, value in given.items()}
    array = on_host(given, "grad_output")
    return array if array.ndim else float(array)
