"""Log-probabilities of classes that rows name, and the rows' entropy: what policy and preference losses are made of.

Of a row's logits x, with the chain z = c·tanh(s·x/c)/T (z = s·x/T without a cap c) and p = softmax(z),

    log p_y = z_y − lse(z),    H = −Σ_j p_j·log p_j = lse(z) − Σ_j p_j·z_j
    ∂(Σ_k c_k·log p_{y_k} + h·H)/∂z_j = Σ_k c_k·([j = y_k] − p_j) − h·p_j·(log p_j + H)
    dz_j/dx_j = (s/T)·(1 − tanh²(s·x_j/c))

Numerics. Written as above, log p of a sure class, H of a sure row, and log p_j + H where a class has the average
surprise, are differences of which nothing may be left. With r a class of the largest z, in pairs of float64,

    a_j = z_r − z_j ≥ 0,    S = 1 + Σ_{j≠r} e^(−a_j),    D = Σ_{j≠r} e^(−a_j)·a_j/S
    log p_j = −a_j − log S,    H = log S + D,    log p_j + H = D − a_j

Both sums have terms of one sign, log S is log1p of the others, and both terms of log p_j and of H have one sign: only
D − a_j cancels. In a row of equal logits D and a are 0, and so is the entropy's gradient. 1 − p_r is the others' sum
over S. A class of −inf has the probability 0 and adds nothing to H: it is
left out, not multiplied by its logarithm.

Sources of the chain's order and of both outputs: TRL's add_fused_lm_head and selective_log_softmax; verl's
logprobs_from_logits. Entropy: Shannon, "A Mathematical Theory of Communication", 1948.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss import arrays
from refloss.cases import log_probs as cases
from refloss.error_model import log_probs as error_model
from refloss.kernels.log_probs.run import Task, log_probs_of_rows
from refloss.loss import loss
from refloss.losses.parts.chain import CHAIN_PARAMETERS, logit_options
from refloss.losses.parts.log_probs import COMPONENTS, asked_of
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import Argument, Specification, indices, softmax_logits
from refloss.typing import ArrayLike, Backend, Cotangents, DTypeLike, Gradients

if TYPE_CHECKING:
    from refloss.cases.draws import Drawn, Draws


def _draw(draws: Draws) -> Drawn:
    return cases.draw_selected_log_probs(draws, draws.parameters(CHAIN_PARAMETERS))


@loss(
    Specification(
        arguments={
            "logits": softmax_logits(-1),
            "index": indices("...|... K", of="logits"),
            "mask": Argument("mask", optional=True, shape="..."),
        },
        parameters=CHAIN_PARAMETERS,
        positive=False,
        per="row",
        in_parts=True,
        losses="...|... K",
        reduces=False,
        order=112,
        follows="TRL's selective_log_softmax",
        cases=cases.selected_log_probs,
        draw=_draw,
        bounds=error_model.selected_log_probs,
        mistakes=cases.mistakes,
        upstream_mistakes=cases.upstream_mistakes,
        components=COMPONENTS,
    )
)
def selected_log_probs(
    logits: ArrayLike,
    index: ArrayLike,
    *,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    mask: ArrayLike | None = None,
    grad_output: Cotangents = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Log-probabilities of one class or K classes of each row, and the row's entropy.

    z = c·tanh(s·x/c)/T, p = softmax(z): log p_y = z_y − lse(z), H = lse(z) − Σ_j p_j·z_j. With cotangents c_k of a
    row's log-probabilities and h of its entropy: ∂/∂z_j = Σ_k c_k·([j = y_k] − p_j) − h·p_j·(log p_j + H), times
    dz_j/dx_j = (s/T)·(1 − tanh²(s·x_j/c)). A class that is named twice counts twice. Held constant: nothing.

    Args:
        logits: x [..., V]; any float dtype and layout.
        index: classes y [...], or [..., K] for K classes a row; any integer dtype.
        logit_scale: s, any finite number.
        softcap: c, positive; None for none.
        temperature: T, positive.
        mask: [...], which rows count, bool or 0 and 1. Others have log-probabilities, entropy and gradient 0, whatever
            their logits are, and their index may be any number, such as −100.
        grad_output: the upstream gradient: a number or an array of the loss's shape, of the log-probabilities alone; or
            a mapping of "log_probs" and "entropy", each a number or an array of its shape, 0 where it is left out.
        grad, grad_dtype, out, backend: as in refloss.cross_entropy.

    Returns:
        loss in nats, the shape of index: log p, never above 0. grads: "logits". components: "log_probs", the same, and
        "entropy" [...] in nats.

    Edges:
        A z of −inf is legal: its class has probability 0, log p = −inf and no part in the entropy; its gradient is c_k
        where it is named, as torch has it, else 0; all else stays finite. A row whose z hold NaN or +inf, or −inf
        alone, has NaN for both and makes its gradient NaN: a negative s turns −inf into +inf, and s = 0 makes it NaN.
        With softcap ±inf is ±c, without a gradient. What overflows float64 in the chain is infinite.

    Raises:
        ValueError: a shape, an index of a row that counts, an option, a component or a buffer that does not fit.
        TypeError: a dtype that does not.
    """
    chain = logit_options(logit_scale, softcap, temperature).chain
    x = arrays.float_array(logits, "logits")
    if x.ndim == 0:
        raise ValueError("logits has shape (); expected [..., V]")
    asked = asked_of(index, mask, x.shape)
    options = Options(grad_output, grad, grad_dtype, out, backend)
    given = asked.given(grad_output, chain)
    gradient = options.buffer(x, "logits", wanted="logits" in options.wanted(("logits",)))
    results = log_probs_of_rows(Task(x, gradient, given), backend)
    return asked.result(results, {} if gradient is None else {"logits": gradient})
