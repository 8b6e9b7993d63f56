"""Extractive question answering: where an answer starts and where it ends."""

from __future__ import annotations

from typing import Any

import numpy as np

from refloss import arrays
from refloss.heads.masked_lm import masked_lm
from refloss.placement import accepts_gpu_arrays
from refloss.result import LossResult


@accepts_gpu_arrays()
def question_answering(
    start_logits: Any,
    end_logits: Any,
    start_positions: Any,
    end_positions: Any,
    *,
    num_items_in_batch: Any = None,
    grad_output: Any = 1.0,
    grad: bool = True,
    grad_dtype: Any = None,
    backend: str = "auto",
    **ignored: Any,
) -> LossResult | None:
    """Mean of two cross-entropies over positions, as transformers' ForQuestionAnsweringLoss.

    L = (CE(start_logits, start_positions) + CE(end_logits, end_positions)) / 2, each the mean over the examples whose
    position lies in the sequence, or their sum over num_items_in_batch. Positions are clamped to [0, S], and S,
    beyond the last token, is ignored. Gradient: half of each cross-entropy's. Held constant: the numbers of examples.

    Args:
        start_logits, end_logits: [B, S]; any float dtype, any layout.
        start_positions, end_positions: [B] or [B, 1], or None.
        num_items_in_batch: number or array without axes that divides each sum, instead of the mean.
        grad_output, grad, grad_dtype, backend: as in refloss.cross_entropy.
        ignored: other keywords are ignored.

    Returns:
        None if a position is None. Else loss in nats; grads: "start_logits", "end_logits"; intermediates: "start_lse",
        "start_nll", "start_positions" (clamped), and the same for the end, [B].

    Edges:
        A negative position is clamped to 0, and counts. All positions outside: NaN, gradient 0.

    Raises:
        ValueError: a shape that does not fit. TypeError: a dtype that does not.
    """
    if start_positions is None or end_positions is None:
        return None
    parts = {"start": (start_logits, start_positions), "end": (end_logits, end_positions)}
    half = np.float64(arrays.number(grad_output, "grad_output")) / 2
    wanted = arrays.wanted_gradients(grad, [f"{name}_logits" for name in parts])
    loss = np.float64(0.0)
    result = LossResult(loss=None)
    for name, (values, given) in parts.items():
        logits = arrays.float_array(values, f"{name}_logits")
        if logits.ndim != 2:
            raise ValueError(f"{name}_logits has shape {logits.shape}; expected [B, S]")
        positions = arrays.integer_array(given, f"{name}_positions")
        if positions.ndim > 1 and positions.shape[-1] == 1:
            positions = positions[..., 0]
        arrays.check_shape(positions, logits.shape[:1], f"{name}_positions", f"one for each row of {name}_logits")
        size = logits.shape[1]
        clamped = np.clip(positions, 0, size).astype(np.int64)
        part = masked_lm(
            logits,
            clamped,
            None,
            num_items_in_batch,
            size,
            grad_output=half,
            grad=f"{name}_logits" in wanted,
            grad_dtype=grad_dtype,
            backend=backend,
        )
        loss += part.loss / 2
        result.grads.update({f"{name}_logits": gradient for gradient in part.grads.values()})
        result.intermediates.include(part.intermediates.renamed(f"{name}_"))
        result.intermediates[f"{name}_positions"] = clamped
    return LossResult(loss=loss, grads=result.grads, intermediates=result.intermediates)
