"""Arrays by where they lie in files: told to other processes, read there in parts, and written in parts.

A .safetensors file is a header, and then the elements of one tensor after the other; so whoever knows where a tensor
begins can write a part of it, while others write other parts. That is done by seeking, not by mapping: machines that
share a file system write back whole pages of a map, and so what others have written at their ends.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from safetensors.numpy import save

if TYPE_CHECKING:
    from typing import IO


@dataclass(frozen=True)
class OnDisk:
    """An array within a file: what is read of it is copied, what is written is there when the assignment ends."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: Literal["C", "F"] = "C"

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    def mapped(self) -> np.ndarray:
        """The whole of it, in place."""
        # A map of no axes would have one.
        array = np.memmap(self.path, self.dtype, "r", self.offset, self.shape or (1,), self.order)
        return array.reshape(self.shape, order=self.order)

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.array(self.mapped()[index])

    def __setitem__(self, index: slice | tuple[slice, ...], values: Any) -> None:
        """Write what slices say that leave nothing out; the array's order is C."""
        slices = index if isinstance(index, tuple) else (index,)
        ranges = [range(size)[each] for each, size in zip(slices, self.shape, strict=True)]
        starts, shape = [each.start for each in ranges], tuple(map(len, ranges))
        block = np.asarray(values, self.dtype, order="C")
        if block.shape != shape:
            raise ValueError(f"values of shape {block.shape} in the place of {shape}")
        steps = [math.prod(self.shape[axis + 1 :]) * self.dtype.itemsize for axis in range(self.ndim)]
        # The last axis along which the block is a part: from there on it goes into the file without a gap.
        parts = [axis for axis in range(self.ndim) if block.shape[axis] != self.shape[axis]]
        with self.path.open("r+b", buffering=0) as file:
            for outer in np.ndindex(block.shape[: max(parts, default=0)]):
                first = [start + i for start, i in itertools.zip_longest(starts, outer, fillvalue=0)]
                file.seek(self.offset + sum(i * step for i, step in zip(first, steps, strict=True)))
                _write(file, block[outer])


def _write(file: IO[bytes], values: np.ndarray) -> None:
    left = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    while left:
        left = left[file.write(left) :]


def places(value: Any) -> Any:
    """An argument in which every array that is mapped, as refloss.files maps it whole, is replaced by its place."""
    if isinstance(value, np.memmap) and value.filename is not None:
        order: Literal["C", "F"] = "C" if value.flags.c_contiguous else "F"
        return OnDisk(Path(value.filename), value.offset, value.shape, value.dtype, order)
    return _of_parts(places, value)


def mapped(value: Any) -> Any:
    """The inverse, wherever the files can be seen."""
    return value.mapped() if isinstance(value, OnDisk) else _of_parts(mapped, value)


def _of_parts(function: Any, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: function(part) for name, part in value.items()}
    return [function(part) for part in value] if isinstance(value, list | tuple) else value


def create(path: Path, tensors: Mapping[str, tuple[tuple[int, ...], Any]]) -> dict[str, OnDisk]:
    """Make the .safetensors file of tensors of some shapes and dtypes, full of zeros; where each of them lies."""
    # In the library's order, under its names of dtypes.
    empty = save({name: np.empty(0, dtype) for name, (_, dtype) in tensors.items()})
    header = json.loads(empty[8 : 8 + struct.unpack("<Q", empty[:8])[0]])
    end = 0
    for name, entry in header.items():
        shape, dtype = tensors[name]
        start, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
        entry |= {"shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(begin + end)
    return {
        name: OnDisk(path.absolute(), begin + entry["data_offsets"][0], *_shape_and_dtype(tensors[name]))
        for name, entry in header.items()
    }


def _shape_and_dtype(of: tuple[tuple[int, ...], Any]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    return of[0], np.dtype(of[1])
