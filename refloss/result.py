"""What every loss returns."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from refloss import subnormals

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np


class Intermediates(dict[str, Any]):
    """Intermediate values; those in ``later`` are computed when they are first asked for, by ``[name]``.

    Until then they are not among the keys, and a copy or a pickle does not have them.
    """

    def __init__(self, *values: Any, **later: Callable[[], Any]) -> None:
        super().__init__(*values)
        self.later = later

    def renamed(self, prefix: str = "", suffix: str = "") -> Intermediates:
        """The same with a prefix or a suffix to every name."""
        later = {f"{prefix}{name}{suffix}": functools.partial(self.__getitem__, name) for name in self.later}
        return Intermediates({f"{prefix}{name}{suffix}": value for name, value in self.items()}, **later)

    def include(self, others: Intermediates) -> None:
        """Take over the values of others."""
        self.update(others)
        self.later.update(others.later)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)

    def __missing__(self, name: str) -> Any:
        if name not in self.later:
            raise KeyError(name)
        self[name] = subnormals.kept(self.later.pop(name))
        return self[name]


class Call(NamedTuple):
    """What was asked: a public function and its arguments, which are not copied."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]

    def named(self) -> dict[str, Any]:
        """The arguments that were given, by name, those that the function ignores included."""
        signature = inspect.signature(self.function)
        named = signature.bind(*self.arguments, **self.keywords).arguments
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                named |= named.pop(name, {})
        return named


@dataclass(frozen=True, eq=False)
class LossResult:
    """A loss, its gradients and what lies between.

    Attributes:
        loss: float64; an array for ``reduction="none"``.
        grads: for every differentiable input its vector-Jacobian product with ``grad_output``, in the input's shape and
            dtype; empty with ``grad=False``.
        components: the parts of a composite loss under the names that transformers gives them.
        intermediates: values on the way, for tensor-by-tensor debugging.
        call: what was asked, so that a candidate can be judged. It keeps the arguments alive as long as the result; a
            copy or a pickle does not have it.
    """

    loss: Any
    grads: dict[str, np.ndarray] = field(default_factory=dict)
    components: dict[str, Any] = field(default_factory=dict)
    intermediates: Intermediates = field(default_factory=Intermediates)
    call: Call | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # A pickle that took the inputs along would be as large as they are.
        return {**self.__dict__, "call": None}
