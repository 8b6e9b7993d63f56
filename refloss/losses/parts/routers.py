"""A router's logits as users have them, a list of layers or one array, with the rows that count."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from refloss import arrays


class Router(NamedTuple):
    """Logits whose rows, all axes but the last, are tokens of layers, and which of them count."""

    logits: np.ndarray  # [..., E]
    counts: np.ndarray  # [R] bool
    layers: int


def router_of(router_logits: Any, mask: Any) -> Router:
    """Of logits [..., E] with at least one axis, whose first axis is that of layers where there are three or more."""
    name = "router_logits"
    x = _joined(router_logits, name) if _is_list(router_logits) else arrays.float_array(router_logits, name)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"router_logits has shape {x.shape}; expected [..., E] with at least one expert")
    return Router(x, _counted(mask, x.shape[:-1]), x.shape[0] if x.ndim > 2 else 1)


def selected_experts(selected: Any, router: Router, top_k: int) -> np.ndarray:
    """The experts of rows [R, k] int64, −1 where a row does not count."""
    name, shape = "selected", (*router.logits.shape[:-1], top_k)
    if _is_list(selected):
        given = _stacked([arrays.integer_array(part, f"{name}[{i}]") for i, part in enumerate(selected)], name)
    else:
        given = arrays.integer_array(selected, name)
    arrays.check_shape(given, shape, name, "top_k experts for each row of router_logits")
    counts = router.counts.reshape(*shape[:-1], 1)
    arrays.check_range(np.where(counts, given, given.dtype.type(0)), 0, router.logits.shape[-1] - 1, name)
    chosen = np.where(counts, given, given.dtype.type(0)).astype(np.int64, order="C").reshape(-1, top_k)
    chosen[~router.counts] = -1
    ordered = np.sort(chosen, axis=-1)
    twice = (ordered[:, 1:] == ordered[:, :-1]).any(axis=-1) & router.counts
    if twice.any():
        where = ", ".join(str(i) for i in np.unravel_index(int(np.argmax(twice)), shape[:-1]))
        raise ValueError(f"selected[{where}] = {chosen[int(np.argmax(twice))].tolist()} names an expert twice")
    return chosen


def _is_list(value: Any) -> bool:
    """Whether a value is a list of arrays, and not of numbers."""
    return isinstance(value, list | tuple) and len(value) > 0 and all(hasattr(part, "shape") for part in value)


def _joined(layers: Any, name: str) -> np.ndarray:
    parts = [arrays.float_array(part, f"{name}[{i}]") for i, part in enumerate(layers)]
    for i, part in enumerate(parts):
        if part.dtype != parts[0].dtype:
            raise TypeError(f"{name}[{i}] has dtype {part.dtype}; expected {parts[0].dtype}, that of {name}[0]")
    return _stacked(parts, name)


def _stacked(parts: list[np.ndarray], name: str) -> np.ndarray:
    for i, part in enumerate(parts):
        arrays.check_shape(part, parts[0].shape, f"{name}[{i}]", f"the shape of {name}[0]")
    return np.stack(parts)


def _counted(mask: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Which rows count [R]: of a mask with an element for each, or for each token of a layer."""
    name, rows = "router_logits", math.prod(shape)
    tokens = shape[1:] if len(shape) > 1 else shape
    given = None if mask is None else arrays.as_array(mask, "mask")
    if given is None or given.shape == shape or given.size != math.prod(tokens):
        return np.array(arrays.counted(given, shape, f"one for each row of {name}")).reshape(rows)
    # Tokens on one axis may have any number of axes in a mask.
    given = given.reshape(tokens) if len(tokens) == 1 or given.ndim == 1 else given
    return np.array(np.broadcast_to(arrays.counted(given, tokens, f"one for each row of {name}"), shape)).reshape(rows)
