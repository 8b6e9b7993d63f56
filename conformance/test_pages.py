"""What pages tell to type that needs PyTorch or JAX runs; tests/test_site.py has all other pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import refloss
from tests.pages import run

KERNEL = """
import refloss
import torch


def to_torch(array):
    if array.dtype == "bfloat16":
        return torch.from_numpy(array.view("uint16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def fn(inputs, parameters, cotangent):
    r = refloss.{function}(**inputs, **parameters, grad_output=cotangent)
    return torch.tensor(r.loss), {{name: to_torch(value) for name, value in r.grads.items()}}
"""
TRITON = """
import torch

DEVICE, KNOWN = "cpu", {"ignore_index", "reduction", "label_smoothing"}


def cross_entropy(logits, target, **parameters):
    return torch.nn.functional.cross_entropy(logits.float(), target.long(), **parameters)
"""


def test_the_page_on_pytest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kernels").mkdir()
    Path("my_kernel.py").write_text(KERNEL.format(function="causal_lm"))
    Path("kernels/loss.py").write_text(KERNEL.format(function="mse"))
    logits, labels = np.zeros((1, 3, 4), np.float32), np.array([[0, 1, 2]])

    def my_kernel(inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> tuple[Any, Any]:
        r = refloss.causal_lm(**inputs, **parameters, grad_output=cotangent)
        return r.loss, r.grads["logits"]

    loss, gradient = my_kernel({"logits": logits, "labels": labels}, {}, 2.0)
    given = {"logits": logits, "labels": labels, "my_loss": loss, "my_gradient": gradient, "my_kernel": my_kernel}
    names = run("docs/pytest.md", ("python", "sh"), given | {"torch": torch}, "causal_lm-float32")
    half = jnp.asarray([1.5], jnp.bfloat16)
    assert names["to_torch"](np.array(half)).dtype == torch.bfloat16


def test_the_page_on_triton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With PyTorch's cross-entropy in the place of the kernel, which test_outside_users.py judges where Triton is."""
    monkeypatch.chdir(tmp_path)
    Path("triton_cross_entropy.py").write_text(TRITON)
    monkeypatch.syspath_prepend(tmp_path)
    run("docs/how_to/judge_a_triton_kernel.md", ("python", "sh"), {}, "cross_entropy-float32-mean")
