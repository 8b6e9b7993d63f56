"""Tensors in files: .npy, .npz and .safetensors, memory-mapped, bfloat16 included; written whole or not at all."""

from __future__ import annotations

import bisect
import contextlib
import errno
import json
import logging
import math
import os
import re
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from refloss.messages import reason

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger(__name__)

_SAFETENSORS_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def load_tensor(path: Path, name: str) -> np.ndarray:
    """The tensor of a file that is called name or input.name, or else its only one; mapped where it can be."""
    if not path.is_file():
        raise ValueError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    tensors = load_tensors(path)
    for candidate in (name, f"input.{name}"):
        if candidate in tensors:
            return tensors[candidate]
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    raise ValueError(f"{path}: has no tensor {name!r} among {', '.join(sorted(tensors)) or 'none'}")


def load_nested(path: Path, name: str) -> Any:
    """The tensors of a file that are called name.… or input.name.…, put together as nested says."""
    if not path.is_file():
        raise ValueError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    tensors = load_tensors(path)
    for prefix in (f"{name}.", f"input.{name}."):
        parts = {key.removeprefix("input."): value for key, value in tensors.items() if key.startswith(prefix)}
        if parts:
            return nested(parts)[name]
    raise ValueError(f"{path}: has no tensors {name}.0… among {', '.join(sorted(tensors)) or 'none'}")


def load_listed(path: Path, name: str) -> Any:
    """The tensor of a file as load_tensor finds it, or the list of those that are called name.0, name.1, …."""
    parts = (f"{name}.0", f"input.{name}.0")
    is_list = path.is_file() and not load_tensors(path).keys().isdisjoint(parts)
    return (load_nested if is_list else load_tensor)(path, name)


