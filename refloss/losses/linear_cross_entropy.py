"""Cross-entropy of logits that are a linear layer's, without the logits: X·Wᵀ + b is never all in memory.

For a hidden state x of K numbers, the weights W [V, K] and the biases b of V classes,

    z_v = Σ_k x_k·W_vk + b_v        y = chain(z)        L = Σ_v q_v·(lse(y) − y_v) + ζ·lse(y)²

with the chain, the masses q and the z-loss of refloss.cross_entropy. With g_v = ∂L/∂z_v, which has the row's cotangent
in it before anything is summed,

    ∂L/∂x_k = Σ_v g_v·W_vk        ∂L/∂W_vk = Σ_rows g_v·x_k        ∂L/∂b_v = Σ_rows g_v

Classes may have weights for each of several places, W [V, d1, ..., K]: every place has a row of logits with a loss of
its own, and ∂L/∂x sums over places, too.

Numerics. Logits are of numbers taken as exact: pairs of float64, good to 2^-96 of Σ_k |x_k·W_vk|, from matrix products
of slices of so few bits that float64 adds them without an error in any order (numerics.slices). The gradient of a logit
is a pair as well. Sums of such, times a number of W or X each, are formed from slices of three times 22 bits below the
largest of a row (four, for float64), with a bound of what that leaves out; where it could show in the rounding, the
element is computed again as a sum of pairs. What is rounded once is so good to 2^-90, and 2^-103 for each term,
of the sum of its terms' magnitudes: where more than 2^25 of that cancels, fewer digits of a float32 may be right, and
of float64 fewer from the first bits on that cancel. A sum whose terms cancel to less than that is 0.

Memory: beside inputs and gradients some 600 MB, or what one row needs, 112 bytes for each class, if that is more; and
some 220 bytes for each loss. With places the weights, the biases and their gradients are there twice.
Matrix products are NumPy's, on its BLAS, on any backend; the bits depend neither on it nor on its threads.

Torch counterpart: torch.nn.functional.linear_cross_entropy. Sources: Wijmans et al., "Cut Your Losses in
Large-Vocabulary Language Models", 2025; Hsu et al., "Liger Kernel", 2024; Ozaki, Ogita, Oishi, Rump, "Error-free
transformations of matrix multiplication", 2012.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from refloss import arrays
from refloss.cases import linear as cases
from refloss.dispatch import runs_on_gpu
from refloss.error_model import linear as error_model
from refloss.kernels.linear.rows import CrossEntropyRows
from refloss.kernels.logits.run import ChainTask
from refloss.kernels.softmax.loop import Task
from refloss.loss import loss
from refloss.losses import cross_entropy as plain
from refloss.losses.parts.chain import CHAIN_PARAMETERS, COMPONENTS, Z_LOSS, LogitOptions, cotangents, logit_options
from refloss.losses.parts.linear import (
    LOGITS_DTYPE,
    PLACED_BIAS,
    PLACED_WEIGHT,
    Layer,
    gradient_buffers,
    layer_of,
    rounding_of,
    run_layer,
)
from refloss.losses.parts.softmax import REDUCTIONS, RowOptions, factor_of_each_class
from refloss.options import Options
from refloss.result import Intermediates, LossResult
from refloss.specification import IGNORE_INDEX, REDUCTION, Argument, Parameter, Specification, class_weight
from refloss.typing import ArrayLike, Backend, Cotangents, DTypeLike, Gradients, Reduction

if TYPE_CHECKING:
    from refloss.kernels.products.loop import Rounding


@loss(
    Specification(
        arguments={
            "input": Argument("vectors", differentiable=True, batched=False, shape="N K|K"),
            "linear_weight": PLACED_WEIGHT,
            "target": Argument(
                "classes", differentiable=True, of="linear_weight", batched=False, shape="N|N V|V||N V ...|N ..."
            ),
            "linear_bias": PLACED_BIAS,
            "weight": class_weight(),
        },
        parameters=IGNORE_INDEX
        | REDUCTION
        | {"label_smoothing": Parameter(float, (0.0, 0.1, 1.0))}
        | CHAIN_PARAMETERS
        | Z_LOSS
        | LOGITS_DTYPE,
        mean="labels",
        per="row",
        losses="N|N ...",
        divisor=cases.divisor,
        order=141,
        follows="torch.nn.functional.linear_cross_entropy",
        components=COMPONENTS,
        intermediates=("lse", "nll"),
        cases=cases.linear_cross_entropy,
        draw=cases.draw_linear_cross_entropy,
        bounds=error_model.linear_cross_entropy,
        mistakes=cases.layer_mistakes,
    )
)
def linear_cross_entropy(
    input: ArrayLike,  # noqa: A002
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    z_loss: float = 0.0,
    logits_dtype: DTypeLike | None = None,
    grad_output: Cotangents = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Cross-entropy of a linear layer's outputs, as torch.nn.functional.linear_cross_entropy, without storing them.

    Of the logits input·linear_weightᵀ + linear_bias, which are exact: the loss that refloss.cross_entropy has of them,
    with all of its options. Gradients: of input Σ_v g_v·W_v, of linear_weight Σ_i g_iv·x_i, of linear_bias Σ_i g_iv,
    where g is that of the logits, upstream gradients included; each is rounded once. Held constant: nothing; where
    logits are rounded, the gradient is that of the logits before, as if they had not been.

    Args:
        input: X [N, K] or [K]; any float dtype, any layout.
        linear_weight: W [V, K], or [V, d1, ..., K] for outputs that have axes of places; any float dtype, any layout.
        target: labels [N] (or a scalar for [K]) of any integer dtype, or probabilities [N, V] or [V]; with places
            [N, d1, ...] or [N, V, d1, ...].
        linear_bias: b [V] or [V, d1, ...].
        weight: [V], a factor for each class.
        ignore_index: rows with this label have loss 0 and gradient 0, whatever their input; it may be a valid class.
        reduction: "mean", "sum" or "none".
        label_smoothing: ε in [0, 1].
        logit_scale, softcap, temperature, z_loss: as in refloss.cross_entropy.
        logits_dtype: "bfloat16", "float16", "float32" or such a dtype: logits are rounded to it, once, before anything
            else, as by libraries that write them down; None leaves them exact.
        grad_output: the upstream gradient; with "none" a number or an array of the loss's shape; with a z-loss also a
            mapping of its components.
        grad: True, False, or the names of the inputs whose gradients to compute.
        grad_dtype: dtype of the gradient of input instead of its own.
        out: an array of the shape of input that receives its gradient; not overlapping the arguments.
        backend: "auto", "cpu" or "cuda", which computes on the host as well: the products are those of its BLAS.

    Returns:
        loss in nats, float64. components with a z-loss: "cross_entropy" and "z_loss". grads: "input", "linear_weight",
        "linear_bias" if it is given, and "target" for probabilities. intermediates, in the shape of the loss with
        "none": "lse" (of every row) and "nll", as in refloss.cross_entropy.

    Edges:
        As in refloss.cross_entropy. Without a row that counts "mean" is NaN and the gradients are 0, where torch's own
        path by chunks has NaN. What is not finite in a row of input makes its logits what plain arithmetic does, and
        with them every gradient of linear_weight, unless the row is ignored. No features, K = 0: logits are the biases.

    Raises:
        ValueError: a shape, a label, an option or a buffer that does not fit. TypeError: a dtype that does not.
    """
    layer = layer_of(input, linear_weight, linear_bias, rows=False)
    arrays.choice(reduction, "reduction", REDUCTIONS)
    smoothing = arrays.number(label_smoothing, "label_smoothing")
    if not 0.0 <= smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {smoothing}; expected a number in [0, 1]")
    of_logits = logit_options(logit_scale, softcap, temperature, z_loss)
    ignored = arrays.label(ignore_index, "ignore_index")
    labels = plain.checked_target(target, layer.logits_shape, layer.x.ndim - 1, ignored, "input·linear_weightᵀ")
    rounding = rounding_of(logits_dtype)
    # What lives on a GPU has been copied, and its gradients go back there.
    runs_on_gpu(backend)
    rows = RowOptions(1, factor_of_each_class(weight, len(layer.w)), smoothing, ignored, reduction)
    return _computed(layer, labels, Options(grad_output, grad, grad_dtype, out, backend), of_logits, rows, rounding)


