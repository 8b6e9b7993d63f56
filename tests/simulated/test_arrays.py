"""Arrays that live on a GPU, as the simulator has one: its device memory is the host's."""

import ctypes
import gc
from collections import UserDict

import ml_dtypes
import numpy as np
import pytest

import refloss
from refloss import device
from refloss.device import DeviceArray
from tests.cuda_cases import assert_same_bits

LABELS = np.array([1, -100, 3])


def logits_of(dtype=np.float32):
    return (np.random.default_rng(0).standard_normal((3, 5)) * 4).astype(dtype)


class ByInterface:
    """A producer of __cuda_array_interface__."""

    def __init__(self, array):
        self.array = array

    @property
    def __cuda_array_interface__(self):
        interface = dict(self.array.__array_interface__)
        typestr = "<V2" if self.array.dtype == ml_dtypes.bfloat16 else interface["typestr"]
        return {key: interface[key] for key in ("data", "shape", "strides")} | {"typestr": typestr, "version": 3}


class ByCapsule:
    """A producer of DLPack whose memory is said to be CUDA's."""

    def __init__(self, array):
        self.array = array
        self.streams = []

    @property
    def __cuda_array_interface__(self):
        raise RuntimeError("torch has none of a tensor with a gradient")

    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, *, stream=None):
        self.streams.append(stream)
        bits = self.array.view(np.uint16) if self.array.dtype == ml_dtypes.bfloat16 else self.array
        capsule = bits.__dlpack__()
        if bits is not self.array:
            tensor = device._DLManagedTensor.from_address(device._capsule_pointer(capsule, b"dltensor")).tensor
            tensor.code = 4
        return capsule


PRODUCERS = [ByInterface, ByCapsule]


