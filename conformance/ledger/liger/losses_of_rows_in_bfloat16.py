"""Liger's cross-entropy in bfloat16 rounds each row's share of the mean before it adds them up.

Its kernel stores loss/N of a row in the type of the logits. N roundings to eight bits are added where one was needed,
and they may all go the same way: equal rows have equal errors.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np

import refloss
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="cross_entropy",
    case="the mean of bfloat16 logits",
    theirs="Liger: the share of each row is rounded to bfloat16 before they are added up",
    ours="not followed: a float64",
    seen={"liger-kernel": "0.8.5"},
)
# Triton's interpreter has to be asked for before Triton is imported.
PROGRAM = """
import torch
from liger_kernel.transformers.functional import liger_cross_entropy
logits = torch.tensor([[0.0, 3.6875]] * 3, dtype=torch.bfloat16)
print(float(liger_cross_entropy(logits, torch.zeros(3, dtype=torch.long))))
"""


def reproduce() -> Iterator[Answer]:
    """A third of the loss is rounded down, by the interpreter too, which cuts bits off; the loss itself is not."""
    command, environment = [sys.executable, "-W", "ignore", "-c", PROGRAM], os.environ | {"TRITON_INTERPRET": "1"}
    theirs = float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    loss = np.log1p(np.exp(3.6875))
    ours = refloss.cross_entropy(np.array([[0.0, 3.6875]] * 3, np.float32), [0, 0, 0]).loss
    assert abs(ours - loss) < 1e-12
    yield Answer("loss", theirs, 3 * _rounded(loss / 3, 2**-7), _rounded(loss, 2**-6), _rounded(ours, 2**-6))


def _rounded(value: float, step: float) -> float:
    """To what bfloat16 holds there."""
    return float(np.round(value / step) * step)
