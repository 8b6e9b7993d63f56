"""Arrays of torch and JAX that hold no values of their own: refused by name, before their memory is looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import refloss

if TYPE_CHECKING:
    from collections.abc import Callable

LABELS = np.array([0, 2])


def _fake() -> torch.Tensor:
    with FakeTensorMode():
        return torch.ones(2, 3)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_fake, "logits is a FakeTensor of shape and dtype alone; expected an array with values"),
        (lambda: torch.ones(2, 3, device="meta"), "logits is a Tensor of shape and dtype alone"),
        (lambda: torch.nn.Parameter(torch.ones(2, 3, device="meta")), "logits is a Parameter of shape and dtype alone"),
        (torch.eye(3)[:2].to_sparse, "logits: .*layout"),
        (torch.eye(3)[:2].to_sparse_csr, "logits: .*layout"),
        (lambda: torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.quint8), "logits: .*not supported"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), "logits: "),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "logits: "),
        (lambda: torch.ones(2, 3, dtype=torch.complex64), "logits has dtype complex64"),
        (lambda: torch.ones(2, 3).to(torch.float8_e4m3fn), "logits: "),
        (lambda: [torch.ones(3, requires_grad=True)] * 2, "logits: cannot make an array of list"),
        (lambda: torch.masked.masked_tensor(torch.ones(2, 3), torch.ones(2, 3) > 2), "logits"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_without_values_of_their_own(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        refloss.cross_entropy(make(), LABELS)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_tensors_of_a_transformation(transform: Any) -> None:
    def loss(row: torch.Tensor) -> torch.Tensor:
        with pytest.raises(TypeError, match=r"^logits: "):
            refloss.cross_entropy(row, 1)
        return row.sum()

    transform(loss)(torch.ones(3) if transform is torch.func.grad else torch.ones(2, 3))


def test_tensors_that_need_a_gradient_are_taken() -> None:
    logits = torch.ones(2, 3, requires_grad=True)
    assert refloss.cross_entropy(logits, LABELS).loss == np.log(3)
    assert refloss.cross_entropy(logits.conj(), torch.tensor(LABELS)).loss == np.log(3)


def test_traced_arrays() -> None:
    jax = pytest.importorskip("jax")

    def loss(row: Any) -> Any:
        with pytest.raises(TypeError, match=r"logits: cannot make an array of .*Tracer"):
            refloss.cross_entropy(row, 1)
        return row.sum()

    for transform in (jax.jit, jax.grad):
        transform(loss)(np.ones(3, np.float32))
    deleted = jax.numpy.ones((2, 3))
    deleted.delete()
    with pytest.raises(TypeError, match="logits: "):
        refloss.cross_entropy(deleted, LABELS)
    with pytest.raises(TypeError, match="logits"):
        refloss.cross_entropy(jax.random.key(0), LABELS)


@pytest.mark.parametrize("other", ["target", "weight", "grad_output"])
def test_a_buffer_that_a_tensor_shares(other: str) -> None:
    out = np.full((2, 3), 0.5)
    tensor = torch.from_numpy(out)
    given = {"target": tensor, "weight": tensor.reshape(-1)[3:], "grad_output": tensor[0, 0]}
    arguments: dict[str, Any] = {"logits": np.zeros((2, 3)), "target": LABELS} | {other: given[other]}
    with pytest.raises(ValueError, match=f"out shares memory with {other}"):
        refloss.cross_entropy(**arguments, out=out)
    assert (out == 0.5).all()
