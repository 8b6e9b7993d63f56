"""Machine code on disk: what one process has compiled, for the next; and what came with the package.

One file holds the code of one function for one signature and one kind of processor. It begins with a hash of all that
the code depends on and of the code itself: a file that is stale, cut short, damaged or somebody else's is as good as
none, and what cannot be read or written is compiled anew. Numba's own files would be mistaken here: they know the
function's own file only, trust an index that a full disk leaves behind without its data, and two processes that compile
at the same time may swap theirs.

A kernel is looked for in the user's folder, where it is code for the very processor, and then among those that came
with the package, for the best level that the processor has (``refloss.levels``).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import llvmlite
import numba
from llvmlite import binding

from refloss import levels
from refloss.compilation import writing
from refloss.origin import Origin, package_stamp

try:
    from numba.core.caching import FunctionCache
    from numba.core.compiler import CompileResult
    from numba.core.serialize import dumps
except ImportError as error:
    raise ImportError(
        f"refloss keeps compiled kernels by classes that Numba 0.68 has and Numba {numba.__version__} lacks ({error}):"
        " install numba>=0.68,<0.69"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FunctionType

_HASH_BYTES = hashlib.sha256().digest_size
# Who can load a file, whatever it holds.
IDENTITY = {
    "Numba": numba.__version__,
    "llvmlite": llvmlite.__version__,
    "Python": f"{sys.implementation.cache_tag}{getattr(sys, 'abiflags', '')}",
}


def identity(target: levels.Target) -> dict[str, str]:
    """Whom kernels are for that are compiled for a target, in words."""
    return IDENTITY | {"sources": package_stamp() or "unknown", "processor": target[1], "features": target[2]}


class TakenError(Exception):
    """Another process is compiling this kernel."""


class _Ahead(NamedTuple):
    """Where processes that share out kernels keep them, if not where each function's are, and their claims."""

    folder: Path | None
    claims: Path


_ahead: list[_Ahead] = []
# What this process has compiled.
compiled_here: list[str] = []


def compile_ahead(folder: Path | None, claims: Path) -> None:
    """From now on compile what no other process has claimed, for this processor, and raise TakenError for the rest."""
    _ahead[:] = [_Ahead(folder, claims)]


class DiskCache(FunctionCache):
    """What a dispatcher asks before it compiles, and tells afterwards."""

    def __init__(self, function: FunctionType, origin: Origin) -> None:
        self._cache_path: str | None = None
        # Where no folder can be written to, there is still what came with the package.
        with contextlib.suppress(RuntimeError, OSError):
            super().__init__(function)  # type: ignore[no-untyped-call]
        self._identity = (*IDENTITY.values(), function.__qualname__, origin.stamp)
        name = f"{function.__module__}.{function.__qualname__}-{function.__code__.co_firstlineno}"
        self._base = re.sub(r"[^\w.-]", "_", f"{name}.{IDENTITY['Python']}".replace("<locals>.", ""))

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The compiled function for a signature, or None."""
        target_context.refresh()
        own = target_context.codegen().magic_tuple()
        for folder, target in self._places(own):
            key = _key(signature, target)
            loaded = self._loaded(folder / self._file(key), key, target_context)
            if loaded is not None:
                return loaded
        self._claim(_key(signature, own))
        return None

    def save_overload(self, signature: Any, data: Any) -> None:
        """Keep a compiled function, if there is room for it."""
        compiled_here.append(self._base)
        folder = self._folder()
        if folder is None or not self._impl.check_cachable(data):
            return
        key = _key(signature, data.codegen.magic_tuple())
        payload = dumps(_reduced(data))  # type: ignore[no-untyped-call]
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            _replace(folder / self._file(key), self._hash(key, payload) + payload)

    def flush(self) -> None:
        """Forget all that was kept."""
        folder = self._folder()
        for path in folder.glob(f"{self._base}.*.nbc") if folder else ():
            path.unlink(missing_ok=True)

    def _folder(self) -> Path | None:
        folder = _ahead[0].folder if _ahead else None
        return folder or (self.cache_path and Path(self.cache_path))

    def _places(self, own: levels.Target) -> Iterator[tuple[Path, levels.Target]]:
        folder = self._folder()
        if folder is not None:
            yield folder, own
        for name, target in levels.targets(own).items():
            # Ahead of time there is no second best.
            if target == own or not _ahead:
                yield levels.SHIPPED / name, target

    def _loaded(self, path: Path, key: bytes, target_context: Any) -> Any:
        try:
            content = path.read_bytes()
        except OSError:
            return None
        payload = content[_HASH_BYTES:]
        if content[:_HASH_BYTES] != self._hash(key, payload):
            return None
        try:
            return _rebuilt(target_context, pickle.loads(payload))
        except Exception:
            # Whole, but of no use here: it may name what cannot be imported. Compiling is always right.
            return None

    def _claim(self, key: bytes) -> None:
        if _ahead:
            try:
                (_ahead[0].claims / self._file(key)).touch(exist_ok=False)
            except FileExistsError:
                raise TakenError(self._base) from None

    def _file(self, key: bytes) -> str:
        return f"{self._base}.{hashlib.sha256(key).hexdigest()[:16]}.nbc"

    def _hash(self, key: bytes, payload: bytes) -> bytes:
        hashed = hashlib.sha256(repr(self._identity).encode())
        hashed.update(key)
        hashed.update(payload)
        return hashed.digest()


def own_folder() -> Path | None:
    """Where functions of this module's folder are kept, if they can be."""
    return DiskCache(_replace, Origin("", True))._folder()  # type: ignore[arg-type]


def _key(signature: Any, target: levels.Target) -> bytes:
    return repr((str(signature), target)).encode()


def _reduced(compiled: Any) -> tuple[Any, ...]:
    """What a process needs that calls a kernel from Python.

    Numba keeps bitcode as well, for whoever links the function into another one, and the types of all variables, in
    words. Nobody does: of the bitcode only the names count, of what Python looks up. Without it a file is less than
    half as large.
    """
    (name, kind, (code, _)), description, *middle, _, init, environments = compiled._reduce()
    looked_up = (
        description.llvm_func_name,
        description.llvm_cpython_wrapper_name,
        description.llvm_cfunc_wrapper_name,
    )
    defined = {function.name for function in compiled.library.get_defined_functions()} & set(looked_up)
    names = "\n".join(f'define void @"{each}"() {{ unreachable }}' for each in sorted(defined))
    only_names = binding.parse_assembly(names).as_bitcode()
    return (name, kind, (code, only_names)), description, *middle, "", init, environments


def _rebuilt(target_context: Any, reduced: tuple[Any, ...]) -> Any:
    compiled = CompileResult._rebuild(target_context, *reduced)  # type: ignore[no-untyped-call]
    # To link the names alone would be wrong: without them, Numba says that this cannot be linked.
    compiled.library._shared_module = None
    return compiled


def _replace(path: Path, content: bytes) -> None:
    """Write a file that nobody sees before it is whole."""
    draft = path.with_name(f"{path.name}.tmp.{os.getpid()}.{threading.get_ident()}")
    try:
        with writing:
            draft.write_bytes(content)
            draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
