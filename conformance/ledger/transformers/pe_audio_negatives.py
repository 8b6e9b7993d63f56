"""The contrastive losses of PE-Audio, PE-Video and PE-Audio-Video do not train negatives.

SigLIP's loss is −log σ of the logits times 2·I − 1; these heads multiply by I. Off the diagonal nothing is left of a
logit: each adds log 2 and has no gradient, so that every pair may become alike. The frame-level head has logits [B,
B, frames], against whose last axes eye(B) is broadcast: an error, unless there are B frames.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.models.pe_audio.modeling_pe_audio import PeAudioModel

import refloss
from conformance.call import value_and_gradient
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="contrastive",
    case="PE-Audio (both heads), PE-Video, PE-Audio-Video: `-logsigmoid(eye * logits).sum() / N`",
    theirs=(
        "off-diagonal logits are multiplied by 0, not by −1: they add the constant (N − 1)·log 2 and have no "
        "gradient, so that negatives are never trained. The frame-level head has logits [B, B, frames], against "
        "whose last axes `eye(B)` is broadcast"
    ),
    ours="not followed: 2·I − 1, as SigLIP has it",
    seen={"transformers": "5.24.0"},
)


def pe_audio(logits: torch.Tensor) -> torch.Tensor:
    """PeAudioModel.forward, of encoders that return rows whose products are these logits."""
    self = SimpleNamespace(
        audio_encoder=lambda **_: SimpleNamespace(pooler_output=logits),
        text_model=lambda **_: SimpleNamespace(hidden_states=[torch.eye(len(logits), dtype=logits.dtype)[:, None]]),
        audio_head=lambda rows: rows,
        text_audio_head=lambda rows: rows,
        text_audio_logit_scale=torch.ones(()),
        text_audio_logit_bias=torch.zeros(()),
    )
    loss: torch.Tensor = inspect.unwrap(PeAudioModel.forward)(self, None, None, return_loss=True).loss
    return loss


def reproduce() -> Iterator[Answer]:
    logits = torch.tensor([[2.0, 1.0], [-0.5, 3.0]], dtype=torch.float64)
    loss, gradient = value_and_gradient(pe_audio, logits)
    ours = refloss.sigmoid_contrastive(logits)
    positives, negatives = (np.log1p(np.exp(each)).sum() / 2 for each in ([-2.0, -3.0], [1.0, -0.5]))
    yield Answer("loss", loss, positives + np.log(2.0), positives + negatives, ours.loss)
    exact = 1 / (1 + np.exp(-1.0)) / 2
    yield Answer("the gradient of a negative", gradient[0, 1], 0.0, exact, ours.grads["logits"][0, 1])
