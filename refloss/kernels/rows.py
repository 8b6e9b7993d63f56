"""Rows of an array of any layout: a vector of classes for every index of the other axes."""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from refloss import jit
from refloss.numerics.formats import store, vector_of, widen
from refloss.numerics.pairs import to_odd

# Rows that are strided in memory are gathered in tiles of this size, so that each cache line is read once.
TILE_BYTES = 1 << 18
TILE_ROWS = 32


class Rows(NamedTuple):
    """The rows of an array: element c of row r is memory[origin + Σ index(r)·strides + c·class_stride]."""

    memory: np.ndarray
    origin: int
    shape: np.ndarray
    strides: np.ndarray
    classes: int
    class_stride: int


class AnyRows(NamedTuple):
    """Rows whose memory is bytes and whose format is a number: kernels that take them are compiled once for all."""

    memory: np.ndarray
    format: int
    origin: int
    shape: np.ndarray
    strides: np.ndarray
    classes: int
    class_stride: int


_FORMATS = {dtype: number for number, dtype in enumerate(map(np.dtype, ("f8", "f4", ml_dtypes.bfloat16, "f2")))}
_ELEMENT_TYPES = {np.dtype(ml_dtypes.bfloat16): np.dtype(np.int16), np.dtype(np.float16): np.dtype(np.uint16)}


class _Memory:
    """The memory of an array as one vector of integers or floats that compiled code reads.

    It is always presented as writable, so that a kernel is compiled once; what a kernel writes is a matter of its own.
    """

    def __init__(self, array: np.ndarray, typestr: str, address: int, length: int) -> None:
        self.array = array
        self.__array_interface__ = {"data": (address, False), "shape": (length,), "typestr": typestr, "version": 3}


def as_writable(array: np.ndarray) -> np.ndarray:
    """A contiguous array, presented as writable: for one that is read-only, kernels would be compiled once more."""
    if array.flags.writeable or not (array.size and array.flags.c_contiguous):
        return array
    memory = _Memory(array, array.dtype.str, array.__array_interface__["data"][0], array.size)
    return np.asarray(memory).reshape(array.shape)


def element_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """How compiled code sees a float format: the 16-bit ones as integers (see numerics.formats)."""
    return _ELEMENT_TYPES.get(dtype, dtype)


