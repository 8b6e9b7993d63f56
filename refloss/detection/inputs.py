"""The arrays that DETR-like heads are given: checked, with buffers for their gradients, and cut into layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refloss import arrays
from refloss.detection.engine import Layer, Tensor, Term


class Inputs:
    """Inputs by name, and their gradients: of all of them, of none, or of those that are named."""

    def __init__(self, *, grad: Any, grad_dtype: Any) -> None:
        self._asked = arrays.asked_gradients(grad)
        self._grad_dtype = grad_dtype
        self._outside: dict[str, np.ndarray] = {}
        self.tensors: dict[str, Tensor] = {}

    def add(
        self, name: str, value: Any, *axes: str, shape: Mapping[str, int] | None = None, clamp: bool = False
    ) -> np.ndarray:
        """Take an array whose axes are named, unless its shape has no effect; shape holds sizes that are known.

        One that is clamped to [0, 1] has no gradient outside.
        """
        array = _stacked(value, name) if isinstance(value, list | tuple) else arrays.float_array(value, name)
        known = shape or {}
        expected = ", ".join(str(known.get(axis, axis)) for axis in axes)
        sizes = dict(zip(axes, array.shape, strict=False))
        fits = array.ndim == len(axes) and all(size == known.get(axis, size) for axis, size in sizes.items())
        if axes and not fits:
            raise ValueError(f"{name} has shape {array.shape}; expected [{expected}]")
        gradient = None
        if self._asked if isinstance(self._asked, bool) else name in self._asked:
            dtype = array.dtype if self._grad_dtype is None else arrays.float_dtype(self._grad_dtype, "grad_dtype")
            gradient = np.zeros(array.shape, dtype)
        if clamp:
            self._outside[name] = (array < 0) | (array > 1)
            array = np.clip(array, array.dtype.type(0), array.dtype.type(1))
        self.tensors[name] = Tensor(array, gradient)
        return array

    def check_gradients(self) -> None:
        """Raise if a gradient is asked for by another name than that of an input."""
        arrays.wanted_gradients(self._asked, list(self.tensors))

    @property
    def grads(self) -> dict[str, np.ndarray]:
        """The gradient of every input; empty if they are not wanted."""
        gradients = {name: tensor.gradient for name, tensor in self.tensors.items() if tensor.gradient is not None}
        for name, outside in self._outside.items():
            if name in gradients:
                gradients[name][outside] = 0
        return gradients

    def layer(
        self,
        suffix: str,
        logits: str,
        boxes: str = "",
        *,
        masks: str = "",
        others: tuple[str, ...] = (),
        index: Any = None,
        counts: bool = True,
        terms: tuple[Term, ...] = (),
    ) -> Layer:
        """A layer of inputs, or of their parts at an index; of what it has no name for, it has none."""
        sources = {"logits": logits, "pred_boxes": boxes, "pred_masks": masks, **{name: name for name in others}}
        sources = {key: name for key, name in sources.items() if name}
        tensors = {key: self.tensors[name] for key, name in sources.items()}
        names = dict(sources)
        if index is not None:
            tensors = {key: tensor.part(index) for key, tensor in tensors.items()}
            names = {key: f"{name}[{_shown(index)}]" for key, name in sources.items()}
        where = ... if index is None else index
        return Layer(suffix, tensors, names, sources, where, counts, terms)

    def with_masks(self, layer: Layer, name: str) -> Layer:
        """A layer with its part of an input that holds masks."""
        masks, indexed = self.tensors[name], layer.index is not ...
        shown = f"{name}[{_shown(layer.index)}]" if indexed else name
        return layer._replace(
            tensors={**layer.tensors, "pred_masks": masks.part(layer.index) if indexed else masks},
            names={**layer.names, "pred_masks": shown},
            inputs={**layer.inputs, "pred_masks": name},
        )


def _shown(index: Any) -> str:
    """An index as one writes it."""
    if not isinstance(index, tuple):
        index = (index,)
    parts = [
        f"{'' if part.start is None else part.start}:{'' if part.stop is None else part.stop}"
        if isinstance(part, slice)
        else str(part)
        for part in index
    ]
    return ", ".join(parts)


def required(value: Any, name: str, because: str) -> Any:
    """An argument that may be None only under another configuration."""
    if value is None:
        raise ValueError(f"{name} is None; expected an array, because {because}")
    return value


def _stacked(parts: list[Any] | tuple[Any, ...], name: str) -> np.ndarray:
    """A list of arrays of one shape as one array; of a list of numbers as well."""
    if not parts:
        raise ValueError(f"{name} is an empty {type(parts).__name__}; expected an array, or several of one shape")
    read = [arrays.float_array(part, f"{name}[{i}]") for i, part in enumerate(parts)]
    for i, part in enumerate(read):
        arrays.check_shape(part, read[0].shape, f"{name}[{i}]", f"the shape of {name}[0]")
    try:
        return np.stack(read)
    except TypeError:
        kinds = ", ".join(sorted({str(part.dtype) for part in read}))
        raise TypeError(f"{name} has arrays of {kinds}; expected one dtype") from None
