"""How far torch's own precision may take a tensor from its exact value.

Notation: a row x of C logits has the maximum m, distances a_j = m − x_j, Z = Σ e^(x_j − m) and ℓ_j = log p_j. Its
target mass is q_j = w_j·((1 − ε)·t_j + ε/C) with Q = Σ q_j; c is its cotangent over the normaliser. u is the unit
roundoff of the type that torch keeps *between* its operations, v of the type that it uses *inside* them: float32 for
bfloat16 and float16. transformers casts logits to float32 first: there u = v = 2^-24, and only the gradient is rounded
to the logits' dtype.

What torch does on a CPU (the first and the last, done step by step in float32, give torch's own bfloat16 bits):

    log_softmax   (x_j − m) − round_u(log(round_u(Σ e^(x_i − m)))), rounded to u; over an axis that is not the last,
                  only the end is rounded
    logsumexp     one operation after the other, each rounded to u: subtract, exp, sum, log, add
    nll_loss      the sum over rows, and for the mean the sum of weights, in u
    backward      G_j − e^ℓ_j·Σ G in v from the *stored* ℓ_j, rounded to u, where G is ∂L/∂ℓ, rounded to u

An absolute error of a is a relative error of e^a. So in first order, with C + 4 for a sum of C terms, an exp and a log:

    |δℓ_j|   ≤ v·(a_j + Σ p_i·a_i + C + 4) + u·(1 + log Z + |ℓ_j|)
    |δlse|   ≤ v·(C + 4) + u·(Σ p_i·a_i + 3 + log Z + |lse|)
    |δp_j|   ≤ p_j·(e^|δℓ_j| − 1) + ulp(p_j)
    |δL|     ≤ Σ q_j·(|δℓ_j| + (k·u + C·v)·|ℓ_j|), over the normaliser
    |δg_j|   ≤ |c|·((k·u + C·v)·(q_j + p_j·Q) + Q·p_j·(e^|δℓ_j| − 1)) + ulp(g_j)
    |δ∂t_j|  ≤ |c|·(1 − ε)·w_j·(|δℓ_j| + (k·u + C·v)·|ℓ_j|) + ulp(∂t_j)

k counts the roundings of a product (weight, 1 − ε, ε/C, cotangent, quotient, a sum of two parts: STEPS), and R more
where R rows are summed in u. An ulp of the output is half of one for torch's last rounding and half for refloss's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from conformance.call import array
from conformance.cases import CROSS_ENTROPY, IGNORED, Array
from conformance.reference import shifted_labels

if TYPE_CHECKING:
    from conformance.call import Call
    from conformance.reference import Outcome

STEPS = 8


class Rows(NamedTuple):
    """A call in float64, with the classes on the last axis; R rows stand for any number of axes."""

    logits: Array  # [R, C]
    target: Array  # [R, C], t; 0 in ignored rows
    mass: Array  # [R, C], q
    kept_weight: Array  # [C], (1 − ε)·w
    normaliser: float
    reduced: bool  # whether the loss is one number
    class_axis: int  # where the classes are in the call's own logits


class Softmax(NamedTuple):
    """What the bounds are made of; a masked class has distance and log-probability 0 here, for it has no error."""

    probability: Array  # [R, C]
    log_probability: Array  # [R, C], its magnitude
    distance: Array  # [R, C], a
    spread: Array  # [R, 1], Σ p·a
    log_total: Array  # [R, 1], log Z
    lse: Array  # [R, 1], its magnitude


@np.errstate(divide="ignore", invalid="ignore")  # where no row counts, the normaliser is 0 and nothing has a bound
def tolerances(call: Call, logit_error: Array | None = None) -> Outcome:
    """A bound for every element of every tensor of a call; logits that come from elsewhere have an error of their own.

    An error of d_j in x_j adds d_j + Σ p_i·d_i to |δℓ_j|, and Σ p_i·d_i to |δlse|.
    """
    rows = _cross_entropy_rows(call) if call.case.loss == CROSS_ENTROPY else _token_rows(call)
    softmax = _softmax(rows.logits)
    classes = rows.logits.shape[-1]
    between = torch.finfo(call.compute_dtype).eps / 2
    inside = torch.finfo(torch.promote_types(call.compute_dtype, torch.float32)).eps / 2
    summed = rows.mass[..., 0].size if rows.reduced else 0
    relative = (STEPS + summed) * between + classes * inside
    # A count of rows is exact, sums of other weights are not.
    is_count = summed <= 1 / between and bool(np.isin(rows.mass, (0.0, 1.0)).all())
    of_gradient = relative - (summed * between if is_count else 0.0)
    log_error = inside * (softmax.distance + softmax.spread + classes + 4)
    log_error += between * (1 + softmax.log_total + softmax.log_probability)
    shift = np.zeros(1)
    if logit_error is not None:
        own = np.moveaxis(logit_error, rows.class_axis, -1)
        shift = (softmax.probability * own).sum(axis=-1, keepdims=True)
        log_error = log_error + own + shift
    lse_error = shift + inside * (classes + 4) + between * (softmax.spread + 3 + softmax.log_total + softmax.lse)
    row_error = log_error + relative * softmax.log_probability
    loss = (np.abs(rows.mass) * row_error).sum(axis=-1)
    return {
        "loss": np.divide(loss.sum(), abs(rows.normaliser)) if rows.reduced else loss,
        **_gradient_tolerances(call, rows, softmax, log_error, of_gradient),
        "intermediate.lse": lse_error[..., 0],
        "intermediate.nll": (np.abs(rows.target) * row_error).sum(axis=-1),
        **_class_tolerances(call, rows, softmax, log_error),
        "intermediate.shift_labels": np.zeros(rows.logits.shape[:-1]),
    }


def _class_tolerances(call: Call, rows: Rows, softmax: Softmax, log_error: Array) -> Outcome:
    probability = softmax.probability * np.expm1(np.minimum(log_error, 1.0)) + ulp(
        softmax.probability, call.compute_dtype
    )
    shape = call.arguments["logits"].shape
    return {
        f"intermediate.{name}": np.moveaxis(error, -1, rows.class_axis).reshape(shape)
        for name, error in (("log_probabilities", log_error), ("probabilities", probability))
    }


def _gradient_tolerances(call: Call, rows: Rows, softmax: Softmax, log_error: Array, relative: float) -> Outcome:
    coefficient = np.abs(array(call.cotangent) / rows.normaliser)[..., None]
    mass, kept_weight = np.abs(rows.mass), np.abs(rows.kept_weight)
    pushed = mass.sum(axis=-1, keepdims=True) * softmax.probability
    # A probability whose logarithm has an error above 1 is 0 in every type; the bound needs no larger exponent.
    logits = relative * (mass + pushed) + pushed * np.expm1(np.minimum(log_error, 1.0))
    target = kept_weight * (log_error + relative * softmax.log_probability)
    values = {
        "grad.logits": (logits, np.maximum(mass, pushed) if (rows.mass < 0).any() else mass - pushed),
        "grad.target": (target, kept_weight * softmax.log_probability),
    }
    output = call.arguments["logits"].dtype
    shape = call.arguments["logits"].shape
    return {
        name: np.moveaxis(coefficient * error + ulp(coefficient * value, output), -1, rows.class_axis).reshape(shape)
        for name, (error, value) in values.items()
    }


def ulp(values: Array, dtype: torch.dtype) -> Array:
    """The distance between neighbours of a dtype around values."""
    limits = torch.finfo(dtype)
    _, exponent = np.frexp(np.maximum(np.abs(values), limits.smallest_normal))
    return np.asarray(limits.eps * np.exp2(exponent - 1.0))


def _softmax(logits: Array) -> Softmax:
    maximum = logits.max(axis=-1, keepdims=True, initial=-np.inf)
    distance = np.where(np.isneginf(logits), 0.0, maximum - logits)
    terms = np.where(np.isneginf(logits), 0.0, np.exp(-distance))
    total = terms.sum(axis=-1, keepdims=True)
    probability = terms / total
    return Softmax(
        probability=probability,
        log_probability=np.where(np.isneginf(logits), 0.0, distance + np.log(total)),
        distance=distance,
        spread=(probability * distance).sum(axis=-1, keepdims=True),
        log_total=np.log(total),
        lse=np.abs(maximum + np.log(total)),
    )


def _cross_entropy_rows(call: Call) -> Rows:
    logits = array(call.arguments["logits"])
    class_axis = min(1, logits.ndim - 1)
    target = array(call.arguments["target"])
    is_labels = "target" not in call.differentiable
    if not is_labels:
        target = np.moveaxis(target, class_axis, -1)
    weight = array(call.arguments["weight"]) if "weight" in call.arguments else np.ones(logits.shape[class_axis])
    return _rows(
        np.moveaxis(logits, class_axis, -1),
        _one_hot(target, weight.size, call.arguments.get("ignore_index", IGNORED)) if is_labels else target,
        weight,
        smoothing=call.arguments.get("label_smoothing", 0.0),
        is_labels=is_labels,
        reduction=call.arguments.get("reduction", "mean"),
        class_axis=class_axis,
    )


def _token_rows(call: Call) -> Rows:
    labels = array(shifted_labels(call))
    logits = array(call.arguments["logits"])
    classes: int = call.arguments.get("vocab_size") or logits.shape[-1]
    items = call.arguments.get("num_items_in_batch")
    rows = _rows(
        logits.reshape(*labels.shape, classes),
        _one_hot(labels, classes, call.arguments.get("ignore_index", IGNORED)),
        np.ones(classes),
        reduction="mean" if items is None else "sum",
        class_axis=logits.ndim - 1,
    )
    return rows if items is None else rows._replace(normaliser=float(items))


def _one_hot(labels: Array, classes: int, ignore_index: int) -> Array:
    """Rows of the unit matrix, and of 0 where a label is ignored."""
    return np.asarray(np.where(labels == ignore_index, -1, labels)[..., None] == np.arange(classes))


def _rows(
    logits: Array,
    target: Array,
    weight: Array,
    *,
    smoothing: float = 0.0,
    is_labels: bool = True,
    reduction: str,
    class_axis: int,
) -> Rows:
    counted = target.any(axis=-1, keepdims=True) if is_labels else np.ones((*target.shape[:-1], 1))
    count = (target * weight).sum() if is_labels else counted.size
    return Rows(
        logits=logits,
        target=target,
        mass=weight * ((1 - smoothing) * target + smoothing / weight.size) * counted,
        kept_weight=(1 - smoothing) * weight,
        normaliser=float(count) if reduction == "mean" else 1.0,
        reduced=reduction != "none",
        class_axis=class_axis,
    )
