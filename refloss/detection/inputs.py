"""The arrays that DETR-like heads are given: checked, with room for their gradients, and cut into layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refloss import arrays
from refloss.detection.engine import Layer, Tensor, Term


class Inputs:
    """Inputs by name, and their gradients."""

    def __init__(self, *, grad: bool, grad_dtype: Any) -> None:
        self._grad = bool(grad)
        self._grad_dtype = grad_dtype
        self.tensors: dict[str, Tensor] = {}

    def add(self, name: str, value: Any, *axes: str, shape: Mapping[str, int] | None = None) -> np.ndarray:
        """Take an array whose axes are named, unless its shape has no effect; shape holds sizes that are known."""
        if isinstance(value, list | tuple):
            value = np.stack([arrays.as_array(part, f"{name}[{i}]") for i, part in enumerate(value)])
        array = arrays.float_array(value, name)
        known = shape or {}
        expected = ", ".join(str(known.get(axis, axis)) for axis in axes)
        sizes = dict(zip(axes, array.shape, strict=False))
        fits = array.ndim == len(axes) and all(size == known.get(axis, size) for axis, size in sizes.items())
        if axes and not fits:
            raise ValueError(f"{name} has shape {array.shape}; expected [{expected}]")
        gradient = None
        if self._grad:
            dtype = array.dtype if self._grad_dtype is None else arrays.float_dtype(self._grad_dtype, "grad_dtype")
            gradient = np.zeros(array.shape, dtype)
        self.tensors[name] = Tensor(array, gradient)
        return array

    @property
    def grads(self) -> dict[str, np.ndarray]:
        """The gradient of every input; empty if they are not wanted."""
        return {name: tensor.gradient for name, tensor in self.tensors.items() if tensor.gradient is not None}

    def layer(
        self,
        suffix: str,
        logits: str,
        boxes: str,
        *,
        index: Any = None,
        counts: bool = True,
        terms: tuple[Term, ...] = (),
        others: tuple[str, ...] = (),
    ) -> Layer:
        """A layer of two inputs, or of their parts at an index, and of others as they are."""
        sources = {"logits": logits, "pred_boxes": boxes}
        tensors = {key: self.tensors[name] for key, name in sources.items()}
        names = dict(sources)
        if index is not None:
            tensors = {key: tensor.part(index) for key, tensor in tensors.items()}
            names = {key: f"{name}[{index}]" for key, name in sources.items()}
        tensors.update({name: self.tensors[name] for name in others})
        return Layer(suffix, tensors, names, counts, terms)


def required(value: Any, name: str, because: str) -> Any:
    """An argument that may be None only under another configuration."""
    if value is None:
        raise ValueError(f"{name} is None; expected an array, because {because}")
    return value
