"""The four float formats: reading one exactly, ordering one by its bits, rounding float64 into one.

Numba has no 16-bit floats on the CPU, so they enter compiled code as integers of their bits: float16 as uint16,
bfloat16 as int16. The element type tells the two apart, and each function below picks its code by that type.

Rounding goes straight from float64 to the format (through float32 it would round twice). Adding and subtracting
1.5·2^52 units in the last place of the result rounds to nearest even, and holding the unit at the format's smallest
subnormal makes the same addition right for subnormals. A value that is known as a pair is rounded to odd before, so
that no float64 that happens to be a tie of the format stands for its neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic, overload

from refloss import jit
from refloss.numerics.bits import (
    ROUND_TO_INTEGER,
    SIGN_BIT,
    float32_bits,
    float32_from_bits,
    float64_bits,
    float64_from_bits,
)
from refloss.numerics.pairs import to_odd

EXPONENT_BITS = 0x7FF << 52
INFINITY_BITS = EXPONENT_BITS
MAGNITUDE = 2**63 - 1
# Adding it rounds a float64 below 2^-14 to multiples of 2^-24.
FLOAT16_MAGIC = ROUND_TO_INTEGER * 2.0**-24
# NaN of every format is this one: quiet, positive, without a payload, as numpy.nan is.
NAN_BITS = 0x7FF8 << 48


@jit.scalar
def round_to_precision(value, dropped_bits, smallest_exponent):
    """value rounded to 53 − dropped_bits bits, and to multiples of 2^(smallest_exponent − 52 + dropped_bits).

    From 2^(1024 − dropped_bits) on, where no narrower format has numbers, a value stays about what it is.
    """
    bits = float64_bits(value)
    exponent = bits & EXPONENT_BITS
    floor = (smallest_exponent + 1023) << 52
    # The magic constant of a larger exponent overflows.
    ceiling = (2046 - dropped_bits) << 52
    exponent = min(max(exponent, floor), ceiling)
    magic = 1.5 * float64_from_bits(exponent + (dropped_bits << 52))
    rounded = (value + magic) - magic
    return float64_from_bits(float64_bits(rounded) | (bits & SIGN_BIT))


@jit.scalar
def _round_to_bfloat16(value):
    # Every bfloat16 is a float32, so the conversion after the rounding is exact, or the overflow that is due.
    wide = np.float32(round_to_precision(value, 45, -126))
    return np.int16(float32_bits(wide) >> 16) if value == value else np.int16(0x7FC0)


@jit.scalar
def _round_to_float16(value):
    rounded = round_to_precision(value, 42, -14)
    # 2^-1008 carries float16's exponents, its subnormals included, onto those of float64.
    rounded = np.inf if rounded > 65504.0 else (-np.inf if rounded < -65504.0 else rounded)
    bits = float64_bits(rounded)
    magnitude = float64_bits(abs(rounded) * 2.0**-1008) >> 42
    magnitude = magnitude if abs(rounded) < np.inf else 0x7C00
    return np.uint16(magnitude | ((bits >> 48) & 0x8000)) if value == value else np.uint16(0x7E00)


@jit.scalar
def _round_to_float32(value):
    bits = float32_bits(np.float32(value))
    return float32_from_bits(np.int32(0x7FC00000) if bits & np.int32(0x7FFFFFFF) > np.int32(0x7F800000) else bits)


@jit.scalar
def canonical(value):
    """A float64; its one NaN for any NaN. By bits: which NaN an operation yields, compilers do not mind."""
    bits = float64_bits(value)
    return float64_from_bits(NAN_BITS if bits & MAGNITUDE > INFINITY_BITS else bits)


@jit.scalar
def _widen_bfloat16(bits):
    return np.float64(float32_from_bits(np.int32(bits) << 16))


@jit.scalar
def _widen_float16(bits):
    magnitude = np.int64(bits & 0x7FFF)
    # Read the bits as those of a float64 whose exponent is 1008 too low, which also normalises subnormals.
    value = float64_from_bits(magnitude << 42) * 2.0**1008
    value = value if magnitude < 0x7C00 else (np.inf if magnitude == 0x7C00 else np.nan)
    return float64_from_bits(float64_bits(value) | (np.int64(bits & 0x8000) << 48))


def widen(element):
    """The float64 equal to an element of any format."""
    raise TypeError("compiled code only")


@overload(widen, jit_options={"forceinline": True})
def _widen(element):
    if element == types.int16:
        return lambda element: _widen_bfloat16(element)
    if element == types.uint16:
        return lambda element: _widen_float16(element)
    return lambda element: np.float64(element)


def as_element(array, value):
    """A float64 rounded to the format of an array."""
    raise TypeError("compiled code only")


@overload(as_element, jit_options={"forceinline": True})
def _as_element(array, value):
    if array.dtype == types.int16:
        return lambda array, value: _round_to_bfloat16(value)
    if array.dtype == types.uint16:
        return lambda array, value: _round_to_float16(value)
    if array.dtype == types.float32:
        return lambda array, value: _round_to_float32(value)
    return lambda array, value: canonical(value)


@jit.scalar
def store(array, index, value):
    """Round a float64 into an element of an array of any format."""
    array[index] = as_element(array, value)


@jit.scalar
def _tame_bfloat16(value):
    # What is dropped carries into the last bit that stays if it is above half of it, or half and that bit is odd.
    bits = float64_bits(value)
    rounded = (bits + (2**44 - 1) + ((bits >> 45) & 1)) & -(2**45)
    return np.int16(float32_bits(np.float32(float64_from_bits(rounded))) >> 16)


@jit.scalar
def _tame_float16(value):
    # A subnormal float16 is a number of units of 2^-24.
    units = float64_bits(abs(value) + FLOAT16_MAGIC) - float64_bits(FLOAT16_MAGIC)
    return np.uint16(units | ((float64_bits(value) >> 48) & 0x8000))


def is_tame(array, least, largest):
    """Whether numbers whose magnitudes, or 0, are within bounds may be stored with store_tame."""
    raise TypeError("compiled code only")


@overload(is_tame, jit_options={"forceinline": True})
def _is_tame(array, least, largest):
    if array.dtype == types.int16:
        return lambda array, least, largest: least >= 2.0**-126 and largest < 2.0**127
    if array.dtype == types.uint16:
        return lambda array, least, largest: largest < 2.0**-14
    return lambda array, least, largest: largest < np.inf


def as_tame(array, value):
    """A tame float64 rounded to the format of an array, with fewer instructions than as_element."""
    raise TypeError("compiled code only")


@overload(as_tame, jit_options={"forceinline": True})
def _as_tame(array, value):
    if array.dtype == types.int16:
        return lambda array, value: _tame_bfloat16(value)
    if array.dtype == types.uint16:
        return lambda array, value: _tame_float16(value)
    if array.dtype == types.float32:
        return lambda array, value: np.float32(value)
    return lambda array, value: value


@jit.scalar
def store_tame(array, index, value):
    """Round a tame float64 into an element of an array of any format."""
    array[index] = as_tame(array, value)


def pair_for(array, pair):
    """The float64 that rounds to an array's format as a normalised pair does."""
    raise TypeError("compiled code only")


