"""Sixteen bytes of memory at a time: what a thread of a GPU loads and stores best. A chunk is two int64.

An index is that of a chunk's first element, and the memory there begins at a multiple of sixteen bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from refloss import jit
from refloss.numerics.formats import as_element, magnitude_bits, ordinal, widen

BYTES = 16
_CHUNK = types.UniTuple(types.int64, 2)
_VECTOR = ir.VectorType(ir.IntType(64), 2)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Where an element of an array begins."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _VECTOR.as_pointer())


def _bits_type(array: Any) -> tuple[types.Type, ir.Type]:
    width = array.dtype.bitwidth
    return array.dtype, ir.IntType(width)


@intrinsic
def _load(typing_context: Any, array: Any, index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = builder.load(_pointer(context, builder, signature.args[0], *arguments), align=BYTES)
        words = [builder.extract_element(vector, ir.Constant(ir.IntType(32), k)) for k in range(2)]
        return context.make_tuple(builder, signature.return_type, words)

    return _CHUNK(array, types.int64), generate


@intrinsic
def _save(typing_context: Any, array: Any, index: Any, chunk: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_value, index_value, chunk_value = arguments
        vector = ir.Constant(_VECTOR, ir.Undefined)
        for k in range(2):
            word = builder.extract_value(chunk_value, k)
            vector = builder.insert_element(vector, word, ir.Constant(ir.IntType(32), k))
        builder.store(vector, _pointer(context, builder, signature.args[0], array_value, index_value), align=BYTES)
        return context.get_dummy_value()

    return types.none(array, types.int64, _CHUNK), generate


@intrinsic
def _element(typing_context: Any, array: Any, word: Any) -> Any:
    """The element in the low bits of a word."""
    element, bits = _bits_type(array)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word_value = arguments[1]
        low = word_value if bits.width == 64 else builder.trunc(word_value, bits)
        return builder.bitcast(low, context.get_value_type(element))

    return element(array, types.int64), generate


@intrinsic
def _word(typing_context: Any, array: Any, element: Any) -> Any:
    """The bits of an element in the low bits of a word."""
    _, bits = _bits_type(array)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        low = builder.bitcast(arguments[1], bits)
        return low if bits.width == 64 else builder.zext(low, ir.IntType(64))

    return types.int64(array, array.dtype), generate


@intrinsic
def _item_bits(typing_context: Any, array: Any) -> Any:
    """The width of an element: a constant, so that loops over a chunk are unrolled."""
    width = array.dtype.bitwidth
    return types.int64(array), lambda context, *_: context.get_value_type(types.int64)(width)


@jit.scalar
def chunk_size(array):
    """How many elements of an array are in a chunk."""
    return 8 * BYTES // _item_bits(array)


@jit.scalar
def _place(array, k):
    """Whether element k is in a chunk's first word, and its first bit there."""
    width = _item_bits(array)
    bit = width * k
    return bit < 64, bit if bit < 64 else bit - 64


@jit.scalar
def load_chunk(array, index):
    """The chunk that begins with an element."""
    return _load(array, index)


@jit.scalar
def save_chunk(array, index, chunk):
    """Write the chunk that begins with an element."""
    _save(array, index, chunk)


@jit.scalar
def _at(array, chunk, k):
    """Element k of a chunk."""
    is_first, bit = _place(array, k)
    return _element(array, (chunk[0] if is_first else chunk[1]) >> bit)


@jit.scalar
def chunk_scan(array, chunk, k):
    """The ordinal of element k of a chunk and its magnitude's bits, as int64."""
    element = _at(array, chunk, k)
    return np.int64(ordinal(element)), np.int64(magnitude_bits(element))


@jit.scalar
def chunk_value(array, chunk, k):
    """Element k of a chunk as float64."""
    return widen(_at(array, chunk, k))


@jit.scalar
def with_value(array, chunk, k, value):
    """A chunk with element k, which is 0 so far, set to a value rounded to an array's format."""
    is_first, bit = _place(array, k)
    word = _word(array, as_element(array, value)) << bit
    return chunk[0] | (word if is_first else 0), chunk[1] | (0 if is_first else word)


@jit.scalar
def load_one(array, index):
    """A chunk with an element at its beginning and nothing else, for memory in any layout."""
    return _word(array, array[index]), 0


@jit.scalar
def save_one(array, index, chunk):
    """Write the element at the beginning of a chunk."""
    array[index] = _element(array, chunk[0])
