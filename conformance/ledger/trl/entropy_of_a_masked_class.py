"""The entropy of a row with a class of −inf is NaN.

A class without probability adds 0·log 0 = 0. TRL sums e^lp·lp, verl and OpenRLHF subtract Σ p·z from the log-sum-exp:
both multiply 0 by −inf. Vocabularies are padded and masked with −inf. nan_to_num mends the value and leaves the
gradient NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

import refloss
from conformance import peers
from conformance.call import value_and_gradient
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ENTRY = Entry(
    topic="log_probs",
    case="entropy of a row with a class of −inf, [0, 0, −inf]",
    theirs=(
        "0·−inf: NaN (TRL 1.16, −Σ e^lp·lp; verl 0.9, OpenRLHF 0.11 and Liger 0.8, lse − Σ p·z); with "
        "`nan_to_num` the gradient is NaN all the same"
    ),
    ours="not followed: log 2, its gradient 0",
    seen={"trl": "1.16.0", "verl": "0.9.1", "openrlhf": "0.11.2"},
    reports=("huggingface/trl#7221",),
)


def entropy_of(library: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The library's function of logits."""
    if library == "openrlhf":
        found: Callable[[torch.Tensor], torch.Tensor] = peers.openrlhf("utils").compute_entropy
    else:
        module = {"trl": "trl.trainer.utils", "verl": "verl.utils.torch_functional"}[library]
        found = peers.imported(module).entropy_from_logits
    return found


def reproduce(library: str) -> Iterator[Answer]:
    logits = torch.tensor([[[0.0, 0.0, -torch.inf]]], dtype=torch.float64)
    value, gradient = value_and_gradient(entropy_of(library), logits)
    ours = refloss.selected_log_probs(logits, [[0]], grad_output={"entropy": 1.0})
    yield Answer("the entropy", value, [[np.nan]], [[np.log(2.0)]], ours.components["entropy"])
    yield Answer("NaN in its gradient", np.isnan(gradient).any(), True, False, np.isnan(ours.grads["logits"]).any())
