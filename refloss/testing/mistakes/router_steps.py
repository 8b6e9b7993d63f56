"""Mistaken steps of losses of a router, simulated in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.golden.store import evaluate
from refloss.roundoff import real
from refloss.testing.mistakes.guess import USUAL, Guess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.cases.source import Case
    from refloss.testing.verdict import Question

NO_MEAN = "the gradient is p·f: the softmax's backward pass is missing"
NO_EXPERTS = "the balance is not multiplied by the number of experts"
NOT_SQUARED = "lse is not squared"


def of_routers(asked: Question) -> Iterator[Guess]:
    """Those of a case's function; none where it is another."""
    case = asked.case
    if case.function not in ("moe_load_balancing", "router_z_loss") or not case.inputs["router_logits"].size:
        return
    x = real(case.inputs["router_logits"])
    result = evaluate(case._replace(inputs=case.inputs | {"router_logits": x}))
    gradient, counts = result.grads["router_logits"], _counts(case, x)
    p = np.where(counts[..., None], _softmax(x), 0.0)
    if case.function == "router_z_loss":
        count = max(int(counts.sum()), 1)
        loss = np.where(counts, real(result.intermediates["lse"]), 0.0).sum() / count
        yield Guess(NOT_SQUARED, USUAL, {"loss": loss, "grad.router_logits": float(case.grad_output) / count * p})
        return
    experts, f = x.shape[-1], real(result.intermediates["tokens_per_expert"])
    yield Guess(NO_EXPERTS, USUAL, {"loss": result.loss / experts, "grad.router_logits": gradient / experts})
    pooled = f.ndim == 1
    of_layers = counts.sum(axis=None if pooled else tuple(range(1, counts.ndim)), keepdims=True)
    factor = float(case.grad_output) * experts / np.maximum(of_layers, 1) / (1 if pooled else len(f))
    spread = f if pooled else f.reshape(len(f), *(1,) * (x.ndim - 2), experts)
    yield Guess(NO_MEAN, USUAL, {"grad.router_logits": factor[..., None] * p * spread})


def _softmax(x: np.ndarray) -> np.ndarray:
    terms = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(terms / terms.sum(axis=-1, keepdims=True))


def _counts(case: Case, x: np.ndarray) -> np.ndarray:
    """Which rows do."""
    rows = x.shape[:-1]
    mask = np.asarray(case.inputs.get("mask", np.ones(rows)), bool)
    return np.tile(mask.reshape(-1), int(np.prod(rows)) // max(mask.size, 1)).reshape(rows)
