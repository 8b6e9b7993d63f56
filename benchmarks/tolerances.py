"""How far below their bounds honest implementations stay, and how far above them a gradient that is 1 % too large is.

    python -m benchmarks.tolerances [--seeds 1000] [--plot docs/img/tolerances.svg] [--markdown]

Each seed is a random problem of each kind: logits from nearly uniform to saturated, signed cotangents over six orders
of magnitude. What is counted is the largest error ÷ bound of any element of the loss and of all gradients, under the
error model of the type that the implementation computes in. Long sums, of 2^20 to 2^24 elements and of 200 000 classes,
are tried with a few seeds, and there the loss too is made 1 % too large, and added up in one chain of float32. The exit
status is 1 if one of the honest exceeds its bound, or if a wrong answer does not.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import ml_dtypes
import numpy as np
from matplotlib.ticker import LogLocator

from benchmarks.measure import machine
from benchmarks.report import Table, console
from conformance.outside_users import OUTSIDE_USERS, OutsideUser
from refloss.cases.source import Case
from refloss.error_model import bounds
from refloss.files import nested
from refloss.testing.judging.called import on_host
from refloss.testing.judging.judge import judge, question
from refloss.testing.verdict import Question

Random = np.random.Generator
Problem = Callable[[Random], tuple[str, dict[str, np.ndarray], dict[str, Any]]]

TORCH, COMPILED, OPTAX = OUTSIDE_USERS
BFLOAT16, NUMPY, TOO_LARGE = "torch, bfloat16", "NumPy", "1 % too large"
ONE_CHAIN, ANY_ORDER = "added in one chain", "the same, any order allowed"
WRONG = {TOO_LARGE, ONE_CHAIN}
# Greys and hues that stand out from white and from near-black alike.
INK = "#768390"
COLOURS = {
    TORCH.name: "#e8833a",
    BFLOAT16: "#b08800",
    COMPILED.name: "#2da44e",
    OPTAX.name: "#4184e4",
    NUMPY: "#8250df",
    TOO_LARGE: "#d1242f",
}


def _spread(random: Random, *shape: int) -> np.ndarray:
    return np.asarray(10.0 ** random.uniform(-1.0, 1.5) * random.standard_normal(shape))


def _labels(random: Random, rows: int, classes: int) -> np.ndarray:
    labels = random.integers(classes, size=rows)
    return np.where((random.random(rows) < 0.2) & (np.arange(rows) > 0), -100, labels)


def _rows(rows: int, classes: int) -> Problem:
    def problem(random: Random) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
        return "cross_entropy", {"logits": _spread(random, rows, classes), "target": _labels(random, rows, classes)}, {}

    return problem


def _smoothed(random: Random) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
    function, inputs, _ = _rows(12, 33)(random)
    return function, inputs | {"weight": random.uniform(0.1, 3.0, 33)}, {"label_smoothing": 0.1}


def _probabilities(random: Random) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
    target = random.dirichlet(np.full(33, 0.5), size=12)
    return "cross_entropy", {"logits": _spread(random, 12, 33), "target": target}, {"reduction": "sum"}


def _causal_lm(random: Random) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
    logits, labels = _spread(random, 2, 9, 50), random.integers(50, size=(2, 9))
    return "causal_lm", {"logits": logits, "labels": labels}, {"num_items_in_batch": 31}


def _elements(function: str, first: str = "input", *, chances: bool = False) -> Problem:
    def problem(random: Random) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
        target = random.random((16, 24)) if chances else random.standard_normal((16, 24))
        return function, {first: _spread(random, 16, 24), "target": target}, {}

    return problem


def _kl_div(random: Random) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
    logits = _spread(random, 12, 33)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    target = random.dirichlet(np.ones(33), size=12)
    return "kl_div", {"input": logs, "target": target}, {"reduction": "batchmean"}


def _masks(function: str) -> Problem:
    def problem(random: Random) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
        targets = random.uniform(0.05, 0.95, (6, 64))
        return function, {"inputs": _spread(random, 6, 64), "targets": targets}, {"num_boxes": 3.0}

    return problem


PROBLEMS: dict[str, Problem] = {
    "cross_entropy, 16 × 100": _rows(16, 100),
    "cross_entropy, 2 × 8192": _rows(2, 8192),
    "weighted, smoothed, 12 × 33": _smoothed,
    "probabilities, 12 × 33": _probabilities,
    "causal_lm, 2 × 9 × 50": _causal_lm,
    "mse": _elements("mse"),
    "huber": _elements("huber"),
    "bce_with_logits": _elements("bce_with_logits", "logits", chances=True),
    "kl_div": _kl_div,
    "sigmoid_focal": _masks("sigmoid_focal"),
    "dice": _masks("dice"),
}


def _unit(random: Random, *shape: int) -> np.ndarray:
    return random.standard_normal(shape, np.float32)


def _long_elements(size: int) -> Problem:
    def problem(random: Random) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
        return "mse", {"input": _unit(random, size), "target": _unit(random, size)}, {}

    return problem


def _long_weighted(random: Random) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
    logits, weight = 2 * _unit(random, 1 << 20, 4), random.uniform(0.1, 3.0, 4)
    return "cross_entropy", {"logits": logits, "target": _labels(random, 1 << 20, 4), "weight": weight}, {}


def _long_masks(random: Random) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
    targets = (random.random((2, 1 << 20)) < 0.3).astype(np.float32)
    return "dice", {"inputs": 3 * _unit(random, 2, 1 << 20), "targets": targets}, {"num_boxes": 2.0}


LONG: dict[str, Problem] = {
    "mse, 2²⁰": _long_elements(1 << 20),
    "mse, 2²⁴": _long_elements(1 << 24),
    "weighted, 2²⁰ × 4": _long_weighted,
    "cross_entropy, 2 × 200 000": _rows(2, 200_000),
    "dice, 2 × 1024²": _long_masks,
}
LONG_SEEDS = 5


def _numpy_mse(inputs: dict[str, Any], _: dict[str, Any], cotangent: Any) -> Any:
    difference = inputs["input"] - inputs["target"]
    slope = difference * np.float32(2 * cotangent / difference.size)
    return (difference**2).mean(), {"input": slope, "target": -slope}


def _numpy_cross_entropy(inputs: dict[str, Any], _: dict[str, Any], cotangent: Any) -> Any:
    logits, rows = inputs["logits"], np.arange(len(inputs["logits"]))
    counted, target = inputs["target"] >= 0, np.maximum(inputs["target"], 0)
    weight = inputs.get("weight", np.ones(logits.shape[1], logits.dtype))
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    own = np.where(counted, weight[target], 0)
    slope = np.exp(logs)
    slope[rows, target] -= 1
    slope *= (np.float32(cotangent) * own / own.sum())[:, None]
    return -(own * logs[rows, target]).sum() / own.sum(), {"logits": slope}


def _numpy_dice(inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Any:
    with np.errstate(over="ignore"):
        p, t = 1 / (1 + np.exp(-inputs["inputs"])), inputs["targets"]
    above = 2 * (p * t).sum(axis=1, keepdims=True) + 1
    below = p.sum(axis=1, keepdims=True) + t.sum(axis=1, keepdims=True) + 1
    coefficient = np.float32(cotangent / parameters["num_boxes"])
    slope = coefficient * (above / below - 2 * t) / below
    loss = (1 - above / below).sum() / np.float32(parameters["num_boxes"])
    return loss, {"inputs": slope * p * (1 - p), "targets": coefficient * (above / below - 2 * p) / below}


# Formulas as they stand in textbooks, for what is added up.
NUMPY_USER = OutsideUser(
    NUMPY,
    {"mse": _numpy_mse, "cross_entropy": _numpy_cross_entropy, "dice": _numpy_dice},
    lambda array: array,
    lambda case: set(case.parameters) <= {"num_boxes"},
)


class Peer(NamedTuple):
    """Who is measured, and in which type."""

    name: str
    user: OutsideUser
    dtype: Any


PEERS = (
    Peer(TORCH.name, TORCH, np.float32),
    Peer(BFLOAT16, TORCH, ml_dtypes.bfloat16),
    Peer(COMPILED.name, COMPILED, np.float32),
    Peer(OPTAX.name, OPTAX, np.float32),
    Peer(NUMPY, NUMPY_USER, np.float32),
)


class Measured(NamedTuple):
    """Error ÷ bound, one a seed, of a peer on a problem."""

    problem: str
    peer: str
    ratios: np.ndarray


def case_of(problem: str, seed: int, dtype: Any) -> Case:
    """A problem's case for a seed."""
    every = PROBLEMS | LONG
    random = np.random.default_rng([seed, list(every).index(problem)])
    function, inputs, parameters = every[problem](random)
    cotangent = float(np.float32(random.choice([-1.0, 1.0]) * 10.0 ** random.uniform(-3.0, 3.0)))
    cast = {name: value.astype(dtype) if value.dtype.kind == "f" else value for name, value in inputs.items()}
    return Case(f"{problem}-{seed}", function, cast, parameters, float(np.asarray(cotangent, dtype)))


