"""A loss of Dask arrays as a graph: what divides it, a piece of it for each chunk of rows, and the pieces' exact sums.

    own_divisor … own_divisor      rows that count, or their weights; none of these where no data says what divides
         └── divisor_of_all ─┘
    piece       …       piece      the exact sum of a chunk's losses, its gradients, the intermediates of its rows
         └────── total ──────┘     one division, rounded once

Chunks are those of the rows of the first Dask array. An axis of classes that is cut is joined: a row is computed as a
whole, by the public function, and so has the bits of one machine.
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import dask.array as da
import numpy as np
from dask import delayed

from refloss import arrays
from refloss.lazy import is_lazy, pieces
from refloss.lazy.pieces import OF_ROWS, UPSTREAM, Call, of_component
from refloss.numerics.shares import counted
from refloss.result import Intermediates, LossResult

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from refloss.specification import Specification

# Axes of a graph are numbers: those of rows from 0, and two that no chunk is cut along.
_CLASSES, _SEVERAL = 100, 101
_ITEMS, _SHIFTED = "num_items_in_batch", "shift_labels"
# Intermediates in the shape of the first array, computed when they are asked for.
_ASKED_FOR = ("losses", "log_probabilities", "probabilities")


class Placed(NamedTuple):
    """An array in chunks that fit, and which axes of the graph its own are."""

    array: Any
    axes: tuple[int, ...] | None  # None for what is no array


class Batch(NamedTuple):
    """A call of arrays in chunks."""

    call: Call
    placed: dict[str, Placed]
    rows: tuple[int, ...]
    chunks: tuple[tuple[int, ...], ...]  # of rows
    lengths: dict[int, int]  # of axes that are not cut

    def over_chunks(self, work: Callable[..., Any], names: Sequence[str], *numbers: Any, **constants: Any) -> Any:
        """work(arrays, *numbers, **constants) of every chunk: an array in chunks of rows of whatever it returns."""
        starts = [np.cumsum([0, *sizes[:-1]]) for sizes in self.chunks]
        given = [self.placed[name] for name in names] + [
            Placed(number, () if is_lazy(number) else None) for number in numbers
        ]
        given += [Placed(da.from_array(each, chunks=1), (axis,)) for axis, each in zip(self.rows, starts, strict=True)]
        result = da.blockwise(
            _of_chunk,
            self.rows,
            *itertools.chain.from_iterable(given),
            work=partial(work, **constants),
            names=tuple(names),
            numbers=len(numbers),
            dtype=object,
            meta=np.empty((0,) * len(self.rows), object),
            align_arrays=False,
        )
        return da.Array(result.dask, result.name, self.chunks, meta=result._meta)

    def array_of(self, parts: Any, read: Callable[[Any], Any], axes: tuple[int, ...], dtype: Any) -> Any:
        """The array whose chunks are read of parts."""
        meta = np.empty((0,) * len(axes), dtype)
        new_axes = {axis: self.lengths[axis] for axis in axes if axis not in self.rows}
        return da.blockwise(read, axes, parts, self.rows, new_axes=new_axes, dtype=dtype, meta=meta, align_arrays=False)


def _of_chunk(*blocks: Any, work: Callable[..., Any], names: tuple[str, ...], numbers: int) -> Any:
    """Work on a chunk; an error says where it is."""
    blocks = tuple(map(_only, blocks))
    others = blocks[len(names) : len(names) + numbers]
    try:
        return work(dict(zip(names, blocks, strict=False)), *others)
    except (TypeError, ValueError) as error:
        start = ", ".join(str(int(each[0])) for each in blocks[len(names) + numbers :])
        raise type(error)(f"{error}, in the chunk of rows that begins at [{start}]") from error


def _only(block: Any) -> Any:
    """The one block along an axis that is not cut."""
    while isinstance(block, list):
        (block,) = block
    return block


def lazily(function: Callable[..., Any], specification: Specification, named: Mapping[str, Any]) -> LossResult:
    """The result of a call, of Dask arrays. What is wrong with shapes, dtypes and options is an error now."""
    values = dict(named)
    if values.pop("out", None) is not None:
        raise ValueError("out is given; expected None with Dask arrays: write gradients with dask.array.store")
    grad, upstream = values.pop("grad", True), values.get(UPSTREAM)
    components = tuple(upstream) if isinstance(upstream, dict) else ()
    values |= {of_component(name): upstream[name] for name in components}
    call = Call(
        function, {name: value for name, value in values.items() if not components or name != UPSTREAM}, components
    )
    names = [name for name in specification.arguments if call.constants.get(name) is not None]
    names += [
        name for name, value in call.constants.items() if name not in names and (is_lazy(value) or np.ndim(value))
    ]
    lead = [name for name in names if is_lazy(call.constants[name])]
    given = {name: _in_chunks(call.constants.pop(name), name) for name in names}
    floats = [name for name in specification.differentiable if name in given and given[name].dtype.kind not in "iub"]
    wanted = arrays.wanted_gradients(grad, floats)
    divisor = _checked(call, given, is_counted=not _counting(specification, given))
    chunks = {name: given[name].chunks for name in wanted}
    batch = _batch(specification, call, _shifted(specification, given, call.constants), lead)
    if _is_mean(call, given) and (counting := _counting(specification, batch.placed)):
        divisor = _divisor(batch, counting)
    return _result(specification, batch, divisor, wanted, chunks)


def _in_chunks(value: Any, name: str) -> Any:
    """A Dask array of whatever array."""
    if not is_lazy(value):
        array = arrays.as_array(value, name)
        return da.from_array(array, chunks=array.shape)
    if any(math.isnan(size) for sizes in value.chunks for size in sizes):
        raise ValueError(f"{name} has chunks of unknown sizes; call its compute_chunk_sizes() first")
    return value


def _is_mean(call: Call, given: Mapping[str, Any]) -> bool:
    is_divided = _ITEMS in given or call.constants.get(_ITEMS) is not None
    return not is_divided and call.constants.get("reduction", "mean") not in ("sum", "none")


def _counting(specification: Specification, given: Mapping[str, Any]) -> list[str]:
    """The arguments whose values say what divides a mean."""
    labels = [name for name in specification.named("labels", "classes") if name in given]
    labels = [name for name in labels if _dtype(given[name]).kind in "iu"]
    others = ["class weight"] if labels else ["weight"] if specification.mean == "weights" else []
    return labels + [name for role in others for name in specification.named(role) if name in given]  # type: ignore[arg-type]


def _dtype(value: Any) -> np.dtype[Any]:
    dtype: np.dtype[Any] = value.array.dtype if isinstance(value, Placed) else value.dtype
    return dtype


def _checked(call: Call, given: Mapping[str, Any], *, is_counted: bool) -> Any:
    """Check a call by arrays of its shapes and dtypes that have no memory; what divides it, if they say it."""
    if call.constants.get("grad_dtype") is not None:
        arrays.float_dtype(call.constants["grad_dtype"], "grad_dtype")
    standing = {name: pieces.stand_in(array.shape, array.dtype) for name, array in given.items()}
    return counted(lambda: call(standing, grad=False), checked_only=not is_counted)


def _shifted(specification: Specification, given: dict[str, Any], constants: dict[str, Any]) -> dict[str, Any]:
    """Labels that stand after their rows as those of the rows, across chunks."""
    shifts = [
        (name, argument) for name, argument in specification.arguments.items() if name in given and argument.shift
    ]
    for name, argument in shifts:
        labels, constants[name] = given.pop(name), None
        if _SHIFTED in given:  # which are taken instead
            continue
        labels = labels.map_blocks(arrays.index_array, name, dtype=np.int64)
        size = min(argument.shift, labels.shape[-1])
        ignored = constants.get("ignore_index", argument.ignored)
        none = da.full((*labels.shape[:-1], size), ignored, dtype=np.int64)
        given = given | {_SHIFTED: da.concatenate([labels[..., argument.shift :], none], axis=-1)}
    return given


def _batch(specification: Specification, call: Call, given: dict[str, Any], lead: Sequence[str]) -> Batch:
    """The arrays of a call in chunks that fit to each other."""
    first_name = specification.required[0]
    first, class_axis = given[first_name], specification.arguments[first_name].class_axis
    rows = tuple(range(first.ndim - (class_axis is not None)))
    axes = rows
    if class_axis is not None:
        axes = (*rows[: class_axis % first.ndim], _CLASSES, *rows[class_axis % first.ndim :])
    arguments = specification.arguments
    placed = {}
    for name, array in given.items():
        may_broadcast = name in arguments and arguments[name].broadcast and not arguments[name].differentiable
        fitting = da.broadcast_to(array, first.shape) if may_broadcast else array
        is_of_classes = name in arguments and arguments[name].role == "class weight"
        placed[name] = Placed(
            fitting, (_CLASSES,) if is_of_classes else _axes(name, fitting, Placed(first, axes), rows)
        )
    leading = (placed[name] for name in (*lead, _SHIFTED, first_name) if name in placed)
    whole = [each for each in leading if set(rows) <= set(each.axes)]
    chunks = tuple(whole[0].array.chunks[whole[0].axes.index(axis)] for axis in rows)
    lengths = {axis: n for array, own in placed.values() for axis, n in zip(own, array.shape, strict=True)}
    fitting = {
        name: Placed(array.rechunk({i: chunks[axis] if axis in rows else -1 for i, axis in enumerate(own)}), own)
        for name, (array, own) in placed.items()
    }
    return Batch(call, fitting, rows, chunks, {axis: n for axis, n in lengths.items() if axis not in rows})


def _axes(name: str, array: Any, first: Placed, rows: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of the graph that an array has."""
    shape = tuple(first.array.shape[first.axes.index(axis)] for axis in rows)
    if array.ndim == 0 and rows:
        return ()
    if array.shape == first.array.shape:
        return first.axes
    if array.shape == shape:
        return rows
    if array.shape[:-1] == shape:
        return (*rows, _SEVERAL)
    raise ValueError(
        f"{name} has shape {array.shape}; with Dask arrays expected {first.array.shape}, or an element for each row"
    )


