"""Others' functions against refloss, where they are installed: TRL, Liger-Kernel, verl, OpenRLHF, torchtune, optax.

Those of `pip install "refloss[peers]"` are found, and others that happen to import; the rest is skipped. In float64,
so that what differs is the formula: docs/outside_users.md has the versions, conformance/ledger what differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import refloss
from conformance import peers
from conformance.call import value_and_gradient
from conformance.peers import BETA, PRESET_LOSSES, Batch, UnavailableError, batch, ours_of

if TYPE_CHECKING:
    from collections.abc import Callable

# They warn of one another's releases, as they are imported and as they are called.
pytestmark = pytest.mark.filterwarnings("ignore")

TOLERANCE = 1e-12  # of the largest element
# Some add 1e-8 to a length, and TRL's τ of SAPO are float32 numbers.
COARSE = 2e-7
PRESETS = list(refloss.POLICY_PRESETS)
KL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "trl/grpo": ({"beta": BETA}, {"kl": "k3", "kl_coef": BETA, "kl_ratio_weighted": True}),
    "trl/gspo": ({"beta": BETA}, {"kl": "k3", "kl_coef": BETA, "kl_ratio_weighted": True}),
    "trl/cispo": ({"beta": BETA, "use_bias_correction_kl": False}, {"kl": "k3", "kl_coef": BETA}),
    "liger/dapo": ({"beta": BETA}, {"kl": "k3", "kl_coef": BETA}),
    "liger/gspo": (
        {"beta": BETA, "use_bias_correction_kl": True},
        {"kl": "k3", "kl_coef": BETA, "kl_ratio_weighted": True},
    ),
    "verl/vanilla": ({"kl": True}, {"kl": "k3", "kl_coef": 0.001}),
    "verl/cispo/seq-mean-token-sum": ({"kl": True, "kl_loss_type": "k2"}, {"kl": "k2", "kl_coef": 0.001}),
    "verl/gspo": ({"kl": True, "kl_loss_type": "k1"}, {"kl": "k1", "kl_coef": 0.001}),
}


def theirs_of(function: Callable[..., Any], *given: Any, of: int = 0, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """A peer's loss, and its gradient of one tensor; skipped where the peer is not here."""
    try:
        return value_and_gradient(lambda *tensors: function(*tensors, **options), *given, of=of)
    except UnavailableError as reason:
        pytest.skip(str(reason))


def policy_of(preset: str, given: Batch, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """What a library makes of a batch; skipped where it is not here."""
    try:
        return peers.policy_of(preset, given, **options)
    except UnavailableError as reason:
        pytest.skip(str(reason))


def assert_agree(theirs: tuple[np.ndarray, ...], ours: tuple[np.ndarray, ...], tolerance: float = TOLERANCE) -> None:
    for a, b in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(initial=0.0))


def test_every_preset_has_its_function() -> None:
    assert PRESET_LOSSES.keys() == refloss.POLICY_PRESETS.keys()


@pytest.mark.parametrize("empty", [False, True], ids=["full", "empty"])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset: str, empty: bool) -> None:
    given = batch(empty=empty)
    tolerance = COARSE if preset.startswith(("verl", "openrlhf", "trl/sapo")) else TOLERANCE
    assert_agree(policy_of(preset, given), ours_of(preset, given), tolerance)


@pytest.mark.parametrize("preset", KL)
def test_kl(preset: str) -> None:
    options, keywords = KL[preset]
    given = batch()
    tolerance = COARSE if preset.startswith("verl") else TOLERANCE
    assert_agree(policy_of(preset, given, **options), ours_of(preset, given, **keywords), tolerance)


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
def test_divergence_of_the_kl_of_openrlhf(kl: Any) -> None:
    """A term of its own, in float32: a mean over tokens whatever the policy's is, each estimate within ±10."""
    given = batch()

    def loss(log_probs: torch.Tensor, reference: torch.Tensor) -> Any:
        estimate = peers.openrlhf("utils").compute_approx_kl(log_probs, reference, kl_estimator=kl)
        return peers.openrlhf("loss").aggregate_loss(estimate, given.mask)

    arrays = {name: value.numpy() for name, value in given._asdict().items()}
    arrays |= {"advantages": np.zeros(5), "old_log_probs": arrays["log_probs"]}
    by_tokens = refloss.policy_loss(**arrays, kl=kl, kl_coef=1.0)
    theirs = theirs_of(loss, given.log_probs, given.ref_log_probs)
    assert_agree(theirs, (np.asarray(by_tokens.loss), by_tokens.grads["log_probs"]), COARSE)
    by_sequences = refloss.policy_loss(**arrays, kl=kl, kl_coef=1.0, aggregation="seq-mean-token-mean")
    assert abs(theirs[0] - by_sequences.loss) > 0.01 * abs(by_sequences.loss)
    far = given.ref_log_probs + (11.0 if kl == "k3" else -11.0)
    _, gradient = theirs_of(loss, given.log_probs, far)
    assert not gradient.any()


