"""Mistakes with losses of tokens: what they are divided by, which of them count, and what is clipped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.testing.mistakes.policy_steps import CLIP_NOT_HELD, NOT_DIVIDED, RATIO_HELD
from tests.gauntlet.mistakes.mistake import TUTORIALS, Mistake, ignored, stepped
from tests.gauntlet.policies import PolicyLoss, Tokens

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from tests.gauntlet.policies import Numbers, Terms

OF = ("policy_loss", "value_loss")


def _is_of_non_empty(case: Case) -> bool:
    """Where some of the sequences are averaged."""
    return case.parameters.get("sequences") == "non-empty"


def _all_rows(kernel: PolicyLoss, counts: np.ndarray, parameters: dict[str, Any]) -> float:
    return Tokens.denominator(kernel, counts, {**parameters, "sequences": "all"})


def _cispo(self: PolicyLoss, r: np.ndarray, x: Numbers, parameters: dict[str, Any]) -> Terms:
    """Autograd of a formula without detach()."""
    loss, direct, _ = PolicyLoss.cispo(self, r, x, parameters)
    low, high = self.bounds(parameters, r)
    return loss, direct, np.where((r >= low) & (r <= high), loss, 0)


def _weighed(self: PolicyLoss, terms: Terms, r: np.ndarray, x: Numbers, parameters: dict[str, Any]) -> Terms:
    loss, direct, _ = PolicyLoss.with_kl(self, terms, r, x, parameters)
    return loss, direct, terms[2]


def _summed(self: PolicyLoss, slopes: np.ndarray, parameters: dict[str, Any], counts: np.ndarray) -> np.ndarray:
    if parameters.get("ratio") != "sequence":
        return slopes
    return self.sum(np.where(counts, slopes, 0), axis=1)[:, None]


def _is_weighed(case: Case) -> bool:
    return bool(case.parameters.get("kl_ratio_weighted") and case.parameters.get("kl_coef"))


def _has_shared_slopes(case: Case) -> bool:
    is_sequence = case.parameters.get("ratio") == "sequence"
    return is_sequence and (case.parameters.get("objective") != "cispo" or _is_weighed(case))


POLICY_MISTAKES = [
    Mistake(
        "loss_agg_mode is ignored",
        "volcengine/verl#1083",
        OF,
        stepped(
            aggregation=lambda self, parameters: "none" if parameters.get("aggregation") == "none" else "token-mean"
        ),
        "losses are aggregated by token-mean",
        lambda case: case.parameters.get("aggregation", "token-mean") not in ("token-mean", "none"),
        "where they are aggregated otherwise",
    ),
    ignored("weights", "linkedin/Liger-Kernel#1082", ("policy_loss",)),
    Mistake(
        "empty sequences count",
        TUTORIALS,
        ("policy_loss",),
        stepped(PolicyLoss, denominator=_all_rows),
        "sequences that are averaged are all",
        lambda case: _is_of_non_empty(case) and case.parameters.get("num_items") is None,
        "where only those that are not empty do",
    ),
    ignored("clip_high", TUTORIALS, ("policy_loss",)),
    ignored("kl_ratio_weighted", TUTORIALS, ("policy_loss",)),
    Mistake(
        "k3 is k2",
        TUTORIALS,
        ("policy_loss",),
        stepped(estimate=lambda self, q, kl: (-q, np.ones_like(q)) if kl == "k1" else (q * q / 2, -q)),
        "k2 is taken for k3",
        lambda case: case.parameters.get("kl") == "k3" and bool(case.parameters.get("kl_coef")),
        "where k3 is asked for",
    ),
    Mistake(
        "the clipped ratio of cispo is not detached",
        TUTORIALS,
        ("policy_loss",),
        stepped(PolicyLoss, cispo=_cispo),
        CLIP_NOT_HELD,
        lambda case: case.parameters.get("objective") == "cispo",
        "where the objective is cispo",
    ),
    Mistake(
        "the ratio that weighs the KL is detached",
        TUTORIALS,
        ("policy_loss",),
        stepped(PolicyLoss, with_kl=_weighed),
        RATIO_HELD,
        _is_weighed,
        "where the KL is weighed by the ratio",
    ),
    Mistake(
        "slopes through a sequence's ratio are not divided by its length",
        TUTORIALS,
        ("policy_loss",),
        stepped(PolicyLoss, through_ratio=_summed),
        NOT_DIVIDED,
        _has_shared_slopes,
        "where ratios are those of sequences",
    ),
    Mistake(
        "values are not clipped",
        TUTORIALS,
        ("value_loss",),
        stepped(of_tokens=lambda self, x, parameters, counts: _unclipped(x)),
        "clip is ignored",
        lambda case: "clip" in case.parameters,
        "where a clip is given",
    ),
]


def _unclipped(x: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    error = x["values"] - x["returns"]
    return error * error / 2, error, np.zeros_like(error)
