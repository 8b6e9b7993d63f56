"""What trainers call their policy losses, as keywords of refloss.policy_loss, and what else the trainers do.

    refloss.policy_loss(log_probs, old_log_probs, advantages, mask=mask, **refloss.POLICY_PRESETS["trl/dapo"])

A preset is how a trainer clips and what it divides by, with its own defaults or those that its documentation asks for.
What comes from the caller is not in it: the KL and its coefficient, weights of importance, and num_items, the
denominator of a batch that is computed in parts. POLICY_PRESETS.besides(name) says how that trainer fills them in, and
what it does that refloss does not: clamps, and small numbers that are added to denominators.

Sources: TRL 1.16 (GRPOTrainer, GRPOConfig), verl 0.9 (core_algos, ActorConfig), OpenRLHF 0.11 (PolicyLoss) and
Liger-Kernel 0.8 (LigerFusedLinearGRPOLoss), whose functions `conformance/test_peers.py` runs against the presets.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLIP = {"objective": "clip", "clip_low": 0.2, "clip_high": 0.2}
_SEQUENCE_CLIP = _CLIP | {"ratio": "sequence"}
# Only from above, at a ratio of 5.
_ONE_SIDED = {"objective": "cispo", "clip_low": None, "clip_high": 4.0}
_SAPO = {"objective": "sapo"}
_TOKENS = {"aggregation": "token-mean"}
# Divided by num_items, which has nothing to do with what counts.
_SUM = {"aggregation": "sum"}
_ALL = {"aggregation": "seq-mean-token-mean", "sequences": "all"}
_NON_EMPTY = {"aggregation": "seq-mean-token-mean", "sequences": "non-empty"}
# TRL and Liger cut the ratio itself; beyond 1 + clip_high that shows where A < 0 alone.
_DELTA = "with delta above 1 + clip_high: dual_clip=delta"

# verl's names of aggregations, and what it adds to them.
_VERL_MODES: dict[str, tuple[dict[str, Any], str]] = {
    "token-mean": (_TOKENS, "divides by num_items = batch_num_tokens/dp_size of the whole batch"),
    "token-sum": (_SUM, "multiplies by dp_size"),
    "seq-mean-token-sum": (
        {"aggregation": "seq-mean-token-sum", "sequences": "non-empty"},
        "divides by num_items = global_batch_size/dp_size",
    ),
    "seq-mean-token-mean": (
        _NON_EMPTY,
        "adds 1e-8 to the length of a sequence; divides by num_items = global_batch_size/dp_size",
    ),
    "seq-mean-token-sum-norm": (
        {"aggregation": "seq-mean-token-sum", "sequences": "non-empty"},
        "divides by num_items = sequences that are not empty times loss_scale_factor, by default the padded length T",
    ),
}
_VERL_KL = 'with use_kl_loss: kl="k3", kl_coef=0.001, ref − log p clamped to ±20 and the term to ±10'


class Preset(NamedTuple):
    """Keywords of refloss.policy_loss, and what the trainer does besides."""

    keywords: Mapping[str, Any]
    besides: str


def _trl() -> Iterator[tuple[str, Preset]]:
    kl = 'with beta > 0: kl="k3", kl_coef=beta, kl_ratio_weighted=True (use_bias_correction_kl)'
    tokens = (
        "num_items = tokens of the generated batch, at least 1, over processes, times accumulated steps over "
        "steps_per_generation"
    )
    sequences = "a sequence without tokens is divided by 1, and counts"
    yield "grpo", Preset(_CLIP | _ALL, f"{sequences}; {_DELTA}; {kl}")
    yield "bnpo", Preset(_CLIP | _TOKENS, f"at least 1 token is divided by; {_DELTA}; {kl}")
    yield "dr_grpo", Preset(_CLIP | _SUM, f"num_items = B·max_completion_length, 512 by default; {_DELTA}; {kl}")
    yield "dapo", Preset(_CLIP | _TOKENS, f"{tokens}; {_DELTA}; {kl}")
    yield (
        "cispo",
        Preset(
            _ONE_SIDED | _TOKENS,
            "epsilon_high = 5.0, as its documentation asks, is the largest ratio: clip_high = epsilon_high − 1; "
            f"without it that is epsilon = 0.2, and every ratio is cut to 0.2 (clip_high=-0.8); {tokens}; {kl}",
        ),
    )
    yield "sapo", Preset(_SAPO | _ALL, f"{sequences}; {kl}")
    yield (
        "gspo",
        Preset(
            {"objective": "clip", "ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4} | _ALL,
            'loss_type="grpo", importance_sampling_level="sequence" and the clips of its documentation; '
            f"{sequences}; {_DELTA}; {kl}",
        ),
    )


def _verl() -> Iterator[tuple[str, Preset]]:
    clamped = "log-ratios are clamped to ±20"
    losses = {
        "vanilla": (_CLIP | {"dual_clip": 3.0}, "token-mean", f"{clamped}, the dual clip is always on"),
        "gspo": (
            _SEQUENCE_CLIP,
            "seq-mean-token-mean",
            "log-ratios are cut at 10; the gradient of token t is that of sg(s)·p/sg(p), which is the same where "
            "advantages and weights are those of a sequence, and another where they are a token's",
        ),
        "cispo": ({"objective": "cispo", "clip_low": 0.2, "clip_high": 0.2}, "token-mean", clamped),
    }
    for name, (keywords, usual, besides) in losses.items():
        yield name, Preset(keywords | _VERL_MODES[usual][0], f"{besides}; {_VERL_MODES[usual][1]}; {_VERL_KL}")
        for mode, (aggregation, divides) in _VERL_MODES.items():
            yield f"{name}/{mode}", Preset(keywords | aggregation, f"{besides}; {divides}; {_VERL_KL}")
    divides = f"{_VERL_MODES['seq-mean-token-mean'][1]}, whatever loss_agg_mode is, which the KL follows"
    yield "sapo", Preset(_SAPO | _NON_EMPTY, f"{clamped}; {divides}; {_VERL_KL}")


def _openrlhf() -> Iterator[tuple[str, Preset]]:
    kl = "with kl.use_loss: a term of its own, always a mean over tokens, each estimate clamped to ±10"
    tokens, length = "num_items = tokens of the global batch over dp_size", "1e-8 is added to the length of a sequence"
    clamped = "log-ratios are clamped to ±20"
    yield "ppo", Preset(_CLIP | _TOKENS, f"{clamped}; {tokens}; {kl}")
    yield "ppo/token-mean", Preset(_CLIP | _TOKENS, f"{clamped}; {tokens}; {kl}")
    yield "ppo/seq-mean-token-mean", Preset(_CLIP | _NON_EMPTY, f"{clamped}; {length}; {kl}")
    yield (
        "gspo",
        Preset(_SEQUENCE_CLIP | _NON_EMPTY, f"always a mean over sequences; nothing is clamped; {length}; {kl}"),
    )


def _liger() -> Iterator[tuple[str, Preset]]:
    kl = 'beta = 0.04 unless it is set to 0: kl="k3", kl_coef=0.04, and kl_ratio_weighted with use_bias_correction_kl'
    tokens = "num_items = num_items_in_batch over processes where it is given, at least 1"
    sequences = "a sequence without tokens is divided by 1, and counts"
    yield "grpo", Preset(_CLIP | _ALL, f"{sequences}; {_DELTA}; {kl}")
    yield "bnpo", Preset(_CLIP | _TOKENS, f"at least 1 token is divided by; {_DELTA}; {kl}")
    yield "dr_grpo", Preset(_CLIP | _SUM, f"num_items = B·max_completion_length; {_DELTA}; {kl}")
    yield "dapo", Preset(_CLIP | _TOKENS, f"{tokens}; {_DELTA}; {kl}")
    yield (
        "cispo",
        Preset(
            _ONE_SIDED | _TOKENS,
            "epsilon_high = 5.0, as its documentation asks, is the largest ratio: clip_high = epsilon_high − 1; its "
            f"default of 0.2 cuts every ratio to 0.2 (clip_high=-0.8); {tokens}; {kl}",
        ),
    )
    yield "sapo", Preset(_SAPO | _ALL, f"{sequences}; {kl}")
    yield "gspo", Preset(_SEQUENCE_CLIP | _ALL, f'importance_sampling_level="sequence"; {sequences}; {_DELTA}; {kl}')


class Presets(Mapping[str, "Mapping[str, Any]"]):
    """Keywords of refloss.policy_loss by what trainers call their losses; nothing of it can be changed.

    besides(name) says what that trainer does that keywords do not.
    """

    def __init__(self, presets: Mapping[str, Preset]) -> None:
        self._presets = dict(presets)

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        return self._presets[name].keywords

    def __iter__(self) -> Iterator[str]:
        return iter(self._presets)

    def __len__(self) -> int:
        return len(self._presets)

    def __repr__(self) -> str:
        return f"Presets({', '.join(self)})"

    def besides(self, name: str) -> str:
        """What the trainer of a preset fills in, and what it does that refloss does not."""
        return self._presets[name].besides


POLICY_PRESETS = Presets(
    {
        f"{trainer}/{name}": Preset(MappingProxyType(dict(preset.keywords)), preset.besides)
        for trainer, presets in (("trl", _trl), ("verl", _verl), ("openrlhf", _openrlhf), ("liger", _liger))
        for name, preset in presets()
    }
)
