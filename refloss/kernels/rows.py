"""Rows of an array of any layout: a vector of classes for every index of the other axes."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from refloss import jit
from refloss.numerics.formats import store, vector_of, widen
from refloss.numerics.memory import Memory
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
_BYTES = np.dtype(np.uint8)
_ELEMENT_TYPES = {np.dtype(ml_dtypes.bfloat16): np.dtype(np.int16), np.dtype(np.float16): np.dtype(np.uint16)}


def element_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """How compiled code sees a float format: the 16-bit ones as integers (see numerics.formats)."""
    return _ELEMENT_TYPES.get(dtype, dtype)


class _Layout(NamedTuple):
    """Where the rows of an array are in its memory, which has a length; fields are those of Rows, in their order."""

    length: int
    origin: int
    shape: np.ndarray
    strides: np.ndarray
    classes: int
    class_stride: int


@functools.lru_cache(maxsize=512)
def _layout(shape: tuple[int, ...], byte_strides: tuple[int, ...], itemsize: int, class_axis: int) -> _Layout:
    """A layout is kept, as the next call has the same one: its arrays are not written to."""
    strides = [stride // itemsize for stride in byte_strides]
    reaches = [(size - 1) * stride for size, stride in zip(shape, strides, strict=True)]
    is_empty = 0 in shape
    sizes = list(shape)
    classes, class_stride = sizes.pop(class_axis), strides.pop(class_axis)
    merged_shape, merged_strides = _merge_axes(sizes, strides)
    return _Layout(
        0 if is_empty else sum(map(abs, reaches)) + 1,
        0 if is_empty else -sum(reach for reach in reaches if reach < 0),
        np.array(merged_shape, dtype=np.int64),
        np.array(merged_strides, dtype=np.int64),
        classes,
        1 if classes == 1 else class_stride,
    )


def _memory_of(array: np.ndarray, layout: _Layout, dtype: np.dtype[Any]) -> np.ndarray:
    """The memory that an array lies in, as a vector of one type or of bytes."""
    flags = array.flags
    if flags.c_contiguous and flags.writeable and type(array) is np.ndarray:
        return array.reshape(-1).view(dtype)
    if not layout.length:
        return np.empty(0, dtype)
    address = array.__array_interface__["data"][0] - layout.origin * array.itemsize
    return np.asarray(Memory(array, dtype.str, address, layout.length * array.itemsize // dtype.itemsize))


def rows_of(array: np.ndarray, class_axis: int) -> Rows:
    """The rows of an array along an axis, without a copy; strides must be multiples of the element."""
    layout = _layout(array.shape, array.strides, array.itemsize, class_axis)
    return Rows(_memory_of(array, layout, element_type(array.dtype)), *layout[1:])


def any_rows_of(array: np.ndarray, class_axis: int) -> AnyRows:
    """The rows of an array along an axis, for kernels that take any format."""
    layout = _layout(array.shape, array.strides, array.itemsize, class_axis)
    return AnyRows(_memory_of(array, layout, _BYTES), _FORMATS[array.dtype], *layout[1:])


def elements_of(array: np.ndarray, shape: tuple[int, ...] | None = None) -> AnyRows:
    """Every axis of an array as one of its rows' axes: the rows are its elements. One without axes takes any shape."""
    if shape is None or array.ndim:
        return any_rows_of(array[..., None], array.ndim)
    layout = _layout((*shape, 1), (0,) * (len(shape) + 1), array.itemsize, len(shape))
    return AnyRows(_memory_of(array, layout, _BYTES), _FORMATS[array.dtype], *layout[1:])


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


def tile_rows(rows: Rows | AnyRows) -> int:
    """How many rows to work on together: one, where a row is contiguous."""
    if rows.class_stride == 1:
        return 1
    # Any rows become float64 in a tile, but as many of them as of float32 are worth more than the cache that they take.
    itemsize = 4 if isinstance(rows, AnyRows) else rows.memory.itemsize
    return max(1, min(TILE_ROWS, TILE_BYTES // max(1, rows.classes * itemsize)))


def tile_buffer(rows: Rows, tile: int) -> np.ndarray:
    """A tile for rows that are not contiguous; empty for those that are."""
    return np.empty((0 if rows.class_stride == 1 else tile, rows.classes), rows.memory.dtype)


@jit.scalar
def copy(source, destination):
    """A vector into another one; the assignment of slices compiles its error messages, which takes seconds."""
    for i in range(destination.size):
        destination[i] = source[i]


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
def load_tile(rows, first, count, tile):
    """Rows first ... first + count of any format as float64 into the rows of a tile, which may be longer."""
    stride = rows.strides[rows.shape.size - 1]
    lane, done = np.empty(count), 0
    while done < count:
        start = row_offset(rows, first + done)
        if rows.class_stride == 1:
            load_strided(rows, start, 1, tile[done][: rows.classes])
            done += 1
            continue
        part = lane[: min(_run(rows, first + done), count - done)]
        for c in range(rows.classes):
            load_strided(rows, start + c * rows.class_stride, stride, part)
            for k in range(part.size):
                tile[done + k, c] = part[k]
        done += part.size


@jit.helper
def save_tile(tile, rows, first, count):
    """Rows of a tile, rounded, to rows first ... first + count of any format."""
    stride = rows.strides[rows.shape.size - 1]
    lane, done = np.empty(count), 0
    while done < count:
        start = row_offset(rows, first + done)
        if rows.class_stride == 1:
            save_strided(tile[done][: rows.classes], rows, start, 1)
            done += 1
            continue
        part = lane[: min(_run(rows, first + done), count - done)]
        for c in range(rows.classes):
            for k in range(part.size):
                part[k] = tile[done + k, c]
            save_strided(part, rows, start + c * rows.class_stride, stride)
        done += part.size


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
