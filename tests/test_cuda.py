"""The CUDA backend: without what it needs, and on a GPU where there is one. tests/simulated has what needs no GPU."""

import contextlib
import importlib.util

import numpy as np
import pytest

import refloss
from refloss import dispatch
from refloss.cases.source import DTYPES
from refloss.files import nested
from refloss.golden import corpus
from refloss.registry import FUNCTIONS
from tests.cuda_cases import assert_case_has_the_cpu_s_bits, assert_same_bits, assert_same_result

LOGITS, LABELS = np.zeros((2, 3), np.float32), np.array([0, 2])


def has_gpu():
    if importlib.util.find_spec("numba_cuda") is None:
        return False
    from numba import cuda

    return bool(cuda.is_available())


HAS_GPU = has_gpu()
on_a_gpu = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="no NVIDIA GPU")]


@pytest.fixture
def unchecked():
    """What is found out about the GPU is remembered; tests of it begin, and leave, without a memory."""
    dispatch.require_cuda.cache_clear()
    yield
    dispatch.require_cuda.cache_clear()


def test_a_backend_that_does_not_exist():
    with pytest.raises(ValueError, match="backend is 'gpu'; expected one of 'auto', 'cpu', 'cuda'"):
        refloss.cross_entropy(LOGITS, LABELS, backend="gpu")


@pytest.mark.usefixtures("unchecked")
def test_without_the_package(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "numba_cuda" else find(name, *rest)
    )
    with pytest.raises(RuntimeError, match=r"needs the package numba-cuda; install it with .*refloss\[cuda13"):
        refloss.cross_entropy(LOGITS, LABELS, backend="cuda")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_without_a_gpu():
    pytest.importorskip("numba_cuda")
    for call in (
        lambda: refloss.cross_entropy(LOGITS, LABELS, backend="cuda"),
        lambda: refloss.mse(LOGITS, LOGITS, backend="cuda"),
        lambda: refloss.nll(LOGITS, LABELS, backend="cuda"),
        lambda: refloss.giou(np.ones((1, 4)), np.ones((1, 4)), backend="cuda"),
    ):
        with pytest.raises(RuntimeError, match=r"needs an NVIDIA GPU and its driver: .*; use backend='cpu' without"):
            call()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_auto_does_not_fall_back_for_an_array_on_a_gpu():
    pytest.importorskip("numba_cuda")

    class OnDevice:
        __cuda_array_interface__ = LOGITS.__array_interface__

    with pytest.raises(RuntimeError, match="needs an NVIDIA GPU and its driver"):
        refloss.cross_entropy(OnDevice(), LABELS)


@pytest.mark.usefixtures("unchecked")
def test_without_a_toolkit(monkeypatch):
    pytest.importorskip("numba_cuda")
    from types import SimpleNamespace

    from numba import cuda
    from numba.cuda.cudadrv import driver, nvvm

    class Missing:
        def __init__(self):
            raise OSError("libnvvm.so was not found")

    monkeypatch.setattr(driver, "driver", SimpleNamespace(is_available=True))
    monkeypatch.setattr(cuda, "gpus", [object()])
    monkeypatch.setattr(nvvm, "NVVM", Missing)
    with pytest.raises(RuntimeError, match=r"the CUDA toolkit's NVVM .*libnvvm.so was not found.*; install it"):
        refloss.cross_entropy(LOGITS, LABELS, backend="cuda")


def test_too_little_device_memory(monkeypatch):
    pytest.importorskip("numba_cuda")
    from types import SimpleNamespace

    from numba import cuda
    from numba.cuda.cudadrv.driver import CudaAPIError

    from refloss.kernels.gpu import runtime

    def exhausted(*_):
        raise CudaAPIError(2, "CUDA_ERROR_OUT_OF_MEMORY")

    monkeypatch.setattr(cuda, "gpus", [contextlib.nullcontext()])
    monkeypatch.setattr(cuda, "device_array", exhausted)
    monkeypatch.setattr(cuda, "current_context", lambda: SimpleNamespace(get_memory_info=lambda: (5, 9)))
    with pytest.raises(MemoryError, match="no room for 4000 bytes; 5 of the GPU's 9 bytes are free: use smaller"):
        runtime.allocate((10, 100), np.float32)


class TestOnAGPU:
    pytestmark = on_a_gpu

    @pytest.mark.parametrize("function", FUNCTIONS)
    def test_golden_cases_have_the_cpu_s_bits(self, function):
        for case in corpus.corpus({function}):
            assert_case_has_the_cpu_s_bits(case)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("classes", [5, 128, 4096, 50257, 128256])
    def test_rows_of_all_lengths(self, dtype, classes):
        generator = np.random.default_rng(classes)
        logits = (generator.standard_normal((37, classes)) * 5).astype(DTYPES[dtype])
        labels = generator.integers(classes, size=37)
        labels[::7] = -100
        for options in ({}, {"label_smoothing": 0.1}):
            results = [
                refloss.cross_entropy(logits, labels, grad_output=-1.5, backend=backend, **options)
                for backend in ("cuda", "cpu")
            ]
            assert_same_result(*results)

    def test_large_elementwise_losses(self):
        generator = np.random.default_rng(0)
        x, t = generator.standard_normal((2, 1 << 22)).astype(np.float32)
        for call in (refloss.mse, refloss.bce_with_logits):
            assert_same_result(*(call(x, t, grad_output=3.0, backend=backend) for backend in ("cuda", "cpu")))

    def test_arrays_stay_on_the_gpu(self):
        from numba import cuda

        logits = np.random.default_rng(0).standard_normal((64, 1000)).astype(np.float32)
        labels = np.arange(64)
        there = cuda.to_device(logits)
        result = refloss.cross_entropy(there, labels)
        taken = cuda.as_cuda_array(result.grads["logits"])
        assert_same_bits(taken.copy_to_host(), refloss.cross_entropy(logits, labels).grads["logits"], "gradient")
        assert_same_bits(there.copy_to_host(), logits, "logits")

    def test_a_gradient_in_the_caller_s_memory(self):
        from numba import cuda

        logits = np.random.default_rng(0).standard_normal((64, 1000)).astype(np.float32)
        there, out = cuda.to_device(logits), cuda.device_array_like(logits)
        refloss.cross_entropy(there, np.arange(64), out=out)
        expected = refloss.cross_entropy(logits, np.arange(64)).grads["logits"]
        assert_same_bits(out.copy_to_host(), expected, "gradient")

    @pytest.mark.parametrize("shape", [(0, 5), (3, 1), (0, 1)])
    def test_little_and_nothing(self, shape):
        logits, labels = np.ones(shape, np.float32), np.zeros(shape[0], np.int64)
        assert_same_result(*(refloss.cross_entropy(logits, labels, backend=backend) for backend in ("cuda", "cpu")))
        assert_same_result(*(refloss.mse(logits, logits, backend=backend) for backend in ("cuda", "cpu")))

    def test_a_head_takes_arrays_that_live_there(self):
        from numba import cuda

        case = next(iter(corpus.corpus({"object_detection"})))
        there = {name: cuda.to_device(case.inputs[name]) for name in ("logits", "pred_boxes")}
        host, device = (
            refloss.object_detection(**nested(case.inputs) | inputs, **case.parameters, grad_output=case.grad_output)
            for inputs in ({}, there)
        )
        assert host.loss == device.loss
        for name in there:
            assert_same_bits(np.asarray(device.grads[name]), host.grads[name], name)
