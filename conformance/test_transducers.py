"""Transducers against transformers' own, where the generator of cases does not go; test_generator has the rest.

As in test_language: the formula in float64, then both sides as people train, and wrong answers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.loss.loss_utils import LOSS_MAPPING

import refloss
from conformance.call import Call
from conformance.cases import Case
from conformance.comparison import assert_as_shipped, assert_formula, identifier
from conformance.reference import Outcome, formula_precision, run_refloss, run_torch
from conformance.transducers import TDT, TRANSDUCERS

DURATIONS = (0, 1, 2, 3, 4)
TRAINING_DTYPES = (torch.float32, torch.bfloat16)


def case(key: str, name: str, durations: tuple[int, ...] = DURATIONS, empty: bool = False, **options: Any) -> Case:
    """Three samples of several lengths; one has no labels if it is to be empty."""
    random = np.random.default_rng(41)
    logits = 2.0 * random.standard_normal((3, 7, 5, 6))
    inputs = {
        "labels": random.integers(1, 6, (3, 4)),
        "logit_lengths": np.array([7, 5, 6]),
        "label_lengths": np.array([4, 0 if empty else 2, 3]),
    }
    if key == TDT:
        of_durations = random.standard_normal((3, 7, 5, len(durations)))
        inputs |= {"token_logits": logits, "duration_logits": of_durations, "durations": np.array(durations)}
    else:
        inputs["logits"] = logits
    cotangent = random.standard_normal(3) if options.get("reduction") == "none" else -3.5
    return Case(f"{key}-{name}", key, inputs, {"blank_token_id": 0, **options}, cotangent)


CASES = (
    *(case(key, word, reduction=word) for key in TRANSDUCERS for word in ("mean_volume", "mean_batch", "mean", "sum")),
    *(case(key, "none", reduction="none") for key in TRANSDUCERS),
    *(case(key, "default") for key in TRANSDUCERS),
    *(case(key, "without_labels", empty=True, reduction="sum") for key in TRANSDUCERS),
    *(case(key, "another_blank", blank_token_id=5) for key in TRANSDUCERS),
    case(TDT, "sigma", sigma=0.05),
    case(TDT, "durations_twice", durations=(1, 0, 1, 2), sigma=0.5),
)


@pytest.mark.parametrize("each", CASES, ids=identifier)
def test_formula(each: Case) -> None:
    assert_formula(each)


@pytest.mark.parametrize("dtype", TRAINING_DTYPES, ids=str)
@pytest.mark.parametrize("each", CASES, ids=identifier)
def test_as_shipped(each: Case, dtype: torch.dtype) -> None:
    assert_as_shipped(each, dtype, telling=True)


INFINITY = float("inf")


@pytest.mark.parametrize("key", TRANSDUCERS)
def test_a_sample_without_labels_has_a_mean_here(key: str) -> None:
    """There the loss is inf: it is divided by 0."""
    each = case(key, "empty_mean", empty=True, reduction="mean")
    with formula_precision():
        call = Call(each, torch.float64)
        theirs = run_torch(call)
    ours = run_refloss(call)
    assert theirs["loss"] == INFINITY
    assert ours["loss"] == pytest.approx((ours["intermediate.nll"] / [4, 1, 3]).mean(), rel=1e-15)
    np.testing.assert_allclose(ours["intermediate.nll"], theirs["intermediate.nll"], rtol=1e-12)


@pytest.mark.parametrize("durations", [(1, 2), (0, 2), (1, 2, 3), (1,)])
def test_durations_that_leave_nodes_out_have_a_gradient_here(durations: tuple[int, ...]) -> None:
    """Losses agree; gradients are NaN there, of a logarithm of a sum of nothing."""
    each = case(TDT, "durations", durations=durations, reduction="none")
    with formula_precision():
        call = Call(each, torch.float64)
        theirs = run_torch(call)
    ours = run_refloss(call)
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-12)
    feasible = np.isfinite(ours["loss"])
    assert feasible.any()
    assert np.isnan(theirs["grad.token_logits"][feasible]).any()
    assert np.isfinite(ours["grad.token_logits"][feasible]).all()


@pytest.mark.parametrize("key", TRANSDUCERS)
def test_labels_that_are_padded_are_taken_here(key: str) -> None:
    each = case(key, "padded")
    labels = np.where(np.arange(4) < each.inputs["label_lengths"][:, None], each.inputs["labels"], -100)
    plain, padded = run_refloss(Call(each, torch.float64)), Call(each, torch.float64)
    padded.arguments["labels"] = torch.tensor(labels)
    assert run_refloss(padded)["loss"] == plain["loss"]
    if key == TDT:
        with pytest.raises((IndexError, RuntimeError)):
            LOSS_MAPPING[TDT](**padded.arguments)


def both(call: Call) -> tuple[Outcome, Outcome]:
    """Transformers' outcome and ours; losses agree."""
    with formula_precision():
        theirs = run_torch(call)
    ours = run_refloss(call)
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-12)
    return theirs, ours


