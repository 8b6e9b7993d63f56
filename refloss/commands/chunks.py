"""Arrays in chunks of rows that workers read from files, and tensors in chunks that they write into one."""

from __future__ import annotations

import contextlib
import math
import warnings
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

import refloss
from refloss.commands import cluster, on_disk
from refloss.files import replacing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from distributed import Client

    from refloss.commands.on_disk import OnDisk

SIZE = 1 << 26  # bytes of a chunk


class _Read:
    """An array on disk that a worker reads; of a topic, it tells which part of it that was."""

    def __init__(self, place: OnDisk, topic: str | None, chunks: int) -> None:
        self._place, self._topic, self._chunks = place, topic, chunks
        self._version = refloss.__version__
        self.shape, self.dtype, self.ndim = place.shape, place.dtype, len(place.shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        part: np.ndarray = cluster.of_version(self._version, self._place.__getitem__, index)
        if self._topic is not None:
            cluster.tell(self._topic, 1, self._chunks)
        return part


def lazily(arguments: Mapping[str, Any], topic: str) -> dict[str, Any]:
    """Arguments with Dask arrays in the place of arrays; a topic is told of the chunks that are read of the largest."""
    arrays = {name: value for name, value in arguments.items() if isinstance(value, np.ndarray) and value.size}
    largest = max(arrays, key=lambda name: arrays[name].nbytes, default=None)
    lazy = {name: _lazy(value, topic if name == largest else None) for name, value in arrays.items()}
    return {**arguments, **lazy}


def _lazy(array: np.ndarray, topic: str | None) -> Any:
    chunks = row_chunks(array.shape, array.dtype.itemsize, SIZE)
    count = math.prod(-(-size // step) for size, step in zip(array.shape, chunks, strict=True))
    place = on_disk.places(array)
    return da.from_array(array if place is array else _Read(place, topic, count), chunks, name=False)


def row_chunks(shape: tuple[int, ...], itemsize: int, limit: int) -> tuple[int, ...]:
    """The shape of chunks that are each in one piece within an array, and not larger than the limit if they can be."""
    rests = [math.prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape))]
    return tuple(min(size, max(1, limit // rest)) for size, rest in zip(shape, rests, strict=True))


def write(client: Client, tensors: Mapping[str, Any], path: Path) -> None:
    """Write tensors, some of them Dask arrays, as save_tensors does; none of these comes to this process."""
    arrays = {name: da.asarray(value) for name, value in tensors.items()}
    with replacing(path) as part, _large_graphs():
        places = on_disk.create(part, {name: (array.shape, array.dtype) for name, array in arrays.items()})
        targets: Any = [places[name] for name in arrays]
        written = da.store(list(arrays.values()), targets, lock=False, compute=False)
        client.gather(client.compute(written))


def gathered(client: Client, tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The values of Dask arrays."""
    with _large_graphs():
        values = client.gather(client.compute(list(tensors.values())))
    return dict(zip(tensors, values, strict=True))


@contextlib.contextmanager
def _large_graphs() -> Iterator[None]:
    """No warning of a graph that has arrays in it: those are in this process anyway, out of compressed files."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph")
        yield