@overload(pair_for, jit_options={"forceinline": True})
def _pair_for(array, pair):
    if array.dtype == types.float64:
        return lambda array, pair: pair[0]
    return lambda array, pair: to_odd(pair)


@jit.scalar
def before_storing(array, pair):
    """The float64 whose rounding to an array's format is the only one of a normalised pair."""
    return pair_for(array, pair)


@jit.scalar
def store_pair(array, index, pair):
    """Round a normalised pair, once, into an element of an array of any format."""
    array[index] = as_element(array, before_storing(array, pair))


def _integer(element: types.Type) -> types.Type:
    wide: dict[types.Type, types.Type] = {types.float32: types.int32, types.float64: types.int64}
    return wide.get(element, types.int16)


def _infinity_bits(element: types.Type) -> int:
    known = {types.float64: INFINITY_BITS, types.float32: 0x7F800000, types.int16: 0x7F80, types.uint16: 0x7C00}
    return known[element]


def _flip_negative(builder: Any, bits: Any) -> Any:
    """Reverse the order of the negative floats; its own inverse."""
    width = bits.type.width
    sign = builder.ashr(bits, bits.type(width - 1))
    return builder.xor(bits, builder.lshr(sign, bits.type(1)))


@intrinsic
def ordinal(typing_context: Any, element: Any) -> Any:
    """The bits of an element as an integer of its width, ordered as the floats are.

    An integer maximum is vectorised without fastmath, and NaN cannot make it depend on the order of its arguments.
    """
    integer = _integer(element)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _flip_negative(builder, builder.bitcast(arguments[0], context.get_value_type(integer)))

    return integer(element), generate


