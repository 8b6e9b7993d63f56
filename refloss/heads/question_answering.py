"""Extractive question answering: where an answer starts and where it ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from refloss import arrays
from refloss.cases import language as cases
from refloss.heads.parts import error_model
from refloss.heads.parts.language import token_loss
from refloss.loss import loss
from refloss.options import Options
from refloss.result import Intermediates, LossResult
from refloss.specification import ITEMS, Argument, Specification, labels
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Scalar

_LOGITS = Argument("logits", differentiable=True, class_axis=1, activation="softmax", shape="B S")


@loss(
    Specification(
        arguments={
            "start_logits": _LOGITS,
            "end_logits": _LOGITS,
            "start_positions": replace(labels("start_logits", ignored=None), shape="B | B 1"),
            "end_positions": replace(labels("end_logits", ignored=None), shape="B | B 1"),
        },
        parameters=ITEMS,
        mean="labels",
        divisor=cases.answers_counted,
        padded=(0,),
        keys=("ForQuestionAnswering",),
        order=190,
        follows="transformers' ForQuestionAnsweringLoss",
        cases=cases.question_answering,
        bounds=error_model.question_answering,
        draw=cases.draw_answers,
        intermediates=tuple(
            f"{end}_{name}"
            for end in ("start", "end")
            for name in ("lse", "nll", "positions", "log_probabilities", "probabilities")
        ),
    )
)
def question_answering(
    start_logits: ArrayLike,
    end_logits: ArrayLike,
    start_positions: ArrayLike,
    end_positions: ArrayLike,
    *,
    num_items_in_batch: Scalar | None = None,
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    backend: Backend = "auto",
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
    sides = {"start": (start_logits, start_positions), "end": (end_logits, end_positions)}
    options = Options(grad_output, grad, grad_dtype, backend=backend)
    half = np.float64(arrays.number(grad_output, "grad_output")) / 2
    wanted = options.wanted([f"{side}_logits" for side in sides])
    inputs = {side: _inputs(side, logits, positions) for side, (logits, positions) in sides.items()}
    loss, grads, intermediates = np.float64(0.0), {}, Intermediates()
    for side, (logits, positions) in inputs.items():
        name = f"{side}_logits"
        of_side = token_loss(
            logits,
            logits,
            positions,
            options.of_part(half, grad=name in wanted),
            num_items_in_batch=num_items_in_batch,
            ignore_index=logits.shape[1],
        )
        loss += float(of_side.loss) / 2
        if "logits" in of_side.grads:
            grads[name] = of_side.grads["logits"]
        intermediates.include(of_side.intermediates.renamed(f"{side}_"))
        intermediates[f"{side}_positions"] = positions
    return LossResult(loss=loss, grads=grads, intermediates=intermediates)


def _inputs(side: str, values: Any, given: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits [B, S] and positions [B] clamped to [0, S]."""
    logits = arrays.float_array(values, f"{side}_logits")
    if logits.ndim != 2:
        raise ValueError(f"{side}_logits has shape {logits.shape}; expected [B, S]")
    positions = arrays.integer_array(given, f"{side}_positions")
    if positions.ndim > 1 and positions.shape[-1] == 1:
        positions = positions[..., 0]
    arrays.check_shape(positions, logits.shape[:1], f"{side}_positions", f"one for each row of {side}_logits")
    return logits, np.clip(positions, 0, logits.shape[1]).astype(np.int64)
