"""Arrays in, and every error about an input."""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from refloss import device

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FLOAT_DTYPES: tuple[np.dtype[Any], ...] = (
    np.dtype(np.float64),
    np.dtype(np.float32),
    np.dtype(np.float16),
    np.dtype(ml_dtypes.bfloat16),
)
_FLOAT_NAMES = "float64, float32, float16 or bfloat16"
# DLPack's device types whose memory the CPU reads: plain, and pinned by CUDA or ROCm.
_CPU_DEVICES = (1, 3, 11)
_DLPACK_UINT, _DLPACK_BFLOAT = 1, 4


def as_array(value: Any, name: str) -> np.ndarray:
    """An array of any framework as a NumPy array, without a copy where its memory can be shared."""
    if isinstance(value, np.ndarray):
        return value if isinstance(value, device.Resident) else np.asarray(value)
    # What a torch tensor is apart from its memory: a node of a graph, a lazy conjugate or negative.
    for settle in ("detach", "resolve_conj", "resolve_neg"):
        value = getattr(value, settle)() if hasattr(value, settle) else value
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        return _from_dlpack(value, name)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: cannot make an array of {type(value).__name__}: {error}") from error
    if array.dtype == object:
        raise TypeError(
            f"{name}: cannot make an array of {type(value).__name__}: its parts have no common type or shape"
        )
    return array


class _Relabelled:
    """A DLPack producer whose bfloat16 is presented as uint16, which NumPy can take."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __dlpack_device__(self) -> tuple[int, int]:
        place: tuple[int, int] = self.value.__dlpack_device__()
        return place

    def __dlpack__(self, **_: Any) -> Any:
        capsule = self.value.__dlpack__()
        tensor = device.tensor_of(capsule)
        if (tensor.code, tensor.bits) == (_DLPACK_BFLOAT, 16):
            tensor.code = _DLPACK_UINT
            self.is_bfloat16 = True
        return capsule

    is_bfloat16 = False


def _from_dlpack(value: Any, name: str) -> np.ndarray:
    kind = int(value.__dlpack_device__()[0])
    if kind not in _CPU_DEVICES:
        raise ValueError(
            f"{name} lives on DLPack device type {kind}; refloss reads arrays on the CPU and on CUDA: copy it first"
        )
    relabelled = _Relabelled(value)
    try:
        array = np.from_dlpack(relabelled)
    except (BufferError, RuntimeError, TypeError) as error:
        raise TypeError(f"{name}: {type(value).__name__} cannot be exported by DLPack: {error}") from error
    return array.view(ml_dtypes.bfloat16) if relabelled.is_bfloat16 else array


def float_array(value: Any, name: str) -> np.ndarray:
    """An input of a float dtype, in any layout whose strides are whole elements; lists of numbers become float64."""
    array = as_array(value, name)
    if isinstance(value, list | tuple | int | float) and array.dtype.kind in "iu":
        array = array.astype(np.float64)
    if array.dtype.newbyteorder("=") not in FLOAT_DTYPES:
        raise TypeError(f"{name} has dtype {array.dtype}; expected {_FLOAT_NAMES}")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    whole = all(stride % array.itemsize == 0 for stride in array.strides)
    if whole and array.flags.aligned:
        return array
    if isinstance(array, device.Resident):
        raise ValueError(f"{name} has strides {array.strides}; expected whole elements for an array on a GPU")
    return array.copy()


def is_float(array: np.ndarray) -> bool:
    """Whether a dtype is a float of any kind."""
    return array.dtype.kind == "f" or array.dtype == FLOAT_DTYPES[3]


def integer_array(value: Any, name: str) -> np.ndarray:
    """An input of an integer dtype."""
    array = as_array(value, name)
    if array.size == 0 and isinstance(value, list):
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {array.dtype}; expected an integer dtype")
    return array


def check_shape(array: np.ndarray, expected: Sequence[int], name: str, why: str) -> None:
    """Raise unless an array has a shape."""
    if array.shape != tuple(expected):
        raise ValueError(f"{name} has shape {array.shape}; expected {tuple(expected)}, {why}")


def check_labels(
    labels: np.ndarray,
    classes: int,
    ignore_index: int,
    name: str,
    position: Callable[[tuple[int, ...]], tuple[int, ...]] = tuple,
) -> None:
    """Raise unless every label is a class or ignore_index; position maps an index to the caller's own."""
    wrong = ((labels < 0) | (labels >= classes)) & (labels != ignore_index)
    if not np.any(wrong):
        return
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    shown = ", ".join(str(i) for i in position(index))
    where = f"{name}[{shown}]" if shown else name
    raise ValueError(
        f"{where} = {labels[index]} is outside [0, {classes}) and is not ignore_index {ignore_index}"
        f" ({int(np.count_nonzero(wrong))} such in all)"
    )


