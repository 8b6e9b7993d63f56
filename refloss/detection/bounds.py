"""How far an honest head that matches may be from the exact one: its layers, and the sum of their components."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.detection.layer_error_model import Head, Layer
from refloss.detection.quality_error_model import QualityLayer
from refloss.roundoff import STEPS, Roundoff

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from refloss.result import LossResult


def head_bounds(case: Case, result: LossResult, unit: Roundoff) -> dict[str, np.ndarray]:
    """Of the loss, its components and its gradients, with the oracle's own matching."""
    head = Head(case, result, unit)
    kind = Layer if head.specification.classes in ("cross-entropy", "focal") else QualityLayer
    limits = {f"grad.{name}": np.zeros(np.shape(value)) for name, value in result.grads.items()}
    total = STEPS * unit.between * float(sum(abs(float(value)) for value in result.components.values()))
    for layer in result.layers:
        of_layer = kind(head, layer).bounds()
        for name, argument in layer.inputs.items():
            bound = of_layer.pop(name, 0.0)
            if f"grad.{argument}" in limits:
                limits[f"grad.{argument}"][layer.index] += bound
        for name, bound in of_layer.items():
            weight = abs(layer.weights[name])
            total += weight * bound
            limits[f"component.{name}{layer.suffix}"] = np.asarray(bound * (weight if layer.is_weighted else 1.0))
    return limits | {"loss": np.asarray(total)}