def takes_part(peer: Peer, case: Case) -> bool:
    """Whether a peer has a function with the options of a case."""
    if case.function not in peer.user.losses:
        return False
    return peer.user is COMPILED or peer.user.offers(case)


def ratio_of(asked: Question, peer: Peer) -> float:
    """The largest error ÷ bound of a peer's answer."""
    case = asked.case
    inputs = {name: peer.user.to_native(value.copy()) for name, value in case.inputs.items()}
    loss, gradients = peer.user.losses[case.function](nested(inputs), case.parameters, case.grad_output)
    answer = {"loss": loss, **{f"grad.{name}": value for name, value in gradients.items()}}
    verdict = judge(asked, {name: on_host(value, name) for name, value in answer.items()})
    missing = [tensor.message for tensor in verdict.tensors if tensor.ratio is None]
    if missing:
        raise ValueError(f"{case.id}, {peer.name}: {missing[0]}")
    return max(float(tensor.ratio or 0.0) for tensor in verdict.tensors)


def ratio_of_too_large(asked: Question, *, loss: bool = False) -> float:
    """Of all gradients, each 1 % too large, and of the loss where it is to be, the one that shows least."""
    named = [name for name in asked.expected if name.startswith("grad.") or (loss and name == "loss")]
    wrong = {name: (asked.expected[name] * np.float32(1.01)).astype(np.float32) for name in named}
    verdict = judge(asked, {"loss": asked.expected["loss"], **wrong})
    return min(float(tensor.ratio or 0.0) for tensor in verdict.tensors if tensor.name in named)


