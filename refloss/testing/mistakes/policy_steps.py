"""Mistaken gradients of policies, simulated in float64: what is held constant and is not, and a mean that is a sum."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refloss.error_model.tokens import counts_of, weights_of
from refloss.golden.store import evaluate
from refloss.roundoff import real
from refloss.testing.mistakes.guess import COMMON, USUAL, Guess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.cases.source import Case
    from refloss.testing.verdict import Question

CLIP_NOT_HELD = "the gradient passes through the clipped ratio, which is held constant"
RATIO_HELD = "the ratio that weighs the KL is held constant"
NOT_DIVIDED = "the gradient of a sequence's mean is not divided by its length"
_NAME = "grad.log_probs"


class _Right(NamedTuple):
    """A case's right gradient, and what it is made of; all [B, T], and 0 where tokens do not count."""

    gradient: np.ndarray
    ratio: np.ndarray
    kl: np.ndarray
    kl_slope: np.ndarray  # of log π, beside its ratio
    inputs: dict[str, np.ndarray]
    upstream: np.ndarray  # the cotangent of a token's loss
    lengths: np.ndarray | None  # of sequences, [B, 1], where ratios are theirs

    def through_ratio(self, slopes: np.ndarray) -> np.ndarray:
        """Slopes in the logarithms of ratios as those of log-probabilities."""
        slopes = self.upstream * slopes
        return slopes if self.lengths is None else slopes.sum(axis=1, keepdims=True) / self.lengths


def _right(case: Case) -> _Right:
    counts, options = counts_of(case), case.parameters
    inputs = {name: real(value) for name, value in case.inputs.items() if name != "mask"}
    wide = {name: np.where(counts, value[:, None] if value.ndim == 1 else value, 0.0) for name, value in inputs.items()}
    given = case._replace(inputs=case.inputs | inputs)
    result = evaluate(given)
    q, kl = wide.get("ref_log_probs", wide["log_probs"]) - wide["log_probs"], options.get("kl")
    is_sequence = options.get("ratio") == "sequence"
    return _Right(
        gradient=result.grads["log_probs"],
        ratio=result.intermediates["ratio"],
        kl=result.intermediates["kl"] if kl else np.zeros(q.shape),
        kl_slope={"k1": np.ones(q.shape), "k2": -q, "k3": -np.expm1(q)}.get(str(kl), np.zeros(q.shape)),
        inputs=wide,
        upstream=np.where(counts, real(case.grad_output) * weights_of(case), 0.0),
        lengths=np.maximum(counts.sum(axis=1, keepdims=True), 1) if is_sequence else None,
    )


def of_policies(asked: Question) -> Iterator[Guess]:
    """Those of policy_loss; none of another function."""
    case = asked.case
    if case.function != "policy_loss" or not case.inputs["log_probs"].size:
        return
    right, options = _right(case), case.parameters
    weight = options.get("kl_coef", 0.0) * (right.ratio if options.get("kl_ratio_weighted") else 1.0)
    direct = weight * right.kl_slope
    if options.get("objective") == "cispo":
        slope, is_inside = _cispo(right, case)
        direct = direct + slope
        extra = right.through_ratio(np.where(is_inside, slope * right.inputs["log_probs"], 0.0))
        yield _guess(CLIP_NOT_HELD, COMMON, right, extra)
    if options.get("kl_ratio_weighted") and options.get("kl_coef"):
        yield _guess(RATIO_HELD, USUAL, right, -right.through_ratio(weight * right.kl))
    if right.lengths is not None:
        shared = right.gradient - right.upstream * direct
        yield _guess(NOT_DIVIDED, USUAL, right, (right.lengths - 1) * shared, right.upstream * direct)


def _cispo(right: _Right, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The slope −w·clip(r)·A, and where the ratio is within the clip."""
    low, high = case.parameters.get("clip_low", 0.2), case.parameters.get("clip_high")
    least, most = -np.inf if low is None else 1 - low, 1 + (low if high is None else high)
    held = np.clip(right.ratio, least, most)
    return -right.inputs.get("weights", 1.0) * held * right.inputs["advantages"], held == right.ratio


def _guess(mistake: str, prior: float, right: _Right, extra: np.ndarray, beside: np.ndarray | float = 0.0) -> Guess:
    extra = np.where(right.upstream != 0, extra, 0.0)
    size = np.abs(right.gradient) + np.abs(extra) + np.abs(beside)
    return Guess(mistake, prior, {_NAME: right.gradient + extra}, magnitudes={_NAME: size})
