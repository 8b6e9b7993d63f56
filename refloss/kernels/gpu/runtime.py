"""From arrays to a GPU and back: memory, launches, and the arithmetic that kernels are compiled with.

A kernel takes what the CPU's kernels take, named tuples of arrays and numbers; a launch replaces each array by its copy
on the GPU, unless it is there already. In Numba's simulator device memory is ordinary memory, and kernels are Python.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import cuda

from refloss import device
from refloss.kernels.gpu.jit import SIMULATED
from refloss.kernels.rows import Rows, element_type, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator

# The bits of a result do not depend on the shape of a block; in the simulator a thread is a thread of Python.
LARGEST_BLOCK = 4 if SIMULATED else 1024
_DEVICE = 0
_OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"

_lock = threading.RLock()
_exact = threading.local()


@contextlib.contextmanager
def _device() -> Iterator[None]:
    """One thread at a time, on device 0: another library may have made another device the thread's current one."""
    with _lock, contextlib.nullcontext() if SIMULATED else cuda.gpus[_DEVICE]:
        yield


class Uploaded(NamedTuple):
    """Arguments whose arrays are on the GPU already."""

    value: Any


class Array:
    """An array in device memory that a kernel writes; download brings it back."""

    def __init__(self, shape: tuple[int, ...] | int, dtype: Any) -> None:
        self.memory = _allocated(shape, np.dtype(dtype))

    @classmethod
    def of(cls, array: np.ndarray) -> Array:
        """A copy of an array of the host."""
        result = cls.__new__(cls)
        result.memory = _copied(array)
        return result

    def download(self, into: np.ndarray | None = None) -> np.ndarray:
        """What it holds."""
        with _device():
            values: np.ndarray = self.memory.copy() if SIMULATED else self.memory.copy_to_host()
        if into is None:
            return values
        into[...] = values
        return into


class Gradient:
    """Where a kernel writes a gradient: the device memory of one that is there, or memory that is brought back.

    initial: whether what is in the caller's buffer has to be there before.
    """

    def __init__(self, buffer: np.ndarray, *, initial: bool = False) -> None:
        self._buffer = buffer
        if isinstance(buffer, device.Resident):
            self.array: np.ndarray = buffer
        else:
            self.array = allocate(buffer.shape, buffer.dtype)
            if initial:
                _copy_in(self.array, buffer)

    def finish(self) -> None:
        """Write the caller's buffer."""
        if self.array is not self._buffer:
            self._buffer[...] = to_host(self.array)


def allocate(shape: tuple[int, ...], dtype: Any) -> device.Resident:
    """New device memory as an array."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    memory = _allocated(max(1, count * dtype.itemsize), np.dtype(np.uint8))
    return device.resident(_address(memory), tuple(shape), dtype, owner=memory)


def to_host(array: np.ndarray) -> np.ndarray:
    """A copy of an array that is on the GPU; any other as it is."""
    if not isinstance(array, device.Resident):
        return array
    rows = rows_of(array, 0) if array.ndim else rows_of(array[None], 0)
    with _device():
        memory = np.array(_on_device(rows.memory) if SIMULATED else _on_device(rows.memory).copy_to_host())
    strides = tuple(array.strides)
    result = np.lib.stride_tricks.as_strided(memory[_origin(array) :].view(array.dtype), array.shape, strides)
    return np.array(result)


def to_device(array: np.ndarray) -> device.Resident:
    """A copy of an array on the GPU."""
    result = allocate(array.shape, array.dtype)
    _copy_in(result, array)
    return result


def rows_on_device(array: np.ndarray, class_axis: int) -> Rows:
    """rows_of an array, typed by its format; element by element if class_axis is the number of its axes."""
    return rows_of(array[..., None] if class_axis == array.ndim else array, class_axis)


def upload(arguments: Any) -> Uploaded:
    """Arguments with their arrays on the GPU, for several launches."""
    return arguments if isinstance(arguments, Uploaded) else Uploaded(_uploaded(arguments))


def launch(kernel: Any, blocks: int, threads: int, *arguments: Any) -> None:
    """Run a kernel on blocks of threads, at least one block."""
    if blocks < 1:
        return
    with _device(), exact_arithmetic(), _memory_errors("the arguments of a kernel"):
        with _no_advice():
            configured = kernel[blocks, min(threads, LARGEST_BLOCK)]
        configured(*(upload(argument).value for argument in arguments))


def grid(count: int, threads: int) -> int:
    """Blocks for a thread an element, of which each works on several where there are very many."""
    return min(-(-count // min(threads, LARGEST_BLOCK)), 2 if SIMULATED else 32 * processors())


def synchronize() -> None:
    """Wait until the GPU has done all that it was told to."""
    if not SIMULATED:
        with _device():
            cuda.synchronize()


def processors() -> int:
    """Streaming multiprocessors of the GPU."""
    return 1 if SIMULATED else int(cuda.gpus[_DEVICE].MULTIPROCESSOR_COUNT)


def cache_bytes() -> int:
    """The size of the GPU's L2 cache."""
    return 1 << 20 if SIMULATED else int(cuda.gpus[_DEVICE].L2_CACHE_SIZE)


