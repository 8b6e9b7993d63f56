"""Arrays in, and every error about an input."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Mapping, Set
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from refloss import device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

FLOAT_DTYPES: tuple[np.dtype[Any], ...] = (
    np.dtype(np.float64),
    np.dtype(np.float32),
    np.dtype(np.float16),
    np.dtype(ml_dtypes.bfloat16),
)
# NumPy knows them as bytes alone.
_SHORT_INTEGERS = tuple(map(np.dtype, (ml_dtypes.int2, ml_dtypes.int4, ml_dtypes.uint2, ml_dtypes.uint4)))
_FLOAT_NAMES = "float64, float32, float16 or bfloat16"
# NumPy stops at 64, and what is computed takes views with some axes more.
MAX_AXES = 32
_INT64 = np.iinfo(np.int64)
# DLPack's device types whose memory the CPU reads: plain, and pinned by CUDA or ROCm.
_CPU_DEVICES = (1, 3, 11)
_DLPACK_UINT, _DLPACK_BFLOAT = 1, 4


def as_array(value: Any, name: str, expected: str = "an array of numbers") -> np.ndarray:
    """An array of any framework as a NumPy array of native byte order, without a copy where memory can be shared."""
    _refuse_masks(value, name)
    array = value if isinstance(value, device.Resident) else _converted(value, name, expected)
    if array.dtype.kind == "O":
        has_parts = isinstance(value, list | tuple | np.ndarray)
        why = ": its parts have no common type or shape" if has_parts else ""
        raise TypeError(f"{name}: cannot make an array of {type(value).__name__}{why}; expected {expected}")
    if array.dtype.kind == "V" and array.dtype in _SHORT_INTEGERS:
        array = array.astype(np.int8)
    if array.ndim > MAX_AXES:
        raise ValueError(f"{name} has {array.ndim} axes; expected at most {MAX_AXES}")
    if array.dtype.isnative:
        return array
    if isinstance(array, device.Resident):
        raise TypeError(f"{name} has dtype {array.dtype}; expected native byte order for an array on a GPU")
    return array.astype(array.dtype.newbyteorder("="))


def _refuse_masks(value: Any, name: str) -> None:
    """NumPy drops masks in silence, those of a list's parts as well."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; expected one without a mask, whose elements all count")
    if isinstance(value, list | tuple):
        for i, part in enumerate(value):
            if not isinstance(part, int | float):
                _refuse_masks(part, f"{name}[{i}]")


def _converted(value: Any, name: str, expected: str) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if device.has_no_values(value):
        raise TypeError(f"{name} is a {type(value).__name__} of shape and dtype alone; expected an array with values")
    # Whatever another framework raises, it does not say which argument it is about.
    try:
        value = device.settled(value)
        if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
            kind = int(value.__dlpack_device__()[0])
        else:
            return np.asarray(value)
    except Exception as error:
        why = f"cannot make an array of {type(value).__name__}: {error}"
        raise TypeError(f"{name}: {why}; expected {expected}") from error
    return _from_dlpack(value, kind, name)


