"""A generalised JSD jumps at β = 0 and 1.

The formula goes to 0 with β, and at 0 and 1 exactly TRL and Liger have the whole forward and reverse KL. A β of 0.001
trains next to nothing, one of 0 as distillation does. It has been reported as a bug again and again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

import refloss
from conformance.call import array
from conformance.ledger.entry import Answer, Entry, raised
from conformance.peer_losses import liger_jsd, trl_jsd

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="distillation",
    case="a generalised JSD at β = 0 and 1 (TRL, Liger, ms-swift)",
    theirs="the whole forward and reverse KL, though the formula tends to 0 there: a jump",
    ours='ValueError that names `divergence="forward_kl"` and `"reverse_kl"`; "jsd" is the formula, 0 < β < 1',
    seen={"trl": "1.16.0", "liger-kernel": "0.8.5"},
    reports=("huggingface/trl#3043", "huggingface/trl#6780", "modelscope/ms-swift#10078"),
)


def reproduce(library: str) -> Iterator[Answer]:
    student, teacher = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    log_q, log_p = np.log([0.5, 0.5]), array(torch.log_softmax(teacher, -1))[0]
    forward, reverse = (np.exp(log_p) * (log_p - log_q)).sum(), (np.exp(log_q) * (log_q - log_p)).sum()
    jsd = {"trl": trl_jsd, "liger-kernel": liger_jsd}[library]
    for beta, recorded in ((0.0, forward), (1.0, reverse)):
        ours = raised(refloss.distillation, student, teacher, divergence="jsd", beta=beta)
        yield Answer(f"β = {beta:g}", array(jsd(student, teacher, beta=beta)), recorded, "ValueError", ours)
        assert jsd(student, teacher, beta=abs(beta - 1e-6)) < 1e-5
