"""Others' preference losses against refloss, where they are installed: Liger-Kernel, TRL, torchtune, OpenRLHF."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import refloss
from conformance import peers
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


def liger_dpo(chosen: Any, rejected: Any, ref_chosen: Any, ref_rejected: Any, **options: Any) -> Any:
    function = peers.imported("liger_kernel.chunked_loss.dpo_loss").LigerFusedLinearDPOFunction.preference_loss_fn
    target = torch.zeros(2 * len(chosen), 1)
    return function(chosen, rejected, target, ref_chosen, ref_rejected, **options)[0]


def liger_free(module: str, name: str) -> Callable[..., Any]:
    """A preference loss without a reference."""

    def loss(chosen: Any, rejected: Any, *_: Any, **options: Any) -> Any:
        function = getattr(peers.imported(f"liger_kernel.chunked_loss.{module}"), name).preference_loss_fn
        return function(chosen, rejected, torch.zeros(2 * len(chosen), 1), **options)[0]

    return loss


def trl_dpo(chosen: Any, rejected: Any, ref_chosen: Any, ref_rejected: Any, **options: Any) -> Any:
    """DPOTrainer._compute_loss of answers of one token, whose log-probabilities a stand-in for a model returns."""
    trainer, config = peers.imported("trl.trainer.dpo_trainer"), peers.imported("trl.trainer.dpo_config")
    arguments = SimpleNamespace(**peers.defaults(config.DPOConfig) | options)
    kind = options.get("loss_type", "sigmoid")
    self = SimpleNamespace(
        args=arguments,
        accelerator=peers.OneProcess(),
        model=SimpleNamespace(training=True),
        beta=arguments.beta,
        label_smoothing=arguments.label_smoothing,
        loss_types=[kind],
        loss_weights=[1.0],
        ld_alpha=None,
        aux_loss_enabled=False,
        use_weighting=False,
        f_divergence_type="reverse_kl",
        precompute_ref_logps=True,
        _metrics=peers.metrics(),
        _total_train_tokens=0,
        _tp_size=1,
    )
    mask = torch.tensor([[0, 1]]).expand(2 * len(chosen), 2)
    log_probs = torch.cat([chosen, rejected])[:, None]
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
    }
    nothing = torch.zeros_like(log_probs)
    outputs = SimpleNamespace(log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
    return trainer.DPOTrainer._compute_loss(self, lambda **_: outputs, inputs, False)


def trl_free(module: str, method: str) -> Callable[..., Any]:
    """A trainer's loss without a reference, of which the stand-in has the attributes that it is called with."""

    def loss(chosen: Any, rejected: Any, *_: Any, **options: Any) -> Any:
        self = SimpleNamespace(accelerator=peers.OneProcess(), **options)
        trainer = peers.imported(f"trl.experimental.{module}.{module}_trainer")
        return getattr(getattr(trainer, f"{module.upper()}Trainer"), method)(self, chosen, rejected)[0].mean()

    return loss


def torchtune_dpo(*given: torch.Tensor, **options: Any) -> Any:
    return peers.torchtune("rlhf.loss").DPOLoss(**options)(*given)[0].mean()


def torchtune_rso(*given: torch.Tensor, **options: Any) -> Any:
    return peers.torchtune("rlhf.loss").RSOLoss(**options)(*given)[0].mean()


def openrlhf_dpo(*given: torch.Tensor, **options: Any) -> Any:
    return peers.openrlhf("loss").DPOLoss(**options)(*given)[0]


SMOOTHED: dict[str, Any] = {"beta": 0.3, "label_smoothing": 0.1}
BETA: dict[str, Any] = {"beta": 0.3}
SIMPO = liger_free("simpo_loss", "LigerFusedLinearSimPOFunction")
CPO = liger_free("cpo_loss", "LigerFusedLinearCPOFunction")
TRL_CPO = trl_free("cpo", "cpo_loss")
TRL_ORPO = trl_free("orpo", "odds_ratio_loss")
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


@pytest.mark.parametrize("function", [liger_dpo, trl_dpo], ids=["liger", "trl"])
def test_divergence_of_label_smoothing(function: Callable[..., Any]) -> None:
    """TRL's and Liger's "sigmoid" takes label_smoothing and does not read it."""
    given = pairs()
    theirs, _ = theirs_of(function, *given, **SMOOTHED)
    np.testing.assert_allclose(theirs, refloss.preference_loss(*given, beta=0.3).loss, rtol=1e-12)
    assert abs(refloss.preference_loss(*given, **SMOOTHED).loss - theirs) > 0.01


