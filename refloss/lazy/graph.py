"""A loss of Dask arrays as a graph: what divides it, a piece of it for each chunk of rows, and the pieces' exact sums.

    own_divisor … own_divisor      rows that count, or their weights; none of these where no data says what divides
         └── divisor_of_all ─┘
    piece       …       piece      the exact sum of a chunk's losses, its gradients, the intermediates of its rows
         └────── total ──────┘     one division, rounded once

A row is computed as a whole, by the public function, and so has the bits of one machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from refloss import arrays
from refloss.dispatch import chosen
from refloss.lazy import is_lazy, pieces
from refloss.lazy.layout import SHIFTED, Batch, all_in_chunks, batch_of, has_axes, shifted
from refloss.lazy.pieces import OF_ROWS, UPSTREAM, Call, of_component
from refloss.numerics.shares import counted
from refloss.result import Intermediates, LossResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from refloss.numerics.exact import Exact
    from refloss.specification import Role, Specification

_ITEMS = "num_items_in_batch"
# Intermediates in the shape of the first array, computed when they are asked for.
_ASKED_FOR = ("losses", "log_probabilities", "probabilities")


def lazily(function: Callable[..., Any], specification: Specification, named: Mapping[str, Any]) -> LossResult:
    """The result of a call, of Dask arrays. What is wrong with shapes, dtypes and options is an error now."""
    call, values, grad = _call(function, specification, named)
    given = all_in_chunks(specification, values)
    dtypes = {name: array.dtype for name, array in given.items()}
    divisor = _checked(call, given, is_counted=not _counting(specification, dtypes))
    floats = [name for name in specification.differentiable if name in given and dtypes[name].kind not in "iub"]
    wanted = arrays.wanted_gradients(grad, floats)
    chunks = {name: given[name].chunks for name in wanted}
    lead = [name for name, value in values.items() if is_lazy(value)]
    batch = batch_of(specification, *shifted(specification, call, given), lead)
    if _is_mean(batch) and (counting := _counting(specification, {n: a.dtype for n, (a, _) in batch.placed.items()})):
        divisor = _divisor(batch, counting)
    return _result(specification, batch, divisor, wanted, chunks)


def _call(
    function: Callable[..., Any], specification: Specification, named: Mapping[str, Any]
) -> tuple[Call, dict[str, Any], Any]:
    """What is called; its arrays, every cotangent of a mapping as an argument of its own; and what grad is."""
    constants, components = dict(named), None
    if constants.pop("out", None) is not None:
        raise ValueError("out is given; expected None with Dask arrays: write gradients with dask.array.store")
    grad = constants.pop("grad", True)
    if isinstance(upstream := constants.get(UPSTREAM), Mapping):
        del constants[UPSTREAM]
        constants |= {of_component(name): part for name, part in upstream.items()}
        components = tuple(upstream)
    call = Call(function, constants, components)
    values = {name: constants.pop(name) for name in _arrays(specification, call)}
    # An option is needed now, as in a call of NumPy arrays.
    constants.update({name: value.compute() for name, value in constants.items() if is_lazy(value)})
    return call, values, grad


def _arrays(specification: Specification, call: Call) -> list[str]:
    """The arguments that are arrays, and the numbers that may come of a graph."""
    numbers = [name for name in (_ITEMS, UPSTREAM, *map(of_component, call.components or ())) if name in call.constants]
    names = [name for name in specification.arguments if call.constants.get(name) is not None]
    return names + [name for name in numbers if is_lazy(value := call.constants[name]) or has_axes(value, name)]


def _is_mean(batch: Batch) -> bool:
    is_divided = _ITEMS in batch.placed or batch.call.constants.get(_ITEMS) is not None
    return not is_divided and batch.call.constants.get("reduction", "mean") not in ("sum", "none")


def _counting(specification: Specification, dtypes: Mapping[str, np.dtype[Any]]) -> list[str]:
    """The arguments whose values say what divides a mean."""
    labels = [name for name in specification.named("labels", "classes") if name in dtypes]
    labels = [name for name in labels if dtypes[name].kind in "iu"]
    role: Role = "class weight" if labels else "weight"
    weights = specification.named(role) if labels or specification.mean == "weights" else []
    return labels + [name for name in weights if name in dtypes]


def _checked(call: Call, given: Mapping[str, Any], *, is_counted: bool) -> Exact | None:
    """Check a call by arrays of its shapes and dtypes that have no memory; what divides it, if they say it."""
    if call.constants.get("grad_dtype") is not None:
        arrays.float_dtype(call.constants["grad_dtype"], "grad_dtype")
    chosen(call.constants.get("backend", "auto"))
    standing = {name: pieces.stand_in(array.shape, array.dtype) for name, array in given.items()}
    return counted(lambda: call(standing, **pieces.ON_HOST), checked_only=not is_counted)


def _divisor(batch: Batch, counting: Sequence[str]) -> Any:
    """What divides the sum of all rows, of the chunks of labels or weights alone."""
    others = {name: (axes, array.dtype) for name, (array, axes) in batch.placed.items() if name not in counting}
    parts = batch.over_chunks(
        pieces.own_divisor,
        counting,
        call=batch.call,
        others=others,
        axes={name: batch.placed[name].axes for name in counting},
        lengths=batch.lengths,
    )
    return _reduced(parts, pieces.itself, pieces.divisor_of_all)


def _reduced(parts: Any, of_chunk: Callable[..., Any], joined: Callable[..., Any]) -> Any:
    """What the chunks' parts come to when they are joined, some at a time: an array without axes."""
    options = {"dtype": object, "meta": np.empty((), object)}
    if not parts.ndim:
        return parts.map_blocks(of_chunk, **options)
    return da.reduction(parts, of_chunk, joined, combine=joined, concatenate=False, **options)


