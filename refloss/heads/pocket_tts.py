"""Text to speech as in Pocket TTS: flow matching with Lagrangian self-distillation, and where speech ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from refloss import arrays, configuration
from refloss.cases import flow as cases
from refloss.heads.parts import flow_error_model
from refloss.kernels.elementwise.loop import Task
from refloss.kernels.elementwise.run import elementwise_loss, exact_total
from refloss.kernels.flow.run import Arrays, flow_term
from refloss.loss import loss
from refloss.losses.bce_with_logits import LOOP
from refloss.numerics.exact import Exact, exact, product, ratio, rounded
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import Argument, Parameter, Specification, configured, sigmoid_logits
from refloss.typing import ArrayLike, Backend, Configuration, Cotangents, DTypeLike, Gradients

COMPONENTS = ("flow_diagonal", "flow_distill", "eos")
# What a step has that distils.
DISTILLATION = ("jump_velocity", "jump_velocity_dt", "end_velocity", "start_times", "end_times", "jump_log_variance")
# What the residuals of either term are made of, and its logarithm of a variance.
TERMS = {
    "flow_diagonal": {"x": "velocity", "y": "noise", "z": "targets", "log_variance": "log_variance"},
    "flow_distill": {
        "x": "jump_velocity",
        "y": "jump_velocity_dt",
        "z": "end_velocity",
        "start": "start_times",
        "end": "end_times",
        "log_variance": "jump_log_variance",
    },
}
_DEFAULTS = {"lsd_diagonal_weight": 0.75, "lsd_distill_probability": 0.25, "eos_loss_weight": 0.1}
Upstream = tuple[float, Exact]  # a cotangent, and what it is multiplied by


def _values(shape: str, *, optional: bool = False) -> Argument:
    return Argument("values", differentiable=True, optional=optional, batched=False, shape=shape)


@loss(
    Specification(
        arguments={
            "velocity": _values("N D"),
            "targets": _values("F D"),
            "noise": _values("N D"),
            "log_variance": _values("N | N 1"),
            "eos_logits": replace(sigmoid_logits(on_gpu=False), batched=False),
            "eos_labels": Argument("mask", batched=False, shape="...", numbers=("bool", "integer", "float")),
            "jump_velocity": _values("N D", optional=True),
            "jump_velocity_dt": _values("N D", optional=True),
            "end_velocity": _values("N D", optional=True),
            "start_times": _values("N | N 1", optional=True),
            "end_times": _values("N | N 1", optional=True),
            "jump_log_variance": _values("N | N 1", optional=True),
        },
        parameters={
            **configured(
                "lsd_diagonal_weight",
                "lsd_distill_probability",
                "eos_loss_weight",
                "flow_loss_num_samples",
                on_command_line=False,
            ),
            "lsd_diagonal_weight": Parameter(float, (0.75, 0.5, 1.0)),
            "lsd_distill_probability": Parameter(float, (0.25, 0.7)),
            "eos_loss_weight": Parameter(float, (0.1, 2.0, 0.0)),
            "flow_loss_num_samples": Parameter(int, structural=True),
            "training": Parameter(bool, (True, False)),
        },
        positive=False,
        keys=("PocketTTSForConditionalGeneration", "GradiumPhononTTSForConditionalGeneration"),
        order=310,
        follows="transformers' PocketTTSForConditionalGenerationLoss",
        cases=cases.pocket_tts,
        bounds=flow_error_model.pocket_tts,
        draw=cases.draw_flow,
        mistakes=cases.mistaken,
        components=COMPONENTS,
    )
)
def pocket_tts(
    velocity: ArrayLike,
    targets: ArrayLike,
    noise: ArrayLike,
    log_variance: ArrayLike,
    eos_logits: ArrayLike,
    eos_labels: ArrayLike,
    config: Configuration = None,
    *,
    jump_velocity: ArrayLike | None = None,
    jump_velocity_dt: ArrayLike | None = None,
    end_velocity: ArrayLike | None = None,
    start_times: ArrayLike | None = None,
    end_times: ArrayLike | None = None,
    jump_log_variance: ArrayLike | None = None,
    lsd_diagonal_weight: float | None = None,
    lsd_distill_probability: float | None = None,
    eos_loss_weight: float | None = None,
    flow_loss_num_samples: int | None = None,
    training: bool = True,
    grad_output: Cotangents = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Lagrangian self-distillation and the end of speech, as transformers' PocketTTSForConditionalGenerationLoss.

    With n noise draws for each of F frames, N = n·F rows of D numbers, row i of frame i mod F, and X the data of a row:

        x_t = t·X + (1 − t)·noise,   v(x; s, t) = flow_head(x, conditions, times=[s, t]),   w = loss_weighting
        flow_diagonal = mean over rows of W(|v(x_t; t, t) − (X − noise)|², w(t, t)),   W(a, w) = a·e^w/D − w
        flow_distill = mean over rows of W(|v + (e − s)·∂v/∂e − v(x_e; e, e)|², w(s, e)),
            v = v(x_s; s, e),   x_e = x_s + (e − s)·v
        eos = mean over positions of softplus(−z) where speech ends, softplus(z) elsewhere
        L = λ·flow_diagonal + (1 − λ)/p·flow_distill + ε·eos

    without the second term in a step that has skipped distillation, which p is the probability of not to do; outside
    training p is 1. The modules are replaced by what they return, and what is drawn at random is given.

    With r a row's residual, κ = grad_output·λ/N, or ·(1 − λ)/(p·N), and G = 2κ·e^w/D, every array has its partial
    derivative: G·r of velocity and noise, −G·r summed over draws of targets; G·r of jump_velocity, (e − s)·G·r of
    jump_velocity_dt, −G·r of end_velocity, ±G·Σ r·∂v/∂e of the times; κ·(|r|²·e^w/D − 1) of the log-variances;
    ε·grad_output·(σ(z) − y)/positions of eos_logits.

    Held constant: all other arrays, as they are inputs of their own. What a module makes of noise, targets or times is
    the caller's to chain: transformers lets the gradient of end_velocity reach x_e, and so jump_velocity, but no
    parameter; see docs/speech_synthesis.md.

    Args:
        velocity: v(x_t; t, t) [N, D]; any float dtype and layout, as all arrays here.
        targets: X [F, D], normalised latents; N is flow_loss_num_samples·F.
        noise: [N, D].
        log_variance: w(t, t) [N] or [N, 1].
        eos_logits: z, any shape.
        eos_labels: of that shape; true, or not 0, where speech ends.
        config: object or mapping with lsd_diagonal_weight (λ), lsd_distill_probability (p), eos_loss_weight (ε) and
            flow_loss_num_samples (n).
        jump_velocity, jump_velocity_dt: v and ∂v/∂e [N, D], both results of torch.func.jvp. They and those that follow
            are all given, or none of them where the step has skipped distillation.
        end_velocity: v(x_e; e, e) [N, D].
        start_times, end_times: s and e, [N] or [N, 1].
        jump_log_variance: w(s, e), the same way.
        lsd_diagonal_weight, lsd_distill_probability, eos_loss_weight, flow_loss_num_samples: the same without a config,
            and before it; if neither says it, transformers' defaults 0.75, 0.25 and 0.1, and N/F.
        training: whether distillation may be skipped.
        grad_output: the total's upstream gradient, or a mapping from components to theirs: then the gradients are those
            of the components that it names.
        grad, grad_dtype, backend: as in refloss.cross_entropy.

    Returns:
        loss. components: "flow_diagonal", "flow_distill" (0 where it is skipped) and "eos", unweighted. grads: every
        float input.

    Edges:
        No frames or no positions: NaN. A residual of 0 has gradient 0 and leaves −w, however large e^w is, where torch
        has 0·inf = NaN.

    Raises:
        ValueError: a shape or an option that does not fit, some of the arrays of distillation without the others, none
        of them where it is never skipped. TypeError: a dtype that does not.
    """
    rows = {"velocity": velocity, "targets": targets, "noise": noise, "log_variance": log_variance}
    jumps = jump_velocity, jump_velocity_dt, end_velocity, start_times, end_times, jump_log_variance
    distilled = dict(zip(DISTILLATION, jumps, strict=True))
    given = {
        "lsd_diagonal_weight": lsd_diagonal_weight,
        "lsd_distill_probability": lsd_distill_probability,
        "eos_loss_weight": eos_loss_weight,
        "flow_loss_num_samples": flow_loss_num_samples,
    }
    settings = _settings(config, given, training=arrays.flag(training, "training"))
    is_distilled = _is_distilled(distilled, settings)
    tensors = _Tensors(rows | distilled | {"eos_logits": eos_logits}, Options(grad_output, grad, grad_dtype))
    labels = arrays.as_array(eos_labels, "eos_labels")
    _check_shapes(tensors.values, labels, settings.samples)
    upstream = _upstream(grad_output, settings.weights)
    count = exact(float(len(tensors.values["velocity"])))
    means: dict[str, Exact] = {}
    for name in TERMS if is_distilled else COMPONENTS[:1]:
        cotangent, weight = upstream[name]
        coefficient = ratio(product(exact(cotangent), weight), count)
        means[name] = ratio(flow_term(*tensors.term(TERMS[name]), coefficient, backend), count)
    means["eos"] = _end_of_speech(tensors, labels, upstream["eos"], backend)
    parts = [product(settings.weights[name], mean) for name, mean in means.items()]
    return LossResult(
        loss=np.float64(rounded(sum(parts))),
        grads=tensors.grads,
        components={name: np.float64(rounded(means.get(name, Fraction(0)))) for name in COMPONENTS},
    )