class _Relabelled:
    """A DLPack producer whose bfloat16 is presented as uint16, which NumPy can take."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __dlpack_device__(self) -> tuple[int, int]:
        dlpack_device: tuple[int, int] = self.value.__dlpack_device__()
        return dlpack_device

    def __dlpack__(self, **_: Any) -> Any:
        capsule = self.value.__dlpack__()
        tensor = device.tensor_of(capsule)
        if (tensor.code, tensor.bits) == (_DLPACK_BFLOAT, 16):
            tensor.code = _DLPACK_UINT
            self.is_bfloat16 = True
        return capsule

    is_bfloat16 = False


def _from_dlpack(value: Any, kind: int, name: str) -> np.ndarray:
    if kind not in _CPU_DEVICES:
        raise ValueError(
            f"{name} lives on DLPack device type {kind}; refloss reads arrays on the CPU and on CUDA: copy it first"
        )
    relabelled = _Relabelled(value)
    try:
        array = np.from_dlpack(relabelled)
    except Exception as error:
        raise TypeError(f"{name}: {type(value).__name__} cannot be exported by DLPack: {error}") from error
    return array.view(ml_dtypes.bfloat16) if relabelled.is_bfloat16 else array


def float_array(value: Any, name: str) -> np.ndarray:
    """An input of a float dtype, in any layout whose strides are whole elements; lists of numbers become float64."""
    array = as_array(value, name)
    if array.dtype.kind in "iu" and isinstance(value, list | tuple | int | float):
        array = array.astype(np.float64)
    if array.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} has dtype {array.dtype}; expected {_FLOAT_NAMES}")
    flags = array.flags
    if flags.aligned and (flags.c_contiguous or all(stride % array.itemsize == 0 for stride in array.strides)):
        return array
    if isinstance(array, device.Resident):
        raise ValueError(f"{name} has strides {array.strides}; expected whole elements for an array on a GPU")
    return array.copy()


def target_array(value: Any, name: str) -> tuple[np.ndarray, bool]:
    """Targets of a float dtype, or integers, which become float64; and whether they have a gradient."""
    array = as_array(value, name)
    is_list = isinstance(value, list | tuple | int | float)
    if array.dtype.kind in "iu" and not is_list and not isinstance(array, device.Resident):
        return array.astype(np.float64), False
    return float_array(value, name), True


def is_float(array: np.ndarray) -> bool:
    """Whether a dtype is a float of any kind."""
    return array.dtype.kind == "f" or array.dtype == FLOAT_DTYPES[3]


def is_real(array: np.ndarray) -> bool:
    """Whether a dtype is an integer or a float of any kind."""
    return array.dtype.kind in "iu" or is_float(array)


def integer_array(value: Any, name: str) -> np.ndarray:
    """An input of an integer dtype."""
    array = as_array(value, name, "integers")
    if array.size == 0 and isinstance(value, list | tuple):
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {array.dtype}; expected an integer dtype")
    return array


def index_array(value: Any, name: str) -> np.ndarray:
    """Indices as int64; without any, of whatever dtype of numbers."""
    array = as_array(value, name)
    array = array if array.size == 0 and is_real(array) else integer_array(array, name)
    if array.dtype == np.uint64:
        check_range(array, _INT64.min, _INT64.max, name)
    return array.astype(np.int64)


def entries(value: Any, name: str, expected: str) -> list[Any]:
    """The entries of a list, or of an array along its first axis."""
    try:
        if isinstance(value, str | bytes | Mapping):
            raise TypeError
        return list(value)
    except Exception:
        raise TypeError(f"{name} is {shown(value)} of type {type(value).__name__}; expected {expected}") from None


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
    # What is below 0 is far above all classes there.
    unsigned = labels.view(np.uint64) if labels.dtype == np.int64 else labels.astype(np.uint64)
    outside = unsigned >= classes
    if not np.count_nonzero(outside):
        return
    wrong = outside & (labels != ignore_index)
    if not np.any(wrong):
        return
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    shown = ", ".join(str(i) for i in position(index))
    where = f"{name}[{shown}]" if shown else name
    why = f"is outside [0, {classes})" if classes else "is no class, for the axis of classes has size 0,"
    such = f"({int(np.count_nonzero(wrong))} such in all)"
    raise ValueError(f"{where} = {labels[index]} {why} and is not ignore_index {ignore_index} {such}")


def check_range(array: np.ndarray, low: float, high: float, name: str) -> None:
    """Raise unless every element is in [low, high]."""
    if array.size == 0 or (array.min() >= low and array.max() <= high):
        return
    first = _first_of(array, ~((array >= low) & (array <= high)), name)
    why = f"is outside [{low:g}, {high:g}]" if high >= low else "names one of a kind of which there are none"
    raise ValueError(f"{first} {why}")


def check_not_negative(array: np.ndarray, name: str) -> None:
    """Raise if an element is negative; what is undefined is not."""
    wrong = array < 0
    if wrong.any():
        raise ValueError(f"{_first_of(array, wrong, name)} is negative")


def _first_of(array: np.ndarray, wrong: np.ndarray, name: str) -> str:
    """The first of some elements, with its index, as an error shows it."""
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    where = f"{name}[{', '.join(str(i) for i in index)}]" if index else name
    return f"{where} = {array[index]}"


def shown(value: Any) -> str:
    """A value as an error shows it, on one line; an integer of thousands of digits has no repr."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def integer(value: Any, name: str, *, low: int | None = None) -> int:
    """An integer argument; of 64 bits and at least low, if that is given."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is a bool; expected an integer")
    try:
        result = operator.index(value)
    except Exception:
        raise TypeError(f"{name} is {shown(value)} of type {type(value).__name__}; expected an integer") from None
    if low is not None and result < low:
        raise ValueError(f"{name} is {shown(result)}; expected at least {low}")
    if low is not None and result > _INT64.max:
        raise ValueError(f"{name} is {shown(result)}; expected an integer of 64 bits")
    return result


def label(value: Any, name: str) -> int:
    """An integer argument that labels are compared with."""
    result = integer(value, name)
    if not _INT64.min <= result <= _INT64.max:
        raise ValueError(f"{name} is {shown(result)}; expected an integer of 64 bits")
    return result


def number(value: Any, name: str, *, finite: bool = False, positive: bool = False, low: float | None = None) -> float:
    """A real argument, a number or an array without axes: finite, above 0 or at least low, where that is said."""
    result = _as_float(value, name)
    good = (not finite or math.isfinite(result)) and (not positive or result > 0.0) and (low is None or result >= low)
    if not good:
        words = ["finite"] * finite + ["positive"] * positive + ["number"]
        expected = " ".join(words) + ("" if low is None else f" of at least {low:g}")
        raise ValueError(f"{name} is {result}; expected a {expected}")
    return result


def _as_float(value: Any, name: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{name} is {shown(value)}; expected a number that float64 holds") from None
    if value is None:
        raise TypeError(f"{name} is None; expected a number")
    array = as_array(value, name, "a number")
    if array.ndim:
        raise ValueError(f"{name} has shape {array.shape}; expected a number or an array without axes")
    if not is_real(array):
        raise TypeError(f"{name} is {shown(value)} of type {type(value).__name__}; expected a number")
    return float(array)


def flag(value: Any, name: str) -> bool:
    """An argument that is true or false, as 0, 1 and None are."""
    if value is None or (isinstance(value, bool | np.bool_ | int | np.integer) and value in (0, 1)):
        return bool(value)
    raise TypeError(f"{name} is {shown(value)} of type {type(value).__name__}; expected True or False")


def cotangent(grad_output: Any, shape: tuple[int, ...], name: str = "grad_output") -> np.ndarray:
    """grad_output as float64: one element, or one for each element of the loss."""
    if isinstance(grad_output, float):
        return np.array([grad_output], np.float64)
    if grad_output is None:
        raise TypeError(f"{name} is None; expected a number, or one for each element of the loss")
    array = as_array(grad_output, name, "real numbers")
    if not is_real(array):
        raise TypeError(f"{name} has dtype {array.dtype}; expected real numbers")
    if array.ndim:
        check_shape(array, shape, name, "the loss's shape, or no axes at all")
    return np.ascontiguousarray(array, dtype=np.float64).reshape(-1)


def component_cotangents(grad_output: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """grad_output as float64 for each component of a loss, of its shape: a mapping, or that of the first alone."""
    if isinstance(grad_output, Mapping):
        unknown = [name for name in grad_output if name not in shapes]
        if unknown:
            raise ValueError(f"grad_output has {unknown[0]!r}; expected components: {', '.join(shapes)}")
        given = {
            name: cotangent(grad_output.get(name, 0.0), shape, f"grad_output[{name!r}]")
            for name, shape in shapes.items()
        }
    else:
        first = next(iter(shapes))
        given = {name: np.zeros(1) for name in shapes} | {first: cotangent(grad_output, shapes[first])}
    return {name: _spread(values, shapes[name]) for name, values in given.items()}


def _spread(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A cotangent for each element of a shape, of one number or of as many."""
    if values.size == math.prod(shape):
        return values.reshape(shape)
    return np.full(shape, values[0])


