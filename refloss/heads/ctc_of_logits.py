"""Connectionist temporal classification of logits, the loss of models that recognise speech frame by frame."""

from __future__ import annotations

import numpy as np

from refloss import arrays
from refloss.cases import alignments as cases
from refloss.error_model import alignments as error_model
from refloss.loss import loss
from refloss.losses.parts import alignments
from refloss.losses.parts.alignments import Batch
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import REDUCTION, Argument, Parameter, Specification, lengths, sequences
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction


@loss(
    Specification(
        arguments={
            "logits": Argument(
                "logits",
                differentiable=True,
                class_axis=-1,
                activation="softmax",
                batched=False,
                on_gpu=True,
                shape="B T V",
            ),
            "labels": sequences("B U", batched=False),
            "logit_lengths": lengths("B", batched=False),
        },
        parameters={
            "blank_token_id": Parameter(int, structural=True),
            **REDUCTION,
            "zero_infinity": Parameter(bool, (False, True)),
            "ignore_index": Parameter(int, (-100, 1)),
        },
        mean="sequences",
        per="row",
        losses="B",
        keys=("ForCTC",),
        order=300,
        follows="transformers' ForCTCLoss",
        intermediates=("nll",),
        cases=cases.ctc_of_logits,
        draw=cases.draw_logits,
        bounds=error_model.ctc_of_logits,
        mistakes=cases.wrong_logit_lengths,
    )
)
def ctc_of_logits(
    logits: ArrayLike,
    labels: ArrayLike,
    logit_lengths: ArrayLike,
    blank_token_id: int,
    reduction: Reduction = "mean",
    zero_infinity: bool = False,
    ignore_index: int = -100,
    *,
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Connectionist temporal classification of logits, as transformers' ForCTCLoss.

    refloss.ctc of log_softmax(logits): L = −log Σ Π_t p_t(a_t) over all alignments a of the labels, p the softmax.
    Labels are those that are neither ignore_index nor blank_token_id, wherever they stand in a row. "mean" divides each
    L by the number of its labels, or by 1 if there are none, and takes the mean over sequences. Gradient: c·(p − γ),
    with γ_t(k) the share of alignments that emit k at t. Held constant: nothing.

    Args:
        logits: [B, T, V]; any float dtype, any layout.
        labels: [B, U] of any integer dtype.
        logit_lengths: how many frames of each sequence count, [B].
        blank_token_id: the class that stands for no label.
        reduction: "mean", "sum" or "none".
        zero_infinity: whether a sequence without any alignment has loss 0 and gradient 0; it counts in the mean.
        ignore_index: what fills up rows of labels, besides the blank.
        grad_output, grad, grad_dtype, out, backend: as in refloss.cross_entropy.

    Returns:
        loss in nats; [B] with "none". grads: "logits". intermediates: "nll", the loss of every sequence.

    Edges:
        As in refloss.ctc. A logit of −inf is a class of probability 0, with gradient 0 (NaN in torch); a frame of
        nothing else, and NaN or +inf in any class of a frame that counts, make a sequence NaN. transformers rounds
        float64 logits to float32 first; refloss does not.

    Raises:
        ValueError: a shape, a label, a length or an option that does not fit. TypeError: a dtype that does not.
    """
    x = arrays.float_array(logits, "logits")
    if x.ndim != 3:
        raise ValueError(f"logits has shape {x.shape}; expected [B, T, V]")
    arrays.choice(reduction, "reduction", alignments.REDUCTIONS)
    given = arrays.integer_array(labels, "labels")
    if given.ndim != 2 or len(given) != len(x):
        raise ValueError(f"labels has shape {given.shape}; expected [{len(x)}, U], a row for each of logits {x.shape}")
    blank = alignments.blank_class(blank_token_id, "blank_token_id", x.shape[2])
    ignore_index = arrays.label(ignore_index, "ignore_index")
    arrays.check_labels(given, x.shape[2], ignore_index, "labels")
    counts = (given != ignore_index) & (given != blank)
    batch = Batch(
        "logits",
        x,
        True,
        1,
        x.shape[1],
        given[counts].astype(np.int64),
        alignments.lengths(logit_lengths, "logit_lengths", len(x), x.shape[1]),
        counts.sum(axis=1),
        blank,
        x.shape[:1],
    )
    options = Options(grad_output, grad, grad_dtype, out, backend)
    return alignments.loss_of_alignments(
        batch, options, reduction=reduction, zero_infinity=arrays.flag(zero_infinity, "zero_infinity")
    )
