"""Connectionist temporal classification (CTC): −log of the probability of all alignments of a sequence.

A frame t of a sequence has probabilities p_t(k) = e^lp of C classes, one of them blank. An alignment emits one class in
each of T frames; what it stands for are its labels, repetitions taken for one and then blanks left out. With l the
labels and a blank before, between and behind them (S = 2U + 1 states),

    α_t(s) = p_t(l_s)·(α_{t−1}(s) + α_{t−1}(s − 1) + [l_s ≠ blank and l_s ≠ l_{s−2}]·α_{t−1}(s − 2))
    L = −log(α_{T−1}(S − 1) + α_{T−1}(S − 2))

Gradient. γ_t(k), the share of the alignments that emit k at t in the probability of all, is Σ α·β/Σ over the states
with that label, β the same sum from the other end. ∂L/∂lp is −γ. As torch has it, the gradient is that of logits whose
log-softmax lp is,

    c·(e^lp − γ)

which is right in front of a log_softmax whose own gradient subtracts nothing more: Σ_k (e^lp − γ) is 0 where
probabilities sum to 1.

Numerics. Probabilities of alignments leave every format: e^−2000 is a usual one. α and β are pairs with an exponent of
their own (numerics.extended), so that the recursion has no logarithm, and loses some 2^-90 in 1000 frames. e^lp − γ of
a label that is next to 1 is e^lp − 1 plus what the others have (kernels.ctc.frames). L is the logarithm of one such
number, within an ulp while it is above 2^-40: below, it keeps the absolute error of a probability next to 1.

Torch counterpart: torch.nn.functional.ctc_loss. Graves, Fernández, Gomez, Schmidhuber, "Connectionist Temporal
Classification", ICML 2006.
"""

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
            "log_probs": Argument(
                "log-probabilities", differentiable=True, class_axis=-1, batched=False, on_gpu=True, shape="T N C | T C"
            ),
            "targets": sequences("N U | L", batched=False),
            "input_lengths": lengths("N |", batched=False),
            "target_lengths": lengths("N |", batched=False),
        },
        parameters={"blank": Parameter(int, (0,)), **REDUCTION, "zero_infinity": Parameter(bool, (False, True))},
        mean="sequences",
        positive=False,
        per="row",
        losses="N |",
        order=147,
        follows="torch.nn.functional.ctc_loss",
        intermediates=("nll",),
        cases=cases.ctc,
        draw=cases.draw_log_probabilities,
        bounds=error_model.ctc,
        mistakes=cases.wrong_lengths,
    )
)
def ctc(
    log_probs: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    *,
    blank: int = 0,
    reduction: Reduction = "mean",
    zero_infinity: bool = False,
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Connectionist temporal classification of log-probabilities, as torch.nn.functional.ctc_loss.

    L = −log Σ Π_t e^lp_t(a_t) over all alignments a of the targets. "mean" divides each L by its target's length, or by
    1 if that is 0, and takes the mean over sequences. Gradient, of logits whose log_softmax lp is, as in torch: c·(e^lp
    − γ), with γ_t(k) the share of alignments that emit k at t. Held constant: nothing.

    Args:
        log_probs: log-probabilities [T, N, C], or [T, C] of one sequence; any float dtype and layout.
        targets: labels [N, U] whose first target_lengths count, or all of them one after the other in one axis; any
            integer dtype. What stands behind a target's length is not looked at.
        input_lengths: how many frames of each sequence count, [N], or a number for one sequence.
        target_lengths: how many labels each target has, likewise.
        blank: the class that stands for no label. A target may have it, too; its states are those of a label.
        reduction: "mean", "sum" or "none".
        zero_infinity: whether a sequence without any alignment has loss 0 and gradient 0; it counts in the mean.
        grad_output, grad, grad_dtype, out, backend: as in refloss.cross_entropy.

    Returns:
        loss in nats; [N] with "none", or a number for [T, C]. grads: "log_probs". intermediates: "nll", the loss of
        every sequence.

    Edges:
        No alignment (fewer frames than labels and repeated labels need, or −inf in the way): loss inf, gradient NaN
        for that sequence. A frame beyond the length has gradient 0, whatever it holds. −inf is a probability of 0, and
        so is what is below −2^40. No frames: 0 for an empty target, else inf. NaN or +inf at a label or at blank:
        NaN for that sequence; at another class only there. No sequences: "mean" NaN, "sum" 0.

    Raises:
        ValueError: a shape, a label, a length or an option that does not fit. TypeError: a dtype that does not.
    """
    x = arrays.float_array(log_probs, "log_probs")
    if x.ndim not in (2, 3):
        raise ValueError(f"log_probs has shape {x.shape}; expected [T, N, C] or [T, C]")
    arrays.choice(reduction, "reduction", alignments.REDUCTIONS)
    blank_class = alignments.blank_class(blank, "blank", x.shape[-1])
    count = x.shape[1] if x.ndim == 3 else 1
    labels = arrays.integer_array(targets, "targets")
    if labels.ndim not in (1, 2):
        raise ValueError(f"targets has shape {labels.shape}; expected [N, U] or one axis")
    of_inputs = alignments.lengths(input_lengths, "input_lengths", count, x.shape[0])
    of_targets = alignments.lengths(target_lengths, "target_lengths", count, labels.shape[-1])
    batch = Batch(
        "log_probs",
        x,
        False,
        count,
        1,
        _in_one_row(labels, of_targets, x.shape[-1]),
        of_inputs,
        of_targets,
        blank_class,
        x.shape[1:-1],
    )
    options = Options(grad_output, grad, grad_dtype, out, backend)
    return alignments.loss_of_alignments(
        batch, options, reduction=reduction, zero_infinity=arrays.flag(zero_infinity, "zero_infinity")
    )


def _in_one_row(labels: np.ndarray, lengths: np.ndarray, classes: int) -> np.ndarray:
    """The labels that count, one target after the other."""
    if labels.ndim == 2:
        arrays.check_shape(labels, (len(lengths), labels.shape[1]), "targets", "a row for each sequence")
        counts = np.arange(labels.shape[1]) < lengths[:, None]
        arrays.check_range(np.where(counts, labels, labels.dtype.type(0)), 0, classes - 1, "targets")
        return labels[counts].astype(np.int64)
    arrays.check_shape(
        labels, (int(lengths.sum()),), "targets", "[N, U], or as many labels as target_lengths add up to"
    )
    arrays.check_range(labels, 0, classes - 1, "targets")
    return labels.astype(np.int64)
