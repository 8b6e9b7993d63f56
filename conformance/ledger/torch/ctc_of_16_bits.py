"""ctc_loss has no bfloat16 and no float16 on a CPU.

Log-probabilities of a model in half precision have to be widened by the caller; on CUDA they are widened silently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

import refloss
from conformance.ledger.entry import Answer, Entry, raised

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="alignments",
    case="`ctc_loss` of bfloat16 and float16",
    theirs="an error on a CPU",
    ours="not followed: any float dtype",
    seen={"torch": "2.13.0"},
)


def reproduce() -> Iterator[Answer]:
    given = torch.tensor([[1]]), torch.tensor([1]), torch.tensor([1])
    for dtype in (torch.bfloat16, torch.float16):
        log_probs = torch.full((1, 1, 2), -0.5, dtype=dtype)
        theirs = raised(functional.ctc_loss, log_probs, *given)
        yield Answer(f"the loss in {dtype}", theirs, "NotImplementedError", 0.5, refloss.ctc(log_probs, *given).loss)
