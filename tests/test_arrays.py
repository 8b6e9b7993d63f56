"""Arrays of other frameworks, by the protocols alone."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import refloss
from refloss.device import tensor_of

VALUES = np.array([[1.0, -2.0, 0.5], [3.0, 0.0, -1.0]], np.float32)
LABELS = np.array([2, 0])


class Producer:
    """A DLPack producer of another framework: nothing but the two methods; bfloat16 has a type code of its own."""

    def __init__(self, array, device=(1, 0)):
        self.array, self.device = array, device

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None):
        if self.array.dtype != ml_dtypes.bfloat16:
            return self.array.__dlpack__()
        capsule = self.array.view(np.uint16).__dlpack__()
        tensor_of(capsule).code = 4
        return capsule


class Convertible:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class Detachable(Producer):
    """As a tensor that requires a gradient: it exports nothing until it is detached."""

    def __dlpack__(self, *, stream=None):
        raise BufferError("cannot export")

    def detach(self):
        return Producer(self.array)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("wrap", [Producer, Convertible, Detachable])
def test_protocols(wrap, dtype):
    expected = refloss.cross_entropy(VALUES.astype(dtype), LABELS)
    result = refloss.cross_entropy(wrap(VALUES.astype(dtype)), wrap(LABELS))
    assert result.loss == expected.loss
    assert result.grads["logits"].dtype == dtype
    assert np.array_equal(result.grads["logits"], expected.grads["logits"])


def test_dlpack_shares_memory():
    from refloss.arrays import as_array

    assert np.shares_memory(as_array(Producer(VALUES), "logits"), VALUES)
    low = VALUES.astype(ml_dtypes.bfloat16)
    assert np.shares_memory(as_array(Producer(low), "logits"), low)


def test_lists_and_numbers():
    expected = refloss.cross_entropy(VALUES.astype(np.float64), LABELS)
    assert refloss.cross_entropy(VALUES.tolist(), [2, 0]).loss == expected.loss
    assert refloss.cross_entropy([[1, 2], [3, 4]], (0, 1)).grads["logits"].dtype == np.float64
    assert refloss.cross_entropy([1, 2, 3], 1).loss == refloss.cross_entropy(np.array([1.0, 2, 3]), 1).loss
    assert refloss.cross_entropy([[1, 0]], [[1, 0]]).loss == refloss.cross_entropy([[1, 0]], [0]).loss


def test_subclasses_and_scalars_of_numpy():
    class Named(np.ndarray):
        pass

    matrix = VALUES.view(Named)
    assert refloss.cross_entropy(matrix, LABELS).loss == refloss.cross_entropy(VALUES, LABELS).loss
    result = refloss.cross_entropy(VALUES, LABELS, label_smoothing=np.float32(0.5), ignore_index=np.int8(-1))
    assert result.loss == refloss.cross_entropy(VALUES, LABELS, label_smoothing=0.5).loss


def test_masked_arrays_are_refused_even_without_a_masked_element():
    for logits in (
        np.ma.masked_array(VALUES),
        [np.ma.masked_array(row) for row in VALUES],
        np.ma.masked_less(VALUES, 0),
    ):
        with pytest.raises(TypeError, match=r"^logits.* is a masked array; expected one without a mask"):
            refloss.cross_entropy(logits, LABELS)
    with pytest.raises(TypeError, match=r"^target\[1\] is a masked array"):
        refloss.cross_entropy(VALUES, [2, np.ma.masked])


def test_arrays_on_another_device_are_refused():
    # ROCm's own memory; what becomes of CUDA's is in tests/test_cuda.py.
    with pytest.raises(ValueError, match="logits lives on DLPack device type 10; refloss reads arrays on the CPU"):
        refloss.cross_entropy(Producer(VALUES, device=(10, 0)), LABELS)


def test_producers_that_fail_are_named():
    class Broken(Producer):
        def __dlpack__(self, *, stream=None):
            raise BufferError("it is sparse")

    with pytest.raises(TypeError, match="logits: Broken cannot be exported by DLPack: it is sparse"):
        refloss.cross_entropy(Broken(VALUES), LABELS)


def test_inputs_are_not_changed():
    inputs = [VALUES.copy(), LABELS.copy(), np.float32([1, 2, 3])]
    before = [array.tobytes() for array in inputs]
    refloss.cross_entropy(*inputs, label_smoothing=0.1, ignore_index=0)
    target = np.full((2, 3), 1 / 3, np.float32)
    refloss.cross_entropy(inputs[0], target, inputs[2])
    refloss.causal_lm(inputs[0], inputs[1], shift_labels=inputs[1])
    assert [array.tobytes() for array in inputs] == before
    assert np.all(target == np.float32(1 / 3))


def test_import_is_light():
    program = (
        "import sys, refloss\n"
        "heavy = {'numba', 'llvmlite', 'torch', 'jax', 'transformers', 'matplotlib', 'scipy', 'typer', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_public_names_are_documented():
    for name in refloss.__all__:
        value = getattr(refloss, name)
        assert value.__doc__, name
