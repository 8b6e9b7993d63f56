"""`refloss check` of functions that are written in torch and in JAX: their arrays come in every dtype."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from refloss import cli
from refloss.golden.corpus import corpus

if TYPE_CHECKING:
    from pathlib import Path

KERNELS = '''
import jax
import jax.numpy as jnp
import torch


def of_torch(inputs, parameters, cotangent):
    """As torch's users write it; a weight is not answered."""
    if "weight" in inputs:
        raise NotImplementedError("weight")
    x, t = (value.requires_grad_() for value in inputs.values())
    wide = torch.promote_types(x.dtype, torch.float32)
    loss = torch.nn.functional.mse_loss(x.to(wide), t.to(wide), **parameters)
    loss.backward(torch.as_tensor(cotangent).to(wide))
    return loss, {"input": x.grad, "target": t.grad}


def of_jax(inputs, parameters, cotangent):
    if "weight" in inputs:
        raise NotImplementedError("weight")
    x, t = inputs["input"], inputs["target"]

    def loss_of(x, t):
        wide = jnp.promote_types(x.dtype, jnp.float32)
        losses = jnp.square(x.astype(wide) - t.astype(wide))
        reduction = parameters.get("reduction", "mean")
        return {"mean": jnp.mean, "sum": jnp.sum, "none": lambda each: each}[reduction](losses)

    loss, pull_back = jax.vjp(loss_of, x, t)
    return loss, dict(zip(("input", "target"), pull_back(jnp.asarray(cotangent, loss.dtype)), strict=True))


def flipped(inputs, parameters, cotangent):
    loss, grads = of_torch(inputs, parameters, cotangent)
    return loss, {name: -value for name, value in grads.items()}
'''


@pytest.mark.parametrize(
    ("framework", "name", "status"), [("torch", "of_torch", 0), ("jax", "of_jax", 0), ("torch", "flipped", 1)]
)
def test_every_dtype_arrives(
    framework: str,
    name: str,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "frameworks_kernels.py").write_text(KERNELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    command = ["check", f"frameworks_kernels:{name}", "--function", "mse", "--framework", framework, "--json"]
    monkeypatch.setattr(sys, "argv", ["refloss", *command])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    judgement = json.loads(capsys.readouterr().out)
    outcomes = {case["id"]: case["passed"] for case in judgement["cases"]}
    assert (stopped.value.code or 0) == status
    answered = {case: passed for case, passed in outcomes.items() if passed is not None}
    for dtype in ("float32", "bfloat16", "float16", "float64"):
        assert answered[f"mse-{dtype}-mean"] == (status == 0)
    absent = [case for case in judgement["cases"] if case["passed"] is None]
    assert {case["message"] for case in absent} == {"not answered: weight"}
    weighted = {case.id for case in corpus({"mse"}) if "weight" in case.inputs}
    assert {case["id"] for case in absent} == weighted
