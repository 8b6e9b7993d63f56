"""Rows of an array of any layout: a vector of classes for every index of the other axes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refloss import jit

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


class _Memory:
    """The memory of an array as one vector of integers or floats that compiled code reads.

    It is always presented as writable, so that a kernel is compiled once; what a kernel writes is a matter of its own.
    """

    def __init__(self, array: np.ndarray, typestr: str, address: int, length: int) -> None:
        self.array = array
        self.__array_interface__ = {"data": (address, False), "shape": (length,), "typestr": typestr, "version": 3}


def element_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """How compiled code sees a float format: the 16-bit ones as integers (see numerics.formats)."""
    return {"bfloat16": np.dtype(np.int16), "float16": np.dtype(np.uint16)}.get(dtype.name, dtype)


def rows_of(array: np.ndarray, class_axis: int) -> Rows:
    """The rows of an array along an axis, without a copy; strides must be multiples of the element."""
    dtype = element_type(array.dtype)
    strides = [stride // dtype.itemsize for stride in array.strides]
    below = sum((size - 1) * stride for size, stride in zip(array.shape, strides, strict=True) if stride < 0)
    above = sum((size - 1) * stride for size, stride in zip(array.shape, strides, strict=True) if stride > 0)
    if array.size:
        address = array.ctypes.data + below * dtype.itemsize
        memory = np.asarray(_Memory(array, dtype.str, address, above - below + 1))
    else:
        memory = np.empty(0, dtype)
    shape, class_strides = list(array.shape), list(strides)
    classes, class_stride = shape.pop(class_axis), class_strides.pop(class_axis)
    merged_shape, merged_strides = _merge_axes(shape, class_strides)
    return Rows(
        memory,
        -below if array.size else 0,
        np.array(merged_shape, dtype=np.int64),
        np.array(merged_strides, dtype=np.int64),
        classes,
        1 if classes == 1 else class_stride,
    )


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
