"""Elementwise losses and semantic segmentation: time against PyTorch, NumPy and what memory allows.

Run as `python -m benchmarks.elementwise [--write]`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

import refloss
from benchmarks.competitors import TORCH, torch_tensor
from benchmarks.language import PAGES
from benchmarks.measure import Timing, in_fresh_process, interleaved, machine
from benchmarks.report import Aim, Table, console, publish, wants_write
from refloss.parallel import run_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from benchmarks.competitors import Call

    Arrays = tuple[np.ndarray, np.ndarray]

ELEMENTS = 1 << 24
LOGITS_SHAPE = (8, 21, 128, 128)
LABELS_SHAPE = (8, 512, 512)
# Some pixels have no class, as in most data sets.
IGNORED, IGNORE_INDEX = 0.05, 255
# Most training needs the input's gradient alone; whoever asks for all gets the target's as well.
ONE, BOTH = "refloss, input's gradient", "refloss, both gradients"
TORCH_BOTH = "torch eager, both gradients"
PEERS = {TORCH: ONE, TORCH_BOTH: BOTH}
AIM = 2.0
# Into an array that is there already: no page of it has to be fetched.
ONE_OUT = "refloss, input's gradient, out="
FLOOR, NUMPY = "memory floor: two reads, one write", "NumPy, plain float32"
FLOOR_AIM, NUMPY_AIM = 0.5, 1.0
FLOOR_COLUMNS = (
    *("loss", "pages", "refloss, ms", "out=, ms", f"{NUMPY}, ms", f"{FLOOR}, ms"),
    *("floor / out=", "aim", "holds", "NumPy / refloss", "aim", "holds"),
)
# What a thread takes of the floor at a time.
FLOOR_ELEMENTS = 1 << 18
COLUMNS = ("loss", "implementation", "ms", "quartiles apart", "time / refloss for the same", "aim", "holds")
# Float32 sums in PyTorch and bfloat16 results are this far off at most.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-2, 2e-2


def mse_inputs() -> Arrays:
    """Predictions and targets."""
    generator = np.random.default_rng(0)
    return generator.standard_normal(ELEMENTS, np.float32), generator.standard_normal(ELEMENTS, np.float32)


def bce_inputs() -> Arrays:
    """Logits and a yes or no for each."""
    generator = np.random.default_rng(0)
    return 3 * generator.standard_normal(ELEMENTS, np.float32), generator.integers(2, size=ELEMENTS).astype(np.float32)


def segmentation_inputs() -> Arrays:
    """Logits of a small grid and classes of pixels."""
    generator = np.random.default_rng(0)
    labels = generator.integers(LOGITS_SHAPE[1], size=LABELS_SHAPE)
    labels[generator.random(LABELS_SHAPE) < IGNORED] = IGNORE_INDEX
    return 3 * generator.standard_normal(LOGITS_SHAPE, np.float32), labels


def torch_segmentation(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What transformers' ForSemanticSegmentationLoss computes."""
    from torch.nn.functional import cross_entropy, interpolate

    upsampled = interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    return cross_entropy(upsampled, labels, ignore_index=IGNORE_INDEX)


def refloss_call(function: Callable[..., refloss.LossResult], x: np.ndarray, y: np.ndarray, **options: Any) -> Call:
    """The loss and the first gradient."""

    def call() -> tuple[Any, Any]:
        result = function(x, y, **options)
        return result.loss, next(iter(result.grads.values()))

    return call


def torch_call(function: Callable[..., torch.Tensor], x: np.ndarray, y: np.ndarray, both: bool = False) -> Call:
    """The loss and the gradient of the input, or of input and target."""
    import torch

    inputs = (torch_tensor(x).requires_grad_(), torch_tensor(y).requires_grad_(both))

    def call() -> tuple[Any, Any]:
        loss = function(*inputs)
        return loss.detach(), torch.autograd.grad(loss, inputs if both else inputs[:1])

    return call