def counted(mask: Any, shape: tuple[int, ...], why: str) -> np.ndarray:
    """What counts: all without a mask, which is bool or 0 and 1; the words say why it has the shape."""
    if mask is None:
        return np.ones(shape, bool)
    array = as_array(mask, "mask")
    check_shape(array, shape, "mask", why)
    if array.dtype == bool:
        return array
    if not is_real(array):
        raise TypeError(f"mask has dtype {array.dtype}; expected bool, or numbers 0 and 1")
    counts = np.asarray(array != 0)
    if not np.all((array == 1) | ~counts):
        raise ValueError("mask has other numbers than 0 and 1")
    return counts


def choice(value: str, name: str, options: Collection[str]) -> str:
    """An argument that is one of a few words."""
    if not isinstance(value, str) or value not in options:
        expected = ", ".join(repr(option) for option in options)
        raise ValueError(f"{name} is {shown(value)}; expected one of {expected}")
    return value


def asked_gradients(grad: Any) -> bool | tuple[str, ...]:
    """Whose gradients are asked for: those of all inputs (True), of none (False), or of some by name."""
    if isinstance(grad, bool | np.bool_):
        return bool(grad)
    names = (grad,) if isinstance(grad, str) else grad
    if not isinstance(names, list | tuple | Set) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"grad is {shown(grad)} of type {type(grad).__name__}; expected a bool, a name or several names"
        )
    return tuple(names)


