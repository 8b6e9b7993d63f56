"""Tensors in files: .npy, .npz and .safetensors, memory-mapped, bfloat16 included; written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def nested(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors called labels.0.boxes put together: names between dots are keys, numbers from 0 are places in a list."""
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *folders, last = name.split(".")
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
            if not isinstance(branch, dict):
                raise ValueError(f"{name}: {folder} is a tensor itself")
        branch[last] = tensor
    return {name: _as_lists(branch, name) for name, branch in tree.items()}


def _as_lists(branch: Any, name: str) -> Any:
    if not isinstance(branch, dict):
        return branch
    parts = {key: _as_lists(part, f"{name}.{key}") for key, part in branch.items()}
    if not any(key.isdecimal() for key in parts):
        return parts
    places = [str(i) for i in range(len(parts))]
    if set(parts) != set(places):
        raise ValueError(f"{name} has parts {', '.join(sorted(parts))}; expected {', '.join(places)}")
    return [parts[place] for place in places]


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
    """Every tensor of a file by its name; that of a .npy file has the name ''."""
    readers = {".npy": _load_npy, ".npz": _load_npz, ".safetensors": _load_safetensors}
    if path.suffix not in readers:
        raise ValueError(f"{path}: expected a file ending in {', '.join(readers)}")
    try:
        return readers[path.suffix](path)
    except (SafetensorError, zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, struct.error) as error:
        raise ValueError(f"{path}: not a readable {path.suffix} file: {error}") from error


def _load_npy(path: Path) -> dict[str, np.ndarray]:
    return {"": _as_bfloat16(np.load(path, mmap_mode="r", allow_pickle=False))}


def _as_bfloat16(array: np.ndarray) -> np.ndarray:
    # NumPy's own format has no name for bfloat16 and calls it two bytes of anything.
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array


def _load_npz(path: Path) -> dict[str, np.ndarray]:
    tensors = {}
    with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as loaded:
        for name in loaded.files:
            entry = archive.getinfo(f"{name}.npy")
            stored = entry.compress_type == zipfile.ZIP_STORED
            tensors[name] = _as_bfloat16(_map_entry(path, entry) if stored else loaded[name])
    return tensors


def _map_entry(path: Path, entry: zipfile.ZipInfo) -> np.ndarray:
    """A member of an archive that is not compressed, in place."""
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)
        name_length, extra_length = struct.unpack("<HH", file.read(4))
        file.seek(name_length + extra_length, os.SEEK_CUR)
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0}.get(version, np.lib.format.read_array_header_2_0)
        shape, fortran_order, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        return _map(path, dtype, file.tell(), shape, "F" if fortran_order else "C")


def _map(path: Path, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...], order: Any = "C") -> np.ndarray:
    if 0 in shape:
        return np.empty(shape, dtype)
    # A map of no axes would have one.
    return np.memmap(path, dtype, "r", offset, shape or (1,), order).reshape(shape, order=order)


def _load_safetensors(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, "numpy"):
        pass  # the library's own checks of the header
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
    with replacing(path) as part:
        save_file({name: np.asarray(value, order="C") for name, value in tensors.items()}, part)


@contextlib.contextmanager
def disk_array(folder: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[np.ndarray]:
    """An array on disk that may be larger than memory; its file has no name and goes with the process."""
    with tempfile.TemporaryFile(dir=folder) as file:
        if 0 in shape:
            yield np.empty(shape, dtype)
        else:
            yield np.memmap(file, dtype, "w+", shape=shape or (1,)).reshape(shape)
