"""TDT: a transducer that says with each token how many frames it skips.

A joint network gives two rows for t frames that are read and u labels that are written: logits of tokens, with
p = softmax, and of durations d_1 ... d_n, with q = softmax. With s = e^−σ,

    a blank and duration d_i > 0, of weight s·p(blank)·q_i, lead from (t, u) to (t + d_i, u),
    label u + 1 and duration d_i ≥ 0, of weight s·p(y_{u+1})·q_i, to (t + d_i, u + 1).

A path begins at (0, 0) and ends with a blank that arrives at (T, U): a label that arrives at T does not end it. With β
the sum over paths from a node to the end, and α over those to it, ℓ = −log β(0, 0), and the gradients are

    ∂ℓ/∂z_k = m·p_k − the share of paths that take an arc of token k,
    ∂ℓ/∂v_i = m·q_i − the share of paths that take an arc of duration i,

where m = α·β/β(0, 0) is the share of those that pass (t, u). σ makes every arc cost as much as another, so that paths
with fewer of them, and longer durations, are preferred.

Numerics. As of an RNN-T; a sure duration's difference is a sum over the others: kernels/transducer/lattice.py.

Counterpart: ParakeetForTDTLoss in transformers, after NeMo's TDTLossPytorch. Source: Xu et al., "Efficient Sequence
Transduction by Jointly Predicting Tokens and Durations", 2023.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from refloss import arrays
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
from refloss.specification import Parameter, Specification, lengths, reduction, softmax_logits
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients

_FIRST: Final = "mean"


@loss(
    Specification(
        arguments={
            "token_logits": softmax_logits(-1, shape="B T U+1 V"),
            "duration_logits": softmax_logits(-1, shape="B T U+1 D"),
            **what_is_written(),
            "durations": lengths("D", batched=False),
        },
        parameters={
            "blank_token_id": Parameter(int, structural=True),
            "sigma": Parameter(float, (0.0, 0.05, 0.5)),
            "reduction": reduction(_FIRST, *(word for word in REDUCTIONS if word != _FIRST)),
        },
        mean="sequences",
        per="sample",
        divisor=divisor,
        keys=("ParakeetForTDT",),
        order=302,
        follows="transformers' ParakeetForTDTLoss",
        cases=cases.tdt,
        draw=cases.draw_tdt,
        mistakes=cases.wrong_labels,
        bounds=error_model.tdt,
        intermediates=("nll",),
    )
)
def tdt(
    token_logits: ArrayLike,
    duration_logits: ArrayLike,
    labels: ArrayLike,
    logit_lengths: ArrayLike,
    label_lengths: ArrayLike,
    blank_token_id: int,
    durations: ArrayLike,
    sigma: float = 0.0,
    reduction: TransducerReduction = _FIRST,
    *,
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """TDT loss, as transformers' ParakeetForTDTLoss: −log of the labels' probability over alignments and durations.

    ℓ_b = −log Σ over paths of Π e^−σ·p·q: of blanks, which skip d_i > 0 frames, and labels, which skip d_i ≥ 0, up to a
    blank that arrives at the last frame's end. Gradients: of a token's logit m·p_k less the share of paths that take an
    arc of token k, of a duration's m·q_i less that of duration i, with m the share that passes the node; times c =
    grad_output over what the reduction divides by. Held constant: lengths, durations and σ.

    Args:
        token_logits: [B, T, U + 1, V] of the joint network, the blank's among them; any float dtype, any layout.
        duration_logits: [B, T, U + 1, D].
        labels: [B, U]; those beyond a sample's length may be anything, such as −100. A label may be the blank.
        logit_lengths: [B], frames of each sample, at most T.
        label_lengths: [B], labels of each sample, at most U.
        blank_token_id: the token that writes nothing.
        durations: [D], frames; of two that are equal each counts.
        sigma: what every arc costs, in nats; it is no part of the durations' logits.
        reduction: "mean" is that of ℓ/U, "mean_volume" Σ ℓ/Σ U, "mean_batch" the mean over samples, "sum", "none".
            Where U, or Σ U, is 0, 1 stands in for it.
        grad_output, grad, grad_dtype, out, backend: as in refloss.cross_entropy; out and grad_dtype are for the
            tokens' gradient.

    Returns:
        loss in nats, [B] for "none"; within 4 ulp. grads: "token_logits" and "duration_logits".
        intermediates: "nll", [B].

    Edges:
        As in refloss.rnnt. No path, as where no sum of durations is the number of frames: the loss is inf, the gradient
        NaN. A node that no path reaches has a gradient of 0; transformers' is NaN.

    Raises:
        ValueError: a shape, a length, a label or an option that does not fit. TypeError: a dtype that does not.
    """
    x, v = lattice_logits(token_logits, "token_logits", "V"), lattice_logits(duration_logits, "duration_logits", "D")
    arrays.check_shape(v, (*x.shape[:3], v.shape[3]), "duration_logits", "a row for each of token_logits")
    targets = checked_targets(x, labels, logit_lengths, label_lengths, blank_token_id)
    given = arrays.index_array(durations, "durations")
    arrays.check_shape(given, (v.shape[3],), "durations", "one for each of duration_logits")
    arrays.check_range(given, 0, np.iinfo(np.int32).max, "durations")
    steps = tuple(given.tolist())
    arcs = Arcs(steps, steps, arrays.number(sigma, "sigma", finite=True), v)
    options = Options(grad_output, grad, grad_dtype, out, backend)
    return transducer(x, targets, arcs, options, reduction=reduction, names=("token_logits", "duration_logits"))