def _computed(
    layer: Layer,
    labels: np.ndarray,
    options: Options,
    of_logits: LogitOptions,
    rows: RowOptions,
    rounding: Rounding,
) -> LossResult:
    probabilities = arrays.is_float(labels)
    grads = gradient_buffers(layer, options, **({"target": labels} if probabilities else {}))
    loss_shape = (*layer.x.shape[:-1], *layer.places)
    cotangent, of_z_loss = cotangents(
        options.grad_output, loss_shape if rows.reduction == "none" else (), of_logits.z_loss
    )
    task = Task(
        loop=plain.LOOP,
        parameters=(),
        logits=np.broadcast_to(np.float64(0.0), (math.prod(loss_shape), len(layer.w))),
        target=_rows(labels) if probabilities else np.ascontiguousarray(labels.reshape(-1), dtype=np.int64),
        cotangent=cotangent,
        gradient=None,
        target_gradient=_rows(grads["target"]) if "target" in grads else None,
        **rows._asdict(),
    )
    of_rows = CrossEntropyRows(ChainTask(task, of_logits.chain, of_logits.z_loss, of_z_loss), math.prod(layer.places))
    run_layer(layer, of_rows, grads, rounding)
    answer = of_rows.answer()
    shaped = [part.reshape(loss_shape) if rows.reduction == "none" else part for part in answer[:3]]
    return LossResult(
        loss=shaped[0],
        grads=grads,
        components=dict(zip(COMPONENTS, shaped[1:], strict=True)) if of_logits.z_loss else {},
        intermediates=Intermediates({"lse": answer.lse.reshape(loss_shape), "nll": answer.nll.reshape(loss_shape)}),
    )


def _rows(array: np.ndarray) -> np.ndarray:
    return array[None] if array.ndim == 1 else array
