"""What trainers and kernel libraries compute, called as functions of log-probabilities.

Their trainers are whole programs; here a stand-in has of a trainer only what its loss reads, with the defaults of its
configuration. Every function is the library's own, unchanged. None of these libraries is needed for anything else:
`pip install "refloss[peers]"` brings those that install beside the pinned torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import sys
import types
from collections import defaultdict
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

import refloss
from conformance.call import value_and_gradient

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.cases import Array

# Of a batch, where a trainer divides by a constant.
MAX_COMPLETION_LENGTH = 9
BETA = 0.04


class Batch(NamedTuple):
    """Sampled sequences: all [B, T], but one advantage for each sequence."""

    log_probs: torch.Tensor
    old_log_probs: torch.Tensor
    ref_log_probs: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor


def batch(*, empty: bool = True) -> Batch:
    """Sequences of several lengths, some ratios beyond every clip; the last one has no token where one may be empty."""
    random = np.random.default_rng(18)
    log_probs = -random.gamma(2.0, 0.6, (5, 7))
    lengths = np.array([7, 4, 1, 6, 0 if empty else 3])
    given = (
        log_probs,
        log_probs - 0.4 * random.standard_normal((5, 7)),
        log_probs - 0.5 * random.standard_normal((5, 7)),
        np.array([1.2, -0.8, 2.0, -1.5, 0.7]),
        (np.arange(7) < lengths[:, None]).astype(np.float64),
    )
    return Batch(*(torch.tensor(each) for each in given))


def one_token(log_ratio: float, advantage: float, *, dtype: torch.dtype = torch.float64) -> Batch:
    """A token, and a second one of another sequence that is as likely as it was."""
    before, old = torch.full((2, 1), -30.0), torch.tensor([[-30.0 - log_ratio], [-30.0]])
    rest = before, torch.tensor([advantage, 0.0]), torch.ones(2, 1)
    return Batch(*(each.to(dtype) for each in (before, old, *rest)))


class UnavailableError(ImportError):
    """A peer that is not installed, or does not import here."""


def imported(name: str) -> Any:
    """A module of a peer."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnavailableError(f"{name} cannot be imported: {error}") from error


def defaults(configuration: type) -> dict[str, Any]:
    """The fields of a dataclass, as they are where nobody sets them."""
    return {
        each.name: each.default for each in dataclasses.fields(configuration) if each.default is not dataclasses.MISSING
    }


class OneProcess:
    """An accelerator of one process."""

    num_processes, sync_gradients, is_main_process = 1, True, True
    device = torch.device("cpu")

    def gather(self, value: torch.Tensor) -> torch.Tensor:
        """Its own."""
        return value

    gather_for_metrics = gather

    def reduce(self, value: torch.Tensor, reduction: str = "sum") -> torch.Tensor:
        """Its own."""
        assert reduction == "sum"
        return value


def metrics() -> Any:
    """Where a trainer logs."""
    return defaultdict(lambda: defaultdict(list))


def trl_policy(given: Batch, *, sequence: bool = False, **options: Any) -> torch.Tensor:
    """GRPOTrainer._compute_loss."""
    trainer, config = imported("trl.trainer.grpo_trainer"), imported("trl.trainer.grpo_config")
    arguments = SimpleNamespace(**defaults(config.GRPOConfig) | {"steps_per_generation": 1} | options)
    level = "sequence" if sequence else "token"
    high = arguments.epsilon if arguments.epsilon_high is None else arguments.epsilon_high
    self = SimpleNamespace(
        args=arguments,
        accelerator=OneProcess(),
        model=SimpleNamespace(training=True),
        loss_type=arguments.loss_type,
        beta=arguments.beta,
        epsilon_low=arguments.epsilon,
        epsilon_high=high,
        max_completion_length=arguments.max_completion_length,
        importance_sampling_level=level,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        aux_loss_enabled=False,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        _metrics=metrics(),
        _get_per_token_logps_and_entropies=lambda *_, **__: (
            given.log_probs,
            torch.zeros_like(given.log_probs),
            None,
        ),
    )
    nothing = torch.zeros(len(given.advantages), 0, dtype=torch.long)
    inputs = {
        "prompt_ids": nothing,
        "prompt_mask": nothing,
        "completion_ids": torch.zeros_like(given.mask, dtype=torch.long),
        "completion_mask": given.mask,
        "advantages": given.advantages,
        "old_per_token_logps": given.old_log_probs,
        "ref_per_token_logps": given.ref_log_probs,
        "num_items_in_batch": given.mask.sum(),
    }
    loss: torch.Tensor = trainer.GRPOTrainer._compute_loss(self, None, inputs)
    return loss


def liger_policy(given: Batch, *, sequence: bool = False, **options: Any) -> torch.Tensor:
    """LigerFusedLinearGRPOFunction.ppo_loss_fn, on log-probabilities."""
    module = imported("liger_kernel.chunked_loss.grpo_loss")
    loss, _ = module.LigerFusedLinearGRPOFunction.ppo_loss_fn(
        given.log_probs,
        given.mask,
        given.advantages,
        given.mask,
        ref_per_token_logps=given.ref_log_probs,
        old_per_token_logps=given.old_log_probs,
        importance_sampling_level="sequence" if sequence else "token",
        **options,
    )
    return loss  # type: ignore[no-any-return]