@pytest.mark.parametrize("producer", PRODUCERS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_an_array_on_a_gpu_is_read_where_it_is_and_its_gradient_stays_there(producer, dtype):
    logits = logits_of(dtype)
    wanted = refloss.cross_entropy(logits, LABELS, grad_output=-2.0)
    result = refloss.cross_entropy(producer(logits), LABELS, grad_output=-2.0)
    gradient = result.grads["logits"]
    assert isinstance(gradient, DeviceArray)
    assert (gradient.shape, gradient.dtype, gradient.ndim, gradient.size) == ((3, 5), np.dtype(dtype), 2, 15)
    assert_same_bits(np.asarray(gradient), wanted.grads["logits"], "gradient")
    assert_same_bits(result.loss, wanted.loss, "loss")
    assert_same_bits(result.intermediates["probabilities"], wanted.intermediates["probabilities"], "probabilities")


@pytest.mark.parametrize("producer", PRODUCERS)
def test_layouts_and_positions(producer):
    wide = np.random.default_rng(1).standard_normal((2, 10, 3)).astype(np.float32)
    view = wide[:, ::-2].transpose(0, 2, 1)
    labels = np.array([[1, 2, 0], [4, -100, 3]])
    wanted = refloss.causal_lm(view, labels)
    result = refloss.causal_lm(producer(view) if producer is ByInterface else producer(view.copy()), producer(labels))
    assert_same_bits(np.asarray(result.grads["logits"]), wanted.grads["logits"], "gradient")
    flat = refloss.causal_lm(producer(view.reshape(6, 5)), labels)
    assert flat.grads["logits"].shape == (6, 5)


def test_dlpack_is_asked_for_the_default_stream():
    producer = ByCapsule(logits_of())
    refloss.cross_entropy(producer, LABELS)
    assert producer.streams == [1]


def test_the_backend_decides_where_gradients_are():
    logits = ByInterface(logits_of())
    on_host = refloss.cross_entropy(logits, LABELS, backend="cpu").grads["logits"]
    assert isinstance(on_host, np.ndarray)
    there_and_back = refloss.cross_entropy(logits_of(), LABELS, backend="cuda").grads["logits"]
    assert isinstance(there_and_back, np.ndarray)
    with pytest.raises(ValueError, match="backend is 'gpu'; expected one of 'auto', 'cpu', 'cuda'"):
        refloss.cross_entropy(logits, LABELS, backend="gpu")


def test_gradients_can_be_written_into_device_memory():
    logits, buffer = logits_of(), np.zeros((3, 5), np.float32)
    result = refloss.cross_entropy(ByInterface(logits), LABELS, out=ByInterface(buffer))
    assert isinstance(result.grads["logits"], DeviceArray)
    assert_same_bits(buffer, refloss.cross_entropy(logits, LABELS).grads["logits"], "buffer")
    with pytest.raises(ValueError, match="out lives on a GPU; expected a NumPy array"):
        refloss.cross_entropy(logits, LABELS, out=ByInterface(buffer), backend="cpu")


def test_elementwise_losses_and_mixed_inputs():
    generator = np.random.default_rng(3)
    x, t = generator.standard_normal((2, 4, 6)).astype(np.float32)
    wanted = refloss.mse(x, t, grad_output=3.0)
    result = refloss.mse(ByCapsule(x), ByInterface(t), grad_output=3.0)
    mixed = refloss.mse(ByCapsule(x), t, grad_output=3.0)
    assert isinstance(mixed.grads["target"], np.ndarray)
    for name, gradient in wanted.grads.items():
        assert isinstance(result.grads[name], DeviceArray)
        assert_same_bits(np.asarray(result.grads[name]), gradient, name)
        assert_same_bits(np.asarray(mixed.grads[name]), gradient, name)
    logits = refloss.bce_with_logits(ByCapsule(x), ByInterface(np.abs(t) / 9))
    wanted = refloss.bce_with_logits(x, np.abs(t) / 9).intermediates["probabilities"]
    assert_same_bits(logits.intermediates["probabilities"], wanted, "probabilities")
    soft = refloss.bce(ByCapsule(np.abs(x) / 9), ByCapsule(np.abs(t) / 9))
    assert_same_bits(np.asarray(soft.grads["input"]), refloss.bce(np.abs(x) / 9, np.abs(t) / 9).grads["input"], "bce")


def test_what_is_broadcast_has_its_gradient_where_it_lives():
    generator = np.random.default_rng(4)
    x, t = generator.standard_normal((4, 6)), generator.standard_normal((1, 6)).astype(np.float32)
    for first, second in ((x, t), (t, x)):
        wanted = refloss.gaussian_nll(first, second, 0.5, grad_output=3.0).grads
        for k, there in enumerate(((ByCapsule(first), second), (first, ByCapsule(second)))):
            found = refloss.gaussian_nll(*there, 0.5, grad_output=3.0).grads
            assert [isinstance(found[name], DeviceArray) for name in ("input", "target")] == [k == 0, k == 1]
            assert all(np.array_equal(np.asarray(found[name]), wanted[name]) for name in wanted)
    with pytest.raises(ValueError, match="out lives on a GPU; expected a NumPy array where input is broadcast"):
        refloss.gaussian_nll(ByInterface(t), x, 0.5, out=ByInterface(np.zeros((1, 6), np.float32)))


def test_lists_of_arrays_are_looked_through():
    boxes = np.array([[[0.5, 0.5, 0.2, 0.2], [0.3, 0.4, 0.2, 0.1]]], np.float32)
    logits = np.array([[[0.1, 1.0, -0.5], [0.3, -1.0, 2.0]]], np.float32)
    labels = [{"class_labels": np.array([1]), "boxes": boxes[0, :1] + np.float32(0.01)}]
    config = {"num_labels": 2, "class_cost": 1, "bbox_cost": 5, "giou_cost": 2, "eos_coefficient": 0.1}
    config |= {"auxiliary_loss": False, "bbox_loss_coefficient": 5, "giou_loss_coefficient": 2}
    wanted = refloss.object_detection(logits, labels, boxes, config)
    there = [UserDict({key: ByInterface(value) for key, value in labels[0].items()})]
    result = refloss.object_detection(ByCapsule(logits), there, ByInterface(boxes), config)
    for name, gradient in wanted.grads.items():
        assert_same_bits(np.asarray(result.grads[name]), gradient, name)
    assert_same_bits(result.loss, wanted.loss, "loss")


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_gradients_are_handed_out_without_a_copy(dtype):
    gradient = refloss.cross_entropy(ByInterface(logits_of(dtype)), LABELS).grads["logits"]
    interface = gradient.__cuda_array_interface__
    assert (interface["version"], interface["stream"], interface["shape"]) == (3, 1, (3, 5))
    assert gradient.__dlpack_device__() == (2, 0)
    again = device.imported(gradient, "gradient")
    assert again.dtype == gradient.dtype
    assert again.__array_interface__["data"] == interface["data"]
    by_interface = device.imported(ByInterface(np.asarray(again)), "gradient")
    assert by_interface.dtype == gradient.dtype
    held = len(device._exported)
    del again
    gc.collect()
    assert len(device._exported) == held - 1


def test_a_consumer_releases_what_it_took():
    gradient = refloss.cross_entropy(ByInterface(logits_of()), LABELS).grads["logits"]
    wanted = np.asarray(gradient)
    address = gradient.__cuda_array_interface__["data"][0]

    class OnHost:
        """The same capsule, relabelled, so that NumPy is the consumer."""

        def __init__(self, array):
            self.array = array

        def __dlpack_device__(self):
            return (1, 0)

        def __dlpack__(self, **_):
            capsule = self.array.__dlpack__()
            managed = device._DLManagedTensor.from_address(device._capsule_pointer(capsule, b"dltensor"))
            managed.tensor.device_type = 1
            return capsule

    gc.collect()
    before = len(device._exported)
    taken = np.from_dlpack(OnHost(gradient))
    assert len(device._exported) == before + 1
    del gradient
    gc.collect()
    assert taken.ctypes.data == address
    assert_same_bits(taken, wanted, "taken")
    del taken
    gc.collect()
    assert len(device._exported) == before


def test_a_layout_cannot_be_read_by_mistake():
    layout = device.imported(ByInterface(logits_of()), "logits")
    assert "Resident" in repr(layout)
    assert layout[1:, ::2].shape == (2, 3)
    assert layout[1, 2].shape == ()
    for reading in (
        *(lambda: layout + 1, lambda: np.sum(layout), lambda: np.exp(layout), lambda: np.mean(layout)),
        *(layout.copy, layout.tolist, layout.item, lambda: layout.astype(np.float64), lambda: float(layout[1, 2])),
        *(lambda: layout[[0, 1]], lambda: layout.__setitem__(0, 1.0), lambda: list(layout)),
    ):
        with pytest.raises((TypeError, ValueError)):
            reading()
    with pytest.raises(ValueError, match="without a copy: make it contiguous"):
        layout.T.reshape(15)


def test_what_cannot_be_taken_in_is_named():
    with pytest.raises(TypeError, match="logits has dtype int64"):
        refloss.cross_entropy(ByInterface(np.ones((3, 5), np.int64)), LABELS)
    with pytest.raises(TypeError, match="logits has DLPack type 5 of 64 bits"):
        refloss.cross_entropy(ByCapsule(np.ones((3, 5), np.complex64)), LABELS)
    elsewhere = ByCapsule(logits_of())
    elsewhere.__class__ = type("OnDevice1", (ByCapsule,), {"__dlpack_device__": lambda _: (2, 1)})
    with pytest.raises(ValueError, match="logits lives on CUDA device 1; refloss works on device 0"):
        refloss.cross_entropy(elsewhere, LABELS)
    halves = np.frombuffer(bytes(64), np.uint8)[1:61].view(np.float32).reshape(3, 5)
    masked = ByInterface(logits_of())
    with pytest.raises(ValueError, match="logits has strides"):
        refloss.cross_entropy(ByInterface(halves), LABELS)

    class Masked:
        __cuda_array_interface__ = masked.__cuda_array_interface__ | {"mask": object()}

    with pytest.raises(TypeError, match="logits: an array with a mask"):
        refloss.cross_entropy(Masked(), LABELS)


def test_an_array_can_be_copied_to_the_host_in_another_type():
    gradient = refloss.cross_entropy(ByInterface(logits_of()), LABELS).grads["logits"]
    assert np.asarray(gradient, np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="has to be copied"):
        np.array(gradient, copy=False)
    assert "DeviceArray" in repr(gradient)
    assert ctypes.sizeof(device._DLTensor) == 48


def test_a_gradient_is_not_handed_out_as_what_it_is_not():
    gradient = refloss.cross_entropy(ByInterface(logits_of()), LABELS).grads["logits"]
    with pytest.raises(BufferError, match="without a copy"):
        gradient.__dlpack__(copy=True)
    with pytest.raises(BufferError, match="cannot be handed out on"):
        gradient.__dlpack__(dl_device=(1, 0))
    assert gradient.__dlpack__(stream=2, max_version=(1, 0), dl_device=(2, 0), copy=False) is not None


def test_memory_that_is_read_only_is_not_written():
    class ReadOnly(ByInterface):
        @property
        def __cuda_array_interface__(self):
            interface = super().__cuda_array_interface__
            return interface | {"data": (interface["data"][0], True)}

    with pytest.raises(ValueError, match="out is read-only"):
        refloss.cross_entropy(ByInterface(logits_of()), LABELS, out=ReadOnly(np.zeros((3, 5), np.float32)))
    refloss.cross_entropy(ReadOnly(logits_of()), LABELS)
