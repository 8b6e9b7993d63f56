"""What the language heads share: a mean over tokens, or a sum over a given number of items."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss import arrays
from refloss.losses import cross_entropy
from refloss.losses.parts.chain import UNCHANGED, cross_entropy_rows
from refloss.result import Intermediates, LossResult

if TYPE_CHECKING:
    from refloss.losses.parts.chain import LogitOptions
    from refloss.options import Options


def token_rows(
    logits: np.ndarray,
    labels_shape: tuple[int, ...],
    vocab_size: Any,
    name: str,
    logits_name: str = "logits",
    size_name: str = "vocab_size",
) -> np.ndarray:
    """Logits with the vocabulary on the last axis and a row for every label, as transformers' view(-1, vocab_size)."""
    if logits.ndim == 0:
        raise ValueError(f"{logits_name} has shape (); expected [..., V]")
    size = logits.shape[-1] if vocab_size is None else arrays.integer(vocab_size, size_name, low=0)
    count = math.prod(labels_shape)
    if count * size != logits.size or (size == 0 and math.prod(logits.shape[:-1]) != count):
        raise ValueError(
            f"{logits_name} has shape {logits.shape} and {size_name} is {size}; "
            f"expected a row for each of {name} {labels_shape}, {count} in all"
        )
    return logits if logits.shape[-1] == size else logits.reshape(count, size)


def token_loss(
    logits: np.ndarray,
    rows: np.ndarray,
    labels: np.ndarray,
    options: Options,
    *,
    num_items_in_batch: Any,
    ignore_index: int,
    of_logits: LogitOptions = UNCHANGED,
) -> LossResult:
    """Cross-entropy of the rows of logits, after a chain, with labels: the mean, or the sum over num_items_in_batch."""
    options = options._replace(out=arrays.reshaped_out(options.out, logits.shape, rows.shape))
    divisor = 1.0 if num_items_in_batch is None else arrays.number(num_items_in_batch, "num_items_in_batch", low=0.0)
    result = cross_entropy_rows(
        cross_entropy.LOOP,
        rows,
        labels,
        options,
        of_logits,
        class_axis=rows.ndim - 1,
        ignore_index=ignore_index,
        reduction="mean" if num_items_in_batch is None else "sum",
        divisor=divisor,
    )
    return LossResult(
        loss=result.loss,
        grads={name: gradient.reshape(logits.shape) for name, gradient in result.grads.items()},
        components=result.components,
        intermediates=Intermediates(
            {name: value.reshape(labels.shape) for name, value in result.intermediates.computed().items()},
            log_probabilities=lambda: result.intermediates["log_probabilities"].reshape(logits.shape),
            probabilities=lambda: result.intermediates["probabilities"].reshape(logits.shape),
        ),
    )
