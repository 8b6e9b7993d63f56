"""Cross-entropy of logits that are a linear layer's, without the logits: X·Wᵀ + b is never all in memory.

For a hidden state x of K numbers, the weights W [V, K] and the biases b of V classes,

    z_v = Σ_k x_k·W_vk + b_v        y = chain(z)        L = Σ_v q_v·(lse(y) − y_v) + ζ·lse(y)²

with the chain, the masses q and the z-loss of refloss.cross_entropy. With g_v = ∂L/∂z_v, which has the row's cotangent
in it before anything is summed,

    ∂L/∂x_k = Σ_v g_v·W_vk        ∂L/∂W_vk = Σ_rows g_v·x_k        ∂L/∂b_v = Σ_rows g_v

Numerics. Logits are of numbers taken as exact: pairs of float64, good to 2^-96 of Σ_k |x_k·W_vk|, from matrix products
of slices of so few bits that float64 adds them without an error in any order (numerics.slices). The gradient of a logit
is a pair as well. Sums of such, times a number of W or X each, are formed from slices of three times 22 bits below the
largest of a row (four, for float64), with a bound of what that leaves out; where it could show in the rounding, the
element is computed again as a sum of pairs. What is rounded once is so good to 2^-90 of the sum of its terms'
magnitudes: where more than 2^25 of that cancels, fewer digits of a float32 may be right, and of float64 fewer from the
first bits on that cancel. A sum whose terms cancel to less than 2^-90 is 0.

Memory: beside inputs and gradients some 600 MB, or what one row needs, 112 bytes for each class, if that is more.
Matrix products are NumPy's, on its BLAS, on any backend; the bits depend neither on it nor on its threads.

Torch counterpart: torch.nn.functional.linear_cross_entropy. Sources: Wijmans et al., "Cut Your Losses in
Large-Vocabulary Language Models", 2025; Hsu et al., "Liger Kernel", 2024; Ozaki, Ogita, Oishi, Rump, "Error-free
transformations of matrix multiplication", 2012.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from refloss import arrays
from refloss.cases import linear as cases
from refloss.dispatch import runs_on_gpu
from refloss.error_model import linear as error_model
from refloss.kernels.linear.run import LinearTask, linear_loss
from refloss.kernels.logits.run import ChainTask
from refloss.kernels.products.run import rounding_to
from refloss.kernels.softmax.loop import Task
from refloss.loss import loss
from refloss.losses import cross_entropy as plain
from refloss.losses.parts.chain import CHAIN_PARAMETERS, COMPONENTS, Z_LOSS, LogitOptions, cotangents, logit_options
from refloss.losses.parts.softmax import REDUCTIONS, RowOptions, factor_of_each_class
from refloss.numerics.memory import as_writable
from refloss.numerics.sums import MAX_TERMS
from refloss.options import Gradients, Options
from refloss.result import Intermediates, LossResult
from refloss.specification import IGNORE_INDEX, REDUCTION, Argument, Parameter, Specification, class_weight

LOGITS_DTYPES: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}


class Layer(NamedTuple):
    """A linear layer's input, as it is given and with two axes, and its parameters; checked."""

    given: np.ndarray
    x: np.ndarray
    w: np.ndarray
    bias: np.ndarray | None


def layer_of(x: Any, linear_weight: Any, linear_bias: Any) -> Layer:
    """Checked arrays of a linear layer."""
    given = arrays.float_array(x, "input")
    if given.ndim not in (1, 2):
        raise ValueError(f"input has shape {given.shape}; expected [N, K] or [K]")
    w = arrays.float_array(linear_weight, "linear_weight")
    if w.ndim != 2 or w.shape[1] != given.shape[-1]:
        raise ValueError(
            f"linear_weight has shape {w.shape}; expected [V, K], with the last axis of input {given.shape}"
        )
    if len(w) > MAX_TERMS:
        raise ValueError(f"linear_weight has {len(w)} classes; expected at most {MAX_TERMS}")
    bias = None if linear_bias is None else arrays.float_array(linear_bias, "linear_bias")
    if bias is not None:
        arrays.check_shape(bias, w.shape[:1], "linear_bias", "one for each row of linear_weight")
    return Layer(given, _rows(given), w, bias)


