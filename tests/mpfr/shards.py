"""Cross-entropy of a vocabulary in parts: the definition knows of no parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import refloss
from tests.mpfr import rows
from tests.mpfr.rounding import Comparison
from tests.mpfr.rows import LABELS, Draw, Rows, smoothed_labels

MEGATRON = "megatron"


def compare(given: Rows) -> Iterator[Comparison]:
    """The classes of three ranks, one of which has a single one."""
    classes = given.logits.shape[1]
    first = classes // 3
    parts = np.split(given.logits, [first, first + 1], axis=1)
    named = dict(given.options)
    formula = named.pop(MEGATRON, None)
    options: dict[str, Any] = {"label_smoothing": formula or given.smoothing, **named}
    options |= {"label_smoothing_formula": MEGATRON} if formula else {}

    def call(**others: Any) -> Any:
        result = refloss.vocab_parallel_cross_entropy(
            parts, given.target, reduction=given.reduction, grad_output=given.cotangent, **options, **others
        )
        result.grads["shards"] = np.concatenate(result.grads["shards"], axis=1)
        return result

    return rows.compare(call, "shards", given._replace(options=named))


def megatron(generator: np.random.Generator, size: int) -> Iterator[Rows]:
    """α/(K − 1) on all classes but the label; in the definition's words, ε/K on all."""
    for given in smoothed_labels(generator, size):
        share, classes = min(given.smoothing, 0.9), given.logits.shape[1]
        yield given._replace(weight=None, smoothing=share * classes / (classes - 1), options={MEGATRON: share})


KINDS: dict[str, Draw] = {
    **{kind: draw for kind, draw in LABELS.items() if kind != "weights"},
    MEGATRON: megatron,
}
