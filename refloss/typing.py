"""What arguments may be, in the words of type checkers: of every public loss, and of code that wraps one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import DTypeLike as DTypeLike  # noqa: PLC0414  # for whoever imports it from here

T_co = TypeVar("T_co", covariant=True)


class SupportsArray(Protocol):
    """What makes a NumPy array of itself; NumPy's numbers do, too."""

    def __array__(self) -> Any: ...


class SupportsDLPack(Protocol):
    """An array that others take without a copy: of torch, JAX, CuPy, ..."""

    def __dlpack__(self) -> Any: ...

    def __dlpack_device__(self) -> Any: ...


class SupportsCuda(Protocol):
    """An array on an NVIDIA GPU."""

    @property
    def __cuda_array_interface__(self) -> Any: ...


class Nested(Protocol[T_co]):
    """A list or tuple of something, or of such lists. A str is none: what is in it is a str, not any object."""

    def __len__(self) -> int: ...

    def __contains__(self, value: object, /) -> bool: ...

    def __getitem__(self, index: int, /) -> T_co | Nested[T_co]: ...

    def __iter__(self) -> Iterator[T_co | Nested[T_co]]: ...

    def index(self, value: Any, /) -> int:
        """Which makes it a sequence."""
        ...


# A number, or an array without axes.
Scalar: TypeAlias = float | np.ndarray | SupportsArray | SupportsDLPack | SupportsCuda
ArrayLike: TypeAlias = Scalar | Nested[Scalar]
# A mapping that has arrays of its own: the objects of each image.
Objects: TypeAlias = Sequence[Mapping[str, ArrayLike]]
# An object whose attributes are read, or a mapping whose entries are.
Configuration: TypeAlias = object

# grad_output of a loss, and of one that has components, by their names.
Cotangent: TypeAlias = ArrayLike
Cotangents: TypeAlias = Cotangent | Mapping[str, Cotangent]
# Whose gradients are computed: those of all inputs, of none, or of some by name.
Gradients: TypeAlias = bool | str | Collection[str]
Reduction: TypeAlias = Literal["mean", "sum", "none"]
Backend: TypeAlias = Literal["auto", "cpu", "cuda"]

# A matching of a layer: rows (image, query, object), or for each image its queries and objects.
Matching: TypeAlias = ArrayLike | Sequence[tuple[ArrayLike, ArrayLike]]
# One for each layer, None where there is none; or by names, as in the intermediates of a result.
Assignment: TypeAlias = Mapping[str, Any] | Sequence[Matching | None]

# A number; Any stands for the array that it is with reduction="none". A union with that would have to be taken apart
# before it can be compared with anything.
Loss: TypeAlias = np.float64 | Any
# An array; Any stands for an array on a GPU, and for a list of the gradients of an input that is one.
Gradient: TypeAlias = np.ndarray | Any
