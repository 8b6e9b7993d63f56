"""Elements that are read and written one by one, where a compiler would gather and scatter vectors of them.

A gather of eight takes longer than eight loads on many processors, and a scatter longer than eight stores.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

# Of any order, but never joined with others: no more than a load or a store for a processor.
_ORDER = "monotonic"


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


@intrinsic
def read_alone(typing_context: Any, vector: Any, index: Any) -> Any:
    """An element of a vector, at an index that is not negative."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, vector, *arguments)
        return builder.load_atomic(pointer, _ORDER, vector.dtype.bitwidth // 8)

    return vector.dtype(vector, types.intp), generate


@intrinsic
def write_alone(typing_context: Any, vector: Any, index: Any, value: Any) -> Any:
    """Write an element of a vector, at an index that is not negative."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, vector, *arguments[:2])
        builder.store_atomic(arguments[2], pointer, _ORDER, vector.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(vector, types.intp, vector.dtype), generate
