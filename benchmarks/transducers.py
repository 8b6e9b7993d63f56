"""RNN-T and TDT, value and gradient of one sequence: against a compiled recursion in JAX and transformers' TDT.

JAX's recursion goes over frames, or over the diagonals of the lattice, whichever is given; both are compiled with the
softmax as one program. torchaudio's RNN-T is measured where it is installed.
Run as `python -m benchmarks.transducers [--write]`.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import refloss
from benchmarks.measure import Timing, in_fresh_process, interleaved, machine, peak_memory
from benchmarks.report import Aim, Table, console, publish, wants_write

if TYPE_CHECKING:
    from collections.abc import Callable

COLUMNS = (
    "loss",
    "T × U × V",
    "implementation",
    "ms",
    "quartiles apart",
    "time / refloss",
    "aim",
    "holds",
    "peak / logits",
)
REFLOSS, FRAMES, DIAGONALS, TRANSFORMERS = "refloss", "JAX, by frames", "JAX, by diagonals", "transformers"
TORCHAUDIO = "torchaudio"
AIM = 3.0
DURATIONS = (0, 1, 2, 3, 4)
SIGMA = 0.02
ROUNDS = 5
# Losses of single precision, of which a thousand arcs are added up.
TOLERANCE = 1e-3


class Shape(NamedTuple):
    """Frames, labels and classes."""

    frames: int
    labels: int
    classes: int

    def __str__(self) -> str:
        return " × ".join(map(str, self))


# Of a thousand frames transformers' recursion had no result after 100 seconds.
SHAPES = {
    "rnnt": (Shape(1000, 150, 32), Shape(200, 150, 5000)),
    "tdt": (Shape(100, 30, 32), Shape(100, 30, 1024)),
}


def inputs(shape: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of one sequence and of its durations, and labels."""
    generator = np.random.default_rng(0)
    lattice = (1, shape.frames, shape.labels + 1)
    logits = generator.standard_normal((*lattice, shape.classes), dtype=np.float32)
    logits *= 2
    durations = generator.standard_normal((*lattice, len(DURATIONS)), dtype=np.float32)
    return logits, durations, generator.integers(1, shape.classes, size=(1, shape.labels))


def _refloss_rnnt(shape: Shape) -> Callable[[], Any]:
    logits, _, labels = inputs(shape)

    def call() -> tuple[Any, Any]:
        result = refloss.rnnt(logits, labels, [shape.frames], [shape.labels], 0, "sum")
        return result.loss, result.grads["logits"]

    return call


def _jax_by_frames(shape: Shape) -> Callable[[], Any]:
    """A label's arcs within a frame are a cumulative sum of exponentials."""
    import jax
    import jax.numpy as jnp

    logits, _, labels = inputs(shape)

    def negative_log_likelihood(x: Any, y: Any) -> Any:
        log_p = jax.nn.log_softmax(x)
        of_labels = jnp.take_along_axis(log_p[:, :-1], y[None, :, None], axis=2)[..., 0]
        before = jnp.pad(jnp.cumsum(of_labels, axis=1), ((0, 0), (1, 0)))

        def step(arrived: Any, frame: Any) -> tuple[Any, None]:
            blank, written = frame
            here = written + jax.lax.cumlogsumexp(arrived - written)
            return here + blank, None

        start = jnp.full(shape.labels + 1, -jnp.inf).at[0].set(0.0)
        end, _ = jax.lax.scan(step, start, (log_p[..., 0], before))
        return -end[-1]

    compiled = jax.jit(jax.value_and_grad(negative_log_likelihood))
    x, y = jax.device_put(logits[0]), jax.device_put(labels[0])
    return lambda: jax.block_until_ready(compiled(x, y))  # type: ignore[no-untyped-call]


def _jax_by_diagonals(shape: Shape) -> Callable[[], Any]:
    """Nodes with one t + u need each other's values for nothing."""
    import jax
    import jax.numpy as jnp

    logits, _, labels = inputs(shape)
    lowest = -1e30  # with −inf, JAX's derivative of log(0 + 0) is NaN

    def skewed(values: Any) -> Any:
        """Row n has the values of nodes with t + u = n, by u."""
        diagonals = jnp.arange(shape.frames + shape.labels)[:, None] - jnp.arange(values.shape[1])
        known = (diagonals >= 0) & (diagonals < shape.frames)
        found = jnp.take_along_axis(values, jnp.clip(diagonals, 0, shape.frames - 1), axis=0)
        return jnp.where(known, found, lowest)

    def negative_log_likelihood(x: Any, y: Any) -> Any:
        log_p = jax.nn.log_softmax(x)
        of_labels = jnp.take_along_axis(log_p[:, :-1], y[None, :, None], axis=2)[..., 0]

        def step(alpha: Any, arcs: Any) -> tuple[Any, None]:
            blank, label = arcs
            written = jnp.pad((alpha[:-1] + label), (1, 0), constant_values=lowest)
            return jnp.logaddexp(alpha + blank, written), None

        start = jnp.full(shape.labels + 1, lowest).at[0].set(0.0)
        rows = skewed(log_p[..., 0]), skewed(of_labels)
        end, _ = jax.lax.scan(step, start, rows)
        return -end[-1]

    compiled = jax.jit(jax.value_and_grad(negative_log_likelihood))
    x, y = jax.device_put(logits[0]), jax.device_put(labels[0])
    return lambda: jax.block_until_ready(compiled(x, y))  # type: ignore[no-untyped-call]


