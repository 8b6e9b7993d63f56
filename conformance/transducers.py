"""Transducers as transformers has them; torchaudio, which its RNN-T needs, cannot be installed beside this torch.

What it asks of torchaudio is a recursion, which is written here for torch to differentiate.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from transformers.loss import loss_rnnt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conformance.call import Call

RNNT, TDT = "ParakeetForRNNT", "ParakeetForTDT"
TRANSDUCERS = (RNNT, TDT)


def rnnt_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    logit_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    blank: int,
    reduction: str,
) -> torch.Tensor:
    """Negative log-likelihood of each sample, by a recursion of logarithms over frames and labels."""
    assert reduction == "none"
    lengths = zip(logit_lengths.tolist(), target_lengths.tolist(), strict=True)
    each = [
        _sample(torch.log_softmax(logits[b, :t, : u + 1], -1), targets[b, :u].tolist(), blank)
        for b, (t, u) in enumerate(lengths)
    ]
    return torch.stack(each) if each else logits.sum((1, 2, 3))


def _sample(log_p: torch.Tensor, labels: list[int], blank: int) -> torch.Tensor:
    frames, width, _ = log_p.shape
    here: dict[tuple[int, int], torch.Tensor] = {(0, 0): log_p.new_zeros(())}
    for t in range(frames):
        for u in range(width):
            ways = []
            if t:
                ways.append(here[t - 1, u] + log_p[t - 1, u, blank])
            if u:
                ways.append(here[t, u - 1] + log_p[t, u - 1, labels[u - 1]])
            if ways:
                here[t, u] = torch.logsumexp(torch.stack(ways), 0)
    return -(here[frames - 1, width - 1] + log_p[frames - 1, width - 1, blank])


@contextmanager
def as_transformers_has_it(call: Call) -> Iterator[None]:
    """With the stand-in for torchaudio, and lattices in the type that logits are cast to."""
    stand_in = ModuleType("torchaudio")
    stand_in.functional = SimpleNamespace(rnnt_loss=rnnt_loss)  # type: ignore[attr-defined]
    unchecked: Any = loss_rnnt.rnnt_loss
    default = torch.get_default_dtype()
    with (
        mock.patch.dict(sys.modules, {"torchaudio": stand_in}),
        mock.patch.object(loss_rnnt, "rnnt_loss", unchecked.__wrapped__),
    ):
        torch.set_default_dtype(call.arguments[call.differentiable[0]].float().dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(default)
