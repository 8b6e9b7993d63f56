"""Memory that is asked for before it is needed, while the processor computes something else."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from refloss import jit

# Bytes that a processor fetches at a time.
LINE = 64
# Kept in the second of three caches: a row does not fit into the first.
_LOCALITY = 2
_DATA = 1


@intrinsic(prefer_literal=True)
def _fetch_line(typing_context: Any, array: Any, index: Any, to_write: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(array)(context, builder, arguments[0]).data
        pointer = builder.bitcast(builder.gep(data, [arguments[1]]), cgutils.voidptr_t)
        numbers = [cgutils.int32_t(number) for number in (int(to_write.literal_value), _LOCALITY, _DATA)]
        kinds = [cgutils.voidptr_t] + [cgutils.int32_t] * 3
        prefetch = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), kinds), "llvm.prefetch.p0"
        )
        builder.call(prefetch, [pointer, *numbers])
        return context.get_dummy_value()

    return types.void(array, types.intp, to_write), generate


@jit.scalar
def fetch(array, start, stop, to_write):
    """Ask for elements start ... stop of a vector, which is no fault even where it has none."""
    for index in range(start, stop, LINE // array.itemsize):
        _fetch_line(array, index, to_write)
