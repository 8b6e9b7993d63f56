"""Losses of preferences against the same formulas in torch, in float64 and as people train; where libraries depart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

import refloss
from conformance.call import array
from conformance.comparison import FORMULA_TOLERANCE, scale
from conformance.error_model import with_rounding
from conformance.preferences import FUNCTIONS, discopop, log_odds
from conformance.reference import disagreements
from refloss.cases.preferences import KINDS, NAMES, pairs, sequences
from refloss.cases.source import Case
from refloss.testing.judging.judge import question_of

if TYPE_CHECKING:
    from collections.abc import Callable

# e^−x overflows in torch's, or x is so large that its sigmoids are 0 and 1: test_discopop_overflows.
UNLIKE = ("preference_loss-discopop-far-chosen",)
CASES = [
    case
    for case in (*pairs("preference_loss"), *sequences("kto"))
    if all(values.dtype in (np.float64, bool) for values in case.inputs.values()) and case.id not in UNLIKE
]
ORDINARY = [case for case in CASES if not any(word in case.id for word in ("far", "infinite", "odds"))]


def _run(case: Case, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]:
    """A case's tensors, and what torch makes of them."""
    tensors = {name: torch.tensor(values) for name, values in case.inputs.items()}
    given = {name: each.to(dtype) if each.is_floating_point() else each for name, each in tensors.items()}
    names = [name for name in given if name in (*NAMES[:2], "log_probs")]
    for name in names:
        given[name].requires_grad_()
    value = FUNCTIONS[case.function](**given, **case.parameters)
    cotangent = torch.as_tensor(case.grad_output, dtype=value.dtype)
    grads = torch.autograd.grad(value, [given[name] for name in names], cotangent)
    found = {"loss": array(value)} | {f"grad.{name}": array(each) for name, each in zip(names, grads, strict=True)}
    return given, found


def _ours(case: Case, given: dict[str, torch.Tensor]) -> tuple[Any, dict[str, np.ndarray]]:
    call: Callable[..., Any] = getattr(refloss, case.function)
    result = call(
        **{name: each.detach() for name, each in given.items()}, **case.parameters, grad_output=case.grad_output
    )
    grads = {f"grad.{name}": values.astype(np.float64) for name, values in result.grads.items()}
    return result, {"loss": np.asarray(result.loss)} | grads


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_formula(case: Case) -> None:
    """1 − σ and differences of slopes lose digits in torch, of the terms that they are made of."""
    given, expected = _run(case, torch.float64)
    _, found = _ours(case, given)
    if case.id == "preference_loss-orpo-odds":
        # Autograd multiplies 0 by infinity where 1 − e^p is 1e-300.
        assert np.isnan(expected["grad.chosen_log_probs"]).nonzero()[0].tolist() == [10]
        expected = {name: np.where(np.isnan(each), found[name], each) for name, each in expected.items()}
    terms = 2.0 * max(1.0, scale(np.asarray(case.grad_output))) if "apo" in case.id or case.function == "kto" else 0.0
    allowed = {name: np.asarray(FORMULA_TOLERANCE * max(scale(each), terms)) for name, each in expected.items()}
    assert not disagreements(found, expected, allowed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ORDINARY, ids=lambda case: case.id)
def test_as_shipped(case: Case, dtype: torch.dtype) -> None:
    given, expected = _run(case, dtype)
    result, found = _ours(case, given)
    held = {name: array(each) if each.is_floating_point() else each.numpy() for name, each in given.items()}
    asked = question_of(case._replace(inputs=held), result, str(dtype).removeprefix("torch."))
    bounds = {name: np.asarray(asked.bounds[name]) for name in expected}
    assert not disagreements(expected, found, with_rounding(bounds, found, given, dtype))


def test_every_kind_is_tried() -> None:
    assert {case.parameters.get("kind", "sigmoid") for case in ORDINARY} == {*KINDS}


def _pair(w: float, r: float, dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.tensor([value], dtype=dtype, requires_grad=True) for value in (w, r)]


