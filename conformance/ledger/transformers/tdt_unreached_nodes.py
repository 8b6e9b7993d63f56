"""Durations without 0 or without 1 give a TDT loss that is finite and gradients that are NaN.

Nodes of the lattice that no path reaches hold the logarithm of a sum of nothing, whose derivative is 0/0, and 0·NaN
reaches every logit. The default durations 0 to 4 reach them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from transformers.loss.loss_utils import LOSS_MAPPING

import refloss
from conformance.call import value_and_gradient
from conformance.ledger.entry import Answer, Entry
from conformance.ledger.transformers import tdt

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="transducers",
    case="TDT: a node that no path reaches, as with durations without 0 or without 1",
    theirs="the loss is finite, and gradients are NaN: the derivative of the logarithm of a sum of nothing",
    ours="not followed: gradients are finite, 0 at that node",
    seen={"transformers": "5.24.0"},
)


KEY = "ParakeetForTDT"


def reproduce() -> Iterator[Answer]:
    # One path each: labels, each with a step, and a blank with one; a label and a blank with two.
    for labels, step in (([1, 1], 1), ([1], 2)):
        nodes = len(labels) + 1
        given = tdt(frames=nodes * step, labels=labels, durations=[step], reduction="sum")
        logits = given.pop("token_logits")
        exact = np.zeros(logits.shape)
        exact[0, np.arange(nodes) * step, np.arange(nodes)] = [[0.5, -0.5]] * len(labels) + [[-0.5, 0.5]]
        loss, gradient = value_and_gradient(lambda x, rest=given: LOSS_MAPPING[KEY](token_logits=x, **rest), logits)
        ours = refloss.LOSS_MAPPING[KEY](token_logits=logits, **given)
        np.testing.assert_allclose([loss, ours.loss], nodes * np.log(2.0), rtol=1e-6)
        yield Answer("NaN among gradients", np.isnan(gradient).any(), True, np.isnan(exact).any(), False)
        np.testing.assert_allclose(ours.grads["token_logits"], exact, rtol=1e-7)
