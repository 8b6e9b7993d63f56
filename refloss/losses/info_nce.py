"""InfoNCE (CLIP): of a matrix of similarities, every row and every column is to find its own pair.

Of S [N, N], whose row i and column i are a pair, with r_i = log Σ_j e^S_ij and k_j = log Σ_i e^S_ij,

    L = (1/N)·Σ_i ½·((r_i − S_ii) + (k_i − S_ii))
    ∂L/∂S_ij = (1/2N)·(p_ij + p'_ij − 2·[i = j]),    p_ij = e^(S_ij − r_i),  p'_ij = e^(S_ij − k_j)

which is the mean of the cross-entropies of S and of its transpose. With label smoothing ε, the masses of both are
q = (1 − ε)·I + ε/N instead of I. An element of the gradient is the sum of a row's and a column's, each of which may be
much larger; it is rounded once (kernels/contrastive). On the diagonal 2 − p − p' is the sum of the others'
probabilities.

Without "symmetric" it is the cross-entropy of the rows alone, which may have more columns: [N, M], of which the last
M − N are negatives of every row.

Transformers counterparts: image_text_contrastive_loss of models/clip, with smoothing align_loss of models/align.
Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021; van den Oord et
al., "Representation Learning with Contrastive Predictive Coding", 2018.
"""

from __future__ import annotations

import numpy as np

from refloss import arrays
from refloss.cases import contrastive as cases
from refloss.error_model import contrastive as error_model
from refloss.kernels.contrastive.run import pair_losses
from refloss.loss import loss
from refloss.losses import cross_entropy
from refloss.losses.parts.softmax import REDUCTIONS, softmax_rows
from refloss.numerics.exact import total
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import REDUCTION, Parameter, Specification, similarities
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction


@loss(
    Specification(
        arguments={"similarity": similarities("N N | N M")},
        parameters={
            "symmetric": Parameter(bool, (True, False)),
            "label_smoothing": Parameter(float, (0.0, 0.1, 1.0)),
            **REDUCTION,
        },
        mean="rows",
        per="row",
        axes=2,
        order=146,
        follows="transformers' image_text_contrastive_loss",
        cases=cases.info_nce,
        draw=cases.draw_info_nce,
        bounds=error_model.info_nce,
    )
)
def info_nce(
    similarity: ArrayLike,
    *,
    symmetric: bool = True,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Cross-entropy of pairs among all, by rows and by columns, as CLIP has it.

    ℓ_i = ½·(CE(S_i·, i) + CE(S_·i, i)), with "symmetric" off CE(S_i·, i) alone; "mean" divides their sum by N. With
    c_i = grad_output over that and q = (1 − ε)·I + ε/N: ∂/∂S_ij = ½·(c_i·(p_ij − q_ij) + c_j·(p'_ij − q_ij)), p the
    softmax of rows and p' that of columns; of rows alone c_i·(p_ij − q_ij), with ε/M in q. Held constant: nothing. What
    similarities are made of, two embeddings and a scale, is a matter of the chain rule: docs/contrastive.md.

    Args:
        similarity: S [N, N], scale included; row i and column i are a pair. [N, M] with M ≥ N where it is of rows
            alone. Any float dtype and layout.
        symmetric: whether columns count as well.
        label_smoothing: ε in [0, 1].
        reduction: "mean", "sum" or "none", which gives ℓ [N].
        grad: True, False, or "similarity".
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy.

    Returns:
        loss in nats. grads: "similarity".

    Edges:
        −inf is legal: no pair. A row or a column that holds NaN or +inf, or −inf alone, has the loss NaN and makes its
        gradient NaN. No pairs: "mean" is NaN.

    Raises:
        ValueError: a shape, a range, an option or a buffer that does not fit. TypeError: a dtype that does not.
    """
    arrays.choice(reduction, "reduction", REDUCTIONS)
    smoothing = arrays.number(label_smoothing, "label_smoothing")
    if not 0.0 <= smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {smoothing}; expected a number in [0, 1]")
    both = arrays.flag(symmetric, "symmetric")
    x = arrays.float_array(similarity, "similarity")
    if x.ndim != 2 or x.shape[1] < x.shape[0] or (both and x.shape[1] > x.shape[0]):
        expected = "[N, N]" if both else "[N, M] with M of at least N"
        raise ValueError(f"similarity has shape {x.shape}; expected {expected}")
    options, count = Options(grad_output, grad, grad_dtype, out, backend), len(x)
    wanted = bool(options.wanted(("similarity",)))
    gradient = options.buffer(x, "similarity", wanted=wanted)
    grads = {} if gradient is None else {"similarity": gradient}
    if not both:
        result = softmax_rows(
            cross_entropy.LOOP,
            x,
            np.arange(count),
            options._replace(grad=wanted, grad_dtype=None, out=gradient),
            class_axis=1,
            label_smoothing=smoothing,
            reduction=reduction,
        )
        return LossResult(loss=result.loss, grads=grads)
    losses = pair_losses(
        x,
        gradient,
        label_smoothing=smoothing,
        cotangent=options.cotangent((count,) if reduction == "none" else ()),
        divisor=count if reduction == "mean" else 1,
        backend=backend,
    )
    return LossResult(
        loss=losses if reduction == "none" else total(losses, count if reduction == "mean" else 1), grads=grads
    )
