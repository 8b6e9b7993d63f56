"""Arrays on a GPU: recognised, taken in and handed out without a copy, by DLPack and __cuda_array_interface__.

Nothing here touches a GPU; refloss.kernels.gpu does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np

# DLPack's device types: CUDA's own memory, and memory that CUDA manages between the GPU and the host.
_CUDA_DEVICES = (2, 13)
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# What is asked after first: most arguments are of these.
_ON_HOST = (np.ndarray, float, int, str, np.generic)
_LAYOUT_FUNCTIONS = (np.moveaxis, np.broadcast_to, np.may_share_memory, np.shape, np.ndim, np.size, np.reshape)


class Resident(np.ndarray):
    """The layout of an array whose memory is on a GPU, for the arithmetic of shapes and strides.

    It can be sliced, reshaped and transposed as any array, but not read: its address means nothing to the host.
    """

    owner: Any = None  # keeps the memory alive

    def __array_finalize__(self, source: Any) -> None:
        self.owner = getattr(source, "owner", None)

    __array_ufunc__ = None  # type: ignore[assignment]

    def __array_function__(self, function: Any, types: Any, arguments: Any, keywords: Any) -> Any:
        if function not in _LAYOUT_FUNCTIONS:
            raise TypeError(f"refloss: {function.__name__} of an array that lives on a GPU")
        return super().__array_function__(function, types, arguments, keywords)

    def reshape(self, *shape: Any, order: Any = "C", **_: Any) -> Any:
        """The same memory in another shape; what would need a copy is an error."""
        try:
            return super().reshape(*shape, order=order, copy=False)
        except ValueError as error:
            raise ValueError(
                f"an array of shape {self.shape} and strides {self.strides} on a GPU cannot be taken as {shape} without"
                " a copy: make it contiguous"
            ) from error

    def _unreadable(self, *_: Any, **__: Any) -> Any:
        raise TypeError("refloss: an array that lives on a GPU cannot be read by the host")

    astype = copy = tolist = item = tobytes = fill = __float__ = __int__ = __bool__ = __setitem__ = _unreadable
    __reduce__ = __reduce_ex__ = __iter__ = __contains__ = _unreadable

    def __getitem__(self, index: Any) -> Any:
        # With an ellipsis NumPy makes a view of a single element, too; without it would read one.
        parts = index if isinstance(index, tuple) else (index,)
        is_view = (part is None or part is Ellipsis or isinstance(part, slice | int | np.integer) for part in parts)
        if all(is_view) and not any(isinstance(part, bool) for part in parts):
            return super().__getitem__(parts if Ellipsis in parts else (*parts, Ellipsis))
        return self._unreadable()

    def __repr__(self) -> str:
        return f"Resident(shape={self.shape}, dtype={self.dtype})"

    __str__ = __repr__


class _Address:
    """What NumPy makes an array of that it must not read."""

    def __init__(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: Any) -> None:
        typestr = f"|V{dtype.itemsize}" if dtype == _BFLOAT16 else dtype.str
        self.__array_interface__ = {
            "data": (address, False),
            "shape": shape,
            "strides": strides,
            "typestr": typestr,
            "version": 3,
        }


def resident(
    address: int, shape: tuple[int, ...], dtype: np.dtype[Any], strides: tuple[int, ...] | None = None, *, owner: Any
) -> Resident:
    """The layout of device memory at an address; strides are in bytes."""
    array = np.asarray(_Address(address, shape, strides, dtype)).view(dtype).view(Resident)
    array.owner = owner
    return array


def resident_of(array: Any) -> Resident | None:
    """The array on a GPU whose memory this is a view of, if there is one."""
    while array is not None:
        if isinstance(array, Resident):
            return array
        array = getattr(array, "base", None) if isinstance(array, np.ndarray) else getattr(array, "array", None)
    return None


def is_on_gpu(value: Any) -> bool:
    """Whether an argument, or a part of it, lives on a GPU."""
    if value is None or isinstance(value, _ON_HOST):
        return False
    if isinstance(value, Mapping):
        return any(is_on_gpu(part) for part in value.values())
    if isinstance(value, list | tuple):
        return any(is_on_gpu(part) for part in value)
    if has_no_values(value):
        return False
    # DLPack first: a torch tensor that has a gradient raises when it is asked for the other.
    if hasattr(value, "__dlpack_device__"):
        return _device_type(value) in _CUDA_DEVICES
    return hasattr(value, "__cuda_array_interface__")


def _device_type(value: Any) -> int:
    if not (hasattr(value, "__dlpack_device__") and hasattr(value, "__dlpack__")):
        return 0
    try:
        return int(value.__dlpack_device__()[0])
    except Exception:
        # An array that cannot say where it is: whoever reads it as an argument tells which one that is.
        return 0


def has_no_values(value: Any) -> bool:
    """Whether an array of another framework stands for a shape and a dtype alone, as torch's meta and fake tensors do.

    The address that a fake tensor hands out is that of nothing.
    """
    try:
        kind = getattr(getattr(value, "device", None), "type", None)
        return kind == "meta" or getattr(value, "fake_mode", None) is not None
    except Exception:
        return False  # JAX's deleted arrays are on no device


def settled(value: Any) -> Any:
    """An array apart from what else a torch tensor is: a node of a graph, a lazy conjugate or negative."""
    for settle in ("detach", "resolve_conj", "resolve_neg"):
        value = getattr(value, settle)() if hasattr(value, settle) else value
    return value


# The structs of dlpack.h, version 0: https://dmlc.github.io/dlpack/latest/c_api.html
class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _DLManagedTensor(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_DLManagedTensor))
_DLManagedTensor._fields_ = (("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))

_CODES = {0: "i", 1: "u", 2: "f", 6: "b"}
_BFLOAT_CODE = 4
_NAME = b"dltensor"


def _api(name: str, result: Any, *arguments: Any) -> Any:
    """A function of Python's C API; prototypes of its own, so that nobody else's declarations matter."""
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


_capsule_pointer = _api("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_new_capsule = _api("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_is_capsule = _api("PyCapsule_IsValid", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
_raw_pointer = _api("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)


def imported(value: Any, name: str) -> Resident:
    """An array on a GPU, without a copy; its memory stays alive as long as the result."""
    value = settled(value)
    if _device_type(value) in _CUDA_DEVICES:
        number = int(value.__dlpack_device__()[1])
        if number != 0:
            raise ValueError(
                f"{name} lives on CUDA device {number}; refloss works on device 0: choose it by CUDA_VISIBLE_DEVICES"
            )
        # Stream 1 is CUDA's default stream, which kernels are launched on.
        return _from_capsule(value.__dlpack__(stream=1), name)
    interface = value.__cuda_array_interface__
    if interface.get("mask") is not None:
        raise TypeError(f"{name}: an array with a mask cannot be taken in")
    dtype = np.dtype(interface["typestr"])
    dtype = _BFLOAT16 if dtype == np.dtype("V2") else dtype
    array = resident(interface["data"][0], tuple(interface["shape"]), dtype, interface.get("strides"), owner=value)
    array.flags.writeable = not interface["data"][1]
    if interface.get("stream") is not None:
        from numba import cuda

        cuda.external_stream(interface["stream"]).synchronize()
    return array


def tensor_of(capsule: Any) -> Any:
    """What a DLPack capsule holds; to write to it changes what its consumer sees."""
    return _DLManagedTensor.from_address(_capsule_pointer(capsule, _NAME)).tensor


def _from_capsule(capsule: Any, name: str) -> Resident:
    tensor = tensor_of(capsule)
    if tensor.code == _BFLOAT_CODE and tensor.bits == 16:
        dtype = _BFLOAT16
    elif tensor.code in _CODES and tensor.lanes == 1:
        dtype = np.dtype(f"{_CODES[tensor.code]}{tensor.bits // 8}")
    else:
        raise TypeError(f"{name} has DLPack type {tensor.code} of {tensor.bits} bits; expected floats or integers")
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(step * dtype.itemsize for step in tensor.strides[: tensor.ndim]) if tensor.strides else None
    # A capsule that nobody renames frees its memory when it is collected.
    return resident((tensor.data or 0) + tensor.byte_offset, shape, dtype, strides, owner=capsule)


class _Exported(NamedTuple):
    """What lives as long as a consumer of a capsule needs it."""

    owner: Any
    managed: Any
    shape: Any
    strides: Any


_exported: dict[int, _Exported] = {}


@_Deleter  # type: ignore[untyped-decorator]
def _release(managed: Any) -> None:
    _exported.pop(ctypes.addressof(managed.contents), None)


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)  # type: ignore[untyped-decorator]
def _collect(capsule: int) -> None:
    """A capsule is gone; if nobody took what it held, neither is needed any more."""
    if _is_capsule(capsule, _NAME):
        _exported.pop(_raw_pointer(capsule, _NAME), None)


class DeviceArray:
    """A gradient on a GPU. CuPy, PyTorch, JAX and Numba take it without a copy; np.asarray copies it to the host."""

    def __init__(self, layout: Resident) -> None:
        self._layout = layout

    @property
    def shape(self) -> tuple[int, ...]:
        """Its axes."""
        return self._layout.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its float format."""
        return self._layout.dtype

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return self._layout.ndim

    @property
    def size(self) -> int:
        """How many elements it has."""
        return self._layout.size

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        interface = self._layout.__array_interface__
        typestr = "|V2" if self.dtype == _BFLOAT16 else interface["typestr"]
        wanted = {key: interface[key] for key in ("data", "shape", "strides")}
        # Kernels run on CUDA's legacy default stream, 1 in this protocol.
        return wanted | {"typestr": typestr, "version": 3, "stream": 1}

    def __dlpack_device__(self) -> tuple[int, int]:
        return (_CUDA_DEVICES[0], 0)

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: bool | None = None
    ) -> Any:
        """A capsule of version 0 over the same memory, which is complete: it can be used on any stream."""
        if copy:
            raise BufferError("a gradient on a GPU is handed out without a copy; copy what it becomes")
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            raise BufferError(f"a gradient on device {self.__dlpack_device__()} cannot be handed out on {dl_device}")
        layout = self._layout
        axes = ctypes.c_int64 * max(1, layout.ndim)
        shape = axes(*layout.shape)
        strides = axes(*(step // layout.itemsize for step in layout.strides))
        managed = _DLManagedTensor()
        tensor = managed.tensor
        tensor.data = layout.__array_interface__["data"][0]
        tensor.device_type, tensor.device_id = self.__dlpack_device__()
        tensor.ndim = layout.ndim
        tensor.code = _BFLOAT_CODE if layout.dtype == _BFLOAT16 else 2
        tensor.bits, tensor.lanes = 8 * layout.itemsize, 1
        tensor.shape, tensor.strides = shape, strides
        managed.deleter = _release
        address = ctypes.addressof(managed)
        _exported[address] = _Exported(layout, managed, shape, strides)
        return _new_capsule(address, _NAME, ctypes.cast(_collect, ctypes.c_void_p))

    def copy_to_host(self) -> np.ndarray:
        """A copy of it as a NumPy array."""
        return host(self._layout)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("an array on a GPU has to be copied to the host")
        host = self.copy_to_host()
        return host if dtype is None else host.astype(dtype)

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype})"


class Memory(Protocol):
    """Who makes and reads memory on a GPU."""

    def allocate(self, shape: tuple[int, ...], dtype: Any) -> Resident:
        """New memory there."""

    def to_host(self, array: np.ndarray) -> np.ndarray:
        """A copy of an array that lives there."""


_memories: list[Memory] = []


def use(memory: Memory) -> None:
    """Let memory on a GPU be made and read, which refloss.kernels.gpu.runtime does when it is imported."""
    _memories[:] = [memory]


def _memory() -> Memory:
    if not _memories:
        raise RuntimeError("an array lives on a GPU, and nothing that reaches a GPU has been imported")
    return _memories[0]


def host(array: np.ndarray) -> np.ndarray:
    """An array that the host can read: a copy of one that lives on a GPU."""
    return _memory().to_host(array) if isinstance(array, Resident) else array


def empty(shape: tuple[int, ...], dtype: np.dtype[Any], *, like: np.ndarray) -> np.ndarray:
    """New memory where another array lives."""
    return _memory().allocate(shape, dtype) if isinstance(like, Resident) else np.empty(shape, dtype)
