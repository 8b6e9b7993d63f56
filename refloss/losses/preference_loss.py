"""Losses of preferences, of which of two answers was chosen: DPO and what was made of it.

With a = chosen − ref_chosen, b = rejected − ref_rejected, h = a − b, x = β·h, s(x) = log(1 + e^x) = −log σ(−x),
σ′(x) = σ(x)·σ(−x) and ε = label_smoothing:

    kind        ℓ                                              slope in x, times β for a and −β for b
    sigmoid     (1 − ε)·s(−x) + ε·s(x)                         −(1 − ε)·σ(−x) + ε·σ(x)
    simpo       the same of x − γ, without a reference         the same
    robust      ((1 − ε)·s(−x) − ε·s(x))/(1 − 2ε)              −((1 − ε)·σ(−x) + ε·σ(x))/(1 − 2ε)
    hinge       max(0, 1 − x)                                  −1 where 1 − x > 0, else 0
    exo_pair    σ(x)·log(σ(x)/(1 − ε)) + σ(−x)·log(σ(−x)/ε)    σ′(x)·(x − log((1 − ε)/ε))
    discopop    s(−x)·σ(−x/τ) + e^−x·σ(x/τ), τ = 0.05          −σ(−x)·σ(−x/τ) − e^−x·σ(x/τ)
                                                               + (e^−x − s(−x))·σ′(x/τ)/τ

                                                               ∂/∂a                     ∂/∂b
    ipo         (h − 1/2β)²                                    2·(h − 1/2β)             −∂/∂a
    nca_pair    s(−βa) + s(βa)/2 + s(βb)/2                     β·(σ(βa)/2 − σ(−βa))     β·σ(βb)/2
    sppo_hard   (a − 1/2β)² + (b + 1/2β)²                      2·(a − 1/2β)             2·(b + 1/2β)
    apo_zero    σ(−βa) + σ(βb)                                 −β·σ′(βa)                β·σ′(βb)
    apo_down    σ(βa) + σ(−x)                                  β·(σ′(βa) − σ′(x))       β·σ′(x)
    orpo        −w + β·s(−z), z = o(w) − o(l)                  −1 − β·σ(−z)/(1 − e^w)   β·σ(−z)/(1 − e^l)

with o(p) = p − log(1 − e^p) in orpo, whose w and l are means over tokens. Where these cancel, and what is computed
instead, is told beside each of them in losses/parts/preferences.py.

Counterparts: TRL's DPOTrainer, CPOTrainer ("simpo") and ORPOTrainer, Liger's chunked losses. Sources: Rafailov et al.,
"Direct Preference Optimization", 2023 (sigmoid); Mitchell, "A note on DPO with noisy preferences", 2023 (smoothing);
Chowdhury et al., "Provably Robust DPO", 2024 (robust); Zhao et al., "SLiC-HF", 2023 (hinge); Azar et al., "A General
Theoretical Paradigm", 2023 (ipo); Ji et al., "Towards Efficient Exact Optimization", 2024 (exo_pair); Chen et al.,
"Noise Contrastive Alignment", 2024 (nca_pair); Wu et al., "Self-Play Preference Optimization", 2024 (sppo_hard);
D'Oosterlinck et al., "Anchored Preference Optimization", 2024 (apo_*); Lu et al., "Discovering Preference Optimization
Algorithms", 2024 (discopop); Meng et al., "SimPO", 2024; Hong et al., "ORPO", 2024.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from refloss import arrays
from refloss.cases import preferences as cases
from refloss.error_model.preferences import of_pairs
from refloss.loss import loss
from refloss.losses.parts.preferences import REDUCTIONS, log_probs, loss_of_pairs, parameters_of
from refloss.options import Gradients, Options
from refloss.result import LossResult
from refloss.specification import REDUCTION, Argument, Elementwise, Parameter, log_probabilities

_PARAMETERS = REDUCTION | {
    "kind": Parameter(str, cases.KINDS, structural=True),
    "beta": Parameter(float, (0.1, 0.5)),
    "label_smoothing": Parameter(float, (0.0, 0.1, 0.3)),
    "gamma": Parameter(float, (0.0, 0.5)),
}


def _smoothing(value: float, kind: str) -> float:
    """ε of a kind."""
    smoothing = arrays.number(value, "label_smoothing")
    if kind not in cases.SMOOTHED:
        if smoothing != 0.0:
            smoothed = ", ".join(map(repr, cases.SMOOTHED))
            raise ValueError(f"label_smoothing is {smoothing}; expected 0 for kind {kind!r}: only {smoothed} have it")
        return smoothing
    least, end = ("(", "0.5)") if kind == "exo_pair" else ("[", "0.5)" if kind == "robust" else "1]")
    inside = smoothing > 0.0 if kind == "exo_pair" else smoothing >= 0.0
    if not (inside and (smoothing < 0.5 if end == "0.5)" else smoothing <= 1.0)):
        raise ValueError(f"label_smoothing is {smoothing}; expected a number in {least}0, {end} for kind {kind!r}")
    return smoothing


def _references(given: dict[str, Any], kind: str, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Both references, or none."""
    there = [name for name, value in given.items() if value is not None]
    if kind in cases.ALONE and there:
        raise ValueError(f"{there[0]} is given, and {kind!r} has no reference; expected None")
    if len(there) == 1:
        missing = next(name for name in given if name not in there)
        raise ValueError(f"{missing} is None and {there[0]} is not; expected both or neither")
    if not there:
        return None, None
    first, second = (log_probs(value, shape, name, "chosen_log_probs") for name, value in given.items())
    return first, second


