"""Others' functions against refloss, where they are installed: TRL, Liger-Kernel, verl, OpenRLHF, torchtune, optax.

Those of `pip install "refloss[peers]"` are found, and others that happen to import; the rest is skipped. In float64,
so that what differs is the formula: docs/outside_users.md has the versions, docs/divergences.md what differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import refloss
from conformance import peers
from conformance.call import array
from conformance.peers import BETA, PRESET_LOSSES, Batch, UnavailableError, batch, num_items

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
    tensors = [each.detach().clone() if isinstance(each, torch.Tensor) else each for each in given]
    tensors[of].requires_grad_()
    try:
        loss = function(*tensors, **options)
    except UnavailableError as reason:
        pytest.skip(str(reason))
    (gradient,) = torch.autograd.grad(loss.sum(), tensors[of])
    return array(loss), array(gradient)


def policy_of(preset: str, given: Batch, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """What a library makes of a batch."""
    return theirs_of(lambda *each, **more: PRESET_LOSSES[preset](Batch(*each), **more), *given, **options)


def ours_of(preset: str, given: Batch, **keywords: Any) -> tuple[np.ndarray, np.ndarray]:
    """What refloss does with the preset's keywords."""
    arrays = {name: value.numpy() for name, value in given._asdict().items()}
    result = refloss.policy_loss(
        **arrays, **refloss.POLICY_PRESETS[preset], **keywords, num_items=num_items(preset, given)
    )
    return np.asarray(result.loss), result.grads["log_probs"]


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


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith("verl/gspo")])
def test_gspo_of_verl_where_advantages_are_those_of_tokens(preset: str) -> None:
    """Its gradient of a token has that token's advantage; that of the sequence's ratio has the mean of them."""
    given = batch(empty=False)
    given = given._replace(advantages=given.advantages[:, None] + torch.linspace(-0.2, 0.2, 7, dtype=torch.float64))
    (theirs, their_gradient), (ours, gradient) = policy_of(preset, given), ours_of(preset, given)
    np.testing.assert_allclose(theirs, ours, rtol=COARSE)
    assert np.abs(their_gradient - gradient).max() > 0.01 * np.abs(gradient).max()


def one_token(log_ratio: float, advantage: float, *, dtype: torch.dtype = torch.float64) -> Batch:
    """A token, and a second one of another sequence that is as likely as it was."""
    before, old = torch.full((2, 1), -30.0), torch.tensor([[-30.0 - log_ratio], [-30.0]])
    rest = before, torch.tensor([advantage, 0.0]), torch.ones(2, 1)
    return Batch(*(each.to(dtype) for each in (before, old, *rest)))


@pytest.mark.parametrize("preset", ["trl/cispo", "liger/cispo"])
def test_divergence_of_cispo_with_default_epsilons(preset: str) -> None:
    """epsilon_high is the largest ratio: left alone, each ratio is cut to 0.2, those of 1 too."""
    given = batch()._replace(old_log_probs=batch().log_probs)
    theirs = policy_of(preset, given, epsilon_high=0.2)
    cut = refloss.policy_loss(
        **{name: value.numpy() for name, value in given._asdict().items()},
        **{**refloss.POLICY_PRESETS[preset], "clip_high": -0.8},
    )
    assert_agree(theirs, (np.asarray(cut.loss), cut.grads["log_probs"]))
    _, uncut = ours_of(preset, given)
    np.testing.assert_allclose(theirs[1], 0.2 * uncut, rtol=1e-12)


@pytest.mark.parametrize("preset", ["verl/vanilla", "verl/sapo", "openrlhf/ppo"])
def test_divergence_of_clamped_log_ratios(preset: str) -> None:
    """Below −20 the gradient of verl and OpenRLHF is 0."""
    given = one_token(-21.0, 1.0)
    (_, theirs), (_, ours) = policy_of(preset, given), ours_of(preset, given)
    assert theirs[0, 0] == 0.0
    assert -1e-9 < ours[0, 0] < -1e-10


