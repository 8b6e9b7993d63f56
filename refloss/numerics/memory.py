"""Arrays as kernels are to see them: of one type, so that each kernel is compiled once."""

from __future__ import annotations

import numpy as np


class Memory:
    """The memory of an array as one vector of integers or floats that compiled code reads.

    It is always presented as writable, so that a kernel is compiled once; what a kernel writes is a matter of its own.
    """

    def __init__(self, array: np.ndarray, typestr: str, address: int, length: int) -> None:
        self.array = array
        self.__array_interface__ = {"data": (address, False), "shape": (length,), "typestr": typestr, "version": 3}


def as_writable(array: np.ndarray) -> np.ndarray:
    """A contiguous array, presented as writable: for one that is read-only, kernels would be compiled once more."""
    if array.flags.writeable:
        return array
    if not (array.size and array.flags.c_contiguous):
        return array.copy()
    memory = Memory(array, array.dtype.str, array.__array_interface__["data"][0], array.size)
    return np.asarray(memory).reshape(array.shape)
