"""Every kernel for a GPU, found in the source and with every description that a loss brings: naming them compiles none.

A launch tells which of them it was, and of which formats.
"""

import ast
import contextlib
import functools
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from refloss import kernels, losses

FORMATS = ("float64", "float32", "float16", "bfloat16")
# As compiled code sees them.
_FORMATS = dict(zip(("float64", "float32", "uint16", "int16"), FORMATS, strict=True))
_ROOT = Path(kernels.__path__[0])


class Kernel(NamedTuple):
    """A kernel: module.name, or module.factory.name for a loop that the factory is handed."""

    module: str
    name: str
    factory: str = ""
    loop: str = ""
    takes: str = ""  # the loop's type

    def __str__(self) -> str:
        return ".".join(filter(None, (self.module, self.factory, self.name, self.loop)))


class Launch(NamedTuple):
    """A kernel and the formats of the arrays that it was handed, as far as they may be of several."""

    kernel: Kernel
    formats: frozenset[str]


@functools.cache
def every_kernel() -> tuple[Kernel, ...]:
    """What is a kernel in refloss.kernels, once for each loop that it can be made of."""
    return tuple(kernel for path in sorted(_ROOT.rglob("*.py")) for kernel in _kernels_of(path))


def _kernels_of(path: Path) -> Iterator[Kernel]:
    module = ".".join(path.relative_to(_ROOT).with_suffix("").parts)
    for function in ast.parse(path.read_text()).body:
        if not isinstance(function, ast.FunctionDef):
            continue
        if _is_kernel(function):
            yield Kernel(module, function.name)
        for inner in ast.walk(function):
            if inner is not function and _is_kernel(inner):
                (argument,) = function.args.args
                assert argument.annotation is not None, f"{module}.{function.name}: of which type is its loop?"
                takes = ast.unparse(argument.annotation)
                for loop in _loops()[takes]:
                    yield Kernel(module, inner.name, function.name, loop, takes)


def _is_kernel(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and any(
        isinstance(decorator, ast.Name) and decorator.id == "gpu_kernel" for decorator in node.decorator_list
    )


@functools.cache
def _loops() -> dict[str, dict[str, Any]]:
    """What the losses describe, by type and name."""
    found: dict[str, dict[str, Any]] = {}
    for info in pkgutil.walk_packages(losses.__path__, f"{losses.__name__}."):
        for value in vars(importlib.import_module(info.name)).values():
            if type(value).__name__.endswith("Loop"):
                found.setdefault(type(value).__name__, {})[value.name] = value
    return found


@functools.cache
def dispatchers() -> dict[Any, Kernel]:
    """What is launched: the kernels as the loops' factories make them, which compiles nothing."""
    return {_dispatcher(kernel): kernel for kernel in every_kernel()}


def _dispatcher(kernel: Kernel) -> Any:
    module = importlib.import_module(f"{kernels.__name__}.{kernel.module}")
    if not kernel.factory:
        return getattr(module, kernel.name)
    made = getattr(module, kernel.factory)(_loops()[kernel.takes][kernel.loop])
    candidates = made if isinstance(made, tuple) else (made,)
    return next(candidate for candidate in candidates if candidate.py_func.__name__ == kernel.name)


def formats_of(arguments: Any) -> set[str]:
    """The formats of the rows among a kernel's arguments."""
    from refloss.kernels.gpu.runtime import Uploaded
    from refloss.kernels.rows import Rows

    if isinstance(arguments, Uploaded):
        return formats_of(arguments.value)
    if isinstance(arguments, Rows):
        return {_FORMATS[arguments.memory.dtype.name]}
    return set().union(*map(formats_of, arguments)) if isinstance(arguments, tuple) else set()


@contextlib.contextmanager
def noted_launches() -> Iterator[set[Launch]]:
    """Note the kernels that are launched meanwhile."""
    from refloss.kernels.gpu import runtime

    noted: set[Launch] = set()
    launch = runtime.launch

    def note(kernel: Any, blocks: int, threads: int, *arguments: Any) -> None:
        noted.add(Launch(dispatchers()[kernel], frozenset(formats_of(arguments))))
        launch(kernel, blocks, threads, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "launch", note)
        yield noted
