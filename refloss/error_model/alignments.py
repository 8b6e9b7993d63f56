"""How far an honest sum over alignments may be from the exact one.

It adds logarithms. In each of T frames the logarithm of a state's probability, of magnitude A at most, is rounded after
the log-probability has been added, and so are the k parts (STEPS) of a log-add-exp, up to log 3 each. With d_t(k) what
the log-probability itself is off by, an alignment's logarithm, and that of the sum of all, is off by

    D ≤ T·(u·A + k·u) + Σ_t d_t,    A = |L| + T·log 3

since no state that matters is less probable than the whole, and there are no more alignments than 3^T. A share γ is the
quotient of two such sums, and p has an error of its own:

    |δL| ≤ D,    |δg| ≤ |c|·((k·u + e^2D − 1)·γ + (k·u + e^d − 1)·p + tiny)

over what a mean divides by, with γ ≤ p + |g/c| from the right answer. Of a softmax, with the notation of softmax.py,
d_t = v·(a_k + Σ p·a + 4) + s(C) + u·(1 + log Z + |log p_k|); over the frames of an alignment a_k and |log p_k| add up
to A at most.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from refloss.error_model.bound import Bound, whole
from refloss.roundoff import STEPS, Roundoff, real

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refloss.cases.source import Case
    from refloss.result import LossResult


def ctc(case: Case, result: LossResult, unit: Roundoff) -> Mapping[str, Bound]:
    """Of log-probabilities [T, N, C] or [T, C]."""
    x = real(case.inputs["log_probs"])
    given = x if x.ndim == 3 else x[:, None]
    lengths = np.reshape(case.inputs["target_lengths"], -1)
    frames, right = np.reshape(case.inputs["input_lengths"], -1), _right(result, "log_probs")
    right = right.reshape(given.shape).transpose(1, 0, 2)
    bound = _bounds(case, result, unit, given.transpose(1, 0, 2), right, frames, lengths)
    of_gradient = bound["gradient"].transpose(1, 0, 2).reshape(x.shape)
    return {
        "loss": whole(bound["loss"].reshape(np.shape(result.loss))),
        "grad.log_probs": whole(of_gradient),
        "intermediate.nll": whole(bound["nll"].reshape(np.shape(result.intermediates["nll"]))),
    }


def ctc_of_logits(case: Case, result: LossResult, unit: Roundoff) -> Mapping[str, Bound]:
    """Of logits [B, T, V]."""
    labels, blank = case.inputs["labels"], case.parameters["blank_token_id"]
    counts = (labels != case.parameters.get("ignore_index", -100)) & (labels != blank)
    x, frames = real(case.inputs["logits"]), case.inputs["logit_lengths"]
    right = _right(result, "logits")
    bound = _bounds(case, result, unit, x, right, frames, counts.sum(axis=1), is_softmax=True)
    return {
        "loss": whole(bound["loss"]),
        "grad.logits": whole(bound["gradient"]),
        "intermediate.nll": whole(bound["nll"]),
    }


def _bounds(
    case: Case,
    result: LossResult,
    unit: Roundoff,
    x: np.ndarray,
    right: np.ndarray,
    frames: np.ndarray,
    labels: np.ndarray,
    *,
    is_softmax: bool = False,
) -> dict[str, np.ndarray]:
    count, reduction = len(x), case.parameters.get("reduction", "mean")
    nll = np.abs(real(result.intermediates["nll"]).reshape(-1))
    length = frames[:, None] > np.arange(x.shape[1])
    size = nll + frames * math.log(3.0)
    off = frames * unit.between * (size + STEPS)
    log_p, of_element = x, np.zeros(x.shape)
    if is_softmax:
        log_p, of_element, of_frame = _softmax(x, unit)
        off = off + np.where(length, of_frame, 0.0).sum(axis=1) + (unit.between + unit.inside) * size
    over = np.maximum(labels, 1) * count if reduction == "mean" else np.ones(count)
    c = np.broadcast_to(np.abs(real(case.grad_output)), count) / over
    p, factor, steps = np.exp(log_p), c[:, None, None], STEPS * unit.between
    gamma = p + np.where(factor > 0.0, np.abs(right) / factor, 0.0)
    each = (steps + np.expm1(2.0 * off))[:, None, None] * gamma + (steps + np.expm1(of_element)) * p + unit.tiny
    gradient = np.where(length[:, :, None], factor * each + unit.tiny, 0.0)
    known = np.isfinite(nll)
    of_nll = np.where(known, off + unit.tiny, 0.0)
    added = (steps + unit.sum(count)) * np.where(known, nll, 0.0)
    total = of_nll if reduction == "none" else ((of_nll + added) / over).sum()
    return {"loss": np.asarray(total), "nll": of_nll, "gradient": np.where(known[:, None, None], gradient, 0.0)}


def _right(result: LossResult, name: str) -> np.ndarray:
    """The right gradient."""
    return real(result.grads[name])


def _softmax(x: np.ndarray, unit: Roundoff) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log p, what it is off by, and the part of that which all classes of a frame have."""
    maximum = x.max(axis=-1, keepdims=True, initial=-np.inf)
    distance = np.where(np.isneginf(x), 0.0, maximum - x)
    terms = np.exp(x - maximum)
    total = terms.sum(axis=-1, keepdims=True)
    log_total, spread = np.log(total), (terms * distance).sum(axis=-1, keepdims=True) / total
    of_frame = unit.inside * (spread + 4.0) + unit.sum(x.shape[-1]) + 4.0 * unit.inside + unit.between * (1 + log_total)
    log_p = x - maximum - log_total
    own = unit.inside * distance + unit.between * np.where(np.isneginf(x), 0.0, np.abs(log_p))
    return log_p, of_frame + own, of_frame[..., 0]
