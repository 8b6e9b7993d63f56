"""A linear layer whose outputs are logits: its arguments, and the gradients that are theirs."""

from __future__ import annotations

import math
from dataclasses import replace
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
_FEATURE_AXES = {"linear_weight": 1, "linear_bias": 0}
LINEAR_WEIGHT = Argument("vectors", differentiable=True, batched=False, class_axis=0, shape="V K")
LINEAR_BIAS = Argument("vectors", differentiable=True, optional=True, batched=False, class_axis=0, shape="V")
# Those of outputs that may have places.
PLACED_WEIGHT = replace(LINEAR_WEIGHT, shape="V K|V ... K")
PLACED_BIAS = replace(LINEAR_BIAS, shape="V|V ...")


class Layer(NamedTuple):
    """A linear layer's input and its parameters; checked."""

    x: np.ndarray
    w: np.ndarray  # [V, places ..., K]
    bias: np.ndarray | None  # [V, places ...]

    @property
    def places(self) -> tuple[int, ...]:
        """The axes of outputs for which classes have weights each, as pixels have."""
        return self.w.shape[1:-1]

    @property
    def logits_shape(self) -> tuple[int, ...]:
        """That of its outputs."""
        return (*self.x.shape[:-1], len(self.w), *self.places)

    @property
    def there(self) -> dict[str, np.ndarray]:
        """Its arrays, by their names."""
        there = {"input": self.x, "linear_weight": self.w}
        return there if self.bias is None else there | {"linear_bias": self.bias}


def layer_of(x: Any, linear_weight: Any, linear_bias: Any, *, rows: bool) -> Layer:
    """Checked arrays of a linear layer, of rows [..., K], or of [N, K], which may have outputs with places, or [K]."""
    given = arrays.float_array(x, "input")
    if given.ndim == 0 or (given.ndim > 2 and not rows):
        raise ValueError(f"input has shape {given.shape}; expected {'[..., K]' if rows else '[N, K] or [K]'}")
    w = arrays.float_array(linear_weight, "linear_weight")
    places = not rows and given.ndim == 2
    if (w.ndim < 2 if places else w.ndim != 2) or w.shape[-1] != given.shape[-1]:
        expected = "[V, K] or [V, ..., K]" if places else "[V, K]"
        raise ValueError(
            f"linear_weight has shape {w.shape}; expected {expected}, with the last axis of input {given.shape}"
        )
    if len(w) > MAX_TERMS:
        raise ValueError(f"linear_weight has {len(w)} classes; expected at most {MAX_TERMS}")
    bias = None if linear_bias is None else arrays.float_array(linear_bias, "linear_bias")
    if bias is not None:
        arrays.check_shape(bias, w.shape[:-1], "linear_bias", "one for each row of linear_weight")
    return Layer(given, w, bias)


def rounding_of(logits_dtype: Any) -> Rounding:
    """What becomes of the logits: they are written down in a format, or stay exact."""
    return rounding_to(None if logits_dtype is None else arrays.dtype_choice(logits_dtype, "logits_dtype", _DTYPES))


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
    bias = np.empty(0)
    if layer.bias is not None:
        bias = as_writable(np.ascontiguousarray(_by_place(layer.bias, 0), np.float64))
    # Views, unless there are places.
    parameters = {name: _by_place(grads[name], n) for name, n in _FEATURE_AXES.items() if name in grads}
    run_rows(
        LinearTask(
            loss,
            layer.x,
            _by_place(layer.w, 1),
            bias,
            rounding,
            hidden_gradient=grads.get("input"),
            weight_gradient=parameters.get("linear_weight"),
            bias_gradient=parameters.get("linear_bias"),
        )
    )
    for name, gradient in parameters.items() if layer.places else ():
        whole = _classes_behind(grads[name], _FEATURE_AXES[name])
        np.copyto(whole, gradient.reshape(whole.shape))


def _classes_behind(array: np.ndarray, features: int) -> np.ndarray:
    """[V, places ..., features ...] as [places ..., V, features ...]."""
    return np.moveaxis(array, 0, array.ndim - 1 - features)


def _by_place(array: np.ndarray, features: int) -> np.ndarray:
    """The classes of one place after those of another, [places·V, features ...]."""
    moved = _classes_behind(array, features)
    first = moved.ndim - features
    return moved.reshape(math.prod(moved.shape[:first]), *moved.shape[first:])
