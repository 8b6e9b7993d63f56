"""NLLB-MoE has a coefficient for a router's z-loss and no z-loss.

router_z_loss_coef is documented, has a default of 0.001 and is read from the configuration; the loss is the same,
whatever it is. Routers whose logits drift are not held back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import NllbMoeConfig, NllbMoeForConditionalGeneration

import refloss
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="routers",
    case="`router_z_loss_coef` of NLLB-MoE",
    theirs="read from the configuration and never used: there is no z-loss",
    ours="`router_z_loss`",
    seen={"transformers": "5.24.0"},
)


SIZES = {
    "vocab_size": 9,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_experts": 2,
    "expert_capacity": 4,
    "encoder_sparse_step": 1,
    "decoder_sparse_step": 1,
    "max_position_embeddings": 16,
}


def loss_of(coefficient: float) -> float:
    """The loss of a small model, of one seed."""
    torch.manual_seed(0)
    config = NllbMoeConfig(**SIZES, router_z_loss_coef=coefficient, output_router_logits=True)
    model = NllbMoeForConditionalGeneration(config).eval()
    return float(model(input_ids=torch.tensor([[3, 4, 5, 2]]), labels=torch.tensor([[4, 5, 6, 2]])).loss.detach())


def reproduce() -> Iterator[Answer]:
    theirs = loss_of(1.0) - loss_of(0.0)
    # Of two experts whose logits are small, lse² is near log² 2, in the encoder and in the decoder.
    ours = refloss.router_z_loss(np.zeros((4, 2))).loss
    yield Answer("what a coefficient of 1 adds", theirs, 0.0, np.log(2.0) ** 2, ours)
