"""What the losses of tokens share: arguments checked, aggregation, buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refloss import arrays
from refloss.kernels.tokens.loop import Given, TokenLoop
from refloss.kernels.tokens.run import Task, token_losses
from refloss.numerics.exact import exact
from refloss.result import Intermediates, LossResult

if TYPE_CHECKING:
    from refloss.kernels.tokens.loop import Results
    from refloss.losses.parts.aggregation import Aggregation
    from refloss.options import Options


def token_array(value: Any, name: str) -> np.ndarray:
    """The array [B, T] that all others are of one shape with."""
    array = arrays.float_array(value, name)
    if array.ndim != 2:
        raise ValueError(f"{name} has shape {array.shape}; expected [B, T]")
    return array


def beside(value: Any, name: str, first: str, shape: tuple[int, ...], *, by_sequence: bool = False) -> np.ndarray:
    """An array of the same shape, or one number for each sequence, or for all of its tokens."""
    array = arrays.float_array(value, name)
    if by_sequence and array.shape in (shape[:1], (*shape[:1], 1)):
        return np.broadcast_to(array.reshape(-1, 1), shape)
    why = f"the shape of {first}" + (", or one number for each of its sequences" if by_sequence else "")
    arrays.check_shape(array, shape, name, why)
    return array


def loss_of_tokens(
    loop: TokenLoop,
    inputs: dict[str, np.ndarray],
    options: Options,
    aggregation: Aggregation,
    *,
    parameters: tuple[float, ...],
    by_mean: bool = False,
) -> tuple[LossResult, Results]:
    """Run a loss's loop over its inputs, of which the first one has a gradient; notes are the caller's."""
    name, first = next(iter(inputs.items()))
    shape, reduced = first.shape, aggregation.name != "none"
    cotangent = options.cotangent(() if reduced else shape)
    wanted = name in options.wanted([name])
    buffer = options.buffer(first, name, wanted=wanted)
    scalar = exact(float(cotangent.reshape(-1)[0])) if reduced else exact(1.0)
    given = Given(
        counts=np.ascontiguousarray(aggregation.counts),
        coefficients=aggregation.coefficients(scalar),
        cotangent=np.ones((1, 1)) if reduced else np.broadcast_to(cotangent.reshape(_of(cotangent, shape)), shape),
        by_mean=by_mean,
        parameters=parameters,
    )
    results = token_losses(Task(loop, tuple(inputs.values()), (buffer,), given), options.backend)
    losses = results.values[0] + results.values[1]
    result = LossResult(
        loss=aggregation.total(results.values) if reduced else losses,
        grads={} if buffer is None else {name: buffer},
        intermediates=Intermediates({"losses": losses}),
    )
    return result, results


def _of(cotangent: np.ndarray, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if cotangent.size != 1 else (1, 1)
