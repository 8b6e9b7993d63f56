"""Every function in words that any language reads: what refloss list --json prints.

All of it follows from specifications, signatures and docstrings. definitions.schema.json describes the form, and
docs/golden_format.md tells how it belongs to golden files.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import refloss
from refloss.arrays import FLOAT_DTYPES
from refloss.options import Options
from refloss.registry import FUNCTIONS
from refloss.specification import Part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refloss.registry import Function
    from refloss.specification import Argument, Parameter, Specification

FORMAT = 1
SCHEMA = Path(__file__).with_name("definitions.schema.json")

_KINDS = {float: "number", int: "integer", str: "word", bool: "flag", dict: "mapping"}
_DTYPES = {
    "float": [dtype.name for dtype in FLOAT_DTYPES],
    "integer": [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)],
    "bool": ["bool"],
}
# What arrays of a role hold, where it is not floats.
_NUMBERS = {
    **dict.fromkeys(("labels", "sequences", "lengths", "indices"), ("integer",)),
    "classes": ("integer", "float"),
    "mask": ("bool", "integer", "float"),
}

Shape = list[str]


def definitions() -> dict[str, Any]:
    """All functions, their own and what they have in common."""
    return {
        "format": FORMAT,
        "refloss": refloss.__version__,
        "functions": [definition(function) for function in FUNCTIONS.values()],
    }


def definition(function: Function) -> dict[str, Any]:
    """A function: what it takes, what it returns, and what its gradients hold constant."""
    specification = function.specification
    signature = inspect.signature(function.call).parameters
    return {
        "name": function.name,
        "summary": function.summary,
        "follows": specification.follows,
        "loss_mapping": list(specification.keys),
        "signature": list(signature),
        "arguments": [_argument(specification, name, signature[name]) for name in specification.arguments],
        "parameters": [
            _parameter(name, parameter, signature[name]) for name, parameter in specification.parameters.items()
        ],
        "options": [name for name in signature if name in (*Options._fields, "assignment")],
        "outputs": _outputs(specification),
        "held_constant": held_constant(function),
    }


def held_constant(function: Function) -> str:
    """What the gradients of a function take for constants, in its docstring's words; empty if it does not say so."""
    found = re.search(r"Held\s+constant:\s*(.*?)(?:\n\n|\Z)", inspect.getdoc(function.call) or "", re.DOTALL)
    return " ".join(found[1].split()).removesuffix(".") if found else ""


def shapes(specification: Specification, name: str) -> list[Shape]:
    """The shapes that an argument may have, as the names of their axes; "..." are any more of them."""
    argument = specification.arguments[name]
    if argument.shape:
        return [shape.split() for shape in argument.shape.split("|")]
    if argument.of:
        whole = shapes(specification, argument.of)
        rows = [_rows(shape, specification.arguments[argument.of]) for shape in whole]
        return rows + (whole if argument.role == "classes" else [])
    if argument.role == "boxes":
        return [["...", "4"]]
    if argument.class_axis is not None:
        return {0: [["C"]], 1: [["N", "C", "..."], ["C"]], -1: [["...", "C"]]}[argument.class_axis]
    return [[*("N", "K")[: specification.axes], "..."]]


def _rows(shape: Shape, argument: Argument) -> Shape:
    """A shape without the axis of classes."""
    axis = argument.class_axis if argument.class_axis is not None else -1
    axis = axis % len(shape) if axis < len(shape) else 0
    return shape[:axis] + shape[axis + 1 :]


def _dtypes(numbers: Sequence[str]) -> list[str]:
    return [dtype for kind in numbers for dtype in _DTYPES[kind]]


def _argument(specification: Specification, name: str, signature: inspect.Parameter) -> dict[str, Any]:
    argument = specification.arguments[name]
    told: dict[str, Any] = {
        "name": name,
        "role": argument.role,
        "required": not argument.optional,
        "keyword_only": signature.kind is signature.KEYWORD_ONLY,
        "differentiable": argument.differentiable,
    }
    if argument.nested:
        return told | {"structure": _structure(argument.parts)}
    numbers = argument.numbers or _NUMBERS.get(argument.role, ("float",))
    told |= {"shapes": shapes(specification, name), "dtypes": _dtypes(numbers), "broadcast": argument.broadcast}
    if argument.of:
        told |= {"classes_of": argument.of, "shift": argument.shift, "ignored": argument.ignored}
    return told


def _structure(parts: Any) -> dict[str, Any]:
    """What is in a list or a mapping."""
    if isinstance(parts, Part):
        return {"shape": parts.shape.split(), "dtypes": _dtypes(parts.numbers)}
    if isinstance(parts, Mapping):
        return {"mapping": {key: _structure(part) for key, part in parts.items()}}
    return {"list": _structure(parts[0])} if parts else {}


def _parameter(name: str, parameter: Parameter, signature: inspect.Parameter) -> dict[str, Any]:
    required = signature.default is signature.empty
    told = {
        "name": name,
        "kind": _KINDS[parameter.kind],
        "required": required,
        "keyword_only": signature.kind is signature.KEYWORD_ONLY,
        "in_golden_files": parameter.on_command_line,
    }
    if not required:
        told["default"] = signature.default
    if parameter.kind is str:
        told["words"] = list(parameter.words or parameter.values)
    elif parameter.kind is dict:
        told["keys"] = list(parameter.keys)
    return told


def _outputs(specification: Specification) -> dict[str, Any]:
    """Names and shapes of what a result has; a loss has axes only where a parameter asks for no reduction."""
    unreduced: list[Shape] = []
    words = [getattr(specification.parameters.get(name), "values", ()) for name in ("reduction", "aggregation")]
    if not specification.reduces or any("none" in values for values in words):
        first = specification.required[0]
        unreduced = shapes(specification, first)
        if specification.losses:
            unreduced = [shape.split() for shape in specification.losses.split("|")]
        elif specification.per == "row":
            unreduced = [_loss_of_rows(specification, shape) for shape in unreduced]
        if specification.per == "sample":
            unreduced = [shape[:1] for shape in unreduced]
    return {
        "loss": {"dtype": "float64", "shapes_without_reduction": unreduced},
        "components": list(specification.components),
        "grads": list(specification.differentiable),
        "intermediates": list(specification.intermediates),
        "layered": specification.layered,
    }


def _loss_of_rows(specification: Specification, shape: Shape) -> Shape:
    first = specification.arguments[specification.required[0]]
    if first.role == "vectors":
        return shape[:-1]
    if first.class_axis is None and first.role != "boxes":
        return shape[:1]  # rows are all along the first axis
    return _rows(shape, first)