def in_any_order(asked: Question) -> Question:
    """The same question to whoever adds in one chain."""
    return asked._replace(bounds=bounds(asked.case, asked.result, asked.compute_dtype, "any"))


def ratio_of_one_chain(asked: Question) -> float:
    """Of the loss of an mse whose squares are added one after the other in float32."""
    x, t = asked.case.inputs["input"], asked.case.inputs["target"]
    loss = np.add.accumulate((x - t) ** 2)[-1] / np.float32(x.size)
    (verdict,) = (tensor for tensor in judge(asked, {"loss": loss}).tensors if tensor.name == "loss")
    return float(verdict.ratio or 0.0)


def seeded(problem: str, seed: int) -> Iterator[tuple[str, float]]:
    """What every peer makes of a problem."""
    for dtype in (np.float32, ml_dtypes.bfloat16):
        case = case_of(problem, seed, dtype)
        peers = [peer for peer in PEERS if peer.dtype is dtype and takes_part(peer, case)]
        if not peers:
            continue
        asked = {kind: question(case, kind) for kind in {peer.user.computes_in(case) for peer in peers}}
        for peer in peers:
            yield peer.name, ratio_of(asked[peer.user.computes_in(case)], peer)
        if dtype is np.float32:
            yield TOO_LARGE, ratio_of_too_large(asked["float32"], loss=problem in LONG)
            if problem in LONG and case.function == "mse":
                yield ONE_CHAIN, ratio_of_one_chain(asked["float32"])
                yield ANY_ORDER, ratio_of_one_chain(in_any_order(asked["float32"]))


