"""Machine code on disk: what one process has compiled, for the next.

One file holds the code of one function for one signature and one kind of processor. It begins with a hash of all that
the code depends on and of the code itself: a file that is stale, cut short, damaged or somebody else's is as good as
none, and what cannot be read or written is compiled anew. Numba's own files would be mistaken here: they know the
function's own file only, trust an index that a full disk leaves behind without its data, and two processes that compile
at the same time may swap theirs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llvmlite
import numba

from refloss.compilation import writing
from refloss.origin import Origin

try:
    from numba.core.caching import FunctionCache
    from numba.core.serialize import dumps
except ImportError as error:
    raise ImportError(
        f"refloss keeps compiled kernels by classes that Numba 0.68 has and Numba {numba.__version__} lacks ({error}):"
        " install numba>=0.68,<0.69"
    ) from error

if TYPE_CHECKING:
    from types import FunctionType

_HASH_BYTES = hashlib.sha256().digest_size


class DiskCache(FunctionCache):
    """What a dispatcher asks before it compiles, and tells afterwards; RuntimeError where no folder can be written."""

    def __init__(self, function: FunctionType, origin: Origin) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        self._identity = (numba.__version__, llvmlite.__version__, function.__qualname__, origin.stamp)
        self._base = re.sub(r"[^\w.-]", "_", self._impl.filename_base)

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The compiled function for a signature, or None."""
        target_context.refresh()
        key = self._key(signature, target_context.codegen())
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        payload = content[_HASH_BYTES:]
        if content[:_HASH_BYTES] != self._hash(key, payload):
            return None
        try:
            return self._impl.rebuild(target_context, pickle.loads(payload))
        except Exception:
            # Whole, but of no use here: it may name what cannot be imported. Compiling is always right.
            return None

    def save_overload(self, signature: Any, data: Any) -> None:
        """Keep a compiled function, if there is room for it."""
        if not self._impl.check_cachable(data):
            return
        key = self._key(signature, data.codegen)
        payload = dumps(self._impl.reduce(data))  # type: ignore[no-untyped-call]
        with contextlib.suppress(OSError):
            self._impl.locator.ensure_cache_path()
            _replace(self._path(key), self._hash(key, payload) + payload)

    def flush(self) -> None:
        """Forget all that was kept."""
        for path in Path(self.cache_path).glob(f"{self._base}.*.nbc"):
            path.unlink(missing_ok=True)

    def _key(self, signature: Any, codegen: Any) -> bytes:
        return repr((str(signature), codegen.magic_tuple())).encode()

    def _path(self, key: bytes) -> Path:
        return Path(self.cache_path) / f"{self._base}.{hashlib.sha256(key).hexdigest()[:16]}.nbc"

    def _hash(self, key: bytes, payload: bytes) -> bytes:
        hashed = hashlib.sha256(repr(self._identity).encode())
        hashed.update(key)
        hashed.update(payload)
        return hashed.digest()


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
