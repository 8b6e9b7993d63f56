"""Classification or regression of whole sequences, images, videos and sounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np

from refloss import arrays, configuration
from refloss.cases import language as cases
from refloss.heads.parts import error_model
from refloss.heads.parts.language import token_loss, token_rows
from refloss.loss import loss
from refloss.losses.bce_with_logits import bce_with_logits
from refloss.losses.mse import mse
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import (
    IGNORE_INDEX,
    ITEMS,
    NUM_LABELS,
    Parameter,
    Specification,
    configured,
    softmax_logits,
)
from refloss.specification import labels as class_labels
from refloss.typing import ArrayLike, Backend, Configuration, Cotangent, DTypeLike, Gradients, Scalar

ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]
PROBLEM_TYPES = get_args(ProblemType)


class ProblemTypeError(ValueError, RuntimeError):
    """A problem type that does not exist; transformers raises a RuntimeError."""


@loss(
    Specification(
        arguments={
            "pooled_logits": softmax_logits(-1, on_gpu=False, shape="B K"),
            "labels": replace(class_labels("pooled_logits"), shape="B | B K", numbers=("integer", "float")),
        },
        parameters={
            **configured("num_labels", "problem_type", on_command_line=False),
            **NUM_LABELS,
            "problem_type": Parameter(str, structural=True, words=PROBLEM_TYPES),
            **ITEMS,
            **IGNORE_INDEX,
        },
        mean="labels",
        divisor=cases.sequences_counted,
        padded=(0,),
        keys=(
            "ForSequenceClassification",
            "ForImageClassification",
            "ForVideoClassification",
            "ForAudioClassification",
        ),
        order=180,
        follows="transformers' ForSequenceClassificationLoss",
        has_classes=cases.sequences_have_classes,
        cases=cases.sequence_classification,
        bounds=error_model.sequence_classification,
        draw=cases.draw_sequences,
        intermediates=("lse", "nll", "log_probabilities", "probabilities", "losses"),
    )
)
def sequence_classification(
    labels: ArrayLike,
    pooled_logits: ArrayLike,
    config: Configuration = None,
    *,
    num_labels: int | None = None,
    problem_type: ProblemType | None = None,
    num_items_in_batch: Scalar | None = None,
    ignore_index: int = -100,
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """The loss of one label, several labels or values per example, as transformers' ForSequenceClassificationLoss.

    "regression" is refloss.mse, both sides squeezed if num_labels is 1; "single_label_classification" is
    refloss.cross_entropy, over num_items_in_batch if given; "multi_label_classification" is refloss.bce_with_logits.
    Where neither config nor problem_type says which, it is the first for num_labels = 1, the second for int64 or int32
    labels, and the third for anything else. Gradients are those of these losses. Held constant: the normalisers, the
    labels.

    Args:
        labels: [B], or [B, num_labels] for several labels or values.
        pooled_logits: [B, num_labels]; any float dtype, any layout.
        config: object or mapping with num_labels and problem_type; it is not written to, as transformers does.
        num_labels, problem_type: the same without a config; num_labels is the last axis of pooled_logits if not given.
        num_items_in_batch, ignore_index: for a single label; see refloss.masked_lm.
        grad_output, grad, grad_dtype, out, backend: as in refloss.cross_entropy.

    Returns:
        loss. grads: "pooled_logits". intermediates: "lse" and "nll" for a single label.

    Edges:
        A squeeze of one example and one label leaves two numbers. Otherwise as the loss itself.

    Raises:
        ValueError: a shape, a label or a problem type that does not fit. TypeError: a dtype that does not.
    """
    logits = arrays.float_array(pooled_logits, "pooled_logits")
    given = arrays.as_array(labels, "labels")
    if config is not None:
        num_labels = configuration.read(config, "num_labels") if num_labels is None else num_labels
        problem_type = (
            configuration.read(config, "problem_type", default=None) if problem_type is None else problem_type
        )
    count = logits.shape[-1] if num_labels is None and logits.ndim else arrays.integer(num_labels, "num_labels", low=0)
    kind = problem_type or _problem_type(count, given)
    options = Options(grad_output, grad, grad_dtype, out, backend)
    options = options._replace(grad=bool(options.wanted(("pooled_logits",))))
    if kind == "regression":
        squeezed = (logits.squeeze(), given.squeeze()) if count == 1 else (logits, given)
        options = options._replace(out=arrays.reshaped_out(out, logits.shape, squeezed[0].shape))
        result = _elementwise(mse, "input", *squeezed, options)
    elif kind == "multi_label_classification":
        result = _elementwise(bce_with_logits, "logits", logits, given, options)
    elif kind == "single_label_classification":
        classes = arrays.integer_array(given, "labels")
        ignore_index = arrays.label(ignore_index, "ignore_index")
        rows = token_rows(logits, classes.shape, count, "labels", "pooled_logits", "num_labels")
        arrays.check_labels(classes, rows.shape[-1], ignore_index, "labels")
        result = token_loss(
            logits, rows, classes, options, num_items_in_batch=num_items_in_batch, ignore_index=ignore_index
        )
    else:
        raise ProblemTypeError(f"Invalid problem type: {kind!r}; expected one of {', '.join(PROBLEM_TYPES)}")
    grads = {}
    for gradient in result.grads.values():
        grads["pooled_logits"] = gradient.reshape(logits.shape)
    return LossResult(loss=result.loss, grads=grads, intermediates=result.intermediates)


def _problem_type(num_labels: int, labels: np.ndarray) -> str:
    if num_labels == 1:
        return "regression"
    return "single_label_classification" if labels.dtype in (np.int64, np.int32) else "multi_label_classification"


def _elementwise(loss: Any, name: str, logits: np.ndarray, labels: np.ndarray, options: Options) -> LossResult:
    """A loss of logits, which it calls by name, and labels of one shape; integer labels are numbers here."""
    values = labels.astype(np.float64) if labels.dtype.kind in "iub" else labels
    arrays.check_shape(values, logits.shape, "labels", "the shape of pooled_logits")
    keywords = options._replace(grad=[name] if options.grad else False)._asdict()
    result: LossResult = loss(logits, arrays.float_array(values, "labels"), **keywords)
    return result
