"""Any framework's function, called with NumPy's arrays."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss.files import nested
from refloss.testing.judging.called import on_host

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.cases.source import Case

COMPONENT, GRAD = "component.", "grad."


class Returned(NamedTuple):
    """What a function returned: its loss, gradients and components by the names of golden files."""

    loss: Any
    tensors: dict[str, Any]
    has_components: bool


class Driver:
    """A function, called as fn(inputs, parameters, grad_output), and how arrays come to its framework and back."""

    def __init__(
        self,
        function: Callable[..., Any],
        to_native: Callable[[np.ndarray], Any] | None,
        from_native: Callable[[Any], Any] | None,
    ) -> None:
        self._function = function
        self._to_native = to_native or _same
        self._from_native = from_native or _same

    def native(self, case: Case) -> Case:
        """A case with the framework's arrays, of copies; numbers stay as they are."""
        return _each(case, lambda value, _: self._to_native(value.copy()) if isinstance(value, np.ndarray) else value)

    def held(self, native: Case) -> Case:
        """A case with copies of what the framework's arrays hold now: a function may write to them."""
        return _each(native, lambda value, name: value if _is_number(value) else self.array(value, name).copy())

    def call(self, native: Case) -> Returned:
        """What the function returns, in its framework's arrays."""
        returned = self._function(nested(native.inputs), copy.deepcopy(native.parameters), native.grad_output)
        if not isinstance(returned, tuple | list) or len(returned) not in (2, 3):
            what = f"{len(returned)} values" if isinstance(returned, tuple | list) else f"a {type(returned).__name__}"
            raise TypeError(f"{what} returned; expected (loss, grads) or (loss, grads, components)")
        loss, grads, *more = returned
        return Returned(loss, named(None, grads, more[0] if more else None), bool(more))

    def array(self, value: Any, name: str) -> np.ndarray:
        """A framework's array on the host."""
        return on_host(self._from_native(value), name)


def named(loss: Any, grads: Any, components: Any) -> dict[str, Any]:
    """A candidate's tensors under the names that golden files use."""
    tensors = {} if loss is None else {"loss": loss}
    for prefix, argument, given in ((COMPONENT, "components", components), (GRAD, "grads", grads)):
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f"{argument} is of type {type(given).__name__}; expected a mapping from names to arrays")
        tensors |= {f"{prefix}{name}": value for name, value in (given or {}).items()}
    return tensors


def _each(case: Case, convert: Callable[[Any, str], Any]) -> Case:
    inputs = {name: convert(value, name) for name, value in case.inputs.items()}
    given, upstream = case.grad_output, "grad_output"
    if isinstance(given, Mapping):
        return case._replace(
            inputs=inputs, grad_output={name: convert(value, upstream) for name, value in given.items()}
        )
    return case._replace(inputs=inputs, grad_output=convert(given, upstream))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Mapping)


def _same(value: Any) -> Any:
    return value
