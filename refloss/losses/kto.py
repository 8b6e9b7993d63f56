"""Kahneman-Tversky optimisation: answers that are desirable or not, each on its own.

With ρ = log p − its reference and z = max(0, kl), y = β·(ρ − z), and σ′(y) = σ(y)·σ(−y):

    desirable:      ℓ = λ_D·(1 − σ(y)) = λ_D·σ(−y),    ∂ℓ/∂log p = −λ_D·β·σ′(y)
    undesirable:    ℓ = λ_U·(1 − σ(−y)) = λ_U·σ(y),    ∂ℓ/∂log p = λ_U·β·σ′(y)

Nothing cancels but ρ − z, a sum without error. kl, the divergence of the model from its reference as a batch estimates
it from answers to other prompts, is given, and a constant.

Counterpart: TRL's KTOTrainer. Source: Ethayarajh et al., "KTO: Model Alignment as Prospect Theoretic Optimization",
2024.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from refloss import arrays
from refloss.cases import preferences as cases
from refloss.error_model.preferences import of_sequences
from refloss.kernels.preferences.loop import Parameters
from refloss.loss import loss
from refloss.losses.parts.preferences import KTO, REDUCTIONS, loss_of_pairs
from refloss.options import Gradients, Options
from refloss.result import LossResult
from refloss.specification import REDUCTION, Argument, Elementwise, Parameter, log_probabilities

_WORTH_TRYING = REDUCTION | {
    "beta": Parameter(float, (0.1, 0.5)),
    "desirable_weight": Parameter(float, (1.0, 1.5)),
    "undesirable_weight": Parameter(float, (1.0, 0.25)),
}


def _flags(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Which sequences are desirable, as numbers."""
    array = arrays.as_array(value, "desirable")
    if array.dtype.kind not in "biu":
        raise TypeError(f"desirable has dtype {array.dtype}; expected bool, or integers 0 and 1")
    arrays.check_shape(array, shape, "desirable", "the shape of log_probs")
    if array.dtype.kind != "b":
        arrays.check_range(array, 0, 1, "desirable")
    return array.astype(np.float32)


@loss(
    Elementwise(
        arguments={
            "log_probs": log_probabilities(),
            "ref_log_probs": Argument("log-probabilities", on_gpu=True),
            "desirable": Argument("flags"),
        },
        parameters=_WORTH_TRYING | {"kl": Parameter(float, structural=True)},
        order=93,
        in_parts=False,
        follows="the loss of TRL's KTOTrainer",
        cases=cases.sequences,
        draw=functools.partial(cases.draw_sequences, specified=_WORTH_TRYING),
        mistakes=cases.mistakes,
        magnitudes=of_sequences,
    )
)
def kto(
    log_probs: Any,
    ref_log_probs: Any,
    desirable: Any,
    kl: float,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    reduction: str = "mean",
    grad_output: Any = 1.0,
    grad: Gradients = True,
    grad_dtype: Any = None,
    out: np.ndarray | None = None,
    backend: str = "auto",
) -> LossResult:
    """Kahneman-Tversky optimisation of answers that are desirable or not, as TRL's KTOTrainer has it.

    With y_i = beta·(log_probs_i − ref_log_probs_i − max(0, kl)): ℓ_i = λ_D·(1 − σ(y_i)) where desirable, and
    λ_U·(1 − σ(−y_i)) elsewhere; "mean" divides the sum by the number of sequences, whatever the weights. With c =
    grad_output over that: ∂/∂log_probs_i = −c·λ_D·beta·σ(y_i)·σ(−y_i) where desirable, and c·λ_U·beta·σ(y_i)·σ(−y_i)
    elsewhere. Held constant: ref_log_probs and kl.

    Args:
        log_probs: [B], or any shape, of any float dtype and layout: sums over the tokens of each sequence.
        ref_log_probs: the same of a reference.
        desirable: of the same shape, bool, or integers 0 and 1.
        kl: the estimate of the divergence from the reference, a number or an array without axes; below 0 it counts
            as 0.
        beta: β, a positive number.
        desirable_weight, undesirable_weight: λ_D and λ_U, not negative.
        reduction: "mean", "sum" or "none".
        grad: True, False, or "log_probs".
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy.

    Returns:
        loss, between 0 and the larger weight. grads: "log_probs". intermediates: "losses" of the sequences.

    Edges:
        A log-probability of −inf: a desirable sequence has the loss λ_D, an undesirable one 0; no gradient. No
        sequences: "mean" is NaN.

    Raises:
        ValueError: a shape, an option or a buffer that does not fit. TypeError: a dtype that does not.
    """
    arrays.choice(reduction, "reduction", REDUCTIONS)
    array = arrays.float_array(log_probs, "log_probs")
    reference = arrays.float_array(ref_log_probs, "ref_log_probs")
    arrays.check_shape(reference, array.shape, "ref_log_probs", "the shape of log_probs")
    center = arrays.number(kl, "kl", finite=True)
    return loss_of_pairs(
        {"log_probs": array},
        _flags(desirable, array.shape),
        (reference, None),
        Options(grad_output, grad, grad_dtype, out, backend),
        Parameters(
            KTO,
            arrays.number(beta, "beta", finite=True, positive=True),
            desirable=arrays.number(desirable_weight, "desirable_weight", finite=True, low=0.0),
            undesirable=arrays.number(undesirable_weight, "undesirable_weight", finite=True, low=0.0),
            kl=0.0 if center < 0.0 else center,
        ),
        reduction=reduction,
    )
