"""Memory: no temporary of the size of the logits, and offsets beyond 31 bits."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import refloss

# The peak beyond the inputs and the output, of a call in a process of its own that has compiled already.
PROGRAM = """
import sys, numpy as np, refloss, ml_dtypes
rows, classes, layout = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
x = np.zeros((rows, classes), np.float32)
if layout == "strided":
    x = np.zeros((classes, rows), np.float32).T
x[:] = 1.0
y = np.zeros(rows, int)
out = np.zeros((rows, classes), np.float32)
out[:] = 1.0
refloss.cross_entropy(x[:2], y[:2], label_smoothing=0.1)
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")
before = peak()
refloss.cross_entropy(x, y, label_smoothing=0.1, out=out)
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from Linux's /proc")
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_there_is_no_temporary_of_the_size_of_the_logits(layout):
    rows, classes = 4096, 8192
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(rows), str(classes), layout], capture_output=True, text=True, check=True
    )
    one_row = classes * 8
    allowed = refloss.get_num_threads() * (2 * one_row + 3 * 2**18) + 4 * rows * 8 + 2**23
    assert int(run.stdout) < allowed < rows * classes * 4 / 8


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16], ids=lambda dtype: np.dtype(dtype).name)
def test_more_than_two_to_the_31_elements(dtype):
    """Equal logits: p = 1/V everywhere, the loss is log V, and V = 2^17 makes the gradient exact."""
    classes = 2**17
    rows = 2**14 + 3
    logits = np.zeros((rows, classes), dtype)
    labels = np.arange(rows) % classes
    result = refloss.cross_entropy(logits, labels, reduction="sum", grad_output=2.0**4)
    assert logits.size > 2**31
    assert abs(result.loss - rows * 17 * np.log(2)) <= 2 * np.spacing(result.loss)
    gradient = result.grads["logits"]
    for first in range(0, rows, 1024):
        block = gradient[first : first + 1024].copy()
        here = np.arange(len(block))
        assert np.all(block[here, labels[first : first + 1024]] == dtype(-16.0 * (1 - 1 / classes)))
        block[here, labels[first : first + 1024]] = dtype(2.0**-13)
        assert np.all(block.view(np.uint16) == np.array(2.0**-13, dtype).view(np.uint16))
