"""What a process may do to a library: fork, end, set its processor; and what a library must not do to a process."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import dask
import dask.array as da
import ml_dtypes
import numpy as np
import pytest

import refloss
from refloss import parallel, subnormals
from refloss.cases.source import Case
from refloss.testing.judging.judge import judge, question


def run(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | environment,
    )


FORK = """
import os, signal, sys, threading, time
import numpy as np
import refloss
from numba.core import event
from refloss import jit

x, t = np.linspace(-3, 3, 1_000_000), np.zeros(1_000_000)
refloss.set_num_threads(3)
expected = refloss.mse(x, t).loss

def kernel_of(loops):
    # Not kept on disk, because it has no file.
    source = "def loop(values):\\n" + "".join(
        f" for i in range(values.size):\\n  values[i] = values[i] * {k}.0 + 1.0\\n" for k in range(loops)
    )
    names = {}
    exec(source, names)
    return jit.kernel(names["loop"], str(loops))

started, done = threading.Event(), threading.Event()

@jit.once
def made(_):
    # Locks that are held while something is made, and while it is compiled, are held at the fork.
    started.set()
    time.sleep(0.5)
    kernel = kernel_of(20)
    kernel(np.ones(3))
    return kernel

class Compiling(event.Listener):
    def on_start(self, _):
        started.set()

    def on_end(self, _):
        pass

def work():
    for _ in range(30):
        refloss.mse(x, t)
        started.set()
    done.set()

if sys.argv[1] == "working":
    thread = threading.Thread(target=work)
elif sys.argv[1] == "compiling":
    event.register("numba:compile", Compiling())
    thread = threading.Thread(target=lambda: (kernel_of(20)(np.ones(3)), done.set()))
else:
    thread = threading.Thread(target=lambda: (made(1), done.set()))
thread.start()
started.wait()
child = os.fork()
if child == 0:
    values = np.ones(3)
    kernel_of(1)(values)
    right = refloss.mse(x, t).loss == expected and made(2) is not None
    os._exit(0 if right else 3)
deadline = time.monotonic() + 60
while os.waitpid(child, os.WNOHANG)[0] == 0:
    if time.monotonic() > deadline:
        os.kill(child, signal.SIGKILL)
        sys.exit("the child hangs")
    time.sleep(0.05)
thread.join()
print(done.is_set(), refloss.mse(x, t).loss == expected)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system that cannot fork")
@pytest.mark.parametrize("busy", ["compiling", "making", "working"])
def test_a_fork_while_another_thread_is_busy_does_not_hang_the_child(busy: str) -> None:
    result = run(FORK, busy)
    assert (result.returncode, result.stdout) == (0, "True True\n"), result.stderr


END = """
import atexit, sys, threading, time
import numpy as np
import refloss

x, t = np.linspace(-3, 3, 1_000_000), np.zeros(1_000_000)

def late():
    if "thread" in sys.argv:
        threading.main_thread().join()
        time.sleep(0.2)
    print(abs(refloss.mse(x, t).loss - 3.000006) < 1e-9, flush=True)

refloss.set_num_threads(3)
if "warm" in sys.argv:
    refloss.mse(x, t)
if "thread" in sys.argv:
    threading.Thread(target=late).start()
else:
    atexit.register(late)
"""


@pytest.mark.parametrize("when", ["atexit", "thread"])
@pytest.mark.parametrize("first", ["warm", "first call"])
def test_calls_while_python_ends_work(when: str, first: str) -> None:
    result = run(END, when, first)
    assert (result.returncode, result.stdout) == (0, "True\n"), result.stderr