def elementwise_calls(name: str, dtype: str) -> dict[str, Call]:
    """mse or bce_with_logits by refloss and by torch."""
    from torch.nn import functional

    makers: dict[str, tuple[Callable[[], Arrays], Callable[..., Any], str, Callable[..., Any]]] = {
        "mse": (mse_inputs, refloss.mse, "input", functional.mse_loss),
        "bce_with_logits": (
            bce_inputs,
            refloss.bce_with_logits,
            "logits",
            functional.binary_cross_entropy_with_logits,
        ),
    }
    make, ours, first, theirs = makers[name]
    x, y = (array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype, copy=False) for array in make())
    return {
        ONE: refloss_call(ours, x, y, grad=first),
        TORCH: torch_call(theirs, x, y),
        BOTH: refloss_call(ours, x, y),
        TORCH_BOTH: torch_call(theirs, x, y, both=True),
    }


def segmentation_calls() -> dict[str, Call]:
    """Semantic segmentation by refloss and by torch."""
    x, y = segmentation_inputs()
    return {ONE: refloss_call(refloss.semantic_segmentation, x, y), TORCH: torch_call(torch_segmentation, x, y)}


def plain_mse(x: np.ndarray, t: np.ndarray) -> tuple[Any, Any]:
    """The mean and its gradient as NumPy has them."""
    difference = x - t
    return np.mean(difference * difference), difference * np.float32(2 / x.size)


def plain_l1(x: np.ndarray, t: np.ndarray) -> tuple[Any, Any]:
    """The same of the absolute difference."""
    difference = x - t
    return np.mean(np.abs(difference)), np.sign(difference) * np.float32(1 / x.size)


def plain_huber(x: np.ndarray, t: np.ndarray) -> tuple[Any, Any]:
    """The same with δ = 1: with q the difference, but no further than δ, q·(d − q/2)."""
    difference = x - t
    near = np.clip(difference, -1, 1)
    return np.mean(near * (difference - np.float32(0.5) * near)), near * np.float32(1 / x.size)


SIMPLE: Mapping[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "mse": (refloss.mse, plain_mse),
    "l1": (refloss.l1, plain_l1),
    "huber": (refloss.huber, plain_huber),
}


def simple_calls(name: str) -> dict[str, Callable[[], Any]]:
    """A loss of differences by refloss and NumPy, and a difference in blocks: the least that any gradient costs."""
    ours, theirs = SIMPLE[name]
    x, t = mse_inputs()
    out, difference = np.zeros_like(x), np.zeros_like(x)

    def subtract(first: int, last: int, _: object) -> None:
        np.subtract(x[first:last], t[first:last], out=difference[first:last])

    return {
        ONE: refloss_call(ours, x, t, grad="input"),
        ONE_OUT: refloss_call(ours, x, t, grad="input", out=out),
        NUMPY: lambda: theirs(x, t),
        FLOOR: lambda: run_blocks(subtract, x.size, FLOOR_ELEMENTS, lambda: None),
    }


def simple_times(name: str) -> dict[str, Timing]:
    """Their timings, once NumPy and refloss are known to agree."""
    calls = simple_calls(name)
    (loss, gradient), (other, candidate) = calls[ONE](), calls[NUMPY]()
    distance = np.abs(candidate - gradient).max() / np.abs(gradient).max()
    if abs(other - loss) > LOSS_TOLERANCE * loss or distance > GRADIENT_TOLERANCE:
        raise ValueError(f"{name}: loss {other} and {loss}, gradients {distance} of the largest apart")
    return interleaved(calls)


