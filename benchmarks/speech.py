"""Losses of speech: time and peak memory of CTC's value and gradient against PyTorch; and transducers.

Run as `python -m benchmarks.speech [--write]`; transducers alone are `python -m benchmarks.transducers`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from benchmarks import transducers
from benchmarks.measure import in_fresh_process, interleaved, machine, peak_memory
from benchmarks.report import Aim, Table, console, publish, wants_write

if TYPE_CHECKING:
    from collections.abc import Callable

COLUMNS = (
    *("sequences × frames × labels × classes", "implementation", "ms", "quartiles apart", "time / refloss", "aim"),
    *("holds", "peak MiB"),
)
REFLOSS, TORCH = "refloss", "torch"
FASTER = 3.0


class Shape(NamedTuple):
    """Sequences of one length, targets of one length."""

    sequences: int
    frames: int
    labels: int
    classes: int

    def __str__(self) -> str:
        return " × ".join(map(str, self))


SHAPES = tuple(Shape(count, 1000, 150, classes) for classes in (32, 5000) for count in (1, 4))


def inputs(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, T, C] in float32, and labels of classes other than the first."""
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((shape.sequences, shape.frames, shape.classes), dtype=np.float32)
    return 2.0 * logits, generator.integers(1, shape.classes, (shape.sequences, shape.labels))


def of_log_probs(name: str, shape: Shape) -> Callable[[], object]:
    """Loss and gradient of log-probabilities [T, N, C]."""
    import torch

    logits, labels = inputs(shape)
    log_probs = torch.from_numpy(logits.transpose(1, 0, 2).copy()).log_softmax(-1)
    lengths = [shape.frames] * shape.sequences, [shape.labels] * shape.sequences
    if name == REFLOSS:
        import refloss

        given = log_probs.numpy()
        return lambda: refloss.ctc(given, labels, *lengths, reduction="sum")
    targets, frames, labelled = torch.from_numpy(labels), *(torch.tensor(length) for length in lengths)

    def call() -> object:
        leaf = log_probs.detach().requires_grad_()
        torch.nn.functional.ctc_loss(leaf, targets, frames, labelled, reduction="sum").backward()  # type: ignore[no-untyped-call]
        return leaf.grad

    return call


def of_logits(name: str, shape: Shape) -> Callable[[], object]:
    """Loss and gradient of logits [N, T, C], the softmax included."""
    import torch

    logits, labels = inputs(shape)
    frames = [shape.frames] * shape.sequences
    if name == REFLOSS:
        import refloss

        return lambda: refloss.ctc_of_logits(logits, labels, frames, 0, "sum")
    given, targets = torch.from_numpy(logits), torch.from_numpy(labels)
    lengths = torch.tensor(frames), torch.tensor([shape.labels] * shape.sequences)

    def call() -> object:
        leaf = given.detach().requires_grad_()
        log_probs = leaf.log_softmax(-1).transpose(0, 1)
        torch.nn.functional.ctc_loss(log_probs, targets, *lengths, reduction="sum").backward()  # type: ignore[no-untyped-call]
        return leaf.grad

    return call


LOSSES = {"ctc": of_log_probs, "ctc_of_logits": of_logits}


def peak(loss: str, name: str, shape: Shape) -> int | None:
    """Peak memory of a call beyond its inputs; for a fresh process."""
    few = LOSSES[loss](name, shape._replace(frames=2, labels=1))
    few()
    return peak_memory(LOSSES[loss](name, shape))


def comparison(loss: str) -> tuple[Table, list[Aim]]:
    """The table of one loss, and the aims in it."""
    rows: list[tuple[str, ...]] = []
    aims: list[Aim] = []
    for shape in SHAPES:
        with console.status(f"{loss} {shape}"):
            timings = interleaved({name: LOSSES[loss](name, shape) for name in (REFLOSS, TORCH)}, rounds=7)
            peaks = {name: in_fresh_process(peak, loss, name, shape) for name in timings}
        base = timings[REFLOSS].median
        for name, timing in timings.items():
            aim = Aim(timing.median / base, FASTER, "× refloss") if name == TORCH else None
            aims += [aim] if aim else []
            rows.append(
                (
                    str(shape) if name == REFLOSS else "",
                    name,
                    f"{timing.median * 1e3:.1f}",
                    f"{timing.spread * 1e3:.1f}",
                    f"{timing.median / base:.2f}",
                    *(aim.cells() if aim else ("", "")),
                    "" if peaks[name] is None else f"{peaks[name] / 2**20:.0f}",  # type: ignore[operator]
                )
            )
    return Table(f"`{loss}` and its gradient, float32", COLUMNS, rows), aims


def main() -> None:
    """Measure, print and, with --write, document."""
    write = wants_write(__doc__)
    found = [comparison(loss) for loss in LOSSES]
    aims = [aim for _, own in found for aim in own]
    held = f"{sum(aim.holds() for aim in aims)} of {len(aims)} aims hold."
    publish("speech", machine(("refloss", "numpy", "numba", "torch")), [table for table, _ in found], held, write)
    transducers.main()


if __name__ == "__main__":
    main()