class _Settings(NamedTuple):
    """What a configuration comes to: the weights of the components, and how many rows a frame has, if that is said."""

    weights: dict[str, Exact]
    samples: int | None
    may_skip: bool


def _settings(config: Any, given: dict[str, Any], *, training: bool) -> _Settings:
    """What is given, else what a configuration has, else transformers' defaults."""
    known: dict[str, Any] = dict(_DEFAULTS)
    if config is not None:
        known = {
            "lsd_diagonal_weight": configuration.read(config, "lsd_diagonal_weight"),
            "lsd_distill_probability": configuration.read(config, "lsd_distill_probability"),
            "eos_loss_weight": configuration.read(config, "eos_loss_weight"),
            "flow_loss_num_samples": configuration.read(config, "flow_loss_num_samples"),
        }
    known |= {name: value for name, value in given.items() if value is not None}
    samples = known.pop("flow_loss_num_samples", None)
    diagonal, probability, eos = (arrays.number(known[name], name, finite=True, low=0.0) for name in _DEFAULTS)
    if probability > 1.0:
        raise ValueError(f"lsd_distill_probability is {probability}; expected a number in [0, 1]")
    probability = probability if training else 1.0
    return _Settings(
        {
            "flow_diagonal": exact(diagonal),
            "flow_distill": ratio(1 - Fraction(diagonal), exact(probability)),
            "eos": exact(eos),
        },
        None if samples is None else arrays.integer(samples, "flow_loss_num_samples", low=1),
        may_skip=probability < 1.0,
    )


