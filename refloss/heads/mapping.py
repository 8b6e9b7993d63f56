"""transformers' LOSS_MAPPING: model kinds and the loss of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refloss.heads.causal_lm import causal_lm
from refloss.heads.masked_lm import masked_lm

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.result import LossResult

LOSS_MAPPING: dict[str, Callable[..., LossResult]] = {
    "ForCausalLM": causal_lm,
    "ForConditionalGeneration": causal_lm,
    "CsmForConditionalGeneration": causal_lm,
    "ForMaskedLM": masked_lm,
}
