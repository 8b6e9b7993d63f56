"""A small language model that learns by GRPO to write one letter, with refloss's loss and gradients and with torch's.

    python -m conformance.grpo [--steps 60] [--plot docs/img/grpo.svg]

A GPT-2 of characters continues a letter; the reward of a text is the share of the letter e in it. Every step samples
groups of texts, and fits the policy to them twice, the second time off its own policy, so that ratios are not 1.
From the model's hidden states on everything is refloss's: refloss.linear_selected_log_probs makes log-probabilities of
the head's weights, refloss.policy_loss the loss of those, and their gradients come back the same way, each the exact
one, rounded once, until torch takes the gradients of hidden states and weights through the body. Two more runs have
the same formula in torch, in float64 from the same float32 hidden states, and in float32 throughout. Each begins with
the same weights and the same seed and samples for itself; what differs can only come from the loss.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import refloss
from conformance import policies
from conformance.training import FIGURE, INK, SEED, new_model, style

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from transformers import GPT2LMHeadModel

    from conformance.cases import Array

ALPHABET = ascii_lowercase + " \n"
LETTER = ALPHABET.index("e")
STOP = ALPHABET.index("\n")
PROMPTS = "abst"
GROUP = 8  # texts of each prompt
LENGTH = 20  # tokens of a text, at most
UPDATES = 2  # of the weights, for each batch of texts
LEARNING_RATE = 1e-3
POLICY: dict[str, Any] = dict(refloss.POLICY_PRESETS["trl/grpo"]) | {"kl": "k3", "kl_coef": 0.01}


class LogProbs(torch.autograd.Function):
    """refloss.linear_selected_log_probs as a torch function."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Log-probabilities in float64; gradients wait for what comes from the loss."""
        ctx.save_for_backward(hidden, weight, tokens)
        result = refloss.linear_selected_log_probs(hidden.detach(), weight.detach(), tokens, grad=False)
        return torch.from_numpy(result.loss)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        """The gradients of hidden states and weights, rounded to their own type."""
        hidden, weight, tokens = ctx.saved_tensors
        result = refloss.linear_selected_log_probs(hidden, weight, tokens, grad_output=grad_outputs[0])
        return torch.from_numpy(result.grads["input"]), torch.from_numpy(result.grads["linear_weight"]), None


