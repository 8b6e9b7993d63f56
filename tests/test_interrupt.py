"""Ctrl-C while kernels are compiled: it ends a command at once, and a call; what is made later is whole and right."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import refloss
from refloss.golden import store
from refloss.kernels.maps import exponentials

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends itself a signal")

# Ctrl-C at a moment of the first compilation that is no helper's, or of the reading of what is on disk.
INTERRUPT = """
import os, signal, sys, threading
from numba.core import codegen
from numba.core.dispatcher import Dispatcher
from refloss import disk_cache

def interrupting(name, owner):
    function = getattr(owner, name)

    def interrupted(*arguments):
        if interrupted.first:
            interrupted.first = False
            os.kill(os.getpid(), signal.SIGINT)
        return function(*arguments)

    interrupted.first = True
    is_bound = hasattr(function, "__self__")
    setattr(owner, name, staticmethod(interrupted) if is_bound else interrupted)

def optimize(library):
    # While LLVM works.
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()
    codegen.CPUCodeLibrary._optimize_final_module = optimized
    optimized(library)

optimized = codegen.CPUCodeLibrary._optimize_final_module
# Whoever is started in the background of a shell ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)
moment = sys.argv.pop(1)
if moment == "optimizing":
    codegen.CPUCodeLibrary._optimize_final_module = optimize
elif moment == "typing":
    interrupting("load_overload", disk_cache.DiskCache)
elif moment == "callback":
    # What is raised here goes through LLVM, which cannot pass it on.
    interrupting("_object_compiled_hook", codegen.CPUCodeLibrary)
elif moment == "reading":
    interrupting("_object_getbuffer_hook", codegen.CPUCodeLibrary)
elif moment == "writing":
    interrupting("_replace", disk_cache)
"""

COMMAND = f"""
{INTERRUPT}
from refloss.cli import main
from refloss.commands import progress
progress.PERIOD = 3600
main()
"""

CALL = f"""
{INTERRUPT}
import numpy as np
import refloss
from refloss import compilation, parallel
from refloss.kernels.maps import exponentials

def call():
    if sys.argv[2] == "nll":
        result = refloss.nll(np.arange(12.0).reshape(4, 3), np.array([0, 1, 2, -100]), grad_output=-0.75)
        return result.loss.tobytes().hex() + result.grads["input"].tobytes().hex()
    return exponentials(np.linspace(-1, 1, 5)).tobytes().hex()

def in_a_thread():
    refloss.set_num_threads(2)
    has_begun = threading.Event()

    def work(_):
        if threading.current_thread() is threading.main_thread():
            has_begun.wait()
        else:
            has_begun.set()
            call()

    parallel.each(work, [0, 1])

try:
    in_a_thread() if sys.argv[1] == "thread" else call()
except KeyboardInterrupt:
    # Whoever compiles has hardly begun.
    print("interrupted", *["at once"] * (moment == "typing" and compilation.is_running()))
print(call())
"""


def start(program: str, *arguments: object, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | {"NUMBA_CACHE_DIR": str(cache)},
    )


def kept(cache: Path) -> list[Path]:
    """The kernels on disk; a test that finds anything else there fails."""
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".nbc"}
    return files


@pytest.fixture
def arrays(tmp_path: Path) -> list[object]:
    np.save(tmp_path / "x.npy", np.arange(12.0).reshape(4, 3))
    np.save(tmp_path / "y.npy", np.array([0, 1, 2, -100]))
    return ["--input", tmp_path / "x.npy", "--target", tmp_path / "y.npy"]


def compute(folder: Path, arrays: list[object]) -> list[object]:
    return ["compute", "nll", *arrays, "--out", folder / "out.safetensors"]


def write(folder: Path, _: list[object]) -> list[object]:
    return ["golden", "write", folder, "--only", "nll"]


def add(folder: Path, arrays: list[object]) -> list[object]:
    return ["golden", "add", folder, "nll", *arrays]


def compare(folder: Path, _: list[object]) -> list[object]:
    golden = folder.parent / "golden"
    store.write(golden, {"nll"})
    for path in golden.glob("nll-s*.safetensors"):
        tensors = {"loss": np.float64(1.0), "grad.input": np.zeros(3)}
        store.save_tensors(folder.parent / "candidate" / path.name, tensors)
    return ["compare", golden, folder.parent / "candidate", "--html", folder / "report.html"]


def check(folder: Path, _: list[object]) -> list[object]:
    kernel = folder.parent / "kernel.py"
    kernel.write_text("def nll(inputs, parameters, cotangent):\n    return 1.0, {}\n")
    return ["check", f"{kernel}:nll", "--function", "nll", "--junit", folder / "junit.xml"]


@pytest.mark.parametrize(
    ("command", "moment"),
    [
        (compute, "typing"),
        (compute, "callback"),
        (write, "callback"),
        (write, "optimizing"),
        (add, "writing"),
        (compare, "optimizing"),
        (check, "callback"),
    ],
)
def test_a_command_ends_at_once_and_leaves_nothing_half_written(
    tmp_path: Path, arrays: list[object], command: Callable[[Path, list[object]], list[object]], moment: str
) -> None:
    folder, cache = tmp_path / "folder", tmp_path / "cache"
    for each in (folder, tmp_path / "candidate"):
        each.mkdir()
    result = start(COMMAND, moment, *command(folder, arrays), cache=cache)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")
    assert list(folder.iterdir()) == []
    # It has not waited for what is under way.
    assert len(kept(cache)) <= (moment == "writing")


@pytest.mark.parametrize(
    ("moment", "who", "what"),
    [
        ("typing", "caller", "exp"),
        ("callback", "caller", "nll"),
        ("optimizing", "caller", "exp"),
        ("writing", "caller", "exp"),
        ("typing", "thread", "exp"),
        ("callback", "thread", "exp"),
        ("optimizing", "thread", "exp"),
    ],
)
def test_a_call_is_interrupted_and_a_later_one_is_right(tmp_path: Path, moment: str, who: str, what: str) -> None:
    values = exponentials(np.linspace(-1, 1, 5)).tobytes()
    if what == "nll":
        expected = refloss.nll(np.arange(12.0).reshape(4, 3), np.array([0, 1, 2, -100]), grad_output=-0.75)
        values = expected.loss.tobytes() + expected.grads["input"].tobytes()
    # Once it is on disk, there is Ctrl-C while it is read.
    for each in (moment, "reading") if (moment, what) == ("typing", "exp") else (moment,):
        result = start(CALL, each, who, what, cache=tmp_path)
        told = f"interrupted{' at once' * (each == 'typing')}\n{values.hex()}\n"
        assert (result.returncode, result.stdout, result.stderr) == (0, told, "")
        assert len(kept(tmp_path)) == (2 if what == "nll" else 1)
