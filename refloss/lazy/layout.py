"""The arrays of a call in chunks that fit to each other, and work on each chunk of rows.

Chunks are those of the rows of the first Dask array. An axis of classes that is cut is joined.
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import dask.array as da
import numpy as np
from dask.graph_manipulation import bind

from refloss import arrays
from refloss.lazy import is_lazy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from refloss.lazy.pieces import Call
    from refloss.specification import Argument, Specification

# Axes of a graph are numbers: those of rows from 0, and two that no chunk is cut along.
_CLASSES, _SEVERAL = 100, 101
SHIFTED = "shift_labels"


class Placed(NamedTuple):
    """An array in chunks, and which axes of the graph its own are."""

    array: Any
    axes: tuple[int, ...]


class Batch(NamedTuple):
    """A call of arrays in chunks that fit; the first one is that whose rows have losses."""

    call: Call
    placed: dict[str, Placed]
    rows: tuple[int, ...]
    chunks: tuple[tuple[int, ...], ...]  # of rows
    lengths: dict[int, int]  # of axes that are not cut

    def over_chunks(self, work: Callable[..., Any], names: Sequence[str], *numbers: Any, **constants: Any) -> Any:
        """work(arrays, *numbers, **constants) of every chunk: an array in chunks of rows of whatever it returns.

        Axes that are not cut stay, of one chunk each: where no axis is lost, Dask reads a chunk in the task that uses
        it, and so not before the numbers are known.
        """
        whole = {axis: n for axis, n in self.lengths.items() if any(axis in self.placed[name].axes for name in names)}
        axes, chunks = (*self.rows, *whole), (*self.chunks, *((n,) for n in whole.values()))
        starts = [da.from_array(np.cumsum([0, *sizes[:-1]]), chunks=1) for sizes in self.chunks]
        given: list[tuple[Any, tuple[int, ...] | None]] = [self.placed[name] for name in names]
        given += [(number, () if is_lazy(number) else None) for number in numbers]
        given += [(each, (axis,)) for axis, each in zip(self.rows, starts, strict=True)]
        meta = np.empty((0,) * len(axes), object)
        result = da.blockwise(
            _of_chunk,
            axes,
            *itertools.chain.from_iterable(given),
            work=partial(work, **constants),
            names=tuple(names),
            numbers=len(numbers),
            dtype=object,
            meta=meta,
            align_arrays=False,
        )
        # It would take the starts' chunks where there are as many.
        return da.Array(result.dask, result.name, chunks, meta=meta)

    def again_after(self, number: Any) -> Batch:
        """The same, read or computed once more when a number is known: until then no chunk has to be kept."""
        arrays = bind([array for array, _ in self.placed.values()], number, seed=number.name)
        placed = zip(self.placed, arrays, strict=True)
        return self._replace(placed={name: Placed(array, self.placed[name].axes) for name, array in placed})

    def read(self, parts: Any, reader: Callable[[Any], Any], axes: tuple[int, ...], dtype: Any) -> Any:
        """The array whose chunks a reader takes from what was made of chunks of all arrays."""
        return da.blockwise(
            _read,
            axes,
            parts,
            (*self.rows, *self.lengths),
            reader=reader,
            dtype=dtype,
            meta=np.empty((0,) * len(axes), dtype),
            align_arrays=False,
        )


def _of_chunk(*blocks: Any, work: Callable[..., Any], names: tuple[str, ...], numbers: int) -> Any:
    """Work on a chunk; an error says where it is."""
    others, starts = blocks[len(names) : len(names) + numbers], blocks[len(names) + numbers :]
    try:
        return work(dict(zip(names, blocks, strict=False)), *others)
    except (TypeError, ValueError) as error:
        where = ", ".join(str(int(each[0])) for each in starts)
        raise type(error)(f"{error}, in the chunk of rows that begins at [{where}]") from error


def _read(part: Any, *, reader: Callable[[Any], Any]) -> Any:
    """What a reader takes from a part, the only one along axes that are not cut."""
    while isinstance(part, list):
        (part,) = part
    return reader(part)


def has_axes(value: Any, name: str) -> bool:
    """Whether a number is one for each row; what is no number is left for the function to tell."""
    return not isinstance(value, int | float | str | None) and arrays.as_array(value, name).ndim > 0


def all_in_chunks(specification: Specification, values: Mapping[str, Any]) -> dict[str, Any]:
    """Dask arrays of whatever arrays; lists of integers are of real numbers where a function takes them for such."""
    chunked = {name: _in_chunks(value, name) for name, value in values.items()}
    first = chunked.get(specification.required[0])
    for name, value in values.items():
        array, argument = chunked[name], specification.arguments.get(name)
        is_list = array.dtype.kind in "iu" and isinstance(value, list | tuple | int)
        if is_list and argument is not None and _is_real(argument, array, first):
            chunked[name] = array.astype(np.float64)
    return chunked


def _is_real(argument: Argument, array: Any, first: Any) -> bool:
    """Whether an argument is of real numbers; classes are, in the shape of the logits: a distribution over them."""
    if argument.role == "classes":
        return first is not None and array.shape == first.shape
    return argument.role not in ("labels", "indices", "mask", "flags")


def _in_chunks(value: Any, name: str) -> Any:
    if not is_lazy(value):
        array = arrays.as_array(value, name)
        return da.from_array(array, chunks=array.shape)
    if any(math.isnan(size) for sizes in value.chunks for size in sizes):
        raise ValueError(f"{name} has chunks of unknown sizes; call its compute_chunk_sizes() first")
    return value


def shifted(specification: Specification, call: Call, given: dict[str, Any]) -> tuple[Call, dict[str, Any]]:
    """A call with labels of its rows, for one with labels that stand after their rows, maybe in another chunk."""
    for name, argument in specification.arguments.items():
        if name not in given or not argument.shift:
            continue
        labels, others = given[name], {other: array for other, array in given.items() if other != name}
        call = call._replace(constants=call.constants | {name: None})
        if SHIFTED in given:  # which are taken instead
            return call, others
        shape = given[argument.of].shape
        if labels.shape != shape[:-1]:
            raise _misplaced(name, labels, shape, shape[:-1])
        size = min(argument.shift, labels.shape[-1])
        ignored = call.constants.get("ignore_index", argument.ignored)
        none = da.full((*labels.shape[:-1], size), ignored, dtype=np.int64)
        targets = labels[..., argument.shift :].map_blocks(
            _targets, name, argument.shift, shape[-1], ignored, dtype=np.int64, meta=np.empty((0,) * labels.ndim, int)
        )
        return call, others | {SHIFTED: da.concatenate([targets, none], axis=-1)}
    return call, given


def _targets(
    block: np.ndarray, name: str, shift: int, classes: int, ignored: int, block_info: Mapping[Any, Any]
) -> np.ndarray:
    """Labels in one format, checked while it is known where they stand in the whole."""
    labels = arrays.integer_array(block, name)
    starts = [start for start, _ in block_info[0]["array-location"]]

    def position(index: tuple[int, ...]) -> tuple[int, ...]:
        *others, last = (start + i for start, i in zip(starts, index, strict=True))
        return *others, last + shift

    arrays.check_labels(labels, classes, ignored, name, position)
    return labels.astype(np.int64)


def batch_of(specification: Specification, call: Call, given: Mapping[str, Any], lead: Sequence[str]) -> Batch:
    """Arrays cut as the rows of the first are that has all of them: of those that lead, or else the first of all."""
    first_name = specification.required[0]
    first, class_axis = given[first_name], specification.arguments[first_name].class_axis
    axes = rows = tuple(range(first.ndim - (class_axis is not None)))
    if class_axis is not None:
        axes = (*rows[: class_axis % first.ndim], _CLASSES, *rows[class_axis % first.ndim :])
    placed = {
        name: _placed(specification, name, array, Placed(first, axes), rows)
        for name, array in sorted(given.items(), key=lambda each: each[0] != first_name)
    }
    whole = [
        placed[name] for name in (*lead, SHIFTED, first_name) if name in placed and set(rows) <= {*placed[name].axes}
    ]
    chunks = tuple(whole[0].array.chunks[whole[0].axes.index(axis)] for axis in rows)
    lengths = {axis: n for array, own in placed.values() for axis, n in zip(own, array.shape, strict=True)}
    fitting = {
        name: Placed(array.rechunk({i: chunks[axis] if axis in rows else -1 for i, axis in enumerate(own)}), own)
        for name, (array, own) in placed.items()
    }
    return Batch(call, fitting, rows, chunks, {axis: n for axis, n in lengths.items() if axis not in rows})


def _placed(specification: Specification, name: str, array: Any, first: Placed, rows: tuple[int, ...]) -> Placed:
    """An array with the axes of the graph."""
    argument = specification.arguments.get(name)
    if argument is not None and argument.role == "class weight":
        return Placed(array, (_CLASSES,))
    if argument is not None and argument.broadcast and not argument.differentiable:
        # Dask broadcasts an axis of one chunk alone.
        array = array.rechunk({axis: size for axis, size in enumerate(array.shape) if size == 1})
        return Placed(da.broadcast_to(array, first.array.shape), first.axes)
    shape = tuple(first.array.shape[first.axes.index(axis)] for axis in rows)
    if argument is None and array.ndim == 0:
        return Placed(array, ())
    if array.shape == first.array.shape:
        return Placed(array, first.axes)
    if array.shape == shape:
        return Placed(array, rows)
    if array.shape[:-1] == shape and array.ndim:
        return Placed(array, (*rows, _SEVERAL))
    raise _misplaced(name, array, first.array.shape, shape)


def _misplaced(name: str, array: Any, shape: tuple[int, ...], rows: tuple[int, ...]) -> ValueError:
    expected = f"{shape}" if rows == shape else f"{shape}, or {rows} of its rows"
    return ValueError(f"{name} has shape {array.shape}; with Dask arrays expected {expected}")
