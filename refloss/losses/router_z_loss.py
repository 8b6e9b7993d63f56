"""Router z-loss: the logits of a mixture's router are to stay small.

Of logits z [..., E], of which N rows count,

    lse_i = log Σ_e e^z_ie,    L = (1/N)·Σ_i lse_i²,    ∂L/∂z_ie = (2/N)·lse_i·p_ie,    p = softmax(z)

Rows are taken apart in pairs (kernels/logits/row.py), and lse² is added up exactly. lse is a difference where the
largest logit is near −log Σ_e e^(z_e − max): what float64 logits leave of it there has the digits that pairs have.

Source: Zoph et al., "ST-MoE: Designing Stable and Transferable Sparse Expert Models", 2022, equation (5).
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from refloss.cases import routers as cases
from refloss.error_model import routers as error_model
from refloss.kernels.routers.loop import Given
from refloss.kernels.routers.run import Task, squares_of
from refloss.loss import loss
from refloss.losses.parts.routers import router_of
from refloss.numerics.exact import as_pair, exact, product, ratio, total
from refloss.options import Options
from refloss.result import Intermediates, LossResult
from refloss.specification import Argument, Specification, softmax_logits
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients


@loss(
    Specification(
        arguments={
            "router_logits": replace(softmax_logits(-1, shape="E|N E|L N E|L M N E"), layered=True),
            "mask": Argument("mask", optional=True, shape="..."),
        },
        mean="rows",
        per="row",
        order=97,
        follows="Megatron's z_loss_func",
        cases=cases.router_z_loss,
        draw=cases.draw_router_z_loss,
        bounds=error_model.router_z_loss,
        mistakes=cases.mistakes,
        intermediates=("lse",),
    )
)
def router_z_loss(
    router_logits: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """The mean of the squared log-sum-exp of a router's logits.

    L = (1/N)·Σ_i lse_i² over the N rows that count, of all layers together: where layers have one mask, the mean of
    their own means. ∂L/∂z_ie = (2/N)·lse_i·p_ie. Held constant: nothing. A coefficient is a matter of grad_output.

    Args:
        router_logits: z [..., E], any float dtype and layout; or a list of layers of one shape, as one array
            [L, ..., E]. With three axes or more the first one is that of layers.
        mask: which rows count, bool or 0 and 1: [...], or that without the axis of layers, and then the same for each;
            where tokens have one axis, of any shape with as many elements, such as [B, S]. What does not count is never
            read, and has the gradient 0.
        grad, grad_output, grad_dtype, out, backend: as in refloss.cross_entropy.

    Returns:
        loss. grads: "router_logits", one array for a list as well. intermediates: "lse" [...], 0 where a row does not
        count.

    Edges:
        −inf is legal, and has the gradient 0. A row that holds NaN or +inf makes the loss NaN, one of −inf alone makes
        it +inf, as in torch; the gradient of either is NaN. No row that counts: the loss is NaN, the gradient 0.

    Raises:
        ValueError: a shape, a mask or a buffer that does not fit. TypeError: a dtype that does not.
    """
    router = router_of(router_logits, mask)
    options, rows = Options(grad_output, grad, grad_dtype, out, backend), int(np.count_nonzero(router.counts))
    x, count = router.logits, Fraction(rows)
    gradient = options.buffer(x, "router_logits", wanted="router_logits" in options.wanted(("router_logits",)))
    factor = ratio(product(exact(float(options.cotangent(())[0])), Fraction(2)), count) if rows else 0.0
    chosen = np.zeros((len(router.counts), 0), np.int64)
    given = Given(router.counts, chosen, False, np.zeros(0), as_pair(factor))
    results = squares_of(Task(x, gradient, given, 0, len(chosen)), backend)
    return LossResult(
        loss=total(results.squares, rows),
        grads={} if gradient is None else {"router_logits": gradient},
        intermediates=Intermediates({"lse": results.lse.reshape(x.shape[:-1])}),
    )
