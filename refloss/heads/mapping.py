"""transformers' LOSS_MAPPING: model kinds and the loss of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from refloss.heads.causal_lm import causal_lm
from refloss.heads.d_fine import d_fine_object_detection
from refloss.heads.deformable_detr import deformable_detr_object_detection, deformable_detr_segmentation
from refloss.heads.deimv2 import deimv2_object_detection
from refloss.heads.grounding_dino import grounding_dino_object_detection
from refloss.heads.lw_detr import lw_detr_object_detection
from refloss.heads.masked_lm import masked_lm
from refloss.heads.object_detection import object_detection
from refloss.heads.question_answering import question_answering
from refloss.heads.rt_detr import rt_detr_object_detection
from refloss.heads.segmentation import segmentation
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
    "ForSegmentation": segmentation,
    "ForObjectDetection": object_detection,
    "ForConditionalGeneration": causal_lm,
    "DeformableDetrForObjectDetection": deformable_detr_object_detection,
    "ConditionalDetrForObjectDetection": deformable_detr_object_detection,
    "DabDetrForObjectDetection": deformable_detr_object_detection,
    "GroundingDinoForObjectDetection": grounding_dino_object_detection,
    "MMGroundingDinoForObjectDetection": grounding_dino_object_detection,
    "ConditionalDetrForSegmentation": deformable_detr_segmentation,
    "RTDetrForObjectDetection": rt_detr_object_detection,
    "RTDetrV2ForObjectDetection": rt_detr_object_detection,
    "DFineForObjectDetection": d_fine_object_detection,
    "Deimv2ForObjectDetection": deimv2_object_detection,
    "CsmForConditionalGeneration": causal_lm,
    "LwDetrForObjectDetection": lw_detr_object_detection,
    "RfDetrForObjectDetection": lw_detr_object_detection,
}
