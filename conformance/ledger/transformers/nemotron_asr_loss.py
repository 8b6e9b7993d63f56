"""The RNN-T heads of Nemotron ASR raise a TypeError where they are given labels.

A head's loss is looked up by its class's name; no key of LOSS_MAPPING is in "NemotronAsrStreamingForRNNT", so it is
that of causal language models, called without the size of a vocabulary that it needs. The docstring promises an RNN-T
loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.models.nemotron3_5_asr.modeling_nemotron3_5_asr import Nemotron3_5AsrForRNNT
from transformers.models.nemotron_asr_streaming.modeling_nemotron_asr_streaming import NemotronAsrStreamingForRNNT

import refloss
from conformance.ledger.entry import Answer, Entry, raised

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="transducers",
    case="the heads of Nemotron ASR (`NemotronAsrStreamingForRNNT`, `Nemotron3_5AsrForRNNT`) with labels",
    theirs="`ForCausalLMLoss` without its `vocab_size`: a TypeError",
    ours="`rnnt`",
    seen={"transformers": "5.24.0"},
)


def reproduce() -> Iterator[Answer]:
    logits, labels = torch.zeros(1, 1, 2, 2), torch.tensor([[1]])
    ours = refloss.rnnt(logits, labels, [1], [1], 0, "sum").loss
    for head in (NemotronAsrStreamingForRNNT, Nemotron3_5AsrForRNNT):
        model = object.__new__(head)  # without its modules
        PreTrainedModel.__init__(model, head.config_class())
        theirs = raised(model.loss_function, logits=logits, labels=labels, encoder_outputs=None)
        yield Answer(f"the loss of {head.__name__}", theirs, "TypeError", np.log(4.0), ours)