def check_range(array: np.ndarray, low: float, high: float, name: str) -> None:
    """Raise unless every element is in [low, high]."""
    if array.size == 0 or (array.min() >= low and array.max() <= high):
        return
    index = tuple(int(i) for i in np.argwhere(~((array >= low) & (array <= high)))[0])
    where = f"{name}[{', '.join(str(i) for i in index)}]" if index else name
    raise ValueError(f"{where} = {array[index]} is outside [{low:g}, {high:g}]")


def integer(value: Any, name: str) -> int:
    """An integer argument."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is a bool; expected an integer")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r} of type {type(value).__name__}; expected an integer") from None


def label(value: Any, name: str) -> int:
    """An integer argument that labels are compared with."""
    result = integer(value, name)
    if not -(2**63) <= result < 2**63:
        raise ValueError(f"{name} is {result}; expected an integer of 64 bits")
    return result


def number(value: Any, name: str) -> float:
    """A real argument: a number or an array without axes."""
    array = as_array(value, name)
    if array.ndim:
        raise ValueError(f"{name} has shape {array.shape}; expected a number or an array without axes")
    if array.dtype.kind not in "iu" and not is_float(array):
        raise TypeError(f"{name} is {value!r} of type {type(value).__name__}; expected a number")
    return float(array)


def cotangent(grad_output: Any, shape: tuple[int, ...]) -> np.ndarray:
    """grad_output as float64: one element, or one for each element of the loss."""
    array = as_array(grad_output, "grad_output")
    if array.dtype.kind not in "iu" and not is_float(array):
        raise TypeError(f"grad_output has dtype {array.dtype}; expected real numbers")
    if array.ndim:
        check_shape(array, shape, "grad_output", "the loss's shape, or no axes at all")
    return np.ascontiguousarray(array, dtype=np.float64).reshape(-1)


def choice(value: str, name: str, options: Sequence[str]) -> str:
    """An argument that is one of a few words."""
    if value not in options:
        expected = ", ".join(repr(option) for option in options)
        raise ValueError(f"{name} is {value!r}; expected one of {expected}")
    return value


def wanted_gradients(grad: Any, names: Sequence[str]) -> set[str]:
    """The inputs whose gradients are computed: all for True, none for False, else one by name or several."""
    if isinstance(grad, bool | np.bool_):
        return set(names) if grad else set()
    if isinstance(grad, str):
        return {choice(grad, "grad", names)}
    if not isinstance(grad, Collection) or isinstance(grad, bytes):
        raise TypeError(f"grad is {grad!r} of type {type(grad).__name__}; expected a bool, a name or several names")
    return {choice(name, "grad", names) for name in grad}


def float_dtype(value: Any, name: str) -> np.dtype[Any]:
    """A dtype argument that is one of the four float formats."""
    try:
        dtype: np.dtype[Any] = np.dtype(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; expected {_FLOAT_NAMES}") from None
    if dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} is {dtype}; expected {_FLOAT_NAMES}")
    return dtype


def gradient_buffer(
    like: np.ndarray, grad_dtype: Any, out: Any, name: str, *others: np.ndarray | None, wanted: bool = True
) -> np.ndarray | None:
    """Where a gradient goes: a fresh array, or the caller's own, apart from every input; None if it is not wanted."""
    dtype = like.dtype if grad_dtype is None else float_dtype(grad_dtype, "grad_dtype")
    if out is None:
        return device.empty(like.shape, dtype, like=like) if wanted else None
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out is a {type(out).__name__}; expected a NumPy array")
    check_shape(out, like.shape, "out", f"the shape of {name}")
    if out.dtype not in FLOAT_DTYPES or (grad_dtype is not None and out.dtype != dtype):
        raise TypeError(f"out has dtype {out.dtype}; expected {dtype}")
    if not out.flags.writeable:
        raise ValueError("out is read-only; expected an array to write to")
    if not _has_own_places(out):
        raise ValueError(f"out has strides {out.strides}; expected every {out.itemsize}-byte element in its own place")
    for other in (like, *others):
        if other is not None and np.may_share_memory(out, other):
            raise ValueError("out shares memory with an input; inputs are never changed")
    return out if wanted else None


def _has_own_places(out: np.ndarray) -> bool:
    """Whether every element has memory of its own, at a whole number of elements from the first."""
    if out.size == 0:
        return True
    if not out.flags.aligned or any(stride % out.itemsize for stride in out.strides):
        return False
    reach = out.itemsize
    for stride, size in sorted((abs(stride), size) for stride, size in zip(out.strides, out.shape, strict=True)):
        if size > 1 and stride < reach:
            return False
        reach += (size - 1) * stride
    return True