def verl_policy(given: Batch, *, name: str, mode: str, kl: bool = False, **options: Any) -> torch.Tensor:
    """A registered policy loss, and the KL loss that verl's worker adds to it."""
    core, config = imported("verl.trainer.ppo.core_algos"), imported("verl.workers.config")
    actor = config.ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, **options)
    advantages = given.advantages if given.advantages.ndim == 2 else given.advantages[:, None].expand_as(given.mask)
    loss, _ = core.get_policy_loss_fn(name)(
        old_log_prob=given.old_log_probs,
        log_prob=given.log_probs,
        advantages=advantages,
        response_mask=given.mask,
        loss_agg_mode=mode,
        config=actor,
    )
    if kl:
        estimate = core.kl_penalty(given.log_probs, given.ref_log_probs, actor.kl_loss_type)
        loss = loss + actor.kl_loss_coef * core.agg_loss(estimate, given.mask, mode)
    return loss  # type: ignore[no-any-return]


def verl_value(values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, clip: float) -> Any:
    """compute_value_loss."""
    return imported("verl.trainer.ppo.core_algos").compute_value_loss(values, returns, old, mask, clip)[0]


@functools.cache
def openrlhf(module: str) -> Any:
    """A module of openrlhf.models, whose package imports DeepSpeed, of which losses need nothing."""
    spec = importlib.util.find_spec("openrlhf")
    if spec is None or not spec.submodule_search_locations:
        raise UnavailableError("openrlhf is not installed")
    package = types.ModuleType("openrlhf.models")
    package.__path__ = [f"{spec.submodule_search_locations[0]}/models"]
    stand_ins = {"openrlhf.models": package}
    if importlib.util.find_spec("deepspeed") is None:
        stand_ins["deepspeed"] = types.ModuleType("deepspeed")
    sys.modules.update(stand_ins)
    try:
        return imported(f"openrlhf.models.{module}")
    finally:
        for name in stand_ins:
            del sys.modules[name]


def openrlhf_policy(given: Batch, **options: Any) -> torch.Tensor:
    """PolicyLoss."""
    loss: torch.Tensor = openrlhf("loss").PolicyLoss(**options)(
        given.log_probs, given.old_log_probs, given.advantages[:, None], given.mask
    )[0]
    return loss


def torchtune(module: str) -> Any:
    """A module of torchtune, which warns of torchao as it is imported."""
    with contextlib.redirect_stderr(None):
        return imported(f"torchtune.{module}")


def _presets() -> dict[str, Callable[..., torch.Tensor]]:
    """The library's own function for each preset; its options are the library's."""
    found: dict[str, Callable[..., torch.Tensor]] = {}

    def add(preset: str, function: Callable[..., torch.Tensor], **fixed: Any) -> None:
        found[preset] = lambda given, **options: function(given, **fixed | options)

    lengths = {"max_completion_length": MAX_COMPLETION_LENGTH}
    for kind in ("grpo", "bnpo", "dr_grpo", "dapo", "sapo"):
        add(f"trl/{kind}", trl_policy, loss_type=kind, **lengths)
        add(f"liger/{kind}", liger_policy, loss_type=kind, beta=0.0, **lengths)
    add("trl/cispo", trl_policy, loss_type="cispo", epsilon_high=5.0)
    add("trl/gspo", trl_policy, loss_type="grpo", sequence=True, epsilon=3e-4, epsilon_high=4e-4)
    add("liger/cispo", liger_policy, loss_type="cispo", epsilon_high=5.0, beta=0.0)
    add("liger/gspo", liger_policy, loss_type="grpo", sequence=True, beta=0.0)
    modes = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
    for name, usual in (("vanilla", modes[0]), ("gspo", modes[3]), ("cispo", modes[0])):
        add(f"verl/{name}", verl_policy, name=name, mode=usual)
        for mode in modes:
            add(f"verl/{name}/{mode}", verl_policy, name=name, mode=mode)
    add("verl/sapo", verl_policy, name="sapo", mode="token-mean")
    add("openrlhf/ppo", openrlhf_policy)
    add("openrlhf/ppo/token-mean", openrlhf_policy)
    add("openrlhf/ppo/seq-mean-token-mean", openrlhf_policy, token_level_loss=False)
    add("openrlhf/gspo", openrlhf_policy, policy_loss_type="gspo")
    return found


PRESET_LOSSES = _presets()


def num_items(preset: str, given: Batch) -> float | None:
    """What a caller hands over as the denominator, where the trainer has one of its own."""
    rows, width = given.mask.shape
    if preset.endswith("/dr_grpo"):
        return float(rows * MAX_COMPLETION_LENGTH)
    if preset.endswith("-norm"):
        return float((given.mask.sum(1) > 0).sum() * width)
    return None


def policy_of(preset: str, given: Batch, **options: Any) -> tuple[Array, Array]:
    """A library's loss of a batch, and its gradient of the log-probabilities."""
    return value_and_gradient(lambda *each: PRESET_LOSSES[preset](Batch(*each), **options), *given)


def ours_of(preset: str, given: Batch, **keywords: Any) -> tuple[Array, Array]:
    """What refloss does with the preset's keywords."""
    options = {**refloss.POLICY_PRESETS[preset], **keywords}
    return refloss_policy(given, **options, num_items=num_items(preset, given))


def refloss_policy(given: Batch, **keywords: Any) -> tuple[Array, Array]:
    """refloss's loss of a batch, and its gradient."""
    result = refloss.policy_loss(**{name: value.numpy() for name, value in given._asdict().items()}, **keywords)
    return np.asarray(result.loss), result.grads["log_probs"]