def _torchaudio(shape: Shape) -> Callable[[], Any]:
    import torch

    rnnt_loss = importlib.import_module("torchaudio.functional").rnnt_loss
    logits, _, labels = inputs(shape)
    x, targets = torch.from_numpy(logits).requires_grad_(), torch.from_numpy(labels.astype(np.int32))
    lengths = [torch.tensor([size], dtype=torch.int32) for size in (shape.frames, shape.labels)]

    def call() -> tuple[Any, Any]:
        loss = rnnt_loss(x, targets, *lengths, blank=0, reduction="sum")
        return loss.detach(), torch.autograd.grad(loss, x)

    return call


def _refloss_tdt(shape: Shape) -> Callable[[], Any]:
    logits, durations, labels = inputs(shape)

    def call() -> tuple[Any, Any]:
        steps = np.array(DURATIONS)
        result = refloss.tdt(
            logits, durations, labels, [shape.frames], [shape.labels], 0, steps, sigma=SIGMA, reduction="sum"
        )
        return result.loss, result.grads

    return call


def _transformers_tdt(shape: Shape) -> Callable[[], Any]:
    import torch
    from transformers.loss.loss_tdt import tdt_loss

    logits, durations, labels = inputs(shape)
    x, v = (torch.from_numpy(values).requires_grad_() for values in (logits, durations))
    targets = torch.from_numpy(labels), torch.tensor([shape.frames]), torch.tensor([shape.labels])

    def call() -> tuple[Any, Any]:
        loss = tdt_loss(x, v, *targets, 0, list(DURATIONS), SIGMA, "sum")
        return loss.detach(), torch.autograd.grad(loss, (x, v))

    return call


RNNT = {REFLOSS: _refloss_rnnt, FRAMES: _jax_by_frames, DIAGONALS: _jax_by_diagonals}
RNNT |= {TORCHAUDIO: _torchaudio} if importlib.util.find_spec("torchaudio") else {}
TDT = {REFLOSS: _refloss_tdt, TRANSFORMERS: _transformers_tdt}
LOSSES = {"rnnt": RNNT, "tdt": TDT}


def times(loss: str, shape: Shape) -> dict[str, Timing]:
    """Timings of all implementations, which compute the same."""
    calls = {name: prepare(shape) for name, prepare in LOSSES[loss].items()}
    losses = {name: float(call()[0]) for name, call in calls.items()}
    for name, value in losses.items():
        if abs(value - losses[REFLOSS]) > TOLERANCE * losses[REFLOSS]:
            raise ValueError(f"{name} has loss {value}, refloss {losses[REFLOSS]}: they do not compute the same")
    return interleaved(calls, ROUNDS)


def peak(loss: str, name: str, shape: Shape) -> int | None:
    """Peak memory of a call beyond its inputs; for a fresh process."""
    small = LOSSES[loss][name](Shape(3, 2, shape.classes))
    small()
    call = LOSSES[loss][name](shape)
    if name != REFLOSS:
        call()
    return peak_memory(call)


def rows(loss: str, shape: Shape) -> tuple[list[tuple[str, ...]], list[Aim]]:
    """The lines of one loss and shape, and the aims in them."""
    peaks = {name: in_fresh_process(peak, loss, name, shape) for name in LOSSES[loss]}
    timings = in_fresh_process(times, loss, shape)
    logits = 4 * shape.frames * (shape.labels + 1) * shape.classes
    lines: list[tuple[str, ...]] = []
    aims: list[Aim] = []
    for name, timing in timings.items():
        aim = Aim(timing.median / timings[REFLOSS].median, AIM, "× refloss") if name != REFLOSS else None
        aims += [aim] if aim else []
        memory = peaks[name]
        lines.append(
            (
                *((loss, str(shape)) if name == REFLOSS else ("", "")),
                *(name, f"{timing.median * 1e3:.1f}", f"{timing.spread * 1e3:.1f}"),
                f"{timing.median / timings[REFLOSS].median:.2f}",
                *(aim.cells() if aim else ("", "")),
                "" if memory is None else f"{memory / logits:.2f}",
            )
        )
    return lines, aims


def main() -> None:
    """Measure, print and, with --write, document."""
    write = wants_write(__doc__)
    lines: list[tuple[str, ...]] = []
    aims: list[Aim] = []
    for loss in LOSSES:
        for shape in SHAPES[loss]:
            with console.status(f"{loss} {shape}"):
                more, held = rows(loss, shape)
            lines += more
            aims += held
    table = Table("Transducers: value and gradient of one sequence, float32", COLUMNS, lines)
    conclusion = f"{sum(aim.holds() for aim in aims)} of {len(aims)} aims hold."
    publish(
        "transducers",
        machine(("refloss", "numpy", "numba", "torch", "jax", "transformers")),
        (table,),
        conclusion,
        write,
    )


if __name__ == "__main__":
    main()
