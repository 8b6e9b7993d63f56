"""Square roots: of a float64, one instruction that is rounded right on every target, and of a pair."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from refloss import jit
from refloss.numerics.bits import fma
from refloss.numerics.pairs import fast_two_sum, normalised


@intrinsic
def sqrt(typing_context: Any, a: Any) -> Any:
    """√a, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = builder.module.declare_intrinsic("llvm.sqrt", [arguments[0].type])
        return builder.call(function, arguments)

    return types.float64(types.float64), generate


@jit.scalar
def root(a):
    """√a of a normalised pair of at least 0, with a relative error of some 2^-104; what is not finite is as it is.

    With s = √high rounded, √a = s + (a − s²)/2s − ..., where s² is exact as a product and the next term 2^-107 of s.
    """
    s = sqrt(a[0])
    rest = (fma(-s, s, a[0]) + a[1]) / (2.0 * s)
    high, low = fast_two_sum(s, rest)
    return normalised((high, low)) if s > 0.0 and low == low else (s, 0.0)