@loss(
    Elementwise(
        arguments={
            "chosen_log_probs": log_probabilities(),
            "rejected_log_probs": log_probabilities(),
            "ref_chosen_log_probs": Argument("log-probabilities", optional=True, on_gpu=True),
            "ref_rejected_log_probs": Argument("log-probabilities", optional=True, on_gpu=True),
        },
        parameters=_PARAMETERS,
        order=92,
        in_parts=False,
        follows="the losses of TRL's DPOTrainer, CPOTrainer and ORPOTrainer",
        positive=False,
        cases=cases.pairs,
        draw=functools.partial(cases.draw_pairs, specified=_PARAMETERS),
        mistakes=cases.mistakes,
        magnitudes=of_pairs,
    )
)
def preference_loss(
    chosen_log_probs: Any,
    rejected_log_probs: Any,
    ref_chosen_log_probs: Any = None,
    ref_rejected_log_probs: Any = None,
    *,
    kind: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    gamma: float = 0.0,
    reduction: str = "mean",
    grad_output: Any = 1.0,
    grad: Gradients = True,
    grad_dtype: Any = None,
    out: np.ndarray | None = None,
    backend: str = "auto",
) -> LossResult:
    """Losses of pairs of answers by their log-probabilities: DPO, and what was made of it.

    With x_i = beta·((w_i − v_i) − (l_i − m_i)), for chosen w and rejected l of references v and m: "sigmoid" is ℓ_i =
    −(1 − ε)·log σ(x_i) − ε·log σ(−x_i), the other kinds are in docs/preferences.md with their gradients; "mean" divides
    the sum by the number of pairs. With c = grad_output over that, for "sigmoid": ∂/∂w_i = c·beta·(ε·σ(x_i) −
    (1 − ε)·σ(−x_i)), ∂/∂l_i = −∂/∂w_i. Held constant: the references.

    Args:
        chosen_log_probs, rejected_log_probs: [B], or any shape, of any float dtype and layout; sums over the tokens of
            a sequence, or means ("orpo" takes means, "simpo" usually does).
        ref_chosen_log_probs, ref_rejected_log_probs: the same of a reference; both absent, as in CPO, they count as 0.
            "simpo" and "orpo" have none.
        kind: "sigmoid" (DPO, cDPO), "robust", "hinge" (SLiC), "ipo", "exo_pair", "nca_pair", "sppo_hard", "apo_zero",
            "apo_down", "discopop", "simpo" or "orpo".
        beta: β, a positive number.
        label_smoothing: ε; in [0, 1] for "sigmoid" and "simpo", [0, 0.5) for "robust", (0, 0.5) for "exo_pair"; no
            other kind has one.
        gamma: the margin of "simpo": x_i = beta·(w_i − l_i) − gamma; no other kind has one.
        reduction: "mean", "sum" or "none".
        grad: True, False, or the names of the inputs whose gradients to compute.
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy; out is for chosen_log_probs' gradient.

    Returns:
        loss in nats ("ipo" and "sppo_hard": their squares). grads: "chosen_log_probs" and "rejected_log_probs".
        intermediates: "losses" of the pairs.

    Edges:
        The hinge where it is 0 has no gradient, as torch has it. Log-probabilities of −inf: the limits, or NaN where
        two of them are subtracted. "orpo" of a log-probability above 0: NaN; of w = 0: the limits, where torch's
        gradient is NaN. No pairs: "mean" is NaN.

    Raises:
        ValueError: a shape, an option or a buffer that does not fit. TypeError: a dtype that does not.
    """
    arrays.choice(kind, "kind", cases.KINDS)
    arrays.choice(reduction, "reduction", REDUCTIONS)
    chosen = arrays.float_array(chosen_log_probs, "chosen_log_probs")
    rejected = log_probs(rejected_log_probs, chosen.shape, "rejected_log_probs", "chosen_log_probs")
    given = {"ref_chosen_log_probs": ref_chosen_log_probs, "ref_rejected_log_probs": ref_rejected_log_probs}
    margin = arrays.number(gamma, "gamma", finite=True)
    if margin != 0.0 and kind != "simpo":
        raise ValueError(f"gamma is {margin}, and {kind!r} has none; 'simpo' has")
    smoothing = _smoothing(label_smoothing, kind)
    return loss_of_pairs(
        {"chosen_log_probs": chosen, "rejected_log_probs": rejected},
        None,
        _references(given, kind, chosen.shape),
        Options(grad_output, grad, grad_dtype, out, backend),
        parameters_of(kind, arrays.number(beta, "beta", finite=True, positive=True), smoothing, margin),
        reduction=reduction,
    )