def test_luspo() -> None:
    """TRL with a KL and without; Liger without: the ledger has what it does with one."""
    given = batch()
    options: dict[str, Any] = {"loss_type": "luspo", "sequence": True}
    keywords: dict[str, Any] = {"ratio": "sequence", "aggregation": "seq-mean-token-sum"}
    ours = peers.refloss_policy(given, **keywords)
    assert_agree(theirs_of(_trl, *given, **options), ours)
    assert_agree(theirs_of(_liger, *given, beta=0.0, **options), ours)
    ours = peers.refloss_policy(given, **keywords, kl="k3", kl_coef=BETA)
    assert_agree(theirs_of(_trl, *given, beta=BETA, use_bias_correction_kl=False, **options), ours)


def _trl(*given: torch.Tensor, **options: Any) -> torch.Tensor:
    return peers.trl_policy(Batch(*given), **options)


def _liger(*given: torch.Tensor, **options: Any) -> torch.Tensor:
    return peers.liger_policy(Batch(*given), **options)


def _values() -> tuple[torch.Tensor, ...]:
    random, mask = np.random.default_rng(19), batch().mask
    values = random.standard_normal((5, 7))
    near = values + 0.4 * random.standard_normal((5, 7))
    returns = random.standard_normal((5, 7))
    return (*(torch.tensor(each) for each in (values, near, returns)), mask)


def _torchtune_ppo(values: Any, old: Any, returns: Any, mask: Any, clip: float) -> Any:
    given = batch()
    loss = peers.torchtune("rlhf.loss").PPOLoss(value_clip_range=clip, value_coeff=1.0)
    same = given.old_log_probs, given.log_probs, given.advantages[:, None], old, values, returns
    return loss(*same, value_padding_masks=mask.bool())[0] - loss(*same, value_padding_masks=mask.bool())[1]


def _openrlhf_value(values: Any, old: Any, returns: Any, mask: Any, clip: float) -> Any:
    return peers.openrlhf("loss").ValueLoss(clip_eps=clip)(values, old, returns, mask)


@pytest.mark.parametrize(
    "function", [_torchtune_ppo, peers.verl_value, _openrlhf_value], ids=lambda each: each.__name__
)
@pytest.mark.parametrize("clip", [0.2, 0.5])
def test_values(function: Callable[..., Any], clip: float) -> None:
    values, old, returns, mask = _values()
    ours = refloss.value_loss(values, returns, old_values=old, mask=mask.numpy(), clip=clip)
    theirs = theirs_of(function, values, old, returns, mask, clip=clip)
    assert_agree(theirs, (np.asarray(ours.loss), ours.grads["values"]), COARSE)


def test_the_policy_of_torchtune() -> None:
    given = batch()

    def loss(log_probs: torch.Tensor) -> Any:
        nothing = torch.zeros_like(log_probs)
        same = given.old_log_probs, log_probs, given.advantages[:, None], nothing, nothing, nothing
        return peers.torchtune("rlhf.loss").PPOLoss(epsilon=0.1)(*same, padding_masks=given.mask.bool())[0]

    arrays = {name: value.numpy() for name, value in given._asdict().items()}
    ours = refloss.policy_loss(**arrays, clip_low=0.1)
    assert_agree(theirs_of(loss, given.log_probs), (np.asarray(ours.loss), ours.grads["log_probs"]), COARSE)
