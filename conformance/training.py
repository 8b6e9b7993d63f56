"""The same small language model trained with transformers' own loss and with refloss's loss and gradient.

    python -m conformance.training [--steps 200] [--out training-run] [--plot docs/img/training.svg]

A byte-level GPT-2 reads the prose of the standard library's pydoc_data.topics. Every run starts from the same weights
and sees the same batches in float32; a difference between the curves can only come from the loss. A third run, with
transformers' loss computed in float64, tells whose rounding a difference is. The folder that the command writes holds
the curves, and logits and labels of the trained model in the form in which other programs read them.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from pydoc_data import topics
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from safetensors.numpy import save_file
from transformers import GPT2Config, GPT2LMHeadModel

import refloss
from conformance.reference import formula_precision

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from matplotlib.axes import Axes

    from conformance.cases import Array

    Loss = Callable[[GPT2LMHeadModel, torch.Tensor], torch.Tensor]
    Curves = Mapping[str, list[float]]

SEED = 20250101
BATCH = 8
CONTEXT = 128
VOCABULARY = 256
LEARNING_RATE = 1e-3

# Greys and hues that stand out from white and from near-black alike.
INK = "#768390"
FIGURE: Any = {"svg.hashsalt": "refloss", "font.size": 9.5, "text.color": INK, "axes.labelcolor": INK}
COLOURS = {"transformers": "#e8833a", "transformers in float64": "#2da44e", "refloss": "#4184e4"}


class CausalLM(torch.autograd.Function):
    """refloss's loss and gradient as a torch function."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss, in float64; the gradient waits for its cotangent, so that it is rounded only once."""
        ctx.save_for_backward(logits, labels)
        return torch.tensor(refloss.causal_lm(logits, labels, grad=False).loss, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The gradient of logits; labels have none."""
        logits, labels = ctx.saved_tensors
        result = refloss.causal_lm(logits, labels, grad_output=grad_outputs[0])
        return torch.from_numpy(result.grads["logits"]), None


def refloss_causal_lm(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """refloss.causal_lm for torch tensors, differentiable."""
    loss: torch.Tensor = CausalLM.apply(logits, labels)  # type: ignore[no-untyped-call]
    return loss


def transformers_loss(model: GPT2LMHeadModel, tokens: torch.Tensor) -> torch.Tensor:
    """The loss that the model computes by itself."""
    loss: torch.Tensor = model(input_ids=tokens, labels=tokens).loss
    return loss


def transformers_loss_in_float64(model: GPT2LMHeadModel, tokens: torch.Tensor) -> torch.Tensor:
    """The same, from the same float32 logits, in float64."""
    logits = model(input_ids=tokens).logits
    with formula_precision():
        loss: torch.Tensor = model.loss_function(logits=logits, labels=tokens, vocab_size=VOCABULARY)
    return loss


def refloss_loss(model: GPT2LMHeadModel, tokens: torch.Tensor) -> torch.Tensor:
    """The loss that refloss computes from the model's logits."""
    return refloss_causal_lm(model(input_ids=tokens).logits, tokens)


LOSSES: dict[str, Loss] = {
    "transformers": transformers_loss,
    "transformers in float64": transformers_loss_in_float64,
    "refloss": refloss_loss,
}


def batches(count: int) -> torch.Tensor:
    """Passages of the corpus, a byte a token: [count, BATCH, CONTEXT]."""
    prose = "\n\n".join(topics.topics.values()).encode()
    text = torch.tensor(np.frombuffer(prose, dtype=np.uint8).astype(np.int64))
    random = torch.Generator().manual_seed(SEED)
    starts = torch.randint(len(text) - CONTEXT, (count, BATCH, 1), generator=random)
    return text[starts + torch.arange(CONTEXT)]


def new_model(vocabulary: int = VOCABULARY, context: int = CONTEXT, width: int = 128) -> GPT2LMHeadModel:
    """A small GPT-2, always with the same weights; no dropout, so that nothing but the loss can differ."""
    torch.manual_seed(SEED)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=context,
        n_embd=width,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # what transformers falls back to, with a warning, for this class
    return model


def train(loss: Loss, steps: int, advance: Callable[[], object]) -> tuple[GPT2LMHeadModel, list[float]]:
    """A model after so many steps of AdamW, and its loss before each."""
    model = new_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    curve = []
    for tokens in batches(steps):
        optimizer.zero_grad()
        value = loss(model, tokens)
        torch.autograd.backward(value)
        optimizer.step()
        curve.append(value.item())
        advance()
    return model, curve


def run(steps: int, console: Console) -> tuple[Curves, GPT2LMHeadModel]:
    """The curves of all losses, and the model that the last of them, refloss's, trained."""
    torch.use_deterministic_algorithms(mode=True)
    curves = {}
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        for name, loss in LOSSES.items():
            task = progress.add_task(name, total=steps)
            model, curves[name] = train(loss, steps, partial(progress.advance, task))
    return curves, model


def differences(curves: Curves) -> dict[str, Array]:
    """How far each curve is from refloss's."""
    return {name: np.abs(np.subtract(curve, curves["refloss"])) for name, curve in curves.items() if name != "refloss"}


def summary(curves: Curves) -> Table:
    """The end of each run, and its largest distance from refloss's."""
    table = Table("loss computed by", "first loss", "final loss", "largest difference from refloss's curve")
    distance = differences(curves)
    for name, curve in curves.items():
        largest = f"{distance[name].max():.2g}" if name in distance else ""
        table.add_row(name, f"{curve[0]:.9f}", f"{curve[-1]:.9f}", largest)
    return table


def save(folder: Path, curves: Curves, model: GPT2LMHeadModel) -> None:
    """The curves, and logits and labels of a batch that the model has not seen."""
    folder.mkdir(parents=True, exist_ok=True)
    steps = len(curves["refloss"])
    labels = batches(steps + 1)[-1]
    with torch.no_grad():
        logits = model(input_ids=labels).logits
    save_file({"logits": logits.numpy()}, folder / "logits.safetensors")
    np.save(folder / "labels.npy", labels.numpy())
    (folder / "curves.json").write_text(json.dumps({"seed": SEED, "steps": steps, "losses": curves}, indent=1) + "\n")


def style(axes: Axes) -> None:
    """Axes for light and dark pages."""
    axes.patch.set_alpha(0.0)
    axes.tick_params(colors=INK, which="both", length=3)
    axes.grid(axis="y", color=INK, alpha=0.25, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(INK)


def plot(curves: Curves, path: Path) -> None:
    """The curves, and below them how far they are from refloss's, as an SVG for light and dark pages."""
    with mpl.rc_context(FIGURE):
        figure, (upper, lower) = plt.subplots(
            2, 1, sharex=True, figsize=(7.2, 5.0), height_ratios=(3, 2), layout="constrained"
        )
        figure.patch.set_alpha(0.0)
        for axes in (upper, lower):
            style(axes)
        count = len(curves["refloss"])
        steps = np.arange(1, count + 1)
        # Narrow on wide: curves that agree are seen as one line with a border.
        for name, width, opacity in (("transformers", 5.0, 0.55), ("refloss", 1.3, 1.0)):
            upper.plot(steps, curves[name], color=COLOURS[name], linewidth=width, alpha=opacity, label=name)
        upper.set(ylabel="loss, nats a byte", xlim=(0, count + 1))
        upper.set_title("One small GPT-2, trained with either loss", loc="left", fontsize=11)
        for name, distance in differences(curves).items():
            # A difference of 0 has no place on this axis.
            shown = np.where(distance > 0.0, distance, np.nan)
            same = f", the very same at {np.count_nonzero(distance == 0.0)} of {count} steps"
            label, line = (name, "-") if name == "transformers" else (name + same, "none")
            lower.plot(
                steps, shown, color=COLOURS[name], linestyle=line, linewidth=1.3, marker=".", markersize=3, label=label
            )
        lower.set(yscale="log", ylabel="distance\nfrom refloss", xlabel="step", ylim=(1e-17, 1e-2))
        lower.set_yticks([1e-16, 1e-12, 1e-8, 1e-4])
        upper.legend(frameon=False, labelcolor=INK)
        lower.legend(frameon=False, labelcolor=INK, loc="center right", bbox_to_anchor=(1.0, 0.46), borderaxespad=0.0)
        figure.align_ylabels()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m conformance.training", description=str(__doc__).split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("training-run"), help="folder for curves, logits and labels")
    parser.add_argument("--plot", type=Path, default=Path("docs/img/training.svg"), help="where the figure goes")
    arguments = parser.parse_args()
    console = Console()
    curves, model = run(arguments.steps, console)
    console.print(summary(curves))
    save(arguments.out, curves, model)
    plot(curves, arguments.plot)
    console.print(f"Written: {arguments.out}/ and {arguments.plot}")


if __name__ == "__main__":
    main()
