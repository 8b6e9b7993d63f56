"""The door that every public loss comes through, refloss's own and others'."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from refloss.lazy import accepts_dask_arrays
from refloss.messages import did_you_mean
from refloss.options import Options
from refloss.placement import accepts_gpu_arrays
from refloss.registry import Function, register

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.specification import Specification

P = ParamSpec("P")
R = TypeVar("R")
# What heads that match take beside the options of every loss: a matching that is given.
_OF_MATCHING = ("assignment",)


def loss(specification: Specification) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function a public loss with a specification, which its signature has to agree with."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        _check(function, specification)
        there = [name for name, argument in specification.arguments.items() if argument.on_gpu]
        of_arrays = accepts_gpu_arrays(*there, *(["out"] if there else []))(function)
        call = accepts_dask_arrays(specification)(_suggesting(of_arrays))
        register(Function(function.__name__, call, specification))
        return call

    return decorate


def _suggesting(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose TypeError for a keyword that it does not have asks whether another was meant."""

    @functools.wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> R:
        try:
            return function(*arguments, **keywords)
        except TypeError as error:
            known = inspect.signature(function).parameters
            question = next((did_you_mean(name, known) for name in keywords if name not in known), "")
            if question:
                raise TypeError(f"{error}; {question}") from None
            raise

    return call


def _check(function: Callable[..., object], specification: Specification) -> None:
    """Raise unless a signature has the arguments of a specification, and no others but those of every loss."""
    parameters = inspect.signature(function).parameters
    told = {*specification.arguments, *specification.parameters}
    common = {*Options._fields, *_OF_MATCHING}
    wrong = sorted((told - set(parameters)) | (set(parameters) - told - common))
    if wrong:
        raise TypeError(f"{function.__name__}: signature and specification differ in {', '.join(wrong)}")
    for name in specification.required:
        if parameters[name].default is None and specification.arguments[name].role != "labels":
            raise TypeError(f"{function.__name__}: {name} may be left out, which its specification does not say")
