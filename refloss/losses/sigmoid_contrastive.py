"""Sigmoid contrastive loss (SigLIP): every pair of the batch is a binary classification.

Of a matrix z [N, N], whose row i and column j are two inputs' similarity, times a scale and with a bias, those on the
diagonal belong together: y = 2·I − 1.

    L = −(1/N)·Σ_ij log σ(y_ij·z_ij),    ∂L/∂z_ij = −y_ij·σ(−y_ij·z_ij)/N

Each element is a soft margin loss (losses/soft_margin.py), none of which cancels. The sum over all N² pairs is divided
by N. The signs are a view of 2N − 1 numbers: z_ij stands on the diagonal where j − i = 0.

Transformers counterpart: the loss in SiglipModel.forward (models/siglip/modeling_siglip.py); "none" gives its nll, the
sum of every row. Source: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss import arrays
from refloss.cases import contrastive as cases
from refloss.error_model import element_rows as error_model
from refloss.error_model.bound import Aligned
from refloss.loss import loss
from refloss.losses.parts.element_rows import loss_of_rows
from refloss.losses.parts.elementwise import REDUCTIONS
from refloss.losses.soft_margin import LOOP
from refloss.options import Options
from refloss.result import LossResult
from refloss.roundoff import STEPS, Roundoff
from refloss.specification import REDUCTION, Specification, similarities
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction

if TYPE_CHECKING:
    from refloss.cases.source import Case


def signs_of_pairs(count: int) -> np.ndarray:
    """2·I − 1 [N, N], of 2N − 1 numbers in memory."""
    line = np.full(max(2 * count - 1, 1), -1.0, np.float32)
    line[count - 1 : count] = 1.0
    step = line.itemsize
    view: np.ndarray = np.lib.stride_tricks.as_strided(
        line[max(count - 1, 0) :], (count, count), (-step, step), writeable=False
    )
    return view


def _bounds(case: Case, _: LossResult, unit: Roundoff) -> dict[str, Any]:
    logits = case.inputs["logits"]
    elements = Aligned(logits.shape, {"logits": logits, "sign": signs_of_pairs(len(logits))})

    def terms(first: int, last: int) -> error_model.Terms:
        part = elements.part(first, last)
        z = part["logits"] * part["sign"]
        missed = np.exp(-np.logaddexp(0.0, z))
        # σ(−z) may be e^(−z − log(1 + e^−z)), whose exponent is rounded twice, by at most the smaller of its terms.
        of_exponent = np.minimum(unit.between * np.abs(z), np.log1p(np.exp(-np.abs(z)))) / (STEPS * unit.between)
        return error_model.Terms(2.0 * np.logaddexp(0.0, -z), {"logits": missed * (2.0 + 2.0 * of_exponent)})

    reduction = case.parameters.get("reduction", "mean")
    return error_model.bounds(
        logits.shape, terms, {"logits": logits.shape}, case.grad_output, unit, width=1.0, reduction=reduction
    )


@loss(
    Specification(
        arguments={"logits": similarities("N N")},
        parameters=REDUCTION,
        mean="rows",
        per="row",
        axes=2,
        order=145,
        follows="the loss of transformers' SiglipModel",
        cases=cases.sigmoid_contrastive,
        draw=partial(cases.draw_pairs, name="logits"),
        bounds=_bounds,
        intermediates=("losses",),
    )
)
def sigmoid_contrastive(
    logits: ArrayLike,
    *,
    reduction: Reduction = "mean",
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Sigmoid contrastive loss of a matrix of similarities, as SigLIP has it.

    With y = 2·I − 1: ℓ_i = −Σ_j log σ(y_ij·z_ij); "mean" divides their sum by N, not by N². With c_i = grad_output over
    that: ∂/∂z_ij = −c_i·y_ij·σ(−y_ij·z_ij). Held constant: nothing. What logits are made of, two embeddings, a scale
    and a bias, is a matter of the chain rule: docs/contrastive.md.

    Args:
        logits: [N, N], scale and bias included; row i and column i are a pair. Any float dtype and layout.
        reduction: "mean", "sum" or "none", which gives ℓ, the sum of every row, [N].
        grad: True, False, or "logits".
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy.

    Returns:
        loss in nats. grads: "logits".
        intermediates: "losses" of the elements [N, N], computed from the inputs when asked for.

    Edges:
        A logit of −inf is 0 off the diagonal, and inf on it. No pairs: "mean" is NaN.

    Raises:
        ValueError: a shape, an option or a buffer that does not fit. TypeError: a dtype that does not.
    """
    arrays.choice(reduction, "reduction", REDUCTIONS)
    x = arrays.float_array(logits, "logits")
    if x.ndim != 2 or x.shape[0] != x.shape[1]:
        raise ValueError(f"logits has shape {x.shape}; expected [N, N]")
    return loss_of_rows(
        LOOP,
        {"logits": x, "pairs": signs_of_pairs(len(x))},
        Options(grad_output, grad, grad_dtype, out, backend),
        target_has_gradient=False,
        width=1,
        reduction=reduction,
    )