def measure(seeds: int) -> list[Measured]:
    """All peers on all problems."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    with console.status("") as status:
        for problem in PROBLEMS | LONG:
            for seed in range(min(seeds, LONG_SEEDS) if problem in LONG else seeds):
                status.update(f"{problem}: seed {seed} of {seeds}")
                for peer, ratio in seeded(problem, seed):
                    found[problem, peer].append(ratio)
    return [Measured(problem, peer, np.array(ratios)) for (problem, peer), ratios in found.items()]


def table(measured: list[Measured], seeds: int) -> Table:
    """The quantiles of every peer; of the wrong gradients the least."""
    rows = []
    for problem, peer, ratios in measured:
        if peer in WRONG:
            rows.append((problem, peer, f"{np.median(ratios):.3g}", "", f"least {ratios.min():.3g}"))
        else:
            median, most = np.quantile(ratios, [0.5, 0.99])
            rows.append((problem, peer, f"{median:.3f}", f"{most:.3f}", f"{ratios.max():.3f}"))
    columns = ("problem", "implementation", "median", "99th percentile", "worst")
    return Table(f"Largest error ÷ bound of {seeds} seeds", columns, rows)


def plot(measured: list[Measured], seeds: int, path: Path) -> None:
    """For every problem a line a peer, from its median to its worst, as an SVG for light and dark pages."""
    style: Any = {"svg.hashsalt": "refloss", "font.size": 9.5, "text.color": INK, "axes.labelcolor": INK}
    problems, peers = [*PROBLEMS, *LONG], list(COLOURS)
    with mpl.rc_context(style):
        figure, axes = plt.subplots(figsize=(7.2, 8.4), layout="constrained")
        figure.patch.set_alpha(0.0)
        axes.patch.set_alpha(0.0)
        for problem, peer, ratios in measured:
            if peer not in COLOURS:
                continue
            low, high = (ratios.min(), np.median(ratios)) if peer == TOO_LARGE else (np.median(ratios), ratios.max())
            height = problems.index(problem) + 0.14 * (peers.index(peer) - 2.5)
            axes.plot([low, high], [height, height], color=COLOURS[peer], linewidth=2.2, solid_capstyle="round")
            axes.plot([np.median(ratios)], [height], color=COLOURS[peer], marker="o", markersize=4.5)
        for peer in peers:
            axes.plot([], [], color=COLOURS[peer], marker="o", markersize=4.5, linewidth=2.2, label=peer)
        axes.axvline(1.0, color=INK, linewidth=1.4, linestyle=(0, (4, 3)))
        axes.annotate("the bound", (1.0, -0.62), (5, 0), textcoords="offset points", color=INK, va="center")
        axes.set(xscale="log", xlabel="largest error ÷ bound", ylim=(len(problems) - 0.5, -0.9))
        axes.set_yticks(range(len(problems)), problems)
        axes.xaxis.set_major_locator(LogLocator(10.0, numticks=20))
        axes.tick_params(colors=INK, which="both", length=3)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=INK, alpha=0.25, linewidth=0.6)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(INK)
        axes.set_title(f"{seeds} seeds: from the median (dot) to the worst; of wrong gradients, to the best hidden")
        axes.title.set(fontsize=10.5, ha="right", x=1.0)
        axes.legend(
            frameon=False,
            labelcolor=INK,
            ncols=6,
            loc="upper right",
            bbox_to_anchor=(1.0, -0.08),
            columnspacing=1.4,
            handlelength=1.4,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tolerances", description=str(__doc__).split("\n")[0])
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--plot", type=Path, default=Path("docs/img/tolerances.svg"), help="where the figure goes")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    arguments = parser.parse_args()
    measured = measure(arguments.seeds)
    shown = table(measured, arguments.seeds)
    console.print(machine(("refloss", "torch", "jax", "optax", "transformers")))
    if arguments.markdown:
        print(shown.markdown())
    else:
        shown.show()
    plot(measured, arguments.seeds, arguments.plot)
    status = 0
    for problem, peer, ratios in measured:
        seeds = np.flatnonzero(ratios <= 1.0) if peer in WRONG else np.flatnonzero(~(ratios <= 1.0))
        if seeds.size:
            side = "below" if peer in WRONG else "above"
            console.print(f"{problem}, {peer}: {side} the bound for {seeds.size} seeds, {seeds[:8].tolist()} …")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
