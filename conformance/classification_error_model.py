"""How far torch's own precision may take elementwise losses, nll and the heads from their exact values.

Notation as in error_model: u is the unit roundoff of the type that torch computes in, v that of the type in which it
sums (float32 for bfloat16). N elements have weights w_i; c is the cotangent over the normaliser D. Every number that
torch computes on the way is a sum of terms with an error of k·u of their magnitudes, where k counts roundings (STEPS)
and, for a sum of n numbers, n·v more. So with T the sum of a value's magnitudes and G that of a derivative's,

    |δL|    ≤ (k·u + n·v)·Σ w_i·T_i / D + ulp
    |δg_i|  ≤ (k·u + n·v)·|c|·w_i·G_i + ulp
    |δℓ_i|  ≤ (k·u + v)·w_i·T_i + ulp, and |δσ_i| ≤ k·u·σ_i + ulp for what is not summed
    |δ∂w_i| ≤ (k·u + n·v)·|c|·(T_i + T̄) + ulp, with T̄ the mean where D = Σ w_i depends on weights, else 0

What the terms are is the table MAGNITUDES. Where they are larger than the result, torch subtracts: log1p(−p) from
log p, t from p, (1 − t)·x from log σ(x); there a kernel that is as good as torch may have lost digits. 1 − p in u is
an absolute error of u in its logarithm, hence the 1 among the terms. A step across a kink changes no value by more:
the pieces meet there. An ulp of the output is half of one for torch's last rounding and half for refloss's.

Heads are sums of these and of cross-entropies. Bilinear resampling gives sums of four products, whose error is that of
the logits in the cross-entropy; its adjoint gathers over the pixels that a logit reaches, and hands their errors on.
torch finds a pixel's place among h × w in float32: its weights are off by (h + w)·v, next to an edge on either side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from conformance import error_model
from conformance.call import array
from conformance.cases import CROSS_ENTROPY
from conformance.error_model import STEPS, ulp
from conformance.heads import HEADS, Part, parts, resampled
from conformance.reference import row_shapes

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.call import Call
    from conformance.cases import Array
    from conformance.reference import Outcome


class Magnitudes(NamedTuple):
    """Sums of the magnitudes of terms, for every element."""

    value: Array  # T
    first: Array  # G of the loss's first argument
    target: Array  # G of its second


def _difference(x: Array, t: Array, _: Call) -> Magnitudes:
    d = np.abs(x - t)
    return Magnitudes(d, np.ones_like(d), np.ones_like(d))


def _mse(x: Array, t: Array, _: Call) -> Magnitudes:
    d = np.abs(x - t)
    return Magnitudes(d * d, 2 * d, 2 * d)


def _smooth_l1(x: Array, t: Array, call: Call) -> Magnitudes:
    d, beta = np.abs(x - t), call.arguments.get("beta", 1.0)
    slope = np.minimum(d / beta, 1.0) if beta else np.ones_like(d)
    return Magnitudes(np.where(d < beta, slope * d / 2, d + beta / 2), slope, slope)


def _huber(x: Array, t: Array, call: Call) -> Magnitudes:
    d, delta = np.abs(x - t), call.arguments.get("delta", 1.0)
    slope = np.minimum(d, delta)
    return Magnitudes(np.where(d <= delta, d * d / 2, delta * (d + delta / 2)), slope, slope)


def _bce(p: Array, t: Array, _: Call) -> Magnitudes:
    positive, negative = np.abs(np.log(p)), np.abs(np.log1p(-p))
    value = np.abs(t) * np.minimum(positive, 100.0) + np.abs(1 - t) * np.minimum(negative, 100.0)
    return Magnitudes(value, np.abs(p - t) / np.maximum(p * (1 - p), 1e-12), positive + negative + 1)


def _bce_with_logits(x: Array, t: Array, call: Call) -> Magnitudes:
    given = call.arguments.get("pos_weight")
    factor = np.ones(()) if given is None else array(given)
    positive, negative = np.logaddexp(0.0, -x), np.logaddexp(0.0, x)
    value = np.abs((1 - t) * x) + (np.abs((factor - 1) * t) + 1) * positive
    pulled = np.abs(factor * t)
    slope = (pulled + 1 + np.abs(t)) * np.exp(-positive) + pulled
    return Magnitudes(value, slope, np.abs(x) if given is None else np.abs(factor) * positive + negative)


def _kl_div(x: Array, t: Array, call: Call) -> Magnitudes:
    if call.arguments.get("log_target", False):
        p = np.exp(t)
        return Magnitudes(p * np.abs(t - x), p, p * (np.abs(t - x) + 1))
    log_t = np.abs(np.log(t))
    return Magnitudes(np.where(t == 0, 0.0, t * log_t) + np.abs(t * x), t, log_t + 1 + np.abs(x))


MAGNITUDES: dict[str, Callable[[Array, Array, Call], Magnitudes]] = {
    "mse": _mse,
    "l1": _difference,
    "smooth_l1": _smooth_l1,
    "huber": _huber,
    "bce": _bce,
    "bce_with_logits": _bce_with_logits,
    "kl_div": _kl_div,
}


@np.errstate(all="ignore")  # what is infinite or undefined has no bound, and is compared as it is
def tolerances(call: Call) -> Outcome:
    """A bound for every element of every tensor of a call."""
    if call.case.loss in MAGNITUDES:
        return _elementwise(call)
    if call.case.loss == "nll":
        return _nll(call)
    return _head(call) if call.case.loss in HEADS else error_model.tolerances(call)


def _roundoff(call: Call) -> tuple[float, float]:
    inside = torch.promote_types(call.compute_dtype, torch.float32)
    return torch.finfo(call.compute_dtype).eps / 2, torch.finfo(inside).eps / 2


def _elementwise(call: Call) -> Outcome:
    names = list(call.case.inputs)
    x, t = (array(call.arguments[name]) for name in names[:2])
    magnitudes = MAGNITUDES[call.case.loss](x, t, call)
    given = call.arguments.get("weight")
    weight = np.abs(np.ones(x.shape) if given is None else np.broadcast_to(array(given), x.shape))
    by_weight = given is not None and call.case.loss in {"mse", "l1"}
    reduction = call.arguments.get("reduction", "mean")
    divisor = {
        "mean": np.asarray(weight.sum() if by_weight else x.size, dtype=float),
        "batchmean": np.asarray(x.shape[0] if x.ndim else 1, dtype=float),
    }.get(reduction, np.ones(()))
    coefficient = np.abs(array(call.cotangent)) / divisor
    value = weight * magnitudes.value / (1.0 if reduction == "none" else divisor)
    loss = value if reduction == "none" else value.sum()
    mean = loss if by_weight and reduction == "mean" else 0.0
    sums = {
        "loss": loss,
        f"grad.{names[0]}": coefficient * weight * magnitudes.first,
        f"grad.{names[1]}": coefficient * weight * magnitudes.target,
        "grad.weight": coefficient * (magnitudes.value + mean),
    }
    between, inside = _roundoff(call)
    relative = STEPS * between + x.size * inside
    own = {"intermediate.losses": weight * magnitudes.value, "intermediate.probabilities": 1 / (1 + np.exp(-x))}
    return {
        **{name: relative * magnitude + ulp(magnitude, call.compute_dtype) for name, magnitude in sums.items()},
        **{
            name: (STEPS * between + inside) * magnitude + ulp(magnitude, call.compute_dtype)
            for name, magnitude in own.items()
        },
    }


def _nll(call: Call) -> Outcome:
    x, labels = array(call.arguments["input"]), array(call.arguments["target"])
    class_axis = min(1, x.ndim - 1)
    rows = np.moveaxis(x, class_axis, -1)
    given = call.arguments.get("weight")
    counted = np.where(labels == call.arguments.get("ignore_index", -100), -1, labels)
    weight = np.ones(rows.shape[-1]) if given is None else np.abs(array(given))
    mass = (counted[..., None] == np.arange(rows.shape[-1])) * weight
    reduction = call.arguments.get("reduction", "mean")
    divisor = mass.sum() if reduction == "mean" else np.ones(())
    value = np.where(mass == 0, 0.0, mass * np.abs(rows)).sum(axis=-1) / divisor
    coefficient = np.abs(array(call.cotangent)) / divisor
    sums = {
        "loss": value if reduction == "none" else value.sum(),
        "grad.input": np.moveaxis(coefficient[..., None] * mass, -1, class_axis),
    }
    between, inside = _roundoff(call)
    relative = (STEPS + (1 if reduction == "none" else value.size)) * between + x.size * inside
    return {name: relative * magnitude + ulp(magnitude, call.compute_dtype) for name, magnitude in sums.items()}


def _head(call: Call) -> Outcome:
    """Losses of parts added up, gradients and intermediates under the head's names."""
    result: Outcome = {"loss": np.zeros(())}
    for part in parts(call):
        resized = "upsampled_logits" in part.intermediates
        bounds = _resampled(call, part) if resized else tolerances(part.call)
        result["loss"] = result["loss"] + abs(part.scale) * bounds["loss"]
        source = call.arguments[part.source]
        first = next(iter(part.call.case.inputs))
        result[f"grad.{part.source}"] = bounds[f"grad.{first}"].reshape(source.shape)
        own = {name: bound for name, bound in bounds.items() if name.startswith("intermediate.")}
        if part.call.case.loss == CROSS_ENTROPY:
            shapes = row_shapes(call, part)
            own = {f"intermediate.{name}": own[f"intermediate.{name}"].reshape(shapes[name]) for name in shapes}
        result.update({name.replace(".", f".{part.prefix}"): bound for name, bound in own.items()})
        for name, value in part.intermediates.items():
            empty = np.zeros(value.shape)
            result[f"intermediate.{part.prefix}{name}"] = bounds.get(f"intermediate.{name}", empty)
    return result


