"""Where compiled code comes from: what tells a function from others, and what its machine code depends on.

A loop is a closure over scalars. Its own file says as little about its machine code as its name does: both depend on
which scalars it is over, on what they call, and on numbers that they find around them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

_PACKAGE = Path(__file__).parent


class Origin(NamedTuple):
    """What machine code depends on, as a hash; complete where all of it could be read."""

    stamp: str
    complete: bool


def parts(value: Any) -> tuple[str, ...]:
    """The names of the functions that a value consists of, and the constants, as the words of an error.

    They are the same when a module is loaded again. A function inside another one can be any of several, so that its
    code belongs to its name.
    """
    return tuple(_parts(value, set()))


def origin(function: FunctionType) -> Origin:
    """What a function's machine code depends on: the package, and all that it reaches outside of it."""
    package = package_stamp()
    facts, files = [package or ""], set[str]()
    _reach(function, facts, files, set())
    hashes = [_file_hash(path) for path in sorted(files)]
    facts.extend(str(file_hash) for file_hash in hashes)
    return Origin(_hash("\0".join(facts).encode()), package is not None and None not in hashes)


def closure(function: FunctionType) -> list[Any]:
    """What a function is over; a cell that is still empty belongs to a function that calls itself."""
    values = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):
            values.append(cell.cell_contents)
    return values


def _parts(value: Any, seen: set[int], owner: str = "") -> Iterator[str]:
    function = _source(value)
    if isinstance(value, tuple):
        for part in value:
            yield from _parts(part, seen, owner)
    elif function is None:
        yield f"{_constant(value)} in {owner}" if owner else _constant(value)
    elif id(function) not in seen:
        seen.add(id(function))
        name = f"{function.__module__}.{getattr(function, 'claimed_name', function.__qualname__)}"
        is_local = "<" in function.__qualname__
        yield f"{name} (line {function.__code__.co_firstlineno}, {_code(function)[:8]})" if is_local else name
        for part in closure(function):
            yield from _parts(part, seen, name)


def _reach(value: Any, facts: list[str], files: set[str], seen: set[int]) -> None:
    """Collect what a value depends on; the package's own functions depend on nothing around them but the package."""
    function = _source(value)
    if isinstance(value, tuple):
        for part in value:
            _reach(part, facts, files, seen)
    elif function is None:
        facts.append(_constant(value))
    elif id(function) not in seen:
        seen.add(id(function))
        facts.append(f"{function.__module__}.{function.__qualname__} {_code(function)}")
        reached = closure(function)
        if function.__code__.co_filename not in _package_files():
            files.add(function.__code__.co_filename)
            reached += _around(function)
        for part in reached:
            _reach(part, facts, files, seen)


def _around(function: FunctionType) -> Iterator[Any]:
    """What a function finds among the globals, and in the modules there."""
    names = sorted(_names(function.__code__))
    for value in (function.__globals__[name] for name in names if name in function.__globals__):
        if isinstance(value, ModuleType):
            yield from (vars(value)[name] for name in names if name in vars(value))
        else:
            yield value


def _names(code: CodeType) -> set[str]:
    inner = (part for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _source(value: Any) -> FunctionType | None:
    """The Python function that something compiled has been made of: by a dispatcher, an intrinsic, or not yet."""
    for attribute in ("py_func", "_defn"):
        value = getattr(value, attribute, value)
    return value if isinstance(value, FunctionType) else None


def _constant(value: Any) -> str:
    """A value in words, the same in every process; a module by its name, for what matters is what is taken from it."""
    if isinstance(value, np.ndarray):
        return f"array {value.dtype} {value.shape} {_hash(value.tobytes())}"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}{getattr(value, '_fields', '')}"
    return f"module {value.__name__}" if isinstance(value, ModuleType) else repr(value)


def _code(function: FunctionType) -> str:
    return _hash("\0".join(_instructions(function.__code__)).encode())


def _instructions(code: CodeType) -> Iterator[str]:
    yield f"{code.co_firstlineno} {code.co_code.hex()} {code.co_names} {code.co_varnames}"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _instructions(constant)
        else:
            yield repr(constant)


@functools.cache
def package_stamp() -> str | None:
    """The contents of every file of the package that scalars, helpers and loops are in; None without such files."""
    if not _package_files():
        return None
    hashes = [(Path(path).relative_to(_PACKAGE).as_posix(), _file_hash(path)) for path in sorted(_package_files())]
    return _hash(repr(hashes).encode())


@functools.cache
def _package_files() -> frozenset[str]:
    folders = (_PACKAGE / name for name in ("numerics", "kernels", "losses"))
    files = [path for folder in folders for path in folder.rglob("*.py")]
    modules = [_PACKAGE / name for name in ("jit.py", "inside.py", "disk_cache.py", "origin.py")]
    return frozenset(map(str, files + modules)) if files else frozenset()


def _file_hash(path: str) -> str | None:
    try:
        return _hash(Path(path).read_bytes())
    except OSError:
        return None


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