def _is_distilled(given: Mapping[str, Any], settings: _Settings) -> bool:
    """Whether the arrays of distillation are there: all of them, or none in a step that may have skipped it."""
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        if not settings.may_skip:
            raise ValueError(
                f"{missing[0]} is None; expected an array: distillation is skipped in training only, and where"
                " lsd_distill_probability is below 1"
            )
        return False
    if missing:
        raise ValueError(f"{missing[0]} is None; expected an array, as {_first_given(given)} is given")
    if not isinstance(settings.weights["flow_distill"], Fraction):
        raise ValueError("lsd_distill_probability is 0.0; expected a positive number, as distillation is given")
    return True


def _first_given(given: Mapping[str, Any]) -> str:
    return next(name for name, value in given.items() if value is not None)


class _Tensors:
    """Float inputs by name, and the gradients of those for which one is wanted."""

    def __init__(self, given: Mapping[str, Any], options: Options) -> None:
        there = {name: value for name, value in given.items() if value is not None or name not in DISTILLATION}
        self.values = {name: arrays.float_array(value, name) for name, value in there.items()}
        wanted = options.wanted(list(self.values))
        buffers = {name: options.buffer(value, name, wanted=name in wanted) for name, value in self.values.items()}
        self.grads = {name: buffer for name, buffer in buffers.items() if buffer is not None}

    def term(self, names: Mapping[str, str]) -> tuple[Arrays, Arrays]:
        """What a term of the flow is made of, and its gradients; numbers of rows without an axis of one."""
        read = Arrays(*(_flat(key, self.values.get(names.get(key, ""))) for key in Arrays._fields))
        return read, Arrays(*(_flat(key, self.grads.get(names.get(key, ""))) for key in Arrays._fields))