@intrinsic
def from_ordinal(typing_context: Any, value: Any, array: Any) -> Any:
    """The element of an array's format with this ordinal."""
    element = array.dtype

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(_flip_negative(builder, arguments[0]), context.get_value_type(element))

    return element(_integer(element), array), generate


@intrinsic
def magnitude_bits(typing_context: Any, element: Any) -> Any:
    """The bits of an element without its sign: above those of infinity for NaN, and only for NaN."""
    integer = _integer(element)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], context.get_value_type(integer))
        return builder.and_(bits, bits.type((1 << (bits.type.width - 1)) - 1))

    return integer(element), generate


@intrinsic
def below_magnitude(typing_context: Any, element: Any) -> Any:
    """The bits of an element without its sign, less one, and above all others for 0."""
    integer = _integer(element)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], context.get_value_type(integer))
        mask = bits.type((1 << (bits.type.width - 1)) - 1)
        return builder.and_(builder.sub(builder.and_(bits, mask), bits.type(1)), mask)

    return integer(element), generate


def _constant_of(array: Any, value: int) -> Any:
    integer = _integer(array.dtype)
    return integer(array), lambda context, *_: context.get_value_type(integer)(value)


@intrinsic
def infinity_bits(typing_context: Any, array: Any) -> Any:
    """The bits of +inf in an array's format; also its ordinal."""
    return _constant_of(array, _infinity_bits(array.dtype))


@intrinsic
def lowest_ordinal(typing_context: Any, array: Any) -> Any:
    """The ordinal of −inf in an array's format."""
    return _constant_of(array, -_infinity_bits(array.dtype) - 1)


@intrinsic
def vector_of(typing_context: Any, memory: Any, element: Any) -> Any:
    """A vector of bytes as one of elements, unchecked: for .view, Numba compiles what its error messages need."""
    vector = types.Array(element.dtype, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source = context.make_array(memory)(context, builder, arguments[0])
        result = context.make_array(vector)(context, builder)
        size = source.nitems.type(element.dtype.bitwidth // 8)
        # The vector owns nothing: whoever calls the kernel holds its memory.
        context.populate_array(
            result,
            data=builder.bitcast(source.data, context.get_data_type(element.dtype).as_pointer()),
            shape=[builder.udiv(source.nitems, size)],
            strides=[size],
            itemsize=size,
            meminfo=None,
        )
        return result._getvalue()

    return vector(memory, element), generate


def _without_owner(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = array.meminfo.type(None)
        return array._getvalue()
    if isinstance(kind, types.BaseTuple):
        members: Any = kind
        parts = (builder.extract_value(value, index) for index in range(len(members)))
        owned = [_without_owner(context, builder, *member) for member in zip(members, parts, strict=True)]
        return context.make_tuple(builder, kind, owned)
    return value


@intrinsic
def uncounted(typing_context: Any, value: Any) -> Any:
    """An array, or a tuple of such, whose references are not counted: what owns its memory must be used afterwards.

    Atomic counts, a dozen for each of the rows that a block reads or writes, cost as much as the block's arithmetic.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _without_owner(context, builder, value, arguments[0])

    return value(value), generate


@jit.scalar
def read(array, index):
    """An element of an array of any format, as float64."""
    return widen(array[index])


@jit.scalar
def ordinal_at(array, index):
    """The ordinal of an element, as int64."""
    return np.int64(ordinal(array[index]))


@jit.scalar
def magnitude_at(array, index):
    """The bits of an element without its sign, as int64."""
    return np.int64(magnitude_bits(array[index]))


@jit.scalar
def bounds(array):
    """The ordinal of −inf and the bits of +inf in an array's format, as int64."""
    return np.int64(lowest_ordinal(array)), np.int64(infinity_bits(array))


@jit.scalar
def value_of(element_ordinal, array):
    """The float64 equal to the element with this ordinal."""
    return widen(from_ordinal(element_ordinal, array))
