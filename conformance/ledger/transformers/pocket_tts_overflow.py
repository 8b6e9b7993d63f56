"""A residual of exactly 0 with a weight beyond float32 makes Pocket TTS's loss NaN.

Rows are weighed by e^w of a learnt w, infinite from 88.8 on; 0·inf is NaN. A row that is hit exactly is the one whose
weight grows without bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from conformance import flow
from conformance.call import Call
from conformance.cases import Case
from conformance.ledger.entry import Answer, Entry
from conformance.reference import outcome_of, refloss_result
from refloss.golden.corpus import cases_of

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="speech_synthesis",
    case="a residual of 0 in a row whose weight e^w overflows, w > 88.72 in float32",
    theirs="0·inf: loss and gradients are NaN",
    ours="not followed: the row's term is −w, its gradient 0",
    seen={"transformers": "5.24.0"},
)


def reproduce() -> Iterator[Answer]:
    case = next(case for case in cases_of("pocket_tts") if case.id == "pocket_tts-nothing-left-float64")
    inputs = {name: np.array(value, copy=True) for name, value in case.inputs.items()}
    inputs["log_variance"][0] = 89.0
    call = Call(Case(case.id, flow.KEYS[0], inputs, case.parameters, case.grad_output), torch.float32)
    theirs, ours = flow.run(call), outcome_of(refloss_result(call))
    name, zeros = "grad.velocity", np.zeros_like(inputs["velocity"][0])
    yield Answer("a finite loss", np.isfinite(theirs["loss"]), False, True, np.isfinite(ours["loss"]))
    yield Answer("the gradient of the row", theirs[name][0], zeros + np.nan, zeros, ours[name][0])
