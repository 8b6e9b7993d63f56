"""Divergences of transformers."""

from __future__ import annotations

from typing import Any

import torch


def tdt(frames: int, labels: list[int], durations: list[int], reduction: str, padding: int = 0) -> dict[str, Any]:
    """Arguments of ParakeetForTDT: one sample of two classes, of which 0 is the blank, with logits of 0."""
    shape = (1, frames, len(labels) + padding + 1)
    return {
        "token_logits": torch.zeros(*shape, 2),
        "duration_logits": torch.zeros(*shape, len(durations)),
        "labels": torch.tensor([labels + padding * [-100]], dtype=torch.long),
        "logit_lengths": torch.tensor([frames]),
        "label_lengths": torch.tensor([len(labels)]),
        "durations": durations,
        "blank_token_id": 0,
        "reduction": reduction,
    }
