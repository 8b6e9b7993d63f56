"""Flow matching with self-distillation, and the inputs on which it is hard to round."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gmpy2
import numpy as np
from gmpy2 import exp, mpfr

import refloss
from tests.mpfr.definitions import ZERO, bce_with_logits
from tests.mpfr.elements import COTANGENTS, DISTANCES
from tests.mpfr.rounding import DTYPES, PRECISION, Comparison, Real, exact, real, reals

DIAGONAL = ("velocity", "noise", "targets", "", "", "log_variance")
DISTILLED = ("jump_velocity", "jump_velocity_dt", "end_velocity", "start_times", "end_times", "jump_log_variance")
WEIGHTS = {"lsd_diagonal_weight": 0.75, "lsd_distill_probability": 0.25, "eos_loss_weight": 0.1}
_SIZES = (3, 32, 5)


class Step(NamedTuple):
    """A call."""

    inputs: dict[str, np.ndarray]
    cotangent: float = 1.0
    parameters: dict[str, Any] = WEIGHTS


class Truth(NamedTuple):
    """The loss, its components, and gradients flat by name."""

    loss: Real
    components: dict[str, Real]
    grads: dict[str, list[Real]]


def row(arrays: list[list[Real]], start: Real, end: Real, w: Real) -> tuple[Real, list[list[Real]]]:
    """|x + (end − start)·y − z|²·e^w/D − w, and its derivatives."""
    x, y, z = arrays
    step, factor = end - start, exp(w) / len(x)
    r = [a + step * b - c for a, b, c in zip(x, y, z, strict=True)]
    weighted = gmpy2.fsum([each * each for each in r]) * factor
    slope = [2 * factor * each for each in r]
    along = gmpy2.fsum([a * b for a, b in zip(slope, y, strict=True)])
    negative = [-each for each in slope]
    return weighted - w, [slope, [step * each for each in slope], negative, [-along], [along], [weighted - 1]]


def truth(step: Step) -> Truth:
    """The definition."""
    weights = {name: real(value) for name, value in (WEIGHTS | step.parameters).items()}
    inputs, c = step.inputs, real(step.cotangent)
    values = {name: reals(array) for name, array in inputs.items()}
    components = {"flow_distill": ZERO}
    of_total = {
        "flow_diagonal": weights["lsd_diagonal_weight"],
        "flow_distill": (1 - weights["lsd_diagonal_weight"]) / weights["lsd_distill_probability"],
        "eos": weights["eos_loss_weight"],
    }
    grads: dict[str, list[Real]] = {}
    terms = {"flow_diagonal": DIAGONAL} | ({"flow_distill": DISTILLED} if "jump_velocity" in inputs else {})
    for component, names in terms.items():
        components[component] = _term(inputs, values, names, c * of_total[component], grads)
    labels = (inputs["eos_labels"] != 0).astype(float)
    ends = [bce_with_logits(x, t) for x, t in zip(values["eos_logits"], reals(labels), strict=True)]
    components["eos"] = gmpy2.fsum([end[0] for end in ends]) / len(ends)
    grads["eos_logits"] = [c * of_total["eos"] * end[1] / len(ends) for end in ends]
    return Truth(gmpy2.fsum([of_total[name] * value for name, value in components.items()]), components, grads)


def _term(
    inputs: dict[str, np.ndarray],
    values: dict[str, list[Real]],
    names: tuple[str, ...],
    cotangent: Real,
    grads: dict[str, list[Real]],
) -> Real:
    """The mean over rows; its gradients are added up."""
    count, size = inputs[names[0]].shape
    frames = len(inputs[names[2]])
    sums = {name: [ZERO] * inputs[name].size for name in names if name}
    found = []
    for i in range(count):
        at = (i, i, i % frames)
        arrays = [values[name][size * k : size * (k + 1)] for name, k in zip(names[:3], at, strict=True)]
        start, end = (values[names[3]][i], values[names[4]][i]) if names[3] else (ZERO, mpfr(1))
        value, slopes = row(arrays, start, end, values[names[5]][i])
        found.append(value)
        for name, slope, k in zip(names, slopes, (*at, i, i, i), strict=True):
            for j, each in enumerate(slope if name else []):
                sums[name][len(slope) * k + j] += cotangent * each / count
    grads |= sums
    return gmpy2.fsum(found) / count


def compare(step: Step) -> Iterator[Comparison]:
    """Gradients in every format, and the loss."""
    with gmpy2.context(precision=PRECISION):
        true = truth(step)
        for format_name, dtype in DTYPES.items():
            keywords: dict[str, Any] = {**step.inputs, **step.parameters, "grad_dtype": dtype}
            result = refloss.pocket_tts(**keywords, grad_output=step.cotangent)
            for name, got in result.grads.items():
                yield Comparison(name, format_name, got, exact(true.grads[name], got.shape), _describing(step, name))
        yield Comparison("loss", "float64", np.asarray([result.loss]), exact([true.loss], (1,)), lambda _: "")
        parts = np.asarray([result.components[name] for name in true.components])
        yield Comparison("components", "float64", parts, exact(true.components.values(), parts.shape), lambda _: "")


def _describing(step: Step, name: str) -> Callable[[int], str]:
    return lambda index: f"{name}[{index}] of {step.inputs[name].shape}, grad_output {step.cotangent!r}"


Draw = Callable[[np.random.Generator, int], Iterator[Step]]


def _drawn(generator: np.random.Generator, frames: int, samples: int, size: int) -> dict[str, np.ndarray]:
    rows = frames * samples
    times = np.sort(generator.random((2, rows)), axis=0)
    inputs = {
        "velocity": generator.standard_normal((rows, size)),
        "targets": generator.standard_normal((frames, size)),
        "noise": generator.standard_normal((rows, size)),
        "log_variance": generator.standard_normal(rows),
        "eos_logits": 4 * generator.standard_normal(frames + 1),
        "eos_labels": generator.random(frames + 1) < 0.3,
        "jump_velocity": generator.standard_normal((rows, size)),
        "jump_velocity_dt": 3 * generator.standard_normal((rows, size)),
        "end_velocity": generator.standard_normal((rows, size)),
        "start_times": times[0],
        "end_times": times[1],
        "jump_log_variance": generator.standard_normal(rows),
    }
    return {name: value if value.dtype == bool else value.astype(np.float32) for name, value in inputs.items()}


def _steps(generator: np.random.Generator, size: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """As many rows as make about so many elements of gradients."""
    for k, width in enumerate(_SIZES):
        samples = (4, 1, 3)[k]
        frames = max(1, size // (len(_SIZES) * samples * 6 * width)) | 1
        yield k, _drawn(generator, frames, samples, width)


def ordinary(generator: np.random.Generator, size: int) -> Iterator[Step]:
    for k, inputs in _steps(generator, size):
        yield Step(inputs, (1.0, *COTANGENTS)[k])


def skipped(generator: np.random.Generator, size: int) -> Iterator[Step]:
    for k, inputs in _steps(generator, size):
        yield Step({name: value for name, value in inputs.items() if name not in DISTILLED}, COTANGENTS[k])


def nearly_hit(generator: np.random.Generator, size: int) -> Iterator[Step]:
    """Residuals that cancel to all degrees, in float32."""
    for (k, inputs), shift in itertools.product(_steps(generator, size // 3), (0, 3, 6)):
        near = 1 + DISTANCES[(k + shift) % 8] * generator.uniform(-1, 1, inputs["velocity"].shape)
        wide = {name: value.astype(np.float64) for name, value in inputs.items()}
        samples = len(inputs["velocity"]) // len(inputs["targets"])
        hit = np.tile(wide["targets"], (samples, 1)) - wide["noise"]
        jump = wide["jump_velocity"] + (wide["end_times"] - wide["start_times"])[:, None] * wide["jump_velocity_dt"]
        changed = {"velocity": (hit * near).astype(np.float32), "end_velocity": (jump * near).astype(np.float32)}
        yield Step(inputs | changed, COTANGENTS[k])


def at_the_optimum(generator: np.random.Generator, size: int) -> Iterator[Step]:
    """Log-variances next to where their derivatives are 0."""
    for k, inputs in _steps(generator, size):
        samples = len(inputs["velocity"]) // len(inputs["targets"])
        wanted = np.tile(inputs["targets"], (samples, 1)).astype(np.float64) - inputs["noise"]
        mean = ((inputs["velocity"] - wanted) ** 2).mean(axis=1)
        yield Step(inputs | {"log_variance": -np.log(mean).astype(np.float32)}, COTANGENTS[k])


def far_weights(generator: np.random.Generator, size: int) -> Iterator[Step]:
    """Weights that leave float32, and float64 where the residuals make up for it."""
    for k, inputs in _steps(generator, size):
        factor = (30.0, 300.0, 600.0)[k]
        w = (factor * np.round(generator.uniform(-1, 1, len(inputs["velocity"])))).astype(np.float32)
        away = np.exp(-w.astype(np.float64) / 2)[:, None]
        wide = {name: inputs[name].astype(np.float64) * away for name in ("jump_velocity", "jump_velocity_dt")}
        wide["end_velocity"] = inputs["end_velocity"] * away
        yield Step(inputs | wide | {"jump_log_variance": w}, COTANGENTS[k])


def opposite_draws(generator: np.random.Generator, size: int) -> Iterator[Step]:
    """Two draws whose gradients of targets cancel, but for a little."""
    for k, width in enumerate(_SIZES):
        frames = max(1, size // (len(_SIZES) * 12 * width)) | 1
        inputs = _drawn(generator, frames, 2, width)
        residual = inputs["velocity"]
        near = 1 + DISTANCES[k] * generator.uniform(-1, 1, (frames, width))
        residual[frames:] = -residual[:frames] * np.where(generator.random((frames, width)) < 0.2, 1.0, near)
        inputs["log_variance"][frames:] = inputs["log_variance"][:frames]
        yield Step(inputs | {name: np.zeros_like(inputs[name]) for name in ("targets", "noise")}, COTANGENTS[k])


def other_formats(generator: np.random.Generator, size: int) -> Iterator[Step]:
    """Numbers of 53 bits, and other weights."""
    weights = {"lsd_diagonal_weight": 0.3, "lsd_distill_probability": 0.7, "eos_loss_weight": 1 / 3}
    for k, inputs in _steps(generator, size):
        noise = 1 + 2.0**-30 * generator.standard_normal()
        wide = {name: value if value.dtype == bool else value * noise for name, value in inputs.items()}
        yield Step(wide, COTANGENTS[k], weights)


KINDS: dict[str, Draw] = {
    "ordinary": ordinary,
    "skipped": skipped,
    "nearly hit": nearly_hit,
    "weights at their optimum": at_the_optimum,
    "far weights": far_weights,
    "draws that cancel": opposite_draws,
    "float64": other_formats,
}
