"""Every CUDA kernel, compiled for the GPUs of two generations without having one, and its PTX read."""

import contextlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numba
import numpy as np
import pytest

cuda = pytest.importorskip("numba.cuda")
pytest.importorskip("numba_cuda")

from cuda.bindings import nvjitlink  # noqa: E402
from numba.cuda import dispatcher  # noqa: E402
from numba.cuda.cudadrv import nvvm  # noqa: E402

from refloss import dispatch  # noqa: E402
from refloss.cases.source import DTYPES, Case  # noqa: E402
from refloss.files import nested  # noqa: E402
from refloss.golden import corpus  # noqa: E402
from refloss.kernels.cuda import runtime  # noqa: E402
from refloss.kernels.cuda.cross_entropy import LARGE_BLOCK, short_rows  # noqa: E402
from refloss.registry import FUNCTIONS  # noqa: E402

CAPABILITIES = ((8, 0), (9, 0))
REGISTERS = 65536
FORMATS = ("float64", "float32", "float16", "bfloat16")


class Compilation(NamedTuple):
    """A kernel with the types of its arguments."""

    kernel: Any
    types: tuple[Any, ...]
    case: str


@contextlib.contextmanager
def recorded():
    """Instead of launching kernels, note them; memory is the host's, and what they would write is 0."""
    found: dict[Any, Compilation] = {}

    def note(kernel, _blocks, _threads, *arguments):
        types = tuple(numba.typeof(runtime.upload(argument).value) for argument in arguments)
        found.setdefault((kernel, types), Compilation(kernel, types, current[0]))

    current = [""]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "require_cuda", lambda: None)
        patch.setattr(runtime, "SIMULATED", True)
        patch.setattr(runtime, "_allocated", lambda shape, dtype: np.zeros(shape, runtime.element_type(dtype)))
        patch.setattr(runtime, "launch", note)
        yield found, current


def compilations():
    """What the golden cases launch, and rows too long for a thread each."""
    with recorded() as (found, current), np.errstate(all="ignore"):
        for case in (*corpus.corpus(), *long_rows()):
            current[0] = case.id
            call = FUNCTIONS[case.function].call
            call(**nested(case.inputs), **case.parameters, grad_output=case.grad_output, backend="cuda")
    return list(found.values())


def long_rows():
    for name, dtype in DTYPES.items():
        for layout, classes in (("chunks", 160), ("elements", 131)):
            inputs = {"logits": np.zeros((2, classes), dtype), "target": np.zeros(2, np.int64)}
            yield Case(f"{layout}-{name}", "cross_entropy", inputs, {}, 1.0)


@pytest.fixture(scope="module")
def chosen():
    """By function: one compilation of each kernel, and of those that read and write rows of logits one a format."""
    first, by_function = {}, {}
    for compilation in compilations():
        rows = compilation.kernel.py_func.__name__ in ("label_rows", "short_rows", "probability_rows")
        if rows or first.setdefault(compilation.kernel, compilation) is compilation:
            by_function.setdefault(compilation.case.partition("-")[0], []).append(compilation)
    return by_function


def ptx_of(compilation):
    """Its PTX for each capability, compiled as a launch compiles it."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        exactly = nvvm.compile_ir
        # Device functions ask a GPU that is not there for its capability.
        patch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=CAPABILITIES[-1]))
        patch.setattr(nvvm, "compile_ir", lambda ir, **options: seen.append((ir, options)) or exactly(ir, **options))
        with runtime.exact_arithmetic():
            cuda.compile_ptx(compilation.kernel.py_func, compilation.types, cc=CAPABILITIES[-1])
            ir, options = seen[-1]
            return [
                exactly(ir, **options | {"arch": f"compute_{major}{minor}"}).decode() for major, minor in CAPABILITIES
            ]


def assembled(ptx, capability):
    """What the assembler says of registers and memory."""
    options = [f"-arch=sm_{capability[0]}{capability[1]}", "-verbose"]
    handle = nvjitlink.create(len(options), options)
    code = ptx.strip("\0").encode()
    nvjitlink.add_data(handle, nvjitlink.InputType.PTX, code, len(code), "kernel")
    nvjitlink.complete(handle)
    log = bytearray(nvjitlink.get_info_log_size(handle))
    nvjitlink.get_info_log(handle, log)
    return log.decode()


@pytest.mark.parametrize("function", [*corpus.functions(), "chunks", "elements"])
def test_kernels_compile_to_exact_arithmetic_without_libdevice_or_spills(chosen, function):
    for compilation in chosen.get(function, ()):
        for ptx, capability in zip(ptx_of(compilation), CAPABILITIES, strict=True):
            assert f".target sm_{capability[0]}{capability[1]}" in ptx
            # Without a rounding mode the assembler may contract products and sums.
            assert not re.findall(r"\b(?:add|sub|mul)\.f(?:32|64)", ptx)
            assert not re.findall(r"\b(?:approx|ftz)\b", ptx)
            assert not re.findall(r"__nv_(?:exp|log|pow|sqrt|fma)\w*", ptx)
            log = assembled(ptx, capability)
            assert set(re.findall(r"(\d+) bytes spill (?:stores|loads)", log)) == {"0"}
            # A block that does not fit a processor's registers cannot be launched.
            assert int(re.search(r"[uU]sed (\d+) registers", log)[1]) * LARGE_BLOCK <= REGISTERS
            if function == "chunks":
                # Maxima, sums and gradients each have a loop that reads sixteen bytes at a time; one writes them.
                assert len(re.findall(r"ld\.global(?:\.nc)?\.v2\.[ub]64", ptx)) >= 3
                assert len(re.findall(r"st\.global\.v2\.[ub]64", ptx)) >= 1


def test_every_kernel_is_among_them(chosen):
    """Whatever is a kernel in the CUDA modules has been compiled above."""
    compiled = {compilation.kernel.py_func.__name__ for own in chosen.values() for compilation in own}
    for module in Path(runtime.__file__).parent.glob("*.py"):
        kernels = re.findall(r"@gpu_kernel\n *def (\w+)", module.read_text())
        assert set(kernels) <= compiled, module.name
        # The linker would contract what the compiler has kept apart.
        assert "cuda.jit" not in module.read_text() or module.name == "gpu_jit.py"
    assert not any(compilation.kernel.targetoptions["lto"] for own in chosen.values() for compilation in own)
    assert len(chosen["chunks"]) == len(chosen["elements"]) == len(FORMATS)


def test_without_exact_arithmetic_products_and_sums_are_contracted(chosen):
    """What the check above would miss if it could not fail."""
    compilation = next(c for own in chosen.values() for c in own if c.kernel.py_func is short_rows.py_func)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=(9, 0)))
        ptx, _ = cuda.compile_ptx(compilation.kernel.py_func, compilation.types, cc=(9, 0))
    assert re.findall(r"\b(?:add|mul)\.f64", ptx)