def _resampled(call: Call, part: Part) -> Outcome:
    """The bounds of a cross-entropy of resampled logits, and of what its gradient is on the way back."""
    between, inside = _roundoff(call)
    source = call.arguments[part.source].detach().double()
    size = part.call.arguments["logits"].shape[2:]
    around = functional.max_pool2d(source.abs(), 3, stride=1, padding=1)
    weights = STEPS + sum(source.shape[2:])
    rounding = ulp(array(part.call.arguments["logits"]), call.compute_dtype) / 2
    error = weights * inside * array(resampled(around, size)) + rounding
    bounds = error_model.tolerances(part.call, error)
    probability = torch.softmax(part.call.arguments["logits"].detach().double(), 1)
    labels = part.call.arguments["target"]
    counted = (labels != part.call.arguments["ignore_index"]).unsqueeze(1)
    hit = labels.unsqueeze(1) == torch.arange(source.shape[1]).reshape(1, -1, 1, 1)
    normaliser = counted.sum() if part.call.arguments["reduction"] == "mean" else 1.0
    terms = (probability + hit.double()) * counted * part.call.cotangent.double().abs() / normaliser
    pixels = max(1.0, float(np.prod(size) / np.prod(source.shape[2:])))
    gathered = _adjoint(source, size, terms)
    near = array(9 * functional.avg_pool2d(torch.as_tensor(gathered), 3, stride=1, padding=1))
    bounds["grad.logits"] = (
        _adjoint(source, size, torch.as_tensor(bounds["grad.logits"]))
        + STEPS * between * gathered
        + (weights + 4 * pixels) * inside * near
        + ulp(gathered, call.compute_dtype)
    )
    bounds["intermediate.upsampled_logits"] = error
    return bounds


def _adjoint(source: torch.Tensor, size: tuple[int, ...], pixels: torch.Tensor) -> Array:
    leaf = source.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(resampled(leaf, size), leaf, pixels)
    return array(gradient)
