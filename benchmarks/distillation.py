"""Distillation, value and gradient of the student, against torch's log_softmax and kl_div in float32.

Run as `python -m benchmarks.distillation [--write]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import refloss
from benchmarks.measure import Timing, in_fresh_process, interleaved, machine
from benchmarks.report import Table, publish, wants_write

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.losses.distillation import Divergence

SHAPE = (2048, 32000)
COLUMNS = ("implementation", "ms", "quartiles apart", "time / torch")
TORCH = "torch, forward KL"
KINDS: tuple[Divergence, ...] = ("forward_kl", "reverse_kl", "tvd", "jsd")
ROUNDS = 3
# Single precision adds up 32000 terms.
TOLERANCE = 1e-4


def inputs(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a student and of a teacher."""
    generator = np.random.default_rng(0)
    return 3 * generator.standard_normal(shape, np.float32), 3 * generator.standard_normal(shape, np.float32)


def _refloss(kind: Divergence, arrays: tuple[np.ndarray, np.ndarray]) -> Callable[[], Any]:
    return lambda: refloss.distillation(*arrays, divergence=kind, grad="student_logits").loss


def _torch(arrays: tuple[np.ndarray, np.ndarray]) -> Callable[[], Any]:
    import torch
    from torch.nn.functional import kl_div, log_softmax

    student, teacher = torch.from_numpy(arrays[0]).requires_grad_(), torch.from_numpy(arrays[1])

    def call() -> float:
        loss = kl_div(log_softmax(student, -1), log_softmax(teacher, -1), reduction="batchmean", log_target=True)
        torch.autograd.grad(loss, student)
        return loss.item()

    return call


def measure(shape: tuple[int, int]) -> dict[str, Timing]:
    """Of refloss's divergences and torch's forward KL, by turns."""
    arrays = inputs(shape)
    calls = {TORCH: _torch(arrays)} | {f"refloss, {kind}": _refloss(kind, arrays) for kind in KINDS}
    losses = {name: float(call()) for name, call in calls.items()}
    if not np.isclose(losses[TORCH], losses[f"refloss, {KINDS[0]}"], rtol=TOLERANCE):
        raise ValueError(f"{TORCH} has {losses[TORCH]}, refloss {losses[f'refloss, {KINDS[0]}']}")
    return interleaved(calls, ROUNDS)


def table(timings: dict[str, Timing]) -> Table:
    """Milliseconds, and times torch's."""
    rows = [
        (
            name,
            f"{1e3 * timing.median:.0f}",
            f"{1e3 * timing.spread:.0f}",
            f"{timing.median / timings[TORCH].median:.1f}",
        )
        for name, timing in timings.items()
    ]
    return Table(f"Distillation of {SHAPE[0]} × {SHAPE[1]} float32 logits, value and student's gradient", COLUMNS, rows)


def main() -> None:
    """Measure, print, and write if asked."""
    timings = in_fresh_process(measure, SHAPE)
    publish("distillation", machine(("refloss", "torch", "numpy")), [table(timings)], "", wants_write(__doc__))


if __name__ == "__main__":
    main()