@loss(
    Specification(
        arguments={
            "input": Argument("vectors", differentiable=True, batched=False, shape="N K|K"),
            "linear_weight": Argument("vectors", differentiable=True, batched=False, class_axis=0, shape="V K"),
            "target": Argument("classes", differentiable=True, of="linear_weight", batched=False, shape="N|N V|V|"),
            "linear_bias": Argument(
                "vectors", differentiable=True, optional=True, batched=False, class_axis=0, shape="V"
            ),
            "weight": class_weight(),
        },
        parameters=IGNORE_INDEX
        | REDUCTION
        | {"label_smoothing": Parameter(float, (0.0, 0.1, 1.0))}
        | CHAIN_PARAMETERS
        | Z_LOSS
        | {"logits_dtype": Parameter(str, ("bfloat16", "float16", "float32"))},
        mean="labels",
        per="row",
        losses="N",
        divisor=cases.divisor,
        order=141,
        follows="torch.nn.functional.linear_cross_entropy",
        components=COMPONENTS,
        intermediates=("lse", "nll"),
        cases=cases.linear_cross_entropy,
        draw=cases.draw_linear_cross_entropy,
        bounds=error_model.linear_cross_entropy,
    )
)
def linear_cross_entropy(
    input: Any,  # noqa: A002
    linear_weight: Any,
    target: Any,
    *,
    linear_bias: Any = None,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    z_loss: float = 0.0,
    logits_dtype: Any = None,
    grad_output: Any = 1.0,
    grad: Gradients = True,
    grad_dtype: Any = None,
    out: np.ndarray | None = None,
    backend: str = "auto",
) -> LossResult:
    """Cross-entropy of a linear layer's outputs, as torch.nn.functional.linear_cross_entropy, without storing them.

    Of the logits input·linear_weightᵀ + linear_bias, which are exact: the loss that refloss.cross_entropy has of them,
    with all of its options. Gradients: of input Σ_v g_v·W_v, of linear_weight Σ_i g_iv·x_i, of linear_bias Σ_i g_iv,
    where g is that of the logits, cotangents included; each is rounded once. Held constant: nothing; where logits are
    rounded, the gradient is that of the logits before, as if they had not been.

    Args:
        input: X [N, K] or [K]; any float dtype, any layout.
        linear_weight: W [V, K]; any float dtype, any layout.
        target: labels [N] (or a scalar for [K]) of any integer dtype, or probabilities [N, V] or [V].
        linear_bias: b [V].
        weight: [V], a factor for each class.
        ignore_index: rows with this label have loss 0 and gradient 0, whatever their input; it may be a valid class.
        reduction: "mean", "sum" or "none".
        label_smoothing: ε in [0, 1].
        logit_scale, softcap, temperature, z_loss: as in refloss.cross_entropy.
        logits_dtype: "bfloat16", "float16", "float32" or such a dtype: logits are rounded to it, once, before anything
            else, as by libraries that write them down; None leaves them exact.
        grad_output: the loss's cotangent; with "none" a number or an array of the loss's shape; with a z-loss also a
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
    layer = layer_of(input, linear_weight, linear_bias)
    shape = (*layer.given.shape[:-1], len(layer.w))
    arrays.choice(reduction, "reduction", REDUCTIONS)
    smoothing = arrays.number(label_smoothing, "label_smoothing")
    if not 0.0 <= smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {smoothing}; expected a number in [0, 1]")
    of_logits = logit_options(logit_scale, softcap, temperature, z_loss)
    ignored = arrays.label(ignore_index, "ignore_index")
    labels = plain.checked_target(target, shape, len(shape) - 1, ignored, "input·linear_weightᵀ")
    written = None if logits_dtype is None else arrays.dtype_choice(logits_dtype, "logits_dtype", LOGITS_DTYPES)
    # What lives on a GPU has been copied, and its gradients go back there.
    runs_on_gpu(backend)
    rows = RowOptions(1, factor_of_each_class(weight, len(layer.w)), smoothing, ignored, reduction)
    return _computed(layer, labels, Options(grad_output, grad, grad_dtype, out, backend), of_logits, rows, written)


def _computed(
    layer: Layer,
    labels: np.ndarray,
    options: Options,
    of_logits: LogitOptions,
    rows: RowOptions,
    written: np.dtype[Any] | None,
) -> LossResult:
    probabilities = arrays.is_float(labels)
    there = {"input": layer.given, "linear_weight": layer.w}
    there |= {} if layer.bias is None else {"linear_bias": layer.bias}
    there |= {"target": labels} if probabilities else {}
    wanted = options.wanted([*there])
    gradient = options.buffer(layer.given, "input", wanted="input" in wanted)
    grads = {} if gradient is None else {"input": gradient}
    grads |= {
        name: np.empty(array.shape, array.dtype) for name, array in there.items() if name in wanted and name != "input"
    }
    loss_shape = labels.shape[: labels.ndim - probabilities]
    cotangent, of_z_loss = cotangents(
        options.grad_output, loss_shape if rows.reduction == "none" else (), of_logits.z_loss
    )
    task = Task(
        loop=plain.LOOP,
        parameters=(),
        logits=np.broadcast_to(np.float64(0.0), (len(layer.x), len(layer.w))),
        target=_rows(labels) if probabilities else np.ascontiguousarray(labels.reshape(-1), dtype=np.int64),
        cotangent=cotangent,
        gradient=None,
        target_gradient=_rows(grads["target"]) if "target" in grads else None,
        **rows._asdict(),
    )
    answer = linear_loss(
        LinearTask(
            given=ChainTask(task, of_logits.chain, of_logits.z_loss, of_z_loss),
            hidden=layer.x,
            weight=layer.w,
            bias=np.empty(0) if layer.bias is None else as_writable(np.ascontiguousarray(layer.bias, np.float64)),
            rounding=rounding_to(written),
            hidden_gradient=_rows(grads["input"]) if "input" in grads else None,
            weight_gradient=grads.get("linear_weight"),
            bias_gradient=grads.get("linear_bias"),
        )
    )
    shaped = [part.reshape(loss_shape) if rows.reduction == "none" else part for part in answer[:3]]
    return LossResult(
        loss=shaped[0],
        grads=grads,
        components=dict(zip(COMPONENTS, shaped[1:], strict=True)) if of_logits.z_loss else {},
        intermediates=Intermediates({"lse": answer.lse.reshape(loss_shape), "nll": answer.nll.reshape(loss_shape)}),
    )


def _rows(array: np.ndarray) -> np.ndarray:
    return array if array.ndim == 2 else array[None]
