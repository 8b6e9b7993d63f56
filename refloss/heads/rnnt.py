"""RNN-T: the probability that a transducer writes a text, over all alignments with the frames that it hears.

A joint network gives a row of logits z[t, u] for t frames that are read and u labels that are written. With
p = softmax(z[t, u]) the model writes label u + 1 with p(y_{u+1}), and stays in its frame, or reads on with p(blank). A
path begins at (0, 0) and ends when the blank of (T − 1, U) is read:

    β(t, u) = p(blank)·β(t + 1, u) + p(y_{u+1})·β(t, u + 1),    β(T, U) = 1,    ℓ = −log β(0, 0)

With α(t, u) the probability of coming to a node, and m = α·β/β(0, 0) the share of paths that pass it,

    ∂ℓ/∂z[t, u]_k = m·p_k − [k = blank]·α·p(blank)·β(t + 1, u)/β(0, 0) − [k = y_{u+1}]·α·p(y)·β(t, u + 1)/β(0, 0)

Numerics. Probabilities are products of thousands of factors, and numbers with an exponent of their own hold them, so
that there is no logarithm in the recursion. Where the model is sure, the difference in the gradient is that of numbers
that are next to each other, and so is 1 − β: kernels/transducer/lattice.py says how neither loses its digits.

Counterpart: ParakeetForRNNTLoss in transformers, around torchaudio.functional.rnnt_loss. Source: Graves, "Sequence
Transduction with Recurrent Neural Networks", 2012; the names of reductions are NeMo's.
"""

from __future__ import annotations

import numpy as np

from refloss.cases import transducers as cases
from refloss.error_model import transducer as error_model
from refloss.heads.parts.transducer import (
    REDUCTIONS,
    Arcs,
    TransducerReduction,
    checked_targets,
    divisor,
    lattice_logits,
    transducer,
    what_is_written,
)
from refloss.loss import loss
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import Parameter, Specification, reduction, softmax_logits
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients


@loss(
    Specification(
        arguments={"logits": softmax_logits(-1, shape="B T U+1 V"), **what_is_written()},
        parameters={"blank_token_id": Parameter(int, structural=True), "reduction": reduction(*REDUCTIONS)},
        mean="sequences",
        per="sample",
        divisor=divisor,
        keys=("ParakeetForRNNT",),
        order=301,
        follows="transformers' ParakeetForRNNTLoss",
        cases=cases.rnnt,
        draw=cases.draw_rnnt,
        mistakes=cases.wrong_ends,
        bounds=error_model.rnnt,
        intermediates=("nll",),
    )
)
def rnnt(
    logits: ArrayLike,
    labels: ArrayLike,
    logit_lengths: ArrayLike,
    label_lengths: ArrayLike,
    blank_token_id: int,
    reduction: TransducerReduction = "mean_volume",
    *,
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """RNN-T loss, as transformers' ParakeetForRNNTLoss: −log of the probability of the labels over all alignments.

    ℓ_b = −log Σ over paths of Π p, of which each goes from (0, 0) by blanks, which read a frame, and labels, which do
    not, and ends with the blank of the last frame. Gradient: ∂ℓ_b/∂z[t, u]_k = m·p_k less the share of paths that take
    arc k, with m the share of those that pass (t, u); times c = grad_output over what the reduction divides by. A row's
    gradients sum to 0. Held constant: lengths.

    Args:
        logits: [B, T, U + 1, V] of the joint network, not normalised; any float dtype, any layout.
        labels: [B, U]; those beyond a sample's length may be anything, such as −100. A label may be the blank.
        logit_lengths: [B], frames of each sample, at most T.
        label_lengths: [B], labels of each sample, at most U.
        blank_token_id: the class that reads a frame.
        reduction: "mean_volume" is Σ ℓ/Σ U, "mean_batch" the mean over samples, "mean" that of ℓ/U, "sum", "none".
            Where U, or Σ U, is 0, 1 stands in for it.
        grad_output, grad, grad_dtype, out, backend: as in refloss.cross_entropy.

    Returns:
        loss in nats, [B] for "none"; within 4 ulp. grads: "logits". intermediates: "nll", [B].

    Edges:
        Rows of logits beyond the lengths are not read, and their gradient is 0. A logit of −inf has the probability 0
        and the gradient 0; one that is 2^40 below the row's largest counts as −inf. A row within the lengths with NaN,
        +inf, or only −inf: loss and gradient of the sample are NaN. No path (every one has a probability of 0): the
        loss is inf, and the gradient NaN, as of torch's ctc_loss: −log has no derivative there. A sample without frames
        has no path. A label that is the blank has its probability besides the blank's own: a loss may be below 0. No
        samples: every mean is NaN.

    Raises:
        ValueError: a shape, a length, a label or an option that does not fit. TypeError: a dtype that does not.
    """
    x = lattice_logits(logits, "logits", "V")
    targets = checked_targets(x, labels, logit_lengths, label_lengths, blank_token_id)
    options = Options(grad_output, grad, grad_dtype, out, backend)
    return transducer(x, targets, Arcs((1,), (0,)), options, reduction=reduction, names=("logits",))
