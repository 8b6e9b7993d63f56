"""Others' losses of preferences and their distillation losses, as functions of tensors; peers.py has their policies'.

As there, a trainer is a stand-in that has what its loss reads, and every function is the library's own.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from conformance import peers

if TYPE_CHECKING:
    from collections.abc import Callable

K = 3


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


def liger_jsd(student: Any, teacher: Any, beta: float) -> Any:
    function = peers.imported("liger_kernel.chunked_loss.jsd_loss").LigerFusedLinearJSDFunction.distillation_loss_fn
    return function(student, teacher, beta=beta) / len(student)


def trl_jsd(student: Any, teacher: Any, beta: float, temperature: float = 1.0) -> Any:
    function = peers.imported("trl.experimental.gkd.gkd_trainer").GKDTrainer.generalized_jsd_loss
    labels = torch.zeros(student.shape[:-1], dtype=torch.long)
    return function(student, teacher, labels=labels, beta=beta, temperature=temperature)


def torchtune_loss(name: str) -> Callable[..., Any]:
    def loss(student: Any, teacher: Any, **options: Any) -> Any:
        labels = torch.zeros(len(student), dtype=torch.long)
        return getattr(peers.torchtune("modules.loss.kd_losses"), name)(**options)(student, teacher, labels)

    return loss


def named(by: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's log-probabilities of the K classes that somebody finds most probable, and those classes."""
    ids = torch.topk(by, K).indices
    return torch.log_softmax(teacher, -1).gather(-1, ids), ids


def trl_topk(student: Any, teacher: Any, *, tail: bool) -> Any:
    """Of the student's K most probable classes; an alpha of 0 is the forward KL."""
    function = peers.imported("trl.experimental.sdpo.loss_utils").compute_topk_self_distillation_loss
    return function(student, teacher, distillation_topk=K, distillation_alpha=0.0, distillation_add_tail=tail)


def verl_topk(student: Any, log_p: Any, ids: Any, *, chunked: bool = False, least: float | None = None) -> Any:
    """Of the classes that a teacher sends, as losses of tokens; in float32."""
    function = peers.imported("verl.trainer.distillation.fsdp.losses").compute_forward_kl_topk
    options = SimpleNamespace(use_chunked_topk=chunked, log_prob_min_clamp=least)
    nested = (torch.nested.as_nested_tensor([each], layout=torch.jagged) for each in (log_p, ids))
    return function(student[None], *nested, SimpleNamespace(distillation_loss=options), "thd")["distillation_losses"][0]


LIGER_ORPO = liger_free("orpo_loss", "LigerFusedLinearORPOFunction")
TRL_ORPO = trl_free("orpo", "odds_ratio_loss")
