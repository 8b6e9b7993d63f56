"""What is computed of one chunk of a batch, wherever that is: calls of a public function with NumPy arrays."""

from __future__ import annotations

from fractions import Fraction
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss import subnormals
from refloss.numerics.exact import quotient, ratio
from refloss.numerics.shares import Share, Sum, added, counted, joined, part_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from refloss.numerics.exact import Exact
    from refloss.result import LossResult

# Intermediates of rows that come with a piece.
OF_ROWS = ("lse", "nll")
UPSTREAM = "grad_output"
# Of calls that only check or count: whoever makes them needs no GPU.
ON_HOST = {"grad": False, "backend": "cpu"}


class Call(NamedTuple):
    """A call without the arrays of a chunk; components are those whose cotangents came in a mapping, if they did."""

    function: Callable[..., Any]
    constants: dict[str, Any]
    components: tuple[str, ...] | None = None

    def __call__(self, arrays: dict[str, Any], **more: Any) -> LossResult:
        """The result of a chunk."""
        arguments = {**self.constants, **arrays, **more}
        if self.components is not None:
            arguments[UPSTREAM] = {name: arguments.pop(of_component(name)) for name in self.components}
        result: LossResult = self.function(**arguments)
        return result


class Piece(NamedTuple):
    """What comes of a chunk: exact sums by component, and arrays by their place in a result."""

    sums: dict[str, Sum]
    arrays: dict[tuple[str, str], Any]


def of_component(name: str) -> str:
    """The cotangent of a component as an argument of its own."""
    return f"{UPSTREAM}[{name!r}]"


def stand_in(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array without memory, for calls that only check their arguments."""
    return np.broadcast_to(np.zeros((), dtype), tuple(shape))


def own_divisor(
    arrays: dict[str, Any],
    *,
    call: Call,
    others: dict[str, tuple[tuple[int, ...], Any]],
    axes: dict[str, tuple[int, ...]],
    lengths: dict[int, int],
) -> Exact | None:
    """What a chunk adds to the divisor, by its labels and weights; for all other arrays others has axes and dtypes."""
    own = {axis: n for name, array in arrays.items() for axis, n in zip(axes[name], array.shape, strict=True)}
    sizes = lengths | own
    standing = {name: stand_in([sizes[axis] for axis in of], dtype) for name, (of, dtype) in others.items()}
    return counted(lambda: call({**standing, **arrays}, **ON_HOST))


def divisor_of_all(parts: Any, **_: Any) -> Exact:
    """What several chunks add to the divisor, in lists of lists."""
    whole: Exact = Fraction(0)
    return reduce(added, _leaves(parts), whole)


def piece(
    arrays: dict[str, Any],
    divisor: Exact | None,
    sums: dict[str, Sum] | None = None,
    *,
    call: Call,
    grad: tuple[str, ...],
) -> Piece:
    """The part of a chunk in a loss of all, given what divides that; and the sums of all, where gradients need them."""
    share = Share(divisor, None if sums is None else ratio(*sums["loss"]))
    with part_of(share):
        result = call(arrays, grad=grad)
    found = {("grads", name): value for name, value in result.grads.items()}
    found |= {("components", name): value for name, value in result.components.items()}
    rows = result.intermediates.computed()
    found |= {("intermediates", name): rows[name] for name in OF_ROWS if name in rows}
    return Piece(share.sums, found | {("loss", ""): result.loss})


def asked_for(arrays: dict[str, Any], *, call: Call, name: str) -> Piece:
    """The same with an intermediate alone that is only computed when it is asked for."""
    return Piece({}, {("intermediates", name): call(arrays, grad=False).intermediates[name]})


def at(given: Piece, place: tuple[str, str]) -> Any:
    """An array of a piece."""
    return given.arrays[place]


def itself(value: Any, **_: Any) -> Any:
    """What a reduction begins with."""
    return value


def sums_of(given: Piece, **_: Any) -> dict[str, Sum]:
    """Without the arrays, which may be large."""
    return given.sums


def sums_of_all(parts: Any, **_: Any) -> dict[str, Sum]:
    """The sums of several chunks, in lists of lists, by component."""
    first, *others = _leaves(parts)
    return {name: reduce(joined, (each[name] for each in others), own) for name, own in first.items()}


@subnormals.keeping
def quotient_of(sums: dict[str, Sum], component: str) -> np.float64:
    """A loss of all chunks, rounded once."""
    return quotient(*sums[component])


def _leaves(parts: Any) -> list[Any]:
    return [leaf for part in parts for leaf in _leaves(part)] if isinstance(parts, list) else [parts]
