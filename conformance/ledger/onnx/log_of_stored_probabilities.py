"""ONNX's reference of SoftmaxCrossEntropyLoss is infinite where a label is improbable.

It takes the logarithm of probabilities that are written down, and one below e^−104 is 0 in float32. Runtimes are
tested against this evaluator; a right one differs from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

import refloss
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="cross_entropy",
    case="the reference evaluator of ONNX's `SoftmaxCrossEntropyLoss`, a label 200 below another logit",
    theirs="the logarithm of a probability that is 0 in float32: inf",
    ours="not followed: 200",
    seen={"onnx": "1.23.2"},
)


def reproduce() -> Iterator[Answer]:
    node = onnx.helper.make_node("SoftmaxCrossEntropyLoss", ["x", "labels"], ["loss"], reduction="mean")
    logits, labels = np.array([[0.0, 200.0]], np.float32), np.array([0])
    with np.errstate(divide="ignore"):
        (theirs,) = ReferenceEvaluator(node).run(None, {"x": logits, "labels": labels})
    yield Answer("loss", theirs, np.inf, 200.0, refloss.cross_entropy(logits, labels).loss)
