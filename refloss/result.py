"""What every loss returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
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