def test_without_compiling_nothing_works_and_the_error_says_why() -> None:
    program = """
import refloss
import refloss.testing.plugin
for call in (
    lambda: refloss.mse([1.0], [0.0]),
    lambda: refloss.cross_entropy([[1.0, 2.0]], [0]),
    lambda: refloss.giou([[0.0, 0.0, 1.0, 1.0]], [[0.0, 0.0, 1.0, 1.0]]),
):
    try:
        call()
    except RuntimeError as error:
        print(error)
"""
    result = run(program, NUMBA_DISABLE_JIT="1")
    expected = "refloss compiles its kernels, and NUMBA_DISABLE_JIT forbids that: unset NUMBA_DISABLE_JIT\n"
    assert (result.returncode, result.stdout) == (0, expected * 3), result.stderr
    command = [sys.executable, "-m", "refloss", "list"]
    listed = subprocess.run(command, capture_output=True, check=False, env=os.environ | {"NUMBA_DISABLE_JIT": "1"})
    assert listed.returncode == 0


class Producer:
    """An array that only DLPack exports, as a framework's does."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.array.__dlpack__(**keywords)


def test_the_prototypes_of_pythons_api_are_left_alone() -> None:
    shared = ctypes.pythonapi.PyCapsule_GetPointer
    before = shared.restype, shared.argtypes
    try:
        shared.restype, shared.argtypes = ctypes.c_short, [ctypes.c_short]
        result = refloss.mse(Producer(np.ones(3)), np.zeros(3))
        assert result.loss == 1.0
        assert shared.restype is ctypes.c_short
        assert shared.argtypes == [ctypes.c_short]
    finally:
        shared.restype, shared.argtypes = before


X86 = platform.machine() in {"x86_64", "AMD64"} and os.name == "posix"
FLUSH_TO_ZERO, DENORMALS_ARE_ZERO = 0x8000, 0x0040
BITS = [FLUSH_TO_ZERO, DENORMALS_ARE_ZERO, FLUSH_TO_ZERO | DENORMALS_ARE_ZERO]


class ControlRegister:
    """x86's MXCSR of the calling thread."""

    def __init__(self) -> None:
        # stmxcsr [rsp-4]; mov eax, [rsp-4]; ret, and mov [rsp-4], edi; ldmxcsr [rsp-4]; ret
        self.memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self.memory[:10] = bytes.fromhex("0fae5c24fc8b4424fcc3")
        self.memory[64:74] = bytes.fromhex("897c24fc0fae5424fcc3")
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.get = ctypes.CFUNCTYPE(ctypes.c_uint32)(address)
        self.set = ctypes.CFUNCTYPE(None, ctypes.c_uint32)(address + 64)

    @contextlib.contextmanager
    def with_bits(self, bits: int) -> Iterator[None]:
        before = self.get()
        self.set(before | bits)
        try:
            yield
        finally:
            self.set(before)


@pytest.fixture
def register() -> ControlRegister:
    if not X86:
        pytest.skip("knows how to flush subnormals on x86 only")
    return ControlRegister()


Work = Callable[[], list[Any]]


def tiny(dtype: Any, count: int) -> np.ndarray:
    """Numbers of which half are subnormal."""
    smallest = float(ml_dtypes.finfo(dtype).smallest_normal)
    return (np.random.default_rng(0).uniform(-2, 2, count) * smallest).astype(dtype)


def elements(dtype: Any) -> Work:
    x = tiny(dtype, 60)
    t = x[::-1].copy()

    def work() -> list[Any]:
        result = refloss.mse(x, t, reduction="sum")
        return [result.loss, *result.grads.values()]

    return work


def blocks(dtype: Any) -> Work:
    """More of them than one thread takes."""
    x = tiny(dtype, 1 << 20)
    t = x[::-1].copy()
    return lambda: list(refloss.mse(x, t, reduction="sum").grads.values())


def confident_rows(dtype: Any) -> np.ndarray:
    """Logits whose probabilities are around the smallest normal number, but for one class of each row."""
    depth = float(np.log(float(ml_dtypes.finfo(dtype).smallest_normal)))
    x = np.random.default_rng(1).uniform(0.98, 1.03, (6, 5)) * depth
    x[:, 2] = 0
    return x.astype(dtype)