def test_odds_as_they_are_written() -> None:
    """Liger: log1p(−e^p) is −inf for p = −1e-9 in float32, and so is the loss; ours is that of log 1e-9."""
    w, r = _pair(-1e-9, -1.0, torch.float32)
    theirs = -w - 0.1 * logsigmoid((w - torch.log1p(-torch.exp(w))) - (r - torch.log1p(-torch.exp(r))))
    (gradient,) = torch.autograd.grad(theirs.sum(), w)
    ours = refloss.preference_loss(w.detach(), r.detach(), kind="orpo")
    assert torch.isnan(gradient).all() or torch.isinf(gradient).all()
    assert np.isfinite(ours.grads["chosen_log_probs"]).all()
    rejected = -r - 0.1 * logsigmoid((r - torch.log1p(-torch.exp(r))) - (w - torch.log1p(-torch.exp(w))))
    assert torch.isinf(rejected).all()
    np.testing.assert_allclose(
        refloss.preference_loss(r.detach(), w.detach(), kind="orpo").loss,
        (-r.double() - 0.1 * logsigmoid(log_odds(r.double()) - log_odds(w.double()))).item(),
        rtol=1e-12,
    )


def test_certain_answers_have_no_gradient_in_torch() -> None:
    w, r = _pair(0.0, -1.0, torch.float64)
    (gradient,) = torch.autograd.grad((-w - 0.1 * logsigmoid(log_odds(w) - log_odds(r))).sum(), w)
    assert torch.isnan(gradient).all()
    ours = refloss.preference_loss(w.detach(), r.detach(), kind="orpo")
    odds = 1 / (math.e - 1)
    np.testing.assert_allclose(ours.grads["chosen_log_probs"], [-1 - 0.1 * odds], rtol=1e-14)


def test_discopop_overflows() -> None:
    """inf·0 from x = −100 in float32 on, and from −720 in float64; the loss is −x."""
    for x, dtype in ((-100.0, torch.float32), (-800.0, torch.float64)):
        assert torch.isnan(discopop(torch.tensor([x], dtype=dtype))).all()
        assert refloss.preference_loss([x], [0.0], kind="discopop", beta=1.0).loss == -x


def test_log_of_one_and_an_exponential_overflows() -> None:
    """OpenRLHF's LogExpLoss, log(1 + e^(r − c)), of rewards that are 100 apart in float32."""
    c, r = torch.tensor([-60.0]), torch.tensor([40.0])
    assert torch.isinf(torch.log(1 + torch.exp(r - c))).all()
    assert refloss.preference_loss(c, r, beta=1.0).loss == 100.0


def test_smoothing_of_nothing() -> None:
    """TRL's and Liger's sigmoid has no label_smoothing: theirs is ours without one, and not ours with one."""
    h = torch.tensor([2.0, -3.0], dtype=torch.float64)
    theirs = -logsigmoid(0.1 * h).mean().item()
    zero = np.zeros(2)
    assert refloss.preference_loss(h, zero).loss == pytest.approx(theirs, rel=1e-15)
    assert abs(refloss.preference_loss(h, zero, label_smoothing=0.1).loss - theirs) > 1e-3
    # A divergence from a distribution with a 0 is infinite, and its slope NaN; it is refused here.
    x = torch.tensor([1.0], requires_grad=True)
    infinite = x.sigmoid() * logsigmoid(x) + (-x).sigmoid() * (logsigmoid(-x) - torch.log(torch.tensor(0.0)))
    assert torch.isinf(infinite).all()
    with pytest.raises(ValueError, match=r"label_smoothing is 0\.0; expected a number"):
        refloss.preference_loss([1.0], [0.0], kind="exo_pair")


def test_kto_without_weights_and_with_a_negative_kl() -> None:
    """Liger subtracts the KL that it is given, and weighs nothing; TRL clamps it at 0."""
    values, reference, wanted = torch.tensor([-3.0, -4.0]), torch.tensor([-3.5, -3.0]), torch.tensor([True, True])
    theirs = (1 - torch.sigmoid(0.1 * (values - reference + 2.0))).mean().item()
    ours = refloss.kto(values, reference, wanted, -2.0)
    assert ours.loss == refloss.kto(values, reference, wanted, 0.0).loss
    assert abs(ours.loss - theirs) > 1e-3
    weighed = refloss.kto(values, reference, wanted, -2.0, desirable_weight=1.5)
    assert weighed.loss == pytest.approx(1.5 * ours.loss, rel=1e-15)
