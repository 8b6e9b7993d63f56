"""Bamba's z-loss counts padding, and the last position that predicts nothing.

It is a mean of lse² over all positions, where the loss beside it is one over labels that count. In a batch that is
half padding, half of the z-loss is about tokens that nobody looks at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import BambaConfig, BambaForCausalLM

import refloss
from conformance.call import array
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="cross_entropy",
    case="the z-loss of Bamba: positions that do not count",
    theirs="a mean of lse² over all positions, the last one and padding included",
    ours="`z_loss`: over rows that count",
    seen={"transformers": "5.24.0"},
)


def reproduce() -> Iterator[Answer]:
    torch.manual_seed(0)
    sizes = {"vocab_size": 5, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "attn_layer_indices": [0]}
    of_mamba = {"mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 4}
    model = BambaForCausalLM(BambaConfig(**sizes, **heads, **of_mamba, z_loss_coefficient=1.0)).eval()
    labels = torch.tensor([[1, 2, -100, -100]])
    found = model(input_ids=torch.tensor([[1, 2, 3, 4]]), labels=labels)
    ours = refloss.causal_lm(found.logits.detach(), labels, z_loss=1.0)
    theirs = float(found.loss.detach()) - ours.components["cross_entropy"]
    squares = array(found.logits.logsumexp(-1))[0] ** 2
    # The first position predicts the second's label; no other one counts.
    yield Answer("z-loss", theirs, squares.mean(), squares[0], ours.components["z_loss"], 1e-5, 1e-5)
