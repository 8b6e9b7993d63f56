"""A few steps of the training run, and the torch function that it rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file
from transformers import GPT2LMHeadModel

import refloss
from conformance import training
from conformance.call import Call, array
from conformance.cases import Case
from conformance.error_model import question, tolerances
from conformance.reference import disagreements, run_torch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STEPS = 8


@pytest.fixture(scope="module")
def trained() -> Iterator[tuple[training.Curves, GPT2LMHeadModel]]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield training.run(STEPS, Console(quiet=True))
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="module")
def curves(trained: tuple[training.Curves, GPT2LMHeadModel]) -> training.Curves:
    return trained[0]


def test_the_model_learns(curves: training.Curves) -> None:
    first, last = np.log(training.VOCABULARY), curves["refloss"][-1]
    assert abs(curves["refloss"][0] - first) < 0.1  # a new model guesses
    assert last < first - 0.8


def test_curves_agree_to_what_float32_explains(curves: training.Curves) -> None:
    """The gradient of a row of V logits in float32 is off by up to V·u, and a step changes the loss in proportion."""
    loosest = training.VOCABULARY * 2.0**-24 * sum(curves["refloss"])
    assert training.differences(curves)["transformers"].max() < loosest


def test_curves_agree_with_float64(curves: training.Curves) -> None:
    """Rounded from float64, torch's gradients are refloss's but for a rare last bit, which moves the loss far less."""
    assert training.differences(curves)["transformers in float64"].max() < 2.0**-44


def test_curves_of_a_wrong_gradient_do_not_agree(curves: training.Curves) -> None:
    def unshifted(model: GPT2LMHeadModel, tokens: torch.Tensor) -> torch.Tensor:
        return training.refloss_causal_lm(model(input_ids=tokens).logits, tokens.roll(1, dims=-1))

    _, wrong = training.train(unshifted, STEPS, lambda: None)
    distance = training.differences({**curves, "wrong": wrong})["wrong"]
    assert distance[-1] > 1000 * training.differences(curves)["transformers"].max()


@pytest.mark.parametrize("factor", [-3.5, 0.25])
def test_gradient_honours_what_comes_from_above(factor: float) -> None:
    """The loss times a factor, through refloss's torch function, against the same through transformers."""
    tokens = training.batches(1)[0]
    logits = array(training.new_model()(input_ids=tokens).logits)
    call = Call(
        Case("training", "ForCausalLM", {"logits": logits, "labels": tokens.numpy()}, {}, factor), torch.float32
    )
    loss = training.refloss_causal_lm(call.arguments["logits"], call.arguments["labels"])
    (plain,) = torch.autograd.grad(loss, call.arguments["logits"], retain_graph=True)
    (gradient,) = torch.autograd.grad(factor * loss, call.arguments["logits"])
    expected = {"grad.logits": run_torch(call)["grad.logits"]}
    allowed = tolerances(question(call), call)
    assert not disagreements({"grad.logits": array(gradient)}, expected, allowed)
    assert disagreements({"grad.logits": array(plain)}, expected, allowed)


def test_files_can_be_read_back(trained: tuple[training.Curves, GPT2LMHeadModel], tmp_path: Path) -> None:
    curves, model = trained
    training.save(tmp_path / "run", curves, model)
    training.plot(curves, tmp_path / "first.svg")
    training.plot(curves, tmp_path / "second.svg")
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()
    logits, labels = (
        load_file(tmp_path / "run" / "logits.safetensors")["logits"],
        np.load(tmp_path / "run" / "labels.npy"),
    )
    assert logits.shape == (training.BATCH, training.CONTEXT, training.VOCABULARY)
    assert (logits.dtype, labels.dtype) == (np.dtype(np.float32), np.dtype(np.int64))
    assert abs(refloss.causal_lm(logits, labels).loss - curves["refloss"][-1]) < 0.5
