"""Causal language modelling: each position predicts the next token."""

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
        arguments={
            "logits": softmax_logits(-1, shape="B S V | ... V"),
            "labels": tokens("logits", shift=1),
            "shift_labels": tokens("logits", optional=True),
        },
        parameters={
            "vocab_size": Parameter(int, structural=True),
            **ITEMS,
            **IGNORE_INDEX,
            **CHAIN_PARAMETERS,
            **Z_LOSS,
        },
        mean="labels",
        in_parts=True,
        divisor=partial(cases.tokens_counted, shift=1),
        padded=(0, 1),
        keys=("ForCausalLM", "ForConditionalGeneration", "CsmForConditionalGeneration"),
        order=150,
        follows="transformers' ForCausalLMLoss",
        counts_tokens=True,
        components=COMPONENTS,
        intermediates=("lse", "nll", "shift_labels", "log_probabilities", "probabilities"),
        mistakes=partial(cases.wrong_shifts, shift=1),
        cases=chain_cases.causal_lm,
        bounds=softmax.tokens,
        draw=partial(cases.draw_tokens, options=CHAIN_PARAMETERS | Z_LOSS, size_name="vocab_size", shifted=True),
    )
)
def causal_lm(
    logits: Any,
    labels: Any,
    vocab_size: int | None = None,
    num_items_in_batch: Any = None,
    ignore_index: int = -100,
    shift_labels: Any = None,
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
    """Next-token cross-entropy, as transformers' ForCausalLMLoss.

    L = (1/n)·Σ_s (lse(x_s) − x_s[y_s]) with y_s = labels[..., s + 1], over the positions whose y_s is not ignore_index;
    the last position of each sequence has no next token and is ignored. n is the number of positions that count, or
    num_items_in_batch. Gradient: ∂L/∂x_s = (grad_output/n)·(softmax(x_s) − onehot(y_s)). Held constant: n.

    Args:
        logits: [B, S, V], or any shape with V last; any float dtype, any layout.
        labels: [B, S] tokens, not shifted; the first of each sequence is never a target. Unused with shift_labels.
        vocab_size: V, the last axis of logits if not given.
        num_items_in_batch: number or array without axes that divides the sum, instead of the mean; with it,
            micro-batches add up to the whole batch.
        ignore_index: label of positions that do not count; any integer, a valid class included.
        shift_labels: [B, S] tokens that are already the targets.
        logit_scale, softcap, temperature, z_loss: as in refloss.cross_entropy; transformers' models cap and scale
            logits before.
        grad_output, grad, grad_dtype, out, backend: as in refloss.cross_entropy.

    Returns:
        loss in nats per item. grads: "logits". intermediates: "lse", "nll" (0 where ignored), "shift_labels", [B, S].
        components, with a z_loss: "cross_entropy" and "z_loss".

    Edges:
        As in refloss.cross_entropy. transformers rounds float64 logits to float32 first; refloss does not.

    Raises:
        ValueError: a shape or a label that does not fit. TypeError: a dtype that does not.
    """
    ignore_index = arrays.label(ignore_index, "ignore_index")
    shift = 1 if shift_labels is None else 0
    name = "labels" if shift else "shift_labels"
    given = arrays.integer_array(labels if shift else shift_labels, name)
    if given.ndim == 0:
        raise ValueError(f"{name} has shape (); expected [..., S]")
    x = arrays.float_array(logits, "logits")
    rows = token_rows(x, given.shape, vocab_size, name)
    targets = np.full(given.shape, ignore_index, dtype=np.int64)
    targets[..., : given.shape[-1] - shift] = _checked(given[..., shift:], rows.shape[-1], ignore_index, name, shift)
    of_logits = logit_options(logit_scale, softcap, temperature, z_loss)
    options = Options(grad_output, grad, grad_dtype, out, backend)
    result = token_loss(
        x, rows, targets, options, num_items_in_batch=num_items_in_batch, ignore_index=ignore_index, of_logits=of_logits
    )
    result.intermediates["shift_labels"] = targets
    return result


def _checked(tokens: np.ndarray, classes: int, ignore_index: int, name: str, shift: int) -> np.ndarray:
    arrays.check_labels(tokens, classes, ignore_index, name, lambda index: (*index[:-1], index[-1] + shift))
    return tokens