def _result(
    specification: Specification, batch: Batch, divisor: Any, wanted: set[str], chunks: Mapping[str, Any]
) -> LossResult:
    """What a batch comes to."""
    relative = _relative_to_mean(specification, batch, wanted)
    parts = _pieces(batch, wanted - relative, divisor)
    sums = _reduced(parts, pieces.sums_of, pieces.sums_of_all)
    loss, components = _losses(specification, batch, parts, sums)
    grads = {}
    for name in specification.differentiable:
        if name not in wanted:
            continue
        array, axes = batch.placed[name]
        own = _pieces(batch.again_after(sums), {name}, divisor, sums) if name in relative else parts
        grad_dtype = batch.call.constants.get("grad_dtype") if name == specification.differentiable[0] else None
        grads[name] = _read(batch, own, ("grads", name), axes, grad_dtype or array.dtype).rechunk(chunks[name])
    return LossResult(loss, grads, components, _intermediates(specification, batch, parts))


def _relative_to_mean(specification: Specification, batch: Batch, wanted: set[str]) -> set[str]:
    """The weights whose gradients depend on the mean of all chunks."""
    weights = specification.named("weight") if specification.mean == "weights" and _is_mean(batch) else []
    return wanted & set(weights)


def _pieces(batch: Batch, grad: set[str], *numbers: Any) -> Any:
    return batch.over_chunks(pieces.piece, [*batch.placed], *numbers, call=batch.call, grad=tuple(sorted(grad)))


def _losses(specification: Specification, batch: Batch, parts: Any, sums: Any) -> tuple[Any, dict[str, Any]]:
    """The loss and its components: numbers, or arrays in chunks of rows."""
    constants = batch.call.constants
    names = specification.components if not specification.reduces or constants.get("z_loss", 0.0) != 0.0 else ()
    if specification.is_reduced(constants):
        as_loss = partial(sums.map_blocks, pieces.quotient_of, dtype=np.float64, meta=np.empty(()))
        loss, *others = (as_loss(component=name) for name in ("loss", *names))
        return loss, dict(zip(names, others, strict=True))
    axes = next((batch.placed[name].axes for name in specification.named("indices")), batch.rows)
    places = {name: axes if name == names[0] else batch.rows for name in names}
    components = {name: _read(batch, parts, ("components", name), own) for name, own in places.items()}
    return _read(batch, parts, ("loss", ""), axes), components


def _read(batch: Batch, parts: Any, place: tuple[str, str], axes: tuple[int, ...], dtype: Any = np.float64) -> Any:
    """The array of a place in the results of chunks."""
    return batch.read(parts, partial(pieces.at, place=place), axes, np.dtype(dtype))


def _intermediates(specification: Specification, batch: Batch, parts: Any) -> Intermediates:
    """Those of rows, and those that are computed when they are asked for."""
    names = specification.intermediates
    found = {name: _read(batch, parts, ("intermediates", name), batch.rows) for name in OF_ROWS if name in names}
    if SHIFTED in batch.placed:
        found[SHIFTED] = batch.placed[SHIFTED].array.astype(np.int64)
    return Intermediates(found, **{name: partial(_asked_for, batch, name) for name in _ASKED_FOR if name in names})


def _asked_for(batch: Batch, name: str) -> Any:
    place, first = ("intermediates", name), next(iter(batch.placed.values()))
    return _read(
        batch, batch.over_chunks(pieces.asked_for, [*batch.placed], call=batch.call, name=name), place, first.axes
    )