def test_divergence_of_clamped_kl() -> None:
    """verl's k3 ends at 10, with a gradient of 0; the exact one of ref − log p = 3 is e³ − 4."""
    given = one_token(0.0, 0.0)._replace(ref_log_probs=torch.tensor([[-27.0], [-30.0]], dtype=torch.float64))
    theirs, gradient = policy_of("verl/vanilla", given, kl=True, kl_loss_coef=1.0)
    ours, exact = ours_of("verl/vanilla", given, kl="k3", kl_coef=1.0)
    np.testing.assert_allclose([theirs, ours], [5.0, (np.e**3 - 4) / 2], rtol=1e-15)
    np.testing.assert_allclose([gradient[0, 0], exact[0, 0]], [0.0, (1 - np.e**3) / 2], rtol=1e-15)


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


@pytest.mark.parametrize(
    ("preset", "loss", "slopes"),
    [
        ("trl/dapo", True, True),
        ("liger/dapo", True, True),
        # The clamp of log-ratios has no gradient at NaN.
        ("verl/vanilla", False, False),
        ("verl/vanilla/seq-mean-token-sum", True, False),
        ("openrlhf/ppo", True, False),
        ("openrlhf/gspo", True, True),
    ],
)
def test_divergence_of_poisoned_tokens(preset: str, loss: bool, slopes: bool) -> None:
    """What does not count is multiplied by 0: where its log-probability is NaN, loss and gradients may be."""
    given = batch()
    poisoned = given._replace(log_probs=torch.where(given.mask > 0, given.log_probs, torch.nan))
    theirs, gradient = policy_of(preset, poisoned)
    assert np.isnan(theirs) == loss
    assert np.isnan(gradient).any() == slopes
    assert_agree(ours_of(preset, poisoned), ours_of(preset, given), 0.0)


@pytest.mark.parametrize(
    ("preset", "value"), [("trl/dapo", 0.0), ("liger/grpo", 0.0), ("verl/vanilla", np.nan), ("openrlhf/ppo", np.nan)]
)
def test_divergence_of_nothing(preset: str, value: float) -> None:
    """No token counts: TRL and Liger divide by 1, verl and OpenRLHF by 0. A mean over nothing is NaN."""
    given = batch()._replace(mask=torch.zeros(5, 7, dtype=torch.float64))
    np.testing.assert_array_equal(policy_of(preset, given)[0], value)
    expected = 0.0 if preset == "liger/grpo" else np.nan
    np.testing.assert_array_equal(ours_of(preset, given)[0], expected)


@pytest.mark.parametrize("preset", ["trl/dapo", "liger/dapo"])
def test_divergence_of_overflow(preset: str) -> None:
    """A ratio of e^100 in float32 is inf; where the clip holds the loss its gradient is 0·inf."""
    given = one_token(100.0, 1.0, dtype=torch.float32)
    (theirs, gradient), (ours, exact) = policy_of(preset, given), ours_of(preset, given)
    np.testing.assert_allclose(theirs, ours, rtol=1e-6)
    assert np.isnan(gradient[0, 0])
    assert exact[0, 0] == 0.0


def test_divergence_of_luspo_of_liger() -> None:
    """With a KL its losses are [B, T], and nothing masks them: tokens that do not count leak."""
    given = batch()
    options: dict[str, Any] = {"loss_type": "luspo", "sequence": True}
    arrays = {name: value.numpy() for name, value in given._asdict().items()}
    sums: dict[str, Any] = {"ratio": "sequence", "aggregation": "seq-mean-token-sum"}
    ours = refloss.policy_loss(**arrays, **sums)
    exact = np.asarray(ours.loss), ours.grads["log_probs"]
    assert_agree(theirs_of(_trl, *given, **options), exact)
    assert_agree(theirs_of(_liger, *given, beta=0.0, **options), exact)
    ours = refloss.policy_loss(**arrays, **sums, kl="k3", kl_coef=BETA)
    theirs, gradient = theirs_of(_liger, *given, **options)
    assert abs(theirs - ours.loss) > 0.1 * abs(ours.loss)
    assert gradient[arrays["mask"] == 0].any()
    assert_agree(
        theirs_of(_trl, *given, beta=BETA, use_bias_correction_kl=False, **options),
        (np.asarray(ours.loss), ours.grads["log_probs"]),
    )


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