def _divisor(batch: Batch, counting: Sequence[str]) -> Any:
    """What divides the sum of all rows, of the chunks of labels or weights alone."""
    axes = {name: batch.placed[name].axes for name in counting}
    others = {name: (own, array.dtype) for name, (array, own) in batch.placed.items() if name not in counting}
    constants = {"call": batch.call, "others": others, "axes": axes, "lengths": batch.lengths}
    return _number(
        delayed(pieces.divisor_of_all)(_blocks(batch.over_chunks(pieces.own_divisor, counting, **constants)))
    )


def _number(value: Any, dtype: Any = object) -> Any:
    """What a task yields, as an array without axes."""
    return da.from_delayed(value, (), dtype, meta=np.empty((), dtype))


def _blocks(parts: Any) -> list[Any]:
    """What the chunks of an array are made of."""
    blocks: list[Any] = parts.to_delayed(optimize_graph=False).reshape(-1).tolist()
    return blocks


def _result(
    specification: Specification, batch: Batch, divisor: Any, wanted: set[str], chunks: Mapping[str, Any]
) -> LossResult:
    """What a batch comes to."""
    constants = batch.call.constants
    is_reduced = specification.is_reduced(constants)
    # A weight's gradient is relative to the mean of all chunks.
    later = {name for name in wanted if specification.arguments[name].role == "weight" and is_reduced}
    later = later if specification.mean == "weights" and constants.get("reduction", "mean") == "mean" else set()
    parts = batch.over_chunks(pieces.piece, [*batch.placed], divisor, call=batch.call, grad=(*(wanted - later),))
    of_loss = next((batch.placed[name].axes for name in specification.named("indices")), batch.rows)
    names = specification.components if not specification.reduces or constants.get("z_loss", 0.0) != 0.0 else ()
    if is_reduced:
        sums = _blocks(parts.map_blocks(pieces.sums_of, dtype=object, meta=parts._meta))
        total = delayed(pieces.total)(sums, "loss")
        loss = _number(delayed(pieces.as_loss)(total), np.float64)
        of_components = {
            name: _number(delayed(pieces.as_loss)(delayed(pieces.total)(sums, name)), np.float64) for name in names
        }
    else:
        loss = _read(batch, parts, ("loss", ""), of_loss, np.float64)
        places = {name: of_loss if name == names[0] else batch.rows for name in names}
        of_components = {
            name: _read(batch, parts, ("components", name), axes, np.float64) for name, axes in places.items()
        }
    grads = {}
    for name in specification.differentiable:
        if name not in wanted:
            continue
        source = parts
        if name in later:
            source = batch.over_chunks(
                pieces.piece, [*batch.placed], divisor, _number(total), call=batch.call, grad=(name,)
            )
        array, axes = batch.placed[name]
        is_first = name == specification.differentiable[0]
        dtype = (constants.get("grad_dtype") if is_first else None) or array.dtype
        grads[name] = _read(batch, source, ("grads", name), axes, dtype).rechunk(chunks[name])
    return LossResult(loss, grads, of_components, _intermediates(specification, batch, parts))


def _read(batch: Batch, parts: Any, place: tuple[str, str], axes: tuple[int, ...], dtype: Any) -> Any:
    return batch.array_of(parts, partial(_taken, place=place), axes, np.dtype(dtype))


def _taken(given: Any, place: tuple[str, str]) -> Any:
    return given.arrays[place]


def _intermediates(specification: Specification, batch: Batch, parts: Any) -> Intermediates:
    """Those of rows, and those that are computed when they are asked for."""
    names = specification.intermediates
    found = {
        name: _read(batch, parts, ("intermediates", name), batch.rows, np.float64) for name in OF_ROWS if name in names
    }
    if _SHIFTED in batch.placed:
        found[_SHIFTED] = batch.placed[_SHIFTED].array
    return Intermediates(found, **{name: partial(_asked_for, batch, name) for name in _ASKED_FOR if name in names})


def _asked_for(batch: Batch, name: str) -> Any:
    parts = batch.over_chunks(pieces.asked_for, [*batch.placed], call=batch.call, name=name)
    return batch.array_of(parts, _itself, next(iter(batch.placed.values())).axes, np.float64)


def _itself(value: Any) -> Any:
    return value
