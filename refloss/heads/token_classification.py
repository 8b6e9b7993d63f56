"""Token classification: every token has a class."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from refloss import arrays, configuration
from refloss.cases import language as cases
from refloss.error_model import softmax
from refloss.heads.parts.language import token_loss, token_rows
from refloss.loss import loss
from refloss.options import Gradients, Options
from refloss.result import LossResult
from refloss.specification import IGNORE_INDEX, ITEMS, NUM_LABELS, Softmax, configured, softmax_logits
from refloss.specification import labels as token_labels


@loss(
    Softmax(
        arguments={"logits": softmax_logits(-1, shape="B S C | ... C"), "labels": token_labels("logits")},
        parameters={
            **configured("num_labels", on_command_line=False),
            **NUM_LABELS,
            **ITEMS,
            **IGNORE_INDEX,
        },
        mean="labels",
        in_parts=True,
        divisor=cases.tokens_counted,
        padded=(0, 1),
        keys=("ForTokenClassification",),
        order=170,
        follows="transformers' ForTokenClassification",
        mistakes=cases.wrong_shifts,
        cases=cases.token_classification,
        bounds=softmax.tokens,
        draw=partial(cases.draw_tokens, size_name="num_labels"),
    )
)
def token_classification(
    logits: Any,
    labels: Any,
    config: Any = None,
    *,
    num_labels: int | None = None,
    num_items_in_batch: Any = None,
    ignore_index: int = -100,
    grad_output: Any = 1.0,
    grad: Gradients = True,
    grad_dtype: Any = None,
    out: np.ndarray | None = None,
    backend: str = "auto",
) -> LossResult:
    """Cross-entropy of each token's class, as transformers' ForTokenClassification.

    L = (1/n)·Σ_s (lse(x_s) − x_s[y_s]) over the tokens whose label is not ignore_index; n is their number, or
    num_items_in_batch. Gradient: (grad_output/n)·(softmax(x_s) − onehot(y_s)). Held constant: n.

    Args:
        logits: [B, S, C], or any shape with C last; any float dtype, any layout.
        labels: [B, S] classes.
        config: object or mapping with num_labels; it is not written to.
        num_labels: C without a config; the last axis of logits if neither is given.
        num_items_in_batch, ignore_index: as in refloss.masked_lm.
        grad_output, grad, grad_dtype, out, backend: as in refloss.cross_entropy.

    Returns:
        loss in nats per token. grads: "logits". intermediates: "lse" and "nll", [B, S].

    Edges:
        As in refloss.cross_entropy.

    Raises:
        ValueError: a shape or a label that does not fit, a config without num_labels. TypeError: a dtype that does not.
    """
    if num_labels is None and config is not None:
        num_labels = arrays.integer(configuration.read(config, "num_labels"), "config.num_labels", low=0)
    ignore_index = arrays.label(ignore_index, "ignore_index")
    classes = arrays.integer_array(labels, "labels")
    x = arrays.float_array(logits, "logits")
    rows = token_rows(x, classes.shape, num_labels, "labels", size_name="num_labels")
    arrays.check_labels(classes, rows.shape[-1], ignore_index, "labels")
    options = Options(grad_output, grad, grad_dtype, out, backend)
    return token_loss(x, rows, classes, options, num_items_in_batch=num_items_in_batch, ignore_index=ignore_index)
