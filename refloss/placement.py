"""Where a loss is computed, by where its arguments live, where its gradients are then, and what was asked."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from refloss import subnormals
from refloss.arrays import check_out
from refloss.device import DeviceArray, Resident, host, imported, is_on_gpu
from refloss.dispatch import chosen, require_cuda
from refloss.result import Call

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")


def accepts_gpu_arrays(*stays: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a loss take arrays on a GPU: backend="auto" then means "cuda", and gradients of what is there are there.

    The arguments that are named stay where they are; all others are small, and are copied to the host.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*arguments: P.args, **keywords: P.kwargs) -> R:
            if subnormals.are_flushed():
                return subnormals.kept(call, *arguments, **keywords)
            if keywords.get("out") is not None:
                check_out(keywords["out"], Call(function, arguments, keywords).named())
            # What overflows or is undefined has a defined answer; a warning would say no more.
            with np.errstate(all="ignore"):
                if any(map(is_on_gpu, itertools.chain(arguments, keywords.values()))):
                    result: R = _call_on_gpu(function, stays, arguments, keywords)
                else:
                    result = function(*arguments, **keywords)
            # A frozen result is still being made here; what a loss is made of has set a call of its own.
            if result is not None:
                object.__setattr__(result, "call", Call(call, arguments, keywords))
            return result

        return call

    return decorate


def _call_on_gpu(function: Callable[..., Any], stays: tuple[str, ...], arguments: Any, keywords: Any) -> Any:
    named = Call(function, arguments, keywords).named()
    # Whatever the backend, what is on the GPU has to be reached.
    _reach_gpu()
    backend = named["backend"] = chosen(named.get("backend", "auto"), on_gpu=True)
    there = {name for name, value in named.items() if is_on_gpu(value)}
    if "out" in there and (backend == "cpu" or "out" not in stays):
        raise ValueError("out lives on a GPU; expected a NumPy array for this loss and backend")
    for name in there:
        # The parts of a list are joined, on the host.
        stay = backend == "cuda" and name in stays and not isinstance(named[name], list | tuple)
        named[name] = imported(named[name], name) if stay else _copied_to_host(named[name], name)
    result = function(**named)
    if backend == "cuda":
        on_gpu = {name for name, value in result.grads.items() if name in there or isinstance(value, Resident)}
        result.grads.update({name: _on_gpu(result.grads[name]) for name in on_gpu})
        _settle()
    return result


def _copied_to_host(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied_to_host(part, f"{name}[{key!r}]") for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_copied_to_host(part, f"{name}[{i}]") for i, part in enumerate(value)]
    return host(imported(value, name)) if is_on_gpu(value) else value


def to_host(value: Any, name: str) -> np.ndarray:
    """A copy of an array that lives on a GPU."""
    _reach_gpu()
    return host(imported(value, name))


def _reach_gpu() -> None:
    """Let memory on a GPU be read; raise where none can be."""
    require_cuda()
    import refloss.kernels.gpu.runtime  # noqa: F401


def _settle() -> None:
    """Wait for copies to the GPU, so that a gradient is complete on whichever stream it is used."""
    from refloss.kernels.gpu.runtime import synchronize

    synchronize()


def _on_gpu(gradient: Any) -> Any:
    """A gradient, or a list of such, on the GPU."""
    from refloss.kernels.gpu.runtime import to_device

    if isinstance(gradient, list):
        return [_on_gpu(part) for part in gradient]
    return DeviceArray(gradient if isinstance(gradient, Resident) else to_device(gradient))
