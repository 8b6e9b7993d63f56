"""Causal language modelling: each position predicts the next token."""

from __future__ import annotations

from typing import Any

import numpy as np

from refloss import arrays
from refloss.heads.language import token_loss, token_rows
from refloss.placement import accepts_gpu_arrays
from refloss.result import LossResult


@accepts_gpu_arrays("logits", "out")
def causal_lm(
    logits: Any,
    labels: Any,
    vocab_size: int | None = None,
    num_items_in_batch: Any = None,
    ignore_index: int = -100,
    shift_labels: Any = None,
    *,
    grad_output: Any = 1.0,
    grad: bool = True,
    grad_dtype: Any = None,
    out: np.ndarray | None = None,
    backend: str = "auto",
    **ignored: Any,
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
        grad_output, grad, grad_dtype, out, backend: as in refloss.cross_entropy.
        ignored: other keywords are ignored, as transformers ignores them.

    Returns:
        loss in nats per item. grads: "logits". intermediates: "lse", "nll" (0 where ignored), "shift_labels", [B, S].

    Edges:
        As in refloss.cross_entropy. transformers rounds float64 logits to float32 first; refloss does not.

    Raises:
        ValueError: a shape or a label that does not fit. TypeError: a dtype that does not.
    """
    ignore_index = arrays.label(ignore_index, "ignore_index")
    shift = 1 if shift_labels is None else 0
    name = "labels" if shift else "shift_labels"
    tokens = arrays.integer_array(labels if shift else shift_labels, name)
    if tokens.ndim == 0:
        raise ValueError(f"{name} has shape (); expected [..., S]")
    x = arrays.float_array(logits, "logits")
    rows = token_rows(x, tokens.shape, vocab_size, name)
    targets = np.full(tokens.shape, ignore_index, dtype=np.int64)
    targets[..., : tokens.shape[-1] - shift] = _checked(tokens[..., shift:], rows.shape[-1], ignore_index, name, shift)
    result = token_loss(
        x,
        rows,
        targets,
        num_items_in_batch=num_items_in_batch,
        ignore_index=ignore_index,
        grad_output=grad_output,
        grad=bool(arrays.wanted_gradients(grad, ["logits"])),
        grad_dtype=grad_dtype,
        out=out,
        backend=backend,
    )
    result.intermediates["shift_labels"] = targets
    return result


def _checked(tokens: np.ndarray, classes: int, ignore_index: int, name: str, shift: int) -> np.ndarray:
    arrays.check_labels(tokens, classes, ignore_index, name, lambda index: (*index[:-1], index[-1] + shift))
    return tokens