def rows_of(array: np.ndarray, class_axis: int) -> Rows:
    """The rows of an array along an axis, without a copy; strides must be multiples of the element."""
    dtype = element_type(array.dtype)
    strides = [stride // dtype.itemsize for stride in array.strides]
    reaches = [(size - 1) * stride for size, stride in zip(array.shape, strides, strict=True)]
    below = sum(reach for reach in reaches if reach < 0) if array.size else 0
    length = sum(map(abs, reaches)) + 1 if array.size else 0
    address = array.__array_interface__["data"][0] + below * dtype.itemsize
    memory = np.asarray(_Memory(array, dtype.str, address, length)) if array.size else np.empty(0, dtype)
    shape, class_strides = list(array.shape), strides
    classes, class_stride = shape.pop(class_axis), class_strides.pop(class_axis)
    merged_shape, merged_strides = _merge_axes(shape, class_strides)
    return Rows(
        memory,
        -below,
        np.array(merged_shape, dtype=np.int64),
        np.array(merged_strides, dtype=np.int64),
        classes,
        1 if classes == 1 else class_stride,
    )


def any_rows_of(array: np.ndarray, class_axis: int) -> AnyRows:
    """The rows of an array along an axis, for kernels that take any format."""
    rows = rows_of(array, class_axis)
    return AnyRows(rows.memory.view(np.uint8), _FORMATS[array.dtype], *rows[1:])


def elements_of(array: np.ndarray) -> AnyRows:
    """Every axis of an array as one of its rows' axes: the rows are its elements."""
    return any_rows_of(array[..., None], array.ndim)


def _merge_axes(shape: list[int], strides: list[int]) -> tuple[list[int], list[int]]:
    """Join neighbouring axes that are one axis in memory."""
    merged_shape, merged_strides = [1], [0]
    for size, stride in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if merged_strides[-1] == stride * size or merged_shape[-1] == 1:
            merged_shape[-1] *= size
            merged_strides[-1] = stride
        else:
            merged_shape.append(size)
            merged_strides.append(stride)
    return merged_shape, merged_strides


def tile_rows(rows: Rows) -> int:
    """How many rows to work on together: one, where a row is contiguous."""
    if rows.class_stride == 1:
        return 1
    return max(1, min(TILE_ROWS, TILE_BYTES // max(1, rows.classes * rows.memory.itemsize)))


def tile_buffer(rows: Rows, tile: int) -> np.ndarray:
    """A tile for rows that are not contiguous; empty for those that are."""
    return np.empty((0 if rows.class_stride == 1 else tile, rows.classes), rows.memory.dtype)


@jit.helper
def row_offset(rows, row):
    """Where a row begins in memory."""
    offset = rows.origin
    for axis in range(rows.shape.size - 1, -1, -1):
        offset += (row % rows.shape[axis]) * rows.strides[axis]
        row //= rows.shape[axis]
    return offset


@jit.helper
def row_offsets(rows, first, offsets):
    """Where rows first, first + 1, ... begin in memory."""
    last = rows.shape.size - 1
    done = 0
    while done < offsets.size:
        start = row_offset(rows, first + done)
        run = min(rows.shape[last] - (first + done) % rows.shape[last], offsets.size - done)
        for k in range(run):
            offsets[done + k] = start + k * rows.strides[last]
        done += run


@jit.helper
def _load_strided(memory, offset, stride, row):
    if stride == 1:
        source = memory[offset : offset + row.size]
        for i in range(row.size):
            row[i] = widen(source[i])
    elif stride == 0:
        row[:] = widen(memory[offset])
    else:
        for i in range(row.size):
            row[i] = widen(memory[offset + i * stride])


@jit.helper
def load_strided(rows, offset, stride, row):
    """Elements of any rows' memory, offset + i·stride, as float64 into a row."""
    if rows.format == 0:
        _load_strided(vector_of(rows.memory, np.float64), offset, stride, row)
    elif rows.format == 1:
        _load_strided(vector_of(rows.memory, np.float32), offset, stride, row)
    elif rows.format == 2:
        _load_strided(vector_of(rows.memory, np.int16), offset, stride, row)
    else:
        _load_strided(vector_of(rows.memory, np.uint16), offset, stride, row)


@jit.helper
def _save_strided(row, memory, offset, stride):
    if stride == 1:
        destination = memory[offset : offset + row.size]
        for i in range(row.size):
            store(destination, i, row[i])
    else:
        for i in range(row.size):
            store(memory, offset + i * stride, row[i])


@jit.helper
def save_strided(row, rows, offset, stride):
    """A row of float64, rounded, to elements of any rows' memory, offset + i·stride."""
    if rows.format == 0:
        _save_strided(row, vector_of(rows.memory, np.float64), offset, stride)
    elif rows.format == 1:
        _save_strided(row, vector_of(rows.memory, np.float32), offset, stride)
    elif rows.format == 2:
        _save_strided(row, vector_of(rows.memory, np.int16), offset, stride)
    else:
        _save_strided(row, vector_of(rows.memory, np.uint16), offset, stride)


@jit.helper
def _run(rows, index):
    """How many rows follow a row on the last axis, itself included."""
    size = rows.shape[rows.shape.size - 1]
    return size - index % size


@jit.helper
def load(rows, first, row, offset=0):
    """An element of rows first, first + 1, ..., at an offset from their beginning, as float64 into a row."""
    stride = rows.strides[rows.shape.size - 1]
    done = 0
    while done < row.size:
        part = row[done : min(done + _run(rows, first + done), row.size)]
        load_strided(rows, row_offset(rows, first + done) + offset, stride, part)
        done += part.size


@jit.helper
def save(row, rows, first, offset=0):
    """A row of float64, rounded, to an element of rows first, first + 1, ..., at an offset from their beginning."""
    stride = rows.strides[rows.shape.size - 1]
    done = 0
    while done < row.size:
        part = row[done : min(done + _run(rows, first + done), row.size)]
        save_strided(part, rows, row_offset(rows, first + done) + offset, stride)
        done += part.size


@jit.helper
def save_pairs(high, low, rows, first, offset=0):
    """The same for a row of normalised pairs, which it spoils: each is rounded once."""
    if rows.format != 0:
        for i in range(high.size):
            high[i] = to_odd((high[i], low[i]))
    save(high, rows, first, offset)


@jit.helper
def _is_block(rows):
    """Whether rows follow each other in memory without a gap."""
    return rows.shape.size == 1 and rows.strides[0] == rows.classes and rows.class_stride == 1


@jit.helper
def load_rows(rows, first, count, block):
    """Rows first ... first + count of any format, one after the other, as float64."""
    size = rows.classes
    if _is_block(rows):
        load_strided(rows, row_offset(rows, first), rows.class_stride, block[: count * size])
        return
    for k in range(count):
        load_strided(rows, row_offset(rows, first + k), rows.class_stride, block[k * size : (k + 1) * size])


@jit.helper
def save_rows(block, rows, first, count):
    """Rows of float64, one after the other, rounded, to rows first ... first + count of any format."""
    size = rows.classes
    if _is_block(rows):
        save_strided(block[: count * size], rows, row_offset(rows, first), rows.class_stride)
        return
    for k in range(count):
        save_strided(block[k * size : (k + 1) * size], rows, row_offset(rows, first + k), rows.class_stride)


@jit.helper
def gather(rows, first, count, tile):
    """Copy rows first ... first + count into a tile, if they are not contiguous."""
    if tile.shape[0] == 0:
        return
    offsets = np.empty(count, np.int64)
    row_offsets(rows, first, offsets)
    for c in range(rows.classes):
        for k in range(count):
            tile[k, c] = rows.memory[offsets[k] + c * rows.class_stride]


@jit.helper
def scatter(tile, rows, first, count):
    """Copy a tile into rows first ... first + count, if they are not contiguous."""
    if tile.shape[0] == 0:
        return
    offsets = np.empty(count, np.int64)
    row_offsets(rows, first, offsets)
    for c in range(rows.classes):
        for k in range(count):
            rows.memory[offsets[k] + c * rows.class_stride] = tile[k, c]


@jit.helper
def row(rows, index, tile, k):
    """A row as a contiguous vector: in place, or from the tile."""
    if tile.shape[0] == 0:
        start = row_offset(rows, index)
        return rows.memory[start : start + rows.classes]
    return tile[k]
