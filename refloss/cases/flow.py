"""Golden and drawn cases of flow matching with self-distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.cases.draws import Drawn, Draws
from refloss.cases.formats import in_every_format, in_format
from refloss.cases.source import DTYPES, Case, Source

if TYPE_CHECKING:
    from collections.abc import Callable

Step = dict[str, Any]
_SAMPLES = (1, 2, 4)


def pocket_tts(function: str) -> list[Case]:
    """Steps with distillation and without, and rows at which a kernel breaks."""
    source = Source(310)
    step = _step(source, frames=3, samples=2, size=5)
    alone = _step(source, frames=4, samples=1, size=3)

    def case(name: str, inputs: Step, grad_output: float = -1.5, **parameters: Any) -> Case:
        return Case(f"{function}-{name}", function, dict(inputs), parameters, grad_output)

    return [
        *(in_format(case("any", step), name)._replace(id=f"{function}-{name}") for name in DTYPES),
        *(in_format(each, "float32") for each in _of_arguments(case, step, alone)),
        *in_every_format(_of_numbers(case, step)),
    ]


def _of_arguments(case: Callable[..., Case], step: Step, alone: Step) -> list[Case]:
    """What may be given in several ways."""
    return [
        case("columns", _as_columns(step), 3.0, flow_loss_num_samples=2),
        case("one-draw", alone, -0.1, lsd_diagonal_weight=0.5, lsd_distill_probability=0.7),
        case("diagonal-alone", step, 1.0, lsd_diagonal_weight=1.0),
        case("speech-goes-on", step, 5.0, eos_loss_weight=0.0),
        case("labels-are-numbers", step | {"eos_labels": 7 * step["eos_labels"].astype(np.int64)}, -2.0),
        case("times-that-meet", step | {"end_times": step["start_times"]}, -4.0),
    ]


def _of_numbers(case: Callable[..., Case], step: Step) -> list[Case]:
    """Options that show, and rows that leave little."""
    options = {"lsd_diagonal_weight": 0.5, "lsd_distill_probability": 0.7, "eos_loss_weight": 2.0}
    return [
        case("skipped", _without_distillation(step), 2.0),
        case("options", step, 1 / 3, **options),
        case("evaluation", step, 0.75, training=False),
        case("sure-ends", step | {"eos_logits": 40.0 * step["eos_logits"]}, 100.0, eos_loss_weight=2.0),
        case("weights-at-their-optimum", _at_the_optimum(step), 64.0),
        case("far-weights", step | {"log_variance": 20.0 * step["log_variance"]}, 0.25),
        case("nothing-left", _hit(step), -1.0),
        case("nearly-hit", _nearly_hit(step), 1e4),
        case("draws-that-cancel", _opposite(step), 7.0),
    ]


def _step(source: Source, frames: int, samples: int, size: int) -> Step:
    """A step of training, which distils."""
    rows = frames * samples
    times = np.sort(source.uniform(2, rows), axis=0)
    positions = frames + 2
    return {
        "velocity": source.normal(rows, size),
        "targets": source.normal(frames, size),
        "noise": source.normal(rows, size),
        "log_variance": 0.5 * source.normal(rows),
        "eos_logits": 3.0 * source.normal(positions),
        "eos_labels": source.uniform(positions) < 0.4,
        "jump_velocity": source.normal(rows, size),
        "jump_velocity_dt": 2.0 * source.normal(rows, size),
        "end_velocity": source.normal(rows, size),
        "start_times": times[0],
        "end_times": times[1],
        "jump_log_variance": 0.5 * source.normal(rows),
    }


def _without_distillation(step: Step) -> Step:
    return {name: step[name] for name in ("velocity", "targets", "noise", "log_variance", "eos_logits", "eos_labels")}


def _as_columns(step: Step) -> Step:
    """Numbers of rows as modules return them."""
    of_rows = {name: step[name][:, None] for name in ("log_variance", "start_times", "end_times", "jump_log_variance")}
    return {**step, **of_rows}


def _wanted(step: Step) -> np.ndarray:
    """The velocity that leaves nothing, in the format of which all are."""
    samples = len(step["noise"]) // len(step["targets"])
    return np.asarray(np.tile(step["targets"], (samples, 1)) - step["noise"])


def _hit(step: Step) -> Step:
    """Residuals that are 0 in some rows, of numbers that every format holds."""
    rounded = {name: np.round(4.0 * step[name]) / 4.0 for name in ("velocity", "targets", "noise")}
    rounded["velocity"][::2] = _wanted(rounded)[::2]
    rounded["velocity"][1] = _wanted(rounded)[1] + 1.0  # the weight of a mean square of 1 is right where w is 0
    return {**step, **rounded, "log_variance": np.where(np.arange(len(step["noise"])) == 1, 0.0, step["log_variance"])}


def _nearly_hit(step: Step) -> Step:
    """Residuals that are 2^-6 of their terms."""
    jump = step["jump_velocity"] + (step["end_times"] - step["start_times"])[:, None] * step["jump_velocity_dt"]
    near = 1.0 + 2.0**-6
    return {**step, "velocity": near * _wanted(step), "end_velocity": near * jump}


def _at_the_optimum(step: Step) -> Step:
    """Log-variances next to where their derivatives are 0."""
    mean = ((step["velocity"] - _wanted(step)) ** 2).sum(axis=-1) / step["velocity"].shape[-1]
    # Of so few digits, logarithms are the same on every machine.
    w = np.round(-np.log(mean) * 2.0**20) / 2.0**20
    return {**step, "log_variance": w + 2.0**-6 * (1.0 + np.arange(len(w)))}


def _opposite(step: Step) -> Step:
    """Two draws whose gradients of targets cancel but for a little, and in one frame altogether."""
    frames = len(step["targets"])
    wanted, w = _wanted(step), np.array(step["log_variance"])
    residual = np.round(4.0 * step["velocity"]) / 4.0 + 0.125
    residual[frames:] = -residual[:frames]
    residual[frames] *= 1.0 + 2.0**-4
    w[frames:] = w[:frames]
    rounded = np.round(4.0 * wanted) / 4.0
    data, noise = np.zeros_like(step["targets"]), -rounded
    return {**step, "velocity": rounded + residual, "targets": data, "noise": noise, "log_variance": w}


def draw_flow(draws: Draws) -> Drawn:
    """Rows of some frames, whose velocities may be nearly right."""
    frames, size = draws.rows(), draws.classes()
    samples = draws.one_of(*_SAMPLES)
    rows = samples * frames
    parameters = draws.options(
        lsd_diagonal_weight=(0.75, 0.5, 1.0),
        lsd_distill_probability=(0.25, 0.7),
        eos_loss_weight=(0.1, 2.0, 0.0),
        training=(True, False),
    )
    if draws.maybe():
        parameters["flow_loss_num_samples"] = samples
    columns = draws.maybe()

    def numbers(values: np.ndarray) -> np.ndarray:
        return values[:, None] if columns else values

    targets, noise = draws.logits(frames, size), draws.logits(rows, size)
    wanted = np.tile(targets, (samples, 1)).astype(np.float64) - noise.astype(np.float64)
    near = draws.maybe() and not draws.limits.exact
    positions = tuple(max(size, 1) for size in draws.row_shape(1, 2))
    tensors = {
        "velocity": draws.near(wanted) if near else draws.logits(rows, size),
        "targets": targets,
        "noise": noise,
        "log_variance": numbers(draws.logits(rows, near=True)),
        "eos_logits": draws.logits(*positions),
        "eos_labels": draws.uniform(*positions) < 0.5,
    }
    if parameters.get("training") is False or draws.maybe():
        times = np.sort(draws.probabilities(2, rows), axis=0)
        tensors |= {
            "jump_velocity": draws.logits(rows, size),
            "jump_velocity_dt": draws.logits(rows, size),
            "end_velocity": draws.logits(rows, size),
            "start_times": numbers(times[0]),
            "end_times": numbers(times[1]),
            "jump_log_variance": numbers(draws.logits(rows, near=True)),
        }
    return Drawn(tensors, parameters)


def mistaken(case: Case) -> dict[str, Step]:
    """Arguments that are taken for each other, or for their contrary."""
    inputs = case.inputs
    wrong = {"labels of the end of speech are inverted": {"eos_labels": inputs["eos_labels"] == 0}}
    if "start_times" in inputs:
        swapped = {"start_times": inputs["end_times"], "end_times": inputs["start_times"]}
        wrong["start and end times are swapped"] = swapped
    return wrong
