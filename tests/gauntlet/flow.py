"""Flow matching with self-distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tests.gauntlet.kernels import Kernel, sigmoid, softplus

if TYPE_CHECKING:
    from tests.gauntlet.kernels import Answer

DEFAULTS = {"lsd_diagonal_weight": 0.75, "lsd_distill_probability": 0.25, "eos_loss_weight": 0.1, "training": True}


class Term(NamedTuple):
    """The names of a term's arrays."""

    x: str
    y: str
    z: str
    start: str
    end: str
    w: str


DIAGONAL = Term("velocity", "noise", "targets", "", "", "log_variance")
DISTILLED = Term("jump_velocity", "jump_velocity_dt", "end_velocity", "start_times", "end_times", "jump_log_variance")


class PocketTts(Kernel):
    """Residuals x + δ·y − z, and their weighted mean squares."""

    def options(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Those that are given, and defaults."""
        return DEFAULTS | parameters

    def data(self, values: np.ndarray, rows: int) -> np.ndarray:
        """Frames for each of their draws."""
        return np.tile(values, (rows // max(len(values), 1), 1))

    def times(self, values: dict[str, Any], term: Term) -> tuple[Any, Any]:
        """Where a jump begins and ends."""
        return values[term.start].reshape(-1, 1), values[term.end].reshape(-1, 1)

    def term(self, values: dict[str, Any], term: Term, c: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Its mean over rows, and gradients for a cotangent."""
        x, y = values[term.x], values[term.y]
        z, w = self.data(values[term.z], len(x)), values[term.w].reshape(-1, 1)
        start, end = self.times(values, term) if term.start else (x.dtype.type(0), x.dtype.type(1))
        r, factor = x - z + (end - start) * y, np.exp(w) / x.dtype.type(x.shape[1])
        weighted = self.sum(r * r, axis=1)[:, None] * factor
        c = c / x.dtype.type(len(x))
        slope = 2 * c * factor * r
        along = self.sum(slope * y, axis=1)
        frames = slope.reshape(-1, *values[term.z].shape)
        grads = {term.x: slope, term.y: (end - start) * slope, term.z: -self.sum(frames, axis=0)}
        grads |= {term.w: c * (weighted - 1)} | ({term.start: -along, term.end: along} if term.start else {})
        return self.sum(weighted - w) / x.dtype.type(len(x)), grads

    def ends(self, values: dict[str, Any], labels: np.ndarray, c: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Where speech ends."""
        x = values["eos_logits"]
        sign = np.where(labels != 0, -1, 1).astype(x.dtype)
        count = x.dtype.type(x.size)
        return self.sum(softplus(sign * x)) / count, {"eos_logits": c / count * sign * sigmoid(sign * x)}

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """The loss, its gradients and components."""
        values = {name: self.widened(value) for name, value in inputs.items() if name != "eos_labels"}
        given = self.options(parameters)
        real = values["velocity"].dtype.type
        diagonal, probability = given["lsd_diagonal_weight"], given["lsd_distill_probability"]
        weights = {
            "flow_diagonal": real(diagonal),
            "flow_distill": real((1 - diagonal) / (probability if given["training"] else 1.0)),
            "eos": real(given["eos_loss_weight"]),
        }
        c = self.upstream(cotangent, values["velocity"])
        found = {"flow_diagonal": self.term(values, DIAGONAL, c * weights["flow_diagonal"])}
        if DISTILLED.x in inputs:
            found["flow_distill"] = self.term(values, DISTILLED, c * weights["flow_distill"])
        found["eos"] = self.ends(values, inputs["eos_labels"], c * weights["eos"])
        loss = sum(weights[name] * value for name, (value, _) in found.items())
        grads = {name: gradient for _, own in found.values() for name, gradient in own.items()}
        components = {name: found[name][0] if name in found else real(0) for name in weights}
        shaped = {name: value.reshape(inputs[name].shape).astype(inputs[name].dtype) for name, value in grads.items()}
        return loss, shaped, components