def floors() -> tuple[Table, list[Aim]]:
    """What simple losses cost above what memory allows, and beside plain NumPy, with pages of one size for all."""
    rows: list[tuple[str, ...]] = []
    aims: list[Aim] = []
    for name in SIMPLE:
        for pages, environment in PAGES.items():
            with console.status(f"{name}, {pages} pages, out="):
                timings = in_fresh_process(simple_times, name, environment=environment)
            ours, into, plain, floor = (timings[of].median for of in (ONE, ONE_OUT, NUMPY, FLOOR))
            of_floor, of_numpy = Aim(floor / into, FLOOR_AIM, "of the floor"), Aim(plain / ours, NUMPY_AIM, "× refloss")
            aims += [of_floor, of_numpy]
            milliseconds = (f"{seconds * 1e3:.1f}" for seconds in (ours, into, plain, floor))
            ratios = (f"{floor / into:.2f}", *of_floor.cells(), f"{plain / ours:.2f}", *of_numpy.cells())
            rows.append((name, pages, *milliseconds, *ratios))
    return Table("Above the memory floor, the same pages for all", FLOOR_COLUMNS, rows), aims


CASES: Mapping[str, Callable[[], dict[str, Call]]] = {
    **{
        f"{name}, {dtype}": partial(elementwise_calls, name, dtype)
        for dtype in ("float32", "bfloat16")
        for name in ("mse", "bce_with_logits")
    },
    "semantic_segmentation, float32": segmentation_calls,
}


def check(calls: Mapping[str, Call]) -> None:
    """Refuse to time calls that do not compute the same."""
    loss, gradient = calls[ONE]()
    gradient = gradient.astype(np.float32)
    for name in calls.keys() & PEERS.keys():
        other, (candidate, *_) = calls[name]()
        distance = np.abs(candidate.float().numpy() - gradient).max() / np.abs(gradient).max()
        if abs(float(other) - loss) > LOSS_TOLERANCE * loss or distance > GRADIENT_TOLERANCE:
            raise ValueError(f"{name}: loss {other} and {loss}, gradients {distance} of the largest apart")


def times(case: str) -> dict[str, Timing]:
    """Timings of everyone who computes a case."""
    calls = CASES[case]()
    check(calls)
    return interleaved(calls)


def comparison() -> tuple[Table, list[Aim]]:
    """The table with pages as each library asks for them, and the aims in it."""
    rows: list[tuple[str, ...]] = []
    aims: list[Aim] = []
    for case in CASES:
        with console.status(case):
            timings = in_fresh_process(times, case)
        for name, timing in timings.items():
            ratio = timing.median / timings[PEERS.get(name, name)].median
            aim = Aim(ratio, AIM, "× refloss") if name in PEERS else None
            aims += [aim] if aim else []
            cells = (f"{timing.median * 1e3:.1f}", f"{timing.spread * 1e3:.1f}", f"{ratio:.2f}")
            rows.append((case if name == ONE else "", name, *cells, *(aim.cells() if aim else ("", ""))))
    return Table("Value and gradient", COLUMNS, rows), aims


def same_pages() -> Table:
    """The ratios with pages of one size for all."""
    rows: list[tuple[str, ...]] = []
    for case in CASES:
        for pages, environment in PAGES.items():
            with console.status(f"{case}, {pages} pages"):
                timings = in_fresh_process(times, case, environment=environment)
            ratios = (
                f"{timings[name].median / timings[own].median:.2f}" if name in timings else ""
                for name, own in PEERS.items()
            )
            rows.append((case, pages, f"{timings[ONE].median * 1e3:.1f}", *ratios))
    columns = ("loss", "pages", f"{ONE}, ms", f"{TORCH} / refloss", f"{TORCH_BOTH} / refloss")
    return Table("The same pages for all", columns, rows)


def main() -> None:
    """Measure, print and, with --write, document."""
    write = wants_write(__doc__)
    table, aims = comparison()
    pages = same_pages()
    simple, of_simple = floors()
    aims += of_simple
    held = sum(aim.holds() for aim in aims)
    conclusion = f"{held} of {len(aims)} aims hold, the first table's with pages as each library asks for them."
    publish("elementwise", machine(("refloss", "numpy", "numba", "torch")), (table, pages, simple), conclusion, write)


if __name__ == "__main__":
    main()
