"""What every loss returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np


class Intermediates(dict[str, Any]):
    """Intermediate values; those in ``later`` are computed when they are first asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.later: dict[str, Callable[[], Any]] = {}

    def __missing__(self, name: str) -> Any:
        if name not in self.later:
            raise KeyError(name)
        self[name] = self.later.pop(name)()
        return self[name]


@dataclass(frozen=True, eq=False)
class LossResult:
    """A loss, its gradients and what lies between.

    Attributes:
        loss: float64; an array for ``reduction="none"``.
        grads: for every differentiable input its vector-Jacobian product with ``grad_output``, in the input's shape and
            dtype; empty with ``grad=False``.
        components: the parts of a composite loss under the names that transformers gives them.
        intermediates: values on the way, for tensor-by-tensor debugging.
    """

    loss: Any
    grads: dict[str, np.ndarray] = field(default_factory=dict)
    components: dict[str, Any] = field(default_factory=dict)
    intermediates: dict[str, Any] = field(default_factory=dict)
