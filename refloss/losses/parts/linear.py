"""A linear layer whose outputs are logits: its arguments, and the gradients that are theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np

from refloss import arrays
from refloss.kernels.linear.run import LinearTask, run_rows
from refloss.kernels.products.run import rounding_to
from refloss.numerics.memory import as_writable
from refloss.numerics.sums import MAX_TERMS
from refloss.specification import Argument, Parameter

if TYPE_CHECKING:
    from refloss.kernels.linear.rows import RowLoss
    from refloss.kernels.products.loop import Rounding
    from refloss.options import Options

_DTYPES: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}
LOGITS_DTYPE = {"logits_dtype": Parameter(str, (*_DTYPES,))}
LINEAR_WEIGHT = Argument("vectors", differentiable=True, batched=False, class_axis=0, shape="V K")
LINEAR_BIAS = Argument("vectors", differentiable=True, optional=True, batched=False, class_axis=0, shape="V")


class Layer(NamedTuple):
    """A linear layer's input and its parameters; checked."""

    x: np.ndarray
    w: np.ndarray
    bias: np.ndarray | None

    @property
    def logits_shape(self) -> tuple[int, ...]:
        """That of its outputs."""
        return (*self.x.shape[:-1], len(self.w))

    @property
    def there(self) -> dict[str, np.ndarray]:
        """Its arrays, by their names."""
        there = {"input": self.x, "linear_weight": self.w}
        return there if self.bias is None else there | {"linear_bias": self.bias}


def layer_of(x: Any, linear_weight: Any, linear_bias: Any, *, most_axes: int | None = 2) -> Layer:
    """Checked arrays of a linear layer, whose input may have any number of axes, or 1 or 2."""
    given = arrays.float_array(x, "input")
    if given.ndim == 0 or (most_axes and given.ndim > most_axes):
        raise ValueError(f"input has shape {given.shape}; expected {'[N, K] or [K]' if most_axes else '[..., K]'}")
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
    return Layer(given, w, bias)


def rounding_of(logits_dtype: str | None) -> Rounding:
    """What becomes of the logits: they are written down in a format, or stay exact."""
    return rounding_to(None if logits_dtype is None else _DTYPES[arrays.choice(logits_dtype, "logits_dtype", _DTYPES)])


def gradient_buffers(layer: Layer, options: Options, **others: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays for the gradients that are asked for, of the layer and of others that have one."""
    there = layer.there | others
    wanted = options.wanted([*there])
    gradient = options.buffer(layer.x, "input", wanted="input" in wanted)
    grads = {} if gradient is None else {"input": gradient}
    return grads | {
        name: np.empty(array.shape, array.dtype) for name, array in there.items() if name in wanted and name != "input"
    }


def run_layer(layer: Layer, loss: RowLoss, grads: dict[str, np.ndarray], rounding: Rounding) -> None:
    """Have a loss see the layer's logits, and write the gradients that there are arrays for."""
    bias = np.empty(0) if layer.bias is None else as_writable(np.ascontiguousarray(layer.bias, np.float64))
    run_rows(
        LinearTask(
            loss,
            layer.x,
            layer.w,
            bias,
            rounding,
            hidden_gradient=grads.get("input"),
            weight_gradient=grads.get("linear_weight"),
            bias_gradient=grads.get("linear_bias"),
        )
    )