def nested(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors called labels.0.boxes put together: names between dots are keys, numbers from 0 are indices of a list."""
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *folders, last = name.split(".")
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
            if not isinstance(branch, dict):
                raise ValueError(f"{name}: {folder} is a tensor itself")
        if last in branch:
            raise ValueError(f"{name}: {last} has parts, and is a tensor itself")
        branch[last] = tensor
    return {name: _as_lists(branch, name) for name, branch in tree.items()}


def _as_lists(branch: Any, name: str) -> Any:
    if not isinstance(branch, dict):
        return branch
    parts = {key: _as_lists(part, f"{name}.{key}") for key, part in branch.items()}
    if not any(key.isdecimal() for key in parts):
        return parts
    indices = [str(i) for i in range(len(parts))]
    if set(parts) != set(indices):
        raise ValueError(f"{name} has parts {', '.join(sorted(parts))}; expected {', '.join(indices)}")
    return [parts[index] for index in indices]


def flattened(name: str, value: Any) -> dict[str, Any]:
    """The inverse of nested for one name."""
    if isinstance(value, Mapping):
        pairs: Any = value.items()
    elif isinstance(value, list | tuple):
        pairs = enumerate(value)
    else:
        return {name: value}
    return {key: part for inner, branch in pairs for key, part in flattened(f"{name}.{inner}", branch).items()}


def load_tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file by its name, '' for that of a .npy file; whatever is wrong with a file is a ValueError."""
    readers = {".npy": _load_npy, ".npz": _load_npz, ".safetensors": _load_safetensors}
    if path.suffix not in readers:
        raise ValueError(f"{path}: expected a file ending in {', '.join(readers)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the Python that a header is written in
            tensors = readers[path.suffix](path)
    except Exception as error:  # parsers of headers and archives raise all sorts for bytes that no writer has written
        raise ValueError(f"{path}: not a readable {path.suffix} file: {reason(error)}") from error
    _log.info("read %s", path)
    return tensors


def _load_npy(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        header = _header(file)
        return {"": _map_array(path, header, file.tell(), path.stat().st_size)}


def _load_npz(path: Path) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(path) as archive:
        offsets = sorted([archive.start_dir, *(entry.header_offset for entry in archive.infolist())])
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name == entry.filename or name in tensors:
                raise ValueError(f"member {entry.filename!r} is {'there twice' if name in tensors else 'no .npy file'}")
            tensors[name] = _member(path, archive, entry, offsets[bisect.bisect(offsets, entry.header_offset)])
    return tensors


def _member(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limit: int) -> np.ndarray:
    """An array of an archive, in place unless it is compressed; limit is where the next member begins."""
    with archive.open(entry) as file:  # the library's own checks of the member
        header = _header(file)
        size = file.tell()
    header.check(size, entry.file_size)
    if entry.compress_type != zipfile.ZIP_STORED:
        with archive.open(entry) as file:
            return _as_bfloat16(np.lib.format.read_array(file, allow_pickle=False))
    with path.open("rb") as whole:
        whole.seek(entry.header_offset + 26)
        name_length, extra_length = struct.unpack("<HH", whole.read(4))
        start = whole.tell() + name_length + extra_length
    return _map_array(path, header, start + size, min(start + entry.compress_size, limit))


class _Header(NamedTuple):
    """What stands before the elements in NumPy's own format."""

    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype[Any]

    def check(self, start: int, end: int) -> None:
        """Raise unless the elements fit between two offsets of a file."""
        if any(size < 0 for size in self.shape):
            raise ValueError(f"shape {self.shape}")
        needed = math.prod(self.shape) * self.dtype.itemsize
        if needed > end - start:
            raise ValueError(f"{end - start} bytes of data; {self.dtype} of shape {self.shape} takes {needed}")


def _header(file: IO[bytes]) -> _Header:
    """Read to where the elements begin."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
        (3, 0): np.lib.format.read_array_header_2_0,  # differs in the names of fields
    }
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f"version {version} of the format")
    shape, fortran_order, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return _Header(shape, "F" if fortran_order else "C", dtype)


def _map_array(path: Path, header: _Header, start: int, end: int) -> np.ndarray:
    header.check(start, end)
    return _as_bfloat16(_map(path, header.dtype, start, header.shape, header.order))


def _as_bfloat16(array: np.ndarray) -> np.ndarray:
    # NumPy's own format has no name for bfloat16 and calls it two bytes of anything.
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array


def _map(path: Path, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...], order: Any = "C") -> np.ndarray:
    if 0 in shape:
        return np.empty(shape, dtype)
    # A map of no axes would have one.
    return np.memmap(path, dtype, "r", offset, shape or (1,), order).reshape(shape, order=order)


def _load_safetensors(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, "numpy"):
        pass  # the library's own checks: the header, and that the tensors fill the file without gap or overlap
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    unknown = {entry["dtype"] for entry in header.values()} - set(_SAFETENSORS_DTYPES)
    if unknown:
        raise ValueError(f"tensors of type {', '.join(sorted(unknown))}")
    return {
        name: _map(
            path,
            np.dtype(_SAFETENSORS_DTYPES[entry["dtype"]]),
            8 + length + entry["data_offsets"][0],
            tuple(entry["shape"]),
        )
        for name, entry in header.items()
    }


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside a path, renamed to it on success and removed on failure."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: dict[str, Any]) -> None:
    """Write a .safetensors file; the same tensors give the same bytes."""
    arrays = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    with replacing(path) as part:
        try:
            save_file(arrays, part)
        except SafetensorError as error:
            raise _system_error(error, path) from error
    _log.info("wrote %s", path)


def _system_error(error: SafetensorError, path: Path) -> Exception:
    """What an error of the library, which knows the system's only by its words, is in Python."""
    code = re.search(r"\(os error (\d+)\)", str(error))
    if code is None:
        return ValueError(f"{path}: cannot be written: {reason(error)}")
    return OSError(int(code[1]), os.strerror(int(code[1])), str(path))


@contextlib.contextmanager
def disk_array(folder: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[np.ndarray]:
    """An array on disk that may be larger than memory; its file has no name and goes with the process."""
    with tempfile.TemporaryFile(dir=folder) as file:
        if 0 in shape:
            yield np.empty(shape, dtype)
            return
        try:
            _reserve(file, math.prod(shape) * dtype.itemsize)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(folder)) from error
        yield np.memmap(file, dtype, "r+", shape=shape or (1,)).reshape(shape)


def _reserve(file: IO[bytes], size: int) -> None:
    """Take a file's space: what is written to a map when the disk is full ends the process."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
    zeros = bytes(min(size, 1 << 20))
    for start in range(0, size, len(zeros)):
        file.write(zeros[: size - start])
    file.flush()