def _flat(key: str, array: np.ndarray | None) -> np.ndarray | None:
    is_flat = array is None or array.ndim == 1 or key in {"x", "y", "z"}
    return array if is_flat else array[..., 0]  # type: ignore[index]


def _check_shapes(values: Mapping[str, np.ndarray], labels: np.ndarray, samples: int | None) -> None:
    """Raise unless all arrays fit the first one."""
    shape = values["velocity"].shape
    if len(shape) != 2:
        raise ValueError(f"velocity has shape {shape}; expected [N, D]")
    for name in ("noise", *DISTILLATION[:3]):
        if name in values:
            arrays.check_shape(values[name], shape, name, "the shape of velocity")
    for name in ("log_variance", *DISTILLATION[3:]):
        if name in values and values[name].shape not in {shape[:1], (shape[0], 1)}:
            raise ValueError(f"{name} has shape {values[name].shape}; expected ({shape[0]},) or ({shape[0]}, 1)")
    frames = values["targets"].shape[0] if values["targets"].ndim else 0
    arrays.check_shape(values["targets"], (frames, shape[1]), "targets", "[F, D], with the last axis of velocity")
    draws = samples or (shape[0] // frames if frames else 1)
    if draws * frames != shape[0]:
        each = f"{draws} for each of targets {values['targets'].shape}"
        raise ValueError(f"velocity has shape {shape}; expected {draws * frames} rows, {each}")
    if labels.dtype != bool and not arrays.is_real(labels):
        raise TypeError(f"eos_labels has dtype {labels.dtype}; expected bool or numbers")
    arrays.check_shape(labels, values["eos_logits"].shape, "eos_labels", "the shape of eos_logits")


def _upstream(grad_output: Any, weights: Mapping[str, Exact]) -> dict[str, Upstream]:
    """The cotangent of every component: the total's with its weight, or the caller's own."""
    if not isinstance(grad_output, Mapping):
        total = arrays.number(grad_output, "grad_output")
        return {name: (total, weight) for name, weight in weights.items()}
    unknown = [name for name in grad_output if name not in weights]
    if unknown:
        raise ValueError(f"grad_output has {unknown[0]!r}; expected components: {', '.join(weights)}")
    own = {name: arrays.number(value, f"grad_output[{name!r}]") for name, value in grad_output.items()}
    return {name: (own.get(name, 0.0), Fraction(1)) for name in weights}


def _end_of_speech(tensors: _Tensors, labels: np.ndarray, upstream: Upstream, backend: str) -> Exact:
    """The mean binary cross-entropy of logits; their gradient is written."""
    x, gradient = tensors.values["eos_logits"], tensors.grads.get("eos_logits")
    cotangent, weight = upstream
    task = Task(
        loop=LOOP,
        parameters=(),
        input=x,
        target=(labels != 0).astype(np.float64),
        weight=None,
        factor=None,
        reduction="mean",
        divisor=x.size,
        cotangent=np.asarray(cotangent),
        input_gradient=gradient,
        target_gradient=None,
        weight_gradient=None,
    )
    if gradient is not None:
        elementwise_loss(task._replace(weight=np.broadcast_to(rounded(weight), x.shape)), backend)
    return ratio(exact_total(task, backend), exact(float(x.size)))
