"""Log-probabilities of classes that rows name, and the rows' entropy, of logits that are a linear layer's.

For a hidden state x of K' numbers, the weights W [V, K'] and the biases b of V classes,

    z_v = Σ_k x_k·W_vk + b_v        y = chain(z)        log p_v = y_v − lse(y)        H = −Σ_v p_v·log p_v

with the chain and the gradient g_v = ∂(Σ_k c_k·log p_{y_k} + h·H)/∂z_v of refloss.selected_log_probs,

    ∂/∂x_k = Σ_v g_v·W_vk        ∂/∂W_vk = Σ_rows g_v·x_k        ∂/∂b_v = Σ_rows g_v

Numerics. Logits, and sums of products of their gradients, are those of refloss.linear_cross_entropy: exact to 2^-96 of
Σ_k |x_k·W_vk|, gradients as pairs, and what is rounded once is good to 2^-90, and 2^-103 for each term, of
the sum of its terms' magnitudes, which are |c|·([v = y] + p_v) + |h|·p_v·(|log p_v| + H), times a number of W or X
each. Of a pair of logits log p, H and g are what refloss.selected_log_probs has of a number. Memory and bits are as
there, too: [N, V] is never held, and neither blocks, threads, BLAS nor the backend show.

Sources: TRL's add_fused_lm_head and selective_log_softmax; verl's linear_cross_entropy, which has both outputs.
"""

from __future__ import annotations

import numpy as np

from refloss.cases import linear as cases
from refloss.cases.log_probs import upstream_mistakes
from refloss.dispatch import runs_on_gpu
from refloss.error_model import linear as error_model
from refloss.kernels.linear.rows import LogProbRows
from refloss.loss import loss
from refloss.losses.parts.chain import CHAIN_PARAMETERS, logit_options
from refloss.losses.parts.linear import (
    LINEAR_BIAS,
    LINEAR_WEIGHT,
    LOGITS_DTYPE,
    gradient_buffers,
    layer_of,
    rounding_of,
    run_layer,
)
from refloss.losses.parts.log_probs import COMPONENTS, asked_of
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import Argument, Specification
from refloss.typing import ArrayLike, Backend, Cotangents, DTypeLike, Gradients


@loss(
    Specification(
        arguments={
            "input": Argument("vectors", differentiable=True, batched=False, shape="... K"),
            "linear_weight": LINEAR_WEIGHT,
            "index": Argument("indices", of="linear_weight", ignored=None, batched=False, shape="...|... I"),
            "linear_bias": LINEAR_BIAS,
            "mask": Argument("mask", optional=True, batched=False, shape="..."),
        },
        parameters=CHAIN_PARAMETERS | LOGITS_DTYPE,
        positive=False,
        per="row",
        losses="...|... I",
        reduces=False,
        order=142,
        follows="verl's linear_cross_entropy",
        cases=cases.linear_selected_log_probs,
        draw=cases.draw_linear_selected_log_probs,
        bounds=error_model.linear_selected_log_probs,
        mistakes=cases.log_prob_mistakes,
        upstream_mistakes=upstream_mistakes,
        components=COMPONENTS,
    )
)
def linear_selected_log_probs(
    input: ArrayLike,  # noqa: A002
    linear_weight: ArrayLike,
    index: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    mask: ArrayLike | None = None,
    logits_dtype: DTypeLike | None = None,
    grad_output: Cotangents = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Log-probabilities of classes and entropies of rows of a linear layer's outputs, without storing those.

    Of the logits input·linear_weightᵀ + linear_bias, which are exact, what refloss.selected_log_probs has of them.
    Gradients: of input Σ_v g_v·W_v, of linear_weight Σ_i g_iv·x_i, of linear_bias Σ_i g_iv, where g is that of the
    logits, upstream gradients included; each is rounded once. Held constant: nothing; where logits are rounded, the
    gradient is that of the logits before, as if they had not been.

    Args:
        input: X [..., K]; any float dtype, any layout.
        linear_weight: W [V, K]; any float dtype, any layout.
        index: classes [...], or [..., I] for I classes a row; any integer dtype.
        linear_bias: b [V].
        logit_scale, softcap, temperature: as in refloss.selected_log_probs.
        mask: [...], which rows count, bool or 0 and 1. Others have log-probabilities, entropy and gradient 0, whatever
            their input is, and their index may be any number, such as −100.
        logits_dtype: "bfloat16", "float16", "float32" or such a dtype: logits are rounded to it, once, before anything
            else; None leaves them exact.
        grad_output: the upstream gradient: a number or an array of the loss's shape, of the log-probabilities alone; or
            a mapping of "log_probs" and "entropy", each a number or an array of its shape, 0 where it is left out.
        grad, grad_dtype, out, backend: as in refloss.linear_cross_entropy.

    Returns:
        loss in nats, the shape of index: log p, never above 0. grads: "input", "linear_weight", and "linear_bias" if it
        is given. components: "log_probs", the same, and "entropy" [...] in nats.

    Edges:
        As in refloss.selected_log_probs: a bias of −inf masks its class. What is not finite in a row of input makes its
        logits what plain arithmetic does, and with them every gradient of linear_weight, unless the row does not count.
        No features, K = 0: logits are the biases.

    Raises:
        ValueError: a shape, an index of a row that counts, an option, a component or a buffer that does not fit.
        TypeError: a dtype that does not.
    """
    layer = layer_of(input, linear_weight, linear_bias, rows=True)
    chain = logit_options(logit_scale, softcap, temperature).chain
    asked = asked_of(index, mask, layer.logits_shape, "input·linear_weightᵀ")
    rounding = rounding_of(logits_dtype)
    # What lives on a GPU has been copied, and its gradients go back there.
    runs_on_gpu(backend)
    options = Options(grad_output, grad, grad_dtype, out, backend)
    rows = LogProbRows(asked.given(grad_output, chain))
    grads = gradient_buffers(layer, options)
    run_layer(layer, rows, grads, rounding)
    return asked.result(rows.results, grads)
