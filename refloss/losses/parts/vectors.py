"""What the losses of rows of vectors share: arguments checked, reductions, buffers."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss import arrays
from refloss.device import empty
from refloss.kernels.vectors.loop import Given, VectorLoop
from refloss.kernels.vectors.run import Task, vector_losses
from refloss.numerics.exact import exact_sum, quotient
from refloss.result import Intermediates, LossResult

if TYPE_CHECKING:
    from refloss.options import Options

REDUCTIONS = ("mean", "sum", "none")
_NO_LABELS = np.zeros((1, 0), np.int64)
_ONE = np.ones(1)


def vector_array(value: Any, name: str, expected: str, *, axes: int = 2) -> np.ndarray:
    """An array of at most so many axes, the last of which is that of the vectors' elements, of which there are some."""
    array = arrays.float_array(value, name)
    if array.ndim > axes or array.shape[-1:] == (0,):
        raise ValueError(f"{name} has shape {array.shape}; expected {expected}")
    return array


def loss_of_vectors(
    loop: VectorLoop,
    inputs: dict[str, np.ndarray],
    options: Options,
    *,
    row_shape: tuple[int, ...],
    parameters: tuple[float, ...] = (),
    labels: np.ndarray | None = None,
    factor: np.ndarray | None = None,
    divisor: float = 1.0,
    reduction: str,
) -> LossResult:
    """Run a loss's loop over its inputs, named as its arguments are; a divisor is that of the loss of each row."""
    names = list(inputs)
    rows = int(np.prod(row_shape, dtype=np.int64))
    cotangent = options.cotangent(row_shape if reduction == "none" else ())
    wanted = options.wanted(names)
    buffers = {name: _buffer(options, inputs, name, wanted=name in wanted) for name in names}
    given = Given(
        labels=np.broadcast_to(_NO_LABELS, (rows, 0)).copy() if labels is None else labels,
        factor=_ONE if factor is None else factor,
        parameters=(*parameters, 0.0, 0.0, 0.0, 0.0)[:4],  # type: ignore[arg-type]
        cotangent=cotangent,
        divisor=divisor,
        normaliser=divisor * rows if reduction == "mean" else divisor,
    )

    def lined_up(array: np.ndarray | None) -> np.ndarray | None:
        return array if array is None or array.ndim else array.reshape(1)

    lines = tuple(array if array.ndim else array.reshape(1) for array in inputs.values())
    task = Task(loop, lines, tuple(map(lined_up, buffers.values())), given)
    losses = vector_losses(task, options.backend)
    of_rows, count = losses[0].reshape(row_shape), Fraction(rows if reduction == "mean" else 1)
    return LossResult(
        loss=of_rows if reduction == "none" else quotient(exact_sum(losses), count),
        grads={name: buffer for name, buffer in buffers.items() if buffer is not None},
        intermediates=Intermediates({"losses": of_rows}),
    )


def _buffer(options: Options, inputs: dict[str, np.ndarray], name: str, *, wanted: bool) -> np.ndarray | None:
    """Where a gradient goes: that of the first input as the options say it, any other in its own type."""
    array = inputs[name]
    if name == next(iter(inputs)):
        return options.buffer(array, name, wanted=wanted)
    return empty(array.shape, array.dtype, like=array) if wanted else None
