"""Others' preference losses against refloss, where they are installed: Liger-Kernel, TRL, torchtune, OpenRLHF."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import refloss
from conformance.peer_losses import (
    DESIRABLE,
    LIGER_ORPO,
    TRL_ORPO,
    liger_dpo,
    liger_free,
    liger_kto,
    openrlhf_dpo,
    torchtune_dpo,
    torchtune_rso,
    trl_dpo,
    trl_free,
    trl_kto,
)
from conformance.test_peers import theirs_of

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.filterwarnings("ignore")

Pair = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def pairs() -> Pair:
    """Chosen, rejected, and the same of a reference: sums over tokens."""
    random = np.random.default_rng(20)
    chosen, rejected = -random.gamma(3.0, 4.0, (2, 6))
    near = random.standard_normal((2, 6))
    return tuple(torch.tensor(each) for each in (chosen, rejected, chosen + near[0], rejected + near[1]))  # type: ignore[return-value]


SMOOTHED: dict[str, Any] = {"beta": 0.3, "label_smoothing": 0.1}
BETA: dict[str, Any] = {"beta": 0.3}
SIMPO = liger_free("simpo_loss", "LigerFusedLinearSimPOFunction")
CPO = liger_free("cpo_loss", "LigerFusedLinearCPOFunction")
TRL_CPO = trl_free("cpo", "cpo_loss")
CASES: list[tuple[str, Callable[..., Any], dict[str, Any], dict[str, Any]]] = [
    *(
        (f"liger-{kind}", liger_dpo, {"loss_type": kind} | options, {"kind": kind} | options)
        for kind, options in (
            *((each, BETA) for each in ("sigmoid", "hinge", "nca_pair", "sppo_hard", "apo_zero", "apo_down")),
            ("discopop", BETA),
            ("robust", SMOOTHED),
            ("exo_pair", SMOOTHED),
        )
    ),
    ("liger-simpo", SIMPO, BETA | {"gamma": 0.5}, {"kind": "simpo", "gamma": 0.5} | BETA),
    ("liger-simpo-smoothed", SIMPO, SMOOTHED | {"gamma": 0.5}, {"kind": "simpo", "gamma": 0.5} | SMOOTHED),
    ("liger-cpo", CPO, SMOOTHED, {"kind": "sigmoid"} | SMOOTHED),
    *(
        (f"trl-{kind}", trl_dpo, {"loss_type": kind} | options, {"kind": kind} | options)
        for kind, options in (
            *((each, BETA) for each in ("sigmoid", "hinge", "ipo", "nca_pair", "sppo_hard", "apo_zero", "apo_down")),
            ("discopop", BETA),
            ("robust", SMOOTHED),
            ("exo_pair", SMOOTHED),
        )
    ),
    *(
        (f"trl-cpo-{kind}", TRL_CPO, {"loss_type": kind, "alpha": 0.0, "simpo_gamma": 0.5} | SMOOTHED, keywords)
        for kind, keywords in (
            ("sigmoid", {"kind": "sigmoid"} | SMOOTHED),
            ("simpo", {"kind": "simpo", "gamma": 0.5} | SMOOTHED),
            ("hinge", {"kind": "hinge"} | BETA),
            ("ipo", {"kind": "ipo"} | BETA),
        )
    ),
    ("torchtune-dpo", torchtune_dpo, SMOOTHED, {"kind": "sigmoid"} | SMOOTHED),
    ("torchtune-rso", torchtune_rso, {"gamma": 0.3}, {"kind": "hinge", "beta": 0.3}),
    ("openrlhf-dpo", openrlhf_dpo, SMOOTHED, {"kind": "sigmoid"} | SMOOTHED),
    ("openrlhf-ipo", openrlhf_dpo, BETA | {"ipo": True}, {"kind": "ipo"} | BETA),
]
_WITHOUT_REFERENCE = ("liger-simpo", "liger-cpo", "trl-cpo")
# A float32 constant in what is float64 otherwise: log ε and log(1 − ε).
_COARSE = {"liger-exo_pair": 1e-6, "trl-exo_pair": 1e-6}


@pytest.mark.parametrize(("name", "function", "options", "keywords"), CASES, ids=[each[0] for each in CASES])
def test_preferences(
    name: str, function: Callable[..., Any], options: dict[str, Any], keywords: dict[str, Any]
) -> None:
    given = pairs()
    theirs = [theirs_of(function, *given, of=i, **options) for i in range(2)]
    ours = refloss.preference_loss(*(given[:2] if name.startswith(_WITHOUT_REFERENCE) else given), **keywords)
    np.testing.assert_allclose(theirs[0][0], ours.loss, rtol=_COARSE.get(name, 1e-12))
    for (_, gradient), argument in zip(theirs, ("chosen_log_probs", "rejected_log_probs"), strict=True):
        expected = ours.grads[argument]
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=_COARSE.get(name, 1e-12) * np.abs(expected).max())


def test_the_odds_ratio_of_liger() -> None:
    """It adds −w, the loss of the chosen answer, elsewhere."""
    ordinary = -torch.tensor([0.7, 1.5], dtype=torch.float64), -torch.tensor([1.1, 0.4], dtype=torch.float64)
    theirs, gradient = theirs_of(LIGER_ORPO, *ordinary)
    ours = refloss.preference_loss(*ordinary, kind="orpo")
    np.testing.assert_allclose(theirs - ordinary[0].mean().item(), ours.loss, rtol=1e-12)
    np.testing.assert_allclose(gradient - 0.5, ours.grads["chosen_log_probs"], rtol=1e-12)


@pytest.mark.parametrize("beta", [0.1, 0.4])
def test_the_odds_ratio_of_trl(beta: float) -> None:
    """In float32, as it computes; odds_ratio_loss is what is taken off the loss of the chosen answer."""
    chosen = torch.tensor([-0.7, -1.5, -0.2], dtype=torch.float64)
    rejected = torch.tensor([-1.1, -0.4, -3.0], dtype=torch.float64)
    both = [theirs_of(TRL_ORPO, chosen, rejected, of=i, beta=beta) for i in range(2)]
    ours = refloss.preference_loss(chosen, rejected, kind="orpo", beta=beta)
    np.testing.assert_allclose(-both[0][0] - chosen.numpy().mean(), ours.loss, rtol=1e-6)
    np.testing.assert_allclose(-both[0][1] - 1 / 3, ours.grads["chosen_log_probs"], rtol=1e-6)
    np.testing.assert_allclose(-both[1][1], ours.grads["rejected_log_probs"], rtol=1e-6)


WEIGHTS: dict[str, Any] = {"desirable_weight": 1.3, "undesirable_weight": 0.7}
KTO = [(liger_kto, BETA, 1e-6), (trl_kto, BETA, 1e-12), (trl_kto, BETA | WEIGHTS, 1e-12)]


@pytest.mark.parametrize("kl", [0.8, 0.0])
@pytest.mark.parametrize(("function", "options", "tolerance"), KTO, ids=["liger", "trl", "trl-weighted"])
def test_kto(function: Callable[..., Any], options: dict[str, Any], tolerance: float, kl: float) -> None:
    chosen, _, reference, _ = pairs()
    theirs, gradient = theirs_of(function, chosen, reference, kl, **options)
    ours = refloss.kto(chosen, reference, DESIRABLE.numpy(), kl, **options)
    np.testing.assert_allclose(theirs, ours.loss, rtol=tolerance)
    np.testing.assert_allclose(gradient, ours.grads["log_probs"], rtol=tolerance)
