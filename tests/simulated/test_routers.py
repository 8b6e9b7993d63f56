"""Layers of a router that live on a GPU, one by one."""

import numpy as np

import refloss
from refloss.device import DeviceArray, host, imported
from tests.simulated.test_arrays import ByInterface


def test_a_list_of_arrays_on_a_gpu_has_one_gradient_there():
    x = np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)
    expected = refloss.moe_load_balancing(x, 2, backend="cpu")
    for given in ([ByInterface(layer) for layer in x], ByInterface(x)):
        result = refloss.moe_load_balancing(given, 2)
        gradient = result.grads["router_logits"]
        assert isinstance(gradient, DeviceArray)
        assert result.loss == expected.loss
        assert np.array_equal(host(imported(gradient, "gradient")), expected.grads["router_logits"])