class Policy(torch.autograd.Function):
    """refloss.policy_loss as a torch function."""

    @staticmethod
    def forward(ctx: Any, log_probs: torch.Tensor, keywords: Mapping[str, Any]) -> torch.Tensor:
        """The loss, in float64."""
        ctx.save_for_backward(log_probs)
        ctx.keywords = keywords
        return torch.tensor(refloss.policy_loss(log_probs.detach(), grad=False, **keywords).loss, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The gradient of log-probabilities."""
        (log_probs,) = ctx.saved_tensors
        result = refloss.policy_loss(log_probs, grad_output=grad_outputs[0], **ctx.keywords)
        return torch.from_numpy(result.grads["log_probs"]), None


class Maths(NamedTuple):
    """Who computes what comes after the hidden states."""

    log_probs: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    policy: Callable[[torch.Tensor, Mapping[str, Any]], torch.Tensor]


def torch_log_probs(
    hidden: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor, *, dtype: torch.dtype
) -> torch.Tensor:
    """log_softmax and gather, as trainers write them."""
    logits = torch.nn.functional.linear(hidden.to(dtype), weight.to(dtype))
    return torch.log_softmax(logits, -1).gather(-1, tokens[..., None])[..., 0]


def torch_policy(log_probs: torch.Tensor, keywords: Mapping[str, Any]) -> torch.Tensor:
    """The formula."""
    return policies.policy_loss(log_probs, **keywords)


RUNS: dict[str, Maths] = {
    "torch in float32": Maths(partial(torch_log_probs, dtype=torch.float32), torch_policy),
    "torch in float64": Maths(partial(torch_log_probs, dtype=torch.float64), torch_policy),
    "refloss": Maths(LogProbs.apply, Policy.apply),
}
COLOURS = {"torch in float32": "#e8833a", "torch in float64": "#2da44e", "refloss": "#4184e4"}


class Texts(NamedTuple):
    """What a policy has written: tokens with their prompt [B, 1 + T], and which of them count [B, T]."""

    tokens: torch.Tensor
    mask: torch.Tensor


def sampled(model: GPT2LMHeadModel, random: torch.Generator) -> Texts:
    """A group of texts for each prompt; a text ends with its first newline."""
    tokens = torch.tensor([ALPHABET.index(each) for each in PROMPTS]).repeat_interleave(GROUP)[:, None]
    with torch.no_grad():
        for _ in range(LENGTH):
            p = torch.softmax(model(input_ids=tokens).logits[:, -1].double(), -1)
            tokens = torch.cat([tokens, torch.multinomial(p, 1, generator=random)], 1)
    stops = tokens[:, 1:] == STOP
    return Texts(tokens, stops.cumsum(1) - stops.long() == 0)


def rewards_of(texts: Texts) -> torch.Tensor:
    """The share of the letter in each text, without the newline that ends it; 0 of an empty one."""
    written = texts.mask & (texts.tokens[:, 1:] != STOP)
    letters = (texts.tokens[:, 1:] == LETTER) & written
    return letters.sum(1).double() / written.sum(1).clamp(min=1)


def advantages_of(rewards: torch.Tensor) -> torch.Tensor:
    """What a text is better than others of its group, in standard deviations."""
    groups = rewards.reshape(len(PROMPTS), GROUP)
    normal = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
    return normal.reshape(-1)


class Curve(NamedTuple):
    """A run: the loss before each update, the mean reward of each step's texts, and the texts."""

    losses: list[float]
    rewards: list[float]
    texts: list[Array]


def train(maths: Maths, steps: int, advance: Callable[[], object]) -> Curve:
    """A model after so many steps of GRPO."""
    model, first = (new_model(len(ALPHABET), LENGTH + 1, 64) for _ in range(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    random = torch.Generator().manual_seed(SEED)
    curve = Curve([], [], [])
    for _ in range(steps):
        texts = sampled(model, random)
        rewards = rewards_of(texts)
        with torch.no_grad():
            fixed = {
                "old_log_probs": log_probs_of(maths, model, texts),
                "advantages": advantages_of(rewards),
                "mask": texts.mask,
                "ref_log_probs": log_probs_of(maths, first, texts),
            }
        for _ in range(UPDATES):
            optimizer.zero_grad()
            value = maths.policy(log_probs_of(maths, model, texts), fixed | POLICY)
            torch.autograd.backward(value)
            optimizer.step()
            curve.losses.append(value.item())
        curve.rewards.append(rewards.mean().item())
        curve.texts.append(texts.tokens.numpy())
        advance()
    return curve


def log_probs_of(maths: Maths, model: GPT2LMHeadModel, texts: Texts) -> torch.Tensor:
    """Of each token of each text: [B, T]."""
    hidden = model.transformer(input_ids=texts.tokens[:, :-1]).last_hidden_state
    return maths.log_probs(hidden, model.lm_head.weight, texts.tokens[:, 1:])


def run(steps: int, console: Console, names: tuple[str, ...] = tuple(RUNS)) -> dict[str, Curve]:
    """The curves of runs by name."""
    torch.use_deterministic_algorithms(mode=True)
    curves = {}
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        for name in names:
            task = progress.add_task(name, total=steps)
            curves[name] = train(RUNS[name], steps, partial(progress.advance, task))
    return curves


def distance(curve: Curve, other: Curve) -> Array:
    """How far the losses of two runs are apart, update by update."""
    return np.abs(np.subtract(curve.losses, other.losses))


def same_texts(curve: Curve, other: Curve) -> int:
    """How many steps two runs have in common before their texts differ."""
    equal = [np.array_equal(a, b) for a, b in zip(curve.texts, other.texts, strict=True)]
    return equal.index(False) if False in equal else len(equal)


def summary(curves: Mapping[str, Curve]) -> Table:
    """The ends of the runs, and their distance from refloss's."""
    table = Table("computed by", "first reward", "final reward", "largest difference of losses", "same texts for")
    ours = curves["refloss"]
    for name, curve in curves.items():
        rewards = f"{curve.rewards[0]:.3f}", f"{curve.rewards[-1]:.3f}"
        same = same_texts(curve, ours)
        apart = f"{distance(curve, ours)[: same * UPDATES].max(initial=0.0):.2g}", f"{same} steps"
        table.add_row(name, *rewards, *(("", "") if curve is ours else apart))
    return table


def plot(curves: Mapping[str, Curve], path: Path) -> None:
    """Rewards, and below them how far losses are from refloss's, as an SVG for light and dark pages."""
    with mpl.rc_context(FIGURE):
        figure, (upper, lower) = plt.subplots(
            2, 1, sharex=True, figsize=(7.2, 5.0), height_ratios=(3, 2), layout="constrained"
        )
        figure.patch.set_alpha(0.0)
        for axes in (upper, lower):
            style(axes)
        ours = curves["refloss"]
        steps = np.arange(1, len(ours.rewards) + 1)
        # Narrow on wide: curves that agree are seen as one line with a border.
        for name, width, opacity in (("torch in float64", 5.0, 0.55), ("refloss", 1.3, 1.0)):
            upper.plot(steps, curves[name].rewards, color=COLOURS[name], linewidth=width, alpha=opacity, label=name)
        upper.set(ylabel="share of the letter", xlim=(0, len(steps) + 1), ylim=(0, 1))
        upper.set_title("One small GPT-2 that learns a letter by GRPO", loc="left", fontsize=11)
        for name, curve in curves.items():
            if curve is not ours:
                _plot_distance(lower, name, curve, ours)
        lower.set(yscale="log", ylabel="distance of losses\nfrom refloss", xlabel="step", ylim=(1e-19, 1e0))
        lower.set_yticks([1e-16, 1e-12, 1e-8, 1e-4])
        for axes in (upper, lower):
            axes.legend(frameon=False, labelcolor=INK, loc="center right")
        figure.align_ylabels()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)


def _plot_distance(axes: Any, name: str, curve: Curve, ours: Curve) -> None:
    """Of one run, while its texts are the same."""
    same, count = same_texts(curve, ours) * UPDATES, len(ours.losses)
    apart = distance(curve, ours)[:same]
    told = f", the very same at {np.count_nonzero(apart == 0.0)} of {count} updates"
    if same < count:
        told = f", the same texts for {same // UPDATES} steps"
    # A difference of 0 has no place on this axis.
    shown = np.where(apart > 0.0, apart, np.nan)
    axes.plot(
        1 + np.arange(same) / UPDATES,
        shown,
        color=COLOURS[name],
        linestyle="none",
        marker=".",
        markersize=3,
        label=name + told,
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m conformance.grpo", description=str(__doc__).split("\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--plot", type=Path, default=Path("docs/img/grpo.svg"), help="where the figure goes")
    arguments = parser.parse_args()
    console = Console()
    curves = run(arguments.steps, console)
    console.print(summary(curves))
    plot(curves, arguments.plot)
    console.print(f"Written: {arguments.plot}")


if __name__ == "__main__":
    main()
