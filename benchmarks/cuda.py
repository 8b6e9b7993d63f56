"""Cross-entropy on a GPU: time, bandwidth and peak memory against PyTorch and, where it is installed, Liger-Kernel.

Run as `python -m benchmarks.cuda [--write]`, with an NVIDIA GPU, `refloss[cuda13]` and a PyTorch built for CUDA.
"""

from __future__ import annotations

import functools
import importlib.util
import statistics
from typing import TYPE_CHECKING, Any, NamedTuple

import refloss
from benchmarks.competitors import REFLOSS, TORCH, TORCH_COMPILED
from benchmarks.measure import machine
from benchmarks.report import Aim, Table, console, publish, wants_write

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

SHAPES = ((8192, 128256), (32768, 32000))
DTYPES = ("float32", "bfloat16")
ROUNDS, WARM_UP_ROUNDS = 21, 3
LIGER = "Liger-Kernel"
COPY_AIM, PEER_AIM = 0.5, 1.0
COLUMNS = (
    "shape",
    "implementation",
    "ms",
    "quartiles apart",
    "time / refloss",
    "of the copy",
    "aim",
    "holds",
    "peak MiB",
)


class Timing(NamedTuple):
    """Milliseconds, and the most device memory that a call takes beyond its inputs."""

    median: float
    spread: float
    peak: int


def elapsed(call: Callable[[], object]) -> float:
    """Milliseconds of a call between two events of the default stream."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    result = call()
    end.record()
    end.synchronize()
    del result
    return float(start.elapsed_time(end))


def peak_memory(call: Callable[[], object]) -> int:
    """Bytes of the GPU in use after a call that were free before it, its result and whatever it keeps included."""
    import torch

    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before, _ = torch.cuda.mem_get_info()
    result = call()
    torch.cuda.synchronize()
    after, _ = torch.cuda.mem_get_info()
    del result
    return int(before - after)


def interleaved(calls: dict[str, Callable[[], object]]) -> dict[str, Timing]:
    """Time the calls in turn, round by round."""
    peaks = {name: peak_memory(call) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-WARM_UP_ROUNDS, ROUNDS):
        for name, call in calls.items():
            milliseconds = elapsed(call)
            if number >= 0:
                times[name].append(milliseconds)
    result = {}
    for name, values in times.items():
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        result[name] = Timing(median, upper - lower, peaks[name])
    return result


def torch_call(logits: torch.Tensor, labels: torch.Tensor, function: Any) -> Callable[[], object]:
    """PyTorch's value and gradient."""
    import torch

    x = logits.detach().requires_grad_()

    def call() -> object:
        loss = function(x, labels)
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    return call


def liger_call(logits: torch.Tensor, labels: torch.Tensor) -> Callable[[], object]:
    """Liger-Kernel's, which overwrites its input: it gets a copy, whose time is part of what a gradient costs."""
    from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction

    def call() -> object:
        x = logits.detach().clone().requires_grad_()
        loss = LigerCrossEntropyFunction.apply(x, labels)[0]
        loss.backward()
        return loss.detach(), x.grad

    return call


def implementations(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Everyone who computes the loss and its gradient; all read the same memory."""
    import torch

    eager = torch.nn.functional.cross_entropy
    calls: dict[str, Callable[[], object]] = {
        REFLOSS: functools.partial(refloss.cross_entropy, logits, labels),
        TORCH: torch_call(logits, labels, eager),
        TORCH_COMPILED: torch_call(logits, labels, torch.compile(eager, dynamic=False)),
    }
    if importlib.util.find_spec("liger_kernel") is not None:
        calls[LIGER] = liger_call(logits, labels)
    return calls


def check(calls: dict[str, Callable[[], Any]]) -> None:
    """Refuse to time calls that do not compute the same."""
    losses = {name: call() for name, call in calls.items()}
    wanted = float(losses.pop(REFLOSS).loss)
    for name, (loss, _) in losses.items():
        if abs(float(loss) - wanted) > 1e-2 * wanted:
            raise ValueError(f"{name} has loss {float(loss)}, refloss {wanted}: they do not compute the same")


def comparison(dtype: str) -> tuple[Table, list[Aim]]:
    """The table of one type, and the aims in it."""
    import torch

    rows: list[tuple[str, ...]] = []
    aims: list[Aim] = []
    for shape in SHAPES:
        generator = torch.Generator("cuda").manual_seed(0)
        logits = 3 * torch.randn(shape, generator=generator, device="cuda", dtype=getattr(torch, dtype))
        labels = torch.randint(shape[1], (shape[0],), generator=generator, device="cuda")
        calls = implementations(logits, labels)
        check(calls)
        out = torch.empty_like(logits)
        timings = interleaved({**calls, "copy": functools.partial(out.copy_, logits)})
        copy = timings.pop("copy").median
        for name, timing in timings.items():
            aim = Aim(copy / timing.median, COPY_AIM, "of the copy")
            if name != REFLOSS:
                aim = Aim(timing.median / timings[REFLOSS].median, PEER_AIM, "× refloss")
            aims += [aim] if name != LIGER else []
            cells = (f"{timing.median:.2f}", f"{timing.spread:.2f}", f"{timing.median / timings[REFLOSS].median:.2f}")
            verdict = aim.cells() if name != LIGER else ("", "")
            shown = f"{shape[0]} × {shape[1]}" if name == REFLOSS else ""
            rows.append((shown, name, *cells, f"{copy / timing.median:.2f}", *verdict, f"{timing.peak / 2**20:.0f}"))
    return Table(f"Mean cross-entropy and its gradient on a GPU, {dtype}", COLUMNS, rows), aims


def main() -> None:
    """Measure, print and, with --write, document."""
    write = wants_write(__doc__)
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.cuda needs an NVIDIA GPU and a PyTorch that is built for CUDA")
    tables, aims = [], []
    for dtype in DTYPES:
        with console.status(dtype):
            table, own = comparison(dtype)
        tables.append(table)
        aims += own
    card = f"{torch.cuda.get_device_name()}; {machine(('refloss', 'numba', 'numba-cuda', 'torch'))}"
    publish("cuda", card, tables, f"{sum(aim.holds() for aim in aims)} of {len(aims)} aims hold.", write)


if __name__ == "__main__":
    main()
