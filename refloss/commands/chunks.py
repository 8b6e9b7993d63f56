"""Arrays in chunks of rows that workers read from files, and tensors in chunks that they write into one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from dask.delayed import delayed

import refloss
from refloss.commands import cluster, on_disk
from refloss.files import replacing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from distributed import Client

    from refloss.commands.on_disk import OnDisk
    from refloss.testing.judging.compare import Report

SIZE = 1 << 26  # bytes of a chunk


class _Read:
    """An array on disk; a worker that reads a chunk of it tells so of a topic."""

    def __init__(self, place: OnDisk, topic: str) -> None:
        self._place, self._topic, self._version = place, topic, refloss.__version__
        self.shape, self.dtype, self.ndim = place.shape, place.dtype, place.ndim
        self.count = math.prod(-(-size // step) for size, step in zip(self.shape, _chunks(place), strict=True))

    def __getitem__(self, index: Any) -> np.ndarray:
        part: np.ndarray = cluster.of_version(self._version, self._place.__getitem__, index)
        cluster.tell(self._topic, 1, self.count)
        return part


def lazily(arguments: Mapping[str, Any], topic: str, report: Report) -> dict[str, Any]:
    """Arguments with Dask arrays in the place of arrays: on disk where they are mapped.

    How many chunks the largest of those has is reported, and which of them are read is told of the topic.
    """
    sources = {
        name: on_disk.places(value) for name, value in arguments.items() if isinstance(value, np.ndarray) and value.size
    }
    mapped = [name for name, source in sources.items() if isinstance(source, on_disk.OnDisk)]
    if mapped:
        largest = max(mapped, key=lambda name: arguments[name].nbytes)
        sources[largest] = _Read(sources[largest], topic)
        report(0, sources[largest].count)
    lazy = {name: da.from_array(source, _chunks(source), name=False) for name, source in sources.items()}
    return {**arguments, **lazy}


def _chunks(source: Any) -> tuple[int, ...]:
    return row_chunks(source.shape, source.dtype.itemsize, SIZE)


def row_chunks(shape: tuple[int, ...], itemsize: int, limit: int) -> tuple[int, ...]:
    """The shape of chunks that are each in one piece within an array, and not larger than the limit if they can be."""
    rests = [math.prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape))]
    return tuple(min(size, max(1, limit // rest)) for size, rest in zip(shape, rests, strict=True))


def write(client: Client, tensors: Mapping[str, Any], path: Path) -> None:
    """Write tensors, some of them Dask arrays, as save_tensors does; none of these comes to this process."""
    arrays = {name: da.asarray(value) for name, value in tensors.items()}
    with replacing(path) as part:
        places = on_disk.create(part, {name: (array.shape, array.dtype) for name, array in arrays.items()})
        targets: Any = [places[name] for name in arrays]
        _computed(client, da.store(list(arrays.values()), targets, lock=False, compute=False))


def gathered(client: Client, tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The values of Dask arrays."""
    values: dict[str, np.ndarray] = _computed(client, dict(tensors))
    return values


def _computed(client: Client, value: Any) -> Any:
    """What is in lists and mappings, computed. It is one future: several that are interrupted complain of it."""
    return client.compute(delayed(value)).result()