def test_divergence_of_orpo_of_a_certain_answer() -> None:
    """log(1 − e^(−1e-18)) is −41.4; Liger rounds 1 − e^x first, and has log 0."""
    orpo = liger_free("orpo_loss", "LigerFusedLinearORPOFunction")
    ordinary = -torch.tensor([0.7, 1.5], dtype=torch.float64), -torch.tensor([1.1, 0.4], dtype=torch.float64)
    theirs, gradient = theirs_of(orpo, *ordinary)
    ours = refloss.preference_loss(*ordinary, kind="orpo")
    # Liger adds −w, the loss of the chosen answer, elsewhere.
    np.testing.assert_allclose(theirs - ordinary[0].mean().item(), ours.loss, rtol=1e-12)
    np.testing.assert_allclose(gradient - 0.5, ours.grads["chosen_log_probs"], rtol=1e-12)
    certain = torch.tensor([-1e-18], dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64)
    _, gradient = theirs_of(orpo, *certain)
    exact = refloss.preference_loss(*certain, kind="orpo")
    assert np.isnan(gradient).all()
    assert np.isfinite(exact.loss)
    assert np.isfinite(exact.grads["chosen_log_probs"]).all()


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


def test_divergence_of_orpo_of_trl_next_to_0() -> None:
    """Rounded to float32 first, a chosen log-probability of −1e-46 is 0, where 1 − e^x has a logarithm of −inf."""
    chosen, rejected = torch.tensor([-1e-46], dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64)
    _, gradient = theirs_of(TRL_ORPO, chosen, rejected, beta=0.1)
    ours = refloss.preference_loss(chosen, rejected, kind="orpo").grads["chosen_log_probs"]
    assert np.isnan(gradient).all()
    np.testing.assert_allclose(ours, -1 - 0.1 / (np.e - 1), rtol=1e-12)


DESIRABLE = torch.tensor([True, False, True, True, False, False])


def liger_kto(log_probs: Any, reference: Any, kl: float, **options: Any) -> Any:
    """Without weights; of a float32 number for the KL."""
    function = peers.imported("liger_kernel.chunked_loss.kto_loss").LigerFusedLinearKTOFunction.preference_loss_fn
    return function(log_probs, DESIRABLE, torch.zeros(6, 1), reference, kl=torch.tensor(kl), **options)[0]


def trl_kto(log_probs: Any, reference: Any, kl: float, **options: Any) -> Any:
    """KTOTrainer._compute_loss of answers of one token; the others, of which its KL is made, are kl apart."""
    trainer, config = peers.imported("trl.trainer.kto_trainer"), peers.imported("trl.trainer.kto_config")
    arguments = SimpleNamespace(**peers.defaults(config.KTOConfig) | options)
    self = SimpleNamespace(
        args=arguments,
        accelerator=peers.OneProcess(),
        model=SimpleNamespace(training=True),
        beta=arguments.beta,
        loss_type=arguments.loss_type,
        desirable_weight=arguments.desirable_weight,
        undesirable_weight=arguments.undesirable_weight,
        calculate_KL=True,
        precompute_ref_logps=True,
        aux_loss_enabled=False,
        _compute_kl_logps=lambda *_: reference + kl,
        _metrics=peers.metrics(),
        _total_train_tokens=0,
        _tp_size=1,
    )
    mask = torch.tensor([[0, 1]]).expand(6, 2)
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "label": DESIRABLE,
        "ref_logps": reference,
        "ref_KL_logps": reference,
    }
    nothing = torch.zeros(6, 1)
    outputs = SimpleNamespace(log_probs=log_probs[:, None], entropy=nothing, mean_logits=nothing)
    return trainer.KTOTrainer._compute_loss(self, lambda **_: outputs, inputs, False)


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


def test_divergence_of_a_kl_below_0() -> None:
    """Liger takes it as it is; TRL and refloss take 0 for it."""
    chosen, _, reference, _ = pairs()
    ours = refloss.kto(chosen, reference, DESIRABLE.numpy(), -2.0, **BETA)
    assert ours.loss == refloss.kto(chosen, reference, DESIRABLE.numpy(), 0.0, **BETA).loss
    np.testing.assert_allclose(theirs_of(trl_kto, chosen, reference, -2.0, **BETA)[0], ours.loss, rtol=1e-12)
    assert abs(theirs_of(liger_kto, chosen, reference, -2.0, **BETA)[0] - ours.loss) > 1e-3
