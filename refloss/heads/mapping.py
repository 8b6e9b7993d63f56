"""transformers' LOSS_MAPPING: model kinds and the loss of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from refloss.heads.causal_lm import causal_lm
from refloss.heads.masked_lm import masked_lm
from refloss.heads.question_answering import question_answering
from refloss.heads.semantic_segmentation import semantic_segmentation
from refloss.heads.sequence_classification import sequence_classification
from refloss.heads.token_classification import token_classification

if TYPE_CHECKING:
    from collections.abc import Callable

LOSS_MAPPING: dict[str, Callable[..., Any]] = {
    "ForSemanticSegmentation": semantic_segmentation,
    "ForCausalLM": causal_lm,
    "ForMaskedLM": masked_lm,
    "ForQuestionAnswering": question_answering,
    "ForSequenceClassification": sequence_classification,
    "ForImageClassification": sequence_classification,
    "ForVideoClassification": sequence_classification,
    "ForAudioClassification": sequence_classification,
    "ForTokenClassification": token_classification,
    "ForConditionalGeneration": causal_lm,
    "CsmForConditionalGeneration": causal_lm,
}
