"""Every kernel for a GPU, compiled for the GPUs of two generations without having one, and its PTX read."""

import re
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
from refloss.files import nested  # noqa: E402
from refloss.kernels.gpu import runtime  # noqa: E402
from refloss.kernels.softmax.gpu import LARGE_BLOCK  # noqa: E402
from refloss.registry import FUNCTIONS  # noqa: E402
from tests.cuda_cases import chosen_cases  # noqa: E402
from tests.cuda_kernels import FORMATS, dispatchers, every_kernel, formats_of  # noqa: E402

CAPABILITIES = ((8, 0), (9, 0))
REGISTERS = 65536


def kernels():
    """What reads rows of logits in every format, the others in the first that they meet."""
    for kernel in every_kernel():
        if kernel.takes != "SoftmaxLoop":
            # Half a minute, of what a token may have; value_loss has the same kernel with less.
            marks = [pytest.mark.slow] if kernel.loop == "policy_loss" else []
            yield pytest.param(kernel, "", id=str(kernel), marks=marks)
        for name in FORMATS if kernel.takes == "SoftmaxLoop" else ():
            # These take ten seconds each, and differ in how an element is read, as the others do.
            slow = kernel.module == "softmax.gpu_soft" and name != "bfloat16"
            yield pytest.param(kernel, name, id=f"{kernel}-{name}", marks=[pytest.mark.slow] if slow else [])


class Compilation(NamedTuple):
    """A kernel with the types of its arguments."""

    kernel: Any
    types: tuple[Any, ...]


@pytest.fixture(scope="module")
def launches():
    """What the cases that the simulator runs would launch, by kernel and format; memory is the host's, and all 0."""
    found: dict[Any, Compilation] = {}

    def note(kernel, _blocks, _threads, *arguments):
        for name in {"", *formats_of(arguments)} - {name for noted, name in found if noted is dispatchers()[kernel]}:
            types = tuple(numba.typeof(runtime.upload(argument).value) for argument in arguments)
            found[dispatchers()[kernel], name] = Compilation(kernel, types)

    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(dispatch, "require_cuda", lambda: None)
        patch.setattr(runtime, "SIMULATED", True)
        patch.setattr(runtime, "_allocated", lambda shape, dtype: np.zeros(shape, runtime.element_type(dtype)))
        patch.setattr(runtime, "launch", note)
        for case in chosen_cases().values():
            call = FUNCTIONS[case.function].call
            call(**nested(case.inputs), **case.parameters, grad_output=case.grad_output, backend="cuda")
    return found


def ptx_of(compilation, *more):
    """Its PTX for the first capability and for more of them, compiled as a launch compiles it."""
    seen = []

    def compile_ir(ir, **options):
        seen.append((ir, options))
        return exactly(ir, **options)

    with pytest.MonkeyPatch.context() as patch, runtime.exact_arithmetic():
        exactly, first = nvvm.compile_ir, CAPABILITIES[0]
        # Device functions ask a GPU that is not there for its capability.
        patch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=first))
        patch.setattr(nvvm, "compile_ir", compile_ir)
        ptx, _ = cuda.compile_ptx(compilation.kernel.py_func, compilation.types, cc=first)
        ir, options = seen[-1]
        return [ptx, *(exactly(ir, **options | {"arch": f"compute_{major}{minor}"}).decode() for major, minor in more)]


def aimed(ptx, capability):
    """The PTX of one capability as that of another: what it is for is all that differs."""
    return re.sub(r"(?m)^\.target sm_\d+$", f".target sm_{capability[0]}{capability[1]}", ptx.strip("\0 \n"))


def assembled(ptx, capability):
    """What the assembler says of registers and memory."""
    options = [f"-arch=sm_{capability[0]}{capability[1]}", "-verbose"]
    handle = nvjitlink.create(len(options), options)
    code = aimed(ptx, capability).encode()
    nvjitlink.add_data(handle, nvjitlink.InputType.PTX, code, len(code), "kernel")
    nvjitlink.complete(handle)
    log = bytearray(nvjitlink.get_info_log_size(handle))
    nvjitlink.get_info_log(handle, log)
    return log.decode()


@pytest.mark.parametrize(("kernel", "name"), list(kernels()))
def test_a_kernel_compiles_to_exact_arithmetic_without_libdevice_or_spills(launches, kernel, name):
    compilation = launches[kernel, name]
    # The linker would contract what the compiler has kept apart.
    assert compilation.kernel.targetoptions["lto"] is False
    (ptx,) = ptx_of(compilation)
    # Without a rounding mode the assembler may contract products and sums.
    assert not re.findall(r"\b(?:add|sub|mul)\.f(?:32|64)", ptx)
    assert not re.findall(r"\b(?:approx|ftz)\b", ptx)
    assert not re.findall(r"__nv_(?:exp|log|pow|sqrt|fma)\w*", ptx)
    for capability in CAPABILITIES:
        log = assembled(ptx, capability)
        assert set(re.findall(r"(\d+) bytes spill (?:stores|loads)", log)) == {"0"}
        # A block that does not fit a processor's registers cannot be launched.
        assert int(re.search(r"[uU]sed (\d+) registers", log)[1]) * LARGE_BLOCK <= REGISTERS


def all_of_which_few_are_fast():
    for kernel in every_kernel():
        yield pytest.param(kernel, id=str(kernel), marks=[] if kernel.loop in {"mse", "boxes"} else [pytest.mark.slow])


@pytest.mark.parametrize("kernel", list(all_of_which_few_are_fast()))
def test_ptx_is_the_same_for_every_capability(launches, kernel):
    """So that it is compiled for the first above, and assembled for all of them."""
    first, *others = ptx_of(launches[kernel, ""], *CAPABILITIES[1:])
    for capability, ptx in zip(CAPABILITIES[1:], others, strict=True):
        assert f".target sm_{capability[0]}{capability[1]}\n" in ptx
        assert aimed(first, capability) == aimed(ptx, capability)


def test_without_exact_arithmetic_products_and_sums_are_contracted(launches):
    """What the check above would miss if it could not fail."""
    compilation = next(launches[kernel, ""] for kernel in every_kernel() if kernel.loop == "mse")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=(9, 0)))
        ptx, _ = cuda.compile_ptx(compilation.kernel.py_func, compilation.types, cc=(9, 0))
    assert re.findall(r"\b(?:add|mul)\.f64", ptx)