def logits(dtype: Any) -> Work:
    x, labels = confident_rows(dtype), np.full(6, 2)

    def work() -> list[Any]:
        result = refloss.cross_entropy(x, labels)
        return [result.loss, result.grads["logits"]]

    return work


def later(dtype: Any) -> Work:
    """What is computed when it is asked for."""
    x, labels = confident_rows(dtype)[None], np.full((1, 6), 2)

    def work() -> list[Any]:
        intermediates = refloss.causal_lm(x, labels).intermediates
        return [intermediates[name] for name in sorted(intermediates.later)]

    return work


def chunks(dtype: Any) -> Work:
    """Sums of chunks, which are divided where nothing else is computed."""
    x = (tiny(dtype, 8) / 4).astype(dtype)

    def work() -> list[Any]:
        lazy = refloss.l1(da.from_array(x, chunks=3), 0 * x)
        return list(dask.compute(lazy.loss, lazy.grads["input"], scheduler="synchronous"))

    return work


@pytest.mark.parametrize("bits", BITS, ids=hex)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("prepared", [elements, blocks, logits, later, chunks])
def test_a_caller_who_flushes_subnormals_gets_the_same_bits(
    register: ControlRegister, bits: int, dtype: Any, prepared: Callable[[Any], Work]
) -> None:
    threads = refloss.get_num_threads()
    refloss.set_num_threads(3)
    try:
        work = prepared(dtype)
        expected = work()
        parallel._pool.cache_clear()
        before = register.get()
        with register.with_bits(bits):
            assert subnormals.are_flushed()
            found = work()
            assert subnormals.are_flushed()
            assert register.get() & 0xFFC0 == (before | bits) & 0xFFC0
        assert len(expected) > 0
        assert [part.tobytes() for part in found] == [part.tobytes() for part in expected]
    finally:
        refloss.set_num_threads(threads)
        parallel._pool.cache_clear()


@pytest.mark.parametrize("bits", BITS, ids=hex)
def test_verdicts_do_not_depend_on_flushing(register: ControlRegister, bits: int) -> None:
    """A gradient of subnormal elements is as wrong in a process that flushes them."""
    x = tiny(ml_dtypes.bfloat16, 20)
    case = Case("tiny", "mse", {"input": x, "target": x[::-1]}, {"reduction": "sum"}, 0.25)
    right = {name: np.array(value) for name, value in question(case).expected.items()}
    candidates = (right, right | {"grad.input": -right["grad.input"]})
    expected = [judge(question(case), candidate) for candidate in candidates]
    assert [verdict.passed for verdict in expected] == [True, False]
    with register.with_bits(bits):
        assert subnormals.are_flushed()
        found = [judge(question(case), candidate) for candidate in candidates]
    assert found == expected


def test_threads_of_a_pool_keep_subnormals_whoever_starts_them(register: ControlRegister) -> None:
    parallel._pool.cache_clear()
    with register.with_bits(FLUSH_TO_ZERO | DENORMALS_ARE_ZERO):
        pool = parallel._pool(2)
        found = [pool.submit(subnormals.are_flushed).result() for _ in range(4)]
        assert subnormals.are_flushed()
    parallel._pool.cache_clear()
    assert found == [False] * 4


def test_an_error_leaves_the_callers_register_alone(register: ControlRegister) -> None:
    with register.with_bits(FLUSH_TO_ZERO):
        with pytest.raises(ValueError, match="target has shape"):
            refloss.mse(np.ones(3), np.ones(4))
        assert subnormals.are_flushed()


def test_where_flushing_cannot_be_turned_off_there_is_an_error(
    register: ControlRegister, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subnormals, "_c_library", lambda: None)
    with register.with_bits(DENORMALS_ARE_ZERO), pytest.raises(RuntimeError, match="flushes subnormal numbers to zero"):
        refloss.mse(np.ones(3), np.zeros(3))