@contextlib.contextmanager
def _no_advice() -> Iterator[None]:
    """numba.cuda warns of every small grid; a loss is as small as it is."""
    if SIMULATED:
        yield
        return
    previous = cuda.config.CUDA_LOW_OCCUPANCY_WARNINGS
    cuda.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0
    try:
        yield
    finally:
        cuda.config.CUDA_LOW_OCCUPANCY_WARNINGS = previous


@contextlib.contextmanager
def exact_arithmetic() -> Iterator[None]:
    """What is compiled meanwhile keeps products and sums apart: NVVM would contract a·b + c, and the CPU does not."""
    previous = getattr(_exact, "wanted", False)
    _exact.wanted = True
    try:
        yield
    finally:
        _exact.wanted = previous


def _install() -> None:
    """numba.cuda has no option for it, so it is added on the way to NVVM, for refloss's kernels only."""
    from numba.cuda.cudadrv import nvvm

    compile_ir = nvvm.compile_ir

    def compile_exactly(llvmir: Any, **options: Any) -> Any:
        if getattr(_exact, "wanted", False):
            options["fma"] = 0
        return compile_ir(llvmir, **options)

    nvvm.compile_ir = compile_exactly


if not SIMULATED:
    _install()


def _uploaded(value: Any) -> Any:
    if isinstance(value, Uploaded):
        return value.value
    if isinstance(value, Array):
        return value.memory
    if isinstance(value, np.ndarray):
        return _on_device(value)
    if isinstance(value, tuple):
        parts = [_uploaded(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def _on_device(array: np.ndarray) -> Any:
    """An array that compiled code reads, in device memory: a view of what is there, or a copy."""
    resident = device.resident_of(array)
    if resident is None:
        return _copied(array)
    if SIMULATED:
        return array.view(np.ndarray)
    interface = {"data": (_pointer(array), False), "shape": array.shape, "typestr": array.dtype.str, "version": 3}
    with _device():
        return cuda.from_cuda_array_interface(interface, owner=resident.owner)


def _copied(array: np.ndarray) -> Any:
    plain = np.ascontiguousarray(array).reshape(array.shape)
    plain = plain.view(element_type(plain.dtype)) if plain.ndim else plain
    if SIMULATED:
        return plain.copy()
    with _device(), _memory_errors(f"{plain.nbytes} bytes"):
        return cuda.to_device(plain)


def _allocated(shape: Any, dtype: np.dtype[Any]) -> Any:
    dtype = element_type(dtype)
    if SIMULATED:
        return np.empty(shape, dtype)
    with _device(), _memory_errors(f"{int(np.prod(shape, dtype=np.int64)) * dtype.itemsize} bytes"):
        return cuda.device_array(shape, dtype)


def _copy_in(destination: np.ndarray, source: np.ndarray) -> None:
    """Copy into contiguous device memory."""
    plain = np.ascontiguousarray(source).reshape(-1).view(element_type(source.dtype))
    if plain.size == 0:
        return
    memory = _on_device(rows_of(destination.reshape(-1), 0).memory)
    if SIMULATED:
        memory[:] = plain
    else:
        with _device():
            memory.copy_to_device(plain)


def _origin(array: np.ndarray) -> int:
    """The element that an array begins with, in the vector of memory that it lies in."""
    steps = [(size - 1) * stride // array.itemsize for size, stride in zip(array.shape, array.strides, strict=True)]
    return int(-sum(step for step in steps if step < 0))


def _pointer(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def _address(memory: Any) -> int:
    return _pointer(memory) if SIMULATED else int(memory.__cuda_array_interface__["data"][0])


@contextlib.contextmanager
def _memory_errors(what: str) -> Iterator[None]:
    """An error of the driver that memory is exhausted, as one that says how much there is."""
    try:
        yield
    except Exception as error:
        # Memory and launches are the business of two libraries, which have errors of their own.
        if _OUT_OF_MEMORY not in str(error):
            raise
        free, total = cuda.current_context().get_memory_info()
        raise MemoryError(
            f"backend='cuda': no room for {what}; {free} of the GPU's {total} bytes are free: use smaller batches,"
            " or backend='cpu'"
        ) from error


device.use(sys.modules[__name__])
