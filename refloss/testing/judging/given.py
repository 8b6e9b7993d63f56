"""Anyone's arrays as a golden case."""

from __future__ import annotations

import copy
import mmap
from typing import Any

import numpy as np

from refloss.registry import FUNCTIONS
from refloss.testing.judging.callables import GoldenCase
from refloss.testing.judging.called import called
from refloss.testing.judging.selection import check_names

# What decides how a call is computed, or what refloss matches, and not what it is.
_NOT_OF_A_CASE = ("assignment", "backend", "grad", "grad_dtype", "out")


def golden_case(function: str, *, id: str | None = None, grad_output: Any = 1.0, **arguments: Any) -> GoldenCase:  # noqa: A002
    """A golden case of arrays of your own, usable wherever a built-in one is.

    Args:
        function: the name of refloss's function.
        id: the case's; the function's name if not given.
        grad_output: the upstream gradient: a number, an array for reduction="none", or a mapping of components.
        **arguments: as the function takes them, arrays of any framework. They are copied, but for files that are mapped
            to be read; of a configuration that is no mapping, what the function reads of it is kept.

    Raises:
        ValueError, TypeError: what the function itself refuses, in its own words.
    """
    check_names("function", [function], FUNCTIONS)
    wrong = [name for name in _NOT_OF_A_CASE if name in arguments]
    if wrong:
        raise TypeError(f"a golden case has no {', '.join(wrong)}: it is inputs, parameters and grad_output alone")
    result = FUNCTIONS[function].call(**arguments, grad_output=grad_output)
    if result is None:
        raise ValueError(f"{function} has no loss of these arguments")
    case = called(result)
    inputs = {name: value if _is_file(value) else value.copy() for name, value in case.inputs.items()}
    cotangent = copy.deepcopy(case.grad_output)
    return GoldenCase(case._replace(id=id or function, inputs=inputs, grad_output=cotangent))


def _is_file(array: np.ndarray) -> bool:
    """Whether an array is a file that is mapped, and that nobody can write to by it."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, mmap.mmap) and not array.flags.writeable
