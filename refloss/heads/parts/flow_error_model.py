"""How far an honest loss of flow matching and self-distillation may be from the exact one.

Notation as in error_model.elementwise: k roundings of u, sums of n terms s(n). A residual r = x + δ·y − z is a sum of
terms R = |x| + (|e| + |s|)·|y| + |z|, off by ρ = k·u·R. Then, with a = |r|², D numbers a row, E = e^w/D, which is off
by η = k·u·(1 + |w|) of it, and c = |κ| the cotangent of a row's term over the number of rows,

    |δa|      ≤ Σ (2·|r|·ρ + ρ²) + s(D)·a                    |δ(a·E)| ≤ E·|δa| + η·a·E
    |δ∂x_j|   ≤ 2·c·E·(ρ_j + η·|r_j|), that of y (|e| + |s|) times as much, that of z the sum over draws and s(n) more
    |δ∂e|     ≤ 2·c·E·Σ |y|·(ρ + (η + s(D))·|r|)
    |δ∂w|     ≤ c·(|δ(a·E)| + k·u·(a·E + 1))                 |δW| ≤ |δ(a·E)| + k·u·(a·E + |w|)

and a component, the mean of N terms W, is off by their mean and s(N) of the mean of a·E + |w|. What is smaller than
tiny may be lost: a residual, before E and the cotangent multiply it, a square, a term.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss.error_model import elementwise
from refloss.losses.bce_with_logits import bce_with_logits
from refloss.registry import FUNCTIONS
from refloss.roundoff import STEPS, Roundoff, real
from refloss.specification import Elementwise

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from refloss.result import LossResult

_DEFAULTS = {"lsd_diagonal_weight": 0.75, "lsd_distill_probability": 0.25, "eos_loss_weight": 0.1}


class _Rows(NamedTuple):
    """A term's arrays, float64."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    start: np.ndarray
    end: np.ndarray
    w: np.ndarray


def pocket_tts(case: Case, _: LossResult, unit: Roundoff) -> dict[str, Any]:
    """Those of both terms, and of the end of speech."""
    inputs, weights = case.inputs, _weights(case)
    cotangents = _cotangents(case.grad_output, weights)
    rows = len(inputs["velocity"])
    samples = rows // len(inputs["targets"]) if rows else 1
    ones = np.ones((rows, 1))
    names = ("velocity", "noise", "targets", "", "", "log_variance")
    data = np.tile(real(inputs["targets"]), (samples, 1))
    diagonal = _Rows(
        real(inputs["velocity"]), real(inputs["noise"]), data, 0 * ones, ones, _column(inputs["log_variance"])
    )
    limits: dict[str, Any] = {}
    losses: dict[str, np.ndarray] = {}
    losses["flow_diagonal"], found = _term(diagonal, cotangents["flow_diagonal"], unit, samples)
    limits |= _named(found, names, inputs)
    if "jump_velocity" in inputs:
        names = ("jump_velocity", "jump_velocity_dt", "end_velocity", "start_times", "end_times", "jump_log_variance")
        jump = _Rows(*(real(inputs[name]) for name in names[:3]), *(_column(inputs[name]) for name in names[3:]))
        losses["flow_distill"], found = _term(jump, cotangents["flow_distill"], unit, 1)
        limits |= _named(found, names, inputs)
    limits |= _end_of_speech(case, cotangents["eos"], unit)
    losses["eos"] = limits.pop("eos")
    return limits | _losses(losses, weights, unit)


def _weights(case: Case) -> dict[str, float]:
    given = _DEFAULTS | {name: value for name, value in case.parameters.items() if name in _DEFAULTS}
    diagonal, probability, eos = given.values()
    probability = probability if case.parameters.get("training", True) else 1.0
    distill = (1.0 - diagonal) / probability if "jump_velocity" in case.inputs else 0.0
    return {"flow_diagonal": diagonal, "flow_distill": distill, "eos": eos}


def _cotangents(given: Any, weights: Mapping[str, float]) -> dict[str, float]:
    if isinstance(given, Mapping):
        return {name: abs(float(given.get(name, 0.0))) for name in weights}
    return {name: abs(float(given) * weight) for name, weight in weights.items()}


def _column(values: np.ndarray) -> np.ndarray:
    return real(values).reshape(-1, 1)


def _term(rows: _Rows, cotangent: float, unit: Roundoff, samples: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The bounds of a term's mean and its magnitude, and of gradients by the names of _Rows."""
    count, size = rows.x.shape
    step = np.abs(rows.end) + np.abs(rows.start)
    r = np.abs(rows.x + (rows.end - rows.start) * rows.y - rows.z)
    off = STEPS * unit.between * (np.abs(rows.x) + step * np.abs(rows.y) + np.abs(rows.z)) + 3 * unit.tiny
    scale, of_scale = np.exp(rows.w) / size, STEPS * unit.between * (1.0 + np.abs(rows.w))
    length = (r * r).sum(axis=1, keepdims=True)
    of_length = (2 * r * off + off * off + unit.tiny).sum(axis=1, keepdims=True) + unit.sum(size) * length
    weighted = length * scale
    of_weighted = scale * of_length + of_scale * weighted + unit.tiny
    c = cotangent / np.float64(max(count, 1))
    factor = 2 * c * scale
    # What multiplies a residual may be lost where it is small, as the result may.
    lost = unit.tiny * (1.0 + c + (1.0 + scale) * r)
    slope = factor * (off + of_scale * r) + lost
    along = np.abs(rows.y)
    of_time = (along * slope + unit.sum(size) * factor * r * along).sum(axis=1, keepdims=True) + unit.tiny
    of_draws = (slope + unit.sum(samples) * factor * r).reshape(samples, count // samples, size).sum(axis=0)
    of_w = c * (of_weighted + STEPS * unit.between * (weighted + 1.0)) + unit.tiny * (1.0 + c)
    value = of_weighted + STEPS * unit.between * (weighted + np.abs(rows.w))
    terms = weighted + np.abs(rows.w)
    mean = np.array([(value + unit.sum(count) * terms).mean(), terms.mean()])
    return mean, {
        "x": slope,
        "y": step * slope + unit.tiny,
        "z": of_draws,
        "start": of_time,
        "end": of_time,
        "w": of_w,
    }


def _named(found: Mapping[str, np.ndarray], names: tuple[str, ...], inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {
        f"grad.{name}": found[key].reshape(inputs[name].shape)
        for key, name in zip(_Rows._fields, names, strict=True)
        if name
    }


def _end_of_speech(case: Case, cotangent: float, unit: Roundoff) -> dict[str, Any]:
    specification = FUNCTIONS[bce_with_logits.__name__].specification
    assert isinstance(specification, Elementwise)
    logits, labels = case.inputs["eos_logits"], case.inputs["eos_labels"]
    given = {"logits": logits, "target": (labels != 0).astype(np.float64)}
    limits = elementwise.bounds(specification, case._replace(inputs=given, parameters={}, grad_output=cotangent), unit)
    size = np.logaddexp(0.0, np.abs(real(logits))).mean() if logits.size else np.nan
    return {"grad.eos_logits": limits["grad.logits"], "eos": np.array([np.asarray(limits["loss"]), size])}


def _losses(losses: Mapping[str, np.ndarray], weights: Mapping[str, float], unit: Roundoff) -> dict[str, Any]:
    """The components', and the total's: off by what they are, and by the roundings of their products and sum."""
    total = sum(weights[name] * (off + STEPS * unit.between * size) for name, (off, size) in losses.items())
    components = {f"component.{name}": losses[name][0] if name in losses else 0.0 for name in weights}
    return components | {"loss": total}
