"""Mistakes with losses of a mixture's router."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.golden.store import evaluate
from refloss.testing.mistakes.router_steps import NO_EXPERTS, NO_MEAN, NOT_SQUARED
from tests.gauntlet.mistakes.mistake import TUTORIALS, Mistake, stepped
from tests.gauntlet.routers import MoeLoadBalancing

if TYPE_CHECKING:
    from refloss.cases.source import Case

BALANCE = ("moe_load_balancing",)
BOTH = (*BALANCE, "router_z_loss")


def _has_layers(case: Case) -> bool:
    logits = case.inputs["router_logits"]
    return logits.ndim > 2 and len(logits) > 1 and case.parameters.get("pool_layers", True)


def _masks(case: Case) -> bool:
    mask = case.inputs.get("mask")
    return mask is not None and not mask.all()


def _counts(case: Case) -> bool:
    """Whether anything does."""
    return bool(np.isfinite(evaluate(case).loss))


def _twice(self: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p, _ = MoeLoadBalancing.softmax(self, x)
    return MoeLoadBalancing.softmax(self, p)


def _apart(self: Any, logits: np.ndarray, rows: int, *, pooled: bool) -> list[slice]:
    return MoeLoadBalancing.groups(self, logits, rows, pooled=False)


ROUTER_MISTAKES = [
    Mistake(
        "the padding is balanced as well",
        "NVIDIA/Megatron-LM#1984",
        BOTH,
        stepped(counted=lambda self, inputs, rows: np.ones(rows, bool)),
        "ignored rows are included",
        _masks,
        "where tokens do not count",
    ),
    Mistake(
        "router logits are probabilities",
        "huggingface/transformers#45111",
        BALANCE,
        stepped(softmax=_twice),
        "double softmax, or sigmoid: probabilities are taken as logits",
        _counts,
        "where something counts",
    ),
    Mistake(
        "layers are balanced one by one",
        "huggingface/transformers#31464",
        BALANCE,
        stepped(groups=_apart),
        "each layer is balanced on its own",
        _has_layers,
        "where there are layers, which are pooled",
    ),
    Mistake(
        "f is divided by k",
        "huggingface/transformers#43775",
        BALANCE,
        stepped(
            frequencies=lambda self, hits, count, top_k, *, normalised: MoeLoadBalancing.frequencies(
                self, hits, count, top_k, normalised=True
            )
        ),
        "the counts are divided by top_k",
        lambda case: case.parameters["top_k"] > 1 and not case.parameters.get("normalise_top_k", False),
        "where k is not 1",
    ),
    Mistake(
        "the number of experts is forgotten",
        TUTORIALS,
        BALANCE,
        stepped(experts=lambda self, x: 1),
        NO_EXPERTS,
        lambda case: case.inputs["router_logits"].shape[-1] > 1,
        "where there are several",
    ),
    Mistake(
        "the balance's gradient is p·f",
        TUTORIALS,
        BALANCE,
        stepped(inner=lambda self, p, f: np.zeros((len(p), 1), p.dtype)),
        NO_MEAN,
        _counts,
        "where something counts",
    ),
    Mistake(
        "lse is not squared",
        TUTORIALS,
        ("router_z_loss",),
        stepped(square=lambda self, lse: (lse, np.ones_like(lse))),
        NOT_SQUARED,
    ),
]
