"""Instructions that Python lacks: a fused multiply-add, and the bits of a float as an integer and back.

Each becomes one LLVM instruction, so it means the same on every target.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

# Adding it to an x with |x| ≤ 2^51 gives a number between 2^52 and 2^53, where float64 are the integers: x is rounded
# to the nearest one, and the bits are those of the constant plus that integer. Times 2^-k, it does so in units of 2^-k.
ROUND_TO_INTEGER = 1.5 * 2.0**52
# The bit of a float64 that is its sign, alone, as an int64.
SIGN_BIT = -(2**63)


@intrinsic
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a·b + c, rounded once."""
    signature = types.float64(types.float64, types.float64, types.float64)
    return signature, lambda _context, builder, _signature, arguments: builder.fma(*arguments)


def _bitcast(source: types.Type, target: types.Type, llvm_type: ir.Type) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], llvm_type)

    return target(source), generate


@intrinsic
def float64_bits(typing_context: Any, value: Any) -> Any:
    """The bits of a float64 as an int64."""
    return _bitcast(types.float64, types.int64, ir.IntType(64))


@intrinsic
def float64_from_bits(typing_context: Any, bits: Any) -> Any:
    """The float64 with the bits of an int64."""
    return _bitcast(types.int64, types.float64, ir.DoubleType())


@intrinsic
def float32_bits(typing_context: Any, value: Any) -> Any:
    """The bits of a float32 as an int32."""
    return _bitcast(types.float32, types.int32, ir.IntType(32))


@intrinsic
def float32_from_bits(typing_context: Any, bits: Any) -> Any:
    """The float32 with the bits of an int32."""
    return _bitcast(types.int32, types.float32, ir.FloatType())