def test_what_is_beyond_the_lengths_does_not_leak_here() -> None:
    """The second sample has 5 frames and 2 labels; beyond them there is no number."""
    each = case(TDT, "beyond", reduction="none")
    clean = run_refloss(Call(each, torch.float64))
    logits = each.inputs["token_logits"].copy()
    logits[1, 5:], logits[1, :, 3:] = np.nan, np.nan
    theirs, ours = both(Call(each._replace(inputs={**each.inputs, "token_logits": logits}), torch.float64))
    assert np.isnan(theirs["grad.token_logits"][1]).all()
    for name in ("grad.token_logits", "grad.duration_logits"):
        np.testing.assert_array_equal(ours[name], clean[name])
    assert not ours["grad.token_logits"][1, 5:].any()


def test_a_logit_of_minus_infinity_has_a_gradient_here() -> None:
    """Where all nodes are reached, there too; not where no blank leads out of the first one."""
    each = case(TDT, "masked", durations=(0, 1, 2), reduction="none")
    masked = each.inputs["token_logits"].copy()
    masked[0, 2, 1, 0] = -np.inf
    theirs, ours = both(Call(each._replace(inputs={**each.inputs, "token_logits": masked}), torch.float64))
    np.testing.assert_allclose(ours["grad.token_logits"], theirs["grad.token_logits"], rtol=1e-9, atol=1e-13)
    assert ours["grad.token_logits"][0, 2, 1, 0] == 0.0
    masked[0, 0, 0, 0] = -np.inf
    theirs, ours = both(Call(each._replace(inputs={**each.inputs, "token_logits": masked}), torch.float64))
    unknown = np.isnan(theirs["grad.token_logits"])
    assert unknown.any()
    assert np.isfinite(ours["grad.token_logits"]).all()
    np.testing.assert_allclose(
        ours["grad.token_logits"][~unknown], theirs["grad.token_logits"][~unknown], rtol=1e-9, atol=1e-13
    )


def test_a_sample_without_frames() -> None:
    each = case(TDT, "no_frames", reduction="none")
    frames = np.array([7, 0, 6])
    theirs, ours = both(Call(each._replace(inputs={**each.inputs, "logit_lengths": frames}), torch.float64))
    assert ours["loss"][1] == INFINITY
    assert not theirs["grad.token_logits"][1].any()
    assert not ours["grad.token_logits"][1].any()


def test_the_mappings_take_the_same_keywords() -> None:
    call = Call(case(TDT, "keywords"), torch.float32)
    steps = call.arguments.pop("durations").tolist()
    theirs = LOSS_MAPPING[TDT](**call.arguments, durations=steps, vocab_size=6)
    ours = refloss.LOSS_MAPPING[TDT](**call.arguments, durations=steps, vocab_size=6)
    assert float(ours.loss) == pytest.approx(float(theirs.detach()), rel=1e-6)