def wanted_gradients(grad: Any, names: Collection[str]) -> set[str]:
    """The inputs whose gradients are computed: all for True, none for False, else one by name or several."""
    asked = asked_gradients(grad)
    if isinstance(asked, bool):
        return set(names) if asked else set()
    return {choice(name, "grad", names) for name in asked}


def float_dtype(value: Any, name: str) -> np.dtype[Any]:
    """A dtype argument that is one of the four float formats."""
    try:
        dtype: np.dtype[Any] = np.dtype(value)
    except Exception:
        raise TypeError(f"{name} is {shown(value)}; expected {_FLOAT_NAMES}") from None
    if dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} is {dtype}; expected {_FLOAT_NAMES}")
    return dtype


def dtype_choice(value: Any, name: str, options: Mapping[str, np.dtype[Any]]) -> np.dtype[Any]:
    """A dtype argument that is one of a few: its name, or whatever NumPy takes as that dtype."""
    try:
        dtype: np.dtype[Any] = np.dtype(value)
    except Exception:
        dtype = np.dtype(object)
    if value is None or dtype not in options.values():
        expected = ", ".join(repr(option) for option in options)
        raise ValueError(f"{name} is {shown(value)}; expected one of {expected}")
    return dtype


def gradient_buffer(
    like: np.ndarray, grad_dtype: Any, out: Any, name: str, *, wanted: bool = True
) -> np.ndarray | None:
    """Where a gradient goes: a fresh array, or the caller's own; None if it is not wanted."""
    dtype = like.dtype if grad_dtype is None else float_dtype(grad_dtype, "grad_dtype")
    if out is None:
        return device.empty(like.shape, dtype, like=like) if wanted else None
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"out is a {type(out).__name__}; expected a NumPy array")
    check_shape(out, like.shape, "out", f"the shape of {name}")
    if out.dtype not in FLOAT_DTYPES or (grad_dtype is not None and out.dtype != dtype):
        raise TypeError(f"out has dtype {out.dtype}; expected {dtype}")
    if not out.flags.writeable:
        raise ValueError("out is read-only; expected an array to write to")
    if not out.flags.aligned:
        raise ValueError(f"out is not aligned; expected its elements at multiples of {out.dtype.alignment} bytes")
    if not _has_disjoint_elements(out):
        raise ValueError(f"out has strides {out.strides}; expected every {out.itemsize}-byte element in its own place")
    return out if wanted else None


def _has_disjoint_elements(out: np.ndarray) -> bool:
    """Whether every element has memory of its own, at a whole number of elements from the first."""
    if out.size == 0:
        return True
    if any(stride % out.itemsize for stride in out.strides):
        return False
    reach = out.itemsize
    for stride, size in sorted((abs(stride), size) for stride, size in zip(out.strides, out.shape, strict=True)):
        if size > 1 and stride < reach:
            return False
        reach += (size - 1) * stride
    return True


def reshaped_out(out: Any, shape: tuple[int, ...], other: tuple[int, ...]) -> Any:
    """A buffer of one shape as the same memory in another; what does not fit is left for gradient_buffer to tell."""
    if not isinstance(out, np.ndarray) or out.shape != shape:
        return out
    try:
        return out.reshape(other, copy=False)
    except ValueError:
        raise ValueError(
            f"out has shape {out.shape} and strides {out.strides}; expected memory that can be taken as {other}"
        ) from None


def check_out(out: Any, arguments: Mapping[str, Any]) -> None:
    """Raise if a caller's buffer shares memory with an argument, in whatever form and depth it was given."""
    memory = _memory(out, "out")
    if memory is None:
        return
    for name, value in arguments.items():
        for part, array in _arrays_in(value, name) if name != "out" else ():
            if np.may_share_memory(memory, array):
                raise ValueError(f"out shares memory with {part}; inputs are never changed")


def _arrays_in(value: Any, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Every array in an argument, and what it is called."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _arrays_in(part, f"{name}[{key!r}]")
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from _arrays_in(part, f"{name}[{i}]")
    else:
        array = _memory(value, name)
        if array is not None:
            yield name, array


def _memory(value: Any, name: str) -> np.ndarray | None:
    """What of an argument's memory could be written to; None for what is no array, or none that can be taken in."""
    if value is None or isinstance(value, str | bytes | int | float | complex | np.generic):
        return None
    if isinstance(value, np.ndarray):
        return value
    if device.is_on_gpu(value):
        return device.imported(value, name)
    try:
        if not any(hasattr(value, name) for name in ("__dlpack__", "__array__", "__array_interface__")):
            memoryview(value)
        return as_array(value, name)
    except (TypeError, ValueError):
        return None
