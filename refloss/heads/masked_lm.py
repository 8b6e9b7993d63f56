"""Masked language modelling: each masked position predicts its own token."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from refloss import arrays
from refloss.cases import chain as chain_cases
from refloss.cases import language as cases
from refloss.error_model import softmax
from refloss.heads.parts.language import token_loss, token_rows
from refloss.loss import loss
from refloss.losses.parts.chain import CHAIN_PARAMETERS, COMPONENTS, Z_LOSS, logit_options
from refloss.options import Gradients, Options
from refloss.result import LossResult
from refloss.specification import IGNORE_INDEX, ITEMS, Parameter, Softmax, softmax_logits
from refloss.specification import labels as tokens


@loss(
    Softmax(
        arguments={"logits": softmax_logits(-1, shape="B S V | ... V"), "labels": tokens("logits")},
        parameters={
            "vocab_size": Parameter(int, structural=True),
            **ITEMS,
            **IGNORE_INDEX,
            **CHAIN_PARAMETERS,
            **Z_LOSS,
        },
        mean="labels",
        in_parts=True,
        divisor=cases.tokens_counted,
        padded=(0, 1),
        keys=("ForMaskedLM",),
        order=160,
        follows="transformers' ForMaskedLMLoss",
        counts_tokens=True,
        components=COMPONENTS,
        mistakes=cases.wrong_shifts,
        cases=chain_cases.masked_lm,
        bounds=softmax.tokens,
        draw=partial(cases.draw_tokens, options=CHAIN_PARAMETERS | Z_LOSS, size_name="vocab_size"),
    )
)
def masked_lm(
    logits: Any,
    labels: Any,
    vocab_size: int | None = None,
    num_items_in_batch: Any = None,
    ignore_index: int = -100,
    *,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    z_loss: float = 0.0,
    grad_output: Any = 1.0,
    grad: Gradients = True,
    grad_dtype: Any = None,
    out: np.ndarray | None = None,
    backend: str = "auto",
) -> LossResult:
    """Cross-entropy at the masked positions, as transformers' ForMaskedLMLoss.

    L = (1/n)·Σ_s (lse(x_s) − x_s[y_s]) with y_s = labels[..., s], over the positions whose label is not ignore_index.
    n is their number, or num_items_in_batch. Gradient: ∂L/∂x_s = (grad_output/n)·(softmax(x_s) − onehot(y_s)). Held
    constant: n.

    Args:
        logits: [B, S, V], or any shape with V last; any float dtype, any layout.
        labels: [B, S] tokens, ignore_index where nothing was masked.
        vocab_size: V, the last axis of logits if not given.
        num_items_in_batch: number or array without axes: divide the sum by it instead of taking the mean.
        ignore_index: label of positions that do not count; any integer, a valid class included.
        logit_scale, softcap, temperature, z_loss: as in refloss.cross_entropy; transformers' models cap and scale
            logits before.
        grad_output, grad, grad_dtype, out, backend: as in refloss.cross_entropy.

    Returns:
        loss in nats per item. grads: "logits". intermediates: "lse" and "nll" (0 where ignored), [B, S]. components,
        with a z_loss: "cross_entropy" and "z_loss".

    Edges:
        As in refloss.cross_entropy. transformers rounds float64 logits to float32 first; refloss does not.

    Raises:
        ValueError: a shape or a label that does not fit. TypeError: a dtype that does not.
    """
    ignore_index = arrays.label(ignore_index, "ignore_index")
    given = arrays.integer_array(labels, "labels")
    x = arrays.float_array(logits, "logits")
    rows = token_rows(x, given.shape, vocab_size, "labels")
    arrays.check_labels(given, rows.shape[-1], ignore_index, "labels")
    of_logits = logit_options(logit_scale, softcap, temperature, z_loss)
    options = Options(grad_output, grad, grad_dtype, out, backend)
    return token_loss(
        x, rows, given, options, num_items_in_batch=num_items_in_batch, ignore_index=ignore_index, of_logits=of_logits
    )
